"""What a head can do: shape directions, expressions and pose correctives as smooth displacement fields.

A field is a sum of terms; a term pushes and stretches space around a centre, fading as a Gaussian. Terms off the middle
of the face act on both sides, as mirror images, or with `odd` as opposites. Eyeballs follow the field rigidly and the
lids with them. What lids and lips do by themselves is written along the grid's rings.
"""

from __future__ import annotations

import numpy as np

from . import template as T
from .template import lip_shape, smoothstep

FAR = 1e4  # a radius without an end


def term(center, radii, push=(0, 0, 0), stretch=(0, 0, 0)):
    """Displacement exp(-|(p - center) / radii|^2 / 2) * (push + stretch * (p - center)); mm."""
    return tuple(np.array(v, float) * np.ones(3) for v in (center, radii, push, stretch))


class Fields:
    """Evaluates terms, and what lids and lips do, on a head: every method gives a displacement (V, 3) in mm."""

    def __init__(self, head: T.Template):
        self.head = head
        self.v = head.vertices
        self.points = np.concatenate([self.v, T.EYE_CENTER[None], T.EYE_CENTER[None] * [-1, 1, 1]])
        self.ring = np.concatenate([head.ring, np.full(2 * T.EYE, -10)])
        self.side = np.where(self.v[:, 0] < 0, -1.0, 1.0)
        self.ax = np.abs(self.v[:, 0])
        skin = np.arange(len(self.v)) < T.SKIN
        self.front = skin & (np.concatenate([np.abs(head.column), np.full(2 * T.EYE, 99)]) <= T.EAR[0])
        # How far the skin is part of the eyeball's surroundings.
        out = self.v * np.stack([self.side, self.side**2, self.side**2], 1) - T.EYE_CENTER
        self.eye_distance = np.linalg.norm(out, axis=1)
        self.with_eye = smoothstep((27 - self.eye_distance) / 12)
        self.out = out

    def __call__(self, *terms, odd=False):
        """The sum of the terms, with rigid eyeballs; `odd`: the two sides do the opposite of each other."""
        d = np.zeros_like(self.points)
        for center, radii, push, stretch in terms:
            for side in (1, -1):
                if side == -1 and center[0] == 0 and not odd:
                    continue
                q = self.points * [side, 1, 1] - center
                g = np.exp(-0.5 * ((q / radii) ** 2).sum(1, keepdims=True)) * (push + stretch * q)
                d += g * [side, 1, 1] * (side if odd else 1)
        return self.with_rigid_eyes(d)

    def with_rigid_eyes(self, d):
        """From a field d (V + 2, 3) at the vertices and the eyes' centres: (V, 3), eyeballs moving as their centres."""
        d, eyes = d[:-2], d[-2:]
        with_eye = self.with_eye[:, None]
        d = d * (1 - with_eye) + np.where(self.side[:, None] > 0, eyes[0], eyes[1]) * with_eye
        for side in (0, 1):
            first = T.SKIN + side * T.EYE
            d[first : first + T.EYE] = eyes[side]
        return d

    def without_pose(self, field):
        """The field less translation, rotation and scaling of the whole head: no camera can tell these from a pose."""
        q = self.points - self.v.mean(0)
        moves = [np.tile(axis, (len(q), 1)) for axis in np.eye(3)]
        moves += [np.cross(axis, q) for axis in np.eye(3)] + [q]
        basis = np.stack([self.with_rigid_eyes(move).ravel() for move in moves], 1)
        return field - (basis @ np.linalg.lstsq(basis, field.ravel(), rcond=None)[0]).reshape(field.shape)

    def lid(self, upper=0.0, lower=0.0, odd=False, tilt=0.0):
        """Lids turn over the eyeball. Both at 1 they meet; `tilt` makes a turn larger outwards and smaller inwards."""
        s = np.clip((self.ax - T.CANTHI[0, 0]) / (T.CANTHI[1, 0] - T.CANTHI[0, 0]), 0, 1)
        near = self.front & (self.eye_distance < 24)
        across = near * smoothstep(np.minimum(self.ax - 12, 50.5 - self.ax) / 9)
        reach_up = np.interp(self.ring, [T.BROW, T.BROW + 1, T.CREASE, T.UPPER_LID, 18, 19], [0, 0.05, 0.35, 1, 1, 0])
        reach_down = np.interp(self.ring, [18, 19, T.LOWER_LID, 22, T.CHEEK - 1, T.CHEEK], [0, 1, 1, 0.6, 0.15, 0])
        # Where the closed lids meet, as an angle above the eyeball's equator, and how far each margin is from it.
        meet = np.radians(np.interp(s, [0, 0.5, 1], [-6, -12, 0]))
        d = np.zeros_like(self.v)
        for amount, reach, margin in ((upper, reach_up, T.UPPER_LID), (lower, reach_down, T.LOWER_LID)):
            edge = self._margin_angle(margin)
            turn = (meet - edge) * amount * (1 + tilt * (s - 0.5)) * reach * across
            y, z = self.out[:, 1], self.out[:, 2]
            grow = 1 + 0.03 * np.abs(turn)
            d[:, 1] += (y * np.cos(turn) + z * np.sin(turn)) * grow - y
            d[:, 2] += (z * np.cos(turn) - y * np.sin(turn)) * grow - z
        d[~self.front] = 0
        return d * (self.side[:, None] if odd else 1)

    def _margin_angle(self, margin):
        """Elevation of a lid's margin over the eyeball's centre in the column of each vertex."""
        angle = np.zeros(len(self.v))
        column = self.head.column
        rows = T.skin_index(margin, np.arange(-29, 31))
        out = self.out[rows]
        per_column = np.arctan2(out[:, 1], np.maximum(out[:, 2], 1))
        angle[: T.SKIN] = per_column[column + 29]
        return angle

    def lips(self, upper=(0, 0, 0), lower=(0, 0, 0), upper_border=(0, 0, 0), lower_border=(0, 0, 0), odd=False):
        """Pushes the lips' contact lines and borders; nothing at the corners, fading over philtrum and chin."""
        r = self.ring
        along = np.where(self.front, lip_shape(self.ax) ** 0.7, 0)
        keys_up = [T.NOSE_BASE - 1, T.NOSE_BASE, T.UPPER_BORDER, T.UPPER_LIP, 41, 42]
        keys_low = [41, 42, T.LOWER_LIP, T.LOWER_BORDER, T.SULCUS, T.CHIN]
        d = np.zeros_like(self.v)
        for push, keys, values in (
            (upper, keys_up, [0, 0, 0.35, 1, 1, 0]),
            (upper_border, keys_up, [0, 0.2, 1, 0, 0, 0]),
            (lower, keys_low, [0, 1, 1, 0.35, 0, 0]),
            (lower_border, keys_low, [0, 0, 0, 1, 0.3, 0]),
        ):
            d += (np.interp(r, keys, values) * along)[:, None] * np.array(push, float)
        return d * (np.tanh(self.v[:, :1] / 8) if odd else 1)

    def jaw(self, weights, push):
        """Pushes what the jaw carries."""
        return weights[:, None] * np.array(push, float)


