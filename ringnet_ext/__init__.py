"""RingNet (Sanyal et al., CVPR 2019) on fused FLAME operators: 3D heads from single images, learned from 2D alone."""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from . import __config__
from ._version import __version__


def _is_command() -> bool:
    """Whether ``ringnet`` or ``python -m ringnet_ext...`` started this process."""
    program = next(iter(getattr(sys, "argv", ())), "")
    if program == "-m":  # Python is still looking for the module to run
        return any(word.removeprefix("-m").split(".")[0] == "ringnet_ext" for word in sys.orig_argv)
    return Path(program).name.removesuffix(".exe") == "ringnet"


# A command imports what it needs once it is known which: its help comes at once, and doctor works without the core.
if TYPE_CHECKING or not _is_command():
    __config__.check_core()

    from .accelerate import accelerate
    from .flame import FLAME, FlameModel, FlameOutput, LandmarkEmbedding, builtin_head
    from .ops import batch_rodrigues, flame_landmarks, flame_lbs, vertices2landmarks

if TYPE_CHECKING:
    from .fitting import Fit, fit, fit_mesh
    from .flame.parameters import HeadParams
    from .inference.reconstruction import Reconstruction
    from .inference.ringnet import RingNet

__all__ = [
    "FLAME",
    "Fit",
    "FlameModel",
    "FlameOutput",
    "HeadParams",
    "LandmarkEmbedding",
    "Reconstruction",
    "RingNet",
    "__version__",
    "accelerate",
    "batch_rodrigues",
    "builtin_head",
    "fit",
    "fit_mesh",
    "flame_landmarks",
    "flame_lbs",
    "vertices2landmarks",
]

_LATER = {
    "FLAME": "flame",
    "FlameModel": "flame",
    "FlameOutput": "flame",
    "LandmarkEmbedding": "flame",
    "accelerate": "accelerate",
    "batch_rodrigues": "ops",
    "builtin_head": "flame",
    "flame_landmarks": "ops",
    "flame_lbs": "ops",
    "vertices2landmarks": "ops",
    "Fit": "fitting",
    "fit": "fitting",
    "fit_mesh": "fitting",
    "HeadParams": "flame.parameters",
    "Reconstruction": "inference.reconstruction",
    "RingNet": "inference.ringnet",
}


def __getattr__(name: str):
    """The network and fitting when they are asked for: the operators and the decoder do without OpenCV and
    safetensors. In a command, the operators and the decoder too."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_LATER[name]}", __name__), name)
    globals()[name] = value  # in place of the module, where it has the same name
    return value
