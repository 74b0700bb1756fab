"""Surfaces of triangles."""

from __future__ import annotations

import numpy as np


def vertex_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Area-weighted unit normals (V, 3) of a mesh of (V, 3) vertices and (F, 3) triangles, along their winding."""
    a, b, c = (vertices.take(triangles[:, i], axis=0) for i in range(3))
    normals_of_triangles = np.cross(b - a, c - a)
    corners = triangles.T.ravel()
    normals = np.stack(
        [np.bincount(corners, np.tile(normals_of_triangles[:, i], 3), minlength=len(vertices)) for i in range(3)],
        axis=1,
    )
    return (normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20)).astype(vertices.dtype)
