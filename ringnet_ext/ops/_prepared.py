"""Models prepared for the core: packed once, reused while nothing about their tensors has changed, gone when they go."""

import copy
import math
import threading
import weakref
from collections.abc import Callable

import _ringnet_core as core
import torch
from torch import Tensor

from . import _checks as checks

_LBS = {torch.float32: core.LbsModelF32, torch.float64: core.LbsModelF64}
_LANDMARKS = {torch.float32: core.LandmarkModelF32, torch.float64: core.LandmarkModelF64}
_CPU = torch.device("cpu")


try:
    from torch._C import _cuda_getCurrentRawStream as _current_stream
except ImportError:  # not the public interface, which makes a Stream object at every call

    def _current_stream(index: int) -> int:
        return torch.cuda.current_stream(index).cuda_stream


def where(device: torch.device) -> int:
    """The core's last argument: the number of threads on the CPU, the current stream's handle on a CUDA device."""
    if device == _CPU:
        return torch.get_num_threads()
    return _current_stream(torch.cuda.current_device() if device.index is None else device.index)


def launch(entry: Callable, device: torch.device, *arguments) -> None:
    """Calls an entry point of the core where its tensors live, that device being the current one."""
    if device == _CPU:
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


class Prepared:
    """A model, and the marks of the tensors that it was made of, which are held weakly.

    Holds their storages, so that no other data can appear at their addresses while it lives: it is dropped when one of the
    tensors dies.
    """

    __slots__ = ("marks", "model", "storages")

    def __init__(self, tensors: tuple[Tensor | None, ...], on_death: Callable[[object], None]):
        self.marks = core.Marks(tensors, on_death)
        self.storages = [t.untyped_storage() for t in tensors if t is not None]


class Cache:
    """build(*tensors, *settings), kept while the tensors live and don't change.

    Inference tensors have no version counter: what is built from them is not kept. Writes that go around the counter, through
    ``tensor.data`` or a NumPy array that shares the memory, can't be seen: call :func:`clear_prepared` after them.
    """

    def __init__(self, build: Callable):
        self._build = build
        self._entries: dict[tuple, Prepared] = {}
        self._lock = threading.RLock()

    def find(self, tensors: tuple[Tensor | None, ...], *settings) -> Prepared | None:
        """What is there already and still true."""
        entry = self._entries.get((*map(id, tensors), *settings))
        return entry if entry is not None and entry.marks.unchanged(tensors) else None

    def __call__(self, tensors: tuple[Tensor | None, ...], *settings):
        entry = self.find(tensors, *settings)
        if entry is not None:
            return entry.model
        key = (*map(id, tensors), *settings)
        with self._lock, torch.no_grad():
            self._entries.pop(key, None)
            if any(t is not None and t.is_inference() for t in tensors):
                return self._build(*tensors, *settings)

            def on_death(_, key=key):
                self._entries.pop(key, None)

            # Marked before they are read: a write in between makes the entry miss, never go stale.
            entry = Prepared(tensors, on_death)
            entry.model = self._build(*tensors, *settings)
            self._entries[key] = entry
            return entry.model

    def clear(self) -> None:
        self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)


def _regress(J_regressor: Tensor, values: Tensor) -> Tensor:
    """J_regressor (J, V) times values (B, V, ...), summed in double."""
    B, V, *shape = values.shape
    flat, J = values.flatten(2), J_regressor.shape[0]
    if values.device != _CPU:
        return torch.matmul(J_regressor.double(), flat.double()).to(values.dtype).reshape(B, J, *shape)
    joints, flat, J_regressor = values.new_empty((B, J, *shape)), flat.contiguous(), J_regressor.contiguous()
    run = core.regress_joints_f32 if values.dtype == torch.float32 else core.regress_joints_f64
    run(
        B, V, J, flat.shape[2], J_regressor.data_ptr(), flat.data_ptr(), flat.stride(0), joints.data_ptr(), torch.get_num_threads()
    )  # fmt: skip
    return joints


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _points(t: Tensor | None) -> tuple[int, int, int, int]:
    """Address and strides of (B, N, 3), any strides."""
    return (0, 0, 0, 0) if t is None else (t.data_ptr(), *t.stride())


