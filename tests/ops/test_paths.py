"""The fast path to the kernels: taken by the usual call, by no other, and never to be told from the dispatcher path by
its results."""

import subprocess
import sys
from pathlib import Path

import _ringnet_core as core
import pytest
import torch

from ringnet_ext import ops
from ringnet_ext.ops import _checks, _rodrigues, reference


def lbs(model, betas, pose):
    return torch.cat(ops.flame_lbs(betas, pose, *model.constants), dim=1)


def landmarks(model, betas, pose):
    return ops.flame_landmarks(betas, pose, *model.constants, *model.embedding)


def head(model, betas, pose):
    return torch.cat(ops.flame_head(betas, pose, *model.constants, *model.embedding), dim=1)


def expected(call, model, betas, pose):
    vertices, joints, points = reference.flame_head(betas, pose, *model.constants, *model.embedding)
    return {
        lbs: torch.cat((vertices, joints), dim=1),
        landmarks: points,
        head: torch.cat((vertices, joints, points), dim=1),
    }[call]


each = pytest.mark.parametrize("call", [lbs, landmarks, head])


@pytest.fixture
def dispatcher_path(monkeypatch):
    """How often a kernel was called by the dispatcher: all of them check their arguments there."""
    calls = []
    check = _checks.lbs_call
    monkeypatch.setattr(_checks, "lbs_call", lambda *a: calls.append(a) or check(*a))
    return calls


@pytest.fixture(params=[True, False], ids=["exchange", "attributes"])
def tensors_read(request):
    """Both ways to read a tensor; PyTorch before 2.10 has only the second."""
    core.use_exchange(request.param)
    yield
    core.use_exchange(True)


def inputs(model, B=3):
    return [t.requires_grad_() for t in model.inputs(B)]


def step(call, model, args, weight=None):
    out = call(model, *args)
    weight = torch.linspace(-1, 1, out.numel()).to(out).view_as(out) if weight is None else weight
    return (out, *torch.autograd.grad(out, args, weight))


class Log(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen = getattr(self, "seen", []) + [str(func)]
        return func(*args, **(kwargs or {}))


@each
def test_the_usual_call_takes_the_fast_path(call, random_model, dispatcher_path, tensors_read):
    model = random_model()
    args = inputs(model)
    first = step(call, model, args)
    assert dispatcher_path
    step(call, model, args)  # what comes back is kept
    dispatcher_path.clear()
    second = step(call, model, args)
    with torch.no_grad():
        third = call(model, *args)
    step(call, model, [torch.nn.Parameter(t) for t in args])
    assert not dispatcher_path
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)) and torch.equal(first[0], third)


@pytest.mark.parametrize("shape", [(3, 5, 3, 3), (3, 45)])
def test_matrices_take_the_fast_path(shape, random_model, dispatcher_path):
    model = random_model()
    betas, pose = model.inputs(3)
    matrices = reference.batch_rodrigues(pose.reshape(-1, 3)).reshape(shape).requires_grad_()
    results = []
    for _ in range(3):
        dispatcher_path.clear()
        vertices, _ = ops.flame_lbs(betas, matrices, *model.constants, pose2rot=False)
        results.append((vertices, *torch.autograd.grad(vertices.sin().sum(), matrices)))
    assert not dispatcher_path
    assert results[1][1].shape == shape
    assert all(torch.equal(a, b) for later in results[1:] for a, b in zip(results[0], later, strict=False))


@each
def test_whoever_watches_sees_the_operators(call, random_model):
    model = random_model()
    args = inputs(model)
    step(call, model, args)
    plain = step(call, model, args)
    name = {lbs: "lbs", landmarks: "landmarks", head: "head"}[call]
    with Log() as log:
        watched = step(call, model, args)
    assert {f"ringnet_ext.{name}_forward.default", f"ringnet_ext.{name}_backward.default"} <= set(log.seen)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step(call, model, args)
    seen = {event.key for event in profile.key_averages()}
    assert {f"ringnet_ext::{name}_forward", f"ringnet_ext::{name}_backward"} <= seen
    out = call(model, *args)
    with Log() as log:  # from here on
        later = torch.autograd.grad(out, args, torch.linspace(-1, 1, out.numel()).to(out).view_as(out))
    assert f"ringnet_ext.{name}_backward.default" in log.seen
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(plain, watched, (out, *later), strict=True))


