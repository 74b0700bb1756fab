"""The infer command: where the face is, what is none, what the outputs are called and which frame they are in."""

import csv
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import cv2
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from yunet import marked, marker_model

from ringnet_ext import RingNet
from ringnet_ext.commands import faces as face_options
from ringnet_ext.commands import infer
from ringnet_ext.commands.pose import main as flame
from ringnet_ext.data.synthetic import SyntheticFaces
from ringnet_ext.detection.landmark_files import read_landmarks
from ringnet_ext.detection.squares import around_landmarks, cut_square, fit_square, landmark_square
from ringnet_ext.files.images import write_image
from ringnet_ext.files.videos import Video, write_video
from ringnet_ext.flame import FLAME, builtin_head
from ringnet_ext.flame.landmarks import contour_row
from ringnet_ext.geometry.camera import yaw_of
from ringnet_ext.inference import finders, outputs
from ringnet_ext.inference.shares import shared
from ringnet_ext.training.processes import Processes


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network that has learnt nothing, but answers."""
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    model = RingNet()
    model.limit = 0.9
    model.regressor.mean[3:9] += (
        0.2 * np.pi * model.regressor.mean.new_tensor([-0.1, 0.3, 0.2, 0.3, 0, 0])
    )  # turned, mouth open
    model.regressor.mean[9:12] += model.regressor.mean.new_tensor([2.0, -1.5, 1.0])
    model.regressor.mean[109] += 1.0
    model.save(path)
    return path


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    return SyntheticFaces(identities=3, images_per_identity=1, size=96, color=True).load(
        cache=tmp_path_factory.mktemp("faces")
    )


@pytest.fixture
def photos(tmp_path, faces):
    """A folder of pictures, and one of their landmarks, but for the last."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "points").mkdir()
    for i, image in enumerate(faces.images):
        write_image(tmp_path / "photos" / f"{i}.png", image)
        if i < 2:
            np.save(tmp_path / "points" / f"{i}.npy", (faces.landmarks[i] + 1) * 48 - 0.5)
    return tmp_path / "photos"


def run(checkpoint, out, *arguments):
    return infer.main([*map(str, arguments), "--checkpoint", str(checkpoint), "--out", str(out)])


