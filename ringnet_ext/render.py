"""Pictures of heads: a z-buffered mesh painter and the panels and sheets made with it.

Images are (H, W, 3), RGB. Points are in pixels with x to the right and y down, where the centre of the first pixel
is at (0.5, 0.5), and a depth that grows away from the viewer in any unit.
"""

import math

import cv2
import numpy as np

CLAY = (0.74, 0.72, 0.70)
_NEAR, _FAR = 1.0, 2.0


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Area-weighted unit normals (V, 3) of a mesh of (V, 3) vertices and (F, 3) faces, along the faces' winding."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    face_normals = np.cross(b - a, c - a)
    corners = faces.T.ravel()
    normals = np.stack(
        [np.bincount(corners, np.tile(face_normals[:, i], 3), minlength=len(vertices)) for i in range(3)], axis=1
    )
    return (normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20)).astype(vertices.dtype)


def draw_mesh(image: np.ndarray, points: np.ndarray, faces: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Paint a mesh over an image, nearest surface on top, back faces included.

    Args:
        image: (H, W, 3) float32, changed in place.
        points: (V, 3): x and y in pixels, then the depth.
        faces: (F, 3) vertex indices.
        colors: (V, 3) in [0, 1], interpolated over each face.

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
    settings.setCullingMode(cv2.RASTERIZE_CULLING_NONE)
    cv2.triangleRasterize(
        np.ascontiguousarray(vertices, np.float32), np.ascontiguousarray(faces, np.int32),
        np.ascontiguousarray(colors, np.float32), image, buffer, np.eye(4, dtype=np.float32),
        math.pi / 2, _NEAR / 2, empty, settings,
    )  # fmt: skip
    return buffer < empty
