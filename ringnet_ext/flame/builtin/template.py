"""The mean head: a grid of rings from the crown down to the neck, laid over a lofted skull, with the features on top.

Everything in this folder is in millimetres, in FLAME's frame (x to the subject's left, y up, z out of the face) until
`program.compute` hands it out in metres. Proportions are those of textbook anthropometry.

The skin is a pole, a ring of 30 and 65 rings of 60 vertices. Column 0 runs down the middle of the face, column 30 down
the back of the head, columns 1-29 lie on the subject's left and 59-31 mirror them. Rings run along what they model:
brows, lids, lips, jaw line. Between the lids and between the lips they fold inwards, which makes the slits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

RINGS, COLUMNS, HALF = 65, 60, 30
SKIN = 1 + HALF + RINGS * COLUMNS
EYE_RINGS, EYE_COLUMNS = 17, 32
EYE = 2 + EYE_RINGS * EYE_COLUMNS

# Rings that run along features. The rings between a pair of margins are the fold behind it.
HAIRLINE, BROW, CREASE, UPPER_LID, LOWER_LID, CHEEK = 5, 11, 14, 16, 21, 24
NOSE_TIP, NOSE_BASE, UPPER_BORDER, UPPER_LIP, LOWER_LIP, LOWER_BORDER = 28, 33, 36, 39, 44, 47
SULCUS, CHIN, JAW, THROAT, COLLAR = 50, 54, 57, 60, 64
INNER_CANTHUS, OUTER_CANTHUS, MOUTH_CORNER = 4, 12, 8  # columns
EAR = (16, 24)  # columns in front of and behind the ear

EYE_CENTER = np.array([31.0, 20.0, 25.5])  # the left one
EYE_RADIUS = 12.5
CANTHI = np.array([[18.0, 18.4], [43.6, 20.2]])  # inner, outer (x, y)
MOUTH_HALF_WIDTH, STOMION = 25.5, -48.0


class Template(NamedTuple):
    vertices: np.ndarray  # (5023, 3)
    faces: np.ndarray  # (9976, 3)
    ring: np.ndarray  # (SKIN,) ring of each skin vertex, -2 the pole, -1 the ring of 30
    column: np.ndarray  # (SKIN,) signed column, -29 ... 30, positive on the subject's left


def smoothstep(x):
    x = np.clip(x, 0.0, 1.0)
    return x * x * x * (x * (6 * x - 15) + 10)


def spline(knots, values, at):
    """Natural cubic spline through values (n, ...) at increasing knots (n,), evaluated at any shape; linear outside."""
    k, v = np.asarray(knots, float), np.asarray(values, float)
    n, h = len(k), np.diff(k)
    slope = np.diff(v, axis=0) / h.reshape(-1, *[1] * (v.ndim - 1))
    system = np.eye(n)
    rhs = np.zeros_like(v)
    for i in range(1, n - 1):
        system[i, i - 1 : i + 2] = h[i - 1], 2 * (h[i - 1] + h[i]), h[i]
        rhs[i] = 6 * (slope[i] - slope[i - 1])
    m = np.linalg.solve(system, rhs.reshape(n, -1)).reshape(v.shape)
    at = np.asarray(at, float)
    inside = np.clip(at, k[0], k[-1])
    i = np.clip(np.searchsorted(k, inside, side="right") - 1, 0, n - 2)
    column = lambda u: np.reshape(u, at.shape + (1,) * (v.ndim - 1))
    step, beyond = column(h[i]), column(at - inside)
    a, b = column((k[i + 1] - inside) / h[i]), column((inside - k[i]) / h[i])
    value = a * v[i] + b * v[i + 1] + ((a**3 - a) * m[i] + (b**3 - b) * m[i + 1]) * step**2 / 6
    return value + (slope[i] + ((1 - 3 * a**2) * m[i] + (3 * b**2 - 1) * m[i + 1]) * step / 6) * beyond


def monotone(knots, values, at):
    """Monotone cubic (Fritsch-Carlson) through values (n, m) at knots (n,), evaluated at `at` (k,): (k, m)."""
    k, v = np.asarray(knots, float), np.asarray(values, float)
    h = np.diff(k)[:, None]
    s = np.diff(v, axis=0) / h
    same = s[:-1] * s[1:] > 0
    w1, w2 = 2 * h[1:] + h[:-1], h[1:] + 2 * h[:-1]
    safe = np.where(s == 0, 1, s)
    mid = np.where(same, (w1 + w2) / np.where(same, w1 / safe[:-1] + w2 / safe[1:], 1), 0)
    d = np.concatenate([s[:1], mid, s[-1:]])
    i = np.clip(np.searchsorted(k, at, side="right") - 1, 0, len(k) - 2)
    u = ((at - k[i]) / h[i, 0])[:, None]
    h = h[i]
    return (
        v[i] * (1 + 2 * u) * (1 - u) ** 2 + v[i + 1] * u**2 * (3 - 2 * u)
        + h * d[i] * u * (1 - u) ** 2 + h * d[i + 1] * u**2 * (u - 1)
    )  # fmt: skip


# --- the skull: every ring is two half ellipses, a front and a back one, that meet at the side ----------------------

# level (height of the ring in the middle of the face; below the chin, length along the profile),
# front y z, side x y z, back y z, exponent of the front's curve
_LOFT = np.array([
    # level    yf    zf     xs    ys     zs     yb    zb    n
    [ 160,    136,  -32,     0,  136,   -32,   136,  -32,  2.0],
    [ 140,    132,   -4,    29,  132,   -33,   133,  -62,  2.0],
    [ 118,    120,   23,    51,  118,   -34,   118,  -95,  2.0],
    [  88,     90,   45,    67,   89,   -32,    88, -121,  2.1],
    [  62,     63,   55,    73,   63,   -28,    60, -135,  2.3],
    [  40,     40,   56,    74,   42,   -24,    40, -139,  2.3],
    [  20,     20,   51,    72,   22,   -18,    20, -137,  2.1],
    [   0,      0,   52,    70,    4,   -13,     0, -129,  2.0],
    [ -20,    -20,   54,    67,  -13,   -11,   -18, -117,  2.0],
    [ -40,    -40,   56,    63,  -29,   -10,   -34, -106,  1.9],
    [ -60,    -60,   55,    57,  -45,   -10,   -48,  -99,  1.7],
    [ -80,    -80,   53,    52,  -60,   -13,   -60,  -95,  1.55],
    [ -92,    -91,   45,    49,  -68,   -18,   -67,  -94,  1.6],
    [-102,    -95,   36,    47.5,-74,   -22,   -74,  -93,  1.8],
    [-120,   -100,   18,    46.5,-84,   -28,   -84,  -92,  2.1],
    [-140,   -112,    6,    47,  -98,   -33,   -95,  -93,  2.2],
    [-170,   -140,    0,    51, -122,   -38,  -112,  -99,  2.2],
    [-200,   -166,    5,    64, -150,   -42,  -134, -110,  2.2],
], float)[::-1]  # fmt: skip


def _loft(level, t):
    """Points (..., 3) of the skull at ring levels and angles t: 0 in the middle of the face, pi/2 at the side."""
    yf, zf, xs, ys, zs, yb, zb, n = np.moveaxis(spline(_LOFT[:, 0], _LOFT[:, 1:], level), -1, 0)
    xs = np.maximum(xs, 0)
    s, front = np.sin(t), t < np.pi / 2
    soft = 0.2  # rounds the curve where it crosses the middle of the face
    power = lambda s: (s * s + soft**2) ** (np.where(front, n, 2.2) / 2)
    depth = np.sqrt(np.clip(1 - (power(s) - power(0)) / (power(1) - power(0)), 0, 1))
    z = zs + np.where(front, zf - zs, zb - zs) * depth
    side = smoothstep(np.where(front, t / (np.pi / 2), (np.pi - t) / (np.pi / 2)) * 1.25 - 0.25)
    y = np.where(front, yf, yb) * (1 - side) + ys * side
    return np.stack([xs * s, y, z], -1)


# --- the grid: which level and which angle each vertex has ---------------------------------------------------------


def _lid_shape(x, peak):
    """0 at the canthi and beyond, 1 at the peak between them."""
    s = np.clip((x - CANTHI[0, 0]) / (CANTHI[1, 0] - CANTHI[0, 0]), 0, 1)
    s = s ** (np.log(0.5) / np.log(peak))
    return (4 * s * (1 - s)) ** 0.8


def lip_shape(x):
    """1 in the middle of the mouth, 0 at its corners and beyond."""
    return np.clip(1 - (x / MOUTH_HALF_WIDTH) ** 2, 0, 1)


def _lid_line(x):
    (xi, yi), (xo, yo) = CANTHI
    return yi + (yo - yi) * np.clip((x - xi) / (xo - xi), -0.3, 1.5)


def brow_line(x):
    """Height of the brows at distance x >= 0 from the middle of the face."""
    return 39.5 + 3.2 * np.exp(-(((x - 37) / 15) ** 2)) - 1.5 * np.exp(-((x / 13) ** 2))


# Level of the key rings at the side and the back of the head.
_NOMINAL = {
    -2: 160.0, -1: 148.0, 0: 137.0, HAIRLINE: 87.0, BROW - 1: 48.0, BROW: 42.0, BROW + 1: 38.0,
    CREASE: 30.5, UPPER_LID: 25.0, LOWER_LID: 13.5, CHEEK: 5.5, NOSE_TIP: -14.5, NOSE_BASE: -28.5,
    UPPER_BORDER: -40.0, UPPER_LIP: -46.0, LOWER_LIP: -51.0, LOWER_BORDER: -57.0, SULCUS: -65.0,
    CHIN: -81.0, JAW: -98.0, THROAT: -127.0, COLLAR: -200.0,
}  # fmt: skip


def _feature_levels(x):
    """Level (keys, columns) of the key rings where they are `x` (keys, columns) off the middle of the face."""
    row = {ring: i for i, ring in enumerate(_NOMINAL)}
    level = np.array(list(_NOMINAL.values()))[:, None] + 0 * x

    def along(ring, curve, end, reach):
        """The ring follows the curve up to x = `end` and returns to its nominal level over `reach` mm."""
        at, leave = x[row[ring]], smoothstep((x[row[ring]] - end) / reach)
        level[row[ring]] = curve(at) * (1 - leave) + level[row[ring]] * leave

    for ring, above in ((BROW - 1, 4.5), (BROW, 0.0), (BROW + 1, -3.8)):
        along(ring, lambda x, above=above: brow_line(x) + above, 46, 24)
    nose_side = lambda x: 2.2 * smoothstep(1 - x / CANTHI[0, 0])
    upper_lid = lambda x: _lid_line(x) + 0.9 + nose_side(x) + 5.4 * _lid_shape(x, 0.44)
    lower_lid = lambda x: _lid_line(x) - 0.9 - nose_side(x) - 4.2 * _lid_shape(x, 0.56)
    along(CREASE, lambda x: upper_lid(x) + 3.6, 46, 26)
    along(UPPER_LID, upper_lid, 46, 26)
    along(LOWER_LID, lower_lid, 46, 26)
    along(CHEEK, lambda x: 6.5 - 2.5 * np.exp(-(((x - 33) / 12) ** 2)), 46, 26)
    line = lambda x: STOMION - 0.8 * np.clip(x / MOUTH_HALF_WIDTH, 0, 1.6) ** 2
    bow = lambda x: 1.3 * np.exp(-(((x - 6) / 4) ** 2)) - 0.6 * np.exp(-((x / 3) ** 2))
    gap = lambda x: np.where(x < MOUTH_HALF_WIDTH - 1, 0.01, 0.8)  # the lips touch; at their corner the rings need room
    corner = MOUTH_HALF_WIDTH + 1
    along(UPPER_BORDER, lambda x: line(x) + 1.7 + 5.2 * lip_shape(x) ** 0.75 + bow(x), corner, 24)
    along(UPPER_LIP, lambda x: line(x) + gap(x), corner, 24)
    along(LOWER_LIP, lambda x: line(x) - gap(x), corner, 24)
    along(LOWER_BORDER, lambda x: line(x) - 1.7 - 6.9 * lip_shape(x) ** 0.7, corner, 24)
    return level


# x of the columns 0-16 on rings across the face; degrees of the others.
_FACE_X = {
    HAIRLINE: np.linspace(0, 1, 17) * 65,
    BROW: [0, 5, 10, 14.5, 18.5, 22, 25.5, 29, 32.6, 36.2, 39.8, 43.4, 47, 52.2, 58, 64, 70],
    CREASE: [0, 4.8, 9.4, 13.8, 18, 20.9, 24.1, 27.4, 30.8, 34.2, 37.5, 40.7, 43.6, 49, 55.4, 62, 68],
    CHEEK: [0, 4.2, 8.4, 12.4, 16.2, 19.8, 23.4, 27, 30.7, 34.3, 37.8, 41.4, 45.2, 50, 55.6, 61.4, 66.6],
    NOSE_BASE - 2: [0, 3, 6, 9, 12, 15, 18, 21.2, 24.8, 28.8, 33.2, 37.8, 42.4, 47.2, 52.2, 57.2, 61.8],
    UPPER_BORDER: [0, 3, 6, 9.2, 12.4, 15.8, 19.2, 22.5, 25.5, 28.9, 33, 37.4, 42.0, 46.6, 50.8, 54.4, 57.2],
    LOWER_BORDER: [0, 3, 6, 9.2, 12.4, 15.8, 19.2, 22.5, 25.5, 28.7, 32.4, 36.4, 40.6, 44.6, 48.2, 51.4, 54],
    CHIN: [0, 3.4, 6.8, 10.2, 13.6, 17, 20.4, 23.7, 26.9, 30.1, 33.3, 36.4, 39.4, 42.2, 44.8, 47.2, 49.3],
}
_EAR_DEGREES = (83.5, 101.0)


def _angles():
    """Angle t (RINGS + 1, HALF + 1) of the rings -1 ... 64."""
    keys, values = [-1, 0], [np.linspace(0, np.pi, HALF + 1)] * 2
    for ring, x in _FACE_X.items():
        side = spline(_LOFT[:, 0], _LOFT[:, 3], _NOMINAL.get(ring, -22.0))
        face = np.arcsin(np.asarray(x) / side)
        first, last = np.radians(_EAR_DEGREES)
        ear = np.linspace(first, last, EAR[1] - EAR[0] - 1)
        back = np.linspace(last, np.pi, HALF - EAR[1] + 2)[1:]
        keys.append(ring)
        values.append(np.concatenate([face, ear, back]))
    keys += [THROAT, COLLAR]
    even = np.linspace(0, np.pi, HALF + 1)
    values += [0.5 * (even + values[-1]), even]
    for extra, like in ((LOWER_LID, CREASE), (LOWER_LIP, UPPER_BORDER)):
        keys.append(extra)
        values.append(values[keys.index(like)])
    order = np.argsort(keys)
    return monotone(np.array(keys)[order], np.array(values)[order], np.arange(-1, RINGS))


def _levels(t):
    """Level (RINGS + 1, HALF + 1) of the rings -1 ... 64."""
    keys = np.array(list(_NOMINAL))
    side = spline(_LOFT[:, 0], _LOFT[:, 3], list(_NOMINAL.values()))[:, None]
    t_keys = t[np.clip(keys + 1, 0, None)]
    x = side * np.sin(t_keys)
    x = np.where(t_keys < np.pi / 2, x, 1e3)  # behind the side, nominal
    return monotone(keys, _feature_levels(x), np.arange(-1, RINGS))


# --- the features: heights over the skull, as functions of the front view -------------------------------------------


def _bump(x, y, cx, cy, rx, ry, power=1.0):
    """Gaussian of half-axes rx, ry; with a power over 1 a plateau with a steeper edge."""
    return np.exp(-((((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2) ** power))


_NOSE = np.array([
    # y   height half-width
    [ 52,   0.0, 14.0], [ 42,  0.8, 13.0], [ 33,  2.4,  9.5], [ 25,  4.4,  7.6], [ 14,  8.4, 7.8], [2, 12.6, 9.0],
    [ -9,  16.2,  9.6], [-16, 17.6,  9.3], [-20, 15.6,  9.2], [-24, 10.8,  9.0], [-28, 5.4, 8.8], [-32, 1.6, 9.0],
    [-38,   0.4,  9.0], [-46,  0.0,  9.0],
])[::-1]  # fmt: skip


def _features(p):
    """Height (...) over skull points p (..., 3) of the subject's left, along z."""
    x, y = np.moveaxis(p, -1, 0)[:2]
    height, width = np.moveaxis(spline(_NOSE[:, 0], _NOSE[:, 1:], np.clip(y, -46, 52)), -1, 0)
    h = height * np.exp(-((x / width) ** 2))
    h += 4.8 * _bump(x, y, 0, -17.6, 8.0, 7.2)  # tip
    h += 7.6 * _bump(x, y, 12.8, -20.2, 5.2, 6.0, 1.2)  # wing
    h -= 5.0 * _bump(x, y, 7.2, -25.2, 3.4, 2.6)  # nostril
    h += 1.5 * _bump(x, y, 0, -27.5, 2.8, 3.5)  # columella
    h -= 1.2 * _bump(x, y, 19.0, -23, 3.5, 6)  # crease behind the wing
    h += 2.8 * np.exp(-(((y - brow_line(x) + 1) / 8) ** 2)) * np.exp(-(((x - 25) / 25) ** 4))  # brow ridge
    h += 2.5 * _bump(x, y, 47, 33, 9, 9)  # outer rim of the orbit
    h += 3.2 * _bump(x, y, 43, -4, 17, 13)  # cheekbone
    h -= 1.5 * _bump(x, y, 40, -40, 14, 16)  # hollow of the cheek
    h += 4.0 * _bump(x, y, 0, -48, 27, 19, 1.3)  # muzzle
    h -= 1.3 * _bump(x, y, 0, -34.5, 2.6, 6) - 0.7 * _bump(x, y, 5, -35, 2.2, 6)  # philtrum
    h -= 2.4 * _bump(x, y, 0, -65.5, 16, 5)  # fold over the chin
    h -= 1.8 * _bump(x, y, MOUTH_HALF_WIDTH + 1, -49, 5, 4)  # corner of the mouth
    h += 4.5 * _bump(x, y, 0, -80, 16, 11)  # chin
    return h


