"""Landmarks, contour table and named regions of the built-in head."""

from __future__ import annotations

import numpy as np

from ..landmarks import CONTOUR_MAX_DEGREES, LandmarkEmbedding
from . import template as T

_FIRST_QUAD = T.HALF + 3 * T.HALF  # triangles before those of the quads


def locate(ring, column):
    """Triangle and barycentric coordinates of a point of the grid with fractional ring >= 0 and column -30 ... 30.

    Points with a negative column are the mirror images of those with a positive one.
    """
    mirrored, column = column < 0, abs(column)
    r, c = min(int(ring), T.RINGS - 2), min(int(column), T.HALF - 1)
    u, v = column - c, ring - r
    upper = u + v <= 1
    bary = (1 - u - v, v, u) if upper else (1 - v, 1 - u, u + v - 1)
    if mirrored:
        quad = r * T.COLUMNS + (-(c + 1)) % T.COLUMNS
        face, bary = (1, (bary[2], bary[1], bary[0])) if upper else (0, (bary[0], bary[2], bary[1]))
    else:
        quad = r * T.COLUMNS + c
        face = 0 if upper else 1
    return _FIRST_QUAD + 2 * quad + face, np.array(bary)


def _static(head):
    """Grid coordinates of the 51 static points, iBUG 17-67."""
    grid = head.vertices[1 + T.HALF : T.SKIN].reshape(T.RINGS, T.COLUMNS, 3)[:, : T.HALF + 1]
    face = grid[:, : T.EAR[0]]

    def at_x(ring, x):
        return ring, float(np.interp(x, face[ring, :, 0], np.arange(face.shape[1])))

    def middle(y):
        rings = np.arange(T.BROW, T.NOSE_BASE + 1)
        return float(np.interp(-y, -grid[rings, 0, 1], rings)), 0.0

    mirror = lambda points: [(ring, -column) for ring, column in points]
    brow = [at_x(T.BROW, x) for x in (10, 20, 30, 40, 49)]  # inner to outer
    bridge = [middle(y) for y in (22.5, 9.5, -3.5, -16.5)]
    wing = [at_x(T.NOSE_BASE, x) for x in (6.5, 13.0)]
    canthus = [(18.5, T.INNER_CANTHUS), (18.5, T.OUTER_CANTHUS)]
    lids = [at_x(ring, x) for ring in (T.UPPER_LID, T.LOWER_LID) for x in (26.5, 36.0)]
    eye = [canthus[0], lids[0], lids[1], canthus[1], lids[3], lids[2]]  # 42-47
    corner = [(41.5, T.MOUTH_CORNER)]
    upper = [at_x(T.UPPER_BORDER, x) for x in (6.0, 15.0)]
    lower = [at_x(T.LOWER_BORDER, x) for x in (15.0, 7.0)]
    inner = [at_x(T.UPPER_LIP, 8.0), at_x(T.UPPER_LIP, 22.0), at_x(T.LOWER_LIP, 8.0)]
    right_eye = mirror([eye[3], eye[2], eye[1], eye[0], eye[5], eye[4]])
    points = mirror(brow[::-1]) + brow + bridge
    points += mirror(wing[::-1]) + [(T.NOSE_BASE, 0.0)] + wing + right_eye + eye
    points += mirror(corner + upper[::-1]) + [(T.UPPER_BORDER, 0.0)] + upper + corner
    points += lower + [(T.LOWER_BORDER, 0.0)] + mirror(lower[::-1])
    points += mirror([inner[1], inner[0]]) + [(T.UPPER_LIP, 0.0)] + inner
    return points + [(T.LOWER_LIP, 0.0)] + mirror([inner[2]])


_CHIN_POINT = (56.0, 0.0)
_CONTOUR_Y = (-87.5, -79.0, -67.5, -53.5, -38.0, -21.0, -3.5, 14.0)  # of the points 9-16


def _outline(head):
    """Grid coordinates (40, 8, 2) of the points 9-16 on the outline of the face turned by 0 ... 39 degrees to the left.

    A turn about y keeps heights, so each point stays on the face's slice at its height, and its outline there is where
    the turned slice reaches furthest to the side.
    """
    grid = head.vertices[1 + T.HALF : T.SKIN].reshape(T.RINGS, T.COLUMNS, 3)
    first, last = T.BROW - 5, T.JAW
    yaw = np.radians(np.arange(CONTOUR_MAX_DEGREES + 1))[:, None]
    result = np.zeros((len(yaw), len(_CONTOUR_Y), 2))
    for k, y in enumerate(_CONTOUR_Y):
        columns = np.linspace(1 if y < -70 else T.MOUTH_CORNER, T.EAR[0], 401)
        rings, points = [], []
        for column in columns:
            c = min(int(column), T.EAR[0] - 1)
            u = column - c
            # Along a column of the grid the surface bends at the rings and at the triangles' diagonals.
            along = grid[first:last, c] * (1 - u) + grid[first:last, c + 1] * u
            diagonal = grid[first + 1 : last, c] * (1 - u) + grid[first : last - 1, c + 1] * u
            path, at = np.zeros((2 * len(along) - 1, 3)), np.zeros(2 * len(along) - 1)
            path[::2], path[1::2] = along, diagonal
            at[::2], at[1::2] = np.arange(first, last), np.arange(first, last - 1) + (1 - u)
            i = np.argmax(path[:, 1] < y)
            if path[i, 1] >= y or i == 0:  # already under the jaw
                break
            f = (y - path[i - 1, 1]) / (path[i, 1] - path[i - 1, 1])
            rings.append(at[i - 1] + f * (at[i] - at[i - 1]))
            points.append(path[i - 1] + f * (path[i] - path[i - 1]))
        points, columns = np.array(points), columns[: len(points)]
        side = points[:, 0] * np.cos(yaw) + points[:, 2] * np.sin(yaw)  # (40, columns)
        # The flat top of the slice rather than its one highest sample, so that the point moves smoothly with the turn.
        weight = np.exp((side - side.max(1, keepdims=True)) / 0.15)
        column = (weight * columns).sum(1) / weight.sum(1)
        result[:, k, 0] = np.interp(column, columns, rings)
        result[:, k, 1] = column
    return result


