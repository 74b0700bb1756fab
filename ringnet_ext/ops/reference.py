"""The operators as plain PyTorch: the formulas to read, and the ground truth of the tests.

Any floating dtype, any device, differentiable any number of times. The fused operators in :mod:`ringnet_ext.ops` take
the same arguments and give the same results, faster; they check their arguments, these functions leave that to PyTorch.

Linear blend skinning is that of SMPL (Loper et al., 2015) and FLAME (Li et al., 2017).
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = [
    "batch_rodrigues",
    "contour_rows",
    "flame_head",
    "flame_landmarks",
    "flame_lbs",
    "landmark_points",
    "vertices2landmarks",
]

_SERIES_TERMS = 10  # x^2 < 1: the first term left out is below 1/(2 * 10 + 1)!, beyond float64


def _polynomial(x: Tensor, coefficients: list[float]) -> Tensor:
    result = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        result = result * x + c
    return result


def batch_rodrigues(rot_vecs: Tensor, epsilon: float = 1e-8) -> Tensor:
    """Rotation matrices of axis-angle vectors.

    R = I + sin(x)/x K + (1 - cos x)/x^2 K^2, where x = ``|r|`` and K is the cross product matrix of r. Both factors are
    smooth functions of x^2; below 1 they are summed as series, so values and derivatives of any order are right at 0
    too.

    Args:
        rot_vecs: (N, 3), radians.
        epsilon: accepted for compatibility with smplx; not needed.

    Returns:
        (N, 3, 3).
    """
    x2 = (rot_vecs * rot_vecs).sum(-1)
    small = x2 < 1
    # Each branch sees only arguments that it can take: the unused one would otherwise send NaN into the gradient.
    near, far = torch.where(small, x2, 0), torch.where(small, 1, x2)
    angle = far.sqrt()
    series = [(-1.0) ** n for n in range(_SERIES_TERMS)]
    sin_near = _polynomial(near, [sign / math.factorial(2 * n + 1) for n, sign in enumerate(series)])
    cos_near = _polynomial(near, [sign / math.factorial(2 * n + 2) for n, sign in enumerate(series)])
    a = torch.where(small, sin_near, angle.sin() / angle)[:, None, None]
    b = torch.where(small, cos_near, (1 - angle.cos()) / far)[:, None, None]
    x, y, z = rot_vecs.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).view(-1, 3, 3)
    identity = torch.eye(3, dtype=rot_vecs.dtype, device=rot_vecs.device)
    return identity + a * cross + b * (cross @ cross)


def _rotations(pose: Tensor, num_joints: int, pose2rot: bool) -> Tensor:
    batch = pose.shape[0]
    if pose2rot:
        pose = batch_rodrigues(pose.reshape(-1, 3))
    return pose.reshape(batch, num_joints, 3, 3)


def _down_the_tree(matrices: Tensor, parents: Tensor) -> Tensor:
    """The product of the joints' matrices (B, J, n, n) from the root to each joint. Reads no value of the tree: it may
    be traced."""
    one = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device).expand(
        matrices.shape[0], 1, -1, -1
    )
    product = torch.cat([one, matrices], dim=1)  # 0 stands above the root
    above = pad(parents.to(matrices.device).long() + 1, (1, 0))
    for _ in range((len(parents) - 1).bit_length()):  # twice as far up every time
        product, above = product[:, above] @ product, above[above]
    return product[:, 1:]


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
    """Linear blend skinning with shape and pose blend shapes; the arguments of ``smplx.lbs.lbs``.

    Args:
        betas: (B, K) coefficients of ``shapedirs``.
        pose: (B, J*3) axis-angle, radians, or (B, J, 3, 3) rotation matrices where ``pose2rot`` is False.
        v_template: (V, 3) or (B, V, 3), metres.
        shapedirs: (V, 3, K), metres per unit of beta.
        posedirs: ((J-1)*9, V*3), metres per unit of vec(R_j - I), joints 1 to J-1.
        J_regressor: (J, V), joints as weighted sums of vertices.
        parents: (J,), parents[0] = -1.
        lbs_weights: (V, J) skinning weights.
        pose2rot: whether ``pose`` is axis-angle.

    Returns:
        vertices (B, V, 3) and posed joints (B, J, 3), metres.
    """
    num_joints, num_vertices = J_regressor.shape
    batch = max(betas.shape[0], pose.shape[0])
    rotations = _rotations(pose, num_joints, pose2rot).expand(batch, -1, -1, -1)

    shaped = v_template + torch.einsum("bk,vck->bvc", betas, shapedirs)
    joints = torch.einsum("jv,bvc->bjc", J_regressor, shaped).expand(batch, -1, -1)
    identity = torch.eye(3, dtype=rotations.dtype, device=rotations.device)
    pose_feature = (rotations[:, 1:] - identity).flatten(1)
    posed = shaped + (pose_feature @ posedirs).view(batch, num_vertices, 3)

    # From the joint's own frame to its parent's, and, multiplied, to the world's.
    origin = torch.zeros_like(joints[:, :1])
    offsets = joints - torch.cat([origin, joints], 1)[:, parents.long() + 1]
    bottom = torch.tensor([0, 0, 0, 1], dtype=joints.dtype, device=joints.device).expand(batch, num_joints, 1, 4)
    world = _down_the_tree(torch.cat([torch.cat([rotations, offsets[..., None]], -1), bottom], -2), parents)
    rotation, posed_joints = world[..., :3, :3], world[..., :3, 3]

    # Relative to the rest pose: a vertex at the joint's rest position goes to the posed joint.
    translation = posed_joints - (rotation @ joints[..., None])[..., 0]
    transforms = torch.cat([rotation, translation[..., None]], dim=-1)  # (B, J, 3, 4)
    blended = torch.einsum("vj,bjrc->bvrc", lbs_weights, transforms)
    vertices = (blended[..., :3] @ posed[..., None])[..., 0] + blended[..., 3]
    return vertices, posed_joints


def vertices2landmarks(vertices: Tensor, faces: Tensor, lmk_faces_idx: Tensor, lmk_bary_coords: Tensor) -> Tensor:
    """Points on a mesh, given as faces and barycentric coordinates.

    Args:
        vertices: (B, V, 3).
        faces: (F, 3) vertex indices.
        lmk_faces_idx: (B, L), or (L,) for the same faces in every batch element.
        lmk_bary_coords: (B, L, 3), or (L, 3).

    Returns:
        (B, L, 3).
    """
    batch = vertices.shape[0]
    index = faces[lmk_faces_idx].expand(batch, -1, -1)  # (B, L, 3)
    element = torch.arange(batch, device=vertices.device)[:, None, None]
    return (vertices[element, index] * lmk_bary_coords[..., None]).sum(-2)


def contour_rows(rotation: Tensor) -> Tensor:
    """Row of the 79-row contour table for each head rotation, (B, 3, 3) -> (B,) int64.

    The third row of the rotation is the direction to the camera in the head's frame, up to the sign that tells the y-up
    frame (face towards +z) from RingNet's y-down frame (face towards -z); yaw = atan(-R20 / R22) is therefore right in
    both frames, and in-plane roll leaves it unchanged. It is positive when the face is turned to the subject's left
    (+x). Row 0 is frontal, 1..39 are +1..+39 degrees, 40..78 are -1..-39; beyond 39 degrees the last row is used.
    """
    r20, r22 = rotation[:, 2, 0], rotation[:, 2, 2]
    degrees = torch.atan2(torch.where(r22 < 0, r20, -r20), r22.abs()) * (180 / math.pi)
    return contour_rows_of_yaw(degrees)


def contour_rows_of_yaw(degrees: Tensor) -> Tensor:
    """The same for yaws in degrees, of any shape."""
    rounded = degrees.nan_to_num(0.0).clamp(-39, 39).round().long()
    return torch.where(rounded < 0, 39 - rounded, rounded)


def landmark_points(
    pose: Tensor,
    parents: Tensor,
    lmk_faces_idx: Tensor,
    lmk_bary_coords: Tensor,
    contour_faces_idx: Tensor | None,
    contour_bary_coords: Tensor | None,
    neck_joint: int,
    pose2rot: bool,
) -> tuple[Tensor, Tensor]:
    """The faces (B, C + L) and barycentric coordinates (B, C + L, 3) of each batch element's landmarks."""
    batch = pose.shape[0]
    index, bary = lmk_faces_idx.expand(batch, -1), lmk_bary_coords.expand(batch, -1, -1)
    if contour_faces_idx is not None and contour_bary_coords is not None:
        rotations = _rotations(pose.detach(), len(parents), pose2rot)
        row = contour_rows(_down_the_tree(rotations, parents)[:, neck_joint])
        index = torch.cat([contour_faces_idx[row], index], dim=1)
        bary = torch.cat([contour_bary_coords[row], bary], dim=1)
    return index, bary


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
    """3D landmarks of the posed mesh: C contour points on the visible side, then L static ones.

    The row of the contour table is chosen by the yaw of the head, the product of the rotations from the root to
    ``neck_joint`` (see :func:`contour_rows`). No gradient flows through the choice.

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
    """
    model = (v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights)
    embedding = (faces, lmk_faces_idx, lmk_bary_coords, contour_faces_idx, contour_bary_coords)
    return flame_head(betas, pose, *model, *embedding, neck_joint, pose2rot)[2]


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
    """:func:`flame_landmarks` and all their derivatives, from one backward pass for each of their coordinates. Args: as
    there.

    Returns:
        landmarks (B, C + L, 3), d_betas (B, C + L, 3, K) and d_pose (B, C + L, 3, 3J), or (B, C + L, 3, 9J) for
        matrices.
    """
    model = (v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights)
    embedding = (faces, lmk_faces_idx, lmk_bary_coords, contour_faces_idx, contour_bary_coords)
    B = betas.shape[0]
    with torch.enable_grad():
        betas, pose = betas.detach().requires_grad_(), pose.detach().flatten(1).requires_grad_()
        points = flame_landmarks(
            betas, pose if pose2rot else pose.unflatten(1, (-1, 3, 3)), *model, *embedding, neck_joint, pose2rot
        )
        rows = [
            torch.autograd.grad(column.sum(), (betas, pose), retain_graph=True)
            for column in points.flatten(1).unbind(1)
        ]
    derivatives = []
    for i, t in enumerate((betas, pose)):
        columns = torch.stack([row[i] for row in rows], 1) if rows else t.new_zeros(B, 0, t.shape[1])
        derivatives.append(columns.view(B, points.shape[1], 3, t.shape[1]))
    d_betas, d_pose = derivatives
    return points.detach(), d_betas, d_pose


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
    """The mesh and its landmarks.

    Args: as in :func:`flame_landmarks`.

    Returns:
        vertices (B, V, 3), joints (B, J, 3) and landmarks (B, C + L, 3), metres.
    """
    vertices, joints = flame_lbs(
        betas, pose, v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights, pose2rot=pose2rot
    )
    index, bary = landmark_points(
        pose, parents, lmk_faces_idx, lmk_bary_coords, contour_faces_idx, contour_bary_coords, neck_joint, pose2rot
    )
    batch = vertices.shape[0]
    return vertices, joints, vertices2landmarks(vertices, faces, index.expand(batch, -1), bary.expand(batch, -1, -1))
