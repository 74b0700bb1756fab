import copy
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flame_files import deca_content, fields
from heads import random_model
from smplx.lbs import batch_rodrigues
from smplx.utils import rot_mat_to_euler

from ringnet_ext.deca import FLAME
from ringnet_ext.flame import FLAME as Layer


@pytest.fixture
def model():
    return random_model(V=50, F=60, S=300, E=100)


@pytest.fixture
def config(model, tmp_path):
    """The part of DECA's cfg.model that its FLAME reads."""
    (tmp_path / "generic_model.pkl").write_bytes(pickle.dumps(fields(model)))
    np.save(tmp_path / "landmark_embedding.npy", deca_content(model.landmarks), allow_pickle=True)
    return SimpleNamespace(
        flame_model_path=str(tmp_path / "generic_model.pkl"),
        flame_lmk_embedding_path=str(tmp_path / "landmark_embedding.npy"),
        n_shape=100,
        n_exp=50,
    )


def arguments(batch):
    generator = torch.Generator().manual_seed(batch)
    sizes = ((100, 1), (50, 1), (6, 0.5), (6, 0.2))  # and how far they spread
    return [torch.randn(batch, size, generator=generator) * spread for size, spread in sizes]


def on_mesh(vertices, model, faces_idx, bary_coords):
    return (vertices[..., model.faces[faces_idx], :] * torch.tensor(bary_coords).float()[..., None]).sum(-2)


@pytest.mark.parametrize("batch", [1, 5])
def test_three_results(model, config, batch):
    layer = FLAME(config)
    shape, expression, pose, eyes = arguments(batch)
    vertices, landmarks2d, landmarks3d = layer(shape, expression, pose, eyes)
    expected = Layer(model)(shape, expression, pose[:, :3], jaw_pose=pose[:, 3:], eye_pose=eyes)
    assert torch.allclose(vertices, expected.vertices, atol=1e-6)
    assert torch.allclose(landmarks2d, expected.landmarks, atol=1e-6)
    embedding = model.landmarks
    contour = on_mesh(vertices, model, embedding.contour_faces_idx[0], embedding.contour_bary_coords[0])
    assert torch.allclose(landmarks3d[:, :17], contour, atol=1e-6)
    assert torch.allclose(landmarks3d[:, 17:], landmarks2d[:, 17:], atol=1e-6)
    assert torch.equal(layer.seletec_3d68(vertices), landmarks3d)
    assert layer.faces_tensor.shape == (60, 3) and layer.full_lmk_faces_idx.shape == (1, 68)


def test_original_contour(model, config):
    """DECA's own choice: the row of plus the second Euler angle."""
    config.original_contour = True
    shape, expression, pose, _ = arguments(12)
    vertices, landmarks2d, _ = FLAME(config)(shape, expression, pose)
    angle = torch.round(torch.clamp(rot_mat_to_euler(batch_rodrigues(pose[:, :3])) * 180 / np.pi, -39, 39)).long()
    row = torch.where(angle < 0, 39 - angle, angle)
    embedding = model.landmarks
    for i in range(12):
        faces_idx, bary_coords = embedding.contour_faces_idx[row[i]], embedding.contour_bary_coords[row[i]]
        contour = on_mesh(vertices[i], model, faces_idx, bary_coords)
        assert torch.allclose(landmarks2d[i, :17], contour, atol=1e-6)


def test_our_contour_is_deca_s_but_for_pitched_and_rolled_heads(model, config):
    """The difference that the module's text states: none for a head that is only turned."""
    visible = FLAME(config)
    config.original_contour = True
    original = FLAME(config)
    turned = torch.zeros(61, 6)
    turned[:, 1] = torch.linspace(-1, 1, 61)
    for ours, theirs in zip(visible(pose_params=turned), original(pose_params=turned), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
    other = 0.3 * torch.randn(60, 6)
    ours, theirs = visible(pose_params=other), original(pose_params=other)
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[2], theirs[2])
    assert (ours[1][:, :17] != theirs[1][:, :17]).any() and torch.allclose(
        ours[1][:, 17:], theirs[1][:, 17:], atol=1e-6
    )


