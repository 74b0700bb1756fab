import pickle

import numpy as np
import pytest
import torch
from flame_files import deca_content, python2_pickle
from heads import DYNAMIC, STATIC, random_embedding, read_embedding

from ringnet_ext.flame import LandmarkEmbedding
from ringnet_ext.flame.landmarks import contour_first, contour_row, static_first


@pytest.fixture
def embedding():
    return random_embedding(np.random.default_rng(0), faces=200)


def same(ours, expected, *names):
    names = names or expected.arrays().keys()
    assert ours.arrays().keys() == set(names)
    return all(np.array_equal(getattr(ours, name), getattr(expected, name)) for name in names)


def test_contour_rows():
    yaws = [0, 0.4, 0.6, 1, 39, 39.4, 90, -0.4, -1, -12.3, -39, -60]
    assert contour_row(yaws).tolist() == [0, 0, 1, 1, 39, 39, 39, 0, 40, 51, 78, 78]


def test_orders(embedding):
    points = np.arange(2 * 68 * 3).reshape(2, 68, 3)  # contour first
    moved = static_first(points)
    assert np.array_equal(moved[:, :51], points[:, 17:]) and np.array_equal(moved[:, 51:], points[:, :17])
    assert np.array_equal(contour_first(moved), points)
    assert torch.equal(contour_first(static_first(torch.tensor(points))), torch.tensor(points))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_own_files_round_trip(embedding, tmp_path, suffix):
    embedding.save(tmp_path / f"landmarks{suffix}")
    assert same(LandmarkEmbedding.load(tmp_path / f"landmarks{suffix}"), embedding)


@pytest.mark.parametrize("protocol", [0, 2])
def test_ringnet_files(embedding, tmp_path, protocol):
    static, dynamic = tmp_path / "static.pkl", tmp_path / "dynamic.npy"
    content = {
        "lmk_face_idx": embedding.static_faces_idx.astype(np.uint32),
        "lmk_b_coords": embedding.static_bary_coords,
    }
    static.write_bytes(python2_pickle(content, protocol))
    content = {
        "lmk_face_idx": [row.astype(np.uint32) for row in embedding.contour_faces_idx],
        "lmk_b_coords": list(embedding.contour_bary_coords),
    }
    np.save(dynamic, content, allow_pickle=True)
    names = ("static_faces_idx", "static_bary_coords")
    assert same(LandmarkEmbedding.load(static), embedding, *names)
    assert same(LandmarkEmbedding.load(static, dynamic), embedding)
    assert same(LandmarkEmbedding.load(dynamic, static), embedding)
    with pytest.raises(ValueError, match=r"dynamic.npy: no static landmarks"):
        LandmarkEmbedding.load(dynamic)


def test_deca_file(embedding, tmp_path):
    np.save(tmp_path / "landmark_embedding.npy", deca_content(embedding), allow_pickle=True)
    assert same(LandmarkEmbedding.load(tmp_path / "landmark_embedding.npy"), embedding)
    full = LandmarkEmbedding.load(tmp_path / "landmark_embedding.npy", full=True)
    assert (full.num_static, full.num_contour) == (68, 0)
    assert np.array_equal(full.static_faces_idx[:17], embedding.contour_faces_idx[0])
    assert np.array_equal(full.static_bary_coords[17:], embedding.static_bary_coords)


def test_mediapipe_file(tmp_path):
    points = random_embedding(np.random.default_rng(0), faces=200, static=105)
    ids = np.random.default_rng(1).permutation(478)[:105]
    np.savez(
        tmp_path / "mediapipe.npz",
        lmk_face_idx=points.static_faces_idx,
        lmk_b_coords=points.static_bary_coords,
        landmark_indices=ids,
    )
    read = LandmarkEmbedding.load(tmp_path / "mediapipe.npz")
    assert (read.num_static, read.num_contour) == (105, 0)
    assert np.array_equal(read.static_ids, ids) and np.array_equal(read.static_faces_idx, points.static_faces_idx)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(static_faces_idx=[[1, 2]]), r"static_faces_idx: expected shape \(L,\), got \(1, 2\)"),
        (dict(static_faces_idx=np.arange(51) - 1), "static_faces_idx: holds the negative index -1"),
        (dict(static_faces_idx=np.zeros(51)), "static_faces_idx: expected integers, got dtype float64"),
        (dict(static_bary_coords=np.full((50, 3), 1 / 3)), r"static_bary_coords: expected shape \(51, 3\)"),
        (dict(static_bary_coords=np.full((51, 3), 1 / 2)), "must sum to 1, one is off by 0.5"),
        (dict(static_bary_coords=np.full((51, 3), np.nan)), "static_bary_coords: holds 153 values that are NaN"),
        (dict(contour_bary_coords=None), "expected both or neither"),
        (dict(contour_faces_idx=np.zeros((78, 17), int)), r"contour_faces_idx: .* \(79, C\), got \(78, 17\)"),
        (dict(contour_faces_idx=np.zeros((79, 16), int)), r"contour_bary_coords: expected shape \(79, 16, 3\)"),
        (dict(static_ids=np.arange(50)), r"static_ids: expected shape \(51,\), got \(50,\)"),
    ],
)
def test_wrong_arrays_are_named(embedding, changes, message):
    with pytest.raises(ValueError, match=message):
        LandmarkEmbedding(**embedding.arrays() | changes)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"points": np.zeros((51, 3))}, "no landmark embedding: it holds points"),
        ({"lmk_face_idx": np.arange(51)}, "it lacks lmk_b_coords; it holds lmk_face_idx"),
        ({"lmk_face_idx": [np.arange(17), np.arange(16)], "lmk_b_coords": 1}, "a list of arrays of different shapes"),
        (np.zeros(3), "expected a dictionary with the arrays of landmarks, got ndarray"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "file.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=f"file.pkl: .*{message}"):
        LandmarkEmbedding.load(tmp_path / "file.pkl")


def test_published_files_equal_what_pickle_reads(head_files):
    """Those files are trusted here, so Python's own readers may say what is in them."""
    ours = read_embedding(head_files)
    with open(head_files / STATIC, "rb") as file:
        static = pickle.load(file, encoding="latin1")
    dynamic = np.load(head_files / DYNAMIC, allow_pickle=True, encoding="latin1").item()
    assert np.array_equal(ours.static_faces_idx, static["lmk_face_idx"])
    assert np.array_equal(ours.static_bary_coords, static["lmk_b_coords"])
    assert np.array_equal(ours.contour_faces_idx, dynamic["lmk_face_idx"])
    assert np.array_equal(ours.contour_bary_coords, dynamic["lmk_b_coords"])
