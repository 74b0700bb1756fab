"""Crops of faces for training: the landmarks' box in the frame, varied at random, and the landmarks with it."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch

from ..detection.squares import landmark_square
from ..files.cores import available_cores
from .face_set import Augmentation, FaceSet

#: ``mirrored[i] = original[FLIP[i]]``: the 68 iBUG points of a mirrored face, numbered as on any face.
FLIP = np.array(
    [*range(16, -1, -1)]  # contour
    + [*range(26, 16, -1)]  # brows
    + [27, 28, 29, 30, 35, 34, 33, 32, 31]  # nose
    + [45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40]  # eyes
    + [54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55]  # outer lips
    + [64, 63, 62, 61, 60, 67, 66, 65]  # inner lips
)

# The cores are shared with torchrun's other processes.
_THREADS = max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def crop(
    faces: FaceSet,
    indices: np.ndarray,
    size: int,
    random: np.random.Generator | None = None,
    rings: slice = slice(None),
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Crop faces to their landmarks.

    Args:
        faces: where they come from.
        indices: (B, R) images, one ring a row. A ring is mirrored as a whole: the mirror image of a face has another
            shape, and within a ring the shape must stay.
        size: side of the crops in pixels.
        random: for the augmentation that ``faces`` asks for; None for plain centred crops.
        rings: which rows to cut. A ring comes out the same whichever others are cut with it.

    Returns:
        images (B R, 1 or 3, size, size) uint8, for :func:`ringnet_ext.network.encoder.to_input`; landmarks
        (B R, 68, 2) in the crops' normalised coordinates; their confidence (B R, 68).
    """
    count, length = indices.shape
    *moves, seeds = _variation(faces, indices, random)

    def chosen(values: np.ndarray) -> np.ndarray:
        return values.reshape(count, length, *values.shape[1:])[rings].reshape(-1, *values.shape[1:])

    flat, zoom, shift, mirror, angle = (chosen(values) for values in (indices.ravel(), *moves))
    seeds = None if seeds is None else chosen(seeds)
    points, confidence = np.asarray(faces.landmarks[flat]), np.asarray(faces.confidence[flat])
    middle, side = landmark_square(points, confidence)
    half = side / 2 * zoom
    centre = middle + shift * 2 * half[:, None]
    cos, sin = np.cos(angle), np.sin(angle)

    # Where bilinear sampling would skip pixels, the image is shrunk to `source` pixels a side first.
    full = faces.images.shape[1]
    source = np.round(full / np.maximum(half * full / size, 1).astype(int)).astype(int)
    zoom = half * source / size  # source pixels per pixel of the crop
    turn = np.stack([np.stack([cos * mirror, -sin], 1), np.stack([sin * mirror, cos], 1)], 1)
    step = turn * zoom.astype(np.float64)[:, None, None]
    start = (centre + 1) * source[:, None] / 2 - 0.5 - step.sum(2) * (size - 1) / 2
    matrices = np.concatenate([step, start[..., None]], axis=2)

    pixels = np.empty((len(flat), size, size) + faces.images.shape[3:], np.uint8)

    def cut(slot):
        image = faces.images[flat[slot]]
        if source[slot] < full:
            image = cv2.resize(image, (source[slot], source[slot]), interpolation=cv2.INTER_AREA)
        cv2.warpAffine(
            image, matrices[slot], (size, size), dst=pixels[slot],
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        if seeds is not None:
            pixels[slot] = _degrade(pixels[slot], faces.augmentation, np.random.default_rng(seeds[slot]))

    if isinstance(faces.images, np.ndarray):
        for slot in range(len(flat)):
            cut(slot)
    else:  # images that have to be decoded, which OpenCV does without holding Python's lock
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(cut, range(len(flat))))

    landmarks = (points - centre[:, None]) / half[:, None, None]
    if angle.any():
        x, y = landmarks[..., 0], landmarks[..., 1]
        c, s = cos[:, None], sin[:, None]
        landmarks = np.stack([c * x + s * y, c * y - s * x], axis=-1)
    flipped = mirror < 0
    landmarks[flipped] = landmarks[flipped][:, FLIP] * np.array([-1, 1], np.float32)
    confidence[flipped] = confidence[flipped][:, FLIP]

    images = torch.from_numpy(pixels)
    images = images.permute(0, 3, 1, 2) if images.dim() == 4 else images[:, None]
    return images, torch.from_numpy(landmarks.astype(np.float32)), torch.from_numpy(confidence)


def _variation(faces: FaceSet, indices: np.ndarray, random: np.random.Generator | None):
    """Zoom, shift (n, 2), mirror (1 or -1) and angle of all n images, and seeds for their pixels or None."""
    n = indices.size
    zoom, shift, mirror, angle, seeds = np.ones(n), np.zeros((n, 2)), np.ones(n, np.float32), np.zeros(n), None
    if random is not None:
        settings = faces.augmentation
        spread = np.where(faces.identity[indices.ravel()] < 0, settings.lone, 1.0)
        zoom = np.exp(spread * random.uniform(-settings.zoom, settings.zoom, n))
        shift = spread[:, None] * random.uniform(-settings.shift, settings.shift, shift.shape)
        mirror = np.repeat(random.choice(np.array([-1, 1], np.float32), len(indices)), indices.shape[1])
        if settings.rotation:
            angle = np.radians(random.uniform(-settings.rotation, settings.rotation, n))
        if settings.changes_pixels:
            seeds = random.integers(2**63, size=n)
    return zoom, shift, mirror, angle, seeds


def _degrade(image: np.ndarray, settings: Augmentation, random: np.random.Generator) -> np.ndarray:
    """Other light, another lens, something before the face, another file: (S, S) or (S, S, 3) uint8 -> the same."""
    size = image.shape[0]
    if random.random() < settings.occlusion:
        centre, axes = random.uniform(0.05, 0.95, 2) * size, random.uniform(0.08, 0.25, 2) * size
        angle, color = float(random.uniform(0, 180)), random.uniform(0, 255, 3).tolist()
        if random.random() < 0.5:
            outline = cv2.boxPoints((centre.tolist(), (2 * axes).tolist(), angle)).astype(np.int32)
        else:
            ellipse = centre.astype(int).tolist(), axes.astype(int).tolist(), int(angle)
            outline = np.array(cv2.ellipse2Poly(*ellipse, 0, 360, 15), np.int32)
        cv2.fillConvexPoly(image, outline, color, cv2.LINE_AA)
    if settings.color:
        contrast, brightness = np.exp(random.uniform(-settings.color, settings.color, 2))
        balance = np.exp(random.uniform(-settings.color, settings.color, image.shape[2:]) / 3)
        level = np.arange(256)[:, None] / 255
        table = ((level - 0.5) * contrast + 0.5).clip(0, 1) * brightness * balance
        table = (table * 255 + 0.5).clip(0, 255).astype(np.uint8)
        image = cv2.LUT(image, table.reshape(1, 256, -1))
    if random.random() < settings.blur:
        image = cv2.GaussianBlur(image, (0, 0), random.uniform(0.3, 1.5) * size / 224)
    if random.random() < settings.jpeg:
        quality = int(random.integers(20, 80))
        _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
        image = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED))
    return image
