"""The folder for what takes long to make and can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(folder: str | os.PathLike | None = None) -> Path:
    """The folder itself; for None ``$RINGNET_CACHE``, else ``ringnet_ext`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if folder is not None:
        return Path(folder)
    own = os.environ.get("RINGNET_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ringnet_ext"
