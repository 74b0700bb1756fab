"""Files and folders that appear whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def written_whole(path: str | os.PathLike):
    """A binary file to write to, which appears under `path` once it is complete, or not at all.

    An OSError names `path`. What a process that is killed leaves behind is for :func:`remove_leftovers`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _locked(temporary) as file:
            yield file
            file.flush()
            if not fcntl:  # Windows renames no open file
                file.close()
            os.replace(temporary, path)
    except OSError as error:
        if error.errno and error.filename in (None, temporary, os.fspath(temporary)):
            error.filename, error.filename2 = os.fspath(path), None
        raise
    finally:
        with suppress(OSError):  # beside the error that is on its way
            temporary.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(path: str | os.PathLike):
    """A folder to write into, which appears as `path` once the block is done, in place of what was there, or not at
    all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        lock = os.open(temporary, os.O_RDONLY) if fcntl else None
        try:
            _lock(lock)
            yield temporary
            if path.exists():
                shutil.rmtree(path)
            temporary.rename(path)
        finally:
            if lock is not None:
                os.close(lock)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# A temporary file is locked by whoever writes it. The system releases the locks of a process that dies, so a temporary
# file that can be locked is nobody's any more; process numbers would not tell, as they come again and differ between
# machines.


def _locked(temporary: Path):
    while True:
        file = open(temporary, "wb")
        _lock(file)
        if fcntl and os.fstat(file.fileno()).st_nlink == 0:  # taken for a leftover before it was locked
            file.close()
            continue
        return file


def _lock(file) -> None:
    if fcntl:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks, on which no leftover is removed either
            pass


def remove_leftovers(*folders: str | os.PathLike, name: str | None = None) -> None:
    """Remove what killed processes left half-written in these folders, not below them: of the file `name`, or of
    any."""
    pattern = re.compile(rf"\.{re.escape(name) if name else '.+'}\.\d+\.tmp")
    for folder in map(Path, folders):
        if not fcntl or not folder.is_dir():
            continue
        for leftover in [folder / entry for entry in os.listdir(folder) if pattern.fullmatch(entry)]:
            try:
                descriptor = os.open(leftover, os.O_RDONLY)
            except OSError:  # gone, or another's
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            except OSError:  # being written
                pass
            finally:
                os.close(descriptor)


# Where results go, checked before the work is done.


def output_folder(folder: Path, parts: Sequence[str] = (), option: str = "--out") -> Path:
    """A folder to write into, made if missing, without what killed processes left half-written in it or in these parts
    of it.

    Raises:
        OSError: naming the option and the folder, and saying why it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise OSError(f"{option}: {folder}: expected a folder, and a file is in its place") from None
    except OSError as error:
        raise OSError(f"{option}: {folder}: {error.strerror}") from None
    require_writable(folder, folder, option)
    remove_leftovers(folder, *(folder / part for part in parts))
    return folder


def require_writable(folder: Path, shown: Path, option: str) -> None:
    """Raises OSError, naming the option and what is shown, where no file can be made in the folder."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"{option}: {shown}: cannot be written: {error.strerror}") from None
