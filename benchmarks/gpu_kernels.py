"""Every CUDA kernel at least once: against the reference in float64 (``check``), or timed in a CUDA graph (``time``,
``products``).

    python benchmarks/gpu_kernels.py check
    compute-sanitizer --tool racecheck --kernel-regex kns=ringnet python benchmarks/gpu_kernels.py check --quick
    python benchmarks/gpu_kernels.py time --json FILE
    python benchmarks/gpu_kernels.py products --json FILE
    ncu --profile-from-start off python benchmarks/gpu_kernels.py profile

``check --quick`` is small enough for compute-sanitizer; ``overrun`` is an error for its memcheck to find. ``time``
prints microseconds per call on the device, without the host's share, at FLAME's sizes (V = 5023, K = 150, J = 5) and
beside them the shortest time that arithmetic and memory traffic allow. ``products`` times the large-batch mesh kernels
by themselves, multiplying in float32 and on tensor cores in turns (mesh_products.cu; needs nvcc). ``profile`` has the
profiler on for the hot kernels: B = 1 and 1024, forward and backward. With ``--device cpu``
all of them but ``overrun`` run without a GPU, to try the program itself: few batch sizes, and products are only
compiled.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median

import torch

from ringnet_ext import ops
from ringnet_ext.ops import reference

PARENTS = [-1, 0, 1, 1, 1]


def random_model(V: int, K: int, J: int, dtype: torch.dtype, device: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Arguments of flame_lbs but betas and pose; two joints per vertex, as a region of neighbouring vertices has
    them."""
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    weights = torch.zeros(V, J, dtype=torch.float64)
    main = torch.arange(V) * J // V
    weights[torch.arange(V), main] += 0.7
    weights[torch.arange(V), (main + 1) % J] += 0.3
    model = dict(
        v_template=0.1 * normal(V, 3),
        shapedirs=0.002 * normal(V, 3, K),
        posedirs=0.002 * normal(9 * (J - 1), 3 * V),
        J_regressor=torch.softmax(3 * normal(J, V), dim=1),
        parents=torch.tensor((PARENTS + list(range(4, J)))[:J]),
        lbs_weights=weights,
    )
    return {k: v.to(device) if k == "parents" else v.to(device, dtype) for k, v in model.items()}


def embedding(V: int, dtype: torch.dtype, device: str) -> tuple[torch.Tensor, ...]:
    """faces and landmarks, static and contour, as flame_landmarks takes them."""
    g = torch.Generator().manual_seed(1)
    faces = torch.stack([torch.randperm(V, generator=g)[:3] for _ in range(200)])

    def bary(*shape):
        return torch.rand(*shape, 3, generator=g, dtype=torch.float64).to(device, dtype)

    def index(*shape):
        return torch.randint(200, shape, generator=g).to(device)

    return faces.to(device), index(51), bary(51), index(79, 17), bary(79, 17)


