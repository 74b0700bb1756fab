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

from . import _autograd as autograd
from . import _direct as direct
from . import _library as operators
from . import reference
from ._prepared import clear_prepared

__all__ = ["batch_rodrigues", "clear_prepared", "flame_head", "flame_landmarks", "flame_lbs", "vertices2landmarks"]


def _require_tensors(**arguments: object) -> None:
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")


def _full_precision(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Under autocast, half-precision arguments in float32."""
    if not torch.is_autocast_enabled(tensors[0].device.type):
        return tensors
    return tuple(t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors)


def batch_rodrigues(rot_vecs: Tensor, epsilon: float = 1e-8) -> Tensor:
    """Rotation matrices of axis-angle vectors; exact at every angle, 0 included.

    Args:
        rot_vecs: (N, 3), radians.
        epsilon: accepted for compatibility with smplx; not needed.

    Returns:
        (N, 3, 3).
    """
    matrices = direct.rodrigues(rot_vecs)
    if matrices is not None:
        return matrices
    _require_tensors(rot_vecs=rot_vecs)
    (rot_vecs,) = _full_precision(rot_vecs)
    if autograd.differentiated(rot_vecs):
        return autograd.BatchRodrigues.apply(rot_vecs)
    return operators.rodrigues_forward(rot_vecs)


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
    constants = (v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights)
    outputs = direct.call(direct.LBS, betas, pose, constants, (), pose2rot)
    if outputs is not None:
        return outputs
    _require_tensors(
        betas=betas, pose=pose, v_template=v_template, shapedirs=shapedirs, posedirs=posedirs, J_regressor=J_regressor,
        parents=parents, lbs_weights=lbs_weights,
    )  # fmt: skip
    betas, pose, v_template = _full_precision(betas, pose, v_template)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (shapedirs, posedirs, J_regressor, lbs_weights)):
        with torch.autocast(betas.device.type, enabled=False):
            return reference.flame_lbs(
                betas, pose, v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights, pose2rot=pose2rot
            )
    betas, pose = _same_batch(betas, pose, pose2rot)
    arguments = (betas, pose, v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights, pose2rot)
    if autograd.differentiated(betas, pose, v_template):
        return autograd.FlameLbs.apply(*arguments)
    return operators.lbs_forward(*arguments, False)[:2]


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
    _require_tensors(vertices=vertices, faces=faces, lmk_faces_idx=lmk_faces_idx, lmk_bary_coords=lmk_bary_coords)
    vertices, lmk_bary_coords = _full_precision(vertices, lmk_bary_coords)
    if torch.is_grad_enabled() and lmk_bary_coords.requires_grad:
        return reference.vertices2landmarks(vertices, faces, lmk_faces_idx, lmk_bary_coords)
    if lmk_faces_idx.ndim == 1:
        lmk_faces_idx = lmk_faces_idx.expand(vertices.shape[0], -1)
    if lmk_bary_coords.ndim == 2:
        lmk_bary_coords = lmk_bary_coords.expand(vertices.shape[0], -1, -1)
    if autograd.differentiated(vertices, lmk_bary_coords):
        return autograd.Vertices2Landmarks.apply(vertices, faces, lmk_faces_idx, lmk_bary_coords)
    return operators.vertices2landmarks_forward(vertices, faces, lmk_faces_idx, lmk_bary_coords)


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
    model = (v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights)
    embedding = (faces, lmk_faces_idx, lmk_bary_coords, contour_faces_idx, contour_bary_coords)
    outputs = direct.call(direct.LANDMARKS, betas, pose, model + embedding, (neck_joint,), pose2rot)
    if outputs is not None:
        return outputs[0]
    _require_tensors(
        betas=betas, pose=pose, v_template=v_template, shapedirs=shapedirs, posedirs=posedirs, J_regressor=J_regressor,
        parents=parents, lbs_weights=lbs_weights, faces=faces, lmk_faces_idx=lmk_faces_idx, lmk_bary_coords=lmk_bary_coords,
    )  # fmt: skip
    betas, pose, v_template = _full_precision(betas, pose, v_template)
    model = (v_template, *model[1:])
    constants = (shapedirs, posedirs, J_regressor, lbs_weights, lmk_bary_coords, contour_bary_coords)
    if v_template.ndim == 3 or v_template.requires_grad or autograd.differentiated(*constants):
        return flame_head(betas, pose, *model, *embedding, neck_joint, pose2rot)[2]
    betas, pose = _same_batch(betas, pose, pose2rot)
    arguments = (betas, pose, *model, *embedding, neck_joint, pose2rot)
    if autograd.differentiated(betas, pose):
        return autograd.FlameLandmarks.apply(*arguments)
    return operators.landmarks_forward(*arguments, False)[0]


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
    """:func:`flame_lbs` and :func:`flame_landmarks` as one operator: where there is a mesh, its landmarks cost little more.

    Args, errors and differentiability: as of :func:`flame_landmarks`.

    Returns:
        vertices (B, V, 3), joints (B, J, 3) and landmarks (B, C + L, 3), metres.
    """
    model = (v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights)
    embedding = (faces, lmk_faces_idx, lmk_bary_coords, contour_faces_idx, contour_bary_coords)
    outputs = direct.call(direct.HEAD, betas, pose, model + embedding, (neck_joint,), pose2rot)
    if outputs is not None:
        return outputs
    _require_tensors(
        betas=betas, pose=pose, v_template=v_template, shapedirs=shapedirs, posedirs=posedirs, J_regressor=J_regressor,
        parents=parents, lbs_weights=lbs_weights, faces=faces, lmk_faces_idx=lmk_faces_idx, lmk_bary_coords=lmk_bary_coords,
    )  # fmt: skip
    betas, pose, v_template = _full_precision(betas, pose, v_template)
    model = (v_template, *model[1:])
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
    if autograd.differentiated(betas, pose):
        return autograd.FlameHead.apply(*arguments)
    return operators.head_forward(*arguments, False)[:3]
