"""Copies of a model: one for each share of a step, and the average of its weights."""

from __future__ import annotations

import copy

import torch

from ..network.ringnet import RingNet


def replica(model: RingNet) -> RingNet:
    """A model with the same parameters and head, and running statistics of its own."""
    return _copy(model, *model.parameters())


def average_of(model: RingNet) -> RingNet:
    """A model with the same head and parameters of its own, which then :func:`follow` those of the model."""
    return _copy(model)


def _copy(model: RingNet, *shared: torch.nn.Parameter) -> RingNet:
    return copy.deepcopy(model, {id(value): value for value in (*shared, model.flame, model.head)})


@torch.no_grad()
def follow(average: RingNet, model: RingNet, decay: float, step: int) -> None:
    """Move the average of the weights towards those after a step, faster in the beginning."""
    rate = 1 - min(decay, (1 + step) / (10 + step))
    ours, theirs = ([*each.parameters(), *each.encoder.buffers()] for each in (average, model))
    pairs = [pair for pair in zip(ours, theirs, strict=True) if pair[0].is_floating_point()]
    torch._foreach_lerp_([own for own, _ in pairs], [value for _, value in pairs], rate)
