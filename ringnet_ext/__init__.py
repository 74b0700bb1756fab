"""RingNet on fused FLAME operators."""

__version__ = "0.1.0"

from . import __config__

__config__.check_core()
