"""The operators as functions: what there is to call, and to read about."""

import torch
from torch import Tensor

from ._checks import require_dtype
from ._jacobian import JACOBIAN
from ._landmarks import HEAD, LANDMARKS
from ._lbs import LBS
from ._points import POINTS
from ._rodrigues import RODRIGUES


def batch_rodrigues(rot_vecs: Tensor, epsilon: float = 1e-8, dtype: torch.dtype | None = None) -> Tensor:
    """Rotation matrices of axis-angle vectors; exact at every angle, 0 included.

    Args:
        rot_vecs: (N, 3), radians.
        epsilon, dtype: accepted for compatibility with smplx and DECA; not needed. The result has the type of
            ``rot_vecs``.

    Returns:
        (N, 3, 3).
    """
    if dtype is not None:
        require_dtype(dtype)
    return RODRIGUES(rot_vecs)


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
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Linear blend skinning with shape and pose blend shapes: ``smplx.lbs.lbs``, fused. Any J, V and K.

    Args:
        betas: (B, K) coefficients of ``shapedirs``; a batch of one serves any B, as for ``pose``.
        pose: (B, J*3) axis-angle, radians, or (B, J, 3, 3) rotation matrices where ``pose2rot`` is False.
        v_template: (V, 3), (1, V, 3) or (B, V, 3), metres.
        shapedirs: (V, 3, K), metres per unit of beta.
        posedirs: ((J-1)*9, V*3), metres per unit of vec(R_j - I), joints 1 to J-1.
        J_regressor: (J, V), joints as weighted sums of vertices.
        parents: (J,) integers, parents before their children, parents[0] = -1.
        lbs_weights: (V, J) skinning weights.
        pose2rot: whether ``pose`` is axis-angle.
        dtype: accepted for compatibility with DECA and others; not needed. Results have the type of ``shapedirs``.

    Returns:
        vertices (B, V, 3) and posed joints (B, J, 3), metres.

    Raises:
        ValueError, TypeError: an argument's shape, device, values or dtype; names it.
    """
    if dtype is not None:
        require_dtype(dtype)
    constants = (v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights)
    return LBS(betas, pose, constants, (), pose2rot)


def vertices2landmarks(vertices: Tensor, faces: Tensor, lmk_faces_idx: Tensor, lmk_bary_coords: Tensor) -> Tensor:
    """Points on a mesh, given as faces and barycentric coordinates: ``smplx.lbs.vertices2landmarks``.

    Faces may change from call to call. An index outside the mesh raises ValueError on the CPU; on a CUDA device, where
    raising would need a synchronisation, its landmark is NaN.

    Args:
        vertices: (B, V, 3).
        faces: (F, 3) vertex indices.
        lmk_faces_idx: (B, L), or (L,) for the same faces in every batch element.
        lmk_bary_coords: (B, L, 3), or (L, 3).

    Returns:
        (B, L, 3).
    """
    return POINTS(vertices, faces, lmk_faces_idx, lmk_bary_coords)


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

    Equals :func:`flame_lbs` followed by :func:`vertices2landmarks`, at a small part of the time. The row of the contour
    table is chosen by the yaw of the head, the product of the rotations from the root to ``neck_joint``
    (see :func:`ringnet_ext.ops.reference.contour_rows`); no gradient flows through the choice.

    A template that requires grad or has a batch takes the way through the mesh.

    Args:
        betas, pose, v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights, pose2rot: as in
            :func:`flame_lbs`.
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
    return LANDMARKS(betas, pose, model + embedding, (neck_joint,), pose2rot)[0]


def flame_landmarks_jacobian(
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
    """:func:`flame_landmarks` with all their derivatives by betas and pose, in one pass: what a solver of least squares
    asks for.

    Any points of the mesh will do: triangles and barycentric coordinates of one's own, without a contour. Derivatives
    are taken at the row of the contour table that the pose picks. They cannot be differentiated further.

    Args and errors: as of :func:`flame_landmarks`; v_template is (V, 3). A constant that requires grad is refused.

    Returns:
        landmarks (B, C + L, 3), metres; d_betas (B, C + L, 3, K), metres per unit of beta; d_pose (B, C + L, 3, 3J),
        metres per radian, or (B, C + L, 3, 9J) by the elements of the matrices where ``pose2rot`` is False.
    """
    model = (v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights)
    embedding = (faces, lmk_faces_idx, lmk_bary_coords, contour_faces_idx, contour_bary_coords)
    return JACOBIAN(betas, pose, model + embedding, (neck_joint,), pose2rot)


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
    """:func:`flame_lbs` and :func:`flame_landmarks` as one operator: where there is a mesh, its landmarks cost little
    more.

    Args and errors: as of :func:`flame_landmarks`.

    Returns:
        vertices (B, V, 3), joints (B, J, 3) and landmarks (B, C + L, 3), metres.
    """
    model = (v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights)
    embedding = (faces, lmk_faces_idx, lmk_bary_coords, contour_faces_idx, contour_bary_coords)
    return HEAD(betas, pose, model + embedding, (neck_joint,), pose2rot)
