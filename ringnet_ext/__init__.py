"""RingNet (Sanyal et al., CVPR 2019) on fused FLAME operators: 3D heads from single images, learned from 2D alone."""

from importlib import import_module
from typing import TYPE_CHECKING

from . import __config__
from ._version import __version__

__config__.check_core()

from .accelerate import accelerate  # noqa: E402
from .flame import FLAME, FlameModel, FlameOutput, LandmarkEmbedding, builtin_head  # noqa: E402
from .ops import batch_rodrigues, flame_landmarks, flame_lbs, vertices2landmarks  # noqa: E402

if TYPE_CHECKING:
    from .fitting import Fit, fit, fit_mesh
    from .flame.parameters import HeadParams
    from .inference.reconstruction import Reconstruction, RingNet

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
    "Fit": "fitting",
    "fit": "fitting",
    "fit_mesh": "fitting",
    "HeadParams": "flame.parameters",
    "Reconstruction": "inference.reconstruction",
    "RingNet": "inference.reconstruction",
}


def __getattr__(name: str):
    """The network and fitting when they are asked for: the operators and the decoder do without OpenCV and
    safetensors."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LATER[name]}", __name__), name)
