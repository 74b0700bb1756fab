"""Rotations as axis-angle vectors, as matrices, and as the six numbers of Zhou et al. (2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import batch_rodrigues


def matrix_from_axis_angle(vectors: Tensor) -> Tensor:
    """(..., 3) radians -> (..., 3, 3)."""
    return batch_rodrigues(vectors.reshape(-1, 3)).reshape(*vectors.shape[:-1], 3, 3)


def axis_angle_from_matrix(matrices: Tensor) -> Tensor:
    """(..., 3, 3) -> (..., 3) radians, at most pi long; at pi the sign is arbitrary. Accurate at all angles."""
    m = [[matrices[..., i, j] for j in range(3)] for i in range(3)]
    # Four times the outer product of the unit quaternion (w, x, y, z) with itself; the longest row is the most accurate
    w, x, y, z = (
        1 + m[0][0] + m[1][1] + m[2][2],
        1 + m[0][0] - m[1][1] - m[2][2],
        1 - m[0][0] + m[1][1] - m[2][2],
        1 - m[0][0] - m[1][1] + m[2][2],
    )
    wx, wy, wz = m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1]
    xy, xz, yz = m[1][0] + m[0][1], m[0][2] + m[2][0], m[2][1] + m[1][2]
    rows = [w, wx, wy, wz], [wx, x, xy, xz], [wy, xy, y, yz], [wz, xz, yz, z]
    outer = torch.stack([torch.stack(row, -1) for row in rows], -2)
    longest = torch.stack([w, x, y, z], -1).argmax(-1)[..., None, None].expand(*matrices.shape[:-2], 1, 4)
    quaternion = torch.nn.functional.normalize(outer.gather(-2, longest)[..., 0, :], dim=-1)
    quaternion = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    real, imaginary = quaternion[..., :1], quaternion[..., 1:]
    length = imaginary.norm(dim=-1, keepdim=True)
    small = length < 1e-4
    # angle / sin(angle / 2), whose series at 0 is 2 (1 + length^2 / 6)
    factor = torch.where(small, 2 + length**2 / 3, 2 * torch.atan2(length, real) / torch.where(small, 1, length))
    return factor * imaginary


def six_from_matrix(matrices: Tensor) -> Tensor:
    """(..., 3, 3) -> (..., 6), the first two columns, one after the other; for two rows, give the transpose."""
    return matrices[..., :2].transpose(-1, -2).flatten(-2)


def matrix_from_six(numbers: Tensor) -> Tensor:
    """(..., 6), two columns of any length and angle -> the rotation (..., 3, 3) that Gram-Schmidt makes of them."""
    if numbers.shape[-1] != 6:
        raise ValueError(f"numbers: expected shape (..., 6), got {tuple(numbers.shape)}")
    first, second = numbers[..., :3], numbers[..., 3:]
    x = torch.nn.functional.normalize(first, dim=-1)
    y = torch.nn.functional.normalize(second - (x * second).sum(-1, keepdim=True) * x, dim=-1)
    return torch.stack([x, y, torch.linalg.cross(x, y)], dim=-1)
