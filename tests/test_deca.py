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