@each
def test_gradients_of_every_kind(call, random_model):
    model = random_model()
    args = inputs(model)
    call(model, *args)
    out = call(model, *args)
    weight = torch.randn_like(out)
    want = torch.autograd.grad(expected(call, model, *args), args, weight)

    class Own(torch.Tensor):
        pass

    strided = torch.stack([weight, weight], -1)[..., 1]
    for given in (weight, strided, torch._neg_view(-weight), weight.as_subclass(Own)):
        for a, b in zip(torch.autograd.grad(out, args, given, retain_graph=True), want, strict=True):
            torch.testing.assert_close(a, b)
    batch = torch.autograd.grad(out, args, torch.stack([weight, -weight]), retain_graph=True, is_grads_batched=True)
    for a, b in zip(batch, want, strict=True):
        torch.testing.assert_close(a, torch.stack([b, -b]))
    with pytest.raises(RuntimeError, match="shape"):
        torch.autograd.grad(out, args, weight[:-1])


@each
def test_inputs_of_every_kind(call, random_model):
    """What isn't as its memory has it: negated, a subclass, in another type."""
    model = random_model()
    betas, pose = model.inputs(3)
    want = call(model, betas, pose)

    class Own(torch.Tensor):
        pass

    assert torch.equal(call(model, torch._neg_view(-betas), pose), want)
    assert torch.equal(call(model, betas, torch._neg_view(-pose)), want)
    assert torch.equal(call(model, betas.as_subclass(Own), pose).as_subclass(torch.Tensor), want)
    with pytest.raises(TypeError, match="betas: expected float64, got float32"):
        call(model, betas.float(), pose)
    model.shapedirs = torch._neg_view(-model.shapedirs)
    for _ in range(2):
        assert torch.equal(call(model, betas, pose), want)


@each
@pytest.mark.parametrize("constant", ["v_template", "shapedirs", "posedirs", "J_regressor", "lbs_weights"])
def test_a_constant_that_comes_to_require_grad(call, constant, random_model):
    model = random_model()
    args = [*inputs(model), getattr(model, constant)]
    for _ in range(2):
        call(model, *args[:2])
    args[2].requires_grad_()
    out, want = call(model, *args[:2]), expected(call, model, *args[:2])
    weight = torch.randn_like(out)
    for a, b in zip(torch.autograd.grad(out, args, weight), torch.autograd.grad(want, args, weight), strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        args[2].mul_(1.5)
        torch.testing.assert_close(call(model, *args[:2]), expected(call, model, *args[:2]))
    args[2].requires_grad_(False)
    torch.testing.assert_close(call(model, *args[:2]), expected(call, model, *args[:2]))


@each
def test_whatever_happens_to_a_constant_is_seen(call, random_model, tensors_read):
    model = random_model()
    args = model.inputs(2)

    def check():
        for _ in range(2):
            torch.testing.assert_close(call(model, *args), expected(call, model, *args))

    check()
    model.shapedirs.mul_(2)
    check()
    model.lbs_weights.data = model.lbs_weights.data.flip(0)
    check()
    model.faces.set_(model.faces.flip(0).clone())
    check()
    # The same memory read otherwise: no write, no new address, no other shape.
    weights = model.lbs_weights = torch.rand(101, 101, dtype=torch.float64)[:, :5].clone().as_strided((101, 5), (5, 1))
    check()
    weights.data = weights.data.as_strided((101, 5), (1, 101))
    check()
    for wrong in (None, weights.numpy()):
        model.lbs_weights = wrong
        with pytest.raises(TypeError, match="lbs_weights: expected a tensor, got "):
            call(model, *args)


@each
def test_the_graph_outlives_the_model(call, random_model):
    model = random_model()
    args = inputs(model)
    want = step(call, model, args)[1:]
    out = call(model, *args)
    weight = torch.linspace(-1, 1, out.numel()).to(out).view_as(out)
    del model
    ops.clear_prepared()
    for a, b in zip(torch.autograd.grad(out, args, weight, retain_graph=True), want, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(torch.autograd.grad(out, args[0], weight)[0], want[0])


def rodrigues(model, betas, pose):
    return ops.batch_rodrigues(pose.reshape(-1, 3)).flatten(0, 1)[None].expand(betas.shape[0], -1, -1)


def points(model, betas, pose):
    return ops.vertices2landmarks(
        pose.unflatten(1, (5, 3)), model.faces % 5, model.lmk_faces_idx, model.lmk_bary_coords
    )


def formula(call, model, betas, pose):
    """The call's results by the reference."""
    if call is points:
        return reference.vertices2landmarks(
            pose.unflatten(1, (5, 3)), model.faces % 5, model.lmk_faces_idx, model.lmk_bary_coords
        )
    if call is rodrigues:
        return reference.batch_rodrigues(pose.reshape(-1, 3)).flatten(0, 1)[None].expand(betas.shape[0], -1, -1)
    return expected(call, model, betas, pose)


every = pytest.mark.parametrize("call", [lbs, landmarks, head, rodrigues, points])
warm = pytest.mark.parametrize("calls_before", [0, 2], ids=["dispatcher path", "fast path"])


@pytest.fixture
def session(random_model):
    """A model, arguments, a weight, and the gradients that a call has by the reference."""

    def make(call, calls_before):
        model = random_model()
        args = inputs(model)
        out = formula(call, model, *args)
        weight = torch.randn_like(out)
        want = torch.autograd.grad(out, args, weight, allow_unused=True)
        for _ in range(calls_before):
            call(model, *args)
        return model, args, weight, want

    return make


def assert_gradients(out, args, weight, want):
    for a, b in zip(torch.autograd.grad(out, args, weight, allow_unused=True), want, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


SAME_VALUES = {
    "transposed": lambda t: t.T.contiguous().T,
    "spread": lambda t: torch.stack([t, t], -1)[..., 0],
    "with gaps": lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],
    "not aligned": lambda t: torch.cat([t.flatten()[:1], t.flatten()])[1:].view(t.shape),
    "negated": lambda t: torch._neg_view(-t),
}
OTHERS = {
    "float": lambda t: t.float(), "half": lambda t: t.half(), "cut": lambda t: t[:1], "flat": lambda t: t.flatten(),
    "meta": lambda t: t.to("meta"),
}  # fmt: skip


@every
@warm
def test_saved_tensors_that_come_back_otherwise(call, calls_before, session):
    """From a hook that packs or offloads them: in any layout right, in another shape, type or place refused by name."""
    for back in SAME_VALUES.values():
        model, args, weight, want = session(call, calls_before)
        packed = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t.clone(), back):
            out = call(model, *args)
        assert packed or call is points  # which keeps nothing but a shape
        assert_gradients(out, args, weight, want)
    for back in OTHERS.values() if call is not points else ():
        model, args, weight, want = session(call, calls_before)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, back):
            out = call(model, *args)
        with pytest.raises((TypeError, ValueError), match=r"^\w+: expected"):
            torch.autograd.grad(out, args, weight)