def landmark_embedding(head: T.Template) -> LandmarkEmbedding:
    """The 68 points of iBUG on the mean head."""

    def embed(points):
        faces, bary = zip(*[locate(*p) for p in points], strict=True)
        return np.array(faces), np.array(bary)

    outline = _outline(head)
    right = [(ring, -column) for ring, column in outline[0][::-1]]  # 0-7
    rows = []
    for yaw in range(CONTOUR_MAX_DEGREES + 1):
        rows.append(right + [_CHIN_POINT] + [tuple(p) for p in outline[yaw]])
    for yaw in range(1, CONTOUR_MAX_DEGREES + 1):
        turned = [(ring, -column) for ring, column in outline[yaw][::-1]]
        rows.append(turned + [_CHIN_POINT] + [tuple(p) for p in outline[0]])
    contour = [embed(row) for row in rows]
    static_faces, static_bary = embed(_static(head))
    return LandmarkEmbedding(
        static_faces,
        static_bary,
        contour_faces_idx=np.array([faces for faces, _ in contour]),
        contour_bary_coords=np.array([bary for _, bary in contour]),
    )


def regions(head: T.Template) -> dict[str, np.ndarray]:
    """Vertices by region, named as in FLAME_masks, and what a painter needs besides."""
    ring, column = head.ring, np.abs(head.column)
    x, y, z = head.vertices[: T.SKIN].T
    ax = np.abs(x)
    ids = lambda mask: np.flatnonzero(mask)
    front = column <= T.EAR[0]
    ear = (column > T.EAR[0]) & (column < T.EAR[1]) & (y < T.EAR_TOP + 1) & (y > T.EAR_BOTTOM - 1)
    lids_fold = (ring > T.UPPER_LID) & (ring < T.LOWER_LID) & (column > T.INNER_CANTHUS) & (column < T.OUTER_CANTHUS)
    mouth = (ring > T.UPPER_LIP) & (ring < T.LOWER_LIP) & (column < T.MOUTH_CORNER)
    hairline = 76 - 0.0065 * np.maximum(ax - 8, 0) ** 2  # y
    scalp = ~ear & ((y > hairline) | ~front & (y > np.interp(z, [-60, -30], [-62, -8])))
    neck = (ring > T.JAW) | ~front & ~ear & ~scalp
    scalp &= ~neck
    face = front & ~neck & ~scalp & ~lids_fold & ~mouth
    eye = ((ax - 31) / 23) ** 2 + ((y - 22) / 17) ** 2 < 1
    lips = (ring >= T.UPPER_BORDER) & (ring <= T.LOWER_BORDER) & ~mouth & (ax < T.MOUTH_HALF_WIDTH + 0.5) & front
    nose_half_width = np.interp(-y, [-30, -5, 12, 30], [9, 11, 17, 18.5])
    nose = front & (y < 30) & (y > -30) & (ax < nose_half_width)
    brows = (ring == T.BROW) & (ax > 8) & (ax < 51)
    result = {
        "face": ids(face),
        "forehead": ids(face & (y > 45)),
        "lips": ids(lips),
        "nose": ids(nose & face),
        "scalp": ids(scalp),
        "neck": ids(neck),
        "left_ear": ids(ear & (x > 0)),
        "right_ear": ids(ear & (x < 0)),
        "left_eye_region": ids(face & eye & (x > 0)),
        "right_eye_region": ids(face & eye & (x < 0)),
        "eye_region": ids(face & eye),
        "boundary": ids(ring == T.COLLAR),
        "brows": ids(brows & face),
        "mouth_interior": ids(mouth),
    }
    for side, name in enumerate(("left", "right")):
        first = T.SKIN + side * T.EYE
        upto = lambda rings: 1 + rings * T.EYE_COLUMNS
        result[f"{name}_eyeball"] = first + np.arange(T.EYE)
        result[f"{name}_pupil"] = first + np.arange(upto(T.PUPIL_RINGS))
        result[f"{name}_iris"] = first + np.arange(upto(T.PUPIL_RINGS), upto(T.IRIS_RINGS))
    return result
