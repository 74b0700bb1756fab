"""Sets of photographs that ``ringnet prepare`` has made: crops in files, and one manifest of them all.

A set is a folder with ``images/``, ``people.csv`` and ``manifest.npy``, an array with one record per image:

path        relative to ``images/``, UTF-8
identity    the person's number in ``people.csv``, or -1 where it is not known
landmarks   (68, 2) float32, normalised coordinates of the crop
confidence  (68,) float32

The manifest is read memory-mapped. Its images are in the order of their people, whose numbers are in no order: so any
run of images holds a random sample of people.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..files.images import ImageError, read_image
from ..files.whole import written_whole
from .face_set import Augmentation, FaceSet

MANIFEST, IMAGES = "manifest.npy", "images"

#: How photographs are varied in training.
AUGMENTATION = Augmentation(
    zoom=0.1, shift=0.06, rotation=15.0, color=0.25, blur=0.2, occlusion=0.2, jpeg=0.2
)  # fmt: skip


def record(path_length: int) -> np.dtype:
    """The type of a manifest's record, for paths of up to so many bytes."""
    return np.dtype(
        [("path", f"S{path_length}"), ("identity", "<i8"), ("landmarks", "<f4", (68, 2)), ("confidence", "<f4", (68,))]
    )


def write_manifest(folder: str | os.PathLike, count: int, path_length: int, records: Iterable[np.ndarray]) -> None:
    """Write the manifest of a set from arrays of records, ``count`` in all, ordered by identity; whole or not at all.

    Raises:
        ValueError: there are more or fewer records than ``count``.
    """
    dtype = record(path_length)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}
    with written_whole(Path(folder) / MANIFEST) as file:
        np.lib.format.write_array_header_1_0(file, header)
        written = 0
        for part in records:
            file.write(part.astype(dtype, copy=False).tobytes())
            written += len(part)
        if written != count:
            raise ValueError(f"records: expected {count}, got {written}")


class Photographs:
    """The images of a set, decoded when asked for: ``photographs[i]`` is (S, S, 3) uint8 RGB.

    Args:
        folder: what the paths are relative to.
        paths: (N,) bytes, UTF-8; N >= 1. The first image tells the size of all.
    """

    def __init__(self, folder: str | os.PathLike, paths: np.ndarray):
        self.folder, self.paths = Path(folder), paths
        self.shape: tuple[int, ...] = (len(paths), *read_image(self._path(0)).shape)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        path = self._path(index)
        image = read_image(path)
        if image.shape != self.shape[1:]:
            raise ImageError(f"{path}: expected {self.shape[1:]} as the set's first image, got {image.shape}")
        return image

    def _path(self, index: int) -> Path:
        return self.folder / self.paths[index].decode()


def load_photographs(folder: str | os.PathLike, augmentation: Augmentation = AUGMENTATION) -> FaceSet:
    """The faces of a prepared set.

    Raises:
        FileNotFoundError: this folder holds none.
        ValueError: its manifest is damaged, or of another layout.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; make the set with ringnet prepare, which finishes one too")
    try:
        manifest = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: damaged: {error}") from None
    names = manifest.dtype.names
    if names is None or "path" not in names or manifest.dtype != record(manifest.dtype["path"].itemsize):
        raise ValueError(f"{path}: not the manifest of a set of photographs, but {manifest.dtype}")
    if len(manifest) == 0:
        raise ValueError(f"{path}: a set without images")
    return FaceSet(
        images=Photographs(Path(folder) / IMAGES, manifest["path"]),
        landmarks=manifest["landmarks"],
        confidence=manifest["confidence"],
        identity=np.array(manifest["identity"]),
        augmentation=augmentation,
    )


def hold_out(faces: FaceSet, share: float) -> tuple[FaceSet, FaceSet]:
    """Split a set of photographs into faces to train on and all images of a share of the people, at least two of them.

    Nothing is copied. Images without identity are for training.
    """
    images = faces.images
    if not isinstance(images, Photographs):
        raise TypeError(f"faces: expected a set of photographs, got images of type {type(images).__name__}")
    if not 0 < share < 1:
        raise ValueError(f"share: expected a number between 0 and 1, got {share}")
    people = np.unique(faces.identity[faces.identity >= 0])
    held_out = max(2, round(share * len(people)))
    if len(people) < held_out + 2:
        raise ValueError(
            f"faces: rings need two people to train on and two others for validation, and with {held_out} of "
            f"{len(people)} held out there are too few"
        )
    start = int(np.searchsorted(faces.identity, people[-held_out]))

    def part(rows: slice) -> FaceSet:
        return dataclasses.replace(
            faces, images=Photographs(images.folder, images.paths[rows]),
            landmarks=faces.landmarks[rows], confidence=faces.confidence[rows], identity=faces.identity[rows],
        )  # fmt: skip

    return part(slice(None, start)), part(slice(start, None))