def test_photometric_optimization_s_names(config):
    names = SimpleNamespace(
        flame_model_path=config.flame_model_path, flame_lmk_embedding_path=config.flame_lmk_embedding_path,
        shape_params=100, expression_params=50, pose_params=6, camera_params=3, tex_params=50, use_face_contour=True,
    )  # fmt: skip
    shape, expression, pose, eyes = arguments(2)
    given = dict(shape_params=shape, expression_params=expression, pose_params=pose, eye_pose_params=eyes)
    for ours, theirs in zip(FLAME(names)(**given), FLAME(config)(**given), strict=True):
        assert torch.equal(ours, theirs)
    del names.shape_params
    with pytest.raises(AttributeError, match="config: expected n_shape or shape_params, got neither"):
        FLAME(names)


def original_state(model, n_shape=100, n_exp=50):
    """The state dict of DECA's FLAME, of photometric_optimization's and, but for the eyelids, of SMIRK's."""
    embedding = model.landmarks

    def real(array):
        return torch.tensor(array, dtype=torch.float32)

    frontal = np.concatenate([embedding.contour_faces_idx[0], embedding.static_faces_idx])
    frontal_bary = np.concatenate([embedding.contour_bary_coords[0], embedding.static_bary_coords])
    return {
        "eye_pose": torch.zeros(1, 6),
        "neck_pose": torch.zeros(1, 3),
        "faces_tensor": torch.tensor(model.faces),
        "v_template": real(model.v_template),
        "shapedirs": real(np.concatenate([model.shapedirs[..., :n_shape], model.expressiondirs[..., :n_exp]], axis=2)),
        "posedirs": real(model.posedirs.reshape(-1, 36).T),
        "J_regressor": real(model.J_regressor),
        "parents": torch.tensor(model.parents),
        "lbs_weights": real(model.lbs_weights),
        "lmk_faces_idx": torch.tensor(embedding.static_faces_idx),
        "lmk_bary_coords": real(embedding.static_bary_coords),
        "dynamic_lmk_faces_idx": torch.tensor(embedding.contour_faces_idx),
        "dynamic_lmk_bary_coords": real(embedding.contour_bary_coords),
        "full_lmk_faces_idx": torch.tensor(frontal)[None],
        "full_lmk_bary_coords": real(frontal_bary)[None],
        "neck_kin_chain": torch.tensor([1, 0]),
    }


def test_state_dicts_are_deca_s(model, config):
    layer, theirs = FLAME(config), original_state(model)
    ours = layer.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype and torch.equal(ours[name], value), name
    # Inside of another module, in a copy, and with the values of another head.
    other = random_model(seed=1, V=50, F=60, S=300, E=100)
    outer = copy.deepcopy(torch.nn.ModuleDict({"flame": layer}))
    state = {f"flame.{name}": value for name, value in original_state(other).items()}
    outer.load_state_dict(state)
    assert all(torch.equal(value, state[name]) for name, value in outer.state_dict().items())
    shape, expression, pose, eyes = arguments(3)
    expected = Layer(other)(shape, expression, pose[:, :3], jaw_pose=pose[:, 3:], eye_pose=eyes)
    assert torch.allclose(outer["flame"](shape, expression, pose, eyes)[0], expected.vertices, atol=1e-6)
    assert torch.equal(layer.state_dict()["v_template"], theirs["v_template"])  # the one that was copied
    with pytest.raises(RuntimeError, match=r"size mismatch for decoder.shapedirs"):
        layer.load_state_dict(original_state(model, n_exp=40))
    with pytest.raises(RuntimeError, match=r"Unexpected key.*l_eyelid"):
        layer.load_state_dict(original_state(model) | {"l_eyelid": torch.zeros(1, 50, 3)})
