"""Contour tables for any head: where its jaw line, or else its silhouette, lies at every yaw.

RingNet's paper turns the template and takes, for the contour landmarks of each angle, the jaw line on the near side and
the silhouette that hides it on the far side. Both together are one curve: the outline, in the picture, of the *face*,
the part of the head's surface that the jaw line bounds. Here it is cut out once, and its outline found per degree.

The cut needs to know where the face is, so a head needs its 51 static landmarks first. It is made in proportion to the
distance between the outer corners of the eyes, called a unit below (about 89 mm), and along the ears where the model
has them as regions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from .landmarks import CONTOUR_MAX_DEGREES, CONTOUR_ROWS, LandmarkEmbedding, contour_row
from .model import FlameModel

# Static points: iBUG's 36 and 45, 33, 57
_EYE_CORNERS, _NOSE_BASE, _LOWER_LIP = [19, 28], 16, 40

_EAR_DEPTH = 0.73  # units from the eyes' outer corners back to where the ears begin
_JAW_SLOPE = 0.71  # rise of the jaw's edge from the chin towards the ears, over depth
_JAW_BULGE = 0.065  # units by which that edge hangs below the straight line, half way
_JAW_CORNER = 0.05  # units by which the angle of the jaw, between that edge and the ear, is rounded
_CAMERA_RISE = 0.35  # slope of the view, from before the face and above, that grazes the chin at the jaw line
_FOREHEAD = 0.3  # units above the eyes where the face is cut off; the contour ends at the eyes
_INNER = 0.3  # units: no point of the contour is that close to the centre in any picture
_TIE = 0.005  # units: of points that are equally far out, the one nearest to the camera is taken

_SWEEP = np.linspace(-0.72, 0.72, 181) * np.pi  # rays around the face, 0 = down, negative = the subject's right


class _Face(NamedTuple):
    """The part of a head that the jaw line bounds, as edges: of its triangles, and along the cuts through them."""

    triangle: np.ndarray  # (n,) of the model
    bary: np.ndarray  # (2, n, 3), the ends
    ends: np.ndarray  # (2, n, 3), metres
    unit: float
    centre: np.ndarray  # (3,), within the head
    top: float  # y at which the contour ends
    middle: float  # x of the symmetry plane


class _Outline(NamedTuple):
    triangle: np.ndarray  # (n,)
    bary: np.ndarray  # (n, 3)
    points: np.ndarray  # (n, 3)
    picture: np.ndarray  # (n, 2), orthographic, y up


def contour_embedding(model: FlameModel, points: int = 17) -> LandmarkEmbedding:
    """The static landmarks of `model` with a contour table computed from its template.

    Args:
        model: with (at least) the 51 inner landmarks of iBUG as static points.
        points: of the contour, an odd number; the middle one is the chin.

    Raises:
        ValueError: where the model has no such landmarks, or no face is found around them.
    """
    if points < 3 or points % 2 == 0:
        raise ValueError(f"points: expected an odd number of at least 3, got {points}")
    landmarks = _inner_landmarks(model)
    face = _face(model, landmarks)
    faces_idx = np.zeros((CONTOUR_ROWS, points), dtype=np.int64)
    bary_coords = np.zeros((CONTOUR_ROWS, points, 3))
    for yaw in range(-CONTOUR_MAX_DEGREES, CONTOUR_MAX_DEGREES + 1):
        row = int(contour_row(yaw))
        contour = _contour(face, yaw, points)
        faces_idx[row], bary_coords[row] = contour.triangle, contour.bary
    return replace(landmarks, contour_faces_idx=faces_idx, contour_bary_coords=bary_coords)


def ear_embedding(model: FlameModel, points: int = 8) -> LandmarkEmbedding:
    """Static landmarks on the rims of both ears: `points` of the subject's right one, then as many of the left one.

    They go from the front of the ear's top over its back to the lobe, as it is seen from its side.

    Raises:
        ValueError: where the model has no regions `right_ear` and `left_ear`.
    """
    faces_idx, bary_coords = [], []
    for name, outwards in (("right_ear", -1), ("left_ear", 1)):
        if name not in model.regions:
            raise ValueError(f"regions: expected {name!r} among them, got {', '.join(model.regions) or 'none'}")
        inside = np.flatnonzero(np.isin(model.faces, model.regions[name]).all(1))
        if not len(inside):
            raise ValueError(f"regions: no face has all its corners in {name!r}")
        triangle, bary = np.repeat(inside, 3), np.stack([np.tile(np.eye(3), (len(inside), 1))] * 2)
        bary[1] = np.roll(bary[0].reshape(-1, 3, 3), -1, axis=1).reshape(-1, 3)
        ends = (bary[..., None] * model.v_template[model.faces[triangle]]).sum(2)
        x, y, z = np.moveaxis(ends - (ends.min((0, 1)) + ends.max((0, 1))) / 2, -1, 0)
        angles = np.radians(np.linspace(210, 0, points))  # from the front of the top, with the ear's back to the right
        edge, way = _outermost(-z, y, outwards * x, angles, tie=0)
        faces_idx.append(triangle[edge])
        bary_coords.append(bary[0, edge] * (1 - way) + bary[1, edge] * way)
    return LandmarkEmbedding(np.concatenate(faces_idx), np.concatenate(bary_coords))


def _inner_landmarks(model: FlameModel) -> LandmarkEmbedding:
    embedding = model.landmarks
    if embedding is None or embedding.num_static < 51 or embedding.static_ids is not None:
        raise ValueError("landmarks: expected the 51 inner landmarks of iBUG, from which the face is found")
    if embedding.num_static == 68:  # begin with the contour's
        raise ValueError("landmarks: expected the 51 inner landmarks of iBUG, got all 68 as static ones")
    return embedding


def _face(model, embedding):
    vertices = model.v_template
    corners = vertices[model.faces[embedding.static_faces_idx[:51]]]
    static = (corners * embedding.static_bary_coords[:51, :, None]).sum(1)
    eyes = static[_EYE_CORNERS]
    unit, (middle, top, depth) = float(np.linalg.norm(eyes[0] - eyes[1])), eyes.mean(0)

    chin = _chin(vertices, model.faces, middle, static[_LOWER_LIP], unit)
    back = depth - _EAR_DEPTH * unit
    way = np.clip((chin[2] - vertices[:, 2]) / (chin[2] - back), 0, 1)
    jaw = chin[1] + _JAW_SLOPE * (chin[2] - vertices[:, 2]) - _JAW_BULGE * unit * 4 * way * (1 - way)
    corner = _JAW_CORNER * unit
    # The lesser of both distances, rounded off where they are the same
    within = -corner * np.logaddexp((back - vertices[:, 2]) / corner, (jaw - vertices[:, 1]) / corner)
    cuts = [within, top + _FOREHEAD * unit - vertices[:, 1]]

    ears = [model.regions[name] for name in ("left_ear", "right_ear") if name in model.regions]
    if ears:  # known better than by proportion
        cuts.append(np.where(np.isin(np.arange(len(vertices)), np.concatenate(ears)), -1.0, 1.0))

    triangle, bary = _clipped_edges(model.faces, cuts)
    ends = (bary[..., None] * vertices[model.faces[triangle]]).sum(2)
    centre = static[_NOSE_BASE] - [0, 0, 0.5 * unit]
    if not len(triangle):
        raise ValueError("landmarks: there is no face around them, in front of the ears and above the jaw")
    return _Face(triangle, bary, ends, unit, centre, float(top), float(middle))


def _chin(vertices, faces, middle, lip, unit):
    """The lower end of the chin: where a ray from before the face and above grazes the profile, below the lower lip."""
    side = vertices[:, 0] - middle
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges = edges[(side[edges[:, 0]] < 0) != (side[edges[:, 1]] < 0)]
    start, end = side[edges].T
    way = (start / (start - end))[:, None]
    profile = vertices[edges[:, 0]] * (1 - way) + vertices[edges[:, 1]] * way
    profile = profile[(profile[:, 1] < lip[1] - 0.2 * unit) & (profile[:, 2] > lip[2] - 0.35 * unit)]
    if not len(profile):
        raise ValueError("landmarks: there is no chin below the lower lip")
    profile = profile[np.argsort(-profile[:, 1])]
    reach = _CAMERA_RISE * profile[:, 2] - profile[:, 1]
    so_far = np.maximum.accumulate(reach)
    behind = np.flatnonzero(reach < so_far - 0.02 * unit)  # from here on it is the neck
    return profile[reach[: behind[0] if len(behind) else None].argmax()]


def _clipped_edges(faces, cuts):
    """The edges (n,), (2, n, 3) of what is left of the triangles where all `cuts`, linear on each, are positive."""
    polygons = [(np.arange(len(faces)), np.tile(np.eye(3), (len(faces), 1, 1)))]  # by number of corners
    for cut in cuts:
        kept = {}
        for triangle, bary in polygons:
            value = (bary * cut[faces[triangle]][:, None]).sum(2)
            inside = value >= 0
            for count in range(1, bary.shape[1] + 1):
                these = inside.sum(1) == count
                if count == bary.shape[1]:
                    kept.setdefault(count, []).append((triangle[these], bary[these]))
                    continue
                # The corners inside come first, then the two points where the cut leaves and enters the polygon.
                inner = inside[these]
                first = (inner & ~np.roll(inner, 1, axis=1)).argmax(1)
                order = (first[:, None] + np.arange(bary.shape[1])) % bary.shape[1]
                b = np.take_along_axis(bary[these], order[..., None], axis=1)
                v = np.take_along_axis(value[these], order, axis=1)[..., None]
                pairs = (count - 1, count), (0, -1)
                crossings = [(b[:, i] * v[:, j] - b[:, j] * v[:, i]) / (v[:, j] - v[:, i]) for i, j in pairs]
                polygon = np.concatenate([b[:, :count], np.stack(crossings, axis=1)], axis=1)
                kept.setdefault(count + 2, []).append((triangle[these], polygon))
        polygons = [tuple(map(np.concatenate, zip(*parts, strict=True))) for parts in kept.values()]
    triangle = np.concatenate([np.repeat(t, b.shape[1]) for t, b in polygons])
    starts = np.concatenate([b.reshape(-1, 3) for _, b in polygons])
    ends = np.concatenate([np.roll(b, -1, axis=1).reshape(-1, 3) for _, b in polygons])
    return triangle, np.stack([starts, ends])


def _contour(face, yaw, points):
    """The contour at a yaw in degrees, evenly spaced in the picture, from the right eye's height over the chin."""
    outline = _outline(face, yaw, _SWEEP)
    below = outline.points[:, 1] < face.top
    if not below.any():
        raise ValueError("landmarks: there is no face below the eyes")
    first, last = np.flatnonzero(below)[[0, -1]]
    low = np.flatnonzero(np.abs(_SWEEP) < np.pi / 3)
    chin = low[np.abs(outline.points[low, 0] - face.middle).argmin()]
    length = np.concatenate([[0], np.linalg.norm(np.diff(outline.picture, axis=0), axis=1).cumsum()])
    half = points // 2
    wanted = np.concatenate([
        np.linspace(length[first], length[chin], half + 1), np.linspace(length[chin], length[last], half + 1)[1:]
    ])  # fmt: skip
    return _outline(face, yaw, np.interp(wanted, length, _SWEEP))