def gradients(function, inputs, seed):
    """Results, and the gradients of the inputs of a random linear function of them."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    results = function(*inputs)
    results = results if isinstance(results, tuple) else (results,)
    g = torch.Generator().manual_seed(seed)
    seeds = [torch.randn(r.shape, generator=g, dtype=torch.float64).to(r) for r in results]
    return [*results, *torch.autograd.grad(results, inputs, seeds)]


def lbs(operators, model):
    return lambda betas, pose, v_template: operators.flame_lbs(betas, pose, **{**model, "v_template": v_template})


def landmarks(operators, model, points, neck):
    return lambda betas, pose: operators.flame_landmarks(betas, pose, *model.values(), *points, neck_joint=neck)


def points_of(operators, points):
    faces, index, bary = points[:3]

    def of(vertices):
        B = len(vertices)
        return operators.vertices2landmarks(vertices, faces, index.expand(B, -1), bary.expand(B, -1, -1))

    return of


def check(device: str, quick: bool) -> bool:
    ok = True
    # Batches on both sides of every change of tiling (csrc/cuda/layout.h); tiles that are full, partial and many; the
    # last so large that a block of the backward pass walks over several tiles.
    sizes = [(B, 100, 11, 5) for B in (1, 3, 9, 17, 40, 130)] + [
        (2, 64, 0, 1),
        (20, 33, 3, 9),
        (70, 700, 30, 5),
        (600, 900, 10, 5),
    ]
    if quick:  # each of the kernels once
        sizes = [(B, 100, 11, 5) for B in (1, 3, 20, 40)] + [(12, 33, 3, 9), (600, 900, 10, 5)]
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        for B, V, K, J in sizes[: 4 if quick and dtype == torch.float64 else None]:
            model, exact = random_model(V, K, J, dtype, device), random_model(V, K, J, dtype, "cpu")
            points, exact_points = embedding(V, dtype, device), embedding(V, dtype, "cpu")
            exact = {k: v if k == "parents" else v.double() for k, v in exact.items()}
            exact_points = [x.double() if x.is_floating_point() else x for x in exact_points]
            g = torch.Generator().manual_seed(B)
            betas, pose = torch.randn(B, K, generator=g).to(dtype), 0.5 * torch.randn(B, 3 * J, generator=g).to(dtype)
            neck = min(1, J - 1)

            per_element = model["v_template"].expand(B, -1, -1)
            exact_template = exact["v_template"]
            cases = {
                "rodrigues": (ops.batch_rodrigues, [pose.view(-1, 3)], reference.batch_rodrigues, [pose.view(-1, 3)]),
                "lbs": (
                    lbs(ops, model),
                    [betas, pose, model["v_template"]],
                    lbs(reference, exact),
                    [betas, pose, exact_template],
                ),
                "lbs, template per element": (
                    lbs(ops, model),
                    [betas, pose, per_element],
                    lbs(reference, exact),
                    [betas, pose, exact_template.expand(B, -1, -1)],
                ),
                "landmarks": (
                    landmarks(ops, model, points, neck),
                    [betas, pose],
                    landmarks(reference, exact, exact_points, neck),
                    [betas, pose],
                ),
                "points": (
                    points_of(ops, points),
                    [per_element],
                    points_of(reference, exact_points),
                    [exact_template.expand(B, -1, -1)],
                ),
            }
            for name, (function, inputs, exact_function, exact_inputs) in cases.items():
                got = gradients(function, [x.to(device, dtype) for x in inputs], seed=2)
                want = gradients(exact_function, [x.double().cpu() for x in exact_inputs], seed=2)
                again = gradients(function, [x.to(device, dtype) for x in inputs], seed=2)
                for i, (x, y, z) in enumerate(zip(got, want, again, strict=True)):
                    error = (
                        ((x.detach().cpu().double() - y).norm() / y.norm().clamp_min(1e-30)).item()
                        if y.numel()
                        else 0.0
                    )
                    if not error <= tolerance or not torch.equal(x, z):
                        ok = False
                        print(
                            f"{name}, {dtype}, B={B} V={V} K={K} J={J}, result {i}: error {error:.1e}, "
                            f"repeats {torch.equal(x, z)}"
                        )
    print("every kernel agrees with the reference and repeats bit for bit" if ok else "FAILED")
    return ok


def microseconds(call, device: str) -> float:
    """Of one call: replayed in a CUDA graph, the median of 20 replays of 20 calls. On a CPU the median of 5 calls."""
    if device == "cpu":
        times = []
        for _ in range(5):
            start = time.perf_counter()
            call()
            times.append(1e6 * (time.perf_counter() - start))
        return median(times)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(20):
            call()
    graph.replay()
    times = []
    for _ in range(20):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1000 * start.elapsed_time(end) / 20)
    return median(times)


class Calls:
    """flame_lbs and flame_landmarks on B random heads of FLAME's sizes, forward and with backward."""

    V, K, J, F = 5023, 150, 5, 186

    def __init__(self, device: str):
        self.device = device
        self.model = random_model(self.V, self.K, self.J, torch.float32, device)
        self.points = embedding(self.V, torch.float32, device)

    def of_batch(self, B: int) -> dict:
        """Name -> call."""
        model, points = self.model, self.points
        betas = torch.randn(B, self.K, device=self.device, requires_grad=True)
        pose = (0.3 * torch.randn(B, 3 * self.J, device=self.device)).requires_grad_()
        seeds, lmk_seeds = torch.randn(B, self.V, 3, device=self.device), torch.randn(B, 68, 3, device=self.device)

        def lbs():
            return ops.flame_lbs(betas, pose, **model)[0]

        def landmarks():
            return ops.flame_landmarks(betas, pose, *model.values(), *points)

        return dict(
            forward=torch.no_grad()(lbs),
            both=lambda: torch.autograd.grad(lbs(), (betas, pose), seeds),
            landmarks=torch.no_grad()(landmarks),
            landmarks_both=lambda: torch.autograd.grad(landmarks(), (betas, pose), lmk_seeds),
        )


def write(path: Path | None, result: dict) -> None:
    if path:
        temporary = path.with_name(f".{path.name}")
        temporary.write_text(json.dumps(result, indent=1))
        temporary.replace(path)


def device_name(device: str) -> str:
    return "CPU" if device == "cpu" else torch.cuda.get_device_name()


def limits(device: str) -> dict[str, float]:
    """The device's own, measured, per microsecond: bytes of a copy, counted both ways, and operations of products in
    float32 and in TF32."""
    n, words = (1024, 2**22) if device == "cpu" else (8192, 2**28)
    a, big = torch.randn(n, n, device=device), torch.empty(words, device=device)
    other, rates = torch.empty_like(big), {}
    for name, tf32 in (("float32_flop_per_us", False), ("tf32_flop_per_us", True)):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        rates[name] = 2 * n**3 / microseconds(lambda: torch.mm(a, a), device)
    torch.backends.cuda.matmul.allow_tf32 = False
    return {"copy_bytes_per_us": 8 * words / microseconds(lambda: other.copy_(big), device), **rates}


