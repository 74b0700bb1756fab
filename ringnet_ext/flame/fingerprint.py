"""Which head it is that coefficients belong to."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np

from . import FlameModel, builtin_head
from .builtin import VERSION as BUILTIN_VERSION


def fingerprint(head: FlameModel) -> str:
    """Tells apart what coefficients stand for: ``builtin-1`` for the first version of the built-in head, else a digest
    of template, directions and triangles, which is the same for a head in any file format, in float32 or float64."""
    digest = _digest(head)
    return f"builtin-{BUILTIN_VERSION}" if digest == _builtin_digest() else digest


def _digest(head: FlameModel) -> str:
    digest = hashlib.sha256()
    for array in (head.v_template, head.shapedirs, head.expressiondirs, head.faces):
        digest.update(np.ascontiguousarray(array, dtype=np.float32).data)
    return digest.hexdigest()[:16]


@lru_cache(1)
def _builtin_digest() -> str:
    return _digest(builtin_head())
