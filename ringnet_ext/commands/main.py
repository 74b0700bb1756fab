"""``ringnet``: all commands under one name, each imported when it is asked for."""

from __future__ import annotations

import argparse
import difflib
from importlib import import_module

from .. import __config__
from .._version import __version__
from .options import OptionError, Parser, called, command, path

#: What each verb does. Its module in this folder has the same name, a ``main(arguments)`` and a ``make_parser()``.
VERBS = {
    "train": "train RingNet, on rendered faces or on photographs",
    "infer": "reconstruct heads from photographs with a trained RingNet",
    "fit": "fit heads to the landmarks of photographs or of a video",
    "prepare": "make a training set of photographs",
    "evaluate": "measure heads against the scans of the NoW benchmark",
    "export": "write a trained network for ONNX Runtime and others",
    "convert": "convert head models and landmark embeddings of the field",
    "contour": "compute the contour landmarks of a head",
    "pose": "pose heads, and write pictures, meshes or arrays of them",
    "sheet": "draw what a head model can do, in one picture",
    "doctor": "say what is installed here and whether it works",
}
_FORMER = {"contact_sheet": "sheet", "flame": "pose"}  # as they are still called under python -m
SHELLS = ("bash", "zsh", "fish", "tcsh")


def make_parser() -> Parser:
    """The parser of what stands before a verb."""
    verbs = "\n".join(f"  {verb:<10}{text}" for verb, text in VERBS.items())
    parser = Parser(
        prog=called(),
        usage=f"{called()} VERB ...",
        description="RingNet: 3D heads from single photographs, and everything around FLAME's head models.",
        epilog=f"verbs:\n{verbs}\n\n{called()} VERB --help explains one of them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ringnet_ext {__version__}")
    parser.add_argument(
        "--print-completion",
        choices=SHELLS,
        metavar="SHELL",
        help=f"print what makes {', '.join(SHELLS[:-1])} or {SHELLS[-1]} complete verbs, options and files; for bash "
        "into ~/.local/share/bash-completion/completions/ringnet; needs the package shtab",
    )
    return parser


@command
def main(arguments: list[str]) -> int:
    parser = make_parser()
    if arguments and not arguments[0].startswith("-"):
        verb, *rest = arguments
        if verb not in VERBS:
            close = [_FORMER[verb]] if verb in _FORMER else difflib.get_close_matches(verb, VERBS, n=1)
            meant = f"; did you mean {close[0]}?" if close else ";"
            raise OptionError(f"there is no verb {verb!r}{meant} {called()} --help lists them")
        return _module(verb).main(rest)
    options = parser.parse_args(arguments)
    if options.print_completion is None:
        parser.error("expected a verb: " + ", ".join(VERBS))
    print(completion(options.print_completion))
    return 0


def _module(verb: str):
    """The module of a verb. Only doctor does without the compiled core and the packages that the others need."""
    try:
        if verb != "doctor":
            __config__.check_core()
        return import_module(f".{verb}", __package__)
    except ModuleNotFoundError as error:
        raise ImportError(f"{error}; ringnet doctor says what is missing") from error


def completion(shell: str) -> str:
    """The script that makes a shell complete verbs, options, and files and folders where one expects them."""
    try:
        import shtab
    except ImportError:
        raise OptionError("--print-completion: needs the package shtab; pip install shtab") from None
    parser = Parser(prog="ringnet")
    verbs = parser.add_subparsers()
    for verb, text in VERBS.items():
        of_verb = _module(verb).make_parser()
        for action in of_verb._actions:
            if action.type is path:
                action.complete = shtab.DIRECTORY if action.metavar == "DIR" else shtab.FILE
        verbs.add_parser(verb, parents=[of_verb], add_help=False, help=text)
    return shtab.complete(parser, shell)
