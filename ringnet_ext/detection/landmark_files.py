"""Files with the 68 iBUG landmarks of one face, as the common detectors and annotation tools write them.

Landmarks are (68, 2) float32 in pixels of the upright image, where the centre of the first pixel is at (0.5, 0.5), with
confidences (68,) in [0, 1]. A point of confidence 0 is unknown, and its coordinates mean nothing.

======  ==============================================================================================================
.json   OpenPose: ``face_keypoints_2d`` of each person, 70 times x, y, confidence; the 68 points come first, 0-based. Or
        what ``infer`` writes, as in an .npz
.pts    iBUG: ``version``, ``n_points: 68``, the points in braces; 1-based
.npy    (68, 2) or (68, 3) x, y[, confidence]; 0-based. Or 70 rows: the last two, OpenPose's pupils, are left out.
        Those of a video, see :func:`read_landmark_array`, are (T, 68, 2) or (T, 68, 3)
.npz    the same as ``landmarks`` (or as the only array), and the confidences as ``confidence`` if they are separate;
        a number ``pixel_centres`` says where the first pixel's centre is: 0 without it, 0.5 in what ``infer`` writes;
        of a video ``seen`` (T,) bool says which frames show a face, the others are bridged and not read
.csv    the same, a point a line; a line of column names, if there is one, says which are x, y, confidence and index
======  ==============================================================================================================

Other schemes have other numbers of points, or the same points in another order. They are refused: the first by the
number, the second because no head, however turned, has its points there.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..flame.landmarks import contour_row

#: What a landmark file of NAME.jpg may be called, after NAME.
#: The first that there is; .npz before .npy, as RingNet's parameters are a .npy of that name, without landmarks.
SUFFIXES = ("_keypoints.json", ".json", ".pts", ".npz", ".npy", ".csv")
POINTS = 68
PUPILS = 2  # more, in OpenPose's files

#: What else has this many points.
_SCHEMES = {
    5: "a detector's five points", 29: "COFW", 51: "iBUG without the contour", 98: "WFLW", 106: "InsightFace or JD",
    133: "COCO-WholeBody", 194: "Helen", 468: "MediaPipe's mesh", 478: "MediaPipe's mesh with the irises",
}  # fmt: skip
#: Coordinates that span less are no pixels, and confidences above are none; OpenPose's are up to 1.1.
_LEAST_SPAN, _MOST_CONFIDENCE = 4.0, 1.5
#: The points' distance from those of a rigid head (root mean square over its outer eye distance). It is up to 0.12 for
# 300W's : and FFHQ's landmarks and 0.18 for strong expressions of unusual people; points that are all off by one have
# 0.2 and more.
_MOST_RESIDUAL = 0.22
#: z of the direction in which that head looks; -1 is away from the viewer. The landmarks of a mirrored photograph with
# the : numbers of the original are those of a head seen from behind.
_LEAST_FACING = -0.3
_LEAST_INNER = 12  # points known, for a head to be laid through them


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
    return checked_landmarks(_parsed(path, reader))


def checked_landmarks(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows x, y[, confidence] of a face, 68 or 70 -> (68, 2) float32 pixels, (68,) float32 confidences.

    Raises:
        NoFaceError: nothing is known of any point.
        LandmarkError: they cannot be used.
    """
    rows = np.asarray(rows)
    if rows.ndim != 2 or rows.shape[1] not in (2, 3) or len(rows) not in (POINTS, POINTS + PUPILS):
        scheme = _SCHEMES.get(len(rows)) if rows.ndim == 2 else None
        raise LandmarkError(
            f"expected ({POINTS}, 2) or ({POINTS}, 3) numbers, got {rows.shape}{f', as {scheme} has' if scheme else ''}"
        )
    rows = np.asarray(rows[:POINTS], np.float64)
    points = rows[:, :2]
    confidence = rows[:, 2] if rows.shape[1] == 3 else np.ones(POINTS)
    if not np.isfinite(confidence).all() or (confidence < 0).any():
        raise LandmarkError("a confidence is negative or not a number (is the third column z?)")
    if confidence.max() > _MOST_CONFIDENCE:
        raise LandmarkError(f"a confidence of {confidence.max():.4g}, expected up to 1 (is the third column z?)")
    known = confidence > 0
    if not known.any():
        raise NoFaceError("no point has a confidence above 0")
    if not np.isfinite(points[known]).all():
        count = int((~np.isfinite(points[known]).all(1)).sum())
        raise LandmarkError(f"{count} points are not finite numbers (mark unknown points by confidence 0)")
    if np.abs(points[known]).max() > 1e6:
        raise LandmarkError(f"a coordinate of {np.abs(points[known]).max():.3g} pixels")
    span = np.ptp(points[known], axis=0).max()
    if known.sum() > 1 and span < _LEAST_SPAN:
        raise LandmarkError(
            f"all points within {span:.3g} pixels: expected pixels of the image, not normalised coordinates"
        )
    points = np.where(known[:, None], points, 0)
    _require_head(points, confidence)
    return points.astype(np.float32), np.minimum(confidence, 1).astype(np.float32)


