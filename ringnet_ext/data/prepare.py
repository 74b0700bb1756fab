"""Make a training set of photographs of people and landmark files."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from ..detection.detectors import Detector, Detectors
from ..detection.landmark_files import SUFFIXES as LANDMARK_SUFFIXES
from ..detection.landmark_files import LandmarkError, NoFaceError, landmark_file, read_landmarks
from ..detection.pose import estimate_yaw
from ..detection.squares import cut_square, landmark_square
from ..files.cores import available_cores
from ..files.images import MIN_IMAGE, SUFFIXES, ImageError, read_image, write_image
from ..files.whole import output_folder, remove_leftovers, written_whole
from ..progress import progress
from ..render.pictures import mark_points
from ..render.sheets import sheet
from .ledger import Ledger
from .photographs import IMAGES, MANIFEST, load_photographs, record, write_manifest
from .sources import Photograph, in_folders, in_list

#: Part of a prepared crop that the larger side of the landmarks' box fills. Looser than what the network sees, so that
#: training has room to shift, scale and rotate.
LOOSE_FILL = 0.64
#: Fewer known landmarks than these are of no use.
MIN_POINTS = 34
#: People that a set needs to be trained on.
LEAST_PEOPLE = 4
#: Least and largest side of the crops.
SIZES = 32, 4096
_TABLES = "people.csv", "dropped.csv", "report.txt"  # in the folder of the set
#: Bytes of a file's name. File systems take 255, and that of its crop is longer while it is written.
_LONGEST_NAME = 255 - len("..jpg.1234567.tmp")
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


class Dropped(Exception):
    """Why an image is not in the set: a kind, to count, and what exactly was found."""

    def __init__(self, kind: str, detail: str):
        super().__init__(kind, detail)


def loose_square(
    image: np.ndarray, points: np.ndarray, confidence: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The square of :mod:`ringnet_ext.detection.squares`, of which the landmarks' box fills less, :data:`LOOSE_FILL`.

    Args:
        image: (H, W, 3) uint8. points: (68, 2) pixels. confidence: (68,), 0 for points that are not known.

    Returns:
        (size, size, 3) uint8; (68, 2) float32 normalised coordinates in it, 0 for points that are not known.
    """
    middle, side = landmark_square(points, confidence, LOOSE_FILL)
    pixels = max(2, round(float(side)))
    left, top = (round(float(value)) for value in middle - pixels / 2)
    square = cut_square(image, np.array([left, top]) + pixels / 2, pixels, size).image
    normalised = (points - (left, top)) * (2 / pixels) - 1
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
    origin = "detector" if landmarks is None else landmarks.name
    try:
        if landmarks is not None:
            points, confidence = read_landmarks(landmarks)
        elif detectors is not None:
            points, confidence = detectors(pixels)
        else:
            raise Dropped("no landmarks", f"no file of its name ending in {', '.join(LANDMARK_SUFFIXES)}")
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
    if (out / IMAGES).resolve().is_relative_to(source.resolve()):
        raise ValueError(f"--out: {out}: its crops would lie in {source} and pass for photographs; put it elsewhere")
    if source.resolve().is_relative_to((out / IMAGES).resolve()):
        raise ValueError(f"--out: {out}: its crops would lie among the photographs of {source}; put it elsewhere")
    if identities is not None and not Path(identities).is_file():
        raise FileNotFoundError(f"{identities}: no such file of identities")
    if identities is not None and Path(identities).resolve() in [(out / name).resolve() for name in _TABLES]:
        raise ValueError(f"--out: {out} would have its own table in place of {identities}; put it elsewhere")
    if anonymous is not None:
        anonymous = os.fspath(Path(anonymous))  # without the slash that a shell completes a folder's name with
        if identities is not None or anonymous not in os.listdir(source) or not (source / anonymous).is_dir():
            raise ValueError(
                f"--anonymous: expected the name of a folder in {source}, and no --identities; got {anonymous!r}"
            )
    workers = available_cores() if workers is None else workers
    detectors = None if detector is None else Detectors(detector, workers)

    def photographs():
        return in_folders(source, anonymous) if identities is None else in_list(Path(identities))

    total = sum(1 for _ in photographs())
    if total == 0:
        raise ValueError(f"{source if identities is None else identities}: no images ({', '.join(SUFFIXES)}) found")
    output_folder(out)
    remove_leftovers(*(folder for folder, _, _ in os.walk(out / IMAGES)))
    ledger = Ledger(out / "progress.sqlite", asdict(settings))
    try:

        def work(item):
            photograph, earlier = item
            return _prepare_one(photograph, earlier, source, landmarks, out, settings, detectors)

        remaining = iter(photographs())
        bar = progress(total=total, desc="preparing", unit="image")
        with ThreadPoolExecutor(workers) as pool, bar:
            while batch := list(islice(remaining, 32 * workers)):
                known = ledger.known([_text(photograph.name) for photograph in batch])
                once = {photograph.name: photograph for photograph in batch}.values()
                results = list(pool.map(work, [(item, known.get(_text(item.name))) for item in once]))
                unchanged = [result for result in results if isinstance(result, str)]
                ledger.store([result for result in results if not isinstance(result, str)], unchanged)
                bar.update(len(batch))
        return _finish(ledger, out)
    finally:
        ledger.database.close()


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
    too_long = len(os.fsencode(PurePosixPath(name).name)) > _LONGEST_NAME
    points_file = landmark_file(landmarks, name) if inside and not too_long else None
    origin = _stat(points_file) if points_file else detectors.version if detectors else ""
    stamp = " ".join([repr(person), _stat(source / name) if inside else "", origin])
    if earlier is not None and earlier[0] == stamp and (earlier[1] is None or (out / IMAGES / earlier[1]).exists()):
        return text
    (out / MANIFEST).unlink(missing_ok=True)  # of crops that are about to change: there is no set until all is done
    path = name if name.endswith(f".{settings.format}") else f"{name}.{settings.format}"
    try:
        if not inside:
            raise Dropped("path outside the source", "expected a path relative to the source folder")
        if text != name:
            raise Dropped("name is not UTF-8", "rename the file")
        if too_long:
            raise Dropped("name too long", f"rename the file: expected a name of at most {_LONGEST_NAME} bytes")
        if path != name and (source / path).exists():  # whose crop has this name
            raise Dropped("two of one name", f"beside {PurePosixPath(path).name}, their crops would be one; rename it")
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


def _finish(ledger: Ledger, out: Path) -> str:
    """Write the manifest, the tables and the report of all that has been done."""
    for path in ledger.forget_others():
        (out / MANIFEST).unlink(missing_ok=True)
        (out / IMAGES / path).unlink(missing_ok=True)
    people = ledger.people()
    kept, path_length = ledger.count()
    with written_whole(out / "dropped.csv") as file:
        _write_rows(file, ("image", "reason", "detail"), ledger.dropped())
    with written_whole(out / "people.csv") as file:
        _write_rows(file, ("identity", "person", "images"), ((i, *row) for i, row in enumerate(people)))
    yaws = np.zeros(len(_YAWS) + 1, np.int64)  # the last: not known

    def counted(parts):
        for part in parts:
            yaw = np.degrees(estimate_yaw(part["landmarks"], part["confidence"]))
            nearest = np.abs(np.where(np.isnan(yaw), 0, yaw)[:, None] - _YAWS).argmin(1)
            np.add.at(yaws, np.where(np.isnan(yaw), len(_YAWS), nearest), 1)
            yield part

    write_manifest(out, kept, path_length, counted(ledger.records(people, record(path_length))))
    report = "\n".join(_report(kept, people, ledger.dropped_counts(), yaws)) + "\n"
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