@every
@warm
def test_checkpointing(call, calls_before, session):
    for reentrant in (False, True):
        model, args, weight, want = session(call, calls_before)
        out = torch.utils.checkpoint.checkpoint(lambda *a: call(model, *a), *args, use_reentrant=reentrant)
        assert_gradients_or_grad(out, args, weight, want, reentrant)


def assert_gradients_or_grad(out, args, weight, want, reentrant):
    if not reentrant:
        return assert_gradients(out, args, weight, want)
    out.backward(weight)  # reentrant checkpointing knows no other
    for a, b in zip(args, want, strict=True):
        torch.testing.assert_close(
            a.grad if b is not None else torch.zeros(()), b if b is not None else torch.zeros(())
        )


@every
@warm
def test_what_leaves_values_alone_is_no_modification(call, calls_before, session):
    """Between forward and backward, constants are shared among processes, or become trainable."""
    model, args, weight, want = session(call, calls_before)
    model.parents = model.parents.int()
    call(model, *args)
    out = call(model, *args)
    for constant in vars(model).values():
        constant.share_memory_()
    assert_gradients(out, args, weight, want)
    out = call(model, *args)
    for constant in vars(model).values():
        if constant.is_floating_point():
            constant.requires_grad_()
    assert_gradients(out, args, weight, want)


@every
@warm
def test_a_gradient_without_memory(call, calls_before, session):
    model, args, weight, want = session(call, calls_before)
    zero = torch._efficientzerotensor(weight.shape, dtype=weight.dtype)
    assert_gradients(call(model, *args), args, zero, [g if g is None else torch.zeros_like(g) for g in want])


