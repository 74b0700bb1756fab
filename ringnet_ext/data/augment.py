"""Crops of faces for training: the landmarks' box in the frame, shifted, scaled and mirrored at random."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from ..camera import FILL
from .faces import FaceSet

#: ``mirrored[i] = original[FLIP[i]]``: the 68 iBUG points of a mirrored face, numbered as on any face.
FLIP = np.array(
    [*range(16, -1, -1)]  # contour
    + [*range(26, 16, -1)]  # brows
    + [27, 28, 29, 30, 35, 34, 33, 32, 31]  # nose
    + [45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40]  # eyes
    + [54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55]  # outer lips
    + [64, 63, 62, 61, 60, 67, 66, 65]  # inner lips
)

_ZOOM, _SHIFT = 0.06, 0.04


def crop(
    faces: FaceSet, indices: np.ndarray, size: int, random: np.random.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Crop faces to their landmarks.

    Args:
        faces: where they come from.
        indices: (B, R) images, one ring a row. A ring is mirrored as a whole: the mirror image of a face has another
            shape, and within a ring the shape must stay.
        size: side of the crops in pixels.
        random: for the jitter; None for plain centred crops.

    Returns:
        images (B R, 1 or 3, size, size) float32 in [-1, 1]; landmarks (B R, 68, 2) in the crops' normalised coordinates.
    """
    flat = indices.ravel()
    points = faces.landmarks[flat]
    known = faces.confidence[flat] > 0
    low = np.where(known[..., None], points, np.inf).min(1)
    high = np.where(known[..., None], points, -np.inf).max(1)
    centre, half = (low + high) / 2, (high - low).max(1) / 2 / FILL
    mirror = np.ones(len(flat), np.float32)
    if random is not None:
        half = half * np.exp(random.uniform(-_ZOOM, _ZOOM, len(flat)))
        centre = centre + random.uniform(-_SHIFT, _SHIFT, centre.shape) * 2 * half[:, None]
        mirror = np.repeat(random.choice(np.float32([-1, 1]), len(indices)), indices.shape[1])

    source = faces.images.shape[1]
    pixels = np.empty((len(flat), size, size) + faces.images.shape[3:], np.uint8)
    for slot, image in enumerate(flat):
        zoom = half[slot] * source / size  # source pixels per pixel of the crop
        start = (centre[slot] + 1) * source / 2 - 0.5
        step = zoom * mirror[slot]
        matrix = np.array(
            [[step, 0, start[0] - step * (size - 1) / 2], [0, zoom, start[1] - zoom * (size - 1) / 2]], np.float64
        )
        cv2.warpAffine(
            faces.images[image], matrix, (size, size), dst=pixels[slot],
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
    landmarks = (points - centre[:, None]) / half[:, None, None]
    flipped = mirror < 0
    landmarks[flipped] = landmarks[flipped][:, FLIP] * np.float32([-1, 1])

    images = torch.from_numpy(pixels)
    images = images.permute(0, 3, 1, 2) if images.dim() == 4 else images[:, None]
    return images.float() / 127.5 - 1, torch.from_numpy(landmarks.astype(np.float32))
