import pickle

import numpy as np
import pytest
import torch
from flame_files import flame_2017_pickle
from heads import random_model
from smplx.lbs import batch_rodrigues, lbs, vertices2landmarks
from smplx.utils import rot_mat_to_euler

from ringnet_ext.flame_pytorch import FLAME, get_config


@pytest.fixture(scope="module")
def model():
    return random_model(V=50, F=60, S=300, E=100)


@pytest.fixture
def paths(model, tmp_path):
    """FLAME_PyTorch's three files."""
    embedding = model.landmarks
    (tmp_path / "model.pkl").write_bytes(flame_2017_pickle(model))
    static = {"lmk_face_idx": embedding.static_faces_idx, "lmk_b_coords": embedding.static_bary_coords}
    (tmp_path / "static.pkl").write_bytes(pickle.dumps(static, 2))
    dynamic = {"lmk_face_idx": list(embedding.contour_faces_idx), "lmk_b_coords": list(embedding.contour_bary_coords)}
    np.save(tmp_path / "dynamic.npy", dynamic, allow_pickle=True)
    return [
        f"--flame_model_path={tmp_path / 'model.pkl'}",
        f"--static_landmark_embedding_path={tmp_path / 'static.pkl'}",
        f"--dynamic_landmark_embedding_path={tmp_path / 'dynamic.npy'}",
    ]


def original(model, shape, expression, pose, neck, eyes, dtype=torch.float64):
    """FLAME_PyTorch's forward, on smplx: all 400 coefficients, and the contour of minus the Euler angle."""
    tensors = {name: torch.tensor(getattr(model, name), dtype=dtype) for name in ("v_template", "J_regressor")}
    directions = torch.tensor(np.concatenate([model.shapedirs, model.expressiondirs], axis=2), dtype=dtype)
    batch = len(pose)
    betas = torch.zeros(batch, 400, dtype=dtype)
    betas[:, : shape.shape[1]], betas[:, 300 : 300 + expression.shape[1]] = shape, expression
    full_pose = torch.cat([pose[:, :3], neck, pose[:, 3:], eyes], dim=1)
    vertices, _ = lbs(
        betas, full_pose, tensors["v_template"].repeat(batch, 1, 1), directions,
        torch.tensor(model.posedirs, dtype=dtype).reshape(-1, 36).T, tensors["J_regressor"],
        torch.tensor(model.parents), torch.tensor(model.lbs_weights, dtype=dtype),
    )  # fmt: skip
    root, neck = batch_rodrigues(pose[:, :3]), batch_rodrigues(neck)
    angle = torch.round(torch.clamp(-rot_mat_to_euler(root @ neck) * 180 / np.pi, -39, 39)).long()
    row = torch.where(angle < 0, 39 - angle, angle)
    embedding = model.landmarks
    faces = np.concatenate([embedding.contour_faces_idx[row], np.tile(embedding.static_faces_idx, (batch, 1))], axis=1)
    bary = np.concatenate(
        [embedding.contour_bary_coords[row], np.tile(embedding.static_bary_coords, (batch, 1, 1))], axis=1
    )
    return vertices, vertices2landmarks(
        vertices, torch.tensor(model.faces), torch.tensor(faces), torch.tensor(bary, dtype=dtype)
    )


