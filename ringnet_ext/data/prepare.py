"""Make a training set of photographs of people and landmark files."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import cv2
import numpy as np

from ..detection.detectors import Detector, Detectors
from ..detection.landmark_files import SUFFIXES as LANDMARK_SUFFIXES
from ..detection.landmark_files import LandmarkError, NoFaceError, landmark_file, read_landmarks
from ..detection.pose import estimate_yaw
from ..detection.squares import cut_square, landmark_square
from ..files.images import MIN_IMAGE, SUFFIXES, ImageError, read_image, write_image
from ..files.whole import output_folder, remove_leftovers, written_whole
from ..progress import progress
from ..render.pictures import mark_points
from ..render.sheets import sheet
from .photographs import IMAGES, load_photographs, record, write_manifest

#: Part of a prepared crop that the larger side of the landmarks' box fills. Looser than what the network sees, so that
#: training has room to shift, scale and rotate.
FILL = 0.64
#: Fewer known landmarks than these are of no use.
MIN_POINTS = 34
#: People that a set needs to be trained on.
LEAST_PEOPLE = 4
#: Least and largest side of the crops.
SIZES = 32, 4096
_RECORDS = 4096  # held at a time
_YAWS = np.arange(-90, 91, 15)


@dataclass(frozen=True)
class PrepareSettings:
    """What decides how a crop looks and whether it is kept.

    size: side of the crops in pixels. format: jpg or png. min_face: larger side of the landmarks' box in the
    photograph, pixels.
    """

    size: int = 256
    format: str = "jpg"
    min_face: float = 40.0

    def __post_init__(self):
        if not SIZES[0] <= self.size <= SIZES[1]:
            raise ValueError(f"size: expected {SIZES[0]} to {SIZES[1]} pixels, got {self.size}")
        if self.format not in ("jpg", "png"):
            raise ValueError(f"format: expected jpg or png, got {self.format!r}")
        if not self.min_face >= 1:
            raise ValueError(f"min_face: expected at least 1 pixel, got {self.min_face}")


class Photograph(NamedTuple):
    """One image of the source: its path relative to it, and its person; '' for none, None if not known."""

    name: str
    person: str | None


class Dropped(Exception):
    """Why an image is not in the set: a kind, to count, and what exactly was found."""

    def __init__(self, kind: str, detail: str):
        super().__init__(kind, detail)


# Where photographs and their people come from.


def in_folders(source: Path, anonymous: str | None = None) -> Iterator[Photograph]:
    """The images below a folder, each of the person whose folder it is in: ``source/PERSON/.../NAME.jpg``.

    Args:
        anonymous: the folder whose images have no identity.
    """

    def walk(folder: str, person: str | None) -> Iterator[Photograph]:
        with os.scandir(source / folder) as entries:
            found = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
        for name, is_folder in found:
            path = f"{folder}{name}"
            if is_folder:
                yield from walk(f"{path}/", person if folder else ("" if name == anonymous else name))
            elif name.lower().endswith(SUFFIXES):
                yield Photograph(path, person)

    return walk("", None)


def in_list(path: Path) -> Iterator[Photograph]:
    """The images that a file lists: lines ``path,identity``, or ``path identity`` as in CelebA's identity_CelebA.txt.

    An empty identity, or -1, stands for none. The first line may name the columns: ``path,identity``.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            rows = csv.reader(file) if "," in first else (line.rsplit(None, 1) for line in file)
            for number, row in enumerate(rows, start=1):
                if not row or (number == 1 and [value.strip().lower() for value in row] == ["path", "identity"]):
                    continue
                if len(row) != 2:
                    raise ValueError(f"{path}, line {number}: expected a path and an identity, got {' '.join(row):.80}")
                person = row[1].strip()
                yield Photograph(row[0].strip(), "" if person == "-1" else person)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a text file of paths and identities: {error}") from None


# One photograph.