def index(out):
    with open(out / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


class TestWhereTheFaceIs:
    def check(self, out, faces, names):
        rows = {row["name"]: row for row in index(out)}
        for name in names:
            points = (faces.landmarks[int(name)] + 1) * 48
            middle, side = landmark_square(points)
            found = np.array([float(rows[name][key]) for key in ("left", "top", "side")])
            assert np.abs(found - [*(middle - side / 2), side]).max() < 0.06
            panels = cv2.imread(str(out / "images" / f"{name}.png"), cv2.IMREAD_COLOR_RGB)
            seen = around_landmarks(faces.images[int(name)], points).image
            assert (
                np.abs(panels[-224:, :224].astype(int) - seen).max() <= 4
            )  # a 32nd of a pixel is the sampling's finest step
            params = np.load(out / "params" / f"{name}.npz")
            error = np.linalg.norm(params["landmarks"] - points, axis=1).mean() / np.linalg.norm(
                points[36] - points[45]
            )
            assert float(rows[name]["landmark_error"]) == pytest.approx(error, abs=1e-3)

    def test_the_answer_is_fitted_to_landmarks_that_are_given(self, checkpoint, photos, tmp_path):
        """Each face by itself: in whatever company, with the same numbers."""
        own = photos / "0.png", photos / "1.png"
        points = "--landmarks", tmp_path / "points", "--write", "parameters"
        assert run(checkpoint, tmp_path / "network", *own, *points, "--no-refine") == 0
        assert run(checkpoint, tmp_path / "fitted", *own, *points) == 0
        assert run(checkpoint, tmp_path / "alone", own[1], *points) == 0
        before, after = index(tmp_path / "network"), index(tmp_path / "fitted")
        for one, other in zip(before, after, strict=True):
            assert float(other["landmark_error"]) < min(0.05, 0.5 * float(one["landmark_error"]))
        together, alone = (np.load(tmp_path / out / "params" / "1.npz") for out in ("fitted", "alone"))
        assert all(np.array_equal(together[name], alone[name]) for name in ("shape", "expression", "pose", "cam"))

    def test_landmark_files(self, checkpoint, photos, faces, tmp_path, capsys):
        assert run(checkpoint, tmp_path / "out", photos, "--landmarks", tmp_path / "points") == 1
        captured = capsys.readouterr()
        assert "2.png: no landmarks: no file" in captured.err and "2 of 3 images" in captured.out
        self.check(tmp_path / "out", faces, "01")
        assert [row["error"].split(":")[0] for row in index(tmp_path / "out")] == ["", "", "no landmarks"]

    def test_a_detector(self, checkpoint, photos, faces, tmp_path, monkeypatch, capsys):
        class Landmarker:
            version = "1"

            def __init__(self, model, most):
                assert model.name == "face.task"

            def __call__(self, image):
                i = next(i for i in range(3) if np.array_equal(image, faces.images[i]))
                return None if i == 1 else ((faces.landmarks[i] + 1) * 48, np.ones(68))

        monkeypatch.setattr(face_options, "FaceLandmarker", Landmarker)
        assert run(checkpoint, tmp_path / "out", photos, "--detector", "face.task") == 1
        assert "1.png: the detector found no face" in capsys.readouterr().err
        self.check(tmp_path / "out", faces, "02")

    def test_boxes(self, checkpoint, photos, tmp_path, monkeypatch, capsys):
        """By name or by path; the network looks from there."""
        asked = []
        monkeypatch.setattr(finders, "find_face", lambda model, image, box: asked.append(box) or fit_square(image))
        (tmp_path / "boxes.csv").write_text(
            f"image,left,top,right,bottom\n0.png, 1,2, 30.5,40\n\n{photos / '1.png'},5,6,7,8\n"
        )
        assert run(checkpoint, tmp_path / "out", photos, "--boxes", tmp_path / "boxes.csv") == 1
        assert sorted(asked) == [(1, 2, 30.5, 40), (5, 6, 7, 8)]
        assert "2.png: no box: " in capsys.readouterr().err

    @pytest.mark.parametrize(
        "line, message",
        [
            ("a.png,1,2,3", "line 2: expected image,left,top,right,bottom"),
            ("a.png,1,2,3,x", "line 2: expected image,left,top,right,bottom"),
            ("a.png,3,2,1,9", "line 2: expected left < right"),
            ("a.png,1,2,nan,9", "line 2: expected left < right"),
            ("b.png,1,2,3,4", "line 2: the same box of b.png again"),
        ],
    )
    def test_wrong_boxes_are_named(self, checkpoint, photos, tmp_path, capsys, line, message):
        (tmp_path / "boxes.csv").write_text(f"b.png,1,2,3,4\n{line}\n")
        assert run(checkpoint, tmp_path / "out", photos, "--boxes", tmp_path / "boxes.csv") == 1
        assert f"{tmp_path / 'boxes.csv'}, {message}" in capsys.readouterr().err

    @pytest.mark.parametrize("content", [b"caf\xe9.png,1,2,3,4\n", b"x" * 200_000])
    def test_boxes_that_are_no_such_text_are_named(self, checkpoint, photos, tmp_path, capsys, content):
        (tmp_path / "boxes.csv").write_bytes(content)
        assert run(checkpoint, tmp_path / "out", photos, "--boxes", tmp_path / "boxes.csv") == 1
        assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'boxes.csv'}: not a text in UTF-8 with lines")

    def test_a_box_outside(self, checkpoint, photos, tmp_path, capsys):
        (tmp_path / "boxes.csv").write_text("0.png,100,10,130,40\n")
        assert run(checkpoint, tmp_path / "out", photos / "0.png", "--boxes", tmp_path / "boxes.csv") == 1
        expected = "0.png: box: expected part of the image of 96 x 96 pixels, got (100.0, 10.0, 130.0, 40.0)\n"
        assert capsys.readouterr().err.endswith(expected)

    def test_missing_files_and_two_ways_at_once_are_refused_before_the_work(self, checkpoint, photos, tmp_path, capsys):
        for arguments, code in (
            (["--landmarks", tmp_path / "nowhere"], 2),
            (["--boxes", tmp_path / "nowhere"], 1),
            (["--detector", tmp_path / "nowhere"], 1),
        ):
            assert run(checkpoint, tmp_path / "out", photos, *arguments) == code
            assert "nowhere" in capsys.readouterr().err and not (tmp_path / "out").exists()
        with pytest.raises(SystemExit) as stop:
            run(checkpoint, tmp_path / "out", photos, "--cropped", "--landmarks", tmp_path)
        assert stop.value.code == 2 and "--landmarks: not allowed with argument --cropped" in capsys.readouterr().err


def test_what_is_no_face_counts_as_failed(checkpoint, photos, tmp_path, capsys):
    """This network has learnt nothing, so that everything is no face to it; a pixel is none to any."""
    write_image(photos / "pixel.png", np.full((1, 1, 3), 120, np.uint8))
    write_image(photos / "noise.png", np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8))
    assert run(checkpoint, tmp_path / "out", photos) == 1
    captured = capsys.readouterr()
    assert captured.err.count("not a face as the network knows them") == 4 and "0 of 5 images" in captured.out
    assert "pixel.png: 1 x 1 pixels, expected at least 16 x 16" in captured.err
    assert not list(tmp_path.glob("out/*/*")) and len(index(tmp_path / "out")) == 5
    assert run(checkpoint, tmp_path / "taken", photos, "--cropped") == 1
    assert "4 of 5 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    "trained_on, said",
    [
        ("synthetic faces", "was trained on synthetic faces, not on photographs"),
        ("photographs", "was trained on photographs"),
        (None, "doesn't say what its network was trained on"),
    ],
)
def test_it_says_what_the_network_was_trained_on(checkpoint, photos, tmp_path, capsys, trained_on, said):
    model = RingNet.load(checkpoint)
    model.trained_on = trained_on
    model.save(tmp_path / "m.safetensors")
    assert run(tmp_path / "m.safetensors", tmp_path / "out", photos / "0.png", "--cropped") == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1 and said in notes[0]


