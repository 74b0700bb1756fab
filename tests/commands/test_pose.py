import cv2
import numpy as np
import pytest
import torch
import trimesh
from heads import random_model

from ringnet_ext.commands.pose import main
from ringnet_ext.flame import FLAME
from ringnet_ext.flame.parameters import FlameParams
from ringnet_ext.flame.sources import load_head


@pytest.fixture
def model(tmp_path):
    model = random_model(V=30, F=40, S=6, E=4)
    model.save(tmp_path / "head.npz")
    return model


def run(tmp_path, *arguments):
    return main(["--model", str(tmp_path / "head.npz"), *map(str, arguments)])


def test_arrays_are_those_of_the_layer(model, tmp_path):
    given = ["--shape", 1, -2, "--jaw-pose", 10, 0, 5, "--global-pose", 0, 20, 0, "--translation", 0, 0.1, 0]
    assert run(tmp_path, *given, "--out", tmp_path / "out.npz") == 0
    arrays = np.load(tmp_path / "out.npz")
    tensor = lambda *numbers: torch.tensor([numbers], dtype=torch.float64)
    expected = FLAME(model, dtype=torch.float64)(
        tensor(1, -2),
        global_pose=torch.deg2rad(tensor(0, 20, 0)),
        jaw_pose=torch.deg2rad(tensor(10, 0, 5)),
        translation=tensor(0, 0.1, 0),
    )
    for name, value in expected._asdict().items():
        assert np.allclose(arrays[name], value, atol=1e-9), name
    assert np.array_equal(arrays["faces"], model.faces)


def test_yaws_turn_after_the_pose(model, tmp_path):
    assert run(tmp_path, "--global-pose", 0, 20, 0, "--yaw", 10, -20, "--out", tmp_path / "yaw.npz") == 0
    assert run(tmp_path, "--global-pose", 0, 30, 0, "--out", tmp_path / "30.npz") == 0
    vertices = np.load(tmp_path / "yaw.npz")["vertices"]
    assert np.allclose(vertices[0], np.load(tmp_path / "30.npz")["vertices"][0], atol=1e-9)
    assert np.allclose(vertices[1], model.v_template, atol=1e-9)


def test_pictures_and_meshes(model, tmp_path, capsys):
    out = [tmp_path / f"a{suffix}" for suffix in (".png", ".obj", ".ply", ".glb")]
    assert run(tmp_path, "--expression", 2, "--yaw", 0, 40, "--out", *out) == 0
    assert "a-1.obj" in capsys.readouterr().out
    image = cv2.imread(str(out[0]))
    assert image.shape == (256, 512, 3) and ((image[..., 2].astype(int) - image[..., 0]) > 150).sum() > 50  # red points
    assert run(tmp_path, "--expression", 2, "--yaw", 0, 40, "--out", tmp_path / "a.npz") == 0
    arrays = np.load(tmp_path / "a.npz")
    for suffix in ("obj", "ply"):
        for i in range(2):
            mesh = trimesh.load(tmp_path / f"a-{i}.{suffix}", process=False)
            assert np.allclose(mesh.vertices, arrays["vertices"][i], atol=1e-6)
            assert np.array_equal(mesh.faces, model.faces)
    scene = trimesh.load(tmp_path / "a-1.glb")
    points = next(part for part in scene.geometry.values() if isinstance(part, trimesh.PointCloud))
    assert np.allclose(points.vertices, arrays["landmarks"][1], atol=1e-6)


def test_parameters_from_a_file(model, tmp_path):
    generator = torch.Generator().manual_seed(0)
    params = FlameParams.make(
        shape=torch.randn(3, 5, generator=generator), jaw_pose=0.2 * torch.randn(3, 3, generator=generator)
    )
    params.resized(60, 0).save(tmp_path / "params.npz")  # zeros after the model's six are no matter
    assert run(tmp_path, "--parameters", tmp_path / "params.npz", "--out", tmp_path / "out.npz") == 0
    layer = FLAME(model)
    arrays = np.load(tmp_path / "out.npz")
    assert np.allclose(arrays["vertices"], layer(params.shape, jaw_pose=params.jaw_pose).vertices, atol=1e-6)
    given = ["--parameters", tmp_path / "params.npz", "--jaw-pose", 0, 0, 0]
    assert run(tmp_path, *given, "--out", tmp_path / "closed.npz") == 0
    assert np.allclose(np.load(tmp_path / "closed.npz")["vertices"], layer(params.shape).vertices, atol=1e-6)


def test_a_mesh_with_any_embedding(model, tmp_path):
    mesh = trimesh.creation.icosphere(subdivisions=2, radius=0.1)
    mesh.export(tmp_path / "ball.ply")
    model.landmarks.save(tmp_path / "landmarks.npz")
    head = load_head(tmp_path / "ball.ply", [tmp_path / "landmarks.npz"])
    assert np.allclose(head.v_template, mesh.vertices) and head.landmarks.num_contour == 17
    given = ["--model", tmp_path / "ball.ply", "--landmarks", tmp_path / "landmarks.npz", "--yaw", 30]
    assert main([*map(str, given), "--out", str(tmp_path / "ball.png"), str(tmp_path / "ball.npz")]) == 0
    landmarks = np.load(tmp_path / "ball.npz")["landmarks"]
    assert landmarks.shape == (1, 68, 3) and np.linalg.norm(landmarks, axis=2).max() <= 0.1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--shape", "1", "1", "1", "1", "1", "1", "1"], "shape: the model has 6 directions"),
        (["--parameters", "none.npz"], "none.npz"),
        (["--landmarks", "head.npz"], "head.npz: "),
        (["--model", "none.ply"], "none.ply"),
    ],
)
def test_errors(model, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "head.npz").rename(tmp_path / "model.npz")
    np.savez("head.npz", nothing=np.zeros(3))
    assert main(["--model", "model.npz", *arguments, "--out", "a.png"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "a.png").exists()


def test_unknown_suffix(model, tmp_path, capsys):
    assert run(tmp_path, "--out", "head.gif") == 2
    assert "--out: head.gif: expected a name that ends in .png or " in capsys.readouterr().err


def test_joints_of_another_model(tmp_path, capsys):
    random_model(J=7, landmarks=False).save(tmp_path / "head.npz")
    assert run(tmp_path, "--jaw-pose", 1, 0, 0, "--out", tmp_path / "a.npz") == 1
    assert "the model has 7 joints" in capsys.readouterr().err
    assert run(tmp_path, "--global-pose", 1, 0, 0, "--out", tmp_path / "a.npz") == 0
