"""The square around a face that is cut from an image: one definition for training, ``prepare`` and ``infer``.

The middle of the square is the middle of the box of the 68 landmarks, and the larger side of that box fills
:data:`ringnet_ext.geometry.camera.FILL` (0.8) of the square. Landmarks that are not known don't count. Where the square
reaches beyond the image, the pixels of the image's edge are repeated.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

from ..geometry.camera import FILL

INPUT_SIZE = 224


_CUBIC = 2  # pixels around the square that cubic interpolation reads


class Square(NamedTuple):
    """A square picture cut from a larger one: ``original = (square - offset) / scale``, in pixels."""

    image: np.ndarray  # (size, size, 3) uint8
    scale: float
    offset: tuple[float, float]  # x, y

    def to_original(self, points: np.ndarray) -> np.ndarray:
        """Pixels of the square -> pixels of the image it came from, (..., 2)."""
        return (points - np.asarray(self.offset)) / self.scale

    @property
    def place(self) -> tuple[float, float, float]:
        """Left, top and side in the image it came from, pixels."""
        x, y = self.offset
        return (0.0 - x) / self.scale, (0.0 - y) / self.scale, len(self.image) / self.scale  # and no -0.0

    def normalised(self, points: np.ndarray) -> np.ndarray:
        """Pixels of the image it came from -> normalised coordinates of the square, [-1, 1] over it, (..., 2)."""
        return (points * self.scale + np.asarray(self.offset)) * (2 / len(self.image)) - 1


def landmark_square(
    points: np.ndarray, confidence: np.ndarray | None = None, fill: float = FILL
) -> tuple[np.ndarray, np.ndarray]:
    """Middle (..., 2) and side (...) of the square around landmarks, in their unit.

    Args:
        points: (..., 68, 2). confidence: (..., 68), 0 for points that are not known; None where all are.
        fill: the part of the square's side that the larger side of the points' box fills.
    """
    if confidence is None:
        low, high = points.min(-2), points.max(-2)
    else:
        known = (confidence > 0)[..., None]
        low = np.where(known, points, np.inf).min(-2)
        high = np.where(known, points, -np.inf).max(-2)
    return (low + high) / 2, (high - low).max(-1) / fill


def shrunk(image: np.ndarray, longest: int) -> tuple[np.ndarray, float]:
    """An image with its longer side brought down to ``longest`` pixels where it is longer, and by how much.

    Raises:
        ValueError: it is not (H, W, 3) uint8, or has no pixels.
    """
    height, width = _size(image)
    scale = longest / max(height, width)
    if scale >= 1:
        return image, 1.0
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA), scale


def cut_square(image: np.ndarray, middle: np.ndarray, side: float, size: int = INPUT_SIZE) -> Square:
    """Cut a square from an image and scale it to ``size`` pixels a side.

    Args:
        image: (H, W, 3) uint8 RGB.
        middle: (2,) x and y in pixels of the image, the first pixel's centre at (0.5, 0.5).
        side: in pixels of the image, at least 1.

    Raises:
        ValueError: the image is not such an array, or no part of it lies in the square.
    """
    height, width = _size(image)
    low, high = np.asarray(middle, np.float64) - side / 2, np.asarray(middle, np.float64) + side / 2
    if not (np.isfinite([*low, *high]).all() and side >= 1 and (high > 0).all() and (low < (width, height)).all()):
        raise ValueError(
            f"square: expected one that has part of the image of {width} x {height} pixels and is at least 1 pixel "
            f"wide, got x {low[0]:.1f} to {high[0]:.1f} and y {low[1]:.1f} to {high[1]:.1f}"
        )
    scale = size / side
    margin = 0 if scale < 1 else _CUBIC
    left, top = (max(0, math.floor(value) - margin) for value in low)
    right, bottom = (min(most, math.ceil(value) + margin) for value, most in zip(high, (width, height), strict=True))
    inside = image[top:bottom, left:right]
    # Bilinear sampling would skip pixels, so they are averaged down first, to about one for each of the square's.
    fewer = np.array([1.0, 1.0])
    if scale < 1:
        extent = np.array([right - left, bottom - top])
        target = np.maximum(1, np.round(extent * scale)).astype(int)
        inside, fewer = cv2.resize(inside, tuple(map(int, target)), interpolation=cv2.INTER_AREA), target / extent
    # From the square's pixels to those of `inside`; pixel centres are at whole numbers here.
    step = fewer / scale
    start = (low - (left, top)) * fewer + step / 2 - 0.5
    matrix = np.array([[step[0], 0, start[0]], [0, step[1], start[1]]])
    method = cv2.INTER_LINEAR if scale < 1 else cv2.INTER_CUBIC
    pixels = cv2.warpAffine(
        np.ascontiguousarray(inside), matrix, (size, size), flags=method | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip
    x, y = (-low * scale).tolist()
    return Square(pixels, scale, (x, y))


def _size(image: np.ndarray) -> tuple[int, int]:
    """Height and width of an image. Raises ValueError where it is none."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image: expected (H, W, 3) uint8, got {image.shape} {image.dtype}")
    if min(image.shape) == 0:
        raise ValueError(f"image: expected at least one pixel, got {image.shape}")
    return image.shape[:2]


def fit_square(image: np.ndarray, size: int = INPUT_SIZE) -> Square:
    """The image as it is, its shorter side continued to a square."""
    height, width = _size(image)
    if height == width == size:  # it would come out the same
        return Square(np.ascontiguousarray(image), 1.0, (0.0, 0.0))
    return cut_square(image, np.array([width, height]) / 2, max(height, width), size)


def around_landmarks(
    image: np.ndarray, points: np.ndarray, confidence: np.ndarray | None = None, size: int = INPUT_SIZE
) -> Square:
    """The square around a face whose landmarks are known, as the network sees it in training.

    Args:
        image: (H, W, 3) uint8 RGB. points: (68, 2) pixels of it. confidence: see :func:`landmark_square`.

    Raises:
        ValueError: see :func:`cut_square`.
    """
    middle, side = landmark_square(points, confidence)
    return cut_square(image, middle, max(float(side), 1.0), size)
