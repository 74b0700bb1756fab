"""Models prepared for the core: packed once, reused while nothing about their tensors has changed, gone when they go."""

import threading
import weakref
from collections.abc import Callable

import _ringnet_core as core
import torch
from torch import Tensor

from . import _checks as checks

_LBS = {torch.float32: core.LbsModelF32, torch.float64: core.LbsModelF64}
_LANDMARKS = {torch.float32: core.LandmarkModelF32, torch.float64: core.LandmarkModelF64}


def where(device: torch.device) -> int:
    """The core's last argument: the number of threads on the CPU, the current stream's handle on a CUDA device."""
    if device.type == "cpu":
        return torch.get_num_threads()
    return torch.cuda.current_stream(device).cuda_stream


def require_device(tensor: Tensor, argument: str) -> bool:
    """Whether the tensor lives on a CUDA device; an error where the core can't run."""
    kind = tensor.device.type
    if kind == "cuda" and not core.cuda_architectures:
        raise RuntimeError(
            f"{argument} is on {tensor.device}, but ringnet_ext was built without CUDA; "
            "reinstall it with `pip install . -C cmake.define.RINGNET_CUDA=ON`"
        )
    checks.require(kind in ("cpu", "cuda"), argument, "a tensor on a CPU or a CUDA device", f"one on {tensor.device}")
    return kind == "cuda"


class _Mark:
    """Recognises a tensor that is still the very same, unchanged: the object, its version counter, its place and layout.

    Holds the storage, so that no other data can appear at its address while the mark lives, and only weakly the tensor: the
    owner drops the mark when the tensor dies.
    """

    __slots__ = ("ref", "version", "address", "shape", "stride", "dtype", "storage")

    def __init__(self, tensor: Tensor, on_death: Callable[[object], None] | None = None):
        self.ref = weakref.ref(tensor, on_death)
        self.version, self.address = tensor._version, tensor.data_ptr()
        self.shape, self.stride, self.dtype = tensor.shape, tensor.stride(), tensor.dtype
        self.storage = tensor.untyped_storage()

    def matches(self, tensor: Tensor) -> bool:
        return (
            self.ref() is tensor
            and self.version == tensor._version
            and self.address == tensor.data_ptr()
            and self.shape == tensor.shape
            and self.stride == tensor.stride()
            and self.dtype == tensor.dtype
        )


class _Cache:
    """build(*tensors, *settings), kept while the tensors live and don't change.

    Inference tensors have no version counter: what is built from them is not kept. Writes that go around the counter, through
    ``tensor.data`` or a NumPy array that shares the memory, can't be seen: call :func:`clear_prepared` after them.
    """

    def __init__(self, build: Callable):
        self._build = build
        self._entries: dict[tuple, tuple[list[_Mark | None], object]] = {}
        self._lock = threading.RLock()

    def __call__(self, tensors: tuple[Tensor | None, ...], *settings):
        key = (*map(id, tensors), *settings)
        entry = self._entries.get(key)
        if entry is not None:
            for tensor, mark in zip(tensors, entry[0]):
                if mark is not None and not mark.matches(tensor):
                    break
            else:
                return entry[1]
        with self._lock, torch.no_grad():
            self._entries.pop(key, None)
            if any(t is not None and t.is_inference() for t in tensors):
                return self._build(*tensors, *settings)

            def on_death(_, key=key):
                self._entries.pop(key, None)

            # Marked before they are read: a write in between makes the entry miss, never go stale.
            marks = [None if t is None else _Mark(t, on_death) for t in tensors]
            value = self._build(*tensors, *settings)
            self._entries[key] = (marks, value)
            return value

    def clear(self) -> None:
        self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)


def _regress(J_regressor: Tensor, values: Tensor) -> Tensor:
    """J_regressor (J, V) times values (V, ...), summed in double."""
    flat = values.reshape(values.shape[0], -1)
    return (J_regressor.double() @ flat.double()).to(values.dtype).reshape(J_regressor.shape[0], *values.shape[1:])


