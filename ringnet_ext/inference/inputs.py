"""Which pictures are reconstructed, what their outputs are called, and where the faces are known to be."""

from __future__ import annotations

import csv
import glob
import io
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from ..detection.landmark_files import SUFFIXES as LANDMARK_SUFFIXES
from ..detection.landmark_files import LandmarkError, landmark_file, read_landmarks
from ..detection.squares import Square
from ..files.errors import explained
from ..files.images import MIN_IMAGE, SUFFIXES, ImageError, read_image, upright_rgb

#: What stands for one picture in Python: a file; an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), a tensor (C, H, W)
#: with as many channels, both uint8, uint16 or floating point from 0 to 1; a Pillow image; a square cut from a picture.
Image = str | os.PathLike | np.ndarray | torch.Tensor | PIL.Image.Image | Square

# Pixels.


def pixels_of(image: Image) -> np.ndarray:
    """A picture as (H, W, 3) uint8 RGB, upright. What is transparent lies over white.

    Raises:
        FileNotFoundError, OSError, ImageError: naming the file.
        ValueError: it is no such picture, or smaller than 16 x 16 pixels.
    """
    if isinstance(image, Square):
        pixels = image.image
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape != (len(pixels), len(pixels), 3):
            raise ValueError(f"image: expected a square of (S, S, 3) uint8, got {pixels.shape} {pixels.dtype}")
        return pixels
    if isinstance(image, PIL.Image.Image):
        pixels = upright_rgb(image)
    elif isinstance(image, torch.Tensor):
        pixels = _of_array(_channels_last(image))
    elif isinstance(image, np.ndarray):
        pixels = _of_array(image)
    elif isinstance(image, (str, os.PathLike)):
        pixels = read_image(image)
    else:
        raise ValueError(f"image: expected a path, an array, a tensor or a Pillow image, got {type(image).__name__}")
    if min(pixels.shape[:2]) < MIN_IMAGE:
        name = f"{os.fspath(image)}: " if isinstance(image, (str, os.PathLike)) else ""
        raise ImageError(
            f"{name}{pixels.shape[1]} x {pixels.shape[0]} pixels, expected at least {MIN_IMAGE} x {MIN_IMAGE}"
        )
    return pixels


_CHANNELS = 1, 3, 4


def _channels_last(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dim() != 3 or tensor.shape[0] not in _CHANNELS:
        raise ValueError(f"image: expected a tensor of shape (1, 3 or 4, H, W), got {tuple(tensor.shape)}")
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    return tensor.detach().cpu().permute(1, 2, 0).numpy()


def _of_array(array: np.ndarray) -> np.ndarray:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in _CHANNELS or 0 in array.shape:
        raise ValueError(f"image: expected shape (H, W), or (H, W, 1, 3 or 4), got {array.shape}")
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    elif array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):  # of NaN neither holds
            raise ValueError(f"image: expected floating point values from 0 to 1, got {low:.4g} to {high:.4g}")
        array = (array * 255 + 0.5).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ValueError(f"image: expected uint8, uint16 or floating point, got {array.dtype}")
    if array.shape[2] == 4:
        return upright_rgb(PIL.Image.fromarray(np.ascontiguousarray(array)))
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


# Which pictures, and what their outputs are called.


@dataclass(frozen=True)
class Picture:
    """One picture that is asked about. label: what messages and tables call it. name: of its outputs."""

    label: str
    name: str
    image: Image


def pictures_of(files: Sequence[Path]) -> list[Picture]:
    return [Picture(str(file), name, file) for name, file in named(list(files))]


def image_files(
    paths: Sequence[Path], recursive: bool = False, out: Path | None = None
) -> tuple[list[Path], list[str], Counter[str]]:
    """The image files that paths stand for: files, folders, and patterns such as ``photos/*.jpg``; each once.

    Args:
        recursive: the folders' folders too. Files and folders whose names begin with a dot are left out of folders.
        out: the folder of results, which is left out where it lies in one of the folders.

    Returns:
        The files, those of a folder by name; a complaint for each folder or pattern without one; and how many other
        files the folders hold, by suffix.
    """
    files: list[Path] = []
    complaints: list[str] = []
    others: Counter[str] = Counter()
    for each in paths:
        if not os.path.isdir(each):  # which is False, and no error, where it can't be seen
            if not glob.has_magic(str(each)) or os.path.exists(each):
                files.append(each)
            elif found := sorted(glob.glob(str(each), recursive=True)):
                files += [file for file in map(Path, found) if os.path.isfile(file)]
            else:
                complaints.append(f"{each}: no file's name is like this")
            continue
        try:
            content = _content(each, recursive, out)
        except OSError as error:
            complaints.append(explained(error))
            continue
        images = [file for file in content if file.suffix.lower() in SUFFIXES]
        others.update(
            file.suffix.lower() or "without a suffix" for file in content if file.suffix.lower() not in SUFFIXES
        )
        if not images:
            complaints.append(f"{each}: no images in this folder, which are files in {', '.join(SUFFIXES)}")
        files += images
    once: dict[str, Path] = {}
    for file in files:
        once.setdefault(os.path.abspath(file), file)
    return list(once.values()), complaints, others


