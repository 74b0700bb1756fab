"""How a head is turned, from its landmarks alone."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..flame import FLAME


def estimate_yaw(landmarks: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Yaw (N,) in radians, positive to the subject's left, from (N, 68, 2) landmarks (y down) and confidences (N, 68).

    An affine camera is fitted to the mean head's 51 inner points, which belong to the head as the contour does not.
    NaN where fewer than 12 of them are known.
    """
    points = _mean_points()
    weight = confidence[:, 17:].astype(np.float64)
    normal = np.einsum("nl,li,lj->nij", weight, points, points) + 1e-12 * np.eye(4)
    right = np.einsum("nl,li,nlk->nik", weight, points, landmarks[:, 17:].astype(np.float64))
    camera = np.linalg.solve(normal, right)[:, :3]  # (N, 3, 2): the first two rows of a scaled rotation
    rows = camera / np.maximum(np.linalg.norm(camera, axis=1, keepdims=True), 1e-12)
    facing = np.cross(rows[..., 0], rows[..., 1])
    return np.where((weight > 0).sum(1) < 12, np.nan, np.arctan2(facing[:, 0], -facing[:, 2]))


@lru_cache(1)
def _mean_points() -> np.ndarray:
    """(51, 4): the mean head's inner landmarks about their centre, metres, and a constant of their size."""
    points = FLAME().landmarks()[0, 17:].numpy().astype(np.float64)
    return np.column_stack([points - points.mean(0), np.full(len(points), 0.05)])
