"""Errors in one line."""

from __future__ import annotations

import os


class DeviceError(ValueError):
    """The device that was asked for does not exist, or nothing here computes on it."""


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
