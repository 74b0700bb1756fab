"""From the encoder's features to head parameters."""

from __future__ import annotations

import torch
from torch import nn


class IterativeRegressor(nn.Module):
    """Three rounds of correction of one estimate (RingNet sec. 3.2): estimate += MLP([features, estimate]).

    The estimate lives in units of ``scale`` around ``mean``; the result is ``mean + scale * estimate``.

    Args:
        features: length of the feature vector.
        mean: (P,) the estimate to start from.
        scale: (P,) the size of one unit of each parameter; ones as in the paper.
        dropout: probability of dropping a hidden unit in training.
        leak: slope of the activations below zero; 0 is ReLU, the paper's. At a high learning rate most ReLUs end up
            below zero for every image and learn nothing any more.
    """

    iterations = 3
    hidden = 512

    def __init__(self, features: int, mean: torch.Tensor, scale: torch.Tensor, dropout: float, leak: float = 0.0):
        super().__init__()
        self.mean: torch.Tensor
        self.scale: torch.Tensor
        self.register_buffer("mean", mean.clone())
        self.register_buffer("scale", scale.clone())
        outputs = len(mean)
        # The first layer of the MLP in two parts: that of the features is the same in every round.
        self.from_features = nn.Linear(features, self.hidden)
        self.from_estimate = nn.Linear(outputs, self.hidden, bias=False)
        hidden, last = nn.Linear(self.hidden, self.hidden), nn.Linear(self.hidden, outputs)
        self.layers = nn.Sequential(
            nn.LeakyReLU(leak), nn.Dropout(dropout), hidden, nn.LeakyReLU(leak), nn.Dropout(dropout), last
        )
        # The first estimate is the mean head; training moves away from it slowly.
        nn.init.uniform_(last.weight, -1e-3, 1e-3)
        nn.init.zeros_(last.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, features) -> (B, P)."""
        seen = self.from_features(features)
        estimate = features.new_zeros(features.shape[0], len(self.mean))
        for _ in range(self.iterations):
            estimate = estimate + self.layers(seen + self.from_estimate(estimate))
        return self.mean + self.scale * estimate