def _content(folder: Path, recursive: bool, out: Path | None) -> list[Path]:
    """The files in a folder, by name, without hidden ones."""
    if not recursive:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".") and _is_file(entry))
    found: list[Path] = []
    seen = {os.path.realpath(folder)} | ({os.path.realpath(out)} if out is not None else set())

    def fail(error: OSError):
        raise error

    def new(place: str) -> bool:  # links lead into a folder again, or round and round
        before = len(seen)
        seen.add(os.path.realpath(place))
        return len(seen) > before

    for where, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        links_last = sorted(folders, key=lambda name: (os.path.islink(os.path.join(where, name)), name))
        folders[:] = [name for name in links_last if not name.startswith(".") and new(os.path.join(where, name))]
        found += [Path(where, name) for name in names if not name.startswith(".")]
    return sorted(file for file in found if _is_file(file))


def _is_file(entry: Path) -> bool:
    """Also a link to nothing: reading it says that it is one, where to leave it out would say nothing."""
    return os.path.isfile(entry) or (os.path.islink(entry) and not os.path.exists(entry))


def named(files: list[Path]) -> list[tuple[str, Path]]:
    """A name of its own for the outputs of every file: its stem, with a number where that is another's too, or one of
    another's faces.

    Names differ by more than upper and lower case, which some file systems don't tell apart.
    """
    stems = {file.stem.casefold() for file in files}
    used: set[str] = set()
    result = []
    for file in files:
        name, number = file.stem, 1
        face = re.fullmatch(r"(.+)_face\d+", name.casefold())
        if face and face[1] in stems:
            number, name = 2, f"{file.stem}-2"
        while name.casefold() in used or (number > 1 and name.casefold() in stems):
            number += 1
            name = f"{file.stem}-{number}"
        used.add(name.casefold())
        result.append((name, file))
    return result


def face_name(name: str, number: int, count: int) -> str:
    """What the outputs of a picture's face are called: as the picture's, or where it has several, ``NAME_face1`` and
    so on from left to right."""
    return name if count == 1 else f"{name}_face{number}"


# Where the faces are.


def landmark_place(file: Path, folder: Path) -> Path | None:
    """The landmark file of an image in a folder of them, laid out like the image's own or flat: of a/b/c.jpg the file
    c.npy (say) in a/b, else in b, else in the folder itself."""
    parts = [part for part in file.parts if part != file.anchor]
    places = (landmark_file(folder, os.path.join(*parts[i:])) for i in range(len(parts)))
    return next((place for place in places if place is not None), None)


def landmarks_of(file: Path, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The landmarks of an image and their confidences, from its :func:`landmark_place`."""
    found = landmark_place(file, folder)
    if found is None:
        raise LandmarkError(f"no landmarks: no file {folder / file.stem} ending in {', '.join(LANDMARK_SUFFIXES)}")
    try:
        return read_landmarks(found)
    except LandmarkError as error:
        raise LandmarkError(f"{found}: {error}") from None


Box = tuple[float, float, float, float]


def read_boxes(file: Path) -> dict[str, list[Box]]:
    """Boxes by image, from left to right, from lines ``image,left,top,right,bottom``; the first line may name the
    columns.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming the file, and the line that cannot be used.
    """
    boxes: dict[str, list[Box]] = {}
    try:
        rows = list(csv.reader(io.StringIO(file.read_text("utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file}: not a text in UTF-8 with lines image,left,top,right,bottom: {error}") from None
    for number, row in enumerate(rows, start=1):
        if not row or (
            number == 1 and [value.strip().lower() for value in row[1:]] == ["left", "top", "right", "bottom"]
        ):
            continue
        try:
            image, (left, top, right, bottom) = row[0].strip(), map(float, row[1:])
        except ValueError:
            raise ValueError(
                f"{file}, line {number}: expected image,left,top,right,bottom, got {','.join(row)}"
            ) from None
        if not (np.isfinite([left, top, right, bottom]).all() and left < right and top < bottom):
            raise ValueError(f"{file}, line {number}: expected left < right and top < bottom, got {','.join(row)}")
        box = left, top, right, bottom
        if box in boxes.setdefault(image, []):
            raise ValueError(f"{file}, line {number}: the same box of {image} again")
        boxes[image].append(box)
    return {image: sorted(each, key=lambda box: box[0] + box[2]) for image, each in boxes.items()}
