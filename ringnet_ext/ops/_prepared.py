"""Models prepared for the core: packed once, reused while nothing about their tensors has changed, gone when they go."""

import functools
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


def launch(entry: Callable, device: torch.device, *arguments) -> None:
    """Calls an entry point of the core where its tensors live, that device being the current one."""
    if device.type == "cpu":
        entry(*arguments, torch.get_num_threads())
    elif device.index == torch.cuda.current_device():
        entry(*arguments, where(device))
    else:
        with torch.cuda.device(device):
            entry(*arguments, where(device))


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


def _signature(t: Tensor) -> tuple:
    """What changes when a tensor's values, place or layout do."""
    return t._version, t.data_ptr(), t.shape, t.stride(), t.dtype


class _Entry:
    """A value, the tensors that it was made of, held weakly, and their signatures then.

    Holds the tensors' storages, so that no other data can appear at their addresses while the entry lives: it is dropped
    when one of the tensors dies.
    """

    __slots__ = ("marks", "storages", "value")

    def __init__(self, tensors: tuple[Tensor | None, ...], on_death: Callable[[object], None]):
        self.marks = [None if t is None else (weakref.ref(t, on_death), _signature(t)) for t in tensors]
        self.storages = [t.untyped_storage() for t in tensors if t is not None]

    def matches(self, tensors: tuple[Tensor | None, ...]) -> bool:
        for t, mark in zip(tensors, self.marks):
            # _signature(t), without the calls: this is on the way of every operator.
            if mark is not None and (
                mark[0]() is not t or mark[1] != (t._version, t.data_ptr(), t.shape, t.stride(), t.dtype)
            ):
                return False
        return True


class _Cache:
    """build(*tensors, *settings), kept while the tensors live and don't change.

    Inference tensors have no version counter: what is built from them is not kept. Writes that go around the counter, through
    ``tensor.data`` or a NumPy array that shares the memory, can't be seen: call :func:`clear_prepared` after them.
    """

    def __init__(self, build: Callable):
        self._build = build
        self._entries: dict[tuple, _Entry] = {}
        self._lock = threading.RLock()

    def __call__(self, tensors: tuple[Tensor | None, ...], *settings):
        key = (*map(id, tensors), *settings)
        entry = self._entries.get(key)
        if entry is not None and entry.matches(tensors):
            return entry.value
        with self._lock, torch.no_grad():
            self._entries.pop(key, None)
            if any(t is not None and t.is_inference() for t in tensors):
                return self._build(*tensors, *settings)

            def on_death(_, key=key):
                self._entries.pop(key, None)

            # Marked before they are read: a write in between makes the entry miss, never go stale.
            entry = _Entry(tensors, on_death)
            entry.value = self._build(*tensors, *settings)
            self._entries[key] = entry
            return entry.value

    def clear(self) -> None:
        self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)


def _regress(J_regressor: Tensor, values: Tensor) -> Tensor:
    """J_regressor (J, V) times values (V, ...), summed in double."""
    flat = values.reshape(values.shape[0], -1)
    return (J_regressor.double() @ flat.double()).to(values.dtype).reshape(J_regressor.shape[0], *values.shape[1:])


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _batch_stride(points: Tensor) -> int:
    return points.stride(0) if points.ndim == 3 else 0


