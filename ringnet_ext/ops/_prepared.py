"""Models prepared for the core: constants packed once, and the calls of the kernels that read them."""

import copy

import _ringnet_core as core
import torch
from torch import Tensor

from . import _checks as checks
from . import _memory
from ._cache import Cache

_LBS = {torch.float32: core.LbsModelF32, torch.float64: core.LbsModelF64}
_LANDMARKS = {torch.float32: core.LandmarkModelF32, torch.float64: core.LandmarkModelF64}
_DIRECTIONS = {torch.float32: core.DirectionsF32, torch.float64: core.DirectionsF64}
_CPU = torch.device("cpu")


def _regress(J_regressor: Tensor, values: Tensor) -> Tensor:
    """J_regressor (J, V) times values (B, V, ...), summed in double precision."""
    B, _, *shape = values.shape
    flat, J = values.flatten(2), J_regressor.shape[0]
    if values.device != _CPU:
        return torch.matmul(J_regressor.double(), flat.double()).to(values.dtype).reshape(B, J, *shape)
    joints, flat, J_regressor = values.new_empty((B, J, *shape)), flat.contiguous(), J_regressor.contiguous()
    run = core.regress_joints_f32 if values.dtype == torch.float32 else core.regress_joints_f64
    run(regressor=J_regressor, values=flat, joints=joints.flatten(2))
    return joints


def rows_of_points(t: Tensor) -> Tensor:
    """The points (..., V, 3), contiguous within each batch element."""
    return t if t.stride()[-2:] == (3, 1) else t.contiguous()


def _state(like: Tensor, B: int, size: int) -> Tensor | None:
    """An uninitialised state of B rows; None where its size is 0."""
    return _memory.empty(like, B, size, inner=True) if size else None


def gradient_like(t: Tensor, wanted: bool) -> Tensor | None:
    """An uninitialised gradient of t; None where it isn't wanted."""
    return t.new_empty(*t.shape) if wanted else None


def _zeros_like(t: Tensor, wanted: bool) -> Tensor | None:
    return torch.zeros_like(t) if wanted else None


def _sum(gradient: Tensor | None, other: Tensor | None) -> Tensor | None:
    return None if gradient is None or other is None else gradient.add_(other)


