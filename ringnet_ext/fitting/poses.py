"""The pose and the camera to begin with, in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..flame import FLAME
from ..geometry.camera import UPRIGHT
from ..geometry.rotations import axis_angle_from_matrix, matrix_from_axis_angle
from .cameras import Camera
from .problem import Columns, LandmarkResiduals

_TRIALS = 4


def posed(
    flame: FLAME,
    lens: Camera,
    columns: Columns,
    values: Tensor,
    target: Tensor,
    weight: Tensor,
    points: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """With the rotation and the camera that bring the mean head's landmarks nearest to the target, in closed form;
    which contour there is depends on the rotation, hence several times."""
    residuals = LandmarkResiduals(flame, lens, columns, values, target, weight, None, points)
    values, known = values.clone(), torch.where(weight[..., None] > 0, target, 0)
    for _ in range(_TRIALS):
        now = residuals.landmarks(values)
        turn, camera = lens.nearest(now, known, weight, columns.take(values, lens.names))
        pose = matrix_from_axis_angle(values[:, columns["global_pose"]].contiguous())
        values[:, columns["global_pose"]] = _near_upright(axis_angle_from_matrix(turn @ pose))
        columns.put(values, lens.names, camera)
    # The landmarks turned about the root joint, not about the origin; the camera follows.
    now = residuals.landmarks(values)
    columns.put(values, lens.names, lens.nearest(now, known, weight, columns.take(values, lens.names), turned=False)[1])
    return values


def _near_upright(vector: Tensor) -> Tensor:
    """The same rotations; of the two vectors of each the one that is nearer to UPRIGHT, if it isn't far from half a
    turn: a whole turn is where axis-angle vectors tell rotations apart no longer."""
    length = vector.norm(dim=1, keepdim=True)
    other = vector * (1 - 2 * math.pi / length.clamp_min(1e-6))
    upright = vector.new_tensor(UPRIGHT)
    turned_over = (vector - upright).norm(dim=1, keepdim=True) > (other - upright).norm(dim=1, keepdim=True)
    return torch.where(turned_over & (length > 0.75 * math.pi), other, vector)