def _orbit(p):
    """z of the skin around and over the left eyeball."""
    x, y, z = np.moveaxis(p, -1, 0)
    mask = _bump(x, y, 31.0, 21.0, 19.5, 13.0, 2.0)
    socket = 32.5 - 0.26 * (x - CANTHI[0, 0]) - 0.02 * (y - 20) ** 2
    z = z * (1 - mask) + socket * mask
    cx, cy, cz = EYE_CENTER
    radius = EYE_RADIUS + 1.7
    over = radius**2 - (x - cx) ** 2 - (y - cy) ** 2
    lid = cz + np.where(over > 0, np.sqrt(np.maximum(over, 1e-9)), -0.12 * np.maximum(-over, 0))
    return 0.5 * (z + lid + np.sqrt((z - lid) ** 2 + 2.0**2))


def _lips(x, ring):
    """How far the lips stand out over the muzzle."""
    keys = [NOSE_BASE, UPPER_BORDER, 37, 38, UPPER_LIP, LOWER_LIP, 45, 46, LOWER_BORDER, SULCUS]
    out = spline(keys, [0, 0.9, 2.8, 3.2, 0.4, 0.2, 2.9, 3.4, 1.4, 0], np.clip(ring, NOSE_BASE, SULCUS))
    return out * np.clip(1 - (x / (MOUTH_HALF_WIDTH + 1.0)) ** 2, 0, 1) ** 0.8


