"""No operator reads what nobody wrote: results don't change when fresh memory is full of NaN."""

import pytest
import torch

from ringnet_ext.flame import FLAME, builtin_head


@pytest.fixture
def fresh_memory_is_nan():
    torch.use_deterministic_algorithms(True)  # fills uninitialised tensors, torch.utils.deterministic
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 3, 4, 9, 33])
def test_fresh_memory_is_written_before_it_is_read(fresh_memory_is_nan, batch, dtype):
    flame = FLAME(builtin_head(), shape_params=7, expression_params=4, dtype=dtype)
    torch.manual_seed(batch)
    given = {name: torch.randn(batch, size, dtype=dtype).mul_(0.3).requires_grad_()
             for name, size in (("shape", 7), ("expression", 4), ("global_pose", 3), ("neck_pose", 3), ("jaw_pose", 3), ("eye_pose", 6))}  # fmt: skip
    for values in ((flame.landmarks(**given),), flame(**given)):
        loss = sum((value * torch.randn_like(value)).sum() for value in values)
        gradients = torch.autograd.grad(loss, list(given.values()))
        assert torch.isfinite(loss)
        for name, gradient in zip(given, gradients, strict=True):
            assert torch.isfinite(gradient).all(), name
