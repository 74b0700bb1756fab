"""Every CUDA kernel at least once: against the reference in float64 (``check``), or timed in a CUDA graph (``time``).

    python benchmarks/gpu_kernels.py check
    compute-sanitizer --tool racecheck python benchmarks/gpu_kernels.py check
    python benchmarks/gpu_kernels.py time --json FILE

``check`` is small enough for compute-sanitizer. ``time`` prints microseconds per call on the device, without the host's share, at FLAME's
sizes (V = 5023, K = 150, J = 5) and beside them the shortest time that arithmetic and memory traffic allow; where there is nvcc also the
large-batch mesh kernels by themselves, multiplying in float32 and on tensor cores in turns (mesh_products.cu).
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import torch

from ringnet_ext import ops
from ringnet_ext.ops import reference

PARENTS = [-1, 0, 1, 1, 1]


def random_model(V: int, K: int, J: int, dtype: torch.dtype, device: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Arguments of flame_lbs but betas and pose; two joints per vertex, as a region of neighbouring vertices has them."""
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
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
    bary = lambda *shape: torch.rand(*shape, 3, generator=g, dtype=torch.float64).to(device, dtype)  # noqa: E731
    index = lambda *shape: torch.randint(200, shape, generator=g).to(device)  # noqa: E731
    return faces.to(device), index(51), bary(51), index(79, 17), bary(79, 17)


