"""Files with the 68 iBUG landmarks of one face, as the common detectors and annotation tools write them.

Landmarks are (68, 2) float32 in pixels of the upright image, where the centre of the first pixel is at (0.5, 0.5), with
confidences (68,) in [0, 1]. A point of confidence 0 is unknown, and its coordinates mean nothing.

======  ==============================================================================================================
.json   OpenPose: ``face_keypoints_2d`` of each person, 70 times x, y, confidence; the 68 points come first, 0-based
.pts    iBUG: ``version``, ``n_points: 68``, the points in braces; 1-based
.npy    (68, 2) or (68, 3) x, y[, confidence]; 0-based. Further rows are left out (OpenPose's pupils)
.npz    the same as ``landmarks`` (or as the only array), and the confidences as ``confidence`` if they are separate
.csv    the same, a point a line, with or without a line of column names
======  ==============================================================================================================
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np

#: What a landmark file of NAME.jpg may be called, after NAME.
SUFFIXES = ("_keypoints.json", ".json", ".pts", ".npy", ".npz", ".csv")
POINTS = 68


class LandmarkError(ValueError):
    """The file does not hold landmarks that can be used; the message says why."""


class NoFaceError(LandmarkError):
    """The file is sound, but says that there is no face."""


def read_landmarks(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Read the landmarks of one face: (68, 2) float32 pixels, (68,) float32 confidences.

    Raises:
        FileNotFoundError: there is no such file.
        NoFaceError: the detector found none.
        LandmarkError: the file is damaged, or holds something else.
    """
    path = Path(path)
    readers = {".json": _json, ".pts": _pts, ".npy": _npy, ".npz": _npz, ".csv": _csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise LandmarkError(f"expected one of {', '.join(readers)}, got {path.suffix!r}")
    try:
        rows = reader(path.read_bytes())
    except (LandmarkError, FileNotFoundError):
        raise
    except Exception as error:  # whatever a damaged file makes its parser say
        raise LandmarkError(f"not readable as {path.suffix}: {error}") from None
    return checked_landmarks(rows)


def checked_landmarks(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows x, y[, confidence] of a face, 68 or more -> (68, 2) float32 pixels, (68,) float32 confidences.

    Raises:
        NoFaceError: nothing is known of any point.
        LandmarkError: they cannot be used.
    """
    if rows.ndim != 2 or rows.shape[1] not in (2, 3) or rows.shape[0] < POINTS:
        raise LandmarkError(f"expected ({POINTS}, 2) or ({POINTS}, 3) numbers, got {rows.shape}")
    rows = np.asarray(rows[:POINTS], np.float64)
    points = rows[:, :2]
    confidence = rows[:, 2] if rows.shape[1] == 3 else np.ones(POINTS)
    if not np.isfinite(confidence).all() or (confidence < 0).any():
        raise LandmarkError("a confidence is negative or not a number")
    known = confidence > 0
    if not known.any():
        raise NoFaceError("no point has a confidence above 0")
    if not np.isfinite(points[known]).all():
        count = int((~np.isfinite(points[known]).all(1)).sum())
        raise LandmarkError(f"{count} points are not finite numbers (mark unknown points by confidence 0)")
    if np.abs(points[known]).max() > 1e6:
        raise LandmarkError(f"a coordinate of {np.abs(points[known]).max():.3g} pixels")
    points = np.where(known[:, None], points, 0)
    return points.astype(np.float32), np.minimum(confidence, 1).astype(np.float32)


def _zero_based(rows) -> np.ndarray:
    """Coordinates that count from 0 at the centre of the first pixel -> the same counted from its corner."""
    rows = np.array(rows, np.float64)
    if rows.ndim == 2:
        rows[:, :2] += 0.5
    return rows


def _json(data: bytes) -> np.ndarray:
    people = json.loads(data)["people"]
    faces = []
    for person in people:
        numbers = np.asarray(person.get("face_keypoints_2d", ()), np.float64)
        if numbers.size == 0:
            continue
        if numbers.ndim != 1 or numbers.size % 3 or numbers.size < 3 * POINTS:
            raise LandmarkError(f"face_keypoints_2d: expected 70 times x, y, confidence, got {numbers.shape} numbers")
        face = numbers.reshape(-1, 3)
        known = face[face[:, 2] > 0]
        if len(known):
            faces.append((np.ptp(known[:, :2], axis=0).max() * known[:, 2].mean(), face))
    if not faces:
        raise NoFaceError("OpenPose found no face")
    return _zero_based(max(faces, key=lambda face: face[0])[1])  # a loose crop is of its largest face


def _pts(data: bytes) -> np.ndarray:
    head, brace, body = data.decode().partition("{")
    if not brace or "}" not in body:
        raise LandmarkError("expected the points between { and }")
    rows = [line.split() for line in body.partition("}")[0].splitlines() if line.strip()]
    announced = [line.partition(":")[2] for line in head.splitlines() if line.strip().startswith("n_points")]
    if announced and int(announced[0]) != len(rows):
        raise LandmarkError(f"n_points says {int(announced[0])}, but there are {len(rows)}")
    return np.array(rows, np.float64) - 0.5


def _npy(data: bytes) -> np.ndarray:
    return _zero_based(np.load(io.BytesIO(data), allow_pickle=False))


def _npz(data: bytes) -> np.ndarray:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        names = list(arrays.files)
        if "landmarks" not in names and len(names) != 1:
            raise LandmarkError(f"expected an array called landmarks, got {', '.join(names) or 'none'}")
        rows = _zero_based(arrays["landmarks" if "landmarks" in names else names[0]])
        if "confidence" in names:
            rows = np.column_stack([rows[:, :2], arrays["confidence"]])
    return rows


def _csv(data: bytes) -> np.ndarray:
    lines = [line for line in data.decode("utf-8-sig").splitlines() if line.strip()]
    if lines and any(letter in lines[0] for letter in "xX"):
        lines = lines[1:]
    return _zero_based([[float(value) for value in line.split(",")] for line in lines])
