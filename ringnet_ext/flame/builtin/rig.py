"""The rig: joints, skinning weights, pose correctives. Joints: 0 global, 1 neck, 2 jaw, 3 left eye, 4 right eye."""

from __future__ import annotations

import numpy as np

from . import template as T
from .template import smoothstep

PARENTS = np.array([-1, 0, 1, 1, 1])
NECK, JAW, LEFT_EYE = 1, 2, 3

# Where the joints are (mm), and the rings whose vertices tell.
_JOINTS = {0: ((0, -148, -42), range(63, 65)), NECK: ((0, -82, -42), range(57, 61)), JAW: ((0, -8, -8), range(26, 30))}


def eye_vertices(side: int) -> np.ndarray:
    """Vertices of the left (0) or right (1) eyeball."""
    return T.SKIN + side * T.EYE + np.arange(T.EYE)


def regressor(head: T.Template) -> np.ndarray:
    """Joint regressor (5, V): non-negative rows that sum to 1, over a few rings of vertices each."""
    rows = np.zeros((5, len(head.vertices)))
    for joint, (target, rings) in _JOINTS.items():
        ids = np.flatnonzero(np.isin(head.ring, rings))
        points = np.concatenate([head.vertices[ids].T, np.ones((1, len(ids)))])
        # The most even weights that give the target exactly; it lies well inside the rings, so they are positive.
        rows[joint, ids] = np.linalg.lstsq(points, np.array([*target, 1.0]), rcond=None)[0]
    for side in (0, 1):
        first = T.SKIN + side * T.EYE
        rows[LEFT_EYE + side, first : first + T.EYE] = _eye_weights()
    return rows


def _eye_weights():
    """Weights of an eyeball's vertices whose mean is its centre: two rings, in front of and behind the equator."""
    eye, _ = T._eyeball()
    z = eye[1 : 1 + T.EYE_RINGS * T.EYE_COLUMNS : T.EYE_COLUMNS, 2]
    front = np.flatnonzero(z > 0)[-1]
    weights = np.zeros((T.EYE_RINGS, T.EYE_COLUMNS))
    weights[front], weights[front + 1] = -z[front + 1], z[front]
    return np.concatenate([[0.0], weights.ravel(), [0.0]]) / weights.sum()


def skinning_weights(head: T.Template) -> np.ndarray:
    """Skinning weights (V, 5)."""
    weights = np.zeros((len(head.vertices), 5))
    x, y, z = head.vertices[: T.SKIN].T
    ring = head.ring
    body = smoothstep((ring - 57.5) / 6.5)
    # The jaw begins at a line from the mouth up to its joint: between the lips at once, elsewhere gradually.
    line = T.STOMION + 0.7 * np.maximum(50 - z, 0)
    lips = np.sqrt(T.lip_shape(x)) * (z > 0) * np.clip((ring - 41.5) / 2.5, -1, 1)
    jaw = smoothstep(0.5 + 0.5 * lips + (line - y) / 40)
    jaw *= smoothstep((z + 18) / 56) * smoothstep((63 - ring) / 7.5)
    weights[: T.SKIN, JAW] = jaw * (1 - body)
    weights[: T.SKIN, NECK] = (1 - jaw) * (1 - body)
    weights[: T.SKIN, 0] = body
    for side in (0, 1):
        weights[eye_vertices(side), LEFT_EYE + side] = 1
    return weights


def pose_correctives(head: T.Template, fields: dict[str, np.ndarray]) -> np.ndarray:
    """Displacements (V, 3, 36), mm, per entry of R_j - I of the joints 1-4 (row-major).

    For a turn by w about one axis the antisymmetric part of R, (R21 - R12, R02 - R20, R10 - R01) / 2, holds sin w, and
    the diagonal of R - I cos w - 1. `fields` are the correctives by name: "<joint> turn x|y|z" per sine and
    "<joint> fold x|y|z" per 1 - cosine of the turn about that axis.
    """
    dirs = np.zeros((len(head.vertices), 3, 4, 3, 3))
    sines = {"x": (2, 1), "y": (0, 2), "z": (1, 0)}
    names = {"neck": 0, "jaw": 1, "left eye": 2, "right eye": 3}
    for name, field in fields.items():
        joint, kind, axis = name.rsplit(" ", 2)
        j = names[joint]
        if kind == "turn":
            r, c = sines[axis]
            dirs[:, :, j, r, c] += field / 2
            dirs[:, :, j, c, r] -= field / 2
        else:  # cos x - 1 = (R11 + R22 - R00 - 1) / 2 for a turn about x alone, and so on
            for k, other in enumerate("xyz"):
                dirs[:, :, j, k, k] += field / 2 if other == axis else -field / 2
    return dirs.reshape(len(head.vertices), 3, 36)
