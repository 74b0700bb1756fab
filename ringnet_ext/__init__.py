"""RingNet (Sanyal et al., CVPR 2019) on fused FLAME operators: 3D heads from single images, learned from 2D alone."""

__version__ = "0.1.0"

from . import __config__

__config__.check_core()

from .accelerate import accelerate  # noqa: E402
from .flame import FLAME, FlameModel, FlameOutput, LandmarkEmbedding, builtin_head  # noqa: E402
from .fitting import Fit, fit, fit_mesh  # noqa: E402
from .model import HeadParams, Reconstruction, RingNet  # noqa: E402
from .ops import batch_rodrigues, flame_landmarks, flame_lbs, vertices2landmarks  # noqa: E402

__all__ = [
    "FLAME", "Fit", "FlameModel", "FlameOutput", "HeadParams", "LandmarkEmbedding", "Reconstruction", "RingNet",
    "accelerate", "batch_rodrigues", "builtin_head", "fit", "fit_mesh", "flame_landmarks", "flame_lbs", "vertices2landmarks",
]  # fmt: skip
