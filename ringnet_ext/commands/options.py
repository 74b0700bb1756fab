"""What the commands share: options that are checked as they are read, those that mean the same everywhere, and errors
as one line and an exit code.

A command exits with 0 when all is done, 1 when something failed, 2 when the command line itself is wrong, and 130 when
it was interrupted. Whatever went wrong is one line on the standard error stream that names the file or the option.

Nothing here imports PyTorch, so that a command line without a task, like ``--help``, is answered at once.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..files.errors import DeviceError, explained
from ..files.whole import remove_leftovers, require_writable

if TYPE_CHECKING:
    import torch

FAILED, MISUSED, STOPPED = 1, 2, 130


class OptionError(ValueError):
    """An option that cannot be followed. The message begins with its name."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that says in one line what is wrong."""

    def error(self, message: str):
        self.exit(MISUSED, f"error: {message.removeprefix('argument ')}; {self.prog} --help lists the options\n")


def called(verb: str = "") -> str:
    """The words that began this command line: ``ringnet VERB``, ``python -m ringnet_ext VERB``, or ``python -m`` and
    the module that was run, which may have another name than the verb."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    module = spec.name.removesuffix(".__main__") if spec is not None else ""
    if module.split(".")[0] != "ringnet_ext":
        return f"ringnet {verb}".rstrip()
    return f"python -m {module} {verb}".rstrip() if module == "ringnet_ext" else f"python -m {module}"


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
            if not _out_of_memory(error):
                raise
            report(MemoryError(str(error)))
            return FAILED
        except KeyboardInterrupt as stop:
            report(stop)
            return STOPPED

    return run


def _out_of_memory(error: RuntimeError) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def report(error: BaseException | str, kind: str = "error") -> None:
    """One line on the standard error stream. File names may be any bytes, and are not always text."""
    text = explained(error).encode("utf-8", "backslashreplace").decode()
    print(f"{kind}: {text}", file=sys.stderr)


# Options that mean the same in every command that has them. A group is a parser, or a group of its arguments.


def add_head(group, text: str = "head model file [the built-in head]", *, former: str | None = None) -> None:
    """``--head``: the file of the head model.

    Args:
        former: the option's or the positional argument's name in earlier versions, which is still understood.
    """
    group = group if former is None else group.add_mutually_exclusive_group()
    group.add_argument("--head", type=path, metavar="FILE", help=text)
    if former is not None:
        positional = {} if former.startswith("-") else {"nargs": "?", "metavar": former.upper()}
        group.add_argument(former, action=_Former, now="head", type=path, **positional)


def add_out(group, text: str, metavar: str = "DIR", **kwargs) -> None:
    """``--out``: the folder, or the file, that results are written to."""
    group.add_argument("--out", type=path, metavar=metavar, help=text, **kwargs)


def add_device(group, more: str = "") -> None:
    """``--device``: what computes. ``more``: what a command has to add."""
    group.add_argument("--device", help=f"cpu, cuda or cuda:N{more} [cuda if there is one, else cpu]")


def add_threads(group, *, former: str | None = None) -> None:
    """``--threads``: how many threads of the CPU compute, over all that runs at once: the network and the operators, or
    what a command does in their place."""
    text = "CPU threads; 0 for as many as this machine has cores for [0]"
    group.add_argument("--threads", type=whole(0, 1024), default=0, metavar="N", help=text)
    if former is not None:
        group.add_argument(former, action=_Former, now="threads", type=whole(1, 1024))


def add_seed(group, default: int = 0) -> None:
    """``--seed``: what everything random follows from."""
    group.add_argument(
        "--seed", type=whole(0), default=default, metavar="N", help=f"seed of everything random [{default}]"
    )


class _Former(argparse.Action):
    """An argument's name in earlier versions: understood, and not in the help."""

    def __init__(self, option_strings, dest, *, now: str, **kwargs):
        super().__init__(option_strings, dest, help=argparse.SUPPRESS, **kwargs)
        self.now = now

    def __call__(self, parser, namespace, values, option_string=None):
        if values is not None:  # as of a positional argument that is not given
            setattr(namespace, self.now, values)


def use_threads(options: argparse.Namespace) -> None:
    """Give PyTorch, and with it the operators, as many threads as ``--threads`` says."""
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)


def chosen_device(options: argparse.Namespace) -> torch.device:
    """The device that ``--device`` names; on the CPU, with ``--threads`` threads.

    Raises:
        DeviceError: there is no such device.
    """
    from ..ops.devices import computing_device

    use_threads(options)
    return computing_device(options.device)


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


def require_apart(out: Path, written: Iterable[str], read: Iterable[Path]) -> None:
    """Raises OptionError where files or folders that are written in `out` are among those that are read: results would
    take the place of what they are made of, or be taken for it."""
    places = {os.path.realpath(out / each) for each in written}
    for each in read:
        if os.path.realpath(each) in places:
            raise OptionError(
                f"--out: {out}: results would be written to {each}, which is read; expected another folder"
            )
