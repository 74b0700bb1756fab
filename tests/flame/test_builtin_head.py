"""The built-in head: its layout, its mesh, what its directions do, and where its landmarks lie."""

import hashlib
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch

from ringnet_ext.flame import FLAME, builtin_head
from ringnet_ext.flame.builtin import GRID, VERSION
from ringnet_ext.flame.builtin.program import compute

SKIN, EYE = 3931, 546
MM = 1e-3
REGIONS = (
    "face forehead lips nose scalp neck left_ear right_ear left_eyeball right_eyeball left_eye_region right_eye_region "
    "eye_region boundary brows mouth_interior left_iris right_iris left_pupil right_pupil"
).split()
# Where each of the 68 points goes when the picture is mirrored.
FLIP = np.array(
    [*range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1)]
    + [45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40]
    + [54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65]
)
MIRROR = np.array([-1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def head():
    return builtin_head()


@pytest.fixture(scope="module")
def layer(head):
    return FLAME(head, dtype=torch.float64)


def pose(layer, **arguments):
    arguments = {k: torch.as_tensor(np.atleast_2d(v), dtype=torch.float64) for k, v in arguments.items()}
    return layer(**arguments).vertices[0].numpy()


def landmarks(head, vertices, row=0):
    e = head.landmarks
    faces = np.concatenate([e.contour_faces_idx[row], e.static_faces_idx])
    bary = np.concatenate([e.contour_bary_coords[row], e.static_bary_coords])
    return (vertices[head.faces[faces]] * bary[..., None]).sum(1)


def face_normals(vertices, faces):
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    return np.cross(b - a, c - a)


def rotation_y(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def mirror_permutation(vertices):
    """For each vertex the one at its mirror image."""
    order = lambda v: np.lexsort(np.round(v / MM, 3).T)
    there, here = order(vertices * MIRROR), order(vertices)
    permutation = np.empty(len(vertices), int)
    permutation[there] = here
    return permutation


def test_layout(head):
    assert head.v_template.shape == (5023, 3)
    assert head.faces.shape == (9976, 3)
    assert head.shapedirs.shape == (5023, 3, 100)
    assert head.expressiondirs.shape == (5023, 3, 50)
    assert head.posedirs.shape == (5023, 3, 36)
    assert head.parents.tolist() == [-1, 0, 1, 1, 1]
    assert sorted(head.regions) == sorted(REGIONS)
    assert all(len(ids) for ids in head.regions.values())
    height = np.ptp(head.v_template[np.concatenate([head.regions["scalp"], head.regions["face"]]), 1])
    assert 0.2 < height < 0.27


def test_is_read_once_and_the_same_every_time(head):
    assert builtin_head() is head
    again = builtin_head.__wrapped__()
    for name in ("v_template", "shapedirs", "expressiondirs", "posedirs", "J_regressor", "lbs_weights", "faces"):
        assert np.array_equal(getattr(again, name), getattr(head, name)), name
    with pytest.raises(ValueError, match="read-only"):
        head.v_template[0] = 0


def test_the_program_computes_what_is_stored(head):
    """Wherever it runs: to a rounding error of its own, and directions to half a step of the grid."""
    computed = compute()
    for name in ("v_template", "J_regressor", "lbs_weights"):
        np.testing.assert_allclose(getattr(head, name), getattr(computed, name), rtol=0, atol=1e-12, err_msg=name)
    for name in ("shapedirs", "expressiondirs", "posedirs"):
        stored, expected = getattr(head, name), getattr(computed, name)
        np.testing.assert_allclose(stored, expected, rtol=0, atol=GRID / 2 + 1e-12, err_msg=name)
        assert np.array_equal(stored, stored.astype(np.float32)), "not exact in single precision"
    assert np.array_equal(head.faces, computed.faces) and np.array_equal(head.parents, computed.parents)
    assert head.regions.keys() == computed.regions.keys()
    assert all(np.array_equal(ids, computed.regions[name]) for name, ids in head.regions.items())
    for row in range(79):  # by where they are: a point on an edge has either triangle
        here, there = landmarks(head, head.v_template, row), landmarks(computed, head.v_template, row)
        np.testing.assert_allclose(here, there, rtol=0, atol=1e-12)


def test_other_numbers_need_another_version(head):
    """Whoever changes the head raises VERSION and adds its digest here: networks are trained on one version."""
    digests = {1: "527ed7add3a41fb8"}
    digest = hashlib.sha256()
    for arrays in (vars(head), head.landmarks.arrays(), head.regions):
        for name, array in sorted(arrays.items()):
            if isinstance(array, np.ndarray):
                digest.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
    assert digest.hexdigest()[:16] == digests[VERSION]


def test_mesh_is_a_skin_open_at_the_neck_and_two_closed_eyeballs(head):
    edges = head.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    directed = edges[:, 0] * 10000 + edges[:, 1]
    assert len(np.unique(directed)) == len(directed), "two triangles run along an edge in the same direction"
    lonely = ~np.isin(directed, edges[:, 1] * 10000 + edges[:, 0])
    assert sorted(np.unique(edges[lonely])) == sorted(head.regions["boundary"])
    ends = (0, SKIN, SKIN + EYE, SKIN + 2 * EYE)
    parts = [head.faces[((head.faces >= a) & (head.faces < b)).all(1)] for a, b in pairwise(ends)]
    assert [len(p) for p in parts] == [7800, 1088, 1088]
    for part in parts:  # outward: volume over the centre is positive
        v = head.v_template - head.v_template[np.unique(part)].mean(0)
        assert (v[part[:, 0]] * face_normals(v, part)).sum() > 0


def test_mesh_has_no_degenerate_triangles(head):
    area = np.linalg.norm(face_normals(head.v_template, head.faces), axis=1) / 2
    assert area.min() > 1e-3 * MM**2


def test_template_is_symmetric(head):
    p = mirror_permutation(head.v_template)
    np.testing.assert_allclose(head.v_template[p], head.v_template * MIRROR, atol=1e-12)
    as_set = lambda faces: {tuple(np.roll(f, -np.argmin(f))) for f in faces}
    assert as_set(p[head.faces][:, ::-1]) == as_set(head.faces)
    np.testing.assert_allclose(head.lbs_weights[p][:, [0, 1, 2, 4, 3]], head.lbs_weights, atol=1e-9)


def test_shape_directions_are_orthogonal_sorted_and_4_mm_in_all(head):
    d = head.shapedirs.reshape(-1, 100)
    rms = np.sqrt((d**2).sum(0) / len(head.v_template)) / MM
    gram = (d.T @ d) / len(head.v_template) / MM**2
    assert np.abs(gram / np.outer(rms, rms) - np.eye(100)).max() < 1e-4  # the grid's share: exact when computed
    assert (np.diff(rms) <= 1e-12).all()
    assert np.sqrt((rms**2).sum()) == pytest.approx(4, abs=1e-6)
    slope = np.polyfit(np.log(np.arange(1, 101)), np.log(rms), 1)[0]
    assert -1.05 < slope < -0.75
    peak = np.linalg.norm(head.shapedirs, axis=1).max(0) / MM
    assert peak[:4].max() <= 7 + 1e-9 and peak[4:].max() <= 4 + 1e-9


def test_coarse_directions_come_first(head):
    """The share of the head that moves, participation of its vertices, falls from proportions to details."""
    energy = (head.shapedirs**2).sum(1)
    share = energy.sum(0) ** 2 / (energy**2).sum(0) / len(energy)
    assert share[:4].min() > np.median(share[40:])


def test_shape_is_mostly_symmetric(head):
    p = mirror_permutation(head.v_template)
    odd = head.shapedirs - head.shapedirs[p] * MIRROR[:, None]
    share = (odd**2).sum((0, 1)) / (4 * (head.shapedirs**2).sum((0, 1)))
    assert 5 <= (share > 0.9).sum() <= 40
    variance = (head.shapedirs**2).sum((0, 1))
    assert (share * variance).sum() < 0.15 * variance.sum()


def test_weights_and_joints(head):
    for rows in (head.lbs_weights, head.J_regressor):
        assert rows.min() >= 0
        np.testing.assert_allclose(rows.sum(1), 1, atol=1e-9)
    assert (head.lbs_weights > 0).sum(1).max() <= 3
    joints = head.J_regressor @ head.v_template
    np.testing.assert_allclose(joints[:, 0], [0, 0, 0, joints[3, 0], -joints[3, 0]], atol=1e-9)
    for joint, first in ((3, SKIN), (4, SKIN + EYE)):
        distance = np.linalg.norm(head.v_template[first : first + EYE] - joints[joint], axis=1)
        assert np.ptp(distance) < 1e-9, "the eye's joint is not the centre of the eyeball"
    assert joints[0, 1] < joints[1, 1] < joints[2, 1] < joints[3, 1]
    # Neighbours are skinned alike, but at the slits.
    a, b = head.faces[:7800, :2].T
    step = np.abs(head.lbs_weights[a] - head.lbs_weights[b]).max(1)
    assert np.quantile(step, 0.98) < 0.3


def test_eyeballs_stay_round(head):
    rng = np.random.default_rng(0)
    for _ in range(8):
        v = head.v_template + head.shapedirs @ rng.normal(size=100) + head.expressiondirs @ rng.normal(size=50)
        moved = v - head.v_template
        for first in (SKIN, SKIN + EYE):
            assert np.ptp(moved[first : first + EYE], axis=0).max() < 1e-9


def test_lids_stay_outside_the_eyeballs(head):
    """Where skin lies in front of an eyeball it is nearer to the viewer, for random faces and closing lids."""
    rng = np.random.default_rng(1)
    blink = np.eye(50)[3] * np.linspace(-1, 3, 8)[:, None]
    for k in range(24):
        e = blink[k] if k < 8 else 0.5 * rng.normal(size=50)
        v = head.v_template + head.shapedirs @ rng.normal(size=100) + head.expressiondirs @ e
        for name, first in (("left", SKIN), ("right", SKIN + EYE)):
            eyeball = v[first : first + EYE]
            center, radius = eyeball.mean(0), np.ptp(eyeball[:, 0]) / 2
            center[2] = eyeball[:, 2].max() - radius
            lids = v[head.regions[f"{name}_eye_region"]] - center
            over = np.hypot(lids[:, 0], lids[:, 1]) < 0.9 * radius
            assert over.sum() > 10
            assert np.linalg.norm(lids[over], axis=1).min() > radius - 0.3 * MM


def opening(points, left):
    """Mean distance of the lids' points of one eye (of the 68)."""
    pairs = ((43, 47), (44, 46)) if left else ((38, 40), (37, 41))
    return np.mean([np.linalg.norm(points[a] - points[b]) for a, b in pairs])


def test_blink_closes_the_lids(head):
    """The fourth expression closes both, the eighteenth one eye and opens the other."""
    at = lambda k, s: landmarks(head, head.v_template + head.expressiondirs[..., k] * s)
    neutral = at(0, 0)
    assert opening(neutral, True) > 7 * MM
    closed = at(3, 3.0)
    assert opening(closed, True) < 1.2 * MM and opening(closed, False) < 1.2 * MM
    half = at(3, 1.5)
    assert 0.35 < opening(half, True) / opening(neutral, True) < 0.65
    wink = at(17, 2.0)
    assert opening(wink, True) < opening(neutral, True) < opening(wink, False)


def mouth(points):
    x, y, _ = points.T
    return {"open": y[62] - y[66], "width": x[54] - x[48], "corner": y[[48, 54]].mean()}


def test_expressions_do_what_they_are_called(head):
    at = lambda k, s=2.0: landmarks(head, head.v_template + head.expressiondirs[..., k] * s)
    neutral = at(0, 0)
    rest = mouth(neutral)
    assert mouth(at(0))["open"] > rest["open"] + 4 * MM  # jaw open
    smile = mouth(at(1))
    assert smile["width"] > rest["width"] + 4 * MM and smile["corner"] > rest["corner"] + 2 * MM
    pucker = at(2)
    assert mouth(pucker)["width"] < rest["width"] - 5 * MM and pucker[62, 2] > neutral[62, 2] + 2 * MM
    assert at(4)[17:27, 1].mean() > neutral[17:27, 1].mean() + 2 * MM  # brows
    assert mouth(at(6))["corner"] < rest["corner"] - 2 * MM  # corners down


def test_jaw_opens_the_mouth_and_leaves_the_upper_face(head, layer):
    rest, opened = pose(layer, jaw_pose=[0, 0, 0]), pose(layer, jaw_pose=[0.3, 0, 0])
    a, b = landmarks(head, rest), landmarks(head, opened)
    assert mouth(a)["open"] < 0.5 * MM
    assert mouth(b)["open"] > 18 * MM
    moved = np.linalg.norm(b - a, axis=1)
    assert moved[17:48].max() < 1 * MM and moved[[51, 62]].max() < 2 * MM
    assert moved[8] > 20 * MM


def test_turning_an_eye_leaves_the_skin_but_its_lids(head, layer):
    rest, turned = pose(layer, jaw_pose=[0, 0, 0]), pose(layer, eye_pose=[0.2, 0.3, 0, 0, 0, 0])
    moved = np.linalg.norm(turned - rest, axis=1)
    center = head.J_regressor[3] @ rest
    far = np.linalg.norm(rest - center, axis=1) > 30 * MM
    assert moved[far].max() < 0.2 * MM
    radius = np.linalg.norm(turned[SKIN : SKIN + EYE] - center, axis=1)
    assert np.abs(radius - np.linalg.norm(rest[SKIN : SKIN + EYE] - center, axis=1)).max() < 0.01 * MM


def test_pose_correctives_are_small(head):
    assert np.abs(head.posedirs).max() > 1 * MM
    assert np.linalg.norm(head.posedirs, axis=1).max() < 12 * MM
    assert (np.abs(head.posedirs).max((0, 1)) > 0).all()


def test_directions_have_no_traces(head):
    """No direction is subnormal in single precision, nor is its product with any coefficient that does something."""
    for values in (head.shapedirs, head.expressiondirs, head.posedirs):
        assert np.abs(values[values != 0]).min() > 1e12 * np.finfo(np.float32).tiny


def test_landmarks_mirror(head):
    for degrees in (0, 1, 20, 39):
        here = landmarks(head, head.v_template, degrees)
        there = landmarks(head, head.v_template, 39 + degrees if degrees else 0)
        np.testing.assert_allclose(there[FLIP], here * MIRROR, atol=1e-9)


def test_landmarks_lie_in_order_on_their_features(head):
    p = landmarks(head, head.v_template)
    x, y, z = p.T
    right_first = lambda ids: (np.diff(x[list(ids)]) > 0).all()  # the subject's right is the image's left
    for first, last in ((0, 16), (17, 26), (31, 35), (36, 39), (42, 45), (48, 54), (60, 64)):
        assert right_first(range(first, last + 1)), first
    assert (np.diff(y[27:31]) < 0).all() and (np.diff(y[0:9]) < 0).all()
    assert z.argmax() == 30
    assert y[17:27].min() > y[36:48].max() > y[31:36].max() > y[48:60].max() > y[8]
    lips = (*range(49, 54), *range(55, 60))
    on = {"brows": range(17, 27), "nose": range(28, 31), "right_eye_region": (37, 38, 40, 41), "lips": lips}
    for region, ids in on.items():
        faces = head.faces[head.landmarks.static_faces_idx[np.array(ids) - 17]]
        assert np.isin(faces, head.regions[region]).any(1).all(), region


@pytest.mark.parametrize("degrees", [15, 30, 39, -15, -30, -39])
def test_far_contour_lies_on_the_silhouette(head, degrees):
    """Drawn orthographically and without ears and neck, the points of the side turned away lie at the outline."""
    row = degrees if degrees >= 0 else 39 - degrees
    R = rotation_y(degrees)
    hidden = np.isin(np.arange(5023), np.concatenate([head.regions[k] for k in ("neck", "left_ear", "right_ear")]))
    hidden[head.regions["boundary"]] = True
    faces = head.faces[~hidden[head.faces].any(1)]
    pixel = 0.25 * MM
    to_pixels = lambda p: ((p @ R.T)[:, :2] + 0.2) / pixel
    mask = np.zeros((1600, 1600), np.uint8)
    for triangle in np.rint(to_pixels(head.v_template)).astype(np.int32)[faces]:
        cv2.fillConvexPoly(mask, triangle, 255)
    inside = cv2.distanceTransform(mask, cv2.DIST_L2, 5) * pixel
    p = to_pixels(landmarks(head, head.v_template, row))
    u, v = np.rint(p).astype(int).T
    far, near = (slice(9, 17), slice(0, 8)) if degrees > 0 else (slice(0, 8), slice(9, 17))
    assert inside[v[far], u[far]].max() < 3 * MM
    assert inside[v[near], u[near]].max() > 10 * MM


def test_contour_moves_smoothly_and_the_near_side_not_at_all(head):
    rows = np.array([landmarks(head, head.v_template, a)[:17] for a in range(40)])
    assert np.ptp(rows[:, :9], axis=0).max() < 1e-12
    steps = np.linalg.norm(np.diff(rows[:, 9:], axis=0), axis=2)
    assert steps.max() < 6 * MM


def test_random_heads_keep_their_triangles(head):
    """Few triangles turn over or collapse for 32 random people with random expressions."""
    rng = np.random.default_rng(2)
    rest = face_normals(head.v_template, head.faces)
    for _ in range(32):
        v = head.v_template + head.shapedirs @ rng.normal(size=100) + head.expressiondirs @ (0.5 * rng.normal(size=50))
        n = face_normals(v, head.faces)
        cosine = (n * rest).sum(1) / np.maximum(np.linalg.norm(n, axis=1) * np.linalg.norm(rest, axis=1), 1e-30)
        assert (cosine < 0).mean() < 0.005
