"""What CMake makes of a machine: with OpenMP, without it, and where there is no build. Configured, not compiled."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")


def configure(source: Path, build: Path, *definitions: str) -> subprocess.CompletedProcess:
    command = [
        "cmake",
        "-S",
        source,
        "-B",
        build,
        "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON",
        *(f"-D{d}" for d in definitions),
    ]
    return subprocess.run(command, capture_output=True, text=True)


def uses_openmp(build: Path) -> bool:
    commands = json.loads((build / "compile_commands.json").read_text())
    (threads,) = (command["command"] for command in commands if command["file"].endswith("csrc/cpu/threads.cpp"))
    return "openmp" in threads


def test_openmp_is_a_choice(tmp_path):
    """A compiler without OpenMP is one whose package CMake is told not to find."""
    without = "CMAKE_DISABLE_FIND_PACKAGE_OpenMP=ON"
    core = ROOT / "tests" / "core"

    run = configure(core, tmp_path / "off", "RINGNET_OPENMP=OFF")
    assert run.returncode == 0 and not uses_openmp(tmp_path / "off"), run.stderr

    run = configure(core, tmp_path / "auto", without)
    assert run.returncode == 0 and not uses_openmp(tmp_path / "auto"), run.stderr
    assert "finds no OpenMP, the CPU kernels run on one thread" in run.stdout

    run = configure(core, tmp_path / "on", "RINGNET_OPENMP=ON", without)
    assert run.returncode != 0 and "OpenMP" in run.stderr


def test_windows_is_refused(tmp_path):
    windows = [
        "CMAKE_SYSTEM_NAME=Windows",
        "CMAKE_TRY_COMPILE_TARGET_TYPE=STATIC_LIBRARY",
    ]  # by this machine's compiler
    run = configure(ROOT, tmp_path, "SKBUILD_PROJECT_VERSION=0.1", *windows)
    assert run.returncode != 0 and "doesn't build on Windows yet: use it in WSL2" in " ".join(run.stderr.split())
