"""Memory for big results, used again when nobody has them any more.

From 32 MiB on malloc asks the system for every tensor and gives it back at once, and the system fills every page with zeros before
it is written: a fifth of a forward pass, and more where it has no huge pages to spare. So the storages of the last two big tensors
that have gone, a call's results and its state, are kept for the next ones of about their size; meanwhile the system may have their
pages if it runs short. The tensors are PyTorch's own in every respect.
"""

import math
import sys
import weakref
from collections import deque

import _ringnet_core as core
import torch
from torch import Tensor

_BIG = 32 << 20  # glibc's largest mmap threshold
_spare: deque[torch.UntypedStorage] = deque(maxlen=2)  # the later one first
_alone = None  # what _owners says of the storage of a dying tensor that nobody shares


def _owners(storage: torch.UntypedStorage) -> tuple[int, int]:
    """How many have it, in C++ and in Python. Counted in one place: the count includes the counting."""
    return torch._C._storage_Use_Count(storage._cdata), sys.getrefcount(storage)


def _keep(storage: torch.UntypedStorage, noted: list | None = None) -> None:
    """Called when the tensor that a storage was made for goes."""
    owners = _owners(storage)
    if noted is not None:
        noted.append(owners)
    elif owners == _alone and not storage.is_shared():
        core.discard(storage.data_ptr(), storage.nbytes())
        _spare.appendleft(storage)


def _watch(tensor: Tensor, *noted: list) -> Tensor:
    weakref.finalize(tensor, _keep, tensor.untyped_storage(), *noted).atexit = False
    return tensor


def _measure() -> tuple[int, int] | None:
    """None where PyTorch doesn't tell, and nothing is used again."""
    noted: list[tuple[int, int]] = []
    try:
        _watch(torch.empty(1, device="cpu"), noted)
        return noted[0]
    except (AttributeError, IndexError):
        return None


_alone = _measure()


def empty(like: Tensor, *shape: int) -> Tensor:
    """An empty tensor of like's dtype and device."""
    size = math.prod(shape) * like.element_size()
    if size < _BIG or not like.is_cpu or _alone is None:
        return like.new_empty(shape)
    for _ in range(len(_spare)):
        try:
            storage = _spare.popleft()
        except IndexError:  # another thread was quicker
            break
        if storage.nbytes() // 2 <= size <= storage.nbytes():
            return _watch(like.new_empty(0).set_(storage, 0, shape))
        _spare.append(storage)
    return _watch(like.new_empty(shape))


def release() -> None:
    """Gives back what is kept."""
    _spare.clear()
