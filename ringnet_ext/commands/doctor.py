"""``ringnet doctor``: what is installed here and whether it works, for people, for issue reports and for programs.

It works where the rest doesn't: nothing is imported before it is examined, and what can't be imported is a finding.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __config__
from .._version import __version__
from ..files.cache import cache_folder
from ..files.cores import available_cores
from ..files.errors import explained
from .options import FAILED, Parser, called, command

if TYPE_CHECKING:
    from packaging.requirements import Requirement

#: Packages that bring the same under other names.
_OTHER_NAMES = {"opencv-python-headless": ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")}
#: Extras for those who work on the package.
_OF_DEVELOPERS = {"test", "bench", "docs", "lint"}
_PREFIXES = ("RINGNET_", "OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "CUDA_VISIBLE_DEVICES", "PYTORCH_", "TORCH")
#: Metres. How far the operators may be from float64; in float32 they are within a millionth.
_TOLERANCE = 1e-5


def make_parser() -> Parser:
    parser = Parser(
        prog=called("doctor"),
        description="Say what is installed here, and whether it works: the compiled core, CUDA, threads, packages, the "
        "cache. The exit code is 1 where something doesn't work. An issue report needs this output.",
    )
    parser.add_argument("--json", action="store_true", help="for programs: one JSON object")
    return parser


@command
def main(arguments: list[str]) -> int:
    options = make_parser().parse_args(arguments)
    found = examined()
    print(json.dumps(found, indent=2) if options.json else "\n".join(lines(found)))
    return FAILED if found["problems"] else 0


def examined() -> dict[str, Any]:
    """What is installed here and whether it works, as JSON can hold it.

    Under ``problems`` is a line for everything that doesn't work, under ``warnings`` one for what could work better;
    each says what to do.
    """
    problems: list[str] = []
    warnings: list[str] = []
    found: dict[str, Any] = {
        "ringnet_ext": {"version": __version__, "folder": str(Path(__file__).parents[1])},
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "machine": {"platform": platform.platform(), "cores": available_cores()},
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_PREFIXES)},
        "cache": _cache(),
    }
    try:
        found["packages"] = _packages(problems)
        found["extras"] = _extras()
    except ImportError as error:  # of metadata, which is an ImportError too
        found["packages"], found["extras"] = {}, {}
        problems.append(f"what ringnet_ext needs is not known ({explained(error)}): pip install . in the source tree")
    for name in ("torch", "numpy", "cv2"):  # so that the libraries that they load are among the facts
        try:
            import_module(name)
        except Exception as error:  # whatever a broken package raises
            problems.append(f"{name} can't be imported: {explained(error)}")
    found["core"] = _core(problems, warnings) if "torch" in sys.modules else None  # the core needs it
    found["cuda"] = _cuda(found["core"] is not None, problems)
    found["operators"] = {} if found["core"] is None else _operators(found["cuda"], problems)
    return found | {"warnings": warnings, "problems": problems}


def _cache() -> dict[str, Any]:
    """Where it is, and its size; None where that can't be found out."""
    folder = cache_folder()
    try:
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    except OSError:
        size = None
    return {"folder": str(folder), "bytes": size}


def _packages(problems: list[str]) -> dict[str, str | None]:
    """The versions of the packages that are needed; None for one that is missing."""
    found = {}
    for requirement in _requirements():
        found[requirement.name] = version = _version(requirement.name)
        if version is None:
            problems.append(f"{requirement.name} is missing: pip install {_quoted(requirement)}")
        elif not requirement.specifier.contains(version, prereleases=True):
            expected = f"expected {requirement.specifier}, got {version}"
            problems.append(f"{requirement.name}: {expected}: pip install {_quoted(requirement)}")
    return found


def _extras() -> dict[str, dict[str, Any]]:
    """What can be installed beside the package: the versions that are there, and what installs those that aren't."""
    found = {}
    for extra in metadata.metadata("ringnet_ext").get_all("Provides-Extra") or ():
        if extra in _OF_DEVELOPERS:
            continue
        wanted = _requirements(extra)
        missing = [_quoted(requirement) for requirement in wanted if _version(requirement.name) is None]
        found[extra] = {
            "packages": {requirement.name: _version(requirement.name) for requirement in wanted},
            "install": f"pip install {' '.join(missing)}" if missing else None,
        }
    return found


def _requirements(extra: str = "") -> list[Requirement]:
    """What the installed package requires here, or what an extra of it does.

    Raises:
        ImportError: that is not known.
    """
    from packaging.requirements import Requirement

    found = []
    for line in metadata.requires("ringnet_ext") or ():
        requirement = Requirement(line)
        of_extra = requirement.marker is not None and "extra ==" in str(requirement.marker)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
        if applies and of_extra == bool(extra):
            found.append(requirement)
    return found