def loose_square(
    image: np.ndarray, points: np.ndarray, confidence: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The square of :mod:`ringnet_ext.detection.squares`, of which the landmarks' box fills less, :data:`FILL`.

    Args:
        image: (H, W, 3) uint8. points: (68, 2) pixels. confidence: (68,), 0 for points that are not known.

    Returns:
        (size, size, 3) uint8; (68, 2) float32 normalised coordinates in it, 0 for points that are not known.
    """
    middle, side = landmark_square(points, confidence, FILL)
    side = max(2, round(float(side)))
    left, top = (round(float(value)) for value in middle - side / 2)
    square = cut_square(image, np.array([left, top]) + side / 2, side, size).image
    normalised = (points - (left, top)) * (2 / side) - 1
    return square, np.where(confidence[:, None] > 0, normalised, 0).astype(np.float32)


def check(
    image: Path, landmarks: Path | None, settings: PrepareSettings, detectors: Detectors | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read a photograph and its landmarks.

    Args:
        landmarks: the file of them; None if there is none, and the detectors are to find them.

    Returns:
        image (H, W, 3), points (68, 2) pixels, confidence (68,).

    Raises:
        Dropped: why it cannot be trained on.
    """
    try:
        pixels = read_image(image)
    except FileNotFoundError:
        raise Dropped("no such image", "listed, but there is no such file") from None
    except (ImageError, OSError) as error:
        raise Dropped("unreadable image", str(error).removeprefix(f"{image}: ")) from None
    height, width = pixels.shape[:2]
    if min(height, width) < MIN_IMAGE:
        raise Dropped("image too small", f"{width} x {height} pixels, expected at least {MIN_IMAGE} x {MIN_IMAGE}")
    if landmarks is None and detectors is None:
        raise Dropped("no landmarks", f"no file of its name ending in {', '.join(LANDMARK_SUFFIXES)}")
    origin = "detector" if landmarks is None else landmarks.name
    try:
        points, confidence = detectors(pixels) if landmarks is None else read_landmarks(landmarks)
    except NoFaceError as error:
        raise Dropped("no face found", f"{origin}: {error}") from None
    except (LandmarkError, OSError) as error:
        raise Dropped("malformed landmarks", f"{origin}: {error}") from None
    known = points[confidence > 0]
    if len(known) < MIN_POINTS:
        raise Dropped("too few landmarks", f"{origin}: {len(known)} known points, expected {MIN_POINTS}")
    low, high = known.min(0), known.max(0)
    face = float((high - low).max())
    middle = (low + high) / 2
    outside = float(max(-low.min(), *(high - (width, height))))
    if outside > face / 2 or (middle < 0).any() or (middle > (width, height)).any():
        raise Dropped(
            "landmarks outside the image",
            f"{origin}: up to {outside:.0f} pixels outside the upright image of {width} x {height}",
        )
    if face < settings.min_face:
        raise Dropped("face too small", f"{face:.0f} pixels, expected at least {settings.min_face:g}")
    return pixels, points, confidence


# The set.


class _Progress:
    """What has been done to every photograph so far, in a database beside the set, so that a later run continues."""

    def __init__(self, path: Path, settings: PrepareSettings):
        self.database = sqlite3.connect(path, isolation_level=None, timeout=1)
        # Held to the end: two runs at once would undo each other's work.
        self.database.execute("PRAGMA locking_mode = EXCLUSIVE")
        self.database.execute("BEGIN IMMEDIATE")
        self.database.execute("CREATE TABLE IF NOT EXISTS runs (settings TEXT)")
        self.database.execute(
            "CREATE TABLE IF NOT EXISTS photographs (name TEXT PRIMARY KEY, run INTEGER, stamp TEXT, person TEXT, "
            "kind TEXT, detail TEXT, path TEXT, landmarks BLOB, confidence BLOB)"
        )
        self.database.execute("CREATE INDEX IF NOT EXISTS by_person ON photographs (kind, person, name)")
        earlier = self.database.execute("SELECT settings FROM runs LIMIT 1").fetchone()
        wanted = json.dumps(asdict(settings))
        if earlier is not None and earlier[0] != wanted:
            raise ValueError(
                f"{path.parent}: holds a set prepared with {earlier[0]}, and this is {wanted}; "
                "prepare into another folder"
            )
        self.run = self.database.execute("INSERT INTO runs VALUES (?)", (wanted,)).lastrowid
        self.database.execute("COMMIT")

    def known(self, names: list[str]) -> dict[str, tuple[str, str | None]]:
        """Stamps of the photographs that have been done, and the paths of the crops of those that were kept."""
        rows = (
            self.database.execute("SELECT name, stamp, path FROM photographs WHERE name = ?", (name,)).fetchone()
            for name in names
        )
        return {row[0]: row[1:] for row in rows if row is not None}

    def store(self, rows: list[tuple], unchanged: list[str]) -> None:
        """Note new results, and that others are still as they were, all at once or not at all."""
        self.database.execute("BEGIN")
        self.database.executemany(
            f"INSERT OR REPLACE INTO photographs VALUES (?, {self.run}, ?, ?, ?, ?, ?, ?, ?)", rows
        )
        self.database.executemany(
            f"UPDATE photographs SET run = {self.run} WHERE name = ?", [(name,) for name in unchanged]
        )
        self.database.execute("COMMIT")

    def forget_others(self) -> Iterator[str]:
        """Forget photographs that are no longer there; the paths of their crops."""
        for (path,) in self.database.execute(
            f"DELETE FROM photographs WHERE run != {self.run} RETURNING path"
        ).fetchall():  # fmt: skip
            if path:
                yield path

    def people(self) -> list[tuple[str, int]]:
        """Names and numbers of images, in the order of a hash of the names: any run of them is a random sample."""
        found = self.database.execute(
            "SELECT person, COUNT(*) FROM photographs WHERE kind = '' AND person != '' GROUP BY person"
        ).fetchall()
        return sorted(found, key=lambda row: hashlib.sha256(row[0].encode()).digest())

    def count(self) -> tuple[int, int]:
        """How many photographs are kept, and the bytes of the longest path of a crop."""
        return self.database.execute(
            "SELECT COUNT(*), COALESCE(MAX(LENGTH(CAST(path AS BLOB))), 1) FROM photographs WHERE kind = ''"
        ).fetchone()

    def records(self, people: list[tuple[str, int]], dtype: np.dtype) -> Iterator[np.ndarray]:
        """The records of the manifest, some at a time: first those without identity."""
        for number, (person, _) in enumerate([("", 0), *people], start=-1):
            cursor = self.database.execute(
                "SELECT path, landmarks, confidence FROM photographs WHERE kind = '' AND person = ? ORDER BY name",
                (person,),
            )
            while rows := cursor.fetchmany(_RECORDS):
                paths, landmarks, confidence = zip(*rows, strict=True)
                part = np.empty(len(rows), dtype)
                part["path"] = [path.encode() for path in paths]
                part["identity"] = number
                part["landmarks"] = np.frombuffer(b"".join(landmarks), "<f4").reshape(-1, 68, 2)
                part["confidence"] = np.frombuffer(b"".join(confidence), "<f4").reshape(-1, 68)
                yield part

    def dropped(self) -> Iterator[tuple[str, str, str]]:
        return self.database.execute("SELECT name, kind, detail FROM photographs WHERE kind != '' ORDER BY name")

    def dropped_counts(self) -> list[tuple[str, int]]:
        return self.database.execute(
            "SELECT kind, COUNT(*) FROM photographs WHERE kind != '' GROUP BY kind ORDER BY COUNT(*) DESC, kind"
        ).fetchall()


def prepare(
    source: Path,
    out: Path,
    settings: PrepareSettings = PrepareSettings(),
    *,
    landmarks: Path | None = None,
    identities: Path | None = None,
    anonymous: str | None = None,
    detector: Callable[[], Detector] | None = None,
    workers: int | None = None,
) -> str:
    """Make, or go on making, the set ``out``. See the command's help for the arguments.

    Args:
        detector: makes a detector, once for each worker, for images without a landmark file.

    Returns:
        The report, which is in ``out/report.txt`` too.

    Raises:
        FileNotFoundError, ValueError: saying what is missing or wrong, and what to do.
        Whatever ``detector`` raises.
    """
    source, out = Path(source), Path(out)
    landmarks = source if landmarks is None else Path(landmarks)
    for folder in (source, landmarks):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder")
    if out.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"--out: {out} lies in {source}, and its crops would pass for photographs; put it elsewhere")
    if identities is not None and not Path(identities).is_file():
        raise FileNotFoundError(f"{identities}: no such file of identities")
    if anonymous is not None and (identities is not None or not (source / anonymous).is_dir()):
        raise ValueError(f"--anonymous: expected a folder in {source}, and no --identities; got {anonymous!r}")
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    detectors = None if detector is None else Detectors(detector, workers)

    def photographs():
        return in_folders(source, anonymous) if identities is None else in_list(Path(identities))

    total = sum(1 for _ in photographs())
    if total == 0:
        raise ValueError(f"{source if identities is None else identities}: no images ({', '.join(SUFFIXES)}) found")
    output_folder(out)
    remove_leftovers(*(folder for folder, _, _ in os.walk(out / IMAGES)))
    notes = _Progress(out / "progress.sqlite", settings)
    try:

        def work(item):
            photograph, earlier = item
            return _prepare_one(photograph, earlier, source, landmarks, out, settings, detectors)

        remaining = iter(photographs())
        bar = progress(total=total, desc="preparing", unit="image")
        with ThreadPoolExecutor(workers) as pool, bar:
            while batch := list(islice(remaining, 32 * workers)):
                known = notes.known([_text(photograph.name) for photograph in batch])
                once = {photograph.name: photograph for photograph in batch}.values()
                results = list(pool.map(work, [(item, known.get(_text(item.name))) for item in once]))
                unchanged = [result for result in results if isinstance(result, str)]
                notes.store([result for result in results if not isinstance(result, str)], unchanged)
                bar.update(len(batch))
        return _finish(notes, out)
    finally:
        notes.database.close()


