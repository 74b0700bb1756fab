"""FLAME's operators, fused: blending, skinning and landmarks in C++ and CUDA, with exact gradients.

The same functions as readable formulas are in :mod:`ringnet_ext.ops.reference`. Common to all:

- float32 and float64, CPU and CUDA (where built with it). Under autocast they run in float32, or float64 if given that.
- Gradients are exact. First derivatives only: a second derivative, a forward-mode one and ``torch.func`` raise, and never
  leave out a term.
- Constants (directions, weights, regressors, barycentric coordinates) are prepared once per model and reused while they
  stay as they are; writes that PyTorch's version counter can't see need :func:`clear_prepared`. A constant that requires
  grad takes the reference's way, differentiated correctly and slower.
- Wrong arguments raise ValueError or TypeError with the argument's name, what was expected and what came.
- Results are bitwise the same run to run, and on the CPU for any number of threads (``torch.set_num_threads``).
- ``torch.compile(fullgraph=True)`` works.
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _checks as checks
from . import _library as _operators
from . import reference
from ._prepared import clear_prepared

__all__ = ["batch_rodrigues", "clear_prepared", "flame_head", "flame_landmarks", "flame_lbs", "vertices2landmarks"]


def _differentiated(*tensors: Tensor | None) -> bool:
    """Whether autograd is to see this call. In forward mode it must, to raise instead of losing tangents."""
    if forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _full_precision(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Under autocast, half-precision arguments in float32."""
    if not torch.is_autocast_enabled(tensors[0].device.type):
        return tensors
    return tuple(t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors)


class _OnlyOnce(torch.autograd.Function):
    """Identity on a gradient, made where a second derivative might be taken of it: raises when one is."""

    @staticmethod
    def forward(ctx, name, gradient, *depends_on):
        ctx.name = name
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx, *_):
        raise NotImplementedError(
            f"{ctx.name} has no second derivative; ringnet_ext.ops.reference.{ctx.name} can be differentiated any number of times"
        )


def _first_derivatives(name: str, gradients: tuple, wanted: tuple, depends_on: tuple) -> tuple:
    """The gradients that were wanted, guarded against being differentiated again where grad mode is on (create_graph)."""
    gradients = tuple(g if w else None for g, w in zip(gradients, wanted))
    if not torch.is_grad_enabled():
        return gradients
    return tuple(None if g is None else _OnlyOnce.apply(name, g, *depends_on) for g in gradients)


def _without_graph(operator, *arguments):
    if not torch.is_grad_enabled():  # the rule in a backward pass, where entering no_grad would be for nothing
        return operator(*arguments)
    with torch.no_grad():
        return operator(*arguments)


class _BatchRodrigues(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rot_vecs):
        ctx.save_for_backward(rot_vecs)
        return _operators.rodrigues_forward(rot_vecs)

    @staticmethod
    def backward(ctx, grad):
        (rot_vecs,) = ctx.saved_tensors
        result = _without_graph(_operators.rodrigues_backward, grad, rot_vecs)
        return _first_derivatives("batch_rodrigues", (result,), (True,), (grad, rot_vecs))[0]


def batch_rodrigues(rot_vecs: Tensor, epsilon: float = 1e-8) -> Tensor:
    """Rotation matrices of axis-angle vectors; exact at every angle, 0 included.

    Args:
        rot_vecs: (N, 3), radians.
        epsilon: accepted for compatibility with smplx; not needed.

    Returns:
        (N, 3, 3).
    """
    (rot_vecs,) = _full_precision(rot_vecs)
    return _BatchRodrigues.apply(rot_vecs) if _differentiated(rot_vecs) else _operators.rodrigues_forward(rot_vecs)


class _FlameLbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *arguments):
        vertices, joints, state = _operators.lbs_forward(*arguments, True)
        *tensors, ctx.pose2rot = arguments
        ctx.save_for_backward(*tensors, state)
        ctx.set_materialize_grads(False)
        return vertices, joints

    @staticmethod
    def backward(ctx, grad_vertices, grad_joints):
        *tensors, state = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        gradients = _without_graph(
            _operators.lbs_backward, grad_vertices, grad_joints, *tensors, state, ctx.pose2rot, wanted
        )
        depends_on = (grad_vertices, grad_joints, *tensors[:3])
        return *_first_derivatives("flame_lbs", gradients, wanted, depends_on), *[None] * 6


def _same_batch(betas: Tensor, pose: Tensor, pose2rot: bool) -> tuple[Tensor, Tensor]:
    """Pose as rows, and a batch of one expanded to the other's."""
    if pose.ndim != 2:
        pose = pose.flatten(1) if pose.ndim > 2 else pose
    if betas.ndim == 2 and pose.ndim == 2 and betas.shape[0] != pose.shape[0]:
        if betas.shape[0] == 1:
            betas = betas.expand(pose.shape[0], -1)
        elif pose.shape[0] == 1:
            pose = pose.expand(betas.shape[0], -1)
    return betas, pose


