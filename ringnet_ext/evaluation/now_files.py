"""Files of the NoW benchmark: its images, boxes, scans and landmarks, predictions, and computed errors."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..files.arrays import read_file
from ..files.meshes import Mesh, read_mesh
from ..files.whole import written_whole
from .now import face_of

CHALLENGES = "multiview_neutral", "multiview_expressions", "multiview_occlusions", "selfie"
#: The lists of images that come with the benchmark.
LISTS = {"validation": "imagepathsvalidation.txt", "test": "imagepathstest.txt"}
#: Seven points, of scans and of predictions: the corners of the eyes from the image's left to right, the nose's base,
#: the corners of the mouth.
POINTS = (7, 3)
_RELEASE = Path("NoW_Dataset", "final_release_version")


class Entry(NamedTuple):
    """An image of the benchmark."""

    subject: str
    challenge: str
    image: str  # a file's name

    @property
    def name(self) -> str:
        """What its prediction is called, without a suffix."""
        return f"{self.subject}/{self.challenge}/{Path(self.image).stem}"


def read_list(path: Path) -> list[Entry]:
    """The images of a list, whose lines end in ``subject/challenge/image``.

    Raises:
        OSError: it cannot be read. ValueError: naming the line that isn't one; or there is none.
    """
    entries = []
    for number, line in enumerate(path.read_text("utf-8-sig", "replace").splitlines(), start=1):
        parts = line.strip().replace("\\", "/").split("/")
        if parts == [""]:
            continue
        named = len(parts) >= 3 and parts[-3] and ".." not in parts and Path(parts[-1]).suffix
        if not named or parts[-2] not in CHALLENGES:
            raise ValueError(
                f"{path}, line {number}: expected SUBJECT/CHALLENGE/IMAGE.jpg with one of {', '.join(CHALLENGES)}, "
                f"got {line.strip()!r:.80}"
            )
        entries.append(Entry(*parts[-3:]))
    if not entries:
        raise ValueError(f"{path}: no images in this list")
    return entries


class Dataset(NamedTuple):
    """Where the benchmark lies: root, as it is unpacked; scans and landmarks, a folder each for every subject."""

    root: Path
    scans: Path
    landmarks: Path

    def image(self, entry: Entry) -> Path:
        return self.root / _RELEASE / "iphone_pictures" / entry.subject / entry.challenge / entry.image

    def box(self, entry: Entry) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the face, pixels. Raises FileNotFoundError, and ValueError, naming the
        file."""
        folder = self.root / _RELEASE / "detected_face" / entry.subject / entry.challenge
        file = folder / f"{Path(entry.image).stem}.npy"
        content = read_file(file)
        try:
            left, top, right, bottom = (float(content[side]) for side in ("left", "top", "right", "bottom"))
        except (KeyError, TypeError, ValueError, IndexError):
            raise ValueError(f"{file}: expected a dictionary of left, top, right and bottom") from None
        if not (np.isfinite([left, top, right, bottom]).all() and left < right and top < bottom):
            raise ValueError(f"{file}: expected left < right and top < bottom, got {left}, {top}, {right}, {bottom}")
        return left, top, right, bottom

    def scan(self, subject: str) -> tuple[np.ndarray, np.ndarray]:
        """The vertices (N, 3) of a subject's scan in the ball around the face, the same array for all the subject's
        images, and its landmarks (7, 3), mm. Raises FileNotFoundError, and ValueError, naming the file."""
        return _scan(_only(self.scans / subject, ".obj"), _only(self.landmarks / subject, ".pp"))


def _only(folder: Path, suffix: str) -> Path:
    found = sorted(file for file in folder.glob(f"*{suffix}") if not file.name.startswith("."))
    if not found:
        raise FileNotFoundError(f"{folder}: no {suffix} file in it")
    return found[0]


@lru_cache(100)  # subjects; without what lies beyond the face a scan has a megabyte
def _scan(scan: Path, landmarks: Path) -> tuple[np.ndarray, np.ndarray]:
    vertices, marks = read_mesh(scan).vertices, read_picked_points(landmarks)
    try:
        return face_of(vertices, marks), marks
    except ValueError as error:
        raise ValueError(f"{scan}: {error}") from None


def read_picked_points(path: Path) -> np.ndarray:
    """The first seven of MeshLab's picked points, .pp: (7, 3). Raises FileNotFoundError, and ValueError, naming the
    file."""
    tags = re.findall(r"<point\b[^>]*>", path.read_text("utf-8", "replace"))[: POINTS[0]]
    found = [[re.search(rf'\b{axis}\s*=\s*"([^"]*)"', tag) for axis in "xyz"] for tag in tags]
    try:
        points = np.array([[float(match[1]) for match in each if match] for each in found], np.float64)
    except ValueError:
        points = np.zeros(0)
    return _seven(points, path)


def _seven(content: Any, path: Path) -> np.ndarray:
    try:
        points = np.asarray(content)
    except ValueError:  # lists of several lengths
        points = np.zeros(0)
    if points.shape == (1, *POINTS):  # a batch of one, which now_evaluation takes too
        points = points[0]
    if points.shape != POINTS or points.dtype.kind not in "fiu" or not np.isfinite(points).all():
        raise ValueError(f"{path}: expected seven points of finite x, y and z, got {points.shape} of {points.dtype}")
    return points.astype(np.float64)


def read_prediction(folder: Path, entry: Entry) -> tuple[Mesh, np.ndarray] | None:
    """The predicted neutral head of an image, NAME.obj or .ply, and its landmarks (7, 3), NAME.npy or .txt; None where
    one of them is missing.

    Raises:
        ValueError: naming the file that cannot be used.
    """
    meshes, points = ([folder / (entry.name + end) for end in ends] for ends in ((".obj", ".ply"), (".npy", ".txt")))
    mesh, landmarks = (next((file for file in files if file.is_file()), None) for files in (meshes, points))
    if mesh is None or landmarks is None:
        return None
    if landmarks.suffix == ".npy":
        content = read_file(landmarks)
    else:
        try:
            content = np.loadtxt(landmarks, ndmin=2)
        except ValueError as error:
            raise ValueError(f"{landmarks}: expected seven lines of x, y and z: {error}") from None
    head = read_mesh(mesh)
    if not np.isfinite(head.vertices).all():
        raise ValueError(f"{mesh}: a vertex isn't finite")
    return head, _seven(content, landmarks)


def write_distances(path: Path, distances: Sequence[np.ndarray], missing: int, names: Sequence[str]) -> None:
    """As now_evaluation writes them, for its plots: a pickled dictionary in an .npy file."""
    content = {"computed_distances": list(distances), "num_missing_files": missing, "input_files": list(names)}
    buffer = io.BytesIO()
    np.save(buffer, np.array(content, object), allow_pickle=True)
    with written_whole(path) as file:
        file.write(buffer.getvalue())


def read_distances(path: Path) -> np.ndarray:
    """All distances in a file of now_evaluation, mm. Raises FileNotFoundError, and ValueError, naming the file."""
    content = read_file(path)
    try:
        each = [np.asarray(part, np.float64).ravel() for part in content["computed_distances"]]
        return np.concatenate(each)
    except (KeyError, TypeError, ValueError, IndexError):
        raise ValueError(f"{path}: expected a dictionary with computed_distances, arrays of numbers") from None
