"""No operator reads what nobody wrote: results don't change when fresh memory is full of NaN."""

import os
import subprocess
import sys

import pytest
import torch

from ringnet_ext import ops
from ringnet_ext.flame import FLAME, builtin_head


@pytest.fixture
def fresh_memory_is_nan():
    torch.use_deterministic_algorithms(True)  # fills uninitialised tensors, torch.utils.deterministic
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 3, 4, 9, 33, 67])
def test_fresh_memory_is_written_before_it_is_read(fresh_memory_is_nan, batch, dtype):
    flame = FLAME(builtin_head(), shape_params=7, expression_params=4, dtype=dtype)
    torch.manual_seed(batch)
    given = {
        name: torch.randn(batch, size, dtype=dtype).mul_(0.3).requires_grad_()
        for name, size in (
            ("shape", 7),
            ("expression", 4),
            ("global_pose", 3),
            ("neck_pose", 3),
            ("jaw_pose", 3),
            ("eye_pose", 6),
        )
    }
    for values in ((flame.landmarks(**given),), flame(**given)):
        loss = sum((value * torch.randn_like(value)).sum() for value in values)
        gradients = torch.autograd.grad(loss, list(given.values()))
        assert torch.isfinite(loss)
        for name, gradient in zip(given, gradients, strict=True):
            assert torch.isfinite(gradient).all(), name


OWN = """
import torch
from ringnet_ext import ops
from ringnet_ext.flame import FLAME, builtin_head
torch.set_num_threads(2)
digest = []
for dtype in (torch.float32, torch.float64):
    flame = FLAME(builtin_head(), shape_params=7, expression_params=4, dtype=dtype)
    for batch in (1, 3, 9, 33, 67):  # 67: more than one block of the batch
        torch.manual_seed(batch)
        betas = torch.randn(batch, 11, dtype=dtype)
        pose = torch.randn(batch, 15, dtype=dtype).mul_(0.3).requires_grad_()
        arguments = betas[:, :7], betas[:, 7:], pose[:, :3]
        for values in ((flame.landmarks(*arguments),), flame(*arguments)):
            loss = sum((value * torch.randn_like(value)).sum() for value in values)
            digest += [loss.item(), torch.autograd.grad(loss, pose)[0].sum().item()]
            with torch.no_grad():
                digest += [flame.landmarks(betas[:, :7]).sum().item(), flame(betas[:, :7]).vertices.sum().item()]
print(digest)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc's malloc")
def test_memory_of_the_kernels_own_is_written_before_it_is_read():
    """The same results when what malloc hands out is full of zeros, as it tends to be, and of 3e38."""

    def run(**environment):
        command = [sys.executable, "-c", OWN]
        return subprocess.run(command, env=os.environ | environment, check=True, capture_output=True, text=True).stdout

    assert run(MALLOC_PERTURB_="128") == run()


def test_big_results_and_states_use_the_same_memory_again(random_model):
    """From 32 MiB on; never while a graph, or anybody else, still needs it."""
    model = random_model(V=1003, K=3).to(dtype=torch.float64)
    inputs = [t.requires_grad_() for t in model.inputs(1500)]
    states = []

    def forward():
        with torch.autograd.graph.saved_tensors_hooks(lambda t: states.append(t.data_ptr()) or t, lambda t: t):
            vertices, _ = ops.flame_lbs(*inputs, *model.constants)
        assert vertices.nbytes > 32 << 20
        return vertices

    def gradients(vertices, sign):
        return torch.autograd.grad(vertices.mul(sign).cos().sum(), inputs)

    forward()
    ops.clear_prepared()
    used = []
    for _ in range(3):
        first = forward()
        used.append({states[-1], first.data_ptr()})
        one = gradients(first, 1)
        kept = first[7].detach()
        values = kept.numpy().copy() if len(used) == 3 else kept.clone().numpy()
        del first, kept
    assert used[0] == used[1] == used[2] and len(used[0]) == 2
    kept = forward()[7].detach().numpy()  # its memory lives on with it
    first, second = forward(), forward()
    assert not {states[-1], second.data_ptr()} & {states[-2], first.data_ptr()}
    assert (kept == values).all()
    for vertices, sign in ((first, 1), (second, -1)):
        for a, b in zip(gradients(vertices, sign), one, strict=True):
            assert torch.equal(a, b)
    ops.clear_prepared()


def test_big_results_are_ordinary_tensors(random_model):
    """As small ones: written in place with a gradient, resized, shared, given to NumPy, and nobody else's for as long
    as anything has them."""
    model = random_model(V=1003, K=3).to(dtype=torch.float64)

    def forward(gradient=False):
        betas, pose = (t.requires_grad_(gradient) for t in model.inputs(1500))
        return betas, ops.flame_lbs(betas, pose, *model.constants)[0]

    for _ in range(3):  # memory of its own, then used again
        betas, vertices = forward(gradient=True)
        expected = vertices.detach() * 1000
        vertices *= 1000
        vertices[3].zero_()
        vertices.sum().backward()
        assert torch.equal(vertices[4:], expected[4:])
        assert betas.grad[3].abs().max() == 0 < betas.grad[4].abs().min()
        del vertices, betas, expected
        _, vertices = forward()
        own = vertices.untyped_storage().nbytes() == vertices.nbytes and not vertices._is_view()
        assert own
        vertices.resize_(2).fill_(2)
        vertices.resize_(3000, 1003, 3).fill_(1)
        del vertices
    _, vertices = forward()
    storage, expected = vertices.untyped_storage(), vertices.clone()
    del vertices
    later = [forward()[1] for _ in range(3)]
    taken = storage.data_ptr() in {v.data_ptr() for v in later}
    same = torch.equal(torch.empty(0, dtype=torch.float64).set_(storage, 0, expected.shape), expected)
    assert same and not taken
    shared = later.pop().share_memory_()
    address = shared.data_ptr()
    del shared, later, storage
    assert all(forward()[1].data_ptr() != address for _ in range(3))  # another process may be reading
    ops.clear_prepared()
