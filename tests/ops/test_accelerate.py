"""smplx's body models on the operators: by `accelerate`, and by replacing `lbs`, which joins some directions anew for
every call."""

import copy
import io
import pickle
import re

import pytest
import smplx
import torch
from smplx_models import SIZES, arguments, body_model

import ringnet_ext
from ringnet_ext import ops
from ringnet_ext.ops import _cache, _prepared

CLASSES = pytest.mark.parametrize("name", list(SIZES))


def run(module, given):
    """Vertices, joints, and the gradients of every argument."""
    given = {name: value.detach().to(module.v_template).requires_grad_() for name, value in given.items()}
    output = module(**given)
    weights = torch.linspace(-1, 1, output.vertices.numel()).to(output.vertices).view_as(output.vertices)
    ((output.vertices * weights).mean() + output.joints.square().mean()).backward()
    return output.vertices.detach(), output.joints.detach(), {name: value.grad for name, value in given.items()}


def assert_close(ours, exact):
    for mine, want in zip(ours[:2], exact[:2], strict=False):
        torch.testing.assert_close(mine.double(), want, rtol=0, atol=3e-6)
    for key, gradient in ours[2].items():
        assert (gradient - exact[2][key]).norm() <= 2e-5 * exact[2][key].norm(), key


@CLASSES
def test_same_results_and_gradients(name, monkeypatch):
    """Of the class unchanged, in float64; whether directions are read as they lie (first call) or packed."""
    module = body_model(name, 2)
    given = arguments(module, name, 2)
    exact = run(body_model(name, 2, dtype=torch.float64), given)
    calls = []
    with monkeypatch.context() as patch:
        patch.setattr(smplx.body_models, "lbs", lambda *a, **k: calls.append(1) or ops.flame_lbs(*a, **k))
        first, again = run(module, given), [run(module, given) for _ in range(2)]
    assert len(calls) == 3
    assert_close(first, exact)
    state, kind, words = dict(module.state_dict()), type(module), repr(module)
    acceleration = ringnet_ext.accelerate(module)
    faster = [run(module, given) for _ in range(3)]
    for later in (*again, *faster):
        assert torch.equal(later[0], first[0]) and torch.equal(later[1][:, :5], first[1][:, :5])
        for key, gradient in later[2].items():
            torch.testing.assert_close(
                gradient, first[2][key], rtol=1e-6, atol=1e-9
            )  # beyond the operator, of extra joints
    assert isinstance(module, kind) and repr(module) == words
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items()) and len(state) == len(
        module.state_dict()
    )
    acceleration.undo()
    assert type(module) is kind
    assert_close(run(module, given), exact)


@pytest.mark.parametrize("name", ["FLAME", "SMPLX"])
def test_directions_joined_for_every_call_are_never_packed(name, monkeypatch):
    """Everything else is, once."""
    module = body_model(name, 1)
    given = arguments(module, name, 1)
    packed = []
    kind = _prepared._DIRECTIONS[torch.float32]
    pack = kind.pack
    monkeypatch.setattr(kind, "pack", lambda source, **rest: packed.append(source.ndim) or pack(source=source, **rest))
    with monkeypatch.context() as patch:
        patch.setattr(smplx.body_models, "lbs", ops.flame_lbs)
        for _ in range(5):
            run(module, given)
    assert packed == [2]  # posedirs
    packed.clear()
    ringnet_ext.accelerate(module)
    for _ in range(5):
        run(module, given)
    assert packed == [3]  # now the joined ones, too


def test_a_template_new_at_every_call_prepares_nothing_else(random_model, monkeypatch):
    model = random_model()
    inputs = model.inputs(1)
    for _ in range(3):
        ops.flame_head(*inputs, *model.constants, *model.embedding)
    built = []
    for cache in _cache.Cache.all:
        build = cache._build
        monkeypatch.setattr(cache, "_build", lambda *a, build=build: built.append(build.__name__) or build(*a))
    for _ in range(3):
        template = model.v_template.clone()
        ops.flame_lbs(*inputs, template, *model.fixed)
        ops.flame_head(*inputs, template + 0, *model.fixed, *model.embedding)
    assert set(built) == {"PreparedMesh", "PreparedHead"}


