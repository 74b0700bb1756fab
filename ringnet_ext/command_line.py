"""What the commands share: options that are checked as they are read, and errors as one line and an exit code.

A command exits with 0 when all is done, 1 when something failed, 2 when the command line itself is wrong, and 130 when
it was interrupted. Whatever went wrong is one line on the standard error stream that names the file or the option.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from .flame.files import remove_leftovers

FAILED, MISUSED, STOPPED = 1, 2, 130


class OptionError(ValueError):
    """An option that cannot be followed. The message begins with its name."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that says in one line what is wrong."""

    def error(self, message: str):
        self.exit(MISUSED, f"error: {message.removeprefix('argument ')}; {self.prog} --help lists the options\n")


def command(main: Callable[[list[str]], int]) -> Callable[[list[str] | None], int]:
    """Makes a command's ``main(arguments)`` say its errors in one line, and return the exit code that stands for them.

    Expected of ``main``: it raises :class:`OptionError` for an option, and OSError, ValueError or ImportError, whose
    messages name the file or the argument, for everything else that a user can mend. Other exceptions are mistakes of
    ours and keep their traceback.
    """

    @functools.wraps(main)
    def run(arguments: list[str] | None = None) -> int:
        try:
            return main(sys.argv[1:] if arguments is None else arguments)
        except OptionError as error:
            report(error)
            return MISUSED
        except BrokenPipeError:  # whoever read our output has gone
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return FAILED
        except (OSError, ValueError, ImportError, ArithmeticError, MemoryError) as error:
            report(error)
            return FAILED
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
                raise
            report(MemoryError(str(error)))
            return FAILED
        except KeyboardInterrupt as stop:
            report(stop)
            return STOPPED

    return run


def report(error: BaseException | str) -> None:
    """One line on the standard error stream."""
    print(f"error: {explained(error)}", file=sys.stderr)


def explained(error: BaseException | str) -> str:
    """An error in one line: of the system's own the file first, then the reason."""
    if isinstance(error, OSError) and error.strerror:
        text = f"{os.fsdecode(error.filename)}: {error.strerror}" if error.filename else error.strerror
    elif isinstance(error, MemoryError):
        text = f"out of memory: {error}" if str(error) else "out of memory"
    elif isinstance(error, KeyboardInterrupt):
        text = str(error) or "interrupted"
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())


# Types of options, for argparse's `type`.


def whole(least: int | None = None, most: int | None = None) -> Callable[[str], int]:
    """A whole number within limits."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        return _within(text, value, least, most, "a whole number")

    return parse


def real(
    least: float | None = None, most: float | None = None, *, above: float | None = None, below: float | None = None
) -> Callable[[str], float]:
    """A finite number within limits; `above` and `below` are not among the values themselves."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = None
        return _within(text, value, least, most, "a number", above, below)

    return parse


def _within(text, value, least, most, kind, above=None, below=None):
    limits = [
        f"{word} {limit}"
        for word, limit in (("of at least", least), ("above", above), ("of at most", most), ("below", below))
        if limit is not None
    ]
    wrong = (
        value is None or not math.isfinite(value) or (least is not None and value < least)
        or (most is not None and value > most) or (above is not None and value <= above)
        or (below is not None and value >= below)
    )  # fmt: skip
    if wrong:
        raise argparse.ArgumentTypeError(f"expected {' '.join([kind, ' and '.join(limits)]).strip()}, got {text!r}")
    return value


def path(text: str) -> Path:
    """The path of a file or folder. An empty one, as of a variable that is not set, would stand for the working
    directory."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"expected a path, got {text!r}")
    return Path(text)


def computing_device(name: str | None = None) -> torch.device:
    """The device of ``--device``: ``cpu``, ``cuda`` or ``cuda:N``; None for CUDA where it can be computed on, else the
    CPU.

    Raises:
        OptionError: there is no such device, or nothing that computes on it.
    """
    import _ringnet_core

    compiled = bool(_ringnet_core.cuda_architectures)
    if name is None:
        return torch.device("cuda" if compiled and torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise OptionError(f"--device: expected cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if torch.version.cuda is None:
            raise OptionError(f"--device: {name}: this PyTorch, {torch.__version__}, is built without CUDA")
        if (device.index or 0) >= count:
            raise OptionError(f"--device: {name}: there are {count} CUDA devices that PyTorch can use")
        if not compiled:
            raise OptionError(
                f"--device: {name}: ringnet_ext is built without CUDA; install it again with "
                "pip install . -C cmake.define.RINGNET_CUDA=ON"
            )
    return device


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
    _require_writable(folder, folder, option)
    remove_leftovers(folder, *(folder / part for part in parts))
    return folder


def output_file(file: Path, suffixes: tuple[str, ...] = (), option: str = "--out") -> Path:
    """A file to write, in a folder that is there.

    Raises:
        OptionError: its name ends in none of `suffixes`.
        OSError: naming the option and the file, and saying why it cannot be written.
    """
    if suffixes and file.suffix.lower() not in suffixes:
        raise OptionError(f"{option}: {file}: expected a name that ends in {' or '.join(suffixes)}")
    if file.is_dir():
        raise OSError(f"{option}: {file}: expected a file, and a folder is in its place")
    if not file.parent.is_dir():
        raise OSError(f"{option}: {file}: there is no folder {file.parent}")
    _require_writable(file.parent, file, option)
    remove_leftovers(file.parent, name=file.name)
    return file


def _require_writable(folder: Path, shown: Path, option: str) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"{option}: {shown}: cannot be written: {error.strerror}") from None
