"""What decides the result of training, how it is executed, and the presets: the defaults of everything that trains."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from ..data.synthetic import SyntheticFaces

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class TrainingSettings:
    """What decides the result of training. Without arguments, the compact preset's settings.

    The weights of the paper's losses and the margin are the paper's.

    A step's rings are computed in equal ``shares``, each with batch statistics of its own. Who computes them doesn't
    matter: processes divide them among themselves, and each takes its own at once in several threads or one after the
    other (gradient accumulation); the gradient is that of their mean loss.
    """

    steps: int = 5000
    rings_per_step: int = 8  # over all processes
    ring_size: int = 6
    shares: int = 2
    learning_rate: float = 2.5e-3
    beta2: float = 0.99
    weight_decay: float = 0.01
    warmup_steps: int = 50
    final_learning_rate: float = 0.01  # as a fraction, reached along a cosine
    gradient_clip: float | None = 20.0  # norm of the whole gradient; None for none
    ring_weight: float = 1.0
    landmark_weight: float = 60.0
    shape_weight: float = 1e-4
    expression_weight: float = 1e-4
    margin: float = 0.5
    readout_weight: float = 60.0  # of the L1 distance of the landmarks that a linear layer reads off the features
    precision: str = "float32"  # of the encoder: bfloat16 and float16 under autocast, the latter with a scaled loss
    ema: float = 0.0  # decay of an average of the weights, which is then what is validated and kept; 0 for none
    checkpoint_steps: int = 250
    seed: int = 0

    def __post_init__(self):
        if self.shares < 1 or self.rings_per_step % self.shares:
            raise ValueError(
                f"shares: expected a divisor of the {self.rings_per_step} rings of a step, got {self.shares}"
            )
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema: expected a decay from 0 to below 1, got {self.ema}")
        if self.checkpoint_steps < 1:
            raise ValueError(f"checkpoint_steps: expected at least 1, got {self.checkpoint_steps}")

    def learning_rate_at(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        low = self.final_learning_rate
        return self.learning_rate * (low + (1 - low) * (1 + math.cos(math.pi * progress)) / 2)


@dataclass(frozen=True)
class NetworkSettings:
    """Which network is trained, see :class:`ringnet_ext.network.ringnet.RingNet`. Without arguments, the compact
    preset's."""

    encoder: str = "compact"
    dropout: float = 0.0
    leak: float = 0.1
    #: About the spread of each in crops.
    scale: tuple[float, float, float, float, float, float] | None = (0.1, 0.02, 0.3, 0.1, 1.0, 0.5)


@dataclass(frozen=True)
class Execution:
    """How a process goes about its part of the work, which changes the time it takes and nothing else.

    workers     threads that take its shares of a step; 0 for as many as there are shares and cores, and for one on a
    GPU prefetch    steps whose images are made ready ahead
    keep        checkpoints that are kept, the newest
    compile     the encoder with torch.compile
    tensorboard  write the history as TensorBoard events too
    """

    workers: int = 0
    prefetch: int = 2
    keep: int = 2
    compile: bool = False
    tensorboard: bool = False

    def __post_init__(self):
        for name, least in (("workers", 0), ("prefetch", 1), ("keep", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Preset:
    """Settings that go together: of the network, of training, and of the faces that are rendered where there are no
    photographs."""

    network: NetworkSettings = NetworkSettings()
    training: TrainingSettings = TrainingSettings()
    faces: SyntheticFaces = field(default_factory=SyntheticFaces)


PRESETS = {
    "compact": Preset(),
    # Section 4 of the paper: Adam at a constant 1e-4. 10 epochs of VGGFace2's 3.1 million images, in steps of 32 rings
    # of 6, are 160,000 steps.
    "paper": Preset(
        NetworkSettings(encoder="resnet50", dropout=0.5, leak=0.0, scale=None),
        TrainingSettings(
            steps=160_000, rings_per_step=32, shares=1, learning_rate=1e-4, final_learning_rate=1.0, warmup_steps=0,
            beta2=0.999, weight_decay=0.0, gradient_clip=None, readout_weight=0.0,
        ),
        SyntheticFaces(identities=8631, size=320),
    ),
}  # fmt: skip
