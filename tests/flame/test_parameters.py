import numpy as np
import pytest
import torch
from heads import random_model

from ringnet_ext.flame import FLAME
from ringnet_ext.flame.parameters import FlameParams, HeadParams, read_parameters
from ringnet_ext.geometry.camera import project
from ringnet_ext.geometry.rotations import (
    axis_angle_from_matrix,
    matrix_from_axis_angle,
    matrix_from_six,
    six_from_matrix,
)


def random_vectors(length, count=200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return vectors / vectors.norm(dim=1, keepdim=True) * length


@pytest.mark.parametrize("angle", [0, 1e-12, 1e-7, 1e-4, 0.3, 1.5, 3.0, np.pi - 1e-4, np.pi - 1e-9])
def test_axis_angle_round_trip(angle):
    vectors = random_vectors(angle)
    back = axis_angle_from_matrix(matrix_from_axis_angle(vectors))
    assert torch.allclose(back, vectors, atol=1e-7 if angle < 3.1 else 1e-6)


def test_axis_angle_at_a_half_turn_and_beyond():
    for vectors in (torch.eye(3, dtype=torch.float64) * np.pi, random_vectors(np.pi), random_vectors(5.0)):
        matrices = matrix_from_axis_angle(vectors)
        back = axis_angle_from_matrix(matrices)
        assert (back.norm(dim=1) <= np.pi + 1e-12).all()
        assert torch.allclose(matrix_from_axis_angle(back), matrices, atol=1e-12)


def test_axis_angle_has_gradients():
    vectors = torch.cat([random_vectors(0.7, 5), random_vectors(2.9, 5)]).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: axis_angle_from_matrix(matrix_from_axis_angle(v)), (vectors,))
    zero = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    axis_angle_from_matrix(matrix_from_axis_angle(zero)).sum().backward()
    assert torch.allclose(zero.grad, torch.ones(1, 3, dtype=torch.float64))


def test_six_numbers():
    matrices = matrix_from_axis_angle(random_vectors(2.0))
    six = six_from_matrix(matrices)
    assert torch.equal(six[:, :3], matrices[:, :, 0]) and torch.equal(six[:, 3:], matrices[:, :, 1])
    assert torch.allclose(matrix_from_six(six), matrices, atol=1e-12)
    loose = torch.cat([2 * six[:, :3], 0.5 * six[:, 3:] - 3 * six[:, :3]], dim=1)
    assert torch.allclose(matrix_from_six(loose), matrices, atol=1e-12)
    with pytest.raises(ValueError, match=r"numbers: expected shape \(..., 6\), got \(2, 5\)"):
        matrix_from_six(torch.zeros(2, 5))


@pytest.fixture(scope="module")
def params():
    generator = torch.Generator().manual_seed(1)
    sizes = dict(shape=100, expression=50, global_pose=3, jaw_pose=3)
    return FlameParams.make(
        **{name: 0.4 * torch.randn(3, n, generator=generator, dtype=torch.float64) for name, n in sizes.items()}
    )


def same(ours, expected, tolerance=1e-9):
    for name in FlameParams._fields:
        assert torch.allclose(getattr(ours, name), getattr(expected, name), atol=tolerance), name
    return True


def test_full_vector(params):
    params = params._replace(neck_pose=params.jaw_pose + 1, eye_pose=params.shape[:, :6])
    full = params.to_full()
    assert full.shape == (3, 415)
    assert torch.equal(full[:, 300:350], params.expression) and not full[:, 350:400].any()
    assert torch.equal(full[:, 400:], torch.cat(params[2:6], dim=1))
    assert same(FlameParams.from_full(full).resized(100, 50), params)
    assert params.resized(7, 3).shape.shape == (3, 7)
    with pytest.raises(ValueError, match=r"vector: expected shape \(B, 415\), got \(3, 400\)"):
        FlameParams.from_full(full[:, :400])


CAMERA = torch.tensor([[8.0, 0.01, -0.02], [7.0, 0.0, 0.03], [9.0, -0.01, 0.0]], dtype=torch.float64)


def test_deca_codes(params):
    codes = params.to_deca(CAMERA)
    assert {name: tuple(value.shape) for name, value in codes.items()} == dict(
        shape=(3, 100), exp=(3, 50), pose=(3, 6), cam=(3, 3)
    )
    back, camera = FlameParams.from_deca(codes | {"light": torch.zeros(3, 9, 3)})
    assert same(back, params) and torch.equal(camera, CAMERA)
    with pytest.raises(ValueError, match="neck_pose: DECA has no such parameters"):
        params._replace(neck_pose=params.jaw_pose).to_deca(CAMERA)
    with pytest.raises(ValueError, match="cam, exp missing"):
        FlameParams.from_deca({"shape": params.shape, "pose": params.jaw_pose})


