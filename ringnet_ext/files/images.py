"""Image files, and what a network takes of them."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .whole import written_whole

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".avif", ".heic", ".heif", ".gif")
#: Suffixes of pictures that are written.
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
#: Smaller images are of no use.
MIN_IMAGE = 16


class ImageError(ValueError):
    """The file is not an image that can be used; the message names it and says why."""


def silence_decoders() -> None:
    """For a command that says itself what is wrong with a file: no lines of OpenCV's beside its own, no warnings of
    Pillow's that a photograph is large."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB, turned upright by its EXIF orientation.

    What is transparent is laid over white, whatever colour is stored beneath. Of an animation the first picture is
    read.

    Samples of 16 bits become 8, grey and CMYK become RGB. HEIC needs the package ``pillow-heif``.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        ImageError: it cannot be decoded.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image")
    data = np.frombuffer(path.read_bytes(), np.uint8)
    if not len(data):
        raise ImageError(f"{path}: the file is empty")
    try:
        if data[4:8].tobytes() == b"ftyp":  # AVIF and HEIC, of whose rotations OpenCV knows nothing
            return _by_pillow(data, path)
        image = _over_white(data)
        if image is None:
            image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if len(data) else None
    except cv2.error as error:
        raise ImageError(f"{path}: cannot be decoded: {error.err}") from None
    if image is None:
        raise ImageError(f"{path}: not an image, or a damaged one")
    return image


def upright_rgb(picture: Image.Image) -> np.ndarray:
    """A Pillow image as (H, W, 3) uint8 RGB: turned upright by its EXIF orientation, what is transparent over white."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        if picture.mode == "F":
            raise ValueError("a Pillow image of mode F has no range of values: expected 8 or 16 bits a sample")
        grey = np.asarray(picture)
        if grey.min(initial=0) < 0 or grey.max(initial=0) > 65535:
            raise ValueError(f"a Pillow image of mode {picture.mode}: expected values from 0 to 65535")
        return np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if not picture.has_transparency_data:
        return np.array(picture.convert("RGB"))
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return np.array(Image.alpha_composite(white, picture).convert("RGB"))


_HEIC = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1")


def _by_pillow(data: np.ndarray, path: Path) -> np.ndarray:
    content = data.tobytes()
    try:
        if content[8:12] in _HEIC and b"avif" not in content[8:64]:
            try:
                import pillow_heif
            except ImportError:
                raise ImageError(f"{path}: HEIC is read by the package pillow-heif: pip install pillow-heif") from None
            with pillow_heif.open_heif(io.BytesIO(content)).to_pillow() as opened:
                return upright_rgb(opened)
        with Image.open(io.BytesIO(content)) as opened:
            return upright_rgb(opened)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{path}: not an image, or a damaged one") from None
    except Exception as error:  # whatever the decoders of broken files raise
        raise ImageError(f"{path}: not an image, or a damaged one: {error}") from None


def _over_white(data: np.ndarray) -> np.ndarray | None:
    """An image that has transparent parts, over white; None for all others, and for those that Pillow cannot read."""
    if data[:2].tobytes() == b"\xff\xd8":  # JPEG has none, and is what there is most of
        return None
    try:
        with Image.open(io.BytesIO(data.data)) as opened:
            if not opened.has_transparency_data:
                return None
            return upright_rgb(opened)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def write_image(path: str | os.PathLike, image: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 RGB image; the format follows the suffix, one of :data:`PICTURES`; the file appears
    whole."""
    if Path(path).suffix.lower() not in PICTURES:
        raise ValueError(f"{os.fspath(path)}: expected a name that ends in one of {', '.join(PICTURES)}")
    try:
        content = image_bytes(image, Path(path).suffix)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None
    with written_whole(path) as file:
        file.write(content)


def image_bytes(image: np.ndarray, suffix: str) -> bytes:
    """An (H, W, 3) uint8 RGB image as a file of one of :data:`PICTURES`; also uint16, and (H, W), where the format has
    it. Raises ValueError where it cannot be written in it."""
    colors = image[..., ::-1] if image.ndim == 3 else image
    ok, encoded = cv2.imencode(suffix, np.ascontiguousarray(colors))
    if not ok:
        raise ValueError(f"a picture of {image.shape[1]} x {image.shape[0]} cannot be written in this format")
    return encoded.tobytes()


_BEFORE_TEXT = 8 + 25  # bytes of a PNG: its signature and the chunk IHDR


def png_bytes(image: np.ndarray, text: Mapping[str, str]) -> bytes:
    """A picture as :func:`image_bytes` takes it, as a PNG with text in it, ASCII: keyword -> what it says."""
    content = image_bytes(image, ".png")
    chunks = []
    for keyword, value in text.items():
        chunk = b"tEXt" + keyword.encode("ascii") + b"\0" + value.encode("ascii")
        chunks.append(struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)))
    return content[:_BEFORE_TEXT] + b"".join(chunks) + content[_BEFORE_TEXT:]


def read_png(path: str | os.PathLike) -> tuple[np.ndarray, dict[str, str]]:
    """The numbers of a PNG as they are, (H, W) or (H, W, 3) RGB, uint8 or uint16, and its text.

    Raises FileNotFoundError, and ImageError, naming the file, for what isn't one.
    """
    path = Path(path)
    data = path.read_bytes()
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as opened:
            text = {str(keyword): str(value) for keyword, value in opened.info.items() if isinstance(value, str)}
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except (OSError, SyntaxError, ValueError, cv2.error) as error:
        raise ImageError(f"{path}: not a PNG that can be read: {error}") from None
    if image is None:
        raise ImageError(f"{path}: not a PNG that can be read")
    return (image if image.ndim == 2 else np.ascontiguousarray(image[..., ::-1])), text