# --- shape ---------------------------------------------------------------------------------------------------------

# Places (mm) on the subject's left or in the middle.
_BROW_RIDGE, _CHEEKBONE, _CHEEK, _GONION = (27, 40, 52), (48, -5, 40), (40, -38, 40), (52, -58, 0)
_CHIN, _NOSE_TIP, _NOSE_WING, _BRIDGE = (0, -80, 58), (0, -18, 74), (14, -21, 60), (0, 8, 62)
_CORNER, _EAR, _TEMPLE, _OCCIPUT, _FOREHEAD = (25, -48, 52), (78, 0, -35), (68, 30, 15), (0, 30, -130), (0, 70, 53)
_MUZZLE, _NECK, _CROWN = (0, -48, 58), (0, -130, -45), (0, 130, -35)
_EYE = tuple(T.EYE_CENTER)


def shape_fields(f: Fields) -> list[np.ndarray]:
    """Named traits, each (V, 3), by how much they tell people apart: proportions, features, details."""
    head = (0, 20, -30)
    odd = lambda *terms: f(*terms, odd=True)
    proportions = [
        f(term((0, 0, -30), (FAR, 110, FAR), stretch=(0.06, -0.015, 0.0))),  # width
        f(term((0, -10, 0), FAR, stretch=(-0.01, 0.05, 0)), term(_CHIN, (60, 50, 80), (0, -2.5, 0))),  # length
        f(term((0, -70, 20), (FAR, 38, 60), stretch=(0.07, 0, 0))),  # width of the jaw
        f(term(head, FAR, stretch=(0, 0, 0.06))),  # depth
        f(term((0, -80, 40), (60, 32, 60), (0, -5, 1))),  # height of the lower face
        f(term(_CHEEKBONE, (25, 32, 40), (4, 0, 2))),  # cheekbones
        f(term(_MUZZLE, (45, 35, 40), (0, 0, 4)), term(_CHIN, (40, 25, 40), (0, 0, -2))),  # convexity of the profile
        f(term(_FOREHEAD, (60, 40, 50), (0, 2, 3.5)), term(_CROWN, 50, (0, 4, 0))),  # forehead
        f(term(_CHEEK, (22, 24, 30), (3.5, 0, 3.5))),  # fullness
    ]
    return [f.without_pose(field) for field in proportions] + [
        f(term(_NOSE_TIP, (15, 16, 22), (0, 0, 4))),  # how far the nose stands out
        f(term((0, -20, 65), (21, 15, 25), (0, -4, 0))),  # its length
        f(term(_BROW_RIDGE, (26, 11, 20), (0, 0, 3))),
        f(term(_NOSE_WING, (11, 12, 20), (3, 0, 0))),
        f(term(_EYE, (22, 22, 24), (2.5, 0, 0))),  # distance of the eyes
        f(term(_CHIN, (26, 22, 30), (0, 0, 4.5))),
        f(term(_CORNER, (13, 14, 18), (3.5, 0, -0.5))),  # width of the mouth
        f(term(_NECK, (FAR, 45, FAR), stretch=(0.08, 0, 0.07))),
        f(term((0, 8, 62), (11, 15, 20), (0, 0, 3))),  # hump of the nose
        f(term(_BROW_RIDGE, (26, 11, 20), (0, 3, 0))),  # height of the brows
        f.lips(upper_border=(0, 2.2, 0.6), lower_border=(0, -2.2, 0.6)),  # thickness of the lips
        f(term(_GONION, (22, 25, 30), (2, -5, 0))),
        f(term(_EYE, (26, 22, 24), (0, 2.5, 0))),  # height of the eyes
        f(term(_MUZZLE, (28, 15, 25), (0, 3, 0))),  # height of the mouth
        f(term((0, 26, 56), (13, 12, 15), (0, 0, 3))),  # root of the nose
        f(term(_OCCIPUT, 55, (0, 0, -5))),
        f(term((14, -82, 48), (13, 15, 20), (3, 0, 0.5))),  # width of the chin
        f(term(_NOSE_TIP, (12, 10, 15), (0, 3, 0.8))),  # turned up
        odd(term((0, -70, 30), (60, 40, 60), (1.5, 0, 0))),  # jaw to one side
        f(term(_EYE, (24, 20, 24), (0, 0, -2.5))),  # depth of the eyes
        f(term((7, 5, 58), (8, 20, 15), (2, 0, 0))),  # width of the bridge
        f(term(_TEMPLE, (30, 35, 35), (4, 0, 0))),
        # slant of the brows
        f(term((47, 40, 38), (15, 13, 18), (0, 3, 0)), term((12, 39, 55), (11, 11, 15), (0, -2, 0))),
        f.lips(upper=(0, 0, 2), upper_border=(0, 0, 2), lower=(0, 0, 2), lower_border=(0, 0, 2)),
        f(term(_CROWN, 60, (0, 5, 0))),
        f(term(_EAR, (16, 38, 28), (3.5, 0, 0))),  # how far the ears stand out
        f.lips(upper_border=(0, 2, 0.5), lower_border=(0, 2, -0.5)),  # one lip thicker than the other
        odd(term((0, -16, 70), (17, 19, 20), (1.2, 0, 0))),  # nose to one side
        f(term((42, -62, 30), (15, 15, 20), (3, -1, 1))),  # jowls
        f(term((0, -66, 52), (19, 8, 14), (0, 0, 2.5))),  # fold over the chin
        f(term((0, 34, 57), (13, 10, 13), (0, 0, 2.5))),  # between the brows
        f(term(_CORNER, (10, 10, 15), (0, 2.5, 0))),
        f(term((30, -8, 50), (15, 13, 16), (0, 0, 2.5))),  # under the eyes
        f(term((28, -28, 50), (13, 13, 14), (0, 0, 2.5))),  # beside the nose
        odd(term((40, -10, 30), (35, 60, 50), (0, 2, 0))),
        f(term(_EAR, (16, 34, 28), stretch=(0, 0.10, 0.08))),
        f(term((6, -17, 68), (7, 9, 11), (2, 0, 0))),  # width of the tip
        f(term((0, -100, 25), (30, 17, 25), (0, -4, 2))),  # double chin
        f.lips(upper=(0, 0, 1.5), upper_border=(0, 0, 1), lower=(0, 0, -1.5), lower_border=(0, 0, -1)),  # overbite
        f(term((30, 66, 46), (19, 19, 25), (0, 0, 3))),
        f(term((0, 55, 57), (17, 15, 20), (0, 0, 2.5))),
        odd(term(_CHEEK, (24, 28, 35), (1, 0, 2))),
        odd(term((0, -48, 58), (26, 15, 22), (1.2, 0, 0))),  # mouth to one side
        f(term((0, -34, 60), (15, 8, 13), (0, 0, 2))),  # philtrum
        f(term(_EAR, (16, 36, 28), (0, 3.5, 0))),
        odd(term(_BROW_RIDGE, (22, 11, 18), (0, 2, 0))),
        odd(term(_EYE, (24, 20, 24), (0, 1.5, 0))),
        f(term((0, -80, 58), (8, 10, 11), (0, 0, -2))),  # cleft of the chin
        f.lid(upper=0.35, lower=0.25),  # opening of the eyes
        odd(term(_CORNER, (12, 12, 16), (0, 2, 0))),
        f.lid(upper=0.3, lower=-0.3, tilt=1.2),  # slant of the eyes
        odd(term(_EAR, (16, 36, 28), (2, 1.5, 0))),
    ]