def _prepare_one(
    photograph: Photograph,
    earlier: tuple[str, str | None] | None,
    source: Path,
    landmarks: Path,
    out: Path,
    settings: PrepareSettings,
    detectors: Detectors | None,
) -> tuple | str:
    """The row to note of a photograph, or just its name if nothing has changed since it was noted."""
    name, person = photograph
    text = _text(name)
    inside = not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
    points_file = landmark_file(landmarks, name) if inside else None
    origin = _stat(points_file) if points_file else detectors.version if detectors else ""
    stamp = " ".join([repr(person), _stat(source / name) if inside else "", origin])
    if earlier is not None and earlier[0] == stamp and (earlier[1] is None or (out / IMAGES / earlier[1]).exists()):
        return text
    path = name if name.endswith(f".{settings.format}") else f"{name}.{settings.format}"
    try:
        if not inside:
            raise Dropped("path outside the source", "expected a path relative to the source folder")
        if text != name:
            raise Dropped("name is not UTF-8", "rename the file")
        if person is None:
            raise Dropped("no identity", "expected in a folder of its person, or of --anonymous, or in --identities")
        image, points, confidence = check(source / name, points_file, settings, detectors)
    except Dropped as reason:
        if earlier is not None and earlier[1] is not None:
            (out / IMAGES / earlier[1]).unlink(missing_ok=True)
        return text, stamp, _text(person or ""), *reason.args, None, None, None
    square, normalised = loose_square(image, points, confidence, settings.size)
    (out / IMAGES / path).parent.mkdir(parents=True, exist_ok=True)
    write_image(out / IMAGES / path, square)
    return text, stamp, person, "", "", path, normalised.tobytes(), confidence.tobytes()


