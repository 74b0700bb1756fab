"""Triangles to pixels, with a z-buffer."""

from __future__ import annotations

import math

import cv2
import numpy as np

_NEAR, _FAR = 1.0, 2.0


def draw_mesh(
    image: np.ndarray, points: np.ndarray, faces: np.ndarray, colors: np.ndarray, *, back_faces: bool = True
) -> np.ndarray:
    """Paint a mesh over an image, nearest surface on top.

    Args:
        image: (H, W, 3) float32, changed in place.
        points: (V, 3): x and y in pixels, then the depth.
        faces: (F, 3) vertex indices.
        colors: (V, 3) in [0, 1], interpolated over each face.
        back_faces: whether to paint faces seen from inside; without them a closed mesh is done in two thirds of the
            time.

    Returns:
        (H, W) bool, the pixels that the mesh covers.
    """
    height, width = image.shape[:2]
    depth = points[:, 2]
    span = max(float(np.ptp(depth)), 1e-12)
    distance = _NEAR + (depth - depth.min()) * ((_FAR - _NEAR) / span)
    # The rasteriser has a perspective camera only: with a field of view of 90 degrees a point at (x d, y d, -d) lands
    # on (x, y) for every distance d, which makes the picture orthographic.
    half = height / 2
    vertices = np.stack(
        [(points[:, 0] - width / 2) / half * distance, (half - points[:, 1]) / half * distance, -distance], axis=1
    )
    empty = 2 * _FAR
    buffer = np.full((height, width), empty, np.float32)
    settings = cv2.TriangleRasterizeSettings()
    settings.setShadingType(cv2.RASTERIZE_SHADING_SHADED)
    settings.setCullingMode(cv2.RASTERIZE_CULLING_NONE if back_faces else cv2.RASTERIZE_CULLING_CW)
    cv2.triangleRasterize(
        np.ascontiguousarray(vertices, np.float32), np.ascontiguousarray(faces, np.int32),
        np.ascontiguousarray(colors, np.float32), image, buffer, np.eye(4, dtype=np.float32),
        math.pi / 2, _NEAR / 2, empty, settings,
    )  # fmt: skip
    return buffer < empty