def half_grid():
    """Vertices (RINGS + 1, HALF + 1, 3) of the rings -1 ... 64 on the subject's left."""
    t = _angles()
    level = _levels(t)
    ring = np.arange(-1, RINGS)[:, None] + 0 * t
    p = _loft(level, t)
    x = p[..., 0]
    front = smoothstep((np.radians(88) - t) / np.radians(25)) * (ring < THROAT) * (ring > HAIRLINE - 3)
    p[..., 2] += front * (_features(p) + _lips(x, ring) * (np.abs(ring - 41.5) < 9))
    orbit = front * _bump(x, p[..., 1], 31, 20, 30, 26, 4) * (np.abs(ring - 18) < 12)
    p[..., 2] += orbit * (_orbit(p) - p[..., 2])
    _fold_lids(p)
    _fold_mouth(p)
    _ear(p)
    return p


EAR_TOP, EAR_BOTTOM = 30.0, -33.0
# Sections of the ear from its top to its lobe: how far back and how far out of the head (mm) each column is.
_EAR_SECTIONS = np.array([
    # tragus   hollow      fold       groove      rim          behind      root
    [[1, 0.5], [6.0, 1.5], [11, 2.5], [16, 3.0], [20.0, 2.5], [20.5, 1.0], [18, 0.0]],
    [[1, 1.0], [7.0, 6.0], [13, 8.5], [19, 9.5], [25.0, 12.5], [24.5, 7.5], [17, 0.5]],
    [[1, 1.0], [8.0, 2.5], [15, 9.5], [22, 9.0], [29.5, 17.0], [28.0, 11.0], [16, 0.5]],
    [[1, 3.5], [6.5, -2.0], [14, 11.0], [21, 9.5], [28.5, 16.5], [26.5, 10.5], [14, 0.5]],
    [[1, 3.5], [6.5, -1.5], [12, 10.0], [18, 9.5], [23.5, 13.5], [21.5, 8.5], [12, 0.5]],
    [[1, 1.0], [5.0, 5.0], [9.0, 8.0], [13, 9.0], [16.5, 9.0], [15.5, 5.5], [10, 0.5]],
    [[0, 0.0], [3.0, 1.5], [5.5, 2.0], [7.5, 2.0], [9.5, 1.5], [10.0, 0.5], [9.5, 0.0]],
])  # fmt: skip
_EAR_SECTION_AT = np.array([0.0, 0.1, 0.28, 0.5, 0.75, 0.92, 1.0])