def _stat(path: Path) -> str:
    try:
        facts = path.stat()
    except OSError:
        return "missing"
    return f"{_text(path.name)} {facts.st_size} {facts.st_mtime_ns}"


def _text(name: str) -> str:
    """A file's name as text that any file or database can hold."""
    return name.encode("utf-8", "backslashreplace").decode()


def _finish(notes: _Progress, out: Path) -> str:
    """Write the manifest, the tables and the report of all that has been done."""
    for path in notes.forget_others():
        (out / IMAGES / path).unlink(missing_ok=True)
    people = notes.people()
    kept, path_length = notes.count()
    with written_whole(out / "dropped.csv") as file:
        _write_rows(file, ("image", "reason", "detail"), notes.dropped())
    with written_whole(out / "people.csv") as file:
        _write_rows(file, ("identity", "person", "images"), ((i, *row) for i, row in enumerate(people)))
    yaws = np.zeros(len(_YAWS) + 1, np.int64)  # the last: not known

    def counted(parts):
        for part in parts:
            yaw = np.degrees(estimate_yaw(part["landmarks"], part["confidence"]))
            nearest = np.abs(np.where(np.isnan(yaw), 0, yaw)[:, None] - _YAWS).argmin(1)
            np.add.at(yaws, np.where(np.isnan(yaw), len(_YAWS), nearest), 1)
            yield part

    write_manifest(out, kept, path_length, counted(notes.records(people, record(path_length))))
    report = "\n".join(_report(kept, people, notes.dropped_counts(), yaws)) + "\n"
    with written_whole(out / "report.txt") as file:
        file.write(report.encode())
    if kept:
        write_image(out / "contact_sheet.jpg", contact_sheet(out))
    return report


