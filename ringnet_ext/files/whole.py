"""Files and folders that appear whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
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
    path = os.fspath(path)
    temporary = _temporary(path)
    try:
        with _locked(temporary) as file:
            yield file
            file.flush()
            _appear(file, temporary, path)
    except BaseException as error:
        _name(error, path, temporary)
        with suppress(OSError):  # beside the error that is on its way
            os.unlink(temporary)
        raise


def write_together(files: Mapping[str, Iterable[bytes]]) -> None:
    """Write files, path -> parts of its content, which appear when all are complete, or none of them does. Folders are
    made where they are missing.

    An OSError names the file. Where there is one, what was under the other paths before is removed too.
    """
    path, written = "", []
    try:
        for path, parts in files.items():
            try:
                file = _locked(_temporary(path))
            except FileNotFoundError:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                file = _locked(_temporary(path))
            written.append(file)
            for part in parts:
                file.write(part)
            file.flush()
        for path, file in zip(files, written, strict=True):
            _appear(file, file.name, path)
    except BaseException as error:
        _name(error, path, _temporary(path))
        for each in (*files, *map(_temporary, files)):
            with suppress(OSError):  # not there, or what stood in the way
                os.unlink(each)
        raise
    finally:
        for file in written:
            with suppress(OSError):  # a full disk's, which has been said
                file.close()


def _temporary(path: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.{os.getpid()}.tmp")


def _appear(file, temporary: str, path: str) -> None:
    if not fcntl:  # Windows renames no open file
        file.close()
    os.replace(temporary, path)


def _name(error: BaseException, path: str, temporary: str) -> None:
    if isinstance(error, OSError) and error.errno and error.filename in (None, temporary):
        error.filename = path
        del error.filename2  # None would be shown


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


def _locked(temporary: str):
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
