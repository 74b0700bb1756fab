"""The CUDA kernels without a GPU: csrc/cuda compiled unchanged with a host compiler against tests/cuda_emulation, every
operator compared with the reference in float64. The package's operators run on it as on any core: what is theirs is
tested too.

A fault must show: that it does is tested at the end, with barriers taken out one at a time.
"""

import ctypes
import functools
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from ringnet_ext import ops
from ringnet_ext.ops import _checks, _points, _prepared, _rodrigues, reference

ROOT = Path(__file__).resolve().parents[2]
COMPILER = shlex.split(os.environ.get("CXX", "g++"))

# -march=native: a * b + c is rounded once, as on a GPU. No fortified long jumps: they go from stack to stack. Shared
# memory, thread-local here, needs no constructors.
FLAGS = [
    "-std=c++17", "-O2", "-fPIC", "-march=native", "-ffp-contract=fast", "-U_FORTIFY_SOURCE", "-fno-extern-tls-init",
    "-Wall", "-Wextra", "-Wno-unknown-pragmas",
]  # fmt: skip


def is_gnu(compiler: list[str]) -> bool:
    if shutil.which(compiler[0]) is None:
        return False
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout
    return "Free Software Foundation" in version


pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the emulation of CUDA needs Linux"),
    pytest.mark.skipif(
        not is_gnu(COMPILER),
        reason=f"the emulation of CUDA needs GNU's C++ compiler: {COMPILER[0]} is missing or another",
    ),
]


class Plan(NamedTuple):
    """A launch: how many blocks, and what each takes."""

    small: int  # of the kernels for small batches
    blocks: int
    threads: int
    shared: int  # bytes
    tiles_per_block: int
    tiles: int  # of all blocks


