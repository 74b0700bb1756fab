"""The infer command: where the face is, what is none, what the outputs are called and which frame they are in."""

import csv

import cv2
import numpy as np
import pytest
import trimesh
from PIL import Image

from ringnet_ext import RingNet
from ringnet_ext.commands import infer
from ringnet_ext.commands.pose import main as flame
from ringnet_ext.data.synthetic import SyntheticFaces
from ringnet_ext.detection.squares import around_landmarks, fit_square, landmark_square
from ringnet_ext.files.images import write_image
from ringnet_ext.inference import finders


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

        monkeypatch.setattr(infer, "FaceLandmarker", Landmarker)
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

    def test_missing_files_and_two_ways_at_once_are_refused_before_the_work(self, checkpoint, photos, tmp_path, capsys):
        for arguments, code in (
            (["--landmarks", tmp_path / "nowhere"], 2), (["--boxes", tmp_path / "nowhere"], 1),
            (["--detector", tmp_path / "nowhere"], 1),
        ):  # fmt: skip
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
