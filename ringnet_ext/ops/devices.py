"""Which device computes: the one that was named, checked, or the one there is."""

from __future__ import annotations

import torch

from ..files.errors import DeviceError


def computing_device(name: str | None = None) -> torch.device:
    """The device of a name: ``cpu``, ``cuda`` or ``cuda:N``; None for CUDA where it can be computed on, else the
    CPU.

    Raises:
        DeviceError: there is no such device, or nothing that computes on it.
    """
    import _ringnet_core

    compiled = bool(_ringnet_core.cuda_architectures)
    if name is None:
        return torch.device("cuda" if compiled and torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise DeviceError(f"device: expected cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if torch.version.cuda is None:
            raise DeviceError(f"device: {name}: this PyTorch, {torch.__version__}, is built without CUDA")
        if (device.index or 0) >= count:
            raise DeviceError(f"device: {name}: there are {count} CUDA devices that PyTorch can use")
        if not compiled:
            raise DeviceError(
                f"device: {name}: ringnet_ext is built without CUDA; install it again with "
                "pip install . -C cmake.define.RINGNET_CUDA=ON"
            )
    return device
