"""The error of the NoW benchmark (Sanyal et al., CVPR 2019): how far a predicted head lies from a scan of the person.

As its own program, now_evaluation, computes it. The scan is cropped to a ball around the face. The prediction is
brought to the scan by seven landmarks, then by least squares of the distances between the scan's vertices and the
predicted surface, over rotation, translation and, unless sizes are to be compared too, scale. What is left of those
distances, in mm, is the error.

Two things differ, and neither matters where a prediction is near. Their program minimises by a dogleg method that stops
early; this one goes on to the minimum. And where sizes count, theirs starts from the translation of another scale,
which a head far from its origin doesn't recover from.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from ..geometry.alignment import Similarity, procrustes
from ..geometry.rotations import matrix_from_axis_angle
from ..geometry.surface import Surface

#: Millimetres of each unit that a prediction may have.
UNITS = {"mm": 1.0, "cm": 10.0, "m": 1000.0}

_RADIUS, _UPWARD = 1.4, 0.3  # of the ball: times the mean of the face's width and height; from the nose to the eyes
_STEPS, _SETTLED = 100, 1e-10  # at most; relative decrease of the sum of squares after which nothing moves any more


class ScanErrors(NamedTuple):
    """How far a prediction lies from a scan.

    points (N, 3): the scan's vertices in the ball, mm. distances (N,): of each to the prediction, mm. alignment: from
    the prediction's frame to the scan's. landmarks (7, 3): the scan's.
    """

    points: np.ndarray
    distances: np.ndarray
    alignment: Similarity
    landmarks: np.ndarray

    @property
    def mirrored(self) -> bool:
        """Whether the mirror image of the prediction lay closer by its landmarks, whose order should be looked at."""
        return bool(np.linalg.det(self.alignment.rotation) < 0)


def face_ball(landmarks: np.ndarray) -> tuple[np.ndarray, float]:
    """Centre (3,) and radius of the ball that a scan is cropped to, by its seven landmarks (7, 3): four corners of the
    eyes, the nose's base, two corners of the mouth."""
    nose, between_eyes = landmarks[4], landmarks[[1, 2]].mean(0)
    width, height = np.linalg.norm(landmarks[0] - landmarks[3]), np.linalg.norm(between_eyes - nose)
    return nose + _UPWARD * (between_eyes - nose), float(_RADIUS * (width + height) / 2)


def face_of(scan: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """The vertices (N, 3) of a scan (S, 3) that lie in the ball around its landmarks (7, 3).

    Raises:
        ValueError: there is none.
    """
    centre, radius = face_ball(landmarks)
    inside = np.square(scan - centre).sum(1) <= radius**2
    if not inside.any():
        raise ValueError("no vertex of the scan lies in the ball around its landmarks: are they another scan's?")
    return scan if inside.all() else scan[inside]


def scan_errors(
    scan: np.ndarray,
    scan_landmarks: np.ndarray,
    vertices: np.ndarray,
    triangles: np.ndarray,
    landmarks: np.ndarray,
    unit: str | None = None,
) -> ScanErrors:
    """The distances of a scan's face to a predicted head, which is aligned to it.

    Args:
        scan: (S, 3) vertices, mm, those beyond the face or not. scan_landmarks: (7, 3), mm.
        vertices, triangles: of the prediction, (V, 3) in any unit and (F, 3). landmarks: (7, 3) in its unit.
        unit: of the prediction, one of :data:`UNITS`, where its size counts (the benchmark's metrical evaluation);
            None: its scale is chosen too.

    Raises:
        ValueError: the scan has no vertex in the ball, or the prediction no surface, or all its landmarks are one
            point.
    """
    points = face_of(scan, scan_landmarks)
    if not np.ptp(landmarks, axis=0).any():
        raise ValueError(f"landmarks: expected seven points, got {landmarks[0].tolist()} seven times")
    start = procrustes(landmarks, scan_landmarks, None if unit is None else UNITS[unit])
    alignment, distances = _settled(points, Surface(vertices, triangles), start, scaled=unit is None)
    return ScanErrors(points, distances, alignment, scan_landmarks)


def _settled(points: np.ndarray, surface: Surface, start: Similarity, scaled: bool) -> tuple[Similarity, np.ndarray]:
    """Levenberg and Marquardt's method. The nearest point may be held as the surface moves: its own motion along the
    surface changes no distance, to the first order."""

    def found(alignment: Similarity) -> tuple[np.ndarray, np.ndarray]:
        offsets = alignment(surface.nearest(alignment.back(points))) - points
        return offsets, np.linalg.norm(offsets, axis=1)

    now, damping = start, 1e-3
    offsets, distances = found(now)
    middle = points.mean(0)
    size = np.sqrt(np.square(points - middle).sum(1).mean()) or 1.0  # of a single point any will do
    for _ in range(_STEPS):
        directions = offsets / np.maximum(distances, 1e-12)[:, None]
        arms = (offsets + points - middle) / size  # radians and logarithms move a point about as far as millimetres do
        columns = [directions, np.cross(arms, directions)]
        if scaled:
            columns.append((arms * directions).sum(1, keepdims=True))
        jacobian = np.concatenate(columns, axis=1)
        normal, gradient = jacobian.T @ jacobian, jacobian.T @ distances
        before = np.square(distances).sum()
        while True:
            step = np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-12), -gradient)
            turn = matrix_from_axis_angle(torch.from_numpy(step[3:6] / size)).numpy()
            # Finite, as a step that is too long is tried again shorter.
            growth = float(np.exp(np.clip(step[6] / size, -1, 1))) if scaled else 1.0
            shift = growth * turn @ (now.translation - middle) + middle + step[:3]
            after = Similarity(now.scale * growth, turn @ now.rotation, shift)
            offsets_after, distances_after = found(after)
            decrease = before - np.square(distances_after).sum()
            if decrease >= 0 or damping > 1e8:
                break
            damping *= 10
        if decrease < 0:  # to rounding, nothing is better
            break
        now, offsets, distances, damping = after, offsets_after, distances_after, max(damping / 10, 1e-9)
        if decrease <= _SETTLED * before:
            break
    return now, distances