def arguments(batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = ((100, 1), (50, 1), (6, 0.4), (3, 0.2), (6, 0.2))  # and how far they spread
    return [torch.randn(batch, size, generator=generator) * spread for size, spread in sizes]


def test_parity_with_the_original(model, paths):
    layer = FLAME(get_config([*paths, "--original_contour", "True"]))
    given = arguments(8)
    vertices, landmarks = layer(*given)
    expected = original(model, *(value.double() for value in given))
    assert torch.allclose(vertices.double(), expected[0], atol=2e-6)
    assert torch.allclose(landmarks.double(), expected[1], atol=2e-6)


def test_the_readme_example(paths, model):
    """main.py of FLAME_PyTorch without its window."""
    config = get_config(paths)
    radian = np.pi / 180.0
    flamelayer = FLAME(config)
    shape_params = torch.zeros(8, 100)
    pose_params = torch.zeros(8, 6)
    pose_params[:, 1] = torch.tensor([30.0, -30.0, 85.0, -48.0, 10.0, -15.0, 0.0, -0.0]) * radian
    expression_params = torch.zeros(8, 50)
    vertice, landmark = flamelayer(shape_params, expression_params, pose_params)
    assert vertice.size() == (8, 50, 3) and landmark.size() == (8, 68, 3)
    assert config.optimize_eyeballpose and config.optimize_neckpose
    again = flamelayer(shape_params, expression_params, pose_params, torch.zeros(8, 3), torch.zeros(8, 6))
    assert torch.allclose(again[0], vertice) and torch.allclose(again[1], landmark)
    assert np.array_equal(flamelayer.faces, model.faces) and isinstance(flamelayer.faces, np.ndarray)
    # In this frame (y up) the original takes the hidden side; ours has the rows of the yaw itself.
    rows = [30, 69, 39, 78, 10, 54, 0, 0]
    corners = vertice[torch.arange(8)[:, None, None], model.faces[model.landmarks.contour_faces_idx[rows]]]
    expected = (corners * torch.tensor(model.landmarks.contour_bary_coords[rows])[..., None]).sum(2)
    assert torch.allclose(landmark[:, :17].double(), expected, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 3, 20])
def test_any_batch_size(paths, batch):
    layer = FLAME(get_config([*paths, "--batch_size=8"]))
    given = arguments(batch)
    vertices, landmarks = layer(*given, transl=torch.ones(batch, 3))
    assert vertices.shape == (batch, 50, 3) and landmarks.shape == (batch, 68, 3)
    plain = layer(*given)
    assert torch.allclose(vertices - 1, plain[0], atol=1e-6) and torch.allclose(landmarks - 1, plain[1], atol=1e-6)
    assert torch.equal(layer()[0], layer(torch.zeros(1, 100), torch.zeros(1, 50), torch.zeros(1, 6))[0])
    with pytest.raises(ValueError, match=r"pose_params: expected shape \(B, 6\), got \(2, 15\)"):
        layer(pose_params=torch.zeros(2, 15))


def test_the_default_dtype_does_not_matter(paths):
    torch.set_default_dtype(torch.float64)
    try:
        layer = FLAME(get_config(paths))
        assert layer()[0].dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_flags(paths, model):
    layer = FLAME(get_config([*paths, "--use_face_contour", "False", "--use_3D_translation", "False"]))
    vertices, landmarks = layer(*arguments(2), transl=torch.ones(2, 3))
    assert landmarks.shape == (2, 51, 3) and torch.equal(vertices, layer(*arguments(2))[0])
    assert not hasattr(layer, "nothing")
    defaults = vars(get_config([]))
    assert (defaults["shape_params"], defaults["expression_params"], defaults["ring_margin"]) == (100, 50, 0.5)
    for spelled, value in (("False", False), ("false", False), ("0", False), ("True", True), ("yes", True)):
        assert get_config(["--optimize_neckpose", spelled]).optimize_neckpose is value
    with pytest.raises(SystemExit):
        get_config(["--optimize_neckpose", "maybe"])


def test_poses_can_be_optimised_as_the_layer_s_own(paths):
    layer = FLAME(get_config(paths))
    layer.neck_pose.requires_grad_(True)
    layer(*arguments(4)[:3])[1].sum().backward()
    assert layer.neck_pose.grad.shape == (1, 3) and layer.neck_pose.grad.abs().max() > 0


def test_buffers_under_their_old_names(paths, model):
    layer = FLAME(get_config(paths))
    assert torch.equal(layer.faces_tensor, torch.tensor(model.faces)) and layer.dtype == torch.float32
    assert layer.shapedirs.shape == (50, 3, 150) and layer.posedirs.shape == (36, 150)
    assert layer.dynamic_lmk_faces_idx.shape == (79, 17) and layer.lmk_bary_coords.shape == (51, 3)
    assert layer.double()()[0].dtype == torch.float64