def test_changed_buffers_are_noticed():
    module = body_model("FLAME", 1)
    given = arguments(module, "FLAME", 1)
    ringnet_ext.accelerate(module)
    with torch.no_grad():
        for change in (
            lambda: module.expr_dirs.mul_(2),
            lambda: module.shapedirs.data.mul_(2),
            lambda: setattr(module, "expr_dirs", module.expr_dirs.flip(0)),
            lambda: module.load_state_dict(
                {k: 0.5 * v if v.is_floating_point() else v for k, v in module.state_dict().items()}
            ),
            lambda: module.double(),
            lambda: module.float(),
        ):
            for _ in range(3):
                before = module(**{k: v.to(module.v_template) for k, v in given.items()}).vertices
            change()
            given = {k: v.to(module.v_template) for k, v in given.items()}
            values = module(**given).vertices
            assert values.dtype != before.dtype or not torch.equal(values, before)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module, "__class__", smplx.FLAME)
                torch.testing.assert_close(values, module(**given).vertices, rtol=0, atol=1e-5)


def test_directions_that_require_a_gradient_get_it():
    module, plain = body_model("FLAME", 1), body_model("FLAME", 1)
    ringnet_ext.accelerate(module)
    for m in (module, plain):
        given = arguments(m, "FLAME", 1)
        m(**given)
        m.expr_dirs.requires_grad_()
        m(**given).vertices.square().sum().backward()
    torch.testing.assert_close(module.expr_dirs.grad, plain.expr_dirs.grad, rtol=1e-4, atol=1e-6)


class Body(smplx.SMPL):
    """As projects derive their own."""

    def forward(self, *args, scale=1.0, **kwargs):
        output = super().forward(*args, **kwargs)
        output.vertices = output.vertices * scale
        return output


def test_modules_inside_derived_classes_copies_and_pickles(monkeypatch):
    monkeypatch.setattr(smplx, "Body", Body, raising=False)
    body = body_model("SMPL", 1)
    body.__class__ = Body
    network = torch.nn.ModuleDict({"body": body, "hand": body_model("MANO", 1), "other": torch.nn.Linear(2, 2)})
    given = arguments(body, "SMPL", 1)
    want = body(**given, scale=3.0).vertices
    calls = []
    monkeypatch.setattr(ops, "flame_lbs", lambda *a, **k: calls.append(1) or ringnet_ext.flame_lbs(*a, **k))
    ringnet_ext.accelerate.__globals__["_accelerated"].cache_clear()
    acceleration = ringnet_ext.accelerate(network)
    assert list(acceleration.modules) == ["body", "hand"] and type(network["other"]) is torch.nn.Linear
    words = str(acceleration)
    assert "body (Body)" in words and "hand (MANO)" in words and "lbs" in words
    assert "shapedirs and expr_dirs are joined once" in str(ringnet_ext.accelerate(body_model("FLAME", 1)))
    again = ringnet_ext.accelerate(network)  # does no harm
    buffer = io.BytesIO()
    torch.save(network, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=False)
    for module in (body, copy.deepcopy(network)["body"], pickle.loads(pickle.dumps(body)), saved["body"]):
        calls.clear()
        torch.testing.assert_close(module(**given, scale=3.0).vertices, want, rtol=0, atol=1e-5)
        assert calls and isinstance(module, Body)
    again.undo()
    assert type(body) is Body and type(network["hand"]) is smplx.MANO
    calls.clear()
    assert torch.equal(body(**given, scale=3.0).vertices, want) and not calls
    acceleration.undo()
    ringnet_ext.accelerate.__globals__["_accelerated"].cache_clear()


def test_layers_of_smplx():
    layer = body_model("SMPL", layer=True)
    betas, rotations = torch.randn(2, 10), ops.batch_rodrigues(0.3 * torch.randn(48, 3)).view(2, 24, 3, 3)
    given = dict(betas=betas, global_orient=rotations[:, :1], body_pose=rotations[:, 1:])
    want = layer(**given).vertices
    ringnet_ext.accelerate(layer)
    torch.testing.assert_close(layer(**given).vertices, want, rtol=0, atol=1e-5)


def test_what_has_no_body_model():
    with pytest.raises(ValueError, match=re.escape("module: expected one of smplx's body models") + ".*got Linear"):
        ringnet_ext.accelerate(torch.nn.Linear(2, 2))


def test_compiled():
    module = body_model("MANO", 1)
    given = arguments(module, "MANO", 1)
    want = module(**given).vertices
    ringnet_ext.accelerate(module)
    compiled = torch.compile(module, backend="eager")
    torch.testing.assert_close(compiled(**given).vertices, want, rtol=0, atol=1e-5)
