"""What is built and shipped: the compiled module, the wheel, the source archive, and the check that they belong
together."""

import importlib.metadata
import os
import py_compile
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import _ringnet_core
import pytest
import torch

import ringnet_ext
from ringnet_ext import __config__

ROOT = Path(__file__).resolve().parent.parent
CORE = Path(_ringnet_core.__file__)


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF")
def test_core_links_neither_torch_nor_the_cuda_runtime():
    lines = subprocess.run(["ldd", CORE], capture_output=True, text=True, check=True).stdout.splitlines()
    libraries = {line.split()[0] for line in lines}  # without the addresses, which may spell anything
    assert any(library.startswith("libc.so") for library in libraries)
    for name in ("torch", "c10", "cudart", "libpython"):
        assert not [library for library in libraries if name in library]


def test_one_openmp_for_torch_and_the_core():
    program = "import ringnet_ext; print(*ringnet_ext.__config__.openmp_libraries(), sep='\\n')"
    out = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert len(out.split()) == 1, out


@pytest.mark.skipif(sys.platform != "linux", reason="copies an ELF library")
def test_a_second_openmp_is_a_problem(tmp_path):
    (library,) = __config__.openmp_libraries()
    second = tmp_path / "libgomp-other.so.1"
    second.write_bytes(Path(library).read_bytes())
    program = (
        "import ctypes, sys; from ringnet_ext import __config__; assert __config__.problems() == [];"
        "ctypes.CDLL(sys.argv[1]); print(*__config__.problems(), sep='\\n'); print(__config__.facts()['OpenMP'])"
    )
    run = subprocess.run([sys.executable, "-c", program, second], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    problem, fact = run.stdout.splitlines()
    assert problem.startswith("2 OpenMP libraries are loaded") and "pip install ." in problem
    for line in (problem, fact):
        assert library in line and str(second) in line


@pytest.mark.parametrize(
    "architectures, capability, problem",
    [
        ("", (9, 0), "without CUDA"),
        ("75 80 86 89 90", (9, 0), None),
        ("75 80 86 89 90", (12, 0), None),  # by way of the PTX
        ("75", (7, 0), "architectures 75:"),
        ("80-real", (8, 6), None),
        ("86-real", (8, 0), "architectures 86-real:"),
        ("80-real 90-real", (10, 0), "architectures 80-real 90-real:"),
        ("90a", (9, 0), None),
        ("90a", (10, 0), "architectures 90a:"),
        ("100 120", (10, 3), None),
        ("120", (10, 0), "architectures 120:"),
        ("all-major", (12, 0), None),
    ],
)
def test_a_gpu_without_kernels_is_a_problem(monkeypatch, architectures, capability, problem):
    monkeypatch.setattr(_ringnet_core, "cuda_architectures", architectures)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Test GPU")
    found = __config__.problems()
    if problem is None:
        assert found == []
    else:
        assert len(found) == 1 and problem in found[0] and "pip install . -C cmake.define.RINGNET_CUDA=ON" in found[0]


def test_installed_files():
    """The wheel as pip recorded it: the package, the core and its types at top level, nothing else."""
    files = [str(f) for f in importlib.metadata.files("ringnet_ext")]
    tops = {f.split("/")[0] for f in files if not f.startswith("..")}
    assert all(t in ("ringnet_ext", CORE.name, "_ringnet_core.pyi") or t.endswith(".dist-info") for t in tops), tops
    for name in ("_ringnet_core.pyi", "ringnet_ext/py.typed", "ringnet_ext/ops/reference.py"):
        assert name in files
    assert any(f.endswith("licenses/LICENSE") for f in files)
    assert not [f for f in files if f.endswith((".cpp", ".cu", ".h"))]


def test_installed_version_is_the_source_s():
    assert importlib.metadata.version("ringnet_ext") == ringnet_ext.__version__ == _ringnet_core.__version__


def test_source_archive(tmp_path):
    """Everything that `pip install` of it needs, and nothing that was only lying around."""
    pytest.importorskip("scikit_build_core")
    py_compile.compile(str(ROOT / "ringnet_ext" / "__init__.py"))  # as running the package from the checkout does
    build = "import sys; from scikit_build_core.build import build_sdist; print(build_sdist(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, tmp_path], cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.iterdir()
    with tarfile.open(archive) as tar:
        names = {n.split("/", 1)[1] for n in tar.getnames() if "/" in n}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode == 0:
        wanted = {f for f in tracked.stdout.split() if f.startswith(("csrc/", "python/", "ringnet_ext/"))}
        assert wanted <= names, wanted - names
    for name in ("CMakeLists.txt", "pyproject.toml", "LICENSE", "csrc/ops.h", "python/module.cpp"):
        assert name in names
    assert not [n for n in names if n.startswith((".", "build/", "runs/", "docs/")) or n.endswith((".so", ".pyc"))]


@pytest.mark.parametrize("where", [ROOT, Path("/")], ids=["checkout", "elsewhere"])
def test_imports_from_the_checkout_and_from_elsewhere(where):
    program = (
        "import os, ringnet_ext, _ringnet_core, torch; from ringnet_ext import ops;"
        "assert torch.equal(ops.batch_rodrigues(torch.zeros(1, 3))[0], torch.eye(3));"
        "print(os.path.dirname(ringnet_ext.__file__)); print(_ringnet_core.__file__)"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=where, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    package, core = run.stdout.split()
    assert (Path(package).parent == ROOT) == (where == ROOT)
    assert Path(core) == CORE


def test_operators_and_decoder_do_without_the_networks_packages():
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['cv2', 'safetensors', 'trimesh', 'tqdm', 'matplotlib', 'yaml']))\n"
        "import ringnet_ext; assert ringnet_ext.FLAME()().landmarks.shape == (1, 68, 3);"
        "del sys.modules['cv2'], sys.modules['safetensors']; print(ringnet_ext.RingNet.__name__)"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["RingNet"]