def _ear(p):
    """A shell between the columns EAR."""
    columns = slice(EAR[0] + 1, EAR[1])
    base = p[:, columns].copy()
    s = (EAR_TOP - base[:, 0, 1]) / (EAR_TOP - EAR_BOTTOM)
    section = spline(_EAR_SECTION_AT, _EAR_SECTIONS, np.clip(s, 0, 1))
    blend = smoothstep((np.minimum(s, 1 - s) + 0.08) / 0.16)
    for ring in np.flatnonzero(blend):
        back, out = section[ring].T
        z = base[ring, 0, 2] - back - 6 * (0.5 - s[ring])
        around = p[ring, ::-1]  # z grows from the back of the head to the front
        ear = np.stack([np.interp(z, around[:, 2], around[:, 0]) + out, base[ring, 0, 1] + 0.12 * back, z], -1)
        p[ring, columns] += blend[ring] * (ear - base[ring])


def _fold_lids(p):
    """The rings between the lid margins go around the margins' edge and into the socket."""
    r = lambda ring: p[ring + 1]
    x = r(UPPER_LID)[:, 0]
    column = np.arange(HALF + 1)
    inside = (_lid_shape(x, 0.5) ** 0.5 * (column > INNER_CANTHUS) * (column < OUTER_CANTHUS))[:, None]
    for margin, edge, deep in ((UPPER_LID, 17, 18), (LOWER_LID, 20, 19)):
        out = r(margin) - EYE_CENTER
        unit = out / np.linalg.norm(out, axis=1, keepdims=True)
        for ring, radius in ((edge, EYE_RADIUS + 0.15), (deep, 7.0)):
            target = EYE_CENTER + unit * np.minimum(radius, np.linalg.norm(out, axis=1, keepdims=True) - 0.1)
            p[ring + 1] += inside * (target - p[ring + 1])


