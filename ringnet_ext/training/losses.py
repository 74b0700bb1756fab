"""RingNet's losses (Sanyal et al., CVPR 2019, section 3.3)."""

from __future__ import annotations

import torch


def ring_shape_loss(shape: torch.Tensor, margin: float = 0.5) -> torch.Tensor:
    """Shape consistency around the ring (eq. 4, with the means of the authors' later code).

    Every pair (i, j) of the R - 1 images of one person should be closer to each other than i is to the image of
    somebody else, by a margin: ``relu(margin + |b_i - b_j|^2 - |b_i - b_R|^2)``, i = j included, summed over the pairs,
    divided by (R - 1)^2, averaged over the rings.

    Args:
        shape: (rings, R, S) shape coefficients; the last element of each ring is another person.
        margin: in squared coefficient units.

    Returns:
        A scalar.
    """
    same, other = shape[:, :-1], shape[:, -1:]
    between_same = (same[:, :, None] - same[:, None, :]).square().sum(-1)
    to_other = (same - other).square().sum(-1, keepdim=True)
    return (margin + between_same - to_other).relu().mean()


def landmark_loss(
    predicted: torch.Tensor, target: torch.Tensor, confidence: torch.Tensor | None = None
) -> torch.Tensor:
    """L1 distance of projected landmarks (eq. 5), weighted by confidence and averaged over the weight.

    Args:
        predicted, target: (B, 68, 2) normalised image coordinates.
        confidence: (B, 68) weights >= 0, or None for ones. Points of weight zero may hold anything, NaN included.

    Returns:
        A scalar, the mean absolute coordinate error; zero if all weights are.
    """
    if confidence is None:
        return (predicted - target).abs().mean()
    weight = confidence[..., None]
    target = torch.where(weight > 0, target, predicted.detach())
    return ((predicted - target).abs() * weight).sum() / (2 * confidence.sum()).clamp_min(1e-12)


def coefficient_norm(coefficients: torch.Tensor) -> torch.Tensor:
    """Squared norm of (B, n) coefficients, averaged over the batch: the pull towards the mean head."""
    return coefficients.square().sum(-1).mean()
