"""Surfaces of triangles."""

from __future__ import annotations

import _ringnet_core as core
import numpy as np


def vertex_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Area-weighted unit normals (V, 3) of a mesh of (V, 3) vertices and (F, 3) triangles, along their winding.

    Raises IndexError where a triangle has a vertex that there isn't.
    """
    return core.vertex_normals(vertices, triangles)


class Surface:
    """A mesh of (V, 3) vertices and (F, 3) triangles, to which the distances of many points are asked. Triangles
    without area are left out, as all their points are others' too, or of no surface.

    Raises:
        ImportError: the package libigl is missing.
        ValueError: no triangle has an area.
    """

    def __init__(self, vertices: np.ndarray, triangles: np.ndarray):
        try:
            import igl
        except ImportError:
            raise ImportError("distances to a surface need the package libigl: pip install libigl") from None
        self._vertices = np.ascontiguousarray(vertices, np.float64)
        triangles = np.ascontiguousarray(triangles, np.int64)
        a, b, c = (self._vertices[triangles[:, i]] for i in range(3))
        self._triangles = triangles[np.linalg.norm(np.cross(b - a, c - a), axis=1) > 0]
        if not len(self._triangles):
            raise ValueError("triangles: expected some with an area")
        self._tree = igl.AABB()
        self._tree.init(self._vertices, self._triangles)

    def nearest(self, points: np.ndarray) -> np.ndarray:
        """The points of the surface that are nearest to (N, 3) points, (N, 3) float64."""
        points = np.ascontiguousarray(points, np.float64)
        return self._tree.squared_distance(self._vertices, self._triangles, points)[2]