def _fold_mouth(p):
    """The rings between the lips line the mouth."""
    r = lambda ring: p[ring + 1]
    inside = (lip_shape(r(UPPER_LIP)[:, 0]) ** 0.5 * (np.arange(HALF + 1) < MOUTH_CORNER))[:, None]
    folds = ((40, UPPER_LIP, 2, -6), (41, UPPER_LIP, 5, -26), (42, LOWER_LIP, -4, -26), (43, LOWER_LIP, -2, -6))
    for ring, lip, dy, dz in folds:
        target = r(lip) + np.array([0, dy, dz]) * inside
        p[ring + 1] += np.minimum(1, 1.6 * inside) * (target - p[ring + 1])


# --- the mesh ------------------------------------------------------------------------------------------------------


def skin_index(ring, column):
    """Vertex of ring 0-64 and column (any integer, 0 the middle of the face, positive on the subject's left)."""
    return 1 + HALF + np.asarray(ring) * COLUMNS + np.asarray(column) % COLUMNS


def _skin_faces():
    """Triangles of the skin, mirror images of each other left and right, counter-clockwise from outside."""
    faces = [(0, 1 + k, 1 + (k + 1) % HALF) for k in range(HALF)]
    for k in range(HALF):  # ring of 30 to ring of 60
        a, b = 1 + k, 1 + (k + 1) % HALF
        low = skin_index(0, 2 * k + np.arange(3))
        faces += [(a, low[0], low[1]), (a, low[1], b), (b, low[1], low[2])]
    ring, column = np.meshgrid(np.arange(RINGS - 1), np.arange(COLUMNS), indexing="ij")
    a, b = skin_index(ring, column), skin_index(ring, column + 1)
    c, d = skin_index(ring + 1, column), skin_index(ring + 1, column + 1)
    left = (column < HALF)[..., None]
    first = np.where(left, np.stack([a, c, b], -1), np.stack([a, c, d], -1))
    second = np.where(left, np.stack([b, c, d], -1), np.stack([a, d, b], -1))
    quads = np.stack([first, second], 2).reshape(-1, 3)
    return np.concatenate([np.array(faces), quads])


