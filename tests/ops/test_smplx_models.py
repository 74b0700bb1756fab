"""smplx's own classes with `lbs` replaced by `flame_lbs`: the recipe for code on smplx."""

import pickle

import pytest
import smplx
import torch
from flame_files import fields
from heads import random_model

from ringnet_ext import ops


@pytest.fixture
def flame(tmp_path):
    model = random_model(V=5023, F=60, S=300, E=100)
    (tmp_path / "FLAME_NEUTRAL.pkl").write_bytes(pickle.dumps(fields(model)))
    embedding = model.landmarks
    static = {"lmk_face_idx": embedding.static_faces_idx, "lmk_b_coords": embedding.static_bary_coords}
    (tmp_path / "flame_static_embedding.pkl").write_bytes(pickle.dumps(static, 2))
    return smplx.FLAME(tmp_path, batch_size=3, num_betas=10, num_expression_coeffs=10)


@pytest.fixture
def smpl(tmp_path):
    model = random_model(V=6890, F=60, J=24, S=10, E=0, landmarks=False)
    (tmp_path / "SMPL_NEUTRAL.pkl").write_bytes(pickle.dumps(fields(model)))
    return smplx.SMPL(tmp_path / "SMPL_NEUTRAL.pkl", batch_size=3)


def run(module, given):
    """Vertices, joints, and the gradients of every argument."""
    given = {name: value.clone().requires_grad_() for name, value in given.items()}
    output = module(**given)
    weights = torch.linspace(-1, 1, output.vertices.numel()).view_as(output.vertices)
    (output.vertices * weights).mean().backward()
    return output.vertices.detach(), output.joints.detach(), {name: value.grad for name, value in given.items()}


@pytest.mark.parametrize(
    "name, sizes",
    [
        ("flame", dict(betas=10, expression=10, global_orient=3, neck_pose=3, jaw_pose=3, leye_pose=3, reye_pose=3)),
        ("smpl", dict(betas=10, global_orient=3, body_pose=69)),
    ],
)
def test_same_vertices_and_gradients(request, monkeypatch, name, sizes):
    module = request.getfixturevalue(name)
    generator = torch.Generator().manual_seed(0)
    given = {key: 0.4 * torch.randn(3, size, generator=generator) for key, size in sizes.items()}
    expected = run(module, given)
    double = run(module.double(), {key: value.double() for key, value in given.items()})
    calls = []

    def flame_lbs(*args, **kwargs):
        calls.append(1)
        return ops.flame_lbs(*args, **kwargs)

    monkeypatch.setattr(smplx.body_models, "lbs", flame_lbs)
    ours = run(module.float(), given)
    assert calls
    for mine, theirs, exact in zip(ours[:2], expected[:2], double[:2], strict=False):
        assert (mine - theirs).abs().max() < 2e-6 and (mine - exact).abs().max() < 1e-6
    for key, gradient in ours[2].items():
        assert (gradient - double[2][key]).norm() <= 1e-5 * double[2][key].norm(), key