def _outline(face, yaw, angles):
    """The outermost points of the face along rays from its centre, in an orthographic picture at a yaw in degrees."""
    cos, sin = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
    x, y, depth = np.moveaxis((face.ends - face.centre) @ np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]]), -1, 0)
    outside = np.flatnonzero((np.hypot(x, y) > _INNER * face.unit).any(0))  # leaves out most of eyes, nose and mouth
    x, y, depth = x[:, outside], y[:, outside], depth[:, outside]
    edge, way = _outermost(x, y, depth, angles, _TIE * face.unit)
    edge = outside[edge]
    bary, points = (ends[0, edge] * (1 - way) + ends[1, edge] * way for ends in (face.bary, face.ends))
    picture = np.stack([points[:, 0] * cos + points[:, 2] * sin, points[:, 1]], axis=1)
    return _Outline(face.triangle[edge], bary, points, picture)


def _outermost(x, y, depth, angles, tie):
    """Where rays from the origin of a picture, 0 = down, pi/2 = right, leave the edges with ends (2, n) for good.

    Returns the edge (N,) and the way along it, 0 ... 1, (N, 1); of crossings within `tie` that with the most `depth`.
    """
    found = []
    for angle in angles:
        across = x * np.cos(angle) + y * np.sin(angle)
        edges = np.flatnonzero((across[0] < 0) != (across[1] < 0))
        way = across[0, edges] / (across[0, edges] - across[1, edges])
        radius, near = (
            value[0, edges] * (1 - way) + value[1, edges] * way
            for value in (x * np.sin(angle) - y * np.cos(angle), depth)
        )
        outer = np.flatnonzero(radius >= radius.max(initial=0) - tie)
        if not len(outer):
            raise ValueError(f"landmarks: nothing of the head is seen at {np.degrees(angle):.0f} degrees from below")
        best = outer[near[outer].argmax()]
        found.append((edges[best], way[best]))
    edge, way = (np.array(values) for values in zip(*found, strict=True))
    return edge, way[:, None]
