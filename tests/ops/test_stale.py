"""Results are always those of the constants' values now there, however they were written, and what is written as it was
costs nothing.

Most of these writes leave a tensor's version counter as it is.
"""

import copy
import gc
import io
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import _ringnet_core as core
import numpy as np
import pytest
import torch
from torch import nn

from ringnet_ext import ops
from ringnet_ext.ops import _cache, _prepared, reference

FLOATS = ("v_template", "shapedirs", "posedirs", "J_regressor", "lbs_weights", "lmk_bary_coords", "contour_bary_coords")


def results(model) -> list[torch.Tensor]:
    inputs = model.inputs(2)
    with torch.no_grad():
        return [
            *ops.flame_lbs(*inputs, *model.constants),
            ops.flame_landmarks(*inputs, *model.constants, *model.embedding),
            *ops.flame_head(*inputs, *model.constants, *model.embedding),
        ]


def assert_fresh(model, note="") -> None:
    inputs = model.inputs(2)
    vertices, joints, landmarks = reference.flame_head(*inputs, *model.constants, *model.embedding)
    for value, want in zip(results(model), (vertices, joints, landmarks, vertices, joints, landmarks), strict=False):
        torch.testing.assert_close(value, want, rtol=0, atol=1e-12, msg=lambda m: f"{note}: {m}")


def used(random_model, **sizes):
    """A model that operators have seen several times."""
    model = random_model(**sizes)
    for _ in range(3):
        assert_fresh(model, "before")
    return model


def write_data(t):
    t.data.mul_(2)


def write_numpy(t):
    array = t.numpy()
    np.multiply(array, 2, out=array)


def write_dlpack(t):
    torch.from_dlpack(t).mul_(2)


def write_apply(t):
    t.apply_(lambda x: 2 * x)


def write_map(t):
    t.map_(t.clone(), lambda x, y: x + y)


def write_storage(t):
    """As FSDP does: the memory goes, other memory comes."""
    values = t.clone()
    t.untyped_storage().resize_(0)
    t.untyped_storage().resize_(values.nbytes)
    t.data.copy_(2 * values)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("write", [write_data, write_numpy, write_dlpack, write_apply, write_map, write_storage])
def test_writes_that_are_not_counted(random_model, write, name):
    model = used(random_model, V=41, K=3)
    tensor = getattr(model, name)
    before, version = results(model), tensor._version
    write(tensor)
    assert tensor._version == version
    assert_fresh(model, name)
    assert any(not torch.equal(a, b) for a, b in zip(results(model), before, strict=False))


@pytest.mark.parametrize("name", FLOATS)
def test_a_constant_without_memory_is_refused(random_model, name):
    model = used(random_model, V=41, K=3)
    tensor = getattr(model, name)
    values = tensor.clone()
    tensor.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="has no memory"):
        results(model)
    tensor.untyped_storage().resize_(values.nbytes)
    tensor.copy_(values)
    assert_fresh(model)


