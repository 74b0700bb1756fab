"""What the pixels of a picture see of a mesh, which triangle and where on it; maps of what the vertices have."""

from __future__ import annotations

import numpy as np

from .raster import triangle_map


class SurfaceMap:
    """The point of a mesh that lies behind the middle of each pixel, seen without perspective, the nearest one.

    triangle (H, W) int32: its triangle, -1 where the mesh isn't. seen (H, W) bool: where it is. weights (N, 3) float64:
    its barycentric coordinates in that triangle, for the N pixels that see it, in rows.

    Args:
        points: (V, 3): x and y in pixels, the middle of the first one at (0.5, 0.5), then the depth, which grows away
            from the viewer.
        triangles: (F, 3) vertex indices; both sides of a triangle are seen.
        height, width: of the picture.
    """

    def __init__(self, points: np.ndarray, triangles: np.ndarray, height: int, width: int):
        self.triangle = triangle_map(points, triangles, height, width)
        self.seen = self.triangle >= 0
        self._corners = triangles[self.triangle[self.seen]]
        y, x = np.nonzero(self.seen)
        a, b, c = (points[self._corners[:, i], :2].astype(np.float64) for i in range(3))
        u, v, p = b - a, c - a, np.column_stack([x, y]) + 0.5 - a
        area = u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]
        area = np.where(area == 0, np.finfo(np.float64).tiny, area)
        second = (p[:, 0] * v[:, 1] - p[:, 1] * v[:, 0]) / area
        third = (u[:, 0] * p[:, 1] - u[:, 1] * p[:, 0]) / area
        # The rasteriser rounds: a pixel on an edge may be a hair outside of the triangle that it was given.
        weights = np.clip(np.column_stack([1 - second - third, second, third]), 0, 1)
        self.weights = weights / weights.sum(1, keepdims=True)

    def of(self, values: np.ndarray, unit: bool = False) -> np.ndarray:
        """A map of what the vertices have: (V,) or (V, n) -> (H, W) or (H, W, n) float32, NaN where the mesh isn't.

        unit: whether the values are unit vectors, and should be such in between too.
        """
        mixed = np.einsum("nk,nk...->n...", self.weights, values[self._corners])
        if unit:
            mixed /= np.maximum(np.linalg.norm(mixed, axis=-1, keepdims=True), 1e-20)
        result = np.full((*self.seen.shape, *values.shape[1:]), np.nan, np.float32)
        result[self.seen] = mixed
        return result