class PreparedLbs:
    """A model's constants, packed for the core, with the joints as a linear function of the betas."""

    def __init__(self, shapedirs: Tensor, posedirs: Tensor, J_regressor: Tensor, parents: Tensor, lbs_weights: Tensor):
        V, K, J = self.sizes = checks.lbs_constants(shapedirs, posedirs, J_regressor, parents, lbs_weights)
        checks.parents_values(parents)
        self.cuda = cuda = require_device(shapedirs, "shapedirs")
        self.like, self.device = shapedirs.new_empty(0), shapedirs.device
        model = _LBS[shapedirs.dtype]
        self.parents = parents.to(self.device, torch.int32).contiguous()
        self.joint_dirs = _regress(J_regressor, shapedirs).permute(2, 0, 1).contiguous()  # (K, J, 3)
        self.packed = shapedirs.new_empty(model.packed_size(cuda, V, K, J))
        self.index = shapedirs.new_empty(model.index_size(cuda, V, K, J), dtype=torch.int32)
        inputs = [t.contiguous() for t in (shapedirs, posedirs, lbs_weights)]
        with on_device(self.device):
            model.pack(
                cuda, V, K, J, *(t.data_ptr() for t in inputs), self.packed.data_ptr(), self.index.data_ptr(),
                where(self.device),
            )
        self.core = model(
            cuda, V, K, J, self.parents.data_ptr(), self.joint_dirs.data_ptr(), self.packed.data_ptr(), self.index.data_ptr()
        )
        self.state_sizes = tuple(model.state_size(cuda, V, K, J, keep) for keep in (False, True))

    def workspace_size(self, B: int, template_shared: bool) -> int:
        return self.core.workspace_size(self.cuda, B, *self.sizes, template_shared)


class PreparedLandmarks:
    """The part of a model that its landmarks touch, packed for the core."""

    def __init__(
        self,
        v_template: Tensor,
        shapedirs: Tensor,
        posedirs: Tensor,
        J_regressor: Tensor,
        parents: Tensor,
        lbs_weights: Tensor,
        faces: Tensor,
        lmk_faces_idx: Tensor,
        lmk_bary_coords: Tensor,
        contour_faces_idx: Tensor | None,
        contour_bary_coords: Tensor | None,
        neck_joint: int,
    ):
        V, K, J = self.sizes = checks.lbs_constants(shapedirs, posedirs, J_regressor, parents, lbs_weights)
        checks.parents_values(parents)
        L, C = checks.landmark_constants(
            shapedirs, faces, lmk_faces_idx, lmk_bary_coords, contour_faces_idx, contour_bary_coords, neck_joint, J
        )
        checks.require_tensor("v_template", v_template, (V, 3), shapedirs)
        checks.require_range("faces", faces, 0, V, "vertices")
        checks.require_range("lmk_faces_idx", lmk_faces_idx, 0, faces.shape[0], "faces")
        if contour_faces_idx is not None:
            checks.require_range("contour_faces_idx", contour_faces_idx, 0, faces.shape[0], "faces")
        self.cuda = cuda = require_device(shapedirs, "shapedirs")
        self.like, self.device, self.points = shapedirs.new_empty(0), shapedirs.device, C + L
        model = _LANDMARKS[shapedirs.dtype]
        self.parents = parents.to(self.device, torch.int32).contiguous()
        self.joint_dirs = _regress(J_regressor, shapedirs).permute(2, 0, 1).contiguous()
        self.joint_template = _regress(J_regressor, v_template)
        self.packed = shapedirs.new_empty(model.packed_size(cuda, K, J, L, C))
        self.index = shapedirs.new_empty(model.index_size(cuda, K, J, L, C), dtype=torch.int32)
        faces = faces.long()
        inputs = [shapedirs, posedirs, lbs_weights, v_template, faces[lmk_faces_idx.long()], lmk_bary_coords]
        if contour_faces_idx is not None:
            inputs += [faces[contour_faces_idx.long()], contour_bary_coords]
        inputs = [t.contiguous() for t in inputs]
        addresses = [t.data_ptr() for t in inputs] + [0] * (8 - len(inputs))
        with on_device(self.device):
            model.pack(
                cuda, V, K, J, L, C, *addresses, self.packed.data_ptr(), self.index.data_ptr(), where(self.device)
            )
        self.core = model(
            cuda, K, J, L, C, neck_joint, self.parents.data_ptr(), self.joint_dirs.data_ptr(),
            self.joint_template.data_ptr(), self.packed.data_ptr(), self.index.data_ptr(),
        )
        self.state_sizes = tuple(model.state_size(cuda, K, J, L, C, keep) for keep in (False, True))
        self._landmark_sizes = (K, J, L, C)

    def workspace_size(self, B: int) -> int:
        return self.core.workspace_size(self.cuda, B, *self._landmark_sizes)


class _NoGuard:
    def __enter__(self) -> None: ...
    def __exit__(self, *_) -> None: ...


_no_guard = _NoGuard()


def on_device(device: torch.device):
    """Makes the device current where it isn't."""
    if device.type == "cpu" or device.index == torch.cuda.current_device():
        return _no_guard
    return torch.cuda.device(device)


prepared_lbs = _Cache(PreparedLbs)
prepared_landmarks = _Cache(PreparedLandmarks)
template_joints = _Cache(_regress)


def clear_prepared() -> None:
    """Forget every prepared model.

    Needed only after a write that PyTorch's version counter can't see: through ``tensor.data``, or into a NumPy array that
    shares a tensor's memory. Everything else (in-place operators, ``load_state_dict``, ``Module.to``) is noticed.
    """
    for cache in (prepared_lbs, prepared_landmarks, template_joints):
        cache.clear()