class Directions:
    """Directions of the betas or of the pose. They are packed at their second call: code that makes them anew for
    every call has no second one, and the kernels read its directions as they lie."""

    def __init__(self, directions: Tensor):
        # Detached: a model ends with the tensors it was made of, so it must not keep them alive.
        self._source, kind = directions.detach(), _DIRECTIONS[directions.dtype]
        if directions.ndim == 3 and directions.stride(0) != 3 * directions.stride(1):
            self._source = self._source.contiguous()
        self._packed = self._index = None
        if core.seen_again(directions):
            V, count = (
                (len(directions), directions.shape[2])
                if directions.ndim == 3
                else (directions.shape[1] // 3, len(directions))
            )
            self._packed = directions.new_empty(kind.packed_size(V, count))
            self._index = directions.new_empty(kind.index_size(V, count), dtype=torch.int32)
            kind.pack(source=self._source, packed=self._packed, index=self._index)
        self.core = kind(source=self._source, packed=self._packed, index=self._index)


class PackedLbs:
    """Skinning weights as a device's kernels read them, together with the directions where the device packs both
    together."""

    def __init__(self, lbs_weights: Tensor, shapedirs: Tensor | None, posedirs: Tensor | None, K: int):
        (V, J), model, cuda = lbs_weights.shape, _LBS[lbs_weights.dtype], lbs_weights.is_cuda
        self.packed = lbs_weights.new_empty(model.packed_size(cuda, V, K, J))
        self.index = lbs_weights.new_empty(model.index_size(cuda, V, K, J), dtype=torch.int32)
        model.pack(
            is_cuda=cuda, shapedirs=None if shapedirs is None else shapedirs.contiguous(),
            posedirs=None if posedirs is None else posedirs.contiguous(), lbs_weights=lbs_weights.contiguous(),
            packed=self.packed, index=self.index,
        )  # fmt: skip


def _joint_tree(parents: Tensor, device: torch.device) -> Tensor:
    """The checked joint tree, as the kernels read it. parents may be on another device."""
    checks.require_readable("parents", device)
    checks.parents_values(parents)
    return parents.to(device, torch.int32, copy=True).contiguous()


def _joint_dirs(J_regressor: Tensor, shapedirs: Tensor) -> Tensor:
    """The joints as a linear function of the betas, (K, J, 3)."""
    return _regress(J_regressor, shapedirs[None])[0].permute(2, 0, 1).contiguous()


class PreparedLbs:
    """A model's constants as the core reads them. Each is prepared on its own. The rest joints are prepared as a linear
    function of the betas."""

    def __init__(self, shapedirs: Tensor, posedirs: Tensor, J_regressor: Tensor, parents: Tensor, lbs_weights: Tensor):
        V, K, J = self.sizes = checks.lbs_constants(shapedirs, posedirs, J_regressor, parents, lbs_weights)
        self.cuda = cuda = checks.require_device(shapedirs, "shapedirs")
        self.like, self.device, model = shapedirs.new_empty(0), shapedirs.device, _LBS[shapedirs.dtype]
        self.parents: Tensor = joint_tree((parents,), self.device)
        self.joint_dirs: Tensor = joint_dirs((J_regressor, shapedirs))
        if model.separate_directions(cuda):
            self._directions = tuple(directions((t,)) for t in (shapedirs, posedirs))
            self._packed: PackedLbs = packed_lbs((lbs_weights, None, None), 0)
        else:
            self._directions = ()
            self._packed = packed_lbs((lbs_weights, shapedirs, posedirs), K)
        shape, pose = [d.core for d in self._directions] or (None, None)
        self.core = model(
            is_cuda=cuda, V=V, parents=self.parents, joint_dirs=self.joint_dirs, packed=self._packed.packed,
            index=self._packed.index, shape=shape, pose=pose,
        )  # fmt: skip
        self.state_sizes = tuple(model.state_size(cuda, V, K, J, keep) for keep in (False, True))
        # Detached: the model ends with the tensors it was made of, so it must not keep them alive.
        self._regressor = J_regressor.detach()

    def with_landmarks(self, **landmarks) -> "PreparedLbs":
        """The same model with landmarks on its mesh. Takes the arguments of the core's function of this name."""
        model = copy.copy(self)
        model.core = self.core.with_landmarks(**landmarks)
        return model

    def joint_template(self, v_template: Tensor) -> Tensor:
        """The template's joints, (J, 3) or (B, J, 3)."""
        if v_template.ndim == 2:
            return _regress(self._regressor, v_template[None])[0]
        if not self.cuda:
            return _regress(self._regressor, v_template)
        with torch.autocast(
            self.device.type, enabled=False
        ):  # not in double: it is slow there, and this is done at every call
            return torch.matmul(self._regressor, v_template).contiguous()

    def forward(
        self,
        betas: Tensor,
        pose: Tensor,
        v_template: Tensor,
        joint_template: Tensor,
        pose2rot: bool,
        keep: bool,
        landmarks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """vertices, joints, and the state, None where its size is 0. Expects checked arguments with contiguous rows.

        landmarks: memory for the landmarks of a model that has some, to be filled.
        """
        (V, _, J), B = self.sizes, betas.shape[0]
        vertices, joints = _memory.empty(betas, B, V, 3), betas.new_empty(B, J, 3)
        state = _state(betas, B, self.state_sizes[keep])
        self.core.forward(
            betas=betas, pose=pose, axis_angle=pose2rot, v_template=v_template,
            joint_template=joint_template, keep=keep, state=state, vertices=vertices, joints=joints,
            landmarks=landmarks,
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
        *,
        grad_landmarks: Tensor | None = None,
    ) -> None:
        """Writes to the gradients of betas, pose, template and the template's joints, where they are not None.

        grad_v_template doesn't include what comes through the template's joints. grad_landmarks is the gradient of the
        landmarks of a model that has some; it needs grad_vertices.
        """
        B, shared = betas.shape[0], grad_v_template is not None and grad_v_template.ndim == 2
        if grad_joints is not None:
            grad_joints = grad_joints.contiguous()
        size = self.core.workspace_size(self.cuda, B, *self.sizes, shared)
        workspace = betas.new_empty(size) if size else None
        self.core.backward(
            betas=betas, pose=pose, axis_angle=pose2rot, joint_template=joint_template,
            state=state, grad_vertices=grad_vertices, grad_joints=grad_joints, grad_landmarks=grad_landmarks,
            grad_betas=grad_betas, grad_pose=grad_pose, grad_v_template=grad_v_template,
            grad_joint_template=grad_joint_template, workspace=workspace,
        )  # fmt: skip


class PreparedMesh:
    """A model and a template that all batch elements share."""

    def __init__(self, v_template: Tensor, *constants: Tensor):
        self.lbs: PreparedLbs = prepared_lbs(constants)
        V, self.K, self.J = self.lbs.sizes
        self.like = self.lbs.like
        checks.require_tensor("v_template", v_template, (V, 3), self.like)
        self.v_template = rows_of_points(v_template.detach())
        self.joint_template = self.lbs.joint_template(v_template)

    def shapes(self, B: int) -> tuple[tuple[int, int, int], ...]:
        """The shapes of vertices and joints."""
        return (B, self.lbs.sizes[0], 3), (B, self.J, 3)

    def forward(self, betas: Tensor, pose: Tensor, pose2rot: bool, keep: bool) -> tuple[tuple, tuple]:
        """(vertices, joints) and (state,). Expects checked arguments with contiguous rows."""
        vertices, joints, state = self.lbs.forward(betas, pose, self.v_template, self.joint_template, pose2rot, keep)
        return (vertices, joints), (state,)

    def backward(
        self, gradients: tuple, betas: Tensor, pose: Tensor, states: tuple, pose2rot: bool, wanted: tuple
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of betas and pose."""
        grad_betas, grad_pose = gradient_like(betas, wanted[0]), gradient_like(pose, wanted[1])
        grad_vertices, grad_joints = gradients
        (state,) = states
        self.lbs.backward(
            grad_vertices, grad_joints, betas, pose, self.joint_template, state, pose2rot, grad_betas, grad_pose
        )
        return grad_betas, grad_pose


class Corners:
    """The vertices of a landmark embedding's triangles: of the static landmarks (L, 3) and of the contour table
    (79, C, 3) or None."""

    def __init__(
        self,
        faces: Tensor,
        lmk_faces_idx: Tensor,
        lmk_bary_coords: Tensor,
        contour_faces_idx: Tensor | None,
        contour_bary_coords: Tensor | None,
        V: int,
    ):
        checks.require_range("faces", faces, 0, V, "vertices")
        checks.require_range("lmk_faces_idx", lmk_faces_idx, 0, faces.shape[0], "faces")
        faces, self.contour, C = faces.long(), None, 0
        self.static = faces[lmk_faces_idx.long()].contiguous()
        lists = [(self.static[None], lmk_bary_coords[None])]
        if contour_faces_idx is not None and contour_bary_coords is not None:
            checks.require_range("contour_faces_idx", contour_faces_idx, 0, faces.shape[0], "faces")
            self.contour, C = faces[contour_faces_idx.long()].contiguous(), contour_faces_idx.shape[1]
            lists.append((self.contour, contour_bary_coords))
        parts = []
        for (corners, bary), first in zip(lists, (C, 0), strict=False):
            vertices, order = corners.flatten(1).sort(dim=1, stable=True)
            parts.append([vertices.int(), (first + order // 3).int(), bary.flatten(1).gather(1, order)])
        # Of the static landmarks and of every row of the table: vertices in ascending order, landmarks, coordinates.
        self.by_vertex = tuple(
            torch.cat([column.flatten() for column in columns]) for columns in zip(*parts, strict=False)
        )


class PreparedLandmarks:
    """The vertices of a model that its landmarks need, packed for the core."""

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
        embedding = (faces, lmk_faces_idx, lmk_bary_coords, contour_faces_idx, contour_bary_coords)
        L, C = checks.landmark_constants(shapedirs, embedding, neck_joint, J)
        checks.require_tensor("v_template", v_template, (V, 3), shapedirs)
        corners: Corners = landmark_corners(embedding, V)
        self.cuda = cuda = checks.require_device(shapedirs, "shapedirs")
        self.like, self.device, self.points = shapedirs.new_empty(0), shapedirs.device, C + L
        model = _LANDMARKS[shapedirs.dtype]
        self.parents: Tensor = joint_tree((parents,), self.device)
        self.joint_dirs: Tensor = joint_dirs((J_regressor, shapedirs))
        self.joint_template = _regress(J_regressor, v_template[None])[0]
        self.packed = shapedirs.new_empty(model.packed_size(cuda, K, J, L, C))
        self.index = shapedirs.new_empty(model.index_size(cuda, K, J, L, C), dtype=torch.int32)
        model.pack(
            is_cuda=cuda, shapedirs=shapedirs.contiguous(), posedirs=posedirs.contiguous(),
            lbs_weights=lbs_weights.contiguous(), v_template=v_template.contiguous(),
            static_vertices=corners.static, static_bary=lmk_bary_coords.contiguous(), contour_vertices=corners.contour,
            contour_bary=None if contour_bary_coords is None else contour_bary_coords.contiguous(),
            packed=self.packed, index=self.index,
        )  # fmt: skip
        self.core = model(
            is_cuda=cuda, L=L, C=C, neck_joint=neck_joint, parents=self.parents, joint_dirs=self.joint_dirs,
            joint_template=self.joint_template, packed=self.packed, index=self.index,
        )  # fmt: skip
        self.state_sizes = tuple(model.state_size(cuda, K, J, L, C, keep) for keep in (False, True))
        self.K, self.J, self.landmark_sizes = K, J, (K, J, L, C)
        self._corners = corners.static, corners.contour

    def shapes(self, B: int) -> tuple[tuple[int, int, int], ...]:
        """The shape of the landmarks."""
        return ((B, self.points, 3),)

    def forward(self, betas: Tensor, pose: Tensor, pose2rot: bool, keep: bool) -> tuple[tuple, tuple]:
        """(landmarks,) and (state,). Expects checked arguments with contiguous rows."""
        B = betas.shape[0]
        landmarks = betas.new_empty(B, self.points, 3)
        state = _state(betas, B, self.state_sizes[keep])
        self.core.forward(betas=betas, pose=pose, axis_angle=pose2rot, keep=keep, state=state, landmarks=landmarks)
        return (landmarks,), (state,)

    def on_mesh(self, vertices: Tensor, mesh_state: Tensor, keep: bool) -> tuple[Tensor, Tensor | None]:
        """The landmarks of a mesh that was just computed on a CUDA device, and their state, None where not kept."""
        B = vertices.shape[0]
        landmarks = vertices.new_empty(B, self.points, 3)
        state = _state(vertices, B, self.state_sizes[True]) if keep else None
        static_vertices, contour_vertices = self._corners
        self.core.on_mesh(
            static_vertices=static_vertices, contour_vertices=contour_vertices, vertices=vertices,
            mesh_state=mesh_state, keep=keep, state=state, landmarks=landmarks,
        )  # fmt: skip
        return landmarks, state

    def backward(
        self, gradients: tuple, betas: Tensor, pose: Tensor, states: tuple, pose2rot: bool, wanted: tuple
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of betas and pose."""
        B, (grad_landmarks,), (state,) = betas.shape[0], gradients, states
        if grad_landmarks is None:
            return _zeros_like(betas, wanted[0]), _zeros_like(pose, wanted[1])
        grad_betas, grad_pose = gradient_like(betas, wanted[0]), gradient_like(pose, wanted[1])
        size = self.core.workspace_size(self.cuda, B, *self.landmark_sizes)
        workspace = betas.new_empty(size) if size else None
        self.core.backward(
            betas=betas, pose=pose, axis_angle=pose2rot, state=state,
            grad_landmarks=grad_landmarks, grad_betas=grad_betas, grad_pose=grad_pose, workspace=workspace,
        )  # fmt: skip
        return grad_betas, grad_pose


class PreparedHead:
    """A model prepared for its mesh and its landmarks together.

    Forward reads the landmarks off the vertices. Backward on the CPU, where landmarks and vertices have a gradient,
    adds one to the other and runs once. On a CUDA device, and where only the landmarks have a gradient, the landmarks'
    own kernels compute their part.
    """

    def __init__(self, v_template: Tensor, *constants):
        *tensors, neck_joint = constants
        self.mesh: PreparedMesh = prepared_mesh((v_template, *tensors[:5]))
        self.K, self.J, self.like, self.lbs = self.mesh.K, self.mesh.J, self.mesh.like, self.mesh.lbs
        # Detached: the model ends with the tensors it was made of, so it must not keep them alive.
        self._constants = (*(t if t is None else t.detach() for t in (v_template, *tensors)), neck_joint)
        self._landmarks: PreparedLandmarks | None = None
        self.landmark_state_size = 0
        if self.lbs.cuda:
            self.points, self.landmark_state_size = self.landmarks.points, self.landmarks.state_sizes[True]
        else:
            L, C = checks.landmark_constants(self.like, tuple(tensors[5:]), neck_joint, self.J)
            self.points = C + L
            # Held here: the core reads their memory, and the cache doesn't keep what is made of inference tensors.
            self._corners: Corners = landmark_corners(tuple(tensors[5:]), self.lbs.sizes[0])
            vertices, points, bary = self._corners.by_vertex
            self.lbs = self.lbs.with_landmarks(
                L=L, C=C, neck_joint=neck_joint, vertices=vertices, points=points, bary=bary
            )

    @property
    def landmarks(self) -> PreparedLandmarks:
        made = self._landmarks
        if made is None:
            *tensors, neck_joint = self._constants
            made = self._landmarks = prepared_landmarks(tuple(tensors), neck_joint)
        return made

    def shapes(self, B: int) -> tuple[tuple[int, int, int], ...]:
        """The shapes of vertices, joints and landmarks."""
        return *self.mesh.shapes(B), (B, self.points, 3)

    def forward(self, betas: Tensor, pose: Tensor, pose2rot: bool, keep: bool) -> tuple[tuple, tuple]:
        """(vertices, joints, landmarks) and the states of landmarks (None on the CPU) and mesh."""
        if self.lbs.cuda:
            points, states = self.mesh.forward(betas, pose, pose2rot, keep)
            landmarks, landmark_state = self.landmarks.on_mesh(points[0], states[0], keep)
            return (*points, landmarks), (landmark_state, *states)
        landmarks = betas.new_empty(betas.shape[0], self.points, 3)
        vertices, joints, state = self.lbs.forward(
            betas, pose, self.mesh.v_template, self.mesh.joint_template, pose2rot, keep, landmarks
        )
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
                grad_vertices, grad_joints, betas, pose, self.mesh.joint_template, states[1], pose2rot, *result,
                grad_landmarks=grad_landmarks,
            )  # fmt: skip
            return result
        own = states[:1] if self.lbs.cuda else self.landmarks.forward(betas, pose, pose2rot, True)[1]
        result = self.landmarks.backward((grad_landmarks,), betas, pose, own, pose2rot, wanted)
        if grad_vertices is None and grad_joints is None:
            return result
        added = self.mesh.backward((grad_vertices, grad_joints), betas, pose, states[1:], pose2rot, wanted)
        return _sum(result[0], added[0]), _sum(result[1], added[1])


joint_tree = Cache(_joint_tree)
joint_dirs = Cache(_joint_dirs)
directions = Cache(Directions)
packed_lbs = Cache(PackedLbs)
landmark_corners = Cache(Corners)
prepared_lbs = Cache(PreparedLbs)
prepared_mesh = Cache(PreparedMesh)
prepared_landmarks = Cache(PreparedLandmarks)
prepared_head = Cache(PreparedHead)
