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
from collections.abc import Callable
from pathlib import Path

import torch

from ..files.errors import explained
from ..files.whole import remove_leftovers, require_writable
from ..ops.devices import DeviceError

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
        except DeviceError as error:  # its argument is called as the option is
            report(f"--{error}")
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


def report(error: BaseException | str, kind: str = "error") -> None:
    """One line on the standard error stream. File names may be any bytes, and are not always text."""
    text = explained(error).encode("utf-8", "backslashreplace").decode()
    print(f"{kind}: {text}", file=sys.stderr)


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


# Where results go, checked before the work is done.


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
    require_writable(file.parent, file, option)
    remove_leftovers(file.parent, name=file.name)
    return file
