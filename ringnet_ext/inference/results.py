"""The table of results of a run, which also says what a run that was killed had done.

While a run goes on, each process appends a line for each picture that is complete to a file of its own, in a hidden
folder that is named by the run's settings. A line that lacks its end was cut off with its process and doesn't count.
When all processes are done, the last one makes the table of them, which appears whole, and removes the folder. So a run
with the same settings into the same folder goes on where one was killed, with however many processes, and any other one
begins anew.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import count as counted
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ..files.errors import explained
from ..files.meshes import number_lines
from ..files.whole import written_whole
from ..flame.landmarks import OUTER_EYE_CORNERS
from .inputs import Picture
from .pipeline import Face, Outcome

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: The table's columns before the parameters.
COLUMNS = (
    "image",
    "face",
    "name",
    "error",
    "score",
    "agreement",
    "inside",
    "certainty",
    "left",
    "top",
    "side",
    "landmark_error",
    "files",
)
_TEXTS = "image", "name", "error", "files"
_PARQUET_ROWS = 4096  # that are held at a time


class _Place(NamedTuple):
    """Where a picture's line is, and whether it says that all went well."""

    file: Path
    offset: int
    done: bool


class Results:
    """The lines of one run.

    Args:
        folder: of the run's outputs.
        settings: everything that the outputs depend on beside the pictures; as JSON.
        rank, count: this process's number among those that share the pictures. All have to be made before any of
            them finishes.
        beside: the file that is read with a picture, of its landmarks say; None for none.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict,
        rank: int = 0,
        count: int = 1,
        beside: Callable[[Picture], Path | None] = lambda picture: None,
    ):
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]
        self.folder, self.rank, self.count, self._beside = folder, rank, count, beside
        self._parts = folder / f".unfinished-{digest}"
        self._parts.mkdir(exist_ok=True)
        self._finished(rank).unlink(missing_ok=True)
        self._places = self._read()
        self._lock = threading.Lock()
        self._own: io.FileIO | None = None

    def _read(self) -> dict[str, _Place]:
        """Where the last complete line of each picture is, by its outputs' name."""
        places: dict[str, _Place] = {}
        for file in sorted(self._parts.glob("*.jsonl"), key=_number):
            offset = 0
            with open(file, "rb") as lines:
                for line in lines:
                    if line.endswith(b"\n"):
                        entry = json.loads(line)
                        places[entry["name"]] = _Place(file, offset, not _failed(entry))
                    offset += len(line)
        return places

    def has(self, picture: Picture) -> bool:
        """Whether all of a picture's faces, as it is now, have been written, and still are."""
        place = self._places.get(picture.name)
        if place is None or not place.done:
            return False
        with open(place.file, "rb") as lines:
            entry = _at(lines, place.offset)
        return (
            entry["image"] == picture.label
            and entry["stamp"] == self._stamps(picture)
            and all((self.folder / file).is_file() for row in entry["rows"] for file in row["files"])
        )

    def add(self, outcome: Outcome, names: Sequence[str], files: Sequence[Sequence[str]]) -> None:
        """Note that a picture is complete, or has failed; several threads may.

        Args:
            names, files: of each face; files relative to the folder.
        """
        rows = [_row(face, name, each) for face, name, each in zip(outcome.faces, names, files, strict=True)]
        picture = outcome.picture
        error = None if outcome.error is None else reason(outcome.error, picture.label)
        entry = {
            "image": picture.label,
            "name": picture.name,
            "stamp": self._stamps(picture),
            "error": error,
            "rows": rows,
        }
        line = (json.dumps(entry) + "\n").encode()
        with self._lock:
            if self._own is None:
                self._own = self._new_file()
            start = self._own.tell()
            try:
                if self._own.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))
            except OSError:  # half a line would spoil the next one
                self._own.truncate(start)
                self._own.seek(start)
                raise

    def _new_file(self) -> io.FileIO:
        """One that was there before may end in half a line."""
        for number in counted(1 + max(map(_number, self._parts.glob("*.jsonl")), default=0)):
            with suppress(FileExistsError):  # another process of this rank was quicker
                return open(self._parts / f"{self.rank}-{number}.jsonl", "xb", buffering=0)
        raise AssertionError

    def _stamps(self, picture: Picture) -> list[list[int] | None]:
        try:
            beside = self._beside(picture)
        except OSError:  # which reading it says
            beside = None
        return [_stamp(picture.image), _stamp(beside)]

    def _finished(self, rank: int) -> Path:
        return self._parts / f"{rank}-of-{self.count}.finished"

    def close(self) -> None:
        with self._lock:
            if self._own is not None:
                self._own.close()
                self._own = None

    def rows(self, pictures: Iterable[Picture]) -> Iterator[dict[str, Any]]:
        """The table's rows so far, in the order of these pictures."""
        places = self._read()
        with ExitStack() as stack:
            opened = {file: stack.enter_context(open(file, "rb")) for file in {each.file for each in places.values()}}
            for picture in pictures:
                place = places.get(picture.name)
                entry = None if place is None else _at(opened[place.file], place.offset)
                if entry is None or entry["image"] != picture.label:
                    continue
                if entry["error"] is not None:
                    yield {"image": entry["image"], "face": None, "error": entry["error"]}
                for row in entry["rows"]:
                    yield {"image": entry["image"], **row, "files": ";".join(row["files"])}

    def write(self, file: Path, pictures: Sequence[Picture], parameters: Sequence[str]) -> None:
        """Write the table of what there is so far: .csv, or .parquet."""
        (_write_parquet if file.suffix == ".parquet" else _write_csv)(file, self.rows(pictures), parameters)

    def finish(self, file: Path | None, pictures: Sequence[Picture], parameters: Sequence[str]) -> bool:
        """This process has done its share. The last one writes the table of all pictures and removes the lines.

        Returns:
            Whether it was the last.
        """
        self.close()
        if not self._parts.is_dir():
            return False
        with _locked(self._parts / "lock"):
            self._finished(self.rank).touch()
            if not all(self._finished(rank).is_file() for rank in range(self.count)):
                return False
            if file is not None:
                self.write(file, pictures, parameters)
            for other in self.folder.glob(".unfinished-*"):  # of runs with other settings, which this one replaces
                if other != self._parts:
                    shutil.rmtree(other, ignore_errors=True)
            shutil.rmtree(self._parts)
            return True


