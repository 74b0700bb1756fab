"""What the CUDA kernels are built for: CMake's rule by itself, and a whole configuration on a machine whose GPU can't
be used."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUPPORTED = "75 80 86 89 90 100 120"
NVCC_12_4 = "compute_50\ncompute_60\ncompute_75\ncompute_80\ncompute_86\ncompute_87\ncompute_89\ncompute_90\n"
NVCC_13_0 = NVCC_12_4 + "compute_100\ncompute_103\ncompute_120\ncompute_121\n"

pytestmark = pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")


@pytest.mark.parametrize(
    "wanted, native, known, expected",
    [
        ("", "90-real", NVCC_13_0, SUPPORTED),
        ("", "", NVCC_12_4, "75 80 86 89 90"),
        ("", "", "", SUPPORTED),  # a compiler that can't say
        ("native", "90-real", NVCC_13_0, "90-real"),
        ("native", "80-real;90-real", NVCC_13_0, "80-real 90-real"),
        ("native", "", NVCC_13_0, SUPPORTED),
        ("native", "No CUDA devices found.-real", NVCC_13_0, SUPPORTED),
        ("native", "No CUDA devices found.-real", NVCC_12_4, "75 80 86 89 90"),
        ("native", "120-real", NVCC_12_4, "75 80 86 89 90"),  # a GPU younger than the compiler
        ("90a;80", "No CUDA devices found.-real", NVCC_12_4, "90a 80"),
        ("all-major", "", NVCC_13_0, "all-major"),
    ],
)
def test_the_rule(tmp_path, wanted, native, known, expected):
    script = tmp_path / "rule.cmake"
    script.write_text(
        f'cmake_minimum_required(VERSION 3.24...3.31)\ninclude("{ROOT}/csrc/cuda/architectures.cmake")\n'
        f'ringnet_cuda_architectures(chosen "{wanted}" "{native}" "{known}")\n'
        'message("chosen: ${chosen}")\n'
    )
    run = subprocess.run(["cmake", "-P", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stderr.splitlines()[-1] == "chosen: " + expected.replace(" ", ";")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_a_machine_without_a_usable_gpu(tmp_path, monkeypatch):
    """Twice: what the first configuration leaves in its cache must not be taken for a wish."""
    pybind11 = pytest.importorskip("pybind11")
    monkeypatch.setenv("CUDAARCHS", "native")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    options = {
        "RINGNET_CUDA": "ON", "SKBUILD_PROJECT_VERSION": "0.1", "pybind11_DIR": pybind11.get_cmake_dir(),
        "PYTHON_EXECUTABLE": sys.executable, "Python_EXECUTABLE": sys.executable,
    }  # fmt: skip
    command = ["cmake", "-S", ROOT, "-B", tmp_path, *(f"-D{name}={value}" for name, value in options.items())]
    for _ in range(2):
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        (line,) = [line for line in run.stdout.splitlines() if line.startswith("-- CUDA ")]
        built = line.split("architectures ")[1].split(";")
        assert len(built) > 3 and set(built) <= set(SUPPORTED.split())