def test_names_cannot_collide(checkpoint, photos, faces, tmp_path, capsys):
    (tmp_path / "more").mkdir()
    names = ["a.jpg", "a.png", "a-2.jpg", "A.bmp", "../more/a.jpg", "../more/a-2.png"]
    for name in names:
        write_image(photos / name, faces.images[0])
    inputs = [photos / name for name in names]
    kinds = "panel,mesh,neutral,parameters"
    assert run(checkpoint, tmp_path / "out", *inputs, "--cropped", "--write", kinds) == 0
    assert "6 of 6 images" in capsys.readouterr().out
    rows = index(tmp_path / "out")
    assert [row["image"] for row in rows] == list(map(str, inputs))
    given = [row["name"] for row in rows]
    assert len({name.lower() for name in given}) == 6 and given[0] == "a" and given[2] == "a-2"
    for kind, suffix in (("images", "png"), ("mesh", "obj"), ("neutral_mesh", "obj"), ("params", "npz")):
        assert {path.name for path in (tmp_path / "out" / kind).iterdir()} == {f"{name}.{suffix}" for name in given}


def test_folders_are_read_in_every_format_and_what_is_left_out_is_told(checkpoint, faces, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for suffix in (".avif", ".gif", ".PNG", ".webp"):
        Image.fromarray(faces.images[0]).save(folder / f"a{suffix}")
    for name in ("b.xcf", "c.xcf", "notes.txt", ".hidden.png", ".DS_Store"):
        (folder / name).write_bytes(b"something")
    assert run(checkpoint, tmp_path / "out", folder, "--cropped") == 0
    out = capsys.readouterr().out
    assert "4 of 4 images" in out and "left out of the folders: 1 .txt, 2 .xcf" in out


@pytest.mark.parametrize("kinds", ["parameters", "json", "landmarks", "json,ringnet,parameters", "ringnet,parameters"])
def test_the_landmarks_that_were_written_can_be_given(checkpoint, photos, tmp_path, kinds):
    own = photos / "0.png"
    assert run(checkpoint, tmp_path / "one", own, "--landmarks", tmp_path / "points", "--write", kinds) == 0
    given = tmp_path / "one" / ("landmarks" if kinds == "landmarks" else "params")
    assert run(checkpoint, tmp_path / "two", own, "--landmarks", given, "--write", "parameters") == 0
    row = index(tmp_path / "one")[0]
    points = np.load(tmp_path / "two" / "params" / "0.npz")["landmarks"]
    middle, side = landmark_square(points)
    assert np.abs(middle - side / 2 - [float(row["left"]), float(row["top"])]).max() < 2


class TestResultsBesideWhatIsRead:
    @pytest.mark.parametrize("out", [".", "photos/..", "link"])
    def test_no_photograph_is_written_over(self, checkpoint, faces, tmp_path, monkeypatch, capsys, out):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "images").mkdir()
        (tmp_path / "photos").mkdir()
        (tmp_path / "link").symlink_to(".")
        write_image(tmp_path / "images" / "a.png", faces.images[0])
        before = contents(tmp_path)
        for given in ("images", "images/a.png", "images/*.png"):
            assert run(checkpoint, out, given, "--cropped") == 2
            message = "results would be written to images, which is read; expected another folder"
            assert capsys.readouterr().err == f"error: --out: {out}: {message}\n"
        assert contents(tmp_path) == before
        assert run(checkpoint, out, "images", "--cropped", "--write", "mesh") == 0  # not to images/

    def test_nor_landmarks(self, checkpoint, photos, tmp_path, capsys):
        own = photos / "0.png"
        assert run(checkpoint, tmp_path, own, "--landmarks", tmp_path / "points", "--write", "landmarks") == 0
        assert run(checkpoint, tmp_path, own, "--landmarks", tmp_path / "landmarks", "--write", "landmarks") == 2
        assert "landmarks, which is read" in capsys.readouterr().err

    def test_nor_a_video(self, checkpoint, video, tmp_path, capsys):
        file, _ = video
        (tmp_path / "overlay.mp4").write_bytes(file.read_bytes())
        assert run(checkpoint, tmp_path, tmp_path / "overlay.mp4", "--cropped") == 2
        assert "overlay.mp4, which is read" in capsys.readouterr().err
        assert run(checkpoint, tmp_path, file, "--cropped") == 0
        assert run(checkpoint, tmp_path, file, "--landmarks", tmp_path / "params.npz") == 2

    def test_results_in_a_folder_of_photographs_are_none(self, checkpoint, photos, tmp_path):
        for _ in range(2):
            assert run(checkpoint, photos / "heads", photos, "--recursive", "--cropped") == 0
            assert [row["name"] for row in index(photos / "heads")] == ["0", "1", "2"]