PUPIL_RINGS, IRIS_RINGS = 2, 6  # rings of an eyeball that pupil, and pupil and iris reach over


def _eyeball():
    """An eyeball around its centre (EYE, 3), poles at the front and the back, and its faces."""
    degrees = np.concatenate([[4, 10.5], np.linspace(10.5, 27.5, 5)[1:], np.linspace(27.5, 172, 12)[1:]])
    a, b = np.radians(degrees)[:, None], np.arange(EYE_COLUMNS) * (2 * np.pi / EYE_COLUMNS)
    rings = np.stack([np.sin(a) * np.sin(b), np.sin(a) * np.cos(b), np.cos(a) + 0 * b], -1).reshape(-1, 3)
    v = EYE_RADIUS * np.concatenate([[[0, 0, 1.0]], rings, [[0, 0, -1.0]]])
    k = np.arange(EYE_COLUMNS)
    at = lambda ring, k: 1 + ring * EYE_COLUMNS + k % EYE_COLUMNS
    faces = [np.stack([0 * k, at(0, k + 1), at(0, k)], 1)]
    for ring in range(EYE_RINGS - 1):
        a, b, c, d = at(ring, k), at(ring, k + 1), at(ring + 1, k), at(ring + 1, k + 1)
        faces += [np.stack([a, b, c], 1), np.stack([b, d, c], 1)]
    faces.append(np.stack([at(EYE_RINGS - 1, k), at(EYE_RINGS - 1, k + 1), 0 * k + EYE - 1], 1))
    return v, np.concatenate(faces)


def build() -> Template:
    half = half_grid()
    half[:, [0, HALF], 0] = 0
    mirrored = half[:, HALF - 1 : 0 : -1] * [-1, 1, 1]
    rings = np.concatenate([half, mirrored], 1)  # (RINGS + 1, COLUMNS, 3)
    pole = _loft(np.array([_NOMINAL[-2]]), np.zeros(1))
    eye, eye_faces = _eyeball()
    flipped = (eye * [-1, 1, 1]) - EYE_CENTER * [1, -1, -1]
    vertices = np.concatenate([pole, rings[0, ::2], rings[1:].reshape(-1, 3), eye + EYE_CENTER, flipped])
    faces = np.concatenate([_skin_faces(), eye_faces + SKIN, eye_faces[:, ::-1] + SKIN + EYE])
    column = np.arange(COLUMNS)
    column = np.where(column > HALF, column - COLUMNS, column)
    return Template(
        vertices, faces,
        ring=np.concatenate([[-2], np.full(HALF, -1), np.repeat(np.arange(RINGS), COLUMNS)]),
        column=np.concatenate([[0], column[::2], np.tile(column, RINGS)]),
    )  # fmt: skip
