"""ringnet doctor: what it finds where everything works, and where something doesn't."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import ringnet_ext
from ringnet_ext import __config__, ops
from ringnet_ext.commands import doctor

ROOT = Path(ringnet_ext.__file__).parents[1]


def found(capsys, code):
    assert doctor.main(["--json"]) == code
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def version(monkeypatch):
    """version(package, text) makes a package be installed in that version; None: not at all."""
    real = doctor.metadata.version
    others = {}

    def seen(package):
        text = others.get(package, "real")
        if text is None:
            raise doctor.metadata.PackageNotFoundError(package)
        return real(package) if text == "real" else text

    monkeypatch.setattr(doctor.metadata, "version", seen)
    return others.__setitem__


def test_where_everything_works(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("RINGNET_CACHE", str(tmp_path))
    monkeypatch.setenv("OMP_PLACES_OF_NOBODY", "")  # as people hide GPUs by an empty CUDA_VISIBLE_DEVICES
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "images.npy").write_bytes(bytes(2_000_000))
    facts = found(capsys, 0)
    assert facts["problems"] == [] and facts["core"] == __config__.facts()
    assert facts["warnings"] == __config__.problems()
    assert facts["packages"]["torch"] == torch.__version__ and None not in facts["packages"].values()
    assert {"tensorboard", "detector", "completion"} <= facts["extras"].keys() and "test" not in facts["extras"]
    assert facts["cache"] == {"folder": str(tmp_path), "bytes": 2_000_000}
    assert facts["environment"]["RINGNET_CACHE"] == str(tmp_path)
    assert 0 < facts["operators"]["cpu"] < 1e-6
    assert doctor.main([]) == 0
    text = capsys.readouterr().out
    assert text.endswith("\neverything works\n")
    lines = dict(line.split(maxsplit=1) for line in text.splitlines())
    assert lines["OMP_PLACES_OF_NOBODY"] == "''"
    assert lines["SIMD"] == facts["core"]["SIMD"] and lines["cache"] == f"{tmp_path}, 2.0 MB"
    assert lines["torch"] == torch.__version__ and lines["platform"] == facts["machine"]["platform"]


@pytest.mark.parametrize("others", [[], ["opencv-python"]])
def test_a_package_that_is_missing_is_a_problem_with_its_cure(others, version, capsys):
    for name in ("trimesh", "opencv-python-headless", *doctor._OTHER_NAMES["opencv-python-headless"]):
        version(name, None)
    for name in others:  # brings the same
        version(name, "5.0.0")
    problems = found(capsys, 1)["problems"]
    assert problems[-1] == "trimesh is missing: pip install trimesh" and len(problems) == 2 - len(others)
    if not others:
        assert problems[0] == "opencv-python-headless is missing: pip install 'opencv-python-headless>=5'"
    assert doctor.main([]) == 1
    assert "\nproblem: trimesh is missing: pip install trimesh\n" in capsys.readouterr().out


def test_a_package_of_the_wrong_version_is_a_problem(version, capsys):
    version("torch", "2.5.1+cpu")
    assert found(capsys, 1)["problems"] == ["torch: expected >=2.6, got 2.5.1+cpu: pip install 'torch>=2.6'"]


def test_an_extra_that_is_missing_is_none_and_says_what_installs_it(version, capsys):
    version("mediapipe", None)
    version("tensorboard", "2.20.0")
    extras = found(capsys, 0)["extras"]
    assert extras["detector"] == {"packages": {"mediapipe": None}, "install": "pip install 'mediapipe>=1.2'"}
    assert extras["tensorboard"] == {"packages": {"tensorboard": "2.20.0"}, "install": None}
    assert doctor.main([]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (
        lines["[detector]"] == "missing: pip install 'mediapipe>=1.2'"
        and lines["[tensorboard]"] == "tensorboard 2.20.0"
    )


def test_a_package_that_was_never_installed_is_a_problem(monkeypatch, capsys):
    def missing(name):
        raise doctor.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "requires", missing)
    (problem,) = found(capsys, 1)["problems"]
    assert problem.startswith("what ringnet_ext needs is not known") and "pip install ." in problem


def test_a_package_that_is_broken_is_a_problem(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cv2", None)
    (problem,) = found(capsys, 1)["problems"]
    assert problem.startswith("cv2 can't be imported: ")


def test_on_a_bare_python_it_says_what_is_missing(tmp_path):
    """With the package's files and nothing else: no core, none of the packages."""
    (tmp_path / "ringnet_ext").symlink_to(ROOT / "ringnet_ext")
    started = [sys.executable, "-S", "-m", "ringnet_ext", "doctor"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(started, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 1 and not run.stderr, run.stderr
    problems = [line for line in run.stdout.splitlines() if line.startswith("problem: ")]
    assert "pip install ." in problems[0] and all(name in problem for name, problem in zip(
        ("torch", "numpy", "cv2"), problems[1:], strict=True))  # fmt: skip


def test_operators_that_are_wrong_or_fail_are_a_problem(monkeypatch, capsys):
    right = ops.flame_lbs

    def wrong(*arguments):
        vertices, joints = right(*arguments)
        return vertices + 1e-3, joints

    monkeypatch.setattr(ops, "flame_lbs", wrong)
    (problem,) = found(capsys, 1)["problems"]
    assert problem.startswith("the operators on cpu are 1.0e-03 m off")

    def failing(*arguments):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(ops, "flame_lbs", failing)
    facts = found(capsys, 1)
    assert facts["problems"] == ["the operators don't work on cpu: no kernel image is available"]
    assert facts["operators"] == {}


def test_what_the_core_says_is_wrong_is_a_problem(monkeypatch, capsys):
    def refused():
        raise RuntimeError("RINGNET_SIMD=mmx: expected avx512, avx2 or baseline")

    monkeypatch.setattr(__config__, "facts", refused)
    facts = found(capsys, 1)
    assert facts["problems"] == ["RINGNET_SIMD=mmx: expected avx512, avx2 or baseline"] and facts["core"] is None


def test_a_gpu_that_the_core_was_not_built_for_is_a_warning(monkeypatch, capsys):
    import _ringnet_core

    gpu = SimpleNamespace(name="Test GPU", major=9, minor=0, total_memory=80_000_000_000)
    monkeypatch.setattr(_ringnet_core, "cuda_architectures", "")
    for name, value in {
        "is_available": True, "device_count": 1, "get_device_properties": gpu, "get_device_capability": (9, 0),
        "get_device_name": "Test GPU",
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *index, value=value: value)
    facts = found(capsys, 0)
    assert facts["cuda"]["devices"] == [{"name": "Test GPU", "capability": "9.0", "bytes": 80_000_000_000}]
    assert facts["cuda"]["built"] is facts["cuda"]["usable"] is False and set(facts["operators"]) == {"cpu"}
    assert len(facts["warnings"]) == 1 and "built without CUDA" in facts["warnings"][0]
    assert doctor.main([]) == 0
    text = capsys.readouterr().out
    assert "Test GPU, 9.0, 80.0 GB" in text and "\nwarning: PyTorch finds a GPU" in text


@pytest.mark.parametrize(
    "core, error", [("raise ImportError('no such library')", "no such library"), ("__version__ = '0.0.1'", "0.0.1")]
)
def test_without_a_core_that_fits_it_still_says_what_is_wrong(core, error, tmp_path):
    (tmp_path / "_ringnet_core.py").write_text(core)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    started = [sys.executable, "-m", "ringnet_ext", "doctor"]
    run = subprocess.run(started, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 1 and not run.stderr, run.stderr
    (problem,) = (line for line in run.stdout.splitlines() if line.startswith("problem: "))
    assert error in problem and "pip install ." in problem
    assert torch.__version__ in run.stdout and run.stdout.endswith("something doesn't work\n")