def gradients(function, inputs, seed):
    """Results, and the gradients of the inputs of a random linear function of them."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    results = function(*inputs)
    results = results if isinstance(results, tuple) else (results,)
    g = torch.Generator().manual_seed(seed)
    seeds = [torch.randn(r.shape, generator=g, dtype=torch.float64).to(r) for r in results]
    return [*results, *torch.autograd.grad(results, inputs, seeds)]


def check(device: str) -> bool:
    ok = True
    # Batches on both sides of every change of tiling (csrc/cuda/layout.h); tiles that are full, partial and many; the last so large that a
    # block of the backward pass walks over several tiles.
    sizes = [(B, 100, 11, 5) for B in (1, 3, 9, 17, 40, 130)] + [(2, 64, 0, 1), (20, 33, 3, 9), (70, 700, 30, 5), (600, 900, 10, 5)]
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        for B, V, K, J in sizes:
            model, exact = random_model(V, K, J, dtype, device), random_model(V, K, J, dtype, "cpu")
            points, exact_points = embedding(V, dtype, device), embedding(V, dtype, "cpu")
            exact = {k: v if k == "parents" else v.double() for k, v in exact.items()}
            exact_points = [x.double() if x.is_floating_point() else x for x in exact_points]
            g = torch.Generator().manual_seed(B)
            betas, pose = torch.randn(B, K, generator=g).to(dtype), 0.5 * torch.randn(B, 3 * J, generator=g).to(dtype)
            neck = min(1, J - 1)

            def lbs(operators, m):
                return lambda b, p, t: operators.flame_lbs(b, p, **{**m, "v_template": t})

            def landmarks(operators, m, e):
                return lambda b, p: operators.flame_landmarks(b, p, *m.values(), *e, neck_joint=neck)

            def points_of(operators, e):
                return lambda v: operators.vertices2landmarks(v, e[0], e[1].expand(len(v), -1), e[2].expand(len(v), -1, -1))

            per_element = model["v_template"].expand(B, -1, -1)
            exact_template = exact["v_template"]
            cases = {
                "rodrigues": (ops.batch_rodrigues, [pose.view(-1, 3)], reference.batch_rodrigues, [pose.view(-1, 3)]),
                "lbs": (lbs(ops, model), [betas, pose, model["v_template"]], lbs(reference, exact), [betas, pose, exact_template]),
                "lbs, template per element": (lbs(ops, model), [betas, pose, per_element], lbs(reference, exact),
                                              [betas, pose, exact_template.expand(B, -1, -1)]),
                "landmarks": (landmarks(ops, model, points), [betas, pose], landmarks(reference, exact, exact_points), [betas, pose]),
                "points": (points_of(ops, points), [per_element], points_of(reference, exact_points), [exact_template.expand(B, -1, -1)]),
            }
            for name, (function, inputs, exact_function, exact_inputs) in cases.items():
                got = gradients(function, [x.to(device, dtype) for x in inputs], seed=2)
                want = gradients(exact_function, [x.double().cpu() for x in exact_inputs], seed=2)
                again = gradients(function, [x.to(device, dtype) for x in inputs], seed=2)
                for i, (x, y, z) in enumerate(zip(got, want, again)):
                    error = ((x.detach().cpu().double() - y).norm() / y.norm().clamp_min(1e-30)).item() if y.numel() else 0.0
                    if not error <= tolerance or not torch.equal(x, z):
                        ok = False
                        print(f"{name}, {dtype}, B={B} V={V} K={K} J={J}, result {i}: error {error:.1e}, repeats {torch.equal(x, z)}")
    print("every kernel agrees with the reference and repeats bit for bit" if ok else "FAILED")
    return ok


def graph_time(call) -> float:
    """Microseconds of one call replayed in a CUDA graph, the median of 20 replays of 20 calls."""
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


def mesh_products() -> list[dict]:
    """The large-batch mesh kernels with either product, by direction and batch size; compiled for the GPU at hand."""
    if not shutil.which("nvcc"):
        print("the mesh kernels' two products: not timed, no nvcc")
        return []
    major, minor = torch.cuda.get_device_capability()
    source = Path(__file__).with_name("mesh_products.cu")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "mesh_products"
        subprocess.run(["nvcc", "-std=c++17", "-O3", f"-arch=sm_{major}{minor}", "-o", program, source], check=True)
        output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    rows = [json.loads(line) for line in output.splitlines()]
    print("the mesh kernels alone, microseconds: direction, B, in float32, on tensor cores, largest difference, chosen")
    for row in rows:
        missing = float("nan")
        print(f"{row['direction']:>8} {row['B']:6d} {row['float32_us']:10.1f} {row.get('tensor_cores_us', missing):10.1f} "
              f"{row.get('largest_difference', missing):10.1e}   {row['chosen']}")  # fmt: skip
    return rows


def time(path: Path | None) -> None:
    V, K, J, F = 5023, 150, 5, 186
    properties = torch.cuda.get_device_properties(0)
    model, points = random_model(V, K, J, torch.float32, "cuda"), embedding(V, torch.float32, "cuda")
    # The card's own limits, measured: a copy counted both ways, and float32 products without TF32.
    torch.backends.cuda.matmul.allow_tf32 = False
    a, big = torch.randn(8192, 8192, device="cuda"), torch.empty(2**28, device="cuda")
    other = torch.empty_like(big)
    bandwidth = 8 * 2**28 / graph_time(lambda: other.copy_(big))  # bytes per microsecond
    flops = 2 * 8192**3 / graph_time(lambda: torch.mm(a, a))  # per microsecond
    del a, big, other
    rows = []
    print(f"{properties.name}: copy {bandwidth / 1e6:.2f} TB/s, float32 products {flops / 1e6:.1f} TFLOP/s")
    print("microseconds      B   forward (bound)   forward+backward (bound)   landmarks forward, forward+backward")
    for B in (1, 8, 64, 256, 1024, 1088, 3000, 4096):
        betas = torch.randn(B, K, device="cuda", requires_grad=True)
        pose = (0.3 * torch.randn(B, 3 * J, device="cuda")).requires_grad_()
        seeds, lmk_seeds = torch.randn(B, V, 3, device="cuda"), torch.randn(B, 68, 3, device="cuda")

        def lbs():
            return ops.flame_lbs(betas, pose, **model)[0]

        def landmarks():
            return ops.flame_landmarks(betas, pose, *model.values(), *points)

        def without_grad(f):
            with torch.no_grad():
                f()

        product, output = 2 * B * F * 3 * V, 4 * B * 3 * V
        bound = max(product / flops, (output + 4 * F * 3 * V) / bandwidth)
        both = max(2 * product / flops, (4 * output + 8 * F * 3 * V) / bandwidth)  # blended written and read, gradient read
        row = dict(
            B=B,
            forward=graph_time(lambda: without_grad(lbs)),
            both=graph_time(lambda: torch.autograd.grad(lbs(), (betas, pose), seeds)),
            landmarks=graph_time(lambda: without_grad(landmarks)),
            landmarks_both=graph_time(lambda: torch.autograd.grad(landmarks(), (betas, pose), lmk_seeds)),
            bound=bound,
            bound_both=both,
        )
        rows.append(row)
        print(f"{B:18d} {row['forward']:10.1f} ({bound:6.1f}) {row['both']:16.1f} ({both:7.1f}) "
              f"{row['landmarks']:16.1f} {row['landmarks_both']:10.1f}")  # fmt: skip
    products = mesh_products()
    if path:
        result = dict(device=properties.name, torch=torch.__version__, copy_bytes_per_us=bandwidth, float32_flop_per_us=flops, rows=rows,
                      mesh_products=products)  # fmt: skip
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(result, indent=1))
        temporary.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["check", "time"])
    parser.add_argument("--device", default="cuda", help="for check: cuda, or cpu to try the check itself (%(default)s)")
    parser.add_argument("--json", type=Path, help="for time: also write the figures here")
    arguments = parser.parse_args()
    if arguments.what == "time":
        time(arguments.json)
    elif not check(arguments.device):
        sys.exit(1)


if __name__ == "__main__":
    main()