def flame_lbs(
    betas: Tensor,
    pose: Tensor,
    v_template: Tensor,
    shapedirs: Tensor,
    posedirs: Tensor,
    J_regressor: Tensor,
    parents: Tensor,
    lbs_weights: Tensor,
    pose2rot: bool = True,
) -> tuple[Tensor, Tensor]:
    """Linear blend skinning with shape and pose blend shapes: ``smplx.lbs.lbs``, fused. Any J, V and K.

    Differentiable with respect to betas, pose and v_template.

    Args:
        betas: (B, K) coefficients of ``shapedirs``; a batch of one serves any B, as for ``pose``.
        pose: (B, J*3) axis-angle, radians, or (B, J, 3, 3) rotation matrices where ``pose2rot`` is False.
        v_template: (V, 3) or (B, V, 3), metres.
        shapedirs: (V, 3, K), metres per unit of beta.
        posedirs: ((J-1)*9, V*3), metres per unit of vec(R_j - I), joints 1 to J-1.
        J_regressor: (J, V), joints as weighted sums of vertices.
        parents: (J,) integers, parents before their children, parents[0] = -1.
        lbs_weights: (V, J) skinning weights.
        pose2rot: whether ``pose`` is axis-angle.

    Returns:
        vertices (B, V, 3) and posed joints (B, J, 3), metres.

    Raises:
        ValueError, TypeError: an argument's shape, device, values or dtype; names it.
    """
    betas, pose, v_template = _full_precision(betas, pose, v_template)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (shapedirs, posedirs, J_regressor, lbs_weights)):
        with torch.autocast(betas.device.type, enabled=False):
            return reference.flame_lbs(
                betas, pose, v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights, pose2rot=pose2rot
            )
    betas, pose = _same_batch(betas, pose, pose2rot)
    arguments = (betas, pose, v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights, pose2rot)
    if _differentiated(betas, pose, v_template):
        return _FlameLbs.apply(*arguments)
    return _operators.lbs_forward(*arguments, False)[:2]


class _Vertices2Landmarks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, vertices, *points):
        ctx.save_for_backward(*points)
        ctx.num_vertices = vertices.shape[1]
        return _operators.vertices2landmarks_forward(vertices, *points)

    @staticmethod
    def backward(ctx, grad):
        points = ctx.saved_tensors
        result = _without_graph(_operators.vertices2landmarks_backward, grad, *points, ctx.num_vertices)
        return *_first_derivatives("vertices2landmarks", (result,), (True,), (grad,)), None, None, None


def vertices2landmarks(vertices: Tensor, faces: Tensor, lmk_faces_idx: Tensor, lmk_bary_coords: Tensor) -> Tensor:
    """Points on a mesh, given as faces and barycentric coordinates: ``smplx.lbs.vertices2landmarks``.

    Differentiable with respect to vertices. Faces may change from call to call. An index outside the mesh raises IndexError
    on the CPU; on a CUDA device, where raising would need a synchronisation, its landmark is NaN.

    Args:
        vertices: (B, V, 3).
        faces: (F, 3) vertex indices.
        lmk_faces_idx: (B, L), or (L,) for the same faces in every batch element.
        lmk_bary_coords: (B, L, 3), or (L, 3).

    Returns:
        (B, L, 3).
    """
    vertices, lmk_bary_coords = _full_precision(vertices, lmk_bary_coords)
    if torch.is_grad_enabled() and lmk_bary_coords.requires_grad:
        return reference.vertices2landmarks(vertices, faces, lmk_faces_idx, lmk_bary_coords)
    if lmk_faces_idx.ndim == 1:
        lmk_faces_idx = lmk_faces_idx.expand(vertices.shape[0], -1)
    if lmk_bary_coords.ndim == 2:
        lmk_bary_coords = lmk_bary_coords.expand(vertices.shape[0], -1, -1)
    if _differentiated(vertices, lmk_bary_coords):
        return _Vertices2Landmarks.apply(vertices, faces, lmk_faces_idx, lmk_bary_coords)
    return _operators.vertices2landmarks_forward(vertices, faces, lmk_faces_idx, lmk_bary_coords)


class _FlameLandmarks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *arguments):
        landmarks, state = _operators.landmarks_forward(*arguments, True)
        *tensors, ctx.neck_joint, ctx.pose2rot = arguments
        ctx.save_for_backward(*tensors, state)
        return landmarks

    @staticmethod
    def backward(ctx, grad):
        *tensors, state = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        gradients = _without_graph(
            _operators.landmarks_backward, grad, *tensors, ctx.neck_joint, state, ctx.pose2rot, wanted
        )
        return *_first_derivatives("flame_landmarks", gradients, wanted, (grad, *tensors[:2])), *[None] * 13