def test_all_outputs_of_a_face_are_in_one_frame(checkpoint, photos, tmp_path):
    """The meshes are what the flame command makes of the parameters, and lie where each other lies."""
    out = tmp_path / "out"
    assert run(checkpoint, out, photos / "0.png", "--cropped", "--write", "mesh,neutral,parameters") == 0
    posed, neutral = (
        trimesh.load(out / kind / "0.obj", process=False, maintain_order=True).vertices
        for kind in ("mesh", "neutral_mesh")
    )
    assert flame(["--parameters", str(out / "params" / "0.npz"), "--out", str(tmp_path / "posed.npz")]) == 0
    assert np.abs(np.load(tmp_path / "posed.npz")["vertices"][0] - posed).max() < 1e-5
    np.savez(tmp_path / "shape.npz", shape=np.load(out / "params" / "0.npz")["shape"])
    assert flame(["--parameters", str(tmp_path / "shape.npz"), "--out", str(tmp_path / "neutral.npz")]) == 0
    assert np.abs(np.load(tmp_path / "neutral.npz")["vertices"][0] - neutral).max() < 1e-5
    # Near the origin, and near each other: a head is 0.3 m high.
    assert np.linalg.norm(posed.mean(0)) < 0.15 and np.linalg.norm(posed.mean(0) - neutral.mean(0)) < 0.05
    # Upright: the landmarks' order in the picture is that of the mesh, y up.
    pixels = np.load(out / "params" / "0.npz")["landmarks"]
    assert pixels[8, 1] > pixels[27, 1] and np.ptp(posed[:, 1]) > 0.2


class TestLandmarks:
    """The saved mesh's landmarks, seen by the saved camera, lie where the saved landmarks are in the original image."""

    def check(self, out, name):
        arrays = np.load(out / "params" / f"{name}.npz")
        mesh = trimesh.load(out / "mesh" / f"{name}.obj", process=False, maintain_order=True)
        layer = FLAME()
        points = layer.landmarks(
            *(torch.from_numpy(arrays[key])[None] for key in ("shape", "expression")),
            torch.from_numpy(arrays["pose"][None, :3]),
            jaw_pose=torch.from_numpy(arrays["pose"][None, 3:]),
        )
        # Of the mesh, by the triangles that the landmarks lie on: the contour's row follows from the pose.
        head = builtin_head()
        row = contour_row(np.degrees(float(yaw_of(torch.from_numpy(arrays["pose"][None, :3]))[0])))
        triangles = np.concatenate([head.landmarks.contour_faces_idx[row], head.landmarks.static_faces_idx])
        weights = np.concatenate([head.landmarks.contour_bary_coords[row], head.landmarks.static_bary_coords])
        on_mesh = (mesh.vertices[head.faces[triangles]] * weights[..., None]).sum(1)
        seen = np.column_stack([on_mesh, np.ones(68)]) @ arrays["projection"].T
        assert np.abs(seen - arrays["landmarks"]).max() < 0.01
        # RingNet's own way, from the parameters alone.
        s, *t = arrays["cam"]
        left, top, side = arrays["square"]
        ring = (s * (points[0, :, :2].numpy() + t) + 1) * side / 2 + [left, top]
        assert np.abs(ring - arrays["landmarks"]).max() < 0.01
        # The file is read as it was meant: centres of pixels at 0.5.
        assert np.abs(read_landmarks(out / "params" / f"{name}.npz")[0] - arrays["landmarks"]).max() < 1e-4
        return arrays["landmarks"]

    def test_crops_landmark_files_and_places_in_larger_images(self, checkpoint, photos, faces, tmp_path):
        large = np.full((300, 400, 3), 90, np.uint8)
        large[100:196, 250:346] = faces.images[0]
        write_image(photos / "large.png", large)
        np.save(tmp_path / "points" / "large.npy", (faces.landmarks[0] + 1) * 48 - 0.5 + [250, 100])
        kinds = "--write", "mesh,parameters"
        assert run(checkpoint, tmp_path / "c", photos / "0.png", "--cropped", *kinds) == 0
        self.check(tmp_path / "c", "0")
        inputs = photos / "0.png", photos / "large.png"
        assert run(checkpoint, tmp_path / "l", *inputs, "--landmarks", tmp_path / "points", *kinds) == 0
        own, placed = self.check(tmp_path / "l", "0"), self.check(tmp_path / "l", "large")
        assert np.abs(placed - own - [250, 100]).max() < 0.01

    def test_rotated_by_exif(self, checkpoint, photos, faces, tmp_path):
        """As upright as the picture that it stands for."""
        exif = Image.Exif()
        exif[0x112] = 6
        wide = np.zeros((96, 140, 3), np.uint8)
        wide[:, 20:116] = faces.images[0]
        Image.fromarray(wide).save(tmp_path / "upright.png")
        Image.fromarray(np.rot90(wide).copy()).save(tmp_path / "turned.png", exif=exif)
        inputs = tmp_path / "upright.png", tmp_path / "turned.png"
        assert run(checkpoint, tmp_path / "o", *inputs, "--cropped", "--write", "mesh,parameters") == 0
        assert np.array_equal(self.check(tmp_path / "o", "upright"), self.check(tmp_path / "o", "turned"))

    def test_three_faces_from_left_to_right_by_boxes_and_by_a_detector(self, checkpoint, tmp_path, monkeypatch):
        def find_face(model, image, box=None):
            return cut_square(image, np.array([box[0] + box[2], box[1] + box[3]]) / 2, box[2] - box[0])

        monkeypatch.setattr(finders, "find_face", find_face)
        cells = [(12, 3), (3, 6), (7, 4)]
        write_image(tmp_path / "group.png", marked(480, 320, cells))
        sides = {(c, r): (c * 32 - 48, r * 32 - 48, c * 32 + 48, r * 32 + 48) for c, r in cells}
        (tmp_path / "boxes.csv").write_text("\n".join(f"group.png,{a},{b},{c},{d}" for a, b, c, d in sides.values()))
        detector = marker_model(tmp_path / "markers.onnx")
        for name, where in (("b", ("--boxes", tmp_path / "boxes.csv")), ("d", ("--detector", detector))):
            out = tmp_path / name
            assert run(checkpoint, out, tmp_path / "group.png", *where, "--write", "mesh,parameters") == 0
            rows = index(out)
            assert [row["name"] for row in rows] == ["group_face1", "group_face2", "group_face3"]
            assert [row["face"] for row in rows] == ["1", "2", "3"]
            for row, cell in zip(rows, sorted(cells), strict=True):
                found = [float(row[key]) for key in ("left", "top", "side")]
                assert np.allclose(found, [*sides[cell][:2], 96], atol=0.1)
                self.check(out, row["name"])
                assert row["files"].split(";") == [f"mesh/{row['name']}.obj", f"params/{row['name']}.npz"]

    def test_a_face_that_fails_leaves_the_others(self, checkpoint, photos, tmp_path, monkeypatch, capsys):
        def find_face(model, image, box=None):
            if box[0] == 2:
                raise ValueError("not a face as the network knows them")
            return fit_square(image)

        monkeypatch.setattr(finders, "find_face", find_face)
        (tmp_path / "boxes.csv").write_text("0.png,1,1,9,9\n0.png,2,1,10,9\n0.png,3,1,11,9\n")
        arguments = "--boxes", tmp_path / "boxes.csv", "--write", "mesh"
        assert run(checkpoint, tmp_path / "out", photos / "0.png", *arguments) == 1
        assert capsys.readouterr().err == f"error: {photos / '0.png'}: face 2: not a face as the network knows them\n"
        assert [row["name"] for row in index(tmp_path / "out")] == ["0_face1", "", "0_face3"]
        assert sorted(file.name for file in (tmp_path / "out" / "mesh").iterdir()) == ["0_face1.obj", "0_face3.obj"]


