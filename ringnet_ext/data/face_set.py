"""A set of faces in memory-mapped arrays, as the trainer reads it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class Images(Protocol):
    """Images of one size, as an array (N, S, S[, 3]) or decoded when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any) -> Any: ...


@dataclass(frozen=True)
class Augmentation:
    """How much faces are varied when training crops them. The defaults are for pictures that were rendered with every
    other variation already; :data:`ringnet_ext.data.photographs.AUGMENTATION` is for photographs.

    Attributes:
        zoom: the crop's side changes by a factor of up to exp(+-zoom).
        shift: its middle moves by up to +-shift of its side.
        lone: zoom and shift are this many times as large for an image without identity, whose ring is made of crops of
            the one image.
        rotation: in the image plane, up to +- so many degrees.
        color: contrast, brightness and white balance, by a factor of up to exp(+-color).
        blur: probability of an unsharp picture.
        occlusion: probability of something before the face.
        jpeg: probability of compression.
    """

    zoom: float = 0.06
    shift: float = 0.04
    lone: float = 3.0
    rotation: float = 0.0
    color: float = 0.0
    blur: float = 0.0
    occlusion: float = 0.0
    jpeg: float = 0.0

    @property
    def changes_pixels(self) -> bool:
        return any((self.color, self.blur, self.occlusion, self.jpeg))


@dataclass(frozen=True, eq=False)
class FaceSet:
    """Images with identities and landmarks, and for synthetic faces what they were made from.

    Attributes:
        images: (N, S, S) grey or (N, S, S, 3) RGB, uint8; an array, or what has a shape and decodes image i as [i].
        landmarks: (N, 68, 2) float32, normalised image coordinates ([-1, 1] spans the image, y down).
        confidence: (N, 68) float32 >= 0.
        identity: (N,) int64; negative where it is not known.
        truth: name -> (N, ...) float32 (shape, expression, global_pose, jaw_pose, camera); evaluation only.
        augmentation: how training varies them.
        recipe: of a set that a program makes: everything that decides it, as text. Two machines that make it differ in
            the last bits of the landmarks, and have the same set.
    """

    images: Images
    landmarks: np.ndarray
    confidence: np.ndarray
    identity: np.ndarray
    truth: dict[str, np.ndarray] | None = None
    augmentation: Augmentation = Augmentation()
    recipe: str | None = None

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

    def fingerprint(self) -> str:
        """A digest that tells one set from another: of all identities, and of about 1,000 images the landmarks, for
        which the recipe stands where there is one."""
        some = slice(None, None, max(1, len(self) // 1000))
        digest = hashlib.sha256(str((*self.images.shape, self.augmentation, self.recipe)).encode())
        arrays = [self.identity, self.confidence[some]]
        for array in arrays if self.recipe is not None else [*arrays, self.landmarks[some]]:
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]
