"""Subnormal numbers, of which many processors take a hundred times as long: the CPU kernels count them as zero, and
nobody else notices."""

import platform

import pytest
import torch

from ringnet_ext import ops

SUBNORMAL = 1e-40

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"),
    reason="the kernels leave subnormal numbers as they are on this processor",
)


def operators(model):
    return {
        "lbs": lambda betas, pose: ops.flame_lbs(betas, pose, *model.constants)[0],
        "landmarks": lambda betas, pose: ops.flame_landmarks(betas, pose, *model.constants, *model.embedding),
    }


@pytest.fixture(params=[1, 3, 70])
def batch(request):
    return request.param


@pytest.mark.parametrize("operator", ["lbs", "landmarks"])
def test_subnormal_directions_do_nothing(random_model, operator, batch):
    model = random_model(V=400).to(dtype=torch.float32)
    model.v_template.zero_(), model.posedirs.zero_(), model.shapedirs.fill_(SUBNORMAL)
    betas = torch.ones(batch, model.shapedirs.shape[2], requires_grad=True)
    points = operators(model)[operator](betas, torch.zeros(batch, 15))
    assert (points == 0).all()
    assert (torch.autograd.grad(points.sum(), betas)[0] == 0).all()


@pytest.mark.parametrize("operator", ["lbs", "landmarks"])
def test_subnormal_gradients_are_zero(random_model, operator, batch):
    model = random_model(V=400).to(dtype=torch.float32)
    betas, pose = (x.requires_grad_() for x in model.inputs(batch))
    points = operators(model)[operator](betas, pose)
    for gradient in torch.autograd.grad(points, (betas, pose), torch.full_like(points, SUBNORMAL)):
        assert (gradient == 0).all()


@pytest.mark.parametrize("operator", ["lbs", "landmarks"])
def test_nobody_else_notices(random_model, operator):
    """Neither the caller's thread nor the others, which PyTorch uses too."""
    model = random_model(V=400).to(dtype=torch.float32)
    betas = torch.randn(70, model.shapedirs.shape[2], requires_grad=True)
    operators(model)[operator](betas, torch.zeros(70, 15)).sum().backward()
    assert torch.tensor([1e-38]).mul(0.1) > 0
    assert (torch.full((1 << 20,), 1e-38).mul(0.1) > 0).all()