def filling_fields(f: Fields, normals: np.ndarray):
    """Bumps all over the head, denser on the face, even and odd ones: what traits leave out."""
    v = f.v[: T.SKIN]
    weight = np.where(v[:, 2] > 10, 1.0, 0.45)
    chosen = []
    distance = np.full(len(v), np.inf)
    ring = f.ring[: T.SKIN]
    folded = (ring > T.UPPER_LID) & (ring < T.LOWER_LID) | (ring > T.UPPER_LIP) & (ring < T.LOWER_LIP)
    candidates = (v[:, 0] >= -1e-9) & ~folded & (ring < T.COLLAR - 2)
    i = int(np.argmax(np.where(candidates, v[:, 2], -np.inf)))
    for _ in range(26):
        chosen.append(i)
        distance = np.minimum(distance, np.linalg.norm(v - v[i], axis=1) * weight)
        i = int(np.argmax(np.where(candidates, distance, -1)))
    result = []
    for i in chosen:
        radius = 15 if v[i, 2] > 10 else 30
        center = v[i] * [abs(v[i, 0]) > 4, 1, 1]
        result.append(f(term(center, radius, normals[i] * [abs(center[0]) > 0, 1, 1])))
        result.append(f(term(center, radius, (0, 1, 0))))
        result.append(f(term(center, radius, normals[i] if center[0] else (1, 0, 0)), odd=True))
    return result


