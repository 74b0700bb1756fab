import pickle

import numpy as np
import pytest
import torch
from flame_files import deca_content, flame_2017_pickle, python2_pickle
from heads import random_model
from safetensors.numpy import load_file

from ringnet_ext.commands.convert import main
from ringnet_ext.flame import FlameModel, LandmarkEmbedding


@pytest.fixture
def model(tmp_path):
    model = random_model(S=300, E=100, V=20, F=30)
    (tmp_path / "generic_model.pkl").write_bytes(flame_2017_pickle(model))
    (tmp_path / "masks.pkl").write_bytes(python2_pickle(model.regions, 2))
    np.save(tmp_path / "embedding.npy", deca_content(model.landmarks), allow_pickle=True)
    return model


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_models(model, tmp_path, suffix, capsys):
    source, destination = tmp_path / "generic_model.pkl", tmp_path / f"head.{suffix}"
    beside = ["--landmarks", str(tmp_path / "embedding.npy"), "--regions", str(tmp_path / "masks.pkl")]
    assert main([str(source), str(destination), *beside]) == 0
    assert "300 shape and 100 expression directions, 17 contour and 51 static landmarks" in capsys.readouterr().out
    read = FlameModel.load(destination)
    assert np.array_equal(read.shapedirs, model.shapedirs) and np.array_equal(read.J_regressor, model.J_regressor)
    assert np.array_equal(read.landmarks.contour_bary_coords, model.landmarks.contour_bary_coords)
    assert read.regions.keys() == model.regions.keys()
    plain = np.load(destination) if suffix == "npz" else load_file(destination)
    assert np.array_equal(plain["v_template"], model.v_template)


def test_landmarks(model, tmp_path):
    assert main([str(tmp_path / "embedding.npy"), str(tmp_path / "landmarks.npz")]) == 0
    assert LandmarkEmbedding.load(tmp_path / "landmarks.npz").num_contour == 17
    assert main([str(tmp_path / "embedding.npy"), str(tmp_path / "landmarks.npz"), "--full"]) == 0
    assert LandmarkEmbedding.load(tmp_path / "landmarks.npz").num_static == 68


def test_landmarks_for_other_projects(model, tmp_path):
    """Their own way of reading the files finds the same numbers, and so does ours."""
    embedding = model.landmarks
    for name in ("ringnet-static", "ringnet-dynamic", "deca"):
        assert main([str(tmp_path / "embedding.npy"), str(tmp_path / name), "--format", name]) == 0
        assert b"numpy._core" not in (tmp_path / name).read_bytes()
    with open(tmp_path / "ringnet-static", "rb") as file:
        static = pickle.load(file, encoding="latin1")
    assert np.array_equal(static["lmk_face_idx"], embedding.static_faces_idx)
    dynamic = np.load(tmp_path / "ringnet-dynamic", allow_pickle=True, encoding="latin1")[()]
    assert len(dynamic["lmk_b_coords"]) == 79 and np.array_equal(dynamic["lmk_b_coords"], embedding.contour_bary_coords)
    content = np.load(tmp_path / "deca", allow_pickle=True, encoding="latin1")[()]
    assert torch.equal(content["dynamic_lmk_faces_idx"].long(), torch.tensor(embedding.contour_faces_idx))
    assert torch.from_numpy(content["full_lmk_bary_coords"]).shape == (1, 68, 3)
    for paths in (["deca"], ["ringnet-static", "ringnet-dynamic"]):
        read = LandmarkEmbedding.load(*(tmp_path / path for path in paths))
        for name, array in embedding.arrays().items():
            assert np.array_equal(getattr(read, name), array)


def test_numbers_of_landmarks_come_back(model, tmp_path):
    embedding = LandmarkEmbedding([1, 2, 3], np.eye(3), static_ids=[5, 300, 7])
    embedding.save(tmp_path / "mediapipe.npz")
    assert main([str(tmp_path / "mediapipe.npz"), str(tmp_path / "static.pkl"), "--format", "ringnet-static"]) == 0
    assert LandmarkEmbedding.load(tmp_path / "static.pkl").static_ids.tolist() == [5, 300, 7]


def test_landmarks_that_are_in_both_files_are_named(model, tmp_path, capsys):
    model.landmarks.save(tmp_path / "own.npz")
    arguments = [str(tmp_path / "embedding.npy"), str(tmp_path / "both.npz"), "--landmarks", str(tmp_path / "own.npz")]
    assert main(arguments) == 1
    assert "own.npz: has static landmarks, and so has a file before it; expected them in one" in capsys.readouterr().err
    static = LandmarkEmbedding(model.landmarks.static_faces_idx, model.landmarks.static_bary_coords)
    static.save(tmp_path / "static.npz")
    assert main([str(tmp_path / "static.npz"), str(tmp_path / "new.npy"), "--format", "deca"]) == 1
    assert "static.npz: the landmarks have no contour" in capsys.readouterr().err


@pytest.mark.parametrize(
    "source, destination, code, message",
    [
        ("none.pkl", "head.npz", 1, "No such file"),
        ("head.obj", "head.npz", 1, "head.obj: expected a head model file, got a mesh"),
        ("masks.pkl", "head.npz", 1, "masks.pkl: no landmark embedding: it holds face"),
        ("generic_model.pkl", "head.pkl", 2, "expected a name that ends in .npz or .safetensors"),
        ("generic_model.pkl", "nowhere/head.npz", 1, "there is no folder"),
    ],
)
def test_errors(model, tmp_path, capsys, source, destination, code, message):
    before = sorted(tmp_path.iterdir())
    assert main([str(tmp_path / source), str(tmp_path / destination)]) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert sorted(tmp_path.iterdir()) == before


def test_eyelids(model, tmp_path, capsys):
    lids = np.random.default_rng(0).normal(0, 0.01, (20, 3, 2))
    files = [str(tmp_path / f"{name}_eyelid.npy") for name in "lr"]
    for i, name in enumerate(files):
        np.save(name, lids[..., i])
    destination = str(tmp_path / "head.npz")
    assert main([str(tmp_path / "generic_model.pkl"), destination, "--eyelids", *files]) == 0
    assert "100 expression directions, eyelids" in capsys.readouterr().out
    assert np.array_equal(FlameModel.load(destination).eyeliddirs, lids)
    np.save(files[1], lids[:-1, :, 1])
    assert main([str(tmp_path / "generic_model.pkl"), destination, "--eyelids", *files]) == 1
    assert "eyelids: expected two arrays of the same shape (V, 3), got (19, 3) and (20, 3)" in capsys.readouterr().err
