"""Bring corresponding points into line."""

from __future__ import annotations

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