def orthogonal_directions(fields, faces, vertices, count, spectrum, cap, strain, total):
    """`count` of the fields, made orthogonal in turn and scaled to the spectrum: (V, 3, count), sorted by RMS.

    Args:
        fields: list of (V, 3); one of which little is left after the earlier ones is skipped.
        faces, vertices: the mesh, for the strain.
        spectrum: (count,) wanted RMS displacement, up to a common factor.
        cap: (count,) largest displacement of a vertex per unit, mm.
        strain: largest relative change of length per unit, of all edges but the most changed 2 %.
        total: RMS displacement of a head with standard normal coefficients, mm.
    """
    n = len(vertices)
    fields = np.array(fields).reshape(len(fields), -1)
    fields = fields / np.linalg.norm(fields, axis=1, keepdims=True)
    new = np.abs(np.diagonal(np.linalg.qr(fields.T, mode="r"))) > 0.3  # how much of each the earlier ones lack
    if new.sum() < count:
        raise ValueError(f"fields: expected {count} that differ, got {new.sum()}")
    fields = fields[new][:count]
    basis, r = np.linalg.qr(fields.T)
    basis = (basis * np.sign(np.diagonal(r))).T
    unit = basis.reshape(count, n, 3) * np.sqrt(n)  # RMS 1
    a, b = faces.T[:2]
    length = np.linalg.norm(vertices[a] - vertices[b], axis=1)
    change = np.linalg.norm(unit[:, a] - unit[:, b], axis=2) / np.maximum(length, 1.0)
    limit = np.minimum(cap / np.linalg.norm(unit, axis=2).max(1), strain / np.quantile(change, 0.98, axis=1))
    low, high = 0.0, 100 * total
    for _ in range(60):
        scale = (low + high) / 2
        rms = np.minimum(scale * spectrum, limit)
        low, high = (scale, high) if np.sqrt((rms**2).sum()) < total else (low, scale)
    order = np.argsort(-rms, kind="stable")
    return (unit * rms[:, None, None])[order].transpose(1, 2, 0)