def original_state(model, batch_size=8, shape_params=100, expression_params=50, contour=True):
    """The state dict of FLAME_PyTorch's FLAME."""
    embedding = model.landmarks

    def real(array):
        return torch.tensor(array, dtype=torch.float32)

    state = {
        "shape_betas": torch.zeros(batch_size, 300 - shape_params),
        "expression_betas": torch.zeros(batch_size, 100 - expression_params),
        "eye_pose": torch.zeros(batch_size, 6),
        "neck_pose": torch.full((batch_size, 3), 0.1),
        "transl": torch.zeros(batch_size, 3),
        "faces_tensor": torch.tensor(model.faces),
        "v_template": real(model.v_template),
        "shapedirs": real(np.concatenate([model.shapedirs, model.expressiondirs], axis=2)),
        "J_regressor": real(model.J_regressor),
        "posedirs": real(model.posedirs.reshape(-1, 36).T),
        "parents": torch.tensor(model.parents),
        "lbs_weights": real(model.lbs_weights),
        "lmk_faces_idx": torch.tensor(embedding.static_faces_idx),
        "lmk_bary_coords": real(embedding.static_bary_coords),
    }
    if contour:
        state |= {
            "dynamic_lmk_faces_idx": torch.tensor(embedding.contour_faces_idx),
            "dynamic_lmk_bary_coords": real(embedding.contour_bary_coords), "neck_kin_chain": torch.tensor([1, 0]),
        }  # fmt: skip
    return state


@pytest.mark.parametrize("contour", [True, False])
@pytest.mark.parametrize("sizes", [(100, 50), (300, 100)])
def test_state_dicts_are_the_original_s(paths, model, contour, sizes):
    flags = [f"--use_face_contour={contour}", f"--shape_params={sizes[0]}", f"--expression_params={sizes[1]}"]
    layer = FLAME(get_config([*paths, *flags]))
    other = random_model(seed=1, V=50, F=60, S=300, E=100)
    state = original_state(other, 8, *sizes, contour)
    ours = layer.state_dict()
    assert ours.keys() == state.keys() - {"shape_betas", "expression_betas"}
    assert all(ours[name].dtype == state[name].dtype for name in ours)
    before = dict(state)
    layer.load_state_dict(state)
    assert state.keys() == before.keys()  # what is given stays as it was
    for name, value in layer.state_dict().items():
        if name in ("eye_pose", "neck_pose", "transl"):
            assert value.shape[0] == 1 and torch.equal(value.expand_as(state[name]), state[name])
        elif name == "shapedirs":
            assert torch.equal(
                value, torch.cat([state[name][..., : sizes[0]], state[name][..., 300 : 300 + sizes[1]]], -1)
            )
        else:
            assert torch.equal(value, state[name]), name
    shape, expression, pose, _, eyes = arguments(3)
    expected, _ = original(
        other, shape.double(), expression.double(), pose.double(), torch.full((3, 3), 0.1).double(), eyes.double()
    )
    assert torch.allclose(layer(shape, expression, pose, None, eyes)[0].double(), expected, atol=2e-6)
    again = FLAME(get_config([*paths, *flags]))
    again.load_state_dict(layer.state_dict())
    assert all(torch.equal(value, layer.state_dict()[name]) for name, value in again.state_dict().items())


def test_state_dicts_that_would_lose_something_are_refused(paths, model):
    layer = FLAME(get_config(paths))
    for name, change in (("shape_betas", torch.ones(8, 200)), ("neck_pose", torch.rand(8, 3))):
        with pytest.raises(RuntimeError, match=name):
            layer.load_state_dict(original_state(model) | {name: change})


def test_the_neck_s_chain(paths):
    assert FLAME(get_config(paths)).neck_kin_chain.tolist() == [1, 0]