def test_ringnet_vector_shows_the_same_picture(params):
    layer = FLAME(random_model(V=40, S=100, E=50), dtype=torch.float64)
    root = layer(params.shape, params.expression).joints[:, 0]
    assert root[:, 1].abs().min() > 1e-3
    ringnet = params.to_ringnet(CAMERA, root)
    vector = ringnet.to_vector()
    assert vector.shape == (3, 159)
    back, camera = FlameParams.from_ringnet(HeadParams.from_vector(vector), root)
    assert same(back, params) and torch.allclose(camera, CAMERA, atol=1e-12)

    upright = layer(*params).vertices
    turned = layer(ringnet.shape, ringnet.expression, ringnet.global_pose, jaw_pose=ringnet.jaw_pose).vertices
    picture = project(turned, ringnet.camera)
    scale, shift = CAMERA[:, None, :1], CAMERA[:, None, 1:]
    deca = scale * (upright[..., :2] + shift) * torch.tensor([1.0, -1.0])
    assert torch.allclose(picture, deca, atol=1e-9)


def test_an_upright_head_is_ringnet_s_half_turn():
    params = FlameParams.make(shape=torch.zeros(1, 100))
    pose = params.to_ringnet(CAMERA[:1].float(), torch.zeros(1, 3)).global_pose
    assert torch.allclose(pose.abs(), torch.tensor([[np.pi, 0, 0]]).float(), atol=1e-6)


def test_bfloat16_is_saved(tmp_path):
    shape = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)).bfloat16()  # as an encoder under autocast
    FlameParams.make(shape=shape).save(tmp_path / "params.npz")
    assert torch.equal(read_parameters(tmp_path / "params.npz").shape, shape.float())


def test_wrong_parameters_are_named():
    with pytest.raises(ValueError, match=r"expected some of shape, .*, got beta"):
        FlameParams.make(beta=torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"jaw_pose: expected shape \(B, 3\), got \(1, 4\)"):
        FlameParams.make(jaw_pose=torch.zeros(1, 4))
    with pytest.raises(ValueError, match="batch sizes differ: shape 2, jaw_pose 3"):
        FlameParams.make(shape=torch.zeros(2, 4), jaw_pose=torch.zeros(3, 3))


def test_files(params, tmp_path):
    import scipy.io

    params.save(tmp_path / "ours.npz")
    root = torch.zeros(1, 3, dtype=torch.float64)
    ringnet = params.to_ringnet(CAMERA, root)
    pose = torch.cat([ringnet.global_pose, ringnet.jaw_pose], 1)
    content = dict(cam=ringnet.camera, pose=pose, shape=ringnet.shape, expression=ringnet.expression)
    np.save(tmp_path / "ringnet.npy", {name: value.numpy() for name, value in content.items()}, allow_pickle=True)
    np.savez(tmp_path / "infer.npz", landmarks=np.zeros((68, 2)), **content)
    codes = {name: value.numpy() for name, value in params.to_deca(CAMERA).items()}
    scipy.io.savemat(tmp_path / "deca.mat", codes)
    np.savez(tmp_path / "deca.npz", **codes)
    np.save(tmp_path / "full.npy", params.to_full().numpy())
    for name in ("ours.npz", "ringnet.npy", "infer.npz", "deca.mat", "deca.npz", "full.npy"):
        assert same(read_parameters(tmp_path / name, torch.float64).resized(100, 50), params), name
    layer = FLAME(random_model(S=100, E=50))  # float32, as the parameters are read by default
    assert layer(*read_parameters(tmp_path / "full.npy").resized(100, 50)).vertices.shape == (3, 60, 3)
    np.savez(tmp_path / "one.npz", shape=np.ones(5))
    assert read_parameters(tmp_path / "one.npz").shape.shape == (1, 5)
    for content, message in (({"x": 1}, "expected some of"), (np.zeros((2, 3)), r"expected shape \(B, 415\)")):
        np.save(tmp_path / "bad.npy", content, allow_pickle=True)
        with pytest.raises(ValueError, match=rf"bad.npy: .*{message}"):
            read_parameters(tmp_path / "bad.npy")
    (tmp_path / "bad.mat").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"bad.mat: not a .mat file"):
        read_parameters(tmp_path / "bad.mat")