def shape_directions(head: T.Template, normals: np.ndarray) -> np.ndarray:
    """100 orthogonal shape directions (V, 3, 100) in mm per standard deviation."""
    f = Fields(head)
    fields = shape_fields(f) + filling_fields(f, normals)
    index = np.arange(100)
    return orthogonal_directions(
        fields, head.faces, head.vertices, 100, (index + 1) ** -0.9, np.where(index < 4, 7.0, 3.0), 0.08, 4.0
    )


# --- expressions ---------------------------------------------------------------------------------------------------


def expression_fields(f: Fields, jaw: np.ndarray) -> dict[str, np.ndarray]:
    """The 50 expressions by name, in mm per standard deviation. `jaw`: the jaw's skinning weights (V,).

    They are left as they read rather than made orthogonal. A blink is complete at 3 standard deviations, and a negative
    jaw open tucks the lower lip behind the upper one. Names that end in "left" are what the two sides do in opposition;
    faces move nearly symmetrically, so these are weaker.
    """
    smile = lambda odd=False: (
        f(term(_CORNER, (13, 13, 20), (3.0, 2.8, -2.0)), term((36, -18, 48), (15, 14, 18), (0.4, 1.8, 1.4)), odd=odd)
        + f.lid(lower=0.18, odd=odd)
    )
    brows = lambda odd=False: f(
        term((28, 44, 50), (26, 14, 24), (0, 3.2, 0)), term((30, 33, 46), (22, 7, 20), (0, 1.2, 0)), odd=odd
    )
    raise_lip = lambda odd=False: (
        f.lips(upper=(0, 2.2, 0.4), upper_border=(0, 1.0, 0.3), odd=odd)
        + f(term((16, -28, 56), (10, 12, 16), (0, 1.3, 0.5)), odd=odd)
    )
    drop_lip = lambda odd=False: f.lips(lower=(0, -2.4, 0.3), lower_border=(0, -1.2, 0.2), odd=odd)
    corners = lambda push, odd=False: f(term(_CORNER, (11, 11, 18), push), odd=odd)
    wrinkle = lambda odd=False: (
        f(term((13, -12, 60), (9, 13, 16), (0, 2.2, 0.4)), term((14, 36, 54), (13, 10, 15), (-0.8, -1.6, 0.5)), odd=odd)
        + f.lips(upper=(0, 0.8, 0.2), odd=odd)
    )
    puff = lambda odd=False: f(term((42, -42, 34), (17, 18, 22), (2.6, 0, 2.6)), odd=odd)
    frown = lambda odd=False: f(term((17, 40, 53), (15, 10, 18), (-1.6, -2.6, 0.6)), odd=odd)
    return {
        "jaw open": f.jaw(jaw, (0, -3.2, -0.4)) + f.lips(lower=(0, -0.6, 0.7)),
        "smile": smile(),
        "pucker": f(term(_CORNER, (13, 14, 22), (-3.4, 0, 1.6)))
        + f.lips(upper=(0, 0, 2.6), lower=(0, 0, 2.6), upper_border=(0, 0.3, 1.6), lower_border=(0, -0.3, 1.6)),
        "blink": f.lid(upper=1 / 3, lower=1 / 3),
        "brows up": brows(),
        "frown": frown(),
        "corners down": corners((0.6, -2.6, -0.6)),
        "upper lip up": raise_lip(),
        "lower lip down": drop_lip(),
        "lips pressed": f.lips((0, -0.3, -1.6), (0, 0.3, -1.6), (0, -1.3, -0.6), (0, 1.5, -0.6)),
        "cheeks puffed": puff(),
        "nose wrinkled": wrinkle(),
        "mouth to the left": f(term(_MUZZLE, (26, 16, 30), (1.5, 0, 0)), odd=True),
        "mouth stretched": corners((3.2, -0.6, -1.8)),
        "chin raised": f(term((0, -72, 54), (17, 14, 20), (0, 2.4, 0.9))) + f.lips(lower=(0, 0, 0.8)),
        "funnel": f.lips((0, 1.4, 2.4), (0, -1.8, 2.4), (0, 1, 1.5), (0, -1, 1.5)) + corners((-1.8, 0, 0.8)),
        "smile to the left": smile(odd=True) / 2,
        "blink left": f.lid(upper=1 / 8, lower=1 / 8, odd=True),
        "brow up left": brows(odd=True) / 2,
        "jaw to the left": f.jaw(jaw, (1.6, 0, 0)),
        "jaw forward": f.jaw(jaw, (0, 0.2, 1.8)),
        "inner brows up": f(term((13, 42, 54), (12, 12, 18), (0, 3, 0))),
        "outer brows up": f(term((44, 42, 40), (14, 13, 22), (0, 3, 0))),
        "squint": f.lid(lower=0.4, upper=0.08) + f(term((36, 6, 42), (14, 8, 16), (0, 1.3, 0.6))),
        "eyes wide": f.lid(upper=-0.2, lower=0.0) + f(term((30, 32, 46), (18, 6, 18), (0, 0.8, 0))),
        "cheeks raised": f(term((38, -6, 44), (16, 13, 20), (0, 2.4, 1.4))),
        "upper lip up left": raise_lip(odd=True) / 2,
        "lower lip down left": drop_lip(odd=True) / 2,
        "corners down left": corners((0.3, -1.2, -0.3), odd=True),
        "nose wrinkled left": wrinkle(odd=True) / 2,
        "puffed left": puff(odd=True) / 2,
        "frown left": frown(odd=True) / 2,
        "cheeks sucked in": f(term((44, -40, 32), (13, 16, 20), (-2.4, 0, -1.6))),
        "nostrils flared": f(term((13, -21, 60), (6, 7, 12), (1.8, 0.4, 0.3))),
        "upper lip rolled in": f.lips(upper=(0, -0.6, -1.6), upper_border=(0, -1.8, -0.4)),
        "lower lip rolled in": f.lips(lower=(0, 0.4, -1.6), lower_border=(0, 2.0, -0.4)),
        "upper lip out": f.lips(upper=(0, 0, 2.2), upper_border=(0, 0.6, 1.2)),
        "pout": f.lips(lower=(0, 0.2, 2.4), lower_border=(0, 0, 1.4)),
        "dimples": f(term((31, -46, 46), (8, 9, 14), (1.2, 0, -2.2))),
        "mouth up": f(term(_MUZZLE, (27, 15, 30), (0, 1.6, 0))),
        "lip corners tightened": corners((-1.4, 0, -1.2)),
        "squint left": f.lid(lower=0.25, odd=True),
        "lids slanted": f.lid(upper=0.12, lower=-0.1, tilt=1.5),
        "inner brow up left": f(term((13, 42, 54), (12, 12, 18), (0, 2, 0)), odd=True),
        "outer brow up left": f(term((44, 42, 40), (14, 13, 22), (0, 2, 0)), odd=True),
        "cheek raised left": f(term((38, -6, 44), (16, 13, 20), (0, 1.6, 1.0)), odd=True),
        "corners out left": corners((1.6, 0, -0.6), odd=True),
        "throat": f(term((0, -106, 15), (20, 16, 20), (0, -2.2, 1.2))),
        "forehead down": f(term((0, 62, 55), (40, 22, 30), (0, -2, 0.3))),
        "nose tip down": f(term((0, -18, 72), (10, 9, 15), (0, -1.4, -0.2))),
    }  # fmt: skip


