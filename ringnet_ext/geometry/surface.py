"""Surfaces of triangles."""

from __future__ import annotations

import _ringnet_core as core
import numpy as np


def vertex_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Area-weighted unit normals (V, 3) of a mesh of (V, 3) vertices and (F, 3) triangles, along their winding.

    Raises IndexError where a triangle has a vertex that there isn't.
    """
    return core.vertex_normals(vertices, triangles)
