"""Triangles to pixels, with a z-buffer."""

from __future__ import annotations

import math

import cv2
import numpy as np

_NEAR, _FAR, _SHALLOW = 1.0, 2.0, 1.01


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
    return _rasterize(image, points, faces, colors, _FAR, back_faces)


def triangle_map(points: np.ndarray, faces: np.ndarray, height: int, width: int) -> np.ndarray:
    """The nearest triangle behind the middle of each pixel, (height, width) int32, -1 where there is none.

    Args: see :func:`draw_mesh`. Both sides of a triangle count.
    """
    number = np.repeat(np.arange(len(faces)), 3)
    colors = np.stack([number % 1024, number // 1024, 0 * number], axis=1)  # small enough to come through float32 whole
    apart = np.arange(3 * len(faces)).reshape(-1, 3)  # each triangle with corners, and so a colour, of its own
    canvas = np.zeros((height, width, 3), np.float32)
    covered = _rasterize(canvas, points[faces.ravel()], apart, colors, _SHALLOW, True)
    low, high = np.rint(canvas[..., 0]).astype(np.int32), np.rint(canvas[..., 1]).astype(np.int32)
    return np.where(covered, low + 1024 * high, -1)


def _rasterize(image, points, faces, colors, far: float, back_faces: bool) -> np.ndarray:
    """Paints in place; which pixels it did, (H, W) bool.

    far: depths are brought to [1, far]. Over a triangle the rasteriser takes the inverse of the depth for linear, as in
    perspective. The smaller the range, the less does that matter, and the fewer depths float32 can tell apart.
    """
    height, width = image.shape[:2]
    depth = points[:, 2]
    span = max(float(np.ptp(depth)), 1e-12)
    distance = _NEAR + (depth - depth.min()) * ((far - _NEAR) / span)
    # The rasteriser has a perspective camera only: with a field of view of 90 degrees a point at (x d, y d, -d) lands
    # on (x, y) for every distance d, which makes the picture orthographic.
    half = height / 2
    vertices = np.stack(
        [(points[:, 0] - width / 2) / half * distance, (half - points[:, 1]) / half * distance, -distance], axis=1
    )
    empty = 2 * far
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
