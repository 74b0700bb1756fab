"""Image files, and the square network inputs made of them (RingNet's preprocessing)."""

import os
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from .flame.files import written_whole

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
INPUT_SIZE = 224


class ImageError(ValueError):
    """The file is not an image that can be used; the message names it and says why."""


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB, turned upright by its EXIF orientation.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: it cannot be decoded.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image")
    data = np.frombuffer(path.read_bytes(), np.uint8)
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if len(data) else None
    except cv2.error as error:
        raise ImageError(f"{path}: cannot be decoded: {error.err}") from None
    if image is None:
        raise ImageError(f"{path}: not an image, or a damaged one")
    return image


def to_input(images: torch.Tensor) -> torch.Tensor:
    """uint8 images -> float32 in [-1, 1], what a network takes."""
    return images.float().div_(127.5).sub_(1)


def write_image(path: str | os.PathLike, image: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 RGB image; the format follows the suffix, the file appears whole."""
    ok, encoded = cv2.imencode(Path(path).suffix, np.ascontiguousarray(image[..., ::-1]))
    if not ok:
        raise ValueError(f"{os.fspath(path)}: OpenCV cannot write this format")
    with written_whole(path) as file:
        file.write(encoded.tobytes())


class Square(NamedTuple):
    """A square picture cut from a larger one: ``original = (square - offset) / scale``, in pixels."""

    image: np.ndarray  # (size, size, 3) uint8
    scale: float
    offset: tuple[float, float]  # x, y

    def to_original(self, points: np.ndarray) -> np.ndarray:
        """Pixels of the square -> pixels of the image it came from, (..., 2)."""
        return (points - np.asarray(self.offset)) / self.scale


def fit_square(image: np.ndarray, size: int = INPUT_SIZE) -> Square:
    """Scale the longer side to ``size``, centre, and continue the edges to a square, as RingNet's demo does.

    Args:
        image: (H, W, 3) uint8 RGB, a loose crop of one face.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image: expected (H, W, 3) uint8, got {image.shape} {image.dtype}")
    height, width = image.shape[:2]
    if min(height, width) == 0:
        raise ValueError(f"image: expected at least one pixel, got {image.shape}")
    scale = size / max(height, width)
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(image, (new_width, new_height), interpolation=method)
    top, left = (size - new_height) // 2, (size - new_width) // 2
    square = cv2.copyMakeBorder(
        resized, top, size - new_height - top, left, size - new_width - left, cv2.BORDER_REPLICATE
    )
    return Square(square, scale, (left, top))