class TestTable:
    def test_the_score_and_parameters(self, checkpoint, photos, tmp_path):
        assert run(checkpoint, tmp_path / "out", photos / "0.png", "--cropped", "--write", "parameters") == 0
        (row,) = index(tmp_path / "out")
        assert float(row["score"]) == pytest.approx(float(row["agreement"]) * float(row["inside"]), abs=1e-3)
        arrays = np.load(tmp_path / "out" / "params" / "0.npz")
        vector = np.concatenate([arrays[key] for key in ("cam", "pose", "shape", "expression")])
        assert np.abs(np.array([float(row[name]) for name in list(row)[-159:]]) - vector).max() < 1e-6
        assert (
            run(checkpoint, tmp_path / "no", photos / "0.png", "--cropped", "--no-score", "--write", "parameters") == 0
        )
        (row,) = index(tmp_path / "no")
        assert row["agreement"] == "" and row["inside"]

    def test_parquet(self, checkpoint, photos, tmp_path):
        parquet = pytest.importorskip("pyarrow.parquet")
        arguments = "--cropped", "--write", "parameters", "--table", "parquet"
        assert run(checkpoint, tmp_path / "out", photos, *arguments) == 0
        table = parquet.read_table(tmp_path / "out" / "results.parquet")
        assert table.num_rows == 3 and not (tmp_path / "out" / "results.csv").exists()
        assert table.column("name").to_pylist() == ["0", "1", "2"] and table.column("face").to_pylist() == [1, 1, 1]


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