@pytest.mark.parametrize("name", FLOATS)
def test_one_value_is_seen_after_a_round(random_model, name):
    """One value of many, written where nothing shows it: as many calls later as the constants have pieces, at the
    latest."""
    model = used(random_model, V=2000, K=8)
    tensor = getattr(model, name)
    pieces = sum(-(-t.nbytes // 4096) for t in (*model.constants, *model.embedding))
    tensor.numpy().reshape(-1)[tensor.numel() // 2 + 1] += 0.5
    for _ in range(pieces + 1):
        ops.flame_head(*model.inputs(1), *model.constants, *model.embedding)
    assert_fresh(model, name)


@pytest.mark.parametrize("optimiser", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad])
@pytest.mark.parametrize("as_parameter", [True, False])
def test_fused_optimisers(random_model, optimiser, as_parameter):
    """Of a constant that is optimised, and of one that was: nothing is kept for it, so a step of any size is seen."""
    for name in FLOATS[:5]:
        model = random_model(V=41, K=3)
        tensor = getattr(model, name)
        tensor = nn.Parameter(tensor) if as_parameter else tensor.requires_grad_()
        setattr(model, name, tensor)
        optim = optimiser([tensor], lr=0.1, fused=True)
        for step in range(3):
            for _ in range(3):
                assert_fresh(model, name)
            tensor.grad = torch.zeros_like(tensor)
            tensor.grad.view(-1)[step] = 1
            version = tensor._version
            optim.step()
            assert tensor._version == version
        tensor.requires_grad_(False)
        assert_fresh(model, name)
        tensor.grad.fill_(1)
        optim.step()
        assert_fresh(model, name)


def test_layers_of_ours_follow_their_buffers():
    """Whatever is asked of a layer, it is of the same values: `landmarks` no other ones than `forward`."""
    from ringnet_ext.flame import FLAME, builtin_head

    flame = FLAME(builtin_head(), shape_params=4, expression_params=2, dtype=torch.float64)
    shape = torch.randn(2, 4, dtype=torch.float64)
    for _ in range(3):
        before = flame(shape).landmarks, flame.landmarks(shape)
    flame.v_template.data.mul_(2)
    flame.shapedirs.data.mul_(2)
    after = flame(shape).landmarks, flame.landmarks(shape)
    torch.testing.assert_close(after[0], after[1])
    for a, b in zip(after, before, strict=False):
        assert not torch.allclose(a, b)


def test_what_is_written_as_it_was_is_not_prepared_again(random_model, built):
    """DistributedDataParallel writes all buffers anew at every step."""
    model = used(random_model)
    built.clear()
    for t in (*model.constants, *model.embedding):
        version = t._version
        t.copy_(t.clone())
        assert t._version > version
    assert_fresh(model)
    assert not built
    model.shapedirs[-1, -1, -1] += 1e-3  # what is counted is seen at once, be it one value
    assert_fresh(model)


@pytest.fixture
def built(monkeypatch) -> list[str]:
    """What has been prepared, in order."""
    names = []
    for cache in _cache.Cache.all:
        build = cache._build
        monkeypatch.setattr(cache, "_build", lambda *a, build=build: names.append(build.__name__) or build(*a))
    return names


def prepared() -> int:
    """How many prepared models are kept."""
    return sum(map(len, _cache.Cache.all))


def test_every_counted_write_shows_in_the_digests():
    """Of one value and of two, wherever they are in a piece: among them sign bits, whose sums cancel each other."""
    words = torch.randint(2**62, (3 * 512 + 5,))  # three pieces of 4 KiB and a rest
    entries, key = {}, core.key((words,), ())

    def look() -> bool:
        """Whether the values are as they were when they were looked at last."""
        same = core.find(entries, (words,), (), True) is not None
        if not same:
            entries[key] = SimpleNamespace(marks=core.Marks((words,), lambda _: None))
        return same

    look(), look()
    assert look()
    sign = torch.tensor(-(2**63))
    generator = torch.Generator().manual_seed(0)
    for first, distance, bit in torch.randint(512, (400, 3), generator=generator).tolist():
        places = list({first * 3 % len(words), (first * 3 + distance) % len(words)})
        for flipped in (sign, torch.tensor(1 << bit % 63)):
            words[places] ^= flipped
            assert not look(), (places, flipped)
            assert look()
            words.add_(0)  # counted, and nothing changed
            assert look()


@pytest.fixture
def swapping():
    """Modules swap tensors when they are converted or loaded, which must have no weak reference."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(before)


def test_swapped_constants(random_model):
    """Between two models in use, and for one that nobody else has."""
    one, other = used(random_model, V=41, K=3), used(random_model, V=41, K=3, seed=1)
    for name in FLOATS:
        torch.utils.swap_tensors(getattr(one, name), getattr(other, name))
        assert_fresh(one, name), assert_fresh(other, name)
    for name in FLOATS:
        torch.utils.swap_tensors(getattr(one, name), 2 * getattr(one, name))
        for _ in range(3):
            assert_fresh(one, name)
        version = getattr(one, name)._version
        getattr(one, name).view(-1)[-1] += 0.5  # what is counted is still seen, be it one value
        assert getattr(one, name)._version > version
        assert_fresh(one, name)


def test_models_go_with_their_tensors(random_model):
    """After a swap, too: then the values have another tensor."""
    gc.collect(), ops.clear_prepared()
    model = used(random_model)
    assert prepared()
    new = model.shapedirs.clone()
    torch.utils.swap_tensors(model.shapedirs, new)
    shape = _prepared.prepared_lbs._entries
    assert len(shape) == 1
    del new  # with the values that all was made of
    assert len(shape) == 0
    assert_fresh(model)
    del model
    gc.collect()
    floats = [e for cache in _cache.Cache.all if cache is not _prepared.joint_tree for e in cache._entries]
    assert not floats


@pytest.mark.parametrize("accelerated", [False, True])
def test_modules_of_smplx_are_converted_and_loaded_by_swapping(swapping, accelerated, monkeypatch):
    import smplx
    from smplx_models import arguments, body_model

    import ringnet_ext

    def vertices(module):
        given = {k: v.to(module.v_template) for k, v in arguments(module, "FLAME", 1).items()}
        return module(**given).vertices

    module = body_model("FLAME", 1)
    if accelerated:
        ringnet_ext.accelerate(module)
    else:
        monkeypatch.setattr(smplx.body_models, "lbs", ops.flame_lbs)
    for _ in range(3):
        before = vertices(module)
    state = {k: 0.5 * v if v.is_floating_point() else v for k, v in module.state_dict().items()}
    module.load_state_dict(state)
    fresh = copy.deepcopy(module)
    after = vertices(module)
    assert not torch.allclose(after, before, atol=1e-3)
    torch.testing.assert_close(after, vertices(fresh), rtol=0, atol=1e-6)
    for _ in range(3):
        torch.testing.assert_close(vertices(module.double()).float(), after, rtol=0, atol=1e-5)
        torch.testing.assert_close(vertices(module.float()), after, rtol=0, atol=1e-5)


def test_our_layer_is_converted_and_loaded_by_swapping(swapping):
    from ringnet_ext.flame import FLAME, builtin_head

    gc.collect(), ops.clear_prepared()
    flame = FLAME(builtin_head(), shape_params=4, expression_params=2)
    shape = torch.randn(2, 4)
    for _ in range(3):
        before = flame(shape)
    entries = prepared()
    flame.to(torch.float64)
    for _ in range(3):
        after = flame(shape.double())
    assert after.vertices.dtype == torch.float64
    torch.testing.assert_close(after.vertices.float(), before.vertices, rtol=0, atol=1e-6)
    torch.testing.assert_close(after.landmarks.float(), before.landmarks, rtol=0, atol=1e-6)
    assert prepared() <= entries  # the former models went with their tensors
    flame.load_state_dict({k: 2 * v if v.is_floating_point() else v for k, v in flame.state_dict().items()})
    doubled = flame(shape.double() / 2)
    torch.testing.assert_close(doubled.landmarks, flame.landmarks(shape.double() / 2), rtol=0, atol=1e-12)
    assert not torch.allclose(doubled.vertices, after.vertices, atol=1e-3)


def saved_and_loaded(t):
    file = io.BytesIO()
    torch.save(t, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t)), saved_and_loaded])
def test_used_constants_are_copied_and_saved_as_ever(random_model, way):
    model = used(random_model, V=41, K=3)
    original = model.shapedirs
    made = way(original)
    assert torch.equal(made, original) and type(made) is torch.Tensor
    for t in (
        (made,) if way is copy.copy else (made, original, made)
    ):  # which shares the memory, and counts its own writes
        model.shapedirs = t
        for _ in range(3):
            assert_fresh(model)
        t.view(-1)[0] += 0.5
        assert_fresh(model)


def test_a_joint_tree_made_anew_for_every_call_prepares_nothing(random_model, built):
    """As compiled code makes it that has folded constants."""
    model = used(random_model)
    built.clear()
    for _ in range(3):
        model.parents = model.parents.clone()
        assert_fresh(model)
    assert not built
    model.parents = torch.tensor([-1, 0, 0, 0, 0])
    assert_fresh(model)
    model.parents[4] = 3
    assert_fresh(model)


def test_compiled_code_that_has_folded_constants_prepares_once(random_model, built):
    import torch._inductor

    class Module(nn.Module):
        def __init__(self, model):
            super().__init__()
            for name in ("v_template", "shapedirs", "posedirs", "J_regressor", "parents", "lbs_weights"):
                self.register_buffer(name, getattr(model, name))

        def forward(self, betas, pose):
            return ops.flame_lbs(betas, pose, *self.buffers())

    model = random_model(V=41, K=3)
    inputs, compiled = model.inputs(2), torch.compile(Module(model).eval())
    want = reference.flame_lbs(*inputs, *model.constants)
    with torch.no_grad(), torch._inductor.config.patch(freezing=True):
        for _ in range(3):
            compiled(*inputs)
        built.clear()
        for _ in range(3):
            torch.testing.assert_close(tuple(compiled(*inputs)), want, rtol=0, atol=1e-12)
    assert not built


def collectives(rank: int, port: int, folder: str) -> None:
    import sys

    import torch.distributed as dist

    sys.path.insert(0, folder)
    from conftest import RandomModel

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    for name in FLOATS[:5]:
        model = used(RandomModel.make, V=41, K=3, seed=rank)
        tensor = getattr(model, name)
        dist.broadcast(tensor, 0)
        assert_fresh(model, f"broadcast {name}")
        dist.all_reduce(tensor)
        assert_fresh(model, f"all_reduce {name}")
        if rank == 0:
            dist.send(3 * tensor, 1)
        else:
            dist.recv(tensor, 0)
        assert_fresh(model, f"recv {name}")
        dist.scatter(tensor, [tensor * 2, tensor * 3] if rank == 0 else None, 0)
        assert_fresh(model, f"scatter {name}")

    class Module(nn.Module):
        def __init__(self, buffers):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))
            for name, t in buffers.items():
                self.register_buffer(name, t)

        def forward(self):
            model = RandomModel(**dict(self.named_buffers()))
            assert_fresh(model, "DistributedDataParallel")
            return self.weight * results(model)[0].sum()

    for alone in (
        False,
        True,
    ):  # several buffers are broadcast by way of another tensor, which is counted; one as it is
        module = Module(vars(RandomModel.make(V=41, K=3)))
        if alone:
            others = [name for name, _ in module.named_buffers() if name != "v_template"]
            nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, others)
        parallel = nn.parallel.DistributedDataParallel(module)
        for step in range(3):
            if rank == 0:
                module.v_template.mul_(1.5)
            value = parallel().item()
            values = [torch.zeros((), dtype=torch.float64) for _ in range(2)]
            dist.all_gather(values, torch.tensor(value, dtype=torch.float64))
            assert values[0] == values[1], (alone, step)
    dist.barrier()
    dist.destroy_process_group()
    # gloo's threads may still ask for the interpreter while it ends, which aborts the process: end without that.
    os._exit(0)


def test_collectives_and_distributed_data_parallel(tmp_path):
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(collectives, (port, str(Path(__file__).resolve().parents[1])), nprocs=2)
