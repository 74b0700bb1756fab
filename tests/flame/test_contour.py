import pickle
from dataclasses import replace
from functools import cache

import cv2
import numpy as np
import pytest
from heads import MESH, STATIC, random_embedding, random_model, read_head

from ringnet_ext.commands.contour import main
from ringnet_ext.flame import FlameModel, LandmarkEmbedding
from ringnet_ext.flame.contour import contour_embedding, ear_embedding
from ringnet_ext.flame.landmarks import contour_row
from ringnet_ext.flame.sources import load_head


def positions(model, faces_idx, bary_coords):
    return (model.v_template[model.faces[faces_idx]] * bary_coords[..., None]).sum(-2)


def contour_positions(model, embedding, yaw):
    row = int(contour_row(yaw))
    return positions(model, embedding.contour_faces_idx[row], embedding.contour_bary_coords[row])


def turn(points, yaw):
    cos, sin = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
    return points @ np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])


def distance_to_occluding_contour(vertices, faces, points, pixel=5e-4, jump=0.015):
    """Distance of points, in millimetres, to where an orthographic picture of the mesh (seen along -z) is torn: where
    the surface ends before what is at least `jump` metres behind it."""
    low = vertices[:, :2].min(0) - 20 * pixel
    width, height = np.ceil((vertices[:, :2].max(0) + 20 * pixel - low) / pixel).astype(int)
    depth = np.full((height, width), -1, np.float32)
    corners = np.rint((vertices[:, :2] - low) / pixel * 16).astype(np.int32)
    level = vertices[faces, 2].mean(1)
    for face in level.argsort():
        cv2.fillConvexPoly(depth, corners[faces[face]], float(level[face]), shift=4)
    torn = cv2.dilate(depth, np.ones((3, 3))) - cv2.erode(depth, np.ones((3, 3))) > jump
    distance = cv2.distanceTransform((~torn).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    column, row = np.rint((points[:, :2] - low) / pixel).astype(int).T
    return distance[row, column] * pixel * 1000


def distance_to_curve(points, curve):
    """Distance of points (N, 3) to a polyline (M, 3), in millimetres."""
    start, step = curve[:-1], np.diff(curve, axis=0)
    way = ((points[:, None] - start) * step).sum(2) / (step * step).sum(1)
    nearest = start + np.clip(way, 0, 1)[..., None] * step
    return np.linalg.norm(points[:, None] - nearest, axis=2).min(1) * 1000


def ball(radius=0.09):
    """A head on which every contour is known."""
    import trimesh

    mesh = trimesh.creation.icosphere(subdivisions=4, radius=radius)
    front = np.full((51, 3), [0, 0, 1.0])
    front[19], front[28] = [-0.55, 0.3, 0.7], [0.55, 0.3, 0.7]  # the eyes' outer corners
    front[40] = [0, -0.45, 0.9]  # the lower lip
    triangle = (front / np.linalg.norm(front, axis=1, keepdims=True) @ mesh.triangles_center.T).argmax(1)
    embedding = LandmarkEmbedding(triangle, np.full((51, 3), 1 / 3))
    return FlameModel.rigid(mesh.vertices, mesh.faces, embedding)


def with_landmarks(model, **changes):
    return replace(model, landmarks=replace(model.landmarks, **changes))


def test_on_a_ball():
    """The silhouette of a ball is its great circle; where the cut hides it, the contour is on the cut."""
    model = ball()
    embedding = contour_embedding(model)
    for yaw in (-39, -10, 0, 25):
        points = contour_positions(model, embedding, yaw)
        assert np.allclose(np.linalg.norm(points, axis=1), 0.09, atol=1e-3)
        assert (np.diff(turn(points, yaw)[:, 0]) > 0)[2:-2].all()  # from the subject's right to the left
        far = points[:4] if yaw < 0 else points[-4:]
        if abs(yaw) > 20:
            assert np.abs(turn(far, yaw)[:, 2]).max() < 0.01
    mirrored = contour_positions(model, embedding, 20)[::-1] * [-1, 1, 1]
    assert np.linalg.norm(contour_positions(model, embedding, -20) - mirrored, axis=1).max() < 4e-3


@pytest.mark.parametrize(
    "model, points, message",
    [
        (lambda: ball(), 16, "points: expected an odd number"),
        (lambda: replace(ball(), landmarks=None), 17, "landmarks: expected the 51 inner landmarks"),
        (lambda: with_landmarks(ball(), static_ids=np.arange(51)), 17, "51 inner landmarks"),
        (
            lambda: replace(ball(), landmarks=random_embedding(np.random.default_rng(0), 10, 68)),
            17,
            "got all 68 as static ones",
        ),
        (lambda: random_model(), 17, "landmarks: "),
    ],
)
def test_wrong_heads_are_named(model, points, message):
    with pytest.raises(ValueError, match=message):
        contour_embedding(model(), points)


def test_ears():
    model = ball()
    side = np.abs(model.v_template[:, 0]) > 0.08
    model = replace(
        model,
        regions={
            "right_ear": np.flatnonzero(side & (model.v_template[:, 0] < 0)),
            "left_ear": np.flatnonzero(side & (model.v_template[:, 0] > 0)),
        },
    )
    ears = ear_embedding(model, points=8)
    points = positions(model, ears.static_faces_idx, ears.static_bary_coords)
    assert (points[:8, 0] < -0.075).all() and (points[8:, 0] > 0.075).all()
    rim = np.hypot(points[:, 1], points[:, 2])
    assert rim.min() > 0.03 and rim.max() < 0.045  # where x = 0.08 on the ball, to the width of a triangle
    for ear in (points[:8], points[8:]):  # from the front of the top, over the back, down
        assert ear[0, 2] > 0.01 and ear[0, 1] > 0.02 and ear[:, 2].min() < -0.03 and ear[-1, 1] < -0.03
    with pytest.raises(ValueError, match="regions: expected 'right_ear' among them, got none"):
        ear_embedding(ball())


class TestCommandOnMeshes:
    """Any mesh is a head, given its landmarks; with regions, a head that has ears."""

    @pytest.fixture
    def given(self, tmp_path):
        import trimesh

        model = ball()
        trimesh.Trimesh(model.v_template, model.faces, process=False).export(tmp_path / "ball.ply")
        model.landmarks.save(tmp_path / "landmarks.npz")
        side = np.abs(model.v_template[:, 0]) > 0.08
        masks = {
            name: np.flatnonzero(side & (sign * model.v_template[:, 0] > 0))
            for name, sign in (("right_ear", -1), ("left_ear", 1))
        }
        (tmp_path / "masks.pkl").write_bytes(pickle.dumps(masks))
        (tmp_path / "other.pkl").write_bytes(pickle.dumps({"left_ear": np.array([len(side)])}))
        return [
            str(tmp_path / "ball.ply"),
            "--landmarks",
            str(tmp_path / "landmarks.npz"),
            "--out",
            str(tmp_path / "c.npz"),
        ]

    def test_regions_are_read_and_ears_found(self, given, tmp_path):
        assert main([*given, "--regions", str(tmp_path / "masks.pkl"), "--ears"]) == 0
        ears = LandmarkEmbedding.load(tmp_path / "c.npz")
        assert ears.num_static == 51 + 16
        x = positions(ball(), ears.static_faces_idx[51:], ears.static_bary_coords[51:])[:, 0]
        assert (x[:8] < -0.075).all() and (x[8:] > 0.075).all()

    @pytest.mark.parametrize(
        "regions, message",
        [
            ("missing.pkl", "missing.pkl"),
            ("other.pkl", "other.pkl: regions['left_ear']"),
            ("landmarks.npz", "landmarks.npz: regions"),
        ],
    )
    def test_regions_that_are_missing_or_of_another_head_are_named(self, given, tmp_path, capsys, regions, message):
        assert main([*given, "--regions", str(tmp_path / regions)]) == 1
        assert message in capsys.readouterr().err and not (tmp_path / "c.npz").exists()
        with pytest.raises(
            (ValueError, OSError), match=message.split(": ")[-1]
        ):  # of the built-in head neither are they ignored
            load_head(None, None, tmp_path / regions if regions != "other.pkl" else tmp_path / "landmarks.npz")

    def test_ears_without_regions(self, given, capsys):
        assert main([*given, "--ears"]) == 1
        assert "expected 'right_ear' among them, got none" in capsys.readouterr().err

    def test_names_that_cannot_be_written_are_refused_before_the_work(self, given, tmp_path, capsys):
        assert main([*given, "--picture", str(tmp_path / "c.xyz")]) == 2
        assert main([*given[:-1], str(tmp_path / "c.csv")]) == 2
        assert capsys.readouterr().err.count("expected a name that ends in") == 2 and not (tmp_path / "c.npz").exists()


@cache
def with_our_contour(folder):
    model = read_head(folder)
    return model, contour_embedding(model)


@pytest.fixture
def published(head_files):
    return with_our_contour(head_files)


def sides(yaw):
    """Of the 17 points: the far ones, which are on the silhouette, and the near ones, on the jaw line."""
    return (slice(0, 8), slice(9, 17)) if yaw < 0 else (slice(9, 17), slice(0, 8))


YAWS = [-39, -30, -22, -15, 15, 22, 30, 39]


@pytest.mark.parametrize("yaw", YAWS)
def test_the_far_side_is_where_the_surface_ends(published, yaw):
    model, ours = published
    far, near = sides(yaw)
    vertices, points = turn(model.v_template, yaw), contour_positions(model, ours, yaw)
    distance = distance_to_occluding_contour(vertices, model.faces, turn(points, yaw))
    assert distance[far].max() < 6
    # Points of the other side lie on the cheek, so the measure can tell
    assert distance[near].max() > 15


@pytest.mark.parametrize("head_files", ["FLAME"], indirect=True)  # whose landmarks follow the paper's rule
@pytest.mark.parametrize("yaw", YAWS)
def test_on_flames_surface(published, yaw):
    model, ours = published
    far, near = sides(yaw)
    points, theirs = (contour_positions(model, embedding, yaw) for embedding in (ours, model.landmarks))
    vertices = turn(model.v_template, yaw)
    assert distance_to_occluding_contour(vertices, model.faces, turn(points[far], yaw)).max() < 2
    # The published near side is the jaw line (its points are 20 mm apart, straight lines between them pass under the
    # surface), and both chins are its end
    assert distance_to_curve(points[near], theirs).max() < 6
    assert np.median(distance_to_curve(theirs[near], points)) < 3
    assert np.linalg.norm(points[8] - theirs[8]) < 5e-3


@pytest.mark.parametrize("head_files, limit", [("built-in", 6), ("FLAME", 3)], indirect=["head_files"])
def test_published_far_side_is_near_ours(published, limit):
    model, ours = published
    distances = []
    for yaw in [*range(-39, -14), *range(15, 40)]:
        far = slice(0, 9) if yaw < 0 else slice(8, 17)
        theirs = contour_positions(model, model.landmarks, yaw)[far]
        distances.append(distance_to_curve(theirs, contour_positions(model, ours, yaw)))
    assert np.median(distances) < limit


def test_command(head_files, tmp_path, capsys):
    out, picture = tmp_path / "contour.npz", tmp_path / "contour.png"
    mesh, static = head_files / MESH, head_files / STATIC
    arguments = [str(mesh), "--landmarks", str(static)]
    assert main([*arguments, "--out", str(out), "--picture", str(picture)]) == 0
    assert LandmarkEmbedding.load(out).contour_faces_idx.shape == (79, 17)
    image = cv2.imread(str(picture))
    assert image.shape[1] == 7 * 300 and (image[..., 2].astype(int) - image[..., 0] > 100).any()  # something red
    assert "17 contour and 51 static landmarks" in capsys.readouterr().out
    assert main([*arguments, "--out", str(out), "--ears"]) == 1
    assert "expected 'right_ear' among them, got none" in capsys.readouterr().err
    assert main([arguments[0], "--out", str(out)]) == 1
    assert "expected the 51 inner landmarks" in capsys.readouterr().err
