"""Options of a command from a file, and what a run folder says of how the run came about."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def _toml(text: str):
    toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    return toml.loads(text)


def _yaml(text: str):
    import yaml

    return yaml.safe_load(text)


#: Options that a run's config.json has too, but which are about starting that run.
_OF_ONE_START = ("config", "resume", "overwrite")
_FORMATS: dict[str, Callable[[str], Any]] = {".toml": _toml, ".yaml": _yaml, ".yml": _yaml, ".json": json.loads}


def file_arguments(path: str | Path, parser: argparse.ArgumentParser) -> list[str]:
    """The options in a file as command-line arguments, so that they are checked as those are.

    Args:
        path: a .toml, .yaml or .json file with the long names of options, with ``-`` or ``_``, and their values; or the
            ``config.json`` of a run. True and false are for options without a value, null leaves one out.
        parser: the parser whose options they are.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it can't be read, or names an option that there isn't; says which.
    """
    path = Path(path)
    if path.suffix not in _FORMATS:
        raise ValueError(f"{path}: expected a {', '.join(_FORMATS)} file")
    text = path.read_text()
    try:
        values = _FORMATS[path.suffix](text)
    except ValueError as error:  # of tomllib and json
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:
        if type(error).__module__.split(".")[0] != "yaml":
            raise
        raise ValueError(f"{path}: {error}") from None
    if isinstance(values, dict) and "options" in values and path.suffix == ".json":
        values = {name: value for name, value in values["options"].items() if name not in _OF_ONE_START}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected names and values of options, got {type(values).__name__}")
    known = {action.option_strings[-1]: action for action in parser._actions if action.option_strings}
    arguments = []
    for name, value in values.items():
        flag = "--" + str(name).replace("_", "-")
        if flag not in known or flag in ("--help", "--config"):
            close = difflib.get_close_matches(flag, known, n=1)
            raise ValueError(
                f"{path}: there is no option {name!r}" + (f"; did you mean {close[0][2:]}?" if close else "")
            )
        takes_none = known[flag].nargs == 0
        if (takes_none != isinstance(value, bool) and value is not None) or isinstance(value, (dict, list)):
            raise ValueError(
                f"{path}: {name}: expected {'true or false' if takes_none else 'one value'}, got {value!r}"
            )
        if takes_none:
            arguments += [flag] if value else []
        elif value is not None:
            arguments.append(f"{flag}={value}")
    return arguments