def rows_of_points(t: Tensor) -> Tensor:
    """(..., V, 3), contiguous inside a batch element."""
    return t if t.stride()[-2:] == (3, 1) else t.contiguous()


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
        launch(
            model.pack, self.device, cuda, V, K, J, *(t.data_ptr() for t in inputs), self.packed.data_ptr(), self.index.data_ptr()
        )
        self.core = model(
            cuda, V, K, J, self.parents.data_ptr(), self.joint_dirs.data_ptr(), self.packed.data_ptr(), self.index.data_ptr()
        )
        self.state_sizes = tuple(model.state_size(cuda, V, K, J, keep) for keep in (False, True))
        # Detached: the model ends with the tensors it was made of, so it must not keep them alive.
        self._regressor = J_regressor.detach()
        self._template_joints = _Cache(functools.partial(_regress, self._regressor))

    def joint_template(self, v_template: Tensor) -> Tensor:
        """The template's joints, (J, 3) or (B, J, 3)."""
        if v_template.ndim == 2:
            # What requires grad is being optimised, and may be written in ways that leave no trace: never kept.
            return _regress(self._regressor, v_template) if v_template.requires_grad else self._template_joints((v_template,))
        with torch.autocast(self.device.type, enabled=False):
            return torch.matmul(self._regressor, v_template).contiguous()

    def forward(
        self, betas: Tensor, pose: Tensor, v_template: Tensor, joint_template: Tensor, pose2rot: bool, keep: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """vertices, joints and state. The arguments are checked; those of a batch element are contiguous."""
        (V, _, J), B = self.sizes, betas.shape[0]
        vertices, joints = betas.new_empty((B, V, 3)), betas.new_empty((B, J, 3))
        state = betas.new_empty((B, self.state_sizes[keep]))
        launch(
            self.core.forward, self.device, B, betas.data_ptr(), betas.stride(0), pose.data_ptr(), pose.stride(0), pose2rot,
            v_template.data_ptr(), _batch_stride(v_template), joint_template.data_ptr(), _batch_stride(joint_template), keep,
            state.data_ptr(), vertices.data_ptr(), joints.data_ptr(),
        )  # fmt: skip
        return vertices, joints, state

    def backward(
        self,
        grad_vertices: Tensor | None,
        grad_joints: Tensor | None,
        betas: Tensor,
        pose: Tensor,
        joint_template: Tensor,
        state: Tensor,
        pose2rot: bool,
        grad_betas: Tensor | None,
        grad_pose: Tensor | None,
        grad_v_template: Tensor | None = None,
        grad_joint_template: Tensor | None = None,
    ) -> None:
        """Overwrites the last four, where they are wanted. grad_v_template gets its direct part only."""
        B, shared = betas.shape[0], grad_v_template is not None and grad_v_template.ndim == 2
        if grad_joints is not None:
            grad_joints = grad_joints.contiguous()
        workspace = betas.new_empty(self.core.workspace_size(self.cuda, B, *self.sizes, shared))
        launch(
            self.core.backward, self.device, B, betas.data_ptr(), betas.stride(0), pose.data_ptr(), pose.stride(0), pose2rot,
            joint_template.data_ptr(), _batch_stride(joint_template), state.data_ptr(), _address(grad_vertices),
            *(grad_vertices.stride() if grad_vertices is not None else (0, 0, 0)), _address(grad_joints),
            _address(grad_betas), _address(grad_pose), _address(grad_v_template), shared,
            _address(grad_joint_template), workspace.data_ptr(),
        )  # fmt: skip


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
        launch(model.pack, self.device, cuda, V, K, J, L, C, *addresses, self.packed.data_ptr(), self.index.data_ptr())
        self.core = model(
            cuda, K, J, L, C, neck_joint, self.parents.data_ptr(), self.joint_dirs.data_ptr(),
            self.joint_template.data_ptr(), self.packed.data_ptr(), self.index.data_ptr(),
        )
        self.state_sizes = tuple(model.state_size(cuda, K, J, L, C, keep) for keep in (False, True))
        self._landmark_sizes = (K, J, L, C)

    def forward(self, betas: Tensor, pose: Tensor, pose2rot: bool, keep: bool) -> tuple[Tensor, Tensor]:
        """landmarks and state. The arguments are checked; those of a batch element are contiguous."""
        B = betas.shape[0]
        landmarks, state = betas.new_empty((B, self.points, 3)), betas.new_empty((B, self.state_sizes[keep]))
        launch(
            self.core.forward, self.device, B, betas.data_ptr(), betas.stride(0), pose.data_ptr(), pose.stride(0), pose2rot, keep,
            state.data_ptr(), landmarks.data_ptr(),
        )  # fmt: skip
        return landmarks, state

    def backward(
        self,
        grad_landmarks: Tensor,
        betas: Tensor,
        pose: Tensor,
        state: Tensor,
        pose2rot: bool,
        grad_betas: Tensor | None,
        grad_pose: Tensor | None,
    ) -> None:
        """Overwrites the last two, where they are wanted."""
        B = betas.shape[0]
        workspace = betas.new_empty(self.core.workspace_size(self.cuda, B, *self._landmark_sizes))
        launch(
            self.core.backward, self.device, B, betas.data_ptr(), betas.stride(0), pose.data_ptr(), pose.stride(0), pose2rot,
            state.data_ptr(), grad_landmarks.data_ptr(), *grad_landmarks.stride(), _address(grad_betas), _address(grad_pose),
            workspace.data_ptr(),
        )  # fmt: skip


class PreparedHead:
    """A model prepared for its mesh and its landmarks together: found by one look in the cache instead of three."""

    def __init__(self, v_template: Tensor, *constants):
        *tensors, neck_joint = constants
        self.landmarks: PreparedLandmarks = prepared_landmarks((v_template, *tensors), neck_joint)
        self.mesh: PreparedLbs = prepared_lbs(tuple(tensors[:5]))


prepared_lbs = _Cache(PreparedLbs)
prepared_landmarks = _Cache(PreparedLandmarks)
prepared_head = _Cache(PreparedHead)


def clear_prepared() -> None:
    """Forget every prepared model.

    Needed only after a write that PyTorch's version counter can't see: through ``tensor.data``, or into a NumPy array that
    shares a tensor's memory. Everything else (in-place operators, ``load_state_dict``, ``Module.to``) is noticed.
    """
    for cache in (prepared_lbs, prepared_landmarks, prepared_head):
        cache.clear()