class Emulation:
    """The emulated device: tests/cuda_emulation/emulation.h, and the core that computes on it."""

    def __init__(self, folder: Path):
        self._library = ctypes.CDLL(str(folder / "libcuda_emulation.so"))
        self._library.emulation_places.restype = ctypes.c_char_p
        spec = importlib.util.spec_from_file_location("cuda_emulation._ringnet_core", folder / "_ringnet_core.so")
        self.core = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.core)
        assert self.core.simd_level() == "emulated CUDA"  # not the module of the same name that others have imported

    def order(self, order: int) -> None:
        self._library.emulation_set_order(order)

    def capability(self, capability: int) -> None:
        self._library.emulation_set_capability(capability)

    def ignore(self, place: str) -> None:
        self._library.emulation_ignore(place.encode())

    def plan(self, backward: bool, *sizes: int) -> "Plan":
        """The launch of the mesh's kernel for B, V, K, J in float32."""
        values = (ctypes.c_int64 * 6)()
        self._library.emulation_plan(ctypes.c_int(backward), *map(ctypes.c_int64, sizes), values)
        return Plan(*values)

    def places(self) -> list[str]:
        return self._library.emulation_places().decode().split()


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Emulation:
    pybind11 = pytest.importorskip("pybind11")
    folder, here = tmp_path_factory.mktemp("cuda_emulation"), ROOT / "tests" / "cuda_emulation"
    include = [f"-I{path}" for path in (ROOT / "csrc", here, pybind11.get_include(), sysconfig.get_paths()["include"])]
    flags = [*FLAGS, *shlex.split(os.environ.get("CXXFLAGS", ""))]

    def run(*arguments) -> None:
        result = subprocess.run([*COMPILER, *flags, *arguments], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr

    def compile_source(source: Path) -> Path:
        module = (
            ['-DRN_VERSION=""', '-DRN_COMPILER=""', '-DRN_CUDA_ARCHITECTURES=""', "-DRN_WITH_CUDA", "-O0"]
            if source.name == "module.cpp"
            else []
        )
        run(*include, *module, "-x", "c++", "-c", source, "-o", folder / f"{source.stem}.o")
        return folder / f"{source.stem}.o"

    # Joints are regressed on the host where tensors live there, as the emulated device's do. Meshes are always there.
    cpu = [ROOT / "csrc" / "cpu" / name for name in ("joints.cpp", "mesh.cpp", "threads.cpp")]
    host = [ROOT / "python" / "module.cpp", *cpu]
    sources = [*host, *sorted((ROOT / "csrc" / "cuda").glob("*.cu")), *sorted(here.glob("*.cpp"))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        module, *kernels = pool.map(compile_source, sources)
    run("-shared", *kernels, "-ldl", "-o", folder / "libcuda_emulation.so")
    run("-shared", module, f"-L{folder}", "-lcuda_emulation", "-Wl,-rpath,$ORIGIN", "-o", folder / "_ringnet_core.so")
    return Emulation(folder)


@pytest.fixture
def emulation(built, monkeypatch):
    """The operators on the emulated device, with fresh tensors full of NaN."""
    monkeypatch.setattr(_prepared, "core", built.core)
    for dtype, bits in ((torch.float32, 32), (torch.float64, 64)):
        for models, name in ((_prepared._LBS, "LbsModel"), (_prepared._LANDMARKS, "LandmarkModel")):
            monkeypatch.setitem(models, dtype, getattr(built.core, f"{name}F{bits}"))
        for kernels, name in (
            (_points._FORWARD, "vertices2landmarks_forward"),
            (_points._BACKWARD, "vertices2landmarks_backward"),
        ):
            monkeypatch.setitem(kernels, dtype, getattr(built.core, f"{name}_f{bits}"))
        rodrigues = [getattr(built.core, f"rodrigues_{way}_f{bits}") for way in ("forward", "backward")]
        monkeypatch.setitem(_rodrigues._KERNELS, dtype, rodrigues)
    _rodrigues.kernels.cache_clear()
    ops.clear_prepared()
    torch.use_deterministic_algorithms(True)  # fills uninitialised tensors
    built.order(0), built.capability(80), built.ignore("")
    yield built
    torch.use_deterministic_algorithms(False)
    _rodrigues.kernels.cache_clear()
    ops.clear_prepared()


def results(function, inputs) -> list[torch.Tensor]:
    """Values, and the gradients of the inputs of a random linear function of them."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    values = function(*inputs)
    values = values if isinstance(values, tuple) else (values,)
    g = torch.Generator().manual_seed(7)
    seeds = [torch.randn(v.shape, generator=g, dtype=torch.float64).to(v) for v in values]
    return [x.detach() for x in (*values, *torch.autograd.grad(values, inputs, seeds))]


def operators(library, model, B: int, dtype: torch.dtype):
    """name -> (function, inputs): every operator, of ops or reference, on the model's constants."""
    model = model.to(dtype=dtype)
    betas, pose = model.inputs(B)
    J, neck = len(model.parents), min(1, len(model.parents) - 1)
    matrices = reference.batch_rodrigues(pose.double().reshape(-1, 3)).to(dtype).view(B, J, 3, 3)
    # Every stride that operators accept: all elements share one row, rows with gaps, a gradient expanded over the
    # vertices.
    shared_betas, spread_pose = betas[:1].expand(B, -1), torch.cat([pose, pose], 1)[:, : pose.shape[1]]
    per_element = model.v_template + 0.01 * torch.randn(B, 1, 3, generator=torch.Generator().manual_seed(3)).to(dtype)

    def lbs(b, p, t):
        return library.flame_lbs(b, p, t, *model.fixed)

    return {
        "lbs": (lbs, [betas, pose, model.v_template]),
        "lbs, a template per element": (lbs, [betas, pose, per_element]),
        "lbs, strides": (
            lambda b, p, t: lbs(b.expand(B, -1), p, t)[0].sum(1, keepdim=True).expand(-1, 2, -1).transpose(1, 2),
            [shared_betas[:1], spread_pose, model.v_template],
        ),
        "lbs, matrices": (lambda b, p: library.flame_lbs(b, p, *model.constants, pose2rot=False), [betas, matrices]),
        "landmarks": (
            lambda b, p: library.flame_landmarks(b, p, *model.constants, *model.embedding, neck_joint=neck),
            [betas, pose],
        ),
        "landmarks, no contour": (
            lambda b, p: library.flame_landmarks(b, p, *model.constants, *model.embedding[:3]),
            [betas, pose],
        ),
        "rodrigues": (library.batch_rodrigues, [pose.reshape(-1, 3)]),
        "points": (
            lambda v: library.vertices2landmarks(
                v, model.faces, model.lmk_faces_idx.expand(B, -1), model.lmk_bary_coords.expand(B, -1, -1)
            ),
            [per_element],
        ),
    }


def error(got: list[torch.Tensor], want: list[torch.Tensor]) -> float:
    """The largest, over the results, of the norm of an error relative to the result's; NaN where there is any."""
    relative = [
        (x.double() - y).norm() / y.norm().clamp_min(1e-30) for x, y in zip(got, want, strict=True) if y.numel()
    ]
    return torch.stack(relative).max().item()  # torch's maximum, not Python's, which drops NaN


# B, V, K, J, L: batches on both sides of every change of tiling (csrc/cuda/layout.h); tiles of vertices that are full,
# partial and many; features and joints from none to more than one block takes; landmarks that share vertices, and more
# of them than fit at once.
SIZES = [(B, 70, 11, 5, 12) for B in (1, 9, 17, 33, 65)] + [(3, 70, 11, 5, 400), (2, 1030, 3, 2, 1), (1, 32, 20, 5, 10)]
SIZES += [
    (8, 64, 0, 1, 0),
    (12, 33, 0, 2, 3),
    (20, 31, 3, 9, 4),
    (40, 97, 0, 1, 12),
    (5, 40, 2, 66, 12),
    (34, 40, 2, 24, 12),
    (66, 1, 40, 3, 12),
]


def sizes_id(sizes: tuple) -> str:
    return "B{}-V{}-K{}-J{}-L{}".format(*sizes)


# Blocks that walk over several tiles of vertices: with one slice of the features, two, none.
WALKS = [(1030, 520, 10, 2, 0, torch.float32), (545, 500, 70, 2, 0, torch.float64), (545, 500, 0, 1, 0, torch.float64)]


def cases(random_model, B: int, V: int, K: int, J: int, L: int, dtype: torch.dtype, names=None):
    """name, function, inputs and the exact results of every operator, or of those named."""
    model = random_model(V=V, K=K, J=J, L=L, C=11 if L else 0, seed=B)
    exact = operators(reference, model, B, torch.float64)
    for name, (function, inputs) in operators(ops, model, B, dtype).items():
        if names is None or name in names:
            yield name, function, inputs, results(exact[name][0], [x.double() for x in inputs])


def check(emulation, random_model, *sizes, names=None, orders=(1, 2)) -> None:
    tolerance = 2e-6 if sizes[-1] == torch.float32 else 1e-13
    for name, function, inputs, want in cases(random_model, *sizes, names):
        got = results(function, inputs)
        assert error(got, want) < tolerance, name
        for order in orders:
            emulation.order(order)
            again = results(function, inputs)
            assert all(torch.equal(x, y) for x, y in zip(got, again, strict=False)), (
                f"{name}: order {order} changes the result"
            )
        emulation.order(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", SIZES, ids=sizes_id)
def test_every_operator_in_any_order_of_threads(emulation, random_model, sizes, dtype):
    check(emulation, random_model, *sizes, dtype)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("axis_angle", [True, False])
@pytest.mark.parametrize(
    "sizes", [(2, 101, 7, 5, 10, 4), (2, 50, 0, 3, 7, 0), (1, 60, 33, 1, 5, 2), (3, 90, 20, 24, 21, 3)]
)
def test_landmarks_with_their_derivatives(emulation, random_model, sizes, axis_angle, dtype, tolerance):
    B, V, K, J, L, C = sizes
    model = random_model(V=V, K=K, J=J, L=L, C=C)
    betas, pose = model.inputs(B)
    if not axis_angle:
        pose = reference.batch_rodrigues(pose.view(-1, 3)).view(B, J, 3, 3)
    want = reference.flame_landmarks_jacobian(
        betas, pose, *model.constants, *model.embedding, min(1, J - 1), axis_angle
    )
    own = model.to(dtype=dtype)
    first = None
    for order in (0, 1, 2):
        emulation.order(order)
        got = ops.flame_landmarks_jacobian(
            betas.to(dtype), pose.to(dtype), *own.constants, *own.embedding, min(1, J - 1), axis_angle
        )
        assert error(got, want) < tolerance
        first = first or got
        assert all(torch.equal(x, y) for x, y in zip(got, first, strict=False)), f"order {order} changes the result"


@pytest.mark.parametrize("capability", [75, 86])  # without and with room on the chip for sums of d(transforms)
@pytest.mark.parametrize("sizes", [sizes for sizes in SIZES if sizes[0] > 32], ids=sizes_id)
def test_large_batches_without_tensor_cores(emulation, random_model, sizes, capability):
    emulation.capability(capability)
    check(emulation, random_model, *sizes, torch.float32, names=["lbs", "lbs, a template per element"])


@pytest.mark.parametrize("F", [186, 436])
@pytest.mark.parametrize("decay", [0, 1])
def test_tensor_cores_round_no_worse_than_float32(emulation, F, decay):
    """Three products of shortened numbers and a sum in shares, on a pessimist's tensor core (tensor_cores.cpp), beside
    the kernels that multiply in float32 and torch's products in float32. One joint, at rest: the vertices and the
    gradient of the betas are the products."""
    g = torch.Generator().manual_seed(F)
    B, V = 64, 128
    betas, seeds = torch.randn(B, F, generator=g), torch.randn(B, V, 3, generator=g)
    directions = (
        0.003 * torch.randn(V, 3, F, generator=g) * (10 / (1 + torch.arange(F))) ** decay
    )  # centimetres in all, as FLAME's
    rest = torch.zeros(B, 3), torch.zeros(V, 3)
    fixed = directions, torch.zeros(0, 3 * V), torch.zeros(1, V), torch.tensor([-1]), torch.ones(V, 1)

    def products(dtype):
        matrix = directions.to(dtype).view(-1, F)
        return (betas.to(dtype) @ matrix.T).view(B, V, 3), seeds.to(dtype).view(B, -1) @ matrix

    def on(capability):
        emulation.capability(capability)
        inputs = betas.clone().requires_grad_()
        vertices = ops.flame_lbs(inputs, *rest, *fixed)[0]
        return vertices.detach(), torch.autograd.grad(vertices, inputs, seeds)[0]

    for what, exact, *others in zip(
        ("vertices", "gradient"), products(torch.float64), on(80), on(86), products(torch.float32), strict=False
    ):
        assert not torch.equal(others[0], others[1])  # two kernels
        difference = [x.double() - exact for x in others]
        tensor_cores, float32, torchs = (torch.stack([d.abs().max(), d.pow(2).mean().sqrt()]) for d in difference)
        print(
            f"F={F}, decay {decay}, {what}: largest error and root of the mean square",
            "on tensor cores, in float32, torch's:",
            *("{:.1e} {:.1e}".format(*e) for e in (tensor_cores, float32, torchs)),
        )
        allowed = torch.tensor([1.2, 1.0])  # one element's error is a matter of luck
        assert (tensor_cores <= allowed * float32).all() and (tensor_cores <= allowed * torchs).all(), what


@pytest.mark.parametrize("sizes", WALKS, ids=sizes_id)
def test_blocks_that_walk_over_tiles(emulation, random_model, sizes):
    emulation.capability(86)  # on tensor cores, whose emulation is slow: in test_a_fault_shows
    check(emulation, random_model, *sizes, names=["lbs"], orders=[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [(1, 70, 11, 5, 12), (34, 40, 2, 24, 12), (66, 1, 40, 3, 12)], ids=sizes_id)
def test_landmarks_read_off_the_mesh(emulation, random_model, monkeypatch, sizes, dtype):
    """flame_head, which takes a way of its own on a CUDA device."""
    monkeypatch.setattr(_checks, "require_device", lambda *_: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)  # a CPU's index
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(_prepared.PreparedLandmarks, "forward", None)
    B, V, K, J, L = sizes
    tolerance = 2e-6 if dtype == torch.float32 else 1e-13
    for C in (11, 0):
        model = random_model(V=V, K=K, J=J, L=L, C=C or 11, seed=B).to(dtype=dtype)

        def head(library, model, wanted, b, p):
            points = library.flame_head(
                b, p, *model.constants, *model.embedding[: 5 if C else 3], neck_joint=min(1, J - 1)
            )
            return tuple(points[i] for i in wanted)

        inputs, exact = model.inputs(B), model.to(dtype=torch.float64)
        for wanted in ((0, 1, 2), (2,)):
            got = results(functools.partial(head, ops, model, wanted), inputs)
            want = results(functools.partial(head, reference, exact, wanted), [x.double() for x in inputs])
            assert error(got, want) < tolerance, (C, wanted)
            with torch.no_grad():
                unkept = head(ops, model, wanted, *inputs)
            assert all(torch.equal(x, y) for x, y in zip(unkept, got, strict=False))
            for order in (1, 2):
                emulation.order(order)
                again = results(functools.partial(head, ops, model, wanted), inputs)
                assert all(torch.equal(x, y) for x, y in zip(got, again, strict=False)), (C, wanted, order)
            emulation.order(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_empty_batches(emulation, random_model, dtype):
    for name, (function, inputs) in operators(ops, random_model(V=40), 0, dtype).items():
        for result in results(function, inputs):
            assert not result.isnan().any(), name


def registers(kernel: str) -> int:
    """Per thread at sm_90, as docs/cuda_resources.md has them."""
    lines = (ROOT / "docs" / "cuda_resources.md").read_text().splitlines()
    column = next(line for line in lines if "| sm_90 |" in line).split("|").index(" sm_90 ")
    return int(next(line for line in lines if line.startswith(f"| `{kernel}` |")).split("|")[column])


def blocks_at_once(plan: Plan, registers: int) -> int:
    """On an H100, by NVIDIA's occupancy rules."""
    warps = plan.threads // 32
    resident_warps = min(64, 4 * (64 * 1024 // 4 // (32 * -(-registers // 8) * 8)))
    return 132 * min(resident_warps // warps, 228 * 1024 // (plan.shared + 1024))


@pytest.mark.parametrize(
    "kernel, backward, small, batches, most, mean",
    [
        ("small_forward_kernel<float, Mesh<float>, 4>", False, 1, range(2, 9), 1.0, 1.0),
        ("small_backward_kernel<float, Mesh<float>, 4>", True, 1, range(2, 17), 1.0, 1.0),
        ("mesh_backward_kernel<float, TensorProduct>", True, 0, range(33, 4097), 1.7, 1.12),
    ],
)
def test_blocks_fill_whole_waves(built, kernel, backward, small, batches, most, mean):
    """An H100 runs so many blocks of a kernel at once, as its registers and shared memory have it. Time: waves of
    blocks, times the tiles of a block. Ideal: all blocks' tiles spread evenly, but at least a wave of one tile. FLAME's
    sizes."""
    excess = []
    for B in batches:
        plan = built.plan(backward, B, 5023, 150, 5)
        assert plan.small == small
        at_once = blocks_at_once(plan, registers(kernel))
        time = -(-plan.blocks // at_once) * plan.tiles_per_block
        excess.append(time / max(1, plan.tiles / at_once))
    print(
        f"{kernel}: {sum(excess) / len(excess):.3f} times the ideal in the mean of B = {batches[0]} to {batches[-1]}, "
        f"{max(excess):.3f} at most"
    )
    assert max(excess) <= most
    assert sum(excess) / len(excess) <= mean


def derivatives_error(random_model, B: int, V: int, K: int, J: int, L: int, C: int):
    """A call: the error of flame_landmarks_jacobian in float32."""
    model = random_model(V=V, K=K, J=J, L=L, C=C)
    inputs, own = model.inputs(B), model.to(dtype=torch.float32)
    want = reference.flame_landmarks_jacobian(*inputs, *model.constants, *model.embedding)

    def run() -> float:
        return error(ops.flame_landmarks_jacobian(*(x.float() for x in inputs), *own.constants, *own.embedding), want)

    return run


def test_a_fault_shows(emulation, random_model):
    """With all barriers and waits results are right; without any one of them they are wrong in some order of threads,
    or the emulation objects."""
    sizes = [(3, 70, 11, 5, 400), (20, 70, 20, 5, 12), (40, 70, 40, 5, 12), (2, 1030, 3, 2, 1), (34, 40, 2, 12, 12)]
    names = ["lbs", "lbs, a template per element", "landmarks", "rodrigues", "points"]
    tried = [(n % 3, case) for size in sizes for n, case in enumerate(cases(random_model, *size, torch.float32, names))]
    tried += [(1, case) for case in cases(random_model, 34, 40, 0, 1, 0, torch.float32, names=["lbs, matrices"])]
    tried += [(1, case) for walk in reversed(WALKS) for case in cases(random_model, *walk, names=["lbs"])]

    runs = [(order, lambda case=case: error(results(case[1], case[2]), case[3])) for order, case in tried]
    runs += [(order, derivatives_error(random_model, 2, 101, 7, 5, 10, 4)) for order in (1, 2)]

    def noticed() -> bool:
        ops.clear_prepared()  # packing is one of the kernels
        for order, run in runs:
            emulation.order(order)
            try:
                if not run() < 2e-6:
                    return True
            except RuntimeError:
                return True
        return False

    assert not noticed()
    places = emulation.places()
    assert len(places) > 20
    unnoticed = []
    for place in places:
        emulation.ignore(place)
        if not noticed():
            unnoticed.append(place)
    assert not unnoticed