def flame_landmarks(
    betas: Tensor,
    pose: Tensor,
    v_template: Tensor,
    shapedirs: Tensor,
    posedirs: Tensor,
    J_regressor: Tensor,
    parents: Tensor,
    lbs_weights: Tensor,
    faces: Tensor,
    lmk_faces_idx: Tensor,
    lmk_bary_coords: Tensor,
    contour_faces_idx: Tensor | None = None,
    contour_bary_coords: Tensor | None = None,
    neck_joint: int = 1,
    pose2rot: bool = True,
) -> Tensor:
    """3D landmarks of the posed mesh without the mesh: C contour points on the visible side, then L static ones.

    Equals :func:`flame_lbs` followed by :func:`vertices2landmarks`, at a small part of the time. The row of the contour table is
    chosen by the yaw of the head, the product of the rotations from the root to ``neck_joint``
    (see :func:`ringnet_ext.ops.reference.contour_rows`); no gradient flows through the choice.

    Differentiable with respect to betas, pose and v_template. A template that requires grad or has a batch takes the way
    through the mesh.

    Args:
        betas, pose, v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights, pose2rot: as in :func:`flame_lbs`.
        faces: (F, 3) vertex indices.
        lmk_faces_idx: (L,) faces of the static landmarks.
        lmk_bary_coords: (L, 3).
        contour_faces_idx: (79, C), or None for no contour (C = 0).
        contour_bary_coords: (79, C, 3).
        neck_joint: the joint that turns the head.

    Returns:
        (B, C + L, 3), metres.

    Raises:
        ValueError, TypeError: an argument's shape, device, values or dtype; names it.
    """
    betas, pose, v_template = _full_precision(betas, pose, v_template)
    model = (v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights)
    embedding = (faces, lmk_faces_idx, lmk_bary_coords, contour_faces_idx, contour_bary_coords)
    constants = (shapedirs, posedirs, J_regressor, lbs_weights, lmk_bary_coords, contour_bary_coords)
    if v_template.ndim == 3 or v_template.requires_grad or _differentiated(*constants):
        return flame_head(betas, pose, *model, *embedding, neck_joint, pose2rot)[2]
    betas, pose = _same_batch(betas, pose, pose2rot)
    arguments = (betas, pose, *model, *embedding, neck_joint, pose2rot)
    if _differentiated(betas, pose):
        return _FlameLandmarks.apply(*arguments)
    return _operators.landmarks_forward(*arguments, False)[0]


class _FlameHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *arguments):
        vertices, joints, landmarks, *states = _operators.head_forward(*arguments, True)
        *tensors, ctx.neck_joint, ctx.pose2rot = arguments
        ctx.save_for_backward(*tensors, *states)
        ctx.set_materialize_grads(False)
        return vertices, joints, landmarks

    @staticmethod
    def backward(ctx, *grads):
        *tensors, landmark_state, state = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        gradients = _without_graph(
            _operators.head_backward, *grads, *tensors, ctx.neck_joint, landmark_state, state, ctx.pose2rot, wanted
        )
        return *_first_derivatives("flame_head", gradients, wanted, (*grads, *tensors[:2])), *[None] * 13


def flame_head(
    betas: Tensor,
    pose: Tensor,
    v_template: Tensor,
    shapedirs: Tensor,
    posedirs: Tensor,
    J_regressor: Tensor,
    parents: Tensor,
    lbs_weights: Tensor,
    faces: Tensor,
    lmk_faces_idx: Tensor,
    lmk_bary_coords: Tensor,
    contour_faces_idx: Tensor | None = None,
    contour_bary_coords: Tensor | None = None,
    neck_joint: int = 1,
    pose2rot: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`flame_lbs` and :func:`flame_landmarks` as one operator: for a single head, each call's overhead counts.

    Args, errors and differentiability: as of :func:`flame_landmarks`.

    Returns:
        vertices (B, V, 3), joints (B, J, 3) and landmarks (B, C + L, 3), metres.
    """
    betas, pose, v_template = _full_precision(betas, pose, v_template)
    model = (v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights)
    embedding = (faces, lmk_faces_idx, lmk_bary_coords, contour_faces_idx, contour_bary_coords)
    constants = (shapedirs, posedirs, J_regressor, lbs_weights, lmk_bary_coords, contour_bary_coords)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in constants):
        with torch.autocast(betas.device.type, enabled=False):
            return reference.flame_head(betas, pose, *model, *embedding, neck_joint, pose2rot)
    betas, pose = _same_batch(betas, pose, pose2rot)
    if v_template.ndim == 3 or v_template.requires_grad:
        vertices, joints = flame_lbs(betas, pose, *model, pose2rot=pose2rot)
        index, bary = reference.landmark_points(
            pose, parents, lmk_faces_idx, lmk_bary_coords, contour_faces_idx, contour_bary_coords, neck_joint, pose2rot
        )
        return vertices, joints, vertices2landmarks(vertices, faces, index, bary)
    arguments = (betas, pose, *model, *embedding, neck_joint, pose2rot)
    if _differentiated(betas, pose):
        return _FlameHead.apply(*arguments)
    return _operators.head_forward(*arguments, False)[:3]