# --- pose ----------------------------------------------------------------------------------------------------------


def pose_fields(f: Fields, jaw: np.ndarray) -> dict[str, np.ndarray]:
    """What skinning leaves out, in mm; names as `rig.pose_correctives` reads them."""
    neck = (0, -112, -35)
    fields = {
        "neck turn x": f(term((0, -100, 12), (26, 20, 22), (0, -3, 3)), term((0, -75, -95), (30, 20, 20), (0, 0, -2))),
        "neck turn y": f(term((22, -115, -8), (14, 28, 18), (0, 0, 4)), odd=True),
        "neck turn z": f(term((46, -95, -30), (16, 22, 26), (3, 0, 0)), odd=True),
        "neck fold x": f(term(neck, (FAR, 26, FAR), stretch=(0.10, 0, 0.10))),
        "neck fold y": f(term(neck, (FAR, 26, FAR), stretch=(0.06, 0, 0.06))),
        "neck fold z": f(term(neck, (FAR, 26, FAR), stretch=(0.08, 0, 0.08))),
        "jaw turn x": f(term((44, -46, 32), (15, 22, 24), (-4, 0, -2)), term((0, -98, 28), (26, 14, 22), (0, -2, 0)))
        + f(term(_CORNER, (9, 10, 14), (-4, 0, -1))),
        "jaw turn y": f(term((46, -50, 28), (16, 20, 22), (4, 0, 0)), odd=True),
        "jaw turn z": f(term((46, -50, 28), (16, 20, 22), (3, 0, 0)), odd=True),
        "jaw fold x": f(term((40, -45, 35), (16, 22, 24), (-4, 0, 0))),
        "jaw fold y": f(term((40, -45, 35), (16, 22, 24), (-2, 0, 0))),
        "jaw fold z": f(term((40, -45, 35), (16, 22, 24), (-1, 0, 0))),
    }
    # Lids follow the gaze: a turn about x by +w looks down.
    follow = f.lid(upper=0.75) - f.lid(lower=0.45)
    drag = f(term((31, 20, 38), (16, 9, 12), (1.2, 0, 0)))
    fold = f.lid(upper=0.15, lower=0.15)
    for name, mine in (("left", f.side > 0), ("right", f.side < 0)):
        skin = (mine & (np.arange(len(f.v)) < T.SKIN))[:, None]
        sign = 1 if name == "left" else -1
        fields[f"{name} eye turn x"] = follow * skin
        fields[f"{name} eye turn y"] = sign * drag * skin
        fields[f"{name} eye turn z"] = 0.3 * drag[:, [1, 0, 2]] * skin
        for axis in "xyz":
            fields[f"{name} eye fold {axis}"] = fold * skin
    return fields