class TestShares:
    """Several processes, of which one is killed, leave the files of one."""

    @pytest.fixture
    def many(self, tmp_path, faces):
        (tmp_path / "many").mkdir()
        for i in range(14):
            write_image(tmp_path / "many" / f"{i:02}.png", np.roll(faces.images[i % 3], i, axis=1))
        return tmp_path / "many"

    def test_two_shares_and_an_interrupt(self, checkpoint, many, tmp_path, monkeypatch):
        arguments = many, "--cropped", "--write", "mesh,parameters"
        assert run(checkpoint, tmp_path / "one", *arguments) == 0

        @contextmanager
        def second(device):
            yield Processes(torch.device("cpu"), 1, 2)

        @contextmanager
        def first(device):
            yield Processes(torch.device("cpu"), 0, 2)

        write, count = outputs.write, iter(range(100))

        def stopped(*arguments, **options):
            if next(count) == 3:
                raise KeyboardInterrupt
            return write(*arguments, **options)

        monkeypatch.setattr(Processes, "meet", lambda self: None)
        monkeypatch.setattr(infer, "joined_processes", second)
        monkeypatch.setattr(infer, "write", stopped)
        assert run(checkpoint, tmp_path / "two", *arguments) == 130
        monkeypatch.setattr(infer, "write", write)
        monkeypatch.setattr(infer, "joined_processes", first)
        assert run(checkpoint, tmp_path / "two", *arguments) == 0
        monkeypatch.setattr(infer, "joined_processes", second)
        times = {file: file.stat().st_mtime_ns for file in (tmp_path / "two" / "mesh").iterdir()}
        assert run(checkpoint, tmp_path / "two", *arguments) == 0
        assert all(file.stat().st_mtime_ns == time for file, time in times.items())  # nothing was done twice
        assert same(contents(tmp_path / "one"), contents(tmp_path / "two"))

    @pytest.mark.skipif(not infer.can_share(), reason="processes are copied on Linux")
    def test_a_process_for_each_thread(self, checkpoint, many, tmp_path, monkeypatch, capsys):
        """Files, table and complaints are those of one process, also after one was killed and after an interrupt."""
        (many / "05 broken.png").write_bytes(b"no image")
        threads, started, write = torch.get_num_threads(), [], outputs.write
        arguments = many, "--cropped", "--write", "mesh,parameters", "--threads", 2

        def counted(work, items, processes):
            started.append(processes)
            return shared(work, items, processes)

        def killed(folder, name, *arguments, **options):
            if name == "07":
                os.kill(os.getpid(), signal.SIGKILL)
            return write(folder, name, *arguments, **options)

        def interrupted(outcomes, **options):
            yield next(outcomes)
            raise KeyboardInterrupt

        try:
            assert run(checkpoint, tmp_path / "one", *arguments) == 1  # too few for several
            alone = capsys.readouterr()
            monkeypatch.setattr(infer, "_SHARE", 2)
            monkeypatch.setattr(infer, "shared", counted)
            assert run(checkpoint, tmp_path / "two", *arguments) == 1
            together = capsys.readouterr()
            assert started == [2] and together.err == alone.err and "05 broken.png: not an image" in alone.err
            assert together.out.replace("/two", "/one") == alone.out and "14 of 15 images" in alone.out
            with monkeypatch.context() as patch:
                patch.setattr(infer, "write", killed)
                assert run(checkpoint, tmp_path / "killed", *arguments) == 1
            assert "killed by signal 9; the same command goes on from there" in capsys.readouterr().err
            assert 0 < len(contents(tmp_path / "killed" / "mesh")) < 14
            with monkeypatch.context() as patch:
                patch.setattr(infer, "progress", interrupted)
                assert run(checkpoint, tmp_path / "killed", *arguments) == 130
            assert not multiprocessing.active_children()
            assert run(checkpoint, tmp_path / "killed", *arguments) == 1
            assert "going on with a run that was interrupted" in capsys.readouterr().out
        finally:
            torch.set_num_threads(threads)
        for other in ("two", "killed"):
            assert same(contents(tmp_path / "one"), contents(tmp_path / other))

    @pytest.mark.parametrize("way", ["boxes", "landmarks"])
    def test_other_boxes_or_landmarks_begin_anew(self, checkpoint, photos, faces, tmp_path, monkeypatch, way):
        boxes, points = tmp_path / "boxes.csv", tmp_path / "points"
        boxes.write_text("0.png,10,10,80,80\n1.png,10,10,80,80\n")
        monkeypatch.setattr(
            finders, "find_face", lambda model, image, box: cut_square(image, np.array(box[:2]) + 30, 60)
        )
        out, given = tmp_path / "out", ("--boxes", boxes) if way == "boxes" else ("--landmarks", points)
        arguments = photos / "0.png", photos / "1.png", *given, "--write", "parameters"
        write = outputs.write

        def stopped(folder, name, *more, **options):
            if name == "1":
                raise KeyboardInterrupt
            return write(folder, name, *more, **options)

        monkeypatch.setattr(infer, "write", stopped)
        assert run(checkpoint, out, *arguments) == 130
        before = np.load(out / "params" / "0.npz")["square"]
        boxes.write_text("0.png,15,10,80,80\n1.png,10,10,80,80\n")
        np.save(points / "0.npy", (faces.landmarks[0] + 1) * 48 + 4.5)
        monkeypatch.setattr(infer, "write", write)
        assert run(checkpoint, out, *arguments) == 0
        moved = np.load(out / "params" / "0.npz")["square"] - before
        assert np.allclose(moved, [5, 0, 0] if way == "boxes" else [5, 5, 0], atol=0.01)

    def test_one_with_a_bad_image_ends_no_sooner_than_the_others(self, checkpoint, many, tmp_path, monkeypatch):
        """torchrun ends all processes when one exits with an error."""
        (many / "00.png").write_bytes(b"")
        out, met = tmp_path / "out", []

        @contextmanager
        def first(device):
            yield Processes(torch.device("cpu"), 0, 2)

        monkeypatch.setattr(Processes, "meet", lambda self: met.append(len(list(out.glob("mesh/*.obj")))))
        monkeypatch.setattr(infer, "joined_processes", first)
        assert run(checkpoint, out, many, "--cropped", "--write", "mesh") == 1
        assert met[-1] == 6  # of seven

    def test_torchrun_and_a_kill(self, checkpoint, many, tmp_path):
        arguments = [str(many), "--cropped", "--checkpoint", str(checkpoint), "--device", "cpu"]
        assert infer.main([*arguments, "--out", str(tmp_path / "one")]) == 0
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            "-m",
            "ringnet_ext.infer",
            *arguments,
            "--out",
            str(tmp_path / "two"),
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        launched = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while launched.poll() is None and not list((tmp_path / "two").glob("mesh/*.obj")):
            time.sleep(0.01)
        os.kill(int(children(launched.pid)[-1]), signal.SIGKILL)
        assert launched.wait(60) != 0 and not (tmp_path / "two" / "results.csv").exists()
        assert 0 < len(list((tmp_path / "two").glob("mesh/*.obj"))) < 14
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "process 0 of 2" in done.stdout and "process 1 of 2" in done.stdout
        assert same(contents(tmp_path / "one"), contents(tmp_path / "two"))