def _write_rows(file, names, rows) -> None:
    class Text:  # what csv wants to write to
        def write(self, line):
            file.write(line.encode())

    writer = csv.writer(Text(), lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)


def _report(kept: int, people: list[tuple[str, int]], dropped: list[tuple[str, int]], yaws: np.ndarray) -> list[str]:
    lines = [f"kept     {kept:9,d} images"]
    lines += [f"dropped  {sum(count for _, count in dropped):9,d} images (see dropped.csv)"]
    lines += [f"         {count:9,d} {kind}" for kind, count in dropped]
    counts = np.array([count for _, count in people], np.int64)
    lines += [f"people   {len(people):9,d} (see people.csv)"]
    if len(people):
        low, middle, high = np.percentile(counts, [0, 50, 100])
        lines += [
            f"         {low:9.0f} to {high:.0f} images each, {middle:g} in the middle",
            f"         {(counts < 5).sum():9,d} with fewer than 5, whose rings of 6 repeat images",
        ]
    if kept > counts.sum():
        lines += [f"         {kept - counts.sum():9,d} images without identity, whose rings are crops of the one image"]
    lines += ["yaw, estimated from the landmarks (positive: turned to the subject's left)"]
    labels = [*(f"{yaw:+4d} degrees" for yaw in _YAWS), "not known"]
    scale = 50 / max(1, yaws.max())
    for label, count in zip(labels, yaws.tolist(), strict=True):
        if count:
            lines += [f"{label:>13} {count:9,d} {'#' * max(1, round(count * scale))}"]
    if len(people) < LEAST_PEOPLE:
        lines += ["Training needs at least four people: two to train on and two others for validation."]
    return lines


def contact_sheet(folder: Path, columns: int = 8, rows: int = 6, size: int = 144) -> np.ndarray:
    """Images of a prepared set, drawn at random, with their landmarks: (H, W, 3) uint8."""
    faces = load_photographs(folder)
    count = min(len(faces), columns * rows)
    pictures = []
    for index in np.random.default_rng(0).choice(len(faces), count, replace=False):
        picture = cv2.resize(faces.images[index], (size, size), interpolation=cv2.INTER_AREA)
        known = faces.confidence[index] > 0
        mark_points(picture, (faces.landmarks[index][known] + 1) * (size / 2), radius=1.2)
        pictures.append(picture)
    return sheet([pictures[start : start + columns] for start in range(0, count, columns)])
