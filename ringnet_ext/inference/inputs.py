"""Which images are reconstructed, what their outputs are called, and where the faces are known to be."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np

from ..detection.landmark_files import SUFFIXES as LANDMARK_SUFFIXES
from ..detection.landmark_files import LandmarkError, landmark_file, read_landmarks
from ..files.errors import explained
from ..files.images import SUFFIXES

# Which images, and what their outputs are called.


def image_files(paths: list[Path]) -> tuple[list[Path], list[str], Counter[str]]:
    """The image files that the paths stand for, a complaint for each folder without one, and what else the folders
    hold."""
    files, complaints, others = [], [], Counter()
    for each in paths:
        if not each.is_dir():
            files.append(each)
            continue
        try:
            content = sorted(entry for entry in each.iterdir() if entry.is_file() and not entry.name.startswith("."))
        except OSError as error:
            complaints.append(explained(error))
            continue
        found = [file for file in content if file.suffix.lower() in SUFFIXES]
        others.update(file.suffix.lower() or "without a suffix" for file in content if file not in set(found))
        if not found:
            complaints.append(f"{each}: no images in this folder, which are files in {', '.join(SUFFIXES)}")
        files += found
    return files, complaints, others


def named(files: list[Path]) -> list[tuple[str, Path]]:
    """A name of its own for the outputs of every file: its stem, with a number where that is another's too.

    Names differ by more than upper and lower case, which some file systems don't tell apart.
    """
    stems = {file.stem.casefold() for file in files}
    used: set[str] = set()
    result = []
    for file in files:
        name, number = file.stem, 1
        while name.casefold() in used or (number > 1 and name.casefold() in stems):
            number += 1
            name = f"{file.stem}-{number}"
        used.add(name.casefold())
        result.append((name, file))
    return result


def landmarks_of(file: Path, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    found = landmark_file(folder, file.name)
    if found is None:
        raise LandmarkError(f"no landmarks: no file {folder / file.stem} ending in {', '.join(LANDMARK_SUFFIXES)}")
    try:
        return read_landmarks(found)
    except LandmarkError as error:
        raise LandmarkError(f"{found}: {error}") from None


def read_boxes(file: Path) -> dict[str, tuple[float, float, float, float]]:
    """Boxes by image, from lines ``image,left,top,right,bottom``; the first line may name the columns.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming the line that cannot be used.
    """
    boxes: dict[str, tuple[float, float, float, float]] = {}
    with open(file, newline="", encoding="utf-8-sig") as lines:
        for number, row in enumerate(csv.reader(lines), start=1):
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
            if image in boxes:
                raise ValueError(
                    f"{file}, line {number}: a second box of {image}, and one face an image is reconstructed"
                )
            boxes[image] = left, top, right, bottom
    return boxes