def children(pid):
    """Of torchrun's process: the ones that work, which it starts itself."""
    found = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True).stdout
    rows = [line.split(None, 2) for line in found.splitlines()]
    return [row[0] for row in rows if row[1] == str(pid) and "ringnet_ext.infer" in row[2]]


def same(one, other):
    """To the last bit where products of matrices are, see ringnet_ext.inference.pipeline."""
    if one.keys() != other.keys():
        return False
    return not torch.backends.mkl.is_available() or one == other


class TestRingNetsFlags:
    @pytest.mark.parametrize(
        "flags, files",
        [
            ("", {"images/0.png"}),
            ("--save_obj_file=True", {"images/0.png", "mesh/0.obj"}),
            ("--save_obj_file=True --save_flame_parameters=True", {"images/0.png", "mesh/0.obj", "params/0.npy"}),
            (
                "--save_obj_file=True --save_flame_parameters=True --neutralize_expression=True --save_texture=True",
                {"images/0.png", "mesh/0.obj", "params/0.npy", "neutral_mesh/0.obj"},
            ),
            ("--save_obj_file --nosave_flame_parameters --neutralize_expression=False", {"images/0.png", "mesh/0.obj"}),
            ("--save_obj_file=False", {"images/0.png"}),
        ],
    )
    def test_the_demo_s_commands_write_its_files(self, checkpoint, photos, tmp_path, capsys, flags, files):
        out = tmp_path / "RingNet_output"
        arguments = ["--img_path", str(photos / "0.png"), "--out_folder", str(out), "--load_path", str(checkpoint)]
        assert infer.main([*arguments, *flags.split()]) == 0
        assert {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()} == files
        err = capsys.readouterr().err
        assert err == (
            "note: --save_texture: textures are not written yet; all else is\n" if "texture" in flags else ""
        )
        if "params/0.npy" in files:
            saved = np.load(out / "params" / "0.npy", allow_pickle=True)[()]
            assert {key: value.shape for key, value in saved.items()} == {
                "cam": (3,),
                "pose": (6,),
                "shape": (100,),
                "expression": (50,),
            }
            # As in the demo: the mesh is in the network's own frame, so that its camera sees it as it is.
            vertices = trimesh.load(out / "mesh" / "0.obj", process=False, maintain_order=True).vertices
            pose = torch.from_numpy(saved["pose"])[None]
            values = (torch.from_numpy(saved[key])[None] for key in ("shape", "expression"))
            assert (
                np.abs(FLAME()(*values, pose[:, :3], jaw_pose=pose[:, 3:]).vertices[0].numpy() - vertices).max() < 1e-6
            )

    def test_the_folder_is_the_demo_s(self, checkpoint, photos, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert infer.main(["--img_path", str(photos / "0.png"), "--load_path", str(checkpoint)]) == 0
        assert (tmp_path / "RingNet_output" / "images" / "0.png").is_file()

    def test_what_is_neither_true_nor_false(self, checkpoint, photos, capsys):
        with pytest.raises(SystemExit) as stop:
            infer.main(
                ["--img_path", str(photos / "0.png"), "--load_path", str(checkpoint), "--save_obj_file=yes please"]
            )
        assert stop.value.code == 2 and "--save_obj_file: expected True or False" in capsys.readouterr().err


@pytest.fixture(scope="module")
def video(faces, tmp_path_factory):
    """12 frames, three of which show no face: the file, its landmarks."""
    folder = tmp_path_factory.mktemp("video")
    frames, points = [], []
    for i in range(12):
        frame, there = np.full((120, 160, 3), 90, np.uint8), not 4 <= i < 7
        if there:
            frame[10:106, 20 + 2 * i : 116 + 2 * i] = faces.images[0]
        frames.append(frame)
        points.append((faces.landmarks[0] + 1) * 48 + [20 + 2 * i, 10] if there else np.full((68, 2), np.nan))
    write_video(folder / "v.mp4", frames, 25)
    np.save(folder / "v.npy", np.array(points, np.float32) - 0.5)
    return folder / "v.mp4", np.array(points)


class TestVideos:
    def test_landmarks_are_fitted(self, checkpoint, video, tmp_path, capsys):
        file, points = video
        assert run(checkpoint, tmp_path / "o", file, "--landmarks", file.with_suffix(".npy")) == 0
        said = capsys.readouterr().out
        assert "12 frames reconstructed in" in said and "a second" in said and "3 without a face, bridged" in said
        arrays = np.load(tmp_path / "o" / "params.npz")
        there = np.isfinite(points).all((1, 2))
        assert (
            np.array_equal(arrays["seen"], there)
            and arrays["pose"].shape == (12, 6)
            and arrays["shape"].shape == (100,)
        )
        assert np.linalg.norm(arrays["landmarks"] - points, axis=2)[there].mean() < 1
        assert np.isfinite(arrays["landmarks"]).all()
        assert len(list(Video(tmp_path / "o" / "overlay.mp4"))) == 12
        assert flame(["--parameters", str(tmp_path / "o" / "params.npz"), "--out", str(tmp_path / "m.npz")]) == 0

    def test_what_was_bridged_is_no_landmark(self, checkpoint, video, tmp_path):
        points = "--landmarks", video[0].with_suffix(".npy")
        assert run(checkpoint, tmp_path / "one", video[0], *points) == 0
        assert run(checkpoint, tmp_path / "two", video[0], "--landmarks", tmp_path / "one" / "params.npz") == 0
        one, two = (np.load(tmp_path / name / "params.npz") for name in ("one", "two"))
        assert np.array_equal(one["seen"], two["seen"]) and not one["seen"].all()
        assert np.array_equal(np.isfinite(two["residuals"]).any(1), two["seen"])

    def test_frames_that_are_such_squares(self, checkpoint, video, tmp_path):
        assert run(checkpoint, tmp_path / "o", video[0], "--cropped") == 0
        arrays = np.load(tmp_path / "o" / "params.npz")
        assert arrays["seen"].all() and arrays["score"].shape == (12,) and arrays["landmarks"].shape == (12, 68, 2)

    def test_a_broken_tail_is_said_and_the_rest_is_done(self, checkpoint, tmp_path, capsys):
        frames = [np.random.default_rng(i).integers(0, 256, (96, 96, 3), dtype=np.uint8) for i in range(20)]
        writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 25, (96, 96))
        for frame in frames:
            writer.write(frame)
        writer.release()
        content = (tmp_path / "v.avi").read_bytes()
        (tmp_path / "v.avi").write_bytes(content[: len(content) // 2])
        assert run(checkpoint, tmp_path / "o", tmp_path / "v.avi", "--cropped") == 1
        said = r"error: .*v.avi: damaged, or trimmed .*: it says that it has 20 frames, and ends after \d+\n"
        assert re.fullmatch(said, capsys.readouterr().err)
        count = len(np.load(tmp_path / "o" / "params.npz")["seen"])
        assert 5 < count < 15 and len(list(Video(tmp_path / "o" / "overlay.mp4"))) == count

    @pytest.mark.parametrize(
        "arguments, code, message",
        [
            (["{video}", "{video}", "--cropped"], 2, "IMAGE: expected one video alone"),
            (["{video}", "--landmarks", "{folder}"], 2, "--landmarks: .*expected a .npy or .npz file for a video"),
            (["--camera", "97", "--cropped"], 1, "camera 97: there is none that OpenCV can open"),
            (["{video}", "--frames", "3"], 2, "--frames: expected --camera with it"),
            (["{video}"], 1, "v.mp4: no face in any of its 12 frames; in the first: not a face as the network"),
            (["{video}", "--boxes", "{boxes}"], 1, "in the first: no box: .*boxes.csv has no line of .*v.mp4"),
            (["{video}", "--write", "glb"], 2, "--write: of images alone; a video gets params.npz and overlay.mp4"),
            (["{video}", "--frame", "ringnet"], 2, "--frame: of images alone"),
            (["{text}"], 1, "text.mp4: not a video that OpenCV can read"),
        ],
    )
    def test_what_is_wrong_is_said(self, checkpoint, video, tmp_path, capfd, arguments, code, message):
        """In one line, FFmpeg's included."""
        names = {"boxes": tmp_path / "boxes.csv", "text": tmp_path / "text.mp4"}
        names["boxes"].write_text("other.mp4,1,2,3,4\n")
        names["text"].write_text("hello")
        arguments = [text.format(video=video[0], folder=video[0].parent, **names) for text in arguments]
        try:
            got = run(checkpoint, tmp_path / "o", *arguments)
        except SystemExit as stop:
            got = stop.code
        err = capfd.readouterr().err
        assert got == code and err.count("\n") == 1 and re.search(message, err)
