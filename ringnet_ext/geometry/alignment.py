"""Bring corresponding points into line."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


def similarity_align(source: Tensor, target: Tensor) -> Tensor:
    """Least-squares similarity alignment (Umeyama 1991) of (B, N, 3) points to corresponding (B, N, 3) points."""
    source_mean, target_mean = source.mean(1, keepdim=True), target.mean(1, keepdim=True)
    a, b = source - source_mean, target - target_mean
    u, singular, vt = torch.linalg.svd(b.transpose(1, 2) @ a)
    sign = torch.ones_like(singular)
    sign[:, -1] = torch.linalg.det(u @ vt).sign()
    rotation = (u * sign[:, None]) @ vt
    scale = (singular * sign).sum(1) / a.square().sum((1, 2)).clamp_min(1e-30)
    return scale[:, None, None] * (a @ rotation.transpose(1, 2)) + target_mean


class Similarity(NamedTuple):
    """``x -> scale * rotation @ x + translation``, float64. A rotation whose determinant is -1 mirrors too."""

    scale: float
    rotation: np.ndarray  # (3, 3)
    translation: np.ndarray  # (3,)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) -> (N, 3)."""
        return self.scale * points @ self.rotation.T + self.translation

    def back(self, points: np.ndarray) -> np.ndarray:
        """The inverse."""
        return (points - self.translation) @ self.rotation / self.scale


def procrustes(source: np.ndarray, target: np.ndarray, scale: float | None = None) -> Similarity:
    """The similarity that brings (N, 3) points closest to corresponding (N, 3) points, by least squares; of that scale,
    if it is given. Where a mirror image comes closer still, it mirrors."""
    a, b = source - source.mean(0), target - target.mean(0)
    u, singular, vt = np.linalg.svd(b.T @ a)
    rotation = u @ vt
    if scale is None:
        scale = float(singular.sum() / np.square(a).sum())
    return Similarity(scale, rotation, target.mean(0) - scale * rotation @ source.mean(0))
