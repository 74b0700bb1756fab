"""How long training will take."""

from __future__ import annotations

import time

import torch

from ..network.ringnet import RingNet
from .settings import TrainingSettings


def days_of_training(model: RingNet, settings: TrainingSettings, processes: int = 1) -> float:
    """About how many days the steps take on this CPU, by the time that the model's encoder takes for one ring.

    The model and the random numbers stay as they are.
    """
    encoder = model.encoder
    images = torch.zeros(settings.ring_size, encoder.channels, encoder.input_size, encoder.input_size)
    training = encoder.training
    encoder.eval()  # leaves its statistics and the random numbers as they are
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        torch.autograd.grad(encoder(images).sum(), list(encoder.parameters()))
        seconds.append(time.perf_counter() - began)
    encoder.train(training)
    return min(seconds) * settings.rings_per_step * settings.steps / processes / 86400
