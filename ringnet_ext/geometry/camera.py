"""RingNet's weak-perspective camera.

A camera is (s, tx, ty). A point X of the posed head lands at ``x = s * (X_xy + t)`` in normalised image coordinates:
[-1, 1] spans the square image, x to the right and y **down**. There is no y flip in the projection: a head that
stands upright in the image is turned over by its own global rotation, whose neutral value is half a turn about x
(:data:`UPRIGHT`). In that frame z points away from the viewer.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import torch

from ..ops import batch_rodrigues

Points = TypeVar("Points", np.ndarray, torch.Tensor)

#: Global rotation (axis-angle) of a head that looks straight into RingNet's camera.
UPRIGHT = (math.pi, 0.0, 0.0)

#: Part of the square that training and infer cut which the larger side of the landmarks' box fills; see squares.py.
FILL = 0.8


def project(points: torch.Tensor, camera: torch.Tensor) -> torch.Tensor:
    """Weak-perspective projection.

    Args:
        points: (B, N, 3), metres, in RingNet's frame (y down, z away from the viewer).
        camera: (B, 3), scale in 1/metre, then the translation tx, ty in metres.

    Returns:
        (B, N, 2) normalised image coordinates in [-1, 1], y down.
    """
    return camera[:, None, :1] * (points[..., :2] + camera[:, None, 1:])


def project_to_pixels(vertices: np.ndarray, camera: np.ndarray, size: int) -> np.ndarray:
    """One mesh (V, 3) as :func:`project` sees it by one camera (3,), in a size x size image: x and y in pixels, then
    the depth, (V, 3); what a rasteriser takes."""
    points = np.empty_like(vertices)
    points[:, :2] = (camera[0] * (vertices[:, :2] + camera[1:]) + 1) * (size / 2)
    points[:, 2] = vertices[:, 2]
    return points


def to_pixels(points: Points, size: int) -> Points:
    """Normalised coordinates to pixels of a size x size image; the centre of the first pixel is at 0.5."""
    return (points + 1.0) * (size / 2)


def to_normalised(points: Points, size: int) -> Points:
    """The inverse of :func:`to_pixels`."""
    return points * (2 / size) - 1.0


def yaw_of(global_pose: torch.Tensor) -> torch.Tensor:
    """Yaw (B,) in radians, positive to the subject's left, of (B, 3) axis-angle in RingNet's frame."""
    rotation = batch_rodrigues(global_pose)
    return torch.atan2(rotation[:, 2, 0], -rotation[:, 2, 2])
