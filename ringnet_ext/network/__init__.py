"""The network: tensors in, tensors out."""

from .ringnet import RingNet

__all__ = ["RingNet"]