def bounds(B: int, limits: dict[str, float]) -> tuple[float, float]:
    """Microseconds of flame_lbs that no kernel goes below, forward and with backward.

    A product of float32's accuracy is one in float32 or three in TF32, whichever the card does faster. Skinning is done
    beside it, by other units.
    """
    V, F = Calls.V, Calls.F
    bandwidth, float32 = limits["copy_bytes_per_us"], limits["float32_flop_per_us"]
    product = 2 * B * F * 3 * V / max(float32, limits["tf32_flop_per_us"] / 3)
    output, directions = 4 * B * 3 * V, 4 * F * 3 * V
    forward = max(product, (output + directions) / bandwidth)
    return forward, max(
        2 * product, (4 * output + 2 * directions) / bandwidth
    )  # blended vertices written and read, the gradient read


def time_calls(device: str, path: Path | None) -> None:
    calls, rates = Calls(device), limits(device)
    result = dict(device=device_name(device), torch=torch.__version__, **rates, rows=[])
    print(
        "{}: copy {:.2f} TB/s, products in float32 {:.1f} TFLOP/s, in TF32 {:.1f} TFLOP/s".format(
            result["device"], *(rate / 1e6 for rate in rates.values())
        )
    )
    print("microseconds      B   forward (bound)   forward+backward (bound)   landmarks forward, forward+backward")
    for B in (1, 8, 64) if device == "cpu" else (1, 8, 64, 256, 1024, 1088, 3000, 4096):
        bound, both = bounds(B, rates)
        row = {name: microseconds(call, device) for name, call in calls.of_batch(B).items()}
        result["rows"].append(dict(B=B, **row, bound=bound, bound_both=both))
        print(
            f"{B:18d} {row['forward']:10.1f} ({bound:6.1f}) {row['both']:16.1f} ({both:7.1f}) "
            f"{row['landmarks']:16.1f} {row['landmarks_both']:10.1f}",
            flush=True,
        )
        write(path, result)  # after every row: a run that is stopped leaves what it has


def time_products(device: str, path: Path | None) -> None:
    """The large-batch mesh kernels with either product, by direction and batch size; compiled for the GPU at hand."""
    if not shutil.which("nvcc"):
        sys.exit("products: nvcc is needed")
    major, minor = (9, 0) if device == "cpu" else torch.cuda.get_device_capability()
    source = Path(__file__).with_name("mesh_products.cu")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "mesh_products"
        subprocess.run(["nvcc", "-std=c++17", "-O3", f"-arch=sm_{major}{minor}", "-o", program, source], check=True)
        if device == "cpu":
            print("compiled")
            return
        output = subprocess.run([program], check=True, stdout=subprocess.PIPE, text=True).stdout
    rows = [json.loads(line) for line in output.splitlines()]
    write(path, dict(device=device_name(device), rows=rows))
    print("the mesh kernels alone, microseconds: direction, B, in float32, on tensor cores, largest difference, chosen")
    for row in rows:
        tensor_cores, difference = (row.get(name, float("nan")) for name in ("tensor_cores_us", "largest_difference"))
        print(
            f"{row['direction']:>8} {row['B']:6d} {row['float32_us']:10.1f} {tensor_cores:10.1f} "
            f"{difference:10.1e}   {row['chosen']}"
        )


def profile(device: str) -> None:
    calls = Calls(device)
    for B in (1, 1024):
        call = calls.of_batch(B)["both"]
        call()
        with torch.cuda.profiler.profile() if device == "cuda" else nullcontext():
            call()
            if device == "cuda":
                torch.cuda.synchronize()


def overrun() -> None:
    """Rotations of vectors that aren't there any more."""
    vectors = torch.zeros(100_000, 3, device="cuda")
    vectors.untyped_storage().resize_(12)
    ops.batch_rodrigues(vectors)
    torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["check", "time", "products", "profile", "overrun"])
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda", help="cpu: to try this program itself (%(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="for check: fewer sizes")
    parser.add_argument("--json", type=Path, help="for time and products: also write the figures here")
    arguments = parser.parse_args()
    device = arguments.device
    if arguments.what == "check" and not check(device, arguments.quick):
        sys.exit(1)
    elif arguments.what == "time":
        time_calls(device, arguments.json)
    elif arguments.what == "products":
        time_products(device, arguments.json)
    elif arguments.what == "profile":
        profile(device)
    elif arguments.what == "overrun":
        overrun()


if __name__ == "__main__":
    main()
