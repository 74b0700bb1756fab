"""When a prepared model is used again: while its tensors live and keep their values.

An operator never uses a model that was made of former values. These are the rules.

- **Trainable constants are never kept.** A parameter, a tensor that requires grad and a tensor that has a gradient are
  used as they lie, at every call: an optimiser writes to them, and a fused optimiser leaves no trace. Inference tensors
  have no version counter, and are not kept either.
- **What PyTorch counts is seen by the next call, always.** In-place operators, ``load_state_dict`` and ``Module.to``
  change a tensor's version counter, address, shape or strides, and every call compares these. When only the counter has
  changed, the call compares all values with their digests. DistributedDataParallel writes all buffers anew at every
  step, mostly with equal values: then nothing is prepared again.
- **What PyTorch doesn't count is looked for in host memory.** Collectives, ``apply_``, ``map_``, ``.data``, NumPy and
  DLPack leave the version counter as it is. Every call compares 16 places of each tensor, spread evenly and not zero
  where possible, and 4 KiB of one tensor, the next 4 KiB at the next call. A write that changes all values, or all but
  the zeros, is seen by the next call. A write that changes a share p of the values is missed by a call with probability
  (1 - p)^16. A write that changes one value is seen after as many calls as the constants have pieces of 4 KiB, 2800 for
  FLAME with 150 directions, at the latest. On a CUDA device reading values would need a synchronisation: there such
  writes are not looked for.
- **Few integers are known by their values.** Tensors of at most 512 bytes of integers in host memory, such as a joint
  tree, are compared as a whole. Compilers that fold constants make them anew for every call.
- **A model is kept from its tensors' second call on.** The first call reads nothing to recognise its tensors by. The
  second call prepares the model again, notes the values, and keeps both. Directions that never come back (smplx joins
  them anew for every call) are never packed: the kernels read them as they lie, with the same bits.
- **A model ends with its tensors.** The death of one of them, or of its memory's owner, drops the model.
- **A CUDA graph keeps its models for good** and replays them: later writes to constants don't reach it.

Whoever writes a few values uncounted, or any values of a tensor on a CUDA device, calls :func:`clear_prepared`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import _ringnet_core as core
import torch
from torch import Tensor

from . import _checks as checks
from . import _memory

_MOST_ENTRIES = 1024  # of a cache; entries of few integers end with no tensor


def constant(tensor: Tensor | None) -> bool:
    """Whether a model made of the tensor may be kept: nothing is known to train it, as far as can be told."""
    if tensor is None:
        return True
    trainable = isinstance(tensor, torch.nn.Parameter) or tensor.requires_grad or tensor.grad is not None
    return not (trainable or tensor.is_inference())


def _tensors_of(model) -> list[Tensor]:
    """All tensors that a prepared model has, those of its parts included."""
    if isinstance(model, Tensor):
        return [model]
    if isinstance(model, (tuple, list)):
        return [t for part in model for t in _tensors_of(part)]
    if type(model).__module__.startswith(f"{__package__}."):
        return [t for part in vars(model).values() for t in _tensors_of(part)]
    return []


_captured: dict[int, object] = {}  # models that graphs read whenever they are replayed, for good


class Streams:
    """The streams that may read a model on a CUDA device: the one that prepared it, and those that have waited for it.

    A stream that is being captured can't wait for what was before the capture. It needn't: torch.cuda.graph,
    make_graphed_callables and torch.compile wait for the device before they capture.
    """

    def __init__(self, device: torch.device, model):
        self._device, self._model, self._prepared = device, model, torch.cuda.Event()
        stream = torch.cuda.current_stream(device)
        self._prepared.record(stream)
        self._may_read = {stream.cuda_stream}

    def admit(self) -> None:
        """Lets the current stream read the model."""
        stream, captured = torch.cuda.current_stream(self._device), checks.capturing(self._device)
        if captured:
            _captured[id(self._model)] = self._model
        if stream.cuda_stream in self._may_read:
            return
        if not captured:
            stream.wait_event(self._prepared)
            self._may_read.add(stream.cuda_stream)
        for tensor in _tensors_of(self._model):  # or its memory could be another's before this stream has read it
            tensor.record_stream(stream)


class Entry:
    """A model, and the marks of the tensors that it was made of.

    Holds the tensors' storages, so that no other values can appear at their addresses while it lives. The death of a
    tensor drops the entry, and the storages with it.
    """

    __slots__ = ("marks", "model", "storages", "streams")
    model: Any
    streams: Streams | None

    def __init__(self, tensors: tuple[Tensor | None, ...], on_death: Callable[[object], object]):
        self.marks, self.streams = core.Marks(tensors, on_death), None
        self.storages = [t.untyped_storage() for t in tensors if t is not None]

    def read_by(self, device: torch.device) -> None:
        """Keeps other streams of a CUDA device from reading the model before it is there."""
        self.streams = Streams(device, self.model)


_backward = threading.local()


@contextlib.contextmanager
def in_backward() -> Iterator[None]:
    """Within it, a call finds the models of the forward pass, and doesn't count as the tensors' second call."""
    before, _backward.now = getattr(_backward, "now", False), True
    try:
        yield
    finally:
        _backward.now = before


class Cache:
    """build(*tensors, *settings), kept by the rules above."""

    all: ClassVar[list[Cache]] = []

    def __init__(self, build: Callable):
        Cache.all.append(self)
        self._build = build
        self._entries: dict[tuple, Entry] = {}
        self._lock = threading.RLock()

    def find(self, tensors: tuple[Tensor | None, ...], *settings, again: bool = True) -> Entry | None:
        """What is there already and still true."""
        entry = core.find(self._entries, tensors, settings, again)
        if entry is not None and entry.streams is not None:
            entry.streams.admit()
        return entry

    def __call__(self, tensors: tuple[Tensor | None, ...], *settings):
        """The model, found or made."""
        entry = self.find(tensors, *settings, again=not getattr(_backward, "now", False))
        return self._make(tensors, settings) if entry is None else entry.model

    def _make(self, tensors: tuple[Tensor | None, ...], settings: tuple):
        given = [t for t in tensors if t is not None]
        for t in given:
            if t.numel() and not t.data_ptr():
                raise ValueError(
                    f"a constant of shape {tuple(t.shape)} has no memory: its storage was resized to nothing, as FSDP "
                    "does between calls"
                )
        key = core.key(tensors, settings)
        with self._lock, torch.no_grad():
            before = self._entries.pop(key, None)  # its marks know the tensors: they go when the new ones are there
            # What is made during a capture is there only when the graph is replayed.
            if not all(map(constant, given)) or any(checks.capturing(t.device) for t in given):
                return self._build(*tensors, *settings)

            def on_death(_, key=key):
                self._entries.pop(key, None)

            # Marked before they are read: after a write in between the entry is found changed, never taken for true.
            entry = Entry(tensors, on_death)
            entry.model = self._build(*tensors, *settings)
            device = next((t.device for t in _tensors_of(entry.model) if t.device.type == "cuda"), None)
            if device is not None:
                entry.read_by(device)
                for t in given:
                    # As torch._dynamo.mark_static_address does: graphs of compiled functions don't copy it first.
                    vars(t)["_dynamo_static_input_type"] = "unguarded"
            if len(self._entries) >= _MOST_ENTRIES:
                self._entries.pop(next(iter(self._entries)), None)
            self._entries[key] = entry
            del before
            return entry.model

    def clear(self) -> None:
        self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)


def clear_prepared() -> None:
    """Forgets every prepared model, and gives back the memory that is kept for the next big batch (from about 500 heads
    on).

    Needed only after writes that PyTorch doesn't count (through ``tensor.data``, NumPy, DLPack or a collective) and
    that change a few values only, or a tensor on a CUDA device. The next call notices everything else by itself: what
    PyTorch counts (in-place operators, ``load_state_dict``, ``Module.to``), writes that change all of a tensor's
    values, and optimisers.
    """
    for cache in Cache.all:
        cache.clear()
    _memory.release()
