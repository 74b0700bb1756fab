"""A set of faces in memory-mapped arrays, as the trainer reads it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class FaceSet:
    """Images with identities and landmarks, and for synthetic faces what they were made from.

    images      (N, S, S) grey or (N, S, S, 3) RGB, uint8; may be memory-mapped
    landmarks   (N, 68, 2) float32, normalised image coordinates ([-1, 1] spans the image, y down)
    confidence  (N, 68) float32 >= 0
    identity    (N,) int64
    truth       name -> (N, ...) float32 (shape, expression, global_pose, jaw_pose, camera); evaluation only
    """

    images: np.ndarray
    landmarks: np.ndarray
    confidence: np.ndarray
    identity: np.ndarray
    truth: dict[str, np.ndarray] | None = None

    def __post_init__(self):
        count = len(self.images)
        for name, array, shape in (
            ("landmarks", self.landmarks, (count, 68, 2)),
            ("confidence", self.confidence, (count, 68)),
            ("identity", self.identity, (count,)),
        ):
            if array.shape != shape:
                raise ValueError(f"{name}: expected {shape} for {count} images, got {array.shape}")

    def __len__(self) -> int:
        return len(self.images)