def _version(package: str) -> str | None:
    for name in (package, *_OTHER_NAMES.get(package, ())):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _quoted(requirement: Requirement) -> str:
    """As a shell takes it."""
    return f"'{requirement.name}{requirement.specifier}'" if requirement.specifier else requirement.name


def _core(problems: list[str], warnings: list[str]) -> dict[str, str] | None:
    """What was built, as :func:`ringnet_ext.__config__.facts` has it; None where it can't be asked."""
    try:
        __config__.check_core()
        facts = __config__.facts()
        warnings += __config__.problems()
    except Exception as error:  # whatever the core, or a broken PyTorch, raises
        problems.append(explained(error))
        return None
    return facts


def _cuda(has_core: bool, problems: list[str]) -> dict[str, Any]:
    """Whether the core was built for it, the CUDA version of PyTorch, its devices, and whether we compute on them."""
    found: dict[str, Any] = {"built": False, "torch": None, "devices": [], "usable": False}
    try:
        import torch

        found["torch"] = torch.version.cuda
        for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            device = torch.cuda.get_device_properties(index)
            found["devices"].append(
                {"name": device.name, "capability": f"{device.major}.{device.minor}", "bytes": device.total_memory}
            )
    except ImportError:
        pass  # is among the problems already
    except RuntimeError as error:
        problems.append(f"CUDA: {explained(error)}")
    if has_core:
        import _ringnet_core

        found["built"] = bool(_ringnet_core.cuda_architectures)
    found["usable"] = found["built"] and bool(found["devices"])
    return found


def _operators(cuda: dict[str, Any], problems: list[str]) -> dict[str, float]:
    """By device, how far a head's vertices are from those that the formula in PyTorch's float64 gives, metres."""
    devices = ["cpu", *(f"cuda:{index}" for index in range(len(cuda["devices"]) if cuda["usable"] else 0))]
    found: dict[str, float] = {}
    for device in devices:
        try:
            found[device] = distance = _distance(device)
            if not distance < _TOLERANCE:
                problems.append(f"the operators on {device} are {distance:.1e} m off; please report this as an issue")
        except Exception as error:  # whatever PyTorch or the core raises
            problems.append(f"the operators don't work on {device}: {explained(error)}")
    return found


def _distance(device: str) -> float:
    import torch

    from ..flame import FLAME
    from ..ops import flame_lbs, reference

    layer = FLAME(dtype=torch.float64)
    body = "v_template", "shapedirs", "posedirs", "J_regressor", "parents", "lbs_weights"
    model = [getattr(layer, name) for name in body]
    betas = torch.linspace(-1, 1, layer.shapedirs.shape[2], dtype=torch.float64)[None]
    pose = torch.linspace(-0.5, 0.5, 3 * layer.num_joints, dtype=torch.float64)[None]
    truth, _ = reference.flame_lbs(betas, pose, *model)
    ours, _ = flame_lbs(*(
        value.to(device, torch.float32 if value.is_floating_point() else value.dtype) for value in (betas, pose, *model)
    ))  # fmt: skip
    return float((ours.double().cpu() - truth).abs().max())


def lines(found: dict[str, Any]) -> list[str]:
    """What :func:`examined` found, for people."""
    ours, python, machine, cuda, cache = (found[name] for name in ("ringnet_ext", "python", "machine", "cuda", "cache"))
    core = found["core"] or {"core": "can't be used"}
    rows = [("ringnet_ext", f"{ours['version']}, {ours['folder']}")]
    rows += [(name, value) for name, value in core.items() if name not in ("ringnet_ext", "torch")]
    if found["core"]:
        rows.append(("PyTorch", f"for CUDA {cuda['torch']}" if cuda["torch"] else "without CUDA"))
    rows += [("device", f"{each['name']}, {each['capability']}, {_size(each['bytes'])}") for each in cuda["devices"]]
    rows += [("operators", f"{device}: within {value:.0e} m") for device, value in found["operators"].items()]
    rows.append(("cores", str(machine["cores"])))
    rows.append(("python", f"{python['version']}, {python['executable']}"))
    rows.append(("platform", machine["platform"]))
    rows += [(name, version or "missing") for name, version in found["packages"].items()]
    for extra, facts in found["extras"].items():
        present = ", ".join(f"{name} {version}" for name, version in facts["packages"].items() if version)
        missing = facts["install"] and f"missing: {facts['install']}"
        rows.append((f"[{extra}]", "; ".join(filter(None, (present, missing)))))
    rows.append(("cache", f"{cache['folder']}, {_size(cache['bytes'])}"))
    rows += [(name, value or "''") for name, value in found["environment"].items()]
    width = max(len(name) for name, _ in rows) + 2
    return [
        *(f"{name:<{width}}{value}" for name, value in rows),
        *(f"warning: {text}" for text in found["warnings"]),
        *(f"problem: {text}" for text in found["problems"]),
        "something doesn't work" if found["problems"] else "everything works",
    ]


def _size(count: int | None) -> str:
    if count is None:
        return "of unknown size"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