def _at(lines: BinaryIO, offset: int) -> dict:
    lines.seek(offset)
    return json.loads(lines.readline())


def _failed(entry: dict) -> bool:
    return entry["error"] is not None or any(row["error"] for row in entry["rows"])


def _number(file: Path) -> int:
    """Of a file of lines: later ones have larger numbers."""
    return int(file.stem.rpartition("-")[2])


@contextmanager
def _locked(path: Path):
    with open(path, "wb") as file:
        if fcntl:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:  # a file system without locks
                pass
        yield


def _stamp(file: Any) -> list[int] | None:
    """By which a file is told from another one of its name."""
    if not isinstance(file, (str, os.PathLike)):
        return None
    try:
        status = os.stat(file)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def reason(error: Exception, label: str) -> str:
    """What went wrong with a picture, in one line without its name."""
    return explained(error).removeprefix(f"{label}: ")


def _row(face: Face, name: str, files: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {"face": face.number, "name": name, "files": list(files), "error": None}
    if face.error is not None or face.reconstruction is None or face.found is None:
        return row | {"name": "", "error": explained(face.error or ValueError("not reconstructed"))}
    made, trust = face.reconstruction, face.reconstruction.trust
    left, top, side = made.square.place
    return row | {
        "score": _rounded(trust.score),
        "agreement": _rounded(trust.agreement),
        "inside": _rounded(trust.inside),
        "certainty": _rounded(trust.certainty),
        "left": round(left, 1),
        "top": round(top, 1),
        "side": round(side, 1),
        "landmark_error": _rounded(_landmark_error(face)),
        "parameters": _text(made.params.to_vector().numpy()[0]),
    }


_DECIMALS = 8


def _text(numbers: np.ndarray) -> str:
    """Numbers as the table has them, each after a comma. They are most of what it says, hence written once, where each
    process writes its own."""
    return number_lines(b"", numbers[None], _DECIMALS).decode().strip("\n").replace(" ", ",")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)


def _landmark_error(face: Face) -> float | None:
    """Mean distance of the landmarks from those given, in distances of the given outer eye corners, if they are
    known."""
    found, made = face.found, face.reconstruction
    if found is None or made is None or found.points is None or found.confidence is None:
        return None
    corners = list(OUTER_EYE_CORNERS)
    if not (found.confidence[corners] > 0).all():
        return None
    known = found.confidence > 0
    eyes = np.linalg.norm(np.subtract(*found.points[corners]))
    return float(np.linalg.norm(made.landmarks - found.points, axis=1)[known].mean() / max(eyes, 1e-9))


def parameter_columns(shape_params: int, expression_params: int) -> list[str]:
    """The table's columns of parameters, in the order of RingNet's vector."""
    sizes = {"cam": 3, "pose": 6, "shape": shape_params, "expression": expression_params}
    return [f"{name}_{i}" for name, size in sizes.items() for i in range(size)]


def _write_csv(file: Path, rows: Iterator[dict[str, Any]], parameters: Sequence[str]) -> None:
    with written_whole(file) as target:
        text = io.TextIOWrapper(target, "utf-8", "surrogateescape", newline="")
        writer = csv.writer(text, lineterminator="")
        writer.writerow([*COLUMNS, *parameters])
        none = "," * len(parameters)
        for row in rows:
            text.write("\n")
            writer.writerow([row.get(name) for name in COLUMNS])
            text.write(row.get("parameters") or none)
        text.write("\n")
        text.flush()
        text.detach()


def _values(row: dict[str, Any], parameters: Sequence[str]) -> list[Any]:
    numbers = row["parameters"].split(",")[1:] if "parameters" in row else None
    return [*(row.get(name) for name in COLUMNS), *(map(float, numbers) if numbers else [None] * len(parameters))]


def _write_parquet(file: Path, rows: Iterator[dict[str, Any]], parameters: Sequence[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    def kind(name: str):
        return pyarrow.string() if name in _TEXTS else pyarrow.int32() if name == "face" else pyarrow.float64()

    columns = [*COLUMNS, *parameters]
    schema = pyarrow.schema([(name, kind(name)) for name in columns])
    with written_whole(file) as target, pyarrow.parquet.ParquetWriter(target, schema) as writer:
        while some := list(islice(rows, _PARQUET_ROWS)):
            by_column = zip(*(_values(row, parameters) for row in some), strict=True)
            arrays = [
                pyarrow.array(map(_readable, values), kind(name))
                for name, values in zip(columns, by_column, strict=True)
            ]
            writer.write_table(pyarrow.table(arrays, schema))


def _readable(value: Any) -> Any:
    """Texts as UTF-8 can hold them: a file name may be any bytes."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
