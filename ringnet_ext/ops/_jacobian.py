"""Landmarks with their derivatives (temporary home of the call until the operators share a mechanism)."""

import torch
from torch import Tensor

from ._prepared import _address, launch, prepared_landmarks


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
    model = (v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights)
    embedding = (faces, lmk_faces_idx, lmk_bary_coords, contour_faces_idx, contour_bary_coords)
    prepared = prepared_landmarks(model + embedding, neck_joint)
    betas, pose = betas.detach().contiguous(), pose.detach().flatten(1).contiguous()
    B, N, K, J = betas.shape[0], prepared.points, prepared.K, prepared.J
    landmarks = betas.new_empty((B, N, 3))
    d_betas, d_pose = betas.new_empty((B, N, 3, K)), betas.new_empty((B, N, 3, pose.shape[1]))
    size = prepared.core.jacobian_workspace_size(prepared.cuda, B, *prepared.landmark_sizes)
    workspace = betas.new_empty(size) if size else None
    launch(
        prepared.core.jacobian, prepared.device, B, betas.data_ptr(), betas.stride(0), pose.data_ptr(), pose.stride(0), pose2rot,
        landmarks.data_ptr(), d_betas.data_ptr(), d_pose.data_ptr(), _address(workspace),
    )  # fmt: skip
    return landmarks, d_betas, d_pose