@pytest.mark.parametrize(
    "core, error",
    [
        ("raise ImportError('no such library')", "no such library"),
        ("__version__ = '0.0.1'", "0.0.1"),
        (
            "raise ImportError('libgomp.so.1: cannot open shared object file: No such file or directory')",
            "an OpenMP library, and neither PyTorch nor this system has it (libgomp.so.1: cannot open",
        ),
    ],
)
def test_a_missing_or_foreign_core_says_what_to_do(tmp_path, core, error):
    (tmp_path / "_ringnet_core.py").write_text(core)
    run = subprocess.run(
        [sys.executable, "-c", "import sys; sys.path.insert(0, sys.argv[1]); import ringnet_ext", tmp_path], cwd=ROOT,
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode != 0
    assert "ImportError" in run.stderr and error in run.stderr and "pip install ." in run.stderr


def test_facts_of_the_core(capsys):
    facts = __config__.facts()
    assert facts["ringnet_ext"] == ringnet_ext.__version__ and facts["core"] == str(CORE)
    assert facts["SIMD"] == _ringnet_core.simd_level() and facts["torch"] == torch.__version__
    assert re.fullmatch(r"(GNU|Clang|AppleClang) [\d.]+(, nvcc [\d.]+)?", facts["compiler"])
    assert ("nvcc" in facts["compiler"]) == facts["CUDA"].startswith("yes, architectures ")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert __config__.facts()["threads"] == (
            "3" if _ringnet_core.openmp else "1, for the core was built without OpenMP"
        )
    finally:
        torch.set_num_threads(before)
    __config__.show()
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines == facts


def test_unknown_simd_level_is_refused():
    run = subprocess.run(
        [sys.executable, "-c", "import _ringnet_core; _ringnet_core.simd_level()"],
        env={**os.environ, "RINGNET_SIMD": "mmx"}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode != 0 and "RINGNET_SIMD=mmx: expected avx512, avx2 or baseline" in run.stderr
