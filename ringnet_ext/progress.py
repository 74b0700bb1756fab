"""How far long work is: a bar on a terminal, and a line every half a minute where there is none."""

from __future__ import annotations

import sys

from tqdm import tqdm

#: Seconds between the lines of work that nobody watches on a terminal.
INTERVAL = 30.0
_LINE = "{desc}: {n_fmt} of {total_fmt} ({percentage:.0f} %), {rate_fmt}, {elapsed} so far, {remaining} to go{postfix}"


class _Lines:
    """What tqdm draws over and over in one place, as lines below each other."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line:
            self.stream.write(line + "\n")

    def flush(self) -> None:
        self.stream.flush()


def progress(iterable=None, *, total=None, desc: str, unit: str, initial=0, show=True, leave=True) -> tqdm:
    """A tqdm over `iterable`, or to be updated by hand. Work that is over within half a minute prints no line.

    Args:
        total: of an iterable without a length. initial: how much of it was done before. show: False for no output at
            all.
        leave: whether a terminal keeps the bar when the work is done.
    """
    show = show and sys.stderr is not None
    common = {"total": total, "desc": desc, "unit": unit, "initial": initial, "disable": not show}
    if not show or sys.stderr.isatty():
        return tqdm(iterable, leave=leave, **common)
    return tqdm(
        iterable, file=_Lines(sys.stderr), bar_format=_LINE, mininterval=INTERVAL, maxinterval=INTERVAL, miniters=1,
        delay=INTERVAL, leave=True, **common,
    )  # fmt: skip
