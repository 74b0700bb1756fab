"""Pictures of heads: a z-buffered mesh painter and the panels and sheets made with it.

Images are (H, W, 3), RGB. Points are in pixels with x to the right and y down, where the centre of the first pixel
is at (0.5, 0.5), and a depth that grows away from the viewer in any unit.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from ..geometry.camera import project_to_pixels
from ..geometry.surface import vertex_normals
from .raster import draw_mesh

CLAY = (0.74, 0.72, 0.70)
_SMOOTHED = 2048  # pixels: larger meshes are painted without supersampling, which would take a gigabyte


def clay(normals: np.ndarray, albedo: np.ndarray | tuple[float, float, float] = CLAY) -> np.ndarray:
    """Colours (V, 3) of a matt surface under a fixed light, from unit normals in the picture's frame (y down, z
    away)."""
    key = np.array([-0.45, -0.5, -0.75])
    rim = np.array([0.9, -0.1, -0.2])
    diffuse = 0.75 * np.clip(normals @ (key / np.linalg.norm(key)), 0, None)
    diffuse += 0.25 * np.clip(normals @ (rim / np.linalg.norm(rim)), 0, None)
    return np.clip(np.asarray(albedo) * (0.28 + diffuse[:, None]), 0, 1).astype(np.float32)


def head_picture(
    vertices: np.ndarray,
    faces: np.ndarray,
    size: int = 224,
    *,
    yaw: float = 0.0,
    albedo: np.ndarray | tuple[float, float, float] = CLAY,
    extent: float = 0.32,
    centre: tuple[float, float, float] | None = None,
    points: np.ndarray | None = None,
) -> np.ndarray:
    """A head on white, seen from the front by an orthographic camera.

    Args:
        vertices: (V, 3) metres, y up.
        size: side of the picture in pixels.
        yaw: radians by which the head is turned to its left before the picture is taken.
        albedo: one colour, or (V, 3).
        extent: metres that the picture spans.
        centre: the point in the middle; None for the middle of the vertices' box.
        points: (N, 3) landmarks to mark, metres, in front of everything.

    Returns:
        (size, size, 3) uint8.
    """
    cos, sin = math.cos(yaw), math.sin(yaw)
    turn = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    middle = (vertices.min(0) + vertices.max(0)) / 2 if centre is None else np.asarray(centre)
    down = np.array([1.0, -1.0, -1.0])
    fine = 2 * size  # supersampling smooths the edges

    def seen(positions):
        return (positions - middle) @ turn.T * down

    view = seen(vertices)
    pixels = view * (fine / extent) + np.array([fine / 2, fine / 2, 0])
    image = np.ones((fine, fine, 3), np.float32)
    draw_mesh(image, pixels, faces, clay(vertex_normals(view, faces), albedo))
    image = to_uint8(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA))
    if points is not None:
        mark_points(image, seen(points)[:, :2] * (size / extent) + size / 2, radius=max(1.0, size / 140))
    return image


def overlay(
    image: np.ndarray, vertices: np.ndarray, faces: np.ndarray, camera: np.ndarray, opacity: float = 0.85
) -> np.ndarray:
    """The mesh over the photograph it was read from.

    Args:
        image: (S, S, 3) uint8.
        vertices: (V, 3) metres, in RingNet's frame (y down).
        camera: (3,) weak-perspective camera.
    """
    points = project_to_pixels(vertices, camera, image.shape[0])
    return over(image, points, faces, vertex_normals(vertices, faces), opacity)


def over(
    image: np.ndarray, points: np.ndarray, faces: np.ndarray, normals: np.ndarray, opacity: float = 0.85
) -> np.ndarray:
    """A mesh over an image.

    Args:
        image: (H, W, 3) uint8.
        points: (V, 3): pixels of it, then the depth, which grows away from the viewer.
        normals: (V, 3), in the picture's frame (y down, z away).

    Returns:
        (H, W, 3) uint8, a copy of the image where the mesh isn't.
    """
    result = image.copy()
    limit = np.array(image.shape[1::-1])
    (left, top), (right, bottom) = (
        np.clip(corner, 0, limit).astype(int)
        for corner in (np.floor(points[:, :2].min(0)) - 1, np.ceil(points[:, :2].max(0)) + 1)
    )
    if left >= right or top >= bottom:
        return result
    part = image[top:bottom, left:right]
    factor = 2 if max(part.shape) <= _SMOOTHED else 1
    # The mesh on nothing and how much of each pixel it covers, so that the image beside it stays as it is.
    layer = np.zeros((factor * part.shape[0], factor * part.shape[1], 3), np.float32)
    alpha = draw_mesh(layer, (points - (left, top, 0)) * (factor, factor, 1), faces, clay(normals)).astype(np.float32)
    colors, covered = (cv2.resize(each, part.shape[1::-1], interpolation=cv2.INTER_AREA) for each in (layer, alpha))
    seen = (1 - opacity * covered[..., None]) * (part.astype(np.float32) / 255) + opacity * colors
    result[top:bottom, left:right] = to_uint8(seen)
    return result


def mark_points(
    image: np.ndarray, points: np.ndarray, color: tuple[int, int, int] = (220, 30, 40), radius: float = 1.6
) -> None:
    """Draw (N, 2) points, in pixels, on a uint8 image in place."""
    fraction = 4
    for x, y in (points - 0.5) * 2**fraction:
        centre = (round(float(x)), round(float(y)))
        cv2.circle(image, centre, round(radius * 2**fraction), color, -1, cv2.LINE_AA, fraction)


def write_text(image: np.ndarray, text: str, color: tuple[int, int, int] = (255, 255, 255)) -> None:
    """Write a line in the upper left corner of a uint8 image, in place, legible on any ground."""
    outline = [(x, y, (0, 0, 0)) for x in (-1, 0, 1) for y in (-1, 0, 1)]
    for x, y, shade in [*outline, (0, 0, color)]:
        cv2.putText(image, text, (8 + x, 20 + y), cv2.FONT_HERSHEY_SIMPLEX, 0.5, shade, 1, cv2.LINE_AA)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Float in [0, 1] to uint8."""
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