WITHOUT_PRIVATE_NAMES = """
import sys, torch
sys.path.insert(0, "tests")
import torch._C._functorch, torch._C._autograd, torch._functorch.utils
from torch.autograd import forward_ad
PLACES = {
    "_AutoDispatchBelowAutograd": torch._C, "_get_tracing_state": torch._C, "_len_torch_dispatch_stack": torch._C,
    "_len_torch_function_stack": torch._C, "_profiler_enabled": torch._C._autograd,
    "peek_interpreter_stack": torch._C._functorch,
    "enable_single_level_autograd_function": torch._functorch.utils, "_current_level": forward_ad,
}
names = sys.argv[1:] or list(PLACES)
taken = {name: getattr(PLACES[name], name) for name in names}
for name in names:
    delattr(PLACES[name], name)
from ringnet_ext import ops
for name in names:  # PyTorch itself needs them
    setattr(PLACES[name], name, taken[name])
from conftest import RandomModel
model = RandomModel.make(V=20, K=3, J=3, L=4, C=2)
args = [t.requires_grad_() for t in model.inputs(2)]

def step(library, compiled=False):
    f = lambda *a: torch.cat(library.flame_head(*a, *model.constants, *model.embedding), 1)
    f = torch.compile(f, fullgraph=True, backend="aot_eager") if compiled else f
    out = f(*args)
    return out, *torch.autograd.grad(out.sin().sum(), args)

for got in (step(ops), step(ops), step(ops, compiled=True)):
    for a, b in zip(got, step(ops.reference), strict=True):
        torch.testing.assert_close(a, b)
"""


@pytest.mark.parametrize("names", [[], ["_current_level"]], ids=["all", "the level of forward mode"])
def test_private_names_of_pytorch_have_a_fall_back(names):
    root = str(Path(__file__).resolve().parents[2])
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_PRIVATE_NAMES, *names], cwd=root, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def test_one_gradient_of_two_outputs(random_model):
    model = random_model()
    args = inputs(model)
    for _ in range(2):
        _vertices, joints = ops.flame_lbs(*args, *model.constants)
        got = torch.autograd.grad(joints.sin().sum(), args)
        want = torch.autograd.grad(reference.flame_lbs(*args, *model.constants)[1].sin().sum(), args)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)


def rotations(r, weight):
    matrices = ops.batch_rodrigues(r)
    return matrices, *torch.autograd.grad(matrices, r, weight)


def test_rotations_take_the_fast_path(monkeypatch, tensors_read):
    r, weight = torch.randn(7, 3, requires_grad=True), torch.randn(7, 3, 3)
    with Log() as log:
        want = rotations(r, weight)
    assert {"ringnet_ext.rodrigues_forward.default", "ringnet_ext.rodrigues_backward.default"} <= set(log.seen)
    for name in ("forward", "backward"):
        monkeypatch.setattr(_rodrigues.RODRIGUES, name, None)
    for given in (r, torch.nn.Parameter(r.detach())):
        assert all(torch.equal(a, b) for a, b in zip(rotations(given, weight), want, strict=True))
    with torch.no_grad():
        assert torch.equal(ops.batch_rodrigues(r), want[0])


def test_rotations_of_every_kind():
    r, weight = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 3, 3, dtype=torch.float64)
    leaf = r.clone().requires_grad_()
    want = torch.autograd.grad(reference.batch_rodrigues(leaf), leaf, weight)[0]
    spread, flipped = torch.stack([weight, weight], -1)[..., 1], torch._neg_view(-weight)
    for given in (weight, spread, flipped, torch.ones((), dtype=torch.float64).expand(7, 3, 3)):
        reached = (
            want if given.stride() != (0, 0, 0) else torch.autograd.grad(reference.batch_rodrigues(leaf).sum(), leaf)[0]
        )
        torch.testing.assert_close(rotations(leaf, given)[1], reached)
    matrices = ops.batch_rodrigues(leaf)
    with Log() as log:  # of the backward pass alone
        later = torch.autograd.grad(matrices, leaf, weight)[0]
    torch.testing.assert_close(later, want)
    assert "ringnet_ext.rodrigues_backward.default" in log.seen
    matrices = ops.batch_rodrigues(r)
    for given in (
        torch._neg_view(-r),
        torch.stack([r, r], -1)[..., 1],
        r.T.contiguous().T,
        torch.cat([r, r], 1)[:, :3],
    ):
        assert torch.equal(ops.batch_rodrigues(given), matrices)
    for wrong, error in ((None, TypeError), (r.numpy(), TypeError), (r.long(), TypeError), (r[0], ValueError)):
        with pytest.raises(error, match="rot_vecs: expected"):
            ops.batch_rodrigues(wrong)