def place(points: Tensor) -> tuple[int, int]:
    """Address and batch stride of points (N, 3) or (B, N, 3)."""
    return points.data_ptr(), points.stride(0) if points.ndim == 3 else 0


def rows_of_points(t: Tensor) -> Tensor:
    """(..., V, 3), contiguous inside a batch element."""
    return t if t.stride()[-2:] == (3, 1) else t.contiguous()


# From here on, malloc would have the system make every buffer anew (on Linux: its largest mmap threshold).
_BIG = 32 << 20


def _room(like: Tensor, *shape: int) -> Tensor:
    """An empty tensor. A big one's memory is used again when nobody has it any more."""
    bytes = math.prod(shape) * like.element_size()
    if bytes < _BIG or like.device != _CPU:
        return like.new_empty(shape)
    return torch.frombuffer(core.Buffer(bytes), dtype=like.dtype).view(shape)


def _state(like: Tensor, B: int, size: int) -> Tensor | None:
    """Room for a state; None where it has no size."""
    return _room(like, B, size) if size else None


def gradient_like(t: Tensor, wanted: bool) -> Tensor | None:
    """Room for a gradient that is wanted."""
    return t.new_empty(t.shape) if wanted else None


class PreparedLbs:
    """A model's constants, packed for the core, with the joints as a linear function of the betas."""

    def __init__(self, shapedirs: Tensor, posedirs: Tensor, J_regressor: Tensor, parents: Tensor, lbs_weights: Tensor):
        V, K, J = self.sizes = checks.lbs_constants(shapedirs, posedirs, J_regressor, parents, lbs_weights)
        checks.parents_values(parents)
        self.cuda = cuda = require_device(shapedirs, "shapedirs")
        self.like, self.device = shapedirs.new_empty(0), shapedirs.device
        model = _LBS[shapedirs.dtype]
        self.parents = parents.to(self.device, torch.int32).contiguous()
        self.joint_dirs = _regress(J_regressor, shapedirs[None])[0].permute(2, 0, 1).contiguous()  # (K, J, 3)
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

    def joint_template(self, v_template: Tensor) -> Tensor:
        """The template's joints, (J, 3) or (B, J, 3)."""
        if v_template.ndim == 2:
            return _regress(self._regressor, v_template[None])[0]
        if not self.cuda:
            return _regress(self._regressor, v_template)
        with torch.autocast(self.device.type, enabled=False):  # at every call, and double is slow there
            return torch.matmul(self._regressor, v_template).contiguous()

    def forward(
        self,
        betas: Tensor,
        pose: Tensor,
        template: tuple[int, int, int, int],
        pose2rot: bool,
        keep: bool,
        landmarks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """vertices, joints, and state, None where it has no size. Fills landmarks, where a model with them is given some.

        The arguments are checked; those of a batch element are contiguous. template: the places of v_template and its joints.
        """
        (V, _, J), B = self.sizes, betas.shape[0]
        vertices, joints = _room(betas, B, V, 3), betas.new_empty((B, J, 3))
        state = _state(betas, B, self.state_sizes[keep])
        launch(
            self.core.forward, self.device, B, betas.data_ptr(), betas.stride(0), pose.data_ptr(), pose.stride(0), pose2rot,
            *template, keep, _address(state), vertices.data_ptr(), joints.data_ptr(), _address(landmarks),
        )  # fmt: skip
        return vertices, joints, state

    def backward(
        self,
        grad_vertices: Tensor | None,
        grad_joints: Tensor | None,
        betas: Tensor,
        pose: Tensor,
        joint_template: tuple[int, int],
        state: Tensor,
        pose2rot: bool,
        grad_betas: Tensor | None,
        grad_pose: Tensor | None,
        grad_v_template: Tensor | None = None,
        grad_joint_template: Tensor | None = None,
        *,
        grad_landmarks: Tensor | None = None,
    ) -> None:
        """Overwrites the last four in order, where they are wanted. grad_v_template gets its direct part only.

        grad_landmarks: of a model with them, and only beside grad_vertices.
        """
        B, shared = betas.shape[0], grad_v_template is not None and grad_v_template.ndim == 2
        if grad_joints is not None:
            grad_joints = grad_joints.contiguous()
        size = self.core.workspace_size(self.cuda, B, *self.sizes, shared)
        workspace = betas.new_empty(size) if size else None
        launch(
            self.core.backward, self.device, B, betas.data_ptr(), betas.stride(0), pose.data_ptr(), pose.stride(0), pose2rot,
            *joint_template, state.data_ptr(), *_points(grad_vertices), _address(grad_joints), *_points(grad_landmarks),
            _address(grad_betas), _address(grad_pose), _address(grad_v_template), shared,
            _address(grad_joint_template), _address(workspace),
        )  # fmt: skip


class PreparedMesh:
    """A model with a template that all batch elements share."""

    def __init__(self, v_template: Tensor, *constants: Tensor):
        self.lbs: PreparedLbs = prepared_lbs(constants)
        V, self.K, self.J = self.lbs.sizes
        self.like = self.lbs.like
        checks.require_tensor("v_template", v_template, (V, 3), self.like)
        self.v_template = rows_of_points(v_template.detach())
        self.joint_template = self.lbs.joint_template(v_template)
        self.template = *place(self.v_template), *place(self.joint_template)

    def shapes(self, B: int) -> tuple[tuple[int, int, int], ...]:
        """Of vertices and joints."""
        return (B, self.lbs.sizes[0], 3), (B, self.J, 3)

    def forward(self, betas: Tensor, pose: Tensor, pose2rot: bool, keep: bool) -> tuple[tuple, tuple]:
        """(vertices, joints) and what backward needs. The arguments are checked; those of a batch element are contiguous."""
        vertices, joints, state = self.lbs.forward(betas, pose, self.template, pose2rot, keep)
        return (vertices, joints), (state,)

    def backward(
        self, gradients: tuple, betas: Tensor, pose: Tensor, states: tuple, pose2rot: bool, wanted: tuple
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of betas and pose."""
        grad_betas, grad_pose = gradient_like(betas, wanted[0]), gradient_like(pose, wanted[1])
        self.lbs.backward(*gradients, betas, pose, self.template[2:], *states, pose2rot, grad_betas, grad_pose)
        return grad_betas, grad_pose


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
        self.joint_dirs = _regress(J_regressor, shapedirs[None])[0].permute(2, 0, 1).contiguous()
        self.joint_template = _regress(J_regressor, v_template[None])[0]
        self.packed = shapedirs.new_empty(model.packed_size(cuda, K, J, L, C))
        self.index = shapedirs.new_empty(model.index_size(cuda, K, J, L, C), dtype=torch.int32)
        faces = faces.long()
        self.corners = [faces[index.long()] for index in (lmk_faces_idx, contour_faces_idx) if index is not None]
        inputs = [shapedirs, posedirs, lbs_weights, v_template, self.corners[0], lmk_bary_coords]
        if contour_faces_idx is not None:
            inputs += [self.corners[1], contour_bary_coords]
        inputs = [t.contiguous() for t in inputs]
        addresses = [t.data_ptr() for t in inputs] + [0] * (8 - len(inputs))
        launch(model.pack, self.device, cuda, V, K, J, L, C, *addresses, self.packed.data_ptr(), self.index.data_ptr())
        self.core = model(
            cuda, K, J, L, C, neck_joint, self.parents.data_ptr(), self.joint_dirs.data_ptr(),
            self.joint_template.data_ptr(), self.packed.data_ptr(), self.index.data_ptr(),
        )
        self.state_sizes = tuple(model.state_size(cuda, K, J, L, C, keep) for keep in (False, True))
        self.K, self.J, self.landmark_sizes = K, J, (K, J, L, C)

    def shapes(self, B: int) -> tuple[tuple[int, int, int], ...]:
        """Of the landmarks."""
        return ((B, self.points, 3),)

    def forward(self, betas: Tensor, pose: Tensor, pose2rot: bool, keep: bool) -> tuple[tuple, tuple]:
        """(landmarks,) and what backward needs. The arguments are checked; those of a batch element are contiguous."""
        B = betas.shape[0]
        landmarks = betas.new_empty((B, self.points, 3))
        state = _state(betas, B, self.state_sizes[keep])
        launch(
            self.core.forward, self.device, B, betas.data_ptr(), betas.stride(0), pose.data_ptr(), pose.stride(0), pose2rot, keep,
            _address(state), landmarks.data_ptr(),
        )  # fmt: skip
        return (landmarks,), (state,)

    def on_mesh(self, vertices: Tensor, mesh_state: Tensor, keep: bool) -> tuple[Tensor, Tensor | None]:
        """Landmarks of a mesh just computed on a CUDA device, and what backward needs of them."""
        B, V, _ = vertices.shape
        landmarks = vertices.new_empty((B, self.points, 3))
        state = _state(vertices, B, self.state_sizes[True]) if keep else None
        addresses = [t.data_ptr() for t in self.corners] + [0] * (2 - len(self.corners))
        launch(
            self.core.on_mesh, self.device, *addresses, B, V, vertices.data_ptr(), mesh_state.data_ptr(), keep, _address(state),
            landmarks.data_ptr(),
        )  # fmt: skip
        return landmarks, state

    def backward(
        self, gradients: tuple, betas: Tensor, pose: Tensor, states: tuple, pose2rot: bool, wanted: tuple
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of betas and pose."""
        B, (grad_landmarks,), (state,) = betas.shape[0], gradients, states
        if grad_landmarks is None:
            return None, None
        grad_betas, grad_pose = gradient_like(betas, wanted[0]), gradient_like(pose, wanted[1])
        size = self.core.workspace_size(self.cuda, B, *self.landmark_sizes)
        workspace = betas.new_empty(size) if size else None
        launch(
            self.core.backward, self.device, B, betas.data_ptr(), betas.stride(0), pose.data_ptr(), pose.stride(0), pose2rot,
            state.data_ptr(), *_points(grad_landmarks), _address(grad_betas), _address(grad_pose),
            _address(workspace),
        )  # fmt: skip
        return grad_betas, grad_pose


class PreparedHead:
    """A model prepared for its mesh and its landmarks together.

    Landmarks are read off the vertices, and on the CPU, where both have a gradient, it goes one way back. On a CUDA device, and
    where only the landmarks have one, their own kernels are called for it.
    """

    def __init__(self, v_template: Tensor, *constants):
        *tensors, neck_joint = constants
        self.landmarks: PreparedLandmarks = prepared_landmarks((v_template, *tensors), neck_joint)
        self.mesh: PreparedMesh = prepared_mesh((v_template, *tensors[:5]))
        self.K, self.J, self.like, self.lbs = self.mesh.K, self.mesh.J, self.mesh.like, self.mesh.lbs
        self.landmark_state_size = self.landmarks.state_sizes[True] if self.lbs.cuda else 0
        if not self.lbs.cuda:
            self._corners = _corners(*tensors[5:])
            _, _, L, C = self.landmarks.landmark_sizes
            self.lbs = copy.copy(self.lbs)
            self.lbs.core = self.lbs.core.with_landmarks(L, C, neck_joint, *(t.data_ptr() for t in self._corners))

    def shapes(self, B: int) -> tuple[tuple[int, int, int], ...]:
        """Of vertices, joints and landmarks."""
        return self.mesh.shapes(B) + self.landmarks.shapes(B)

    def forward(self, betas: Tensor, pose: Tensor, pose2rot: bool, keep: bool) -> tuple[tuple, tuple]:
        """(vertices, joints, landmarks) and what backward needs: the states of landmarks, where they have one, and mesh."""
        if self.lbs.cuda:
            points, states = self.mesh.forward(betas, pose, pose2rot, keep)
            landmarks, landmark_state = self.landmarks.on_mesh(points[0], states[0], keep)
            return (*points, landmarks), (landmark_state, *states)
        landmarks = betas.new_empty((betas.shape[0], self.landmarks.points, 3))
        vertices, joints, state = self.lbs.forward(betas, pose, self.mesh.template, pose2rot, keep, landmarks)
        return (vertices, joints, landmarks), (None, state)

    def backward(
        self, gradients: tuple, betas: Tensor, pose: Tensor, states: tuple, pose2rot: bool, wanted: tuple
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of betas and pose."""
        grad_vertices, grad_joints, grad_landmarks = gradients
        if grad_landmarks is None:
            return self.mesh.backward((grad_vertices, grad_joints), betas, pose, states[1:], pose2rot, wanted)
        if grad_vertices is not None and not self.lbs.cuda:
            result = gradient_like(betas, wanted[0]), gradient_like(pose, wanted[1])
            self.lbs.backward(
                grad_vertices, grad_joints, betas, pose, self.mesh.template[2:], states[1], pose2rot, *result,
                grad_landmarks=grad_landmarks,
            )  # fmt: skip
            return result
        own = states[:1] if self.lbs.cuda else self.landmarks.forward(betas, pose, pose2rot, True)[1]
        result = self.landmarks.backward((grad_landmarks,), betas, pose, own, pose2rot, wanted)
        if grad_vertices is None and grad_joints is None:
            return result
        added = self.mesh.backward((grad_vertices, grad_joints), betas, pose, states[1:], pose2rot, wanted)
        return tuple(None if a is None else a.add_(b) for a, b in zip(result, added))


def _corners(
    faces: Tensor, lmk_faces_idx: Tensor, lmk_bary_coords: Tensor, contour_faces_idx: Tensor | None, contour_bary_coords: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The corners of static landmarks and of every row of the contour table: vertices, ascending, landmarks and coordinates."""
    lists = [(lmk_faces_idx[None], lmk_bary_coords[None])]
    if contour_faces_idx is not None:
        lists.append((contour_faces_idx, contour_bary_coords))
    parts, first = [], 0 if contour_faces_idx is None else contour_faces_idx.shape[1]
    for index, bary in lists:
        vertices, order = faces.long()[index.long()].flatten(1).sort(dim=1, stable=True)
        parts.append([part.flatten() for part in (vertices.int(), (first + order // 3).int(), bary.flatten(1).gather(1, order))])
        first = 0
    return tuple(torch.cat(columns) for columns in zip(*parts))


prepared_lbs = Cache(PreparedLbs)
prepared_mesh = Cache(PreparedMesh)
prepared_landmarks = Cache(PreparedLandmarks)
prepared_head = Cache(PreparedHead)


def clear_prepared() -> None:
    """Forget every prepared model, and give back the memory that is kept for the next big batch (from about 500 heads on).

    Needed only after a write that PyTorch's version counter can't see: through ``tensor.data``, or into a NumPy array that
    shares a tensor's memory. Everything else (in-place operators, ``load_state_dict``, ``Module.to``) is noticed.
    """
    for cache in (prepared_lbs, prepared_mesh, prepared_landmarks, prepared_head):
        cache.clear()
    core.Buffer.release_spare()
