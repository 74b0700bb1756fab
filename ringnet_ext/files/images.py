"""Image files, and what a network takes of them."""

from __future__ import annotations

import io
import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .whole import written_whole

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".avif", ".gif")
#: Suffixes of pictures that are written.
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
#: Smaller images are of no use.
MIN_IMAGE = 16


class ImageError(ValueError):
    """The file is not an image that can be used; the message names it and says why."""


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB, turned upright by its EXIF orientation.

    What is transparent is laid over white, whatever colour is stored beneath. Of an animation the first picture is
    read.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: it cannot be decoded.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image")
    data = np.frombuffer(path.read_bytes(), np.uint8)
    try:
        image = _over_white(data)
        if image is None:
            image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if len(data) else None
    except cv2.error as error:
        raise ImageError(f"{path}: cannot be decoded: {error.err}") from None
    if image is None:
        raise ImageError(f"{path}: not an image, or a damaged one")
    return image


def _over_white(data: np.ndarray) -> np.ndarray | None:
    """An image that has transparent parts, over white; None for all others, and for those that Pillow cannot read."""
    if data[:2].tobytes() == b"\xff\xd8":  # JPEG has none, and is what there is most of
        return None
    try:
        with Image.open(io.BytesIO(data.data)) as opened:
            if not opened.has_transparency_data:
                return None
            picture = ImageOps.exif_transpose(opened).convert("RGBA")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    white = Image.new("RGBA", picture.size, "white")
    return np.array(Image.alpha_composite(white, picture).convert("RGB"))


def write_image(path: str | os.PathLike, image: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 RGB image; the format follows the suffix, one of :data:`PICTURES`; the file appears
    whole."""
    if Path(path).suffix.lower() not in PICTURES:
        raise ValueError(f"{os.fspath(path)}: expected a name that ends in one of {', '.join(PICTURES)}")
    ok, encoded = cv2.imencode(Path(path).suffix, np.ascontiguousarray(image[..., ::-1]))
    if not ok:
        raise ValueError(
            f"{os.fspath(path)}: a picture of {image.shape[1]} x {image.shape[0]} cannot be written in this format"
        )
    with written_whole(path) as file:
        file.write(encoded.tobytes())
