"""The FLAME decoder: head models, landmark embeddings, and the layer that poses them."""

from .landmarks import LandmarkEmbedding
from .model import FlameModel

__all__ = ["FLAME", "FlameModel", "FlameOutput", "LandmarkEmbedding", "builtin_head"]


def __getattr__(name):  # model files can be read without torch, and the built-in head is made on first use
    if name in ("FLAME", "FlameOutput"):
        from . import layer

        return getattr(layer, name)
    if name == "builtin_head":
        from .builtin import builtin_head

        return builtin_head
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
