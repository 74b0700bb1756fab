"""Reuse of the memory of big results.

From 32 MiB on, malloc asks the system for the memory of every tensor and gives it back at once. The system fills every
page with zeros before it is written: a fifth of a forward pass, and more where there are no huge pages to spare. So two
storages are kept when their tensors have died, those of a call's results and its state, and the next big tensors of
their size get them. Meanwhile the system may take their pages if it runs short. The tensors are PyTorch's own in every
respect.
"""

import math
import sys
import weakref
from collections import deque

import _ringnet_core as core
import torch
from torch import Tensor

_BIG = 32 << 20  # glibc's largest mmap threshold
_spare: deque[torch.UntypedStorage] = deque(maxlen=2)  # without other owners; the latest first
_shared: deque[torch.UntypedStorage] = deque(maxlen=2)  # of dead tensors, but a view or an array still shares them


def _owners(storage: torch.UntypedStorage) -> tuple[int, int]:
    """How many references there are to it, in C++ and in Python, those of this call included."""
    return torch._C._storage_Use_Count(storage._cdata), sys.getrefcount(storage)


def _gone(storage: torch.UntypedStorage) -> None:
    """Called when the tensor that a storage was made for dies."""
    if _owners(storage) == _ALONE_WHEN_GONE:
        _take_over(storage)
    else:
        _shared.append(storage)


def _take_over(storage: torch.UntypedStorage) -> None:
    if not storage.is_shared():  # with other processes
        core.discard(storage.data_ptr(), storage.nbytes())
        _spare.appendleft(storage)


def _pop(storages: deque) -> tuple[torch.UntypedStorage, tuple[int, int]] | None:
    """The last of the storages and its owners; None where there is none, or another thread was quicker."""
    try:
        storage = storages.pop()
    except IndexError:
        return None
    return storage, _owners(storage)


def _watched(tensor: Tensor, gone=_gone) -> Tensor:
    weakref.finalize(tensor, gone, tensor.untyped_storage()).atexit = False
    return tensor


def _measure() -> tuple[tuple[int, int], tuple[int, int]] | None:
    """The owners of a storage that nothing shares, as its tensor dies and afterwards; None where PyTorch doesn't
    tell."""
    seen: list[tuple[int, int]] = []
    left: deque[torch.UntypedStorage] = deque()

    def gone(storage):
        seen.append(_owners(storage))
        left.append(storage)

    try:
        _watched(torch.empty(1, device="cpu"), gone)
        popped = _pop(left)
        return None if popped is None else (seen[0], popped[1])
    except (AttributeError, IndexError, TypeError):
        return None


_measured = _measure()
_ALONE_WHEN_GONE, _ALONE = _measured or (None, None)


def empty(like: Tensor, *shape: int, inner: bool = False) -> Tensor:
    """An uninitialised tensor of like's dtype and device.

    inner: no user will see it. So its storage may be larger than needed, and may be one that can't be resized, because
    NumPy has shared it.
    """
    size = math.prod(shape) * like.element_size()
    if size < _BIG or not like.is_cpu or _measured is None:
        return like.new_empty(*shape)
    for _ in range(len(_shared)):
        if (popped := _pop(_shared)) is not None:
            storage, owners = popped
            del popped
            _take_over(storage) if owners == _ALONE else _shared.appendleft(storage)
    for _ in range(len(_spare)):
        if (popped := _pop(_spare)) is not None:
            storage = popped[0]
            bytes, stride = storage.nbytes(), [math.prod(shape[i:]) for i in range(1, len(shape) + 1)]
            if bytes // 2 <= size <= bytes if inner else size == bytes and storage.resizable():
                return _watched(like.new_empty(0).set_(storage, 0, shape, stride))
            _spare.appendleft(storage)
    return _watched(like.new_empty(*shape))


def release() -> None:
    """Gives the kept memory back."""
    _spare.clear()
    _shared.clear()