def _require_head(points: np.ndarray, confidence: np.ndarray) -> None:
    """Raises LandmarkError unless a head can have its landmarks there: a rigid one, seen from afar, from anywhere in
    front."""
    if np.count_nonzero(confidence[17:]) < _LEAST_INNER:
        return
    inner, contours, eyes = _mean_head()
    image = points * (1, -1)  # y up, as the head
    inner_fit = _fit_rigid(inner, image[17:], confidence[17:])
    yaw = np.degrees(np.arctan2(inner_fit.rotation[0, 2], inner_fit.rotation[2, 2]))
    fit = _fit_rigid(np.concatenate([contours[contour_row(yaw)], inner]), image, confidence)
    residual = max(each.residual / (each.scale * eyes) for each in (inner_fit, fit))
    if not residual <= _MOST_RESIDUAL:
        raise LandmarkError(
            f"the points are {residual:.2g} outer eye distances off those of a head: expected iBUG's 68, in their order"
        )
    if fit.rotation[2, 2] < _LEAST_FACING:
        raise LandmarkError("the points are those of a head seen from behind: left and right, or x and y, are mixed up")


class _Fit(NamedTuple):
    rotation: np.ndarray  # (3, 3)
    scale: float
    residual: float  # root mean square of the distances, pixels


def _fit_rigid(head: np.ndarray, points: np.ndarray, weights: np.ndarray) -> _Fit:
    """Rotation and scale of a head (N, 3) whose orthographic image is nearest to points (N, 2), by least squares.

    Given the points' depths, that is a similarity alignment in 3D; given the alignment, the head says their depths.
    """
    weights = weights / weights.sum()
    head, points = head - weights @ head, points - weights @ points
    root = np.sqrt(weights)[:, None]
    affine = np.linalg.lstsq(root * head, root * points, rcond=None)[0].T
    u, singular, vt = np.linalg.svd(affine, full_matrices=False)
    rows, scale = u @ vt, singular.mean()
    depth = np.cross(*rows)
    spread = weights @ np.square(head).sum(1)
    for _ in range(10):
        target = np.column_stack([points, scale * (head @ depth)])
        u, singular, vt = np.linalg.svd((weights[:, None] * target).T @ head)
        signs = np.array([1, 1, np.sign(np.linalg.det(u @ vt))])
        rotation, scale = (u * signs) @ vt, max(float(signs @ singular) / spread, np.finfo(float).tiny)
        depth = rotation[2]
    distances = np.square(points - scale * (head @ rotation[:2].T)).sum(1)
    return _Fit(rotation, scale, float(np.sqrt(weights @ distances)))


@lru_cache(1)
def _mean_head() -> tuple[np.ndarray, np.ndarray, float]:
    """The mean head's inner points (51, 3), its contours (79, 17, 3) by yaw, and its outer eye distance; metres, y
    up."""
    from ..flame import builtin_head

    head = builtin_head()
    landmarks = head.landmarks

    def on_mesh(faces_idx, bary_coords):
        return (head.v_template[head.faces[faces_idx]] * bary_coords[..., None]).sum(-2)

    inner = on_mesh(landmarks.static_faces_idx, landmarks.static_bary_coords)
    contours = on_mesh(landmarks.contour_faces_idx, landmarks.contour_bary_coords)
    return inner, contours, float(np.linalg.norm(inner[45 - 17] - inner[36 - 17]))


def _zero_based(rows) -> np.ndarray:
    """Coordinates that count from 0 at the centre of the first pixel -> the same counted from its corner."""
    rows = np.array(rows, np.float64)
    if rows.ndim > 1:
        rows[..., :2] += 0.5
    return rows


def _from_centre(rows: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Rows that were taken for 0-based, of a file that says where the first pixel's centre is."""
    if centre.shape != () or centre.dtype.kind not in "iuf" or not np.isfinite(centre):
        raise LandmarkError(f"pixel_centres: expected a number, got {centre.dtype} of shape {centre.shape}")
    if rows.ndim > 1:
        rows[..., :2] -= float(centre)
    return rows


def _json(data: bytes) -> np.ndarray:
    content = json.loads(data)
    if "landmarks" in content:
        return _from_centre(_zero_based(content["landmarks"]), np.array(content.get("pixel_centres", 0)))
    people = content["people"]
    faces = []
    for person in people:
        numbers = np.asarray(person.get("face_keypoints_2d", ()), np.float64)
        if numbers.size == 0:
            continue
        if numbers.ndim != 1 or numbers.size % 3 or numbers.size < 3:
            raise LandmarkError(f"face_keypoints_2d: expected 70 times x, y, confidence, got {numbers.size} numbers")
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


def read_landmark_array(path: str | os.PathLike) -> np.ndarray:
    """What an .npy or .npz file says of one face or of many, (..., 2 or 3) float64: x, y[, confidence], unchecked.

    Raises:
        FileNotFoundError: there is no such file.
        LandmarkError: the file is damaged, or holds something else.
    """
    path = Path(path)
    readers = {".npy": _npy, ".npz": _npz}
    if path.suffix.lower() not in readers:
        raise LandmarkError(f"expected one of {', '.join(readers)}, got {path.suffix!r}")
    return _parsed(path, readers[path.suffix.lower()])


def _parsed(path: Path, reader: Callable[[bytes], np.ndarray]) -> np.ndarray:
    data = path.read_bytes()
    try:
        return reader(data)
    except LandmarkError:
        raise
    except Exception as error:  # whatever a damaged file makes its parser say
        raise LandmarkError(f"not readable as {path.suffix}: {error}") from None


def _npy(data: bytes) -> np.ndarray:
    return _zero_based(np.load(io.BytesIO(data), allow_pickle=False))


def _npz(data: bytes) -> np.ndarray:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        names = list(arrays.files)
        if "landmarks" not in names and len(names) != 1:
            raise LandmarkError(f"expected an array called landmarks, got {', '.join(names) or 'none'}")
        rows = _zero_based(arrays["landmarks" if "landmarks" in names else names[0]])
        if "pixel_centres" in names:
            rows = _from_centre(rows, arrays["pixel_centres"])
        if "confidence" in names:
            rows = np.concatenate([rows[..., :2], arrays["confidence"][..., None]], axis=-1)
        if "seen" in names and rows.ndim == 3:
            seen = arrays["seen"]
            if seen.shape != rows.shape[:1] or seen.dtype != bool:
                raise LandmarkError(f"seen: expected ({len(rows)},) bool, got {seen.shape} {seen.dtype}")
            rows[~seen] = np.nan
    return rows


def _csv(data: bytes) -> np.ndarray:
    lines = [line for line in data.decode("utf-8-sig").splitlines() if line.strip()]
    delimiter = max(",;\t", key=lines[0].count) if lines else ","
    rows = [[value.strip() for value in line.split(delimiter)] for line in lines]
    if rows and any(not _is_number(value) for value in rows[0]):
        return _zero_based(_named_columns([name.strip("\"'# ").lower() for name in rows[0]], rows[1:]))
    return _zero_based(rows)


#: Columns of a .csv that are read, and what else they are called.
_COLUMNS = {
    "x": (),
    "y": (),
    "confidence": ("score", "probability", "conf"),
    "index": ("i", "id", "idx", "point", "landmark", "number"),
}


def _named_columns(names: list[str], rows: list[list[str]]) -> np.ndarray:
    table = np.array(rows, np.float64).reshape(len(rows), len(names))
    known = {name: column for column, synonyms in _COLUMNS.items() for name in (column, *synonyms)}
    columns = {known[name]: table[:, i] for i, name in enumerate(names) if name in known}
    read = [name for name in names if name != "z"]
    if not {"x", "y"} <= columns.keys() or len(columns) != len(read):
        raise LandmarkError(f"expected columns x, y and perhaps z, confidence and index, got {', '.join(names)[:200]}")
    order = np.arange(len(rows))
    if "index" in columns:
        order, index = np.argsort(columns["index"]), np.sort(columns["index"])
        if not np.array_equal(index - index[0], np.arange(len(index))) or index[0] not in (0, 1):
            raise LandmarkError(
                f"column index: expected every number from 0 or 1 on once, got {index[0]:g} ... {index[-1]:g}"
            )
    return np.column_stack([columns[name] for name in ("x", "y", "confidence") if name in columns])[order]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def landmark_file(folder: Path, name: str) -> Path | None:
    """The landmark file of the image of that relative name in a folder laid out like the images', if there is one."""
    stem = os.path.splitext(name)[0]
    candidates = (folder / f"{stem}{suffix}" for suffix in SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)
