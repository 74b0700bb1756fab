"""Whatever transforms, traces or compiles a call: its derivatives are the reference's, or an error, never silently
none."""

import warnings

import pytest
import torch
from heads import random_model as random_head
from torch.func import functionalize, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from ringnet_ext import ops
from ringnet_ext.flame import FLAME
from ringnet_ext.ops import reference


@pytest.fixture(autouse=True)
def nothing_is_lost_with_a_warning():
    """Autograd's for operators that it doesn't know, and vmap's for those that it calls one by one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(autograd kernel|performance drop).*")
        yield


class Functions:
    """Every operator on one model, as functions of betas and pose, with a batch or without."""

    def __init__(self, library, model):
        self.library, self.model = library, model

    def each(self, betas, pose):
        lib, m, B = self.library, self.model, betas.shape[0]
        vertices, joints = lib.flame_lbs(betas, pose, *m.constants)
        return (
            vertices,
            joints,
            lib.flame_landmarks(betas, pose, *m.constants, *m.embedding),
            *lib.flame_head(betas, pose, *m.constants, *m.embedding),
            lib.batch_rodrigues(pose.reshape(-1, 3)),
            lib.vertices2landmarks(
                vertices, m.faces, m.lmk_faces_idx.expand(B, -1), m.lmk_bary_coords.expand(B, -1, -1)
            ),
        )

    def __call__(self, betas, pose):
        return torch.cat([r.reshape(betas.shape[0], -1) for r in self.each(betas, pose)], 1)

    def one(self, betas, pose):
        return self(betas[None], pose[None])[0]

    def with_template(self, template, betas, pose):
        return torch.cat(self.library.flame_lbs(betas, pose, template, *self.model.fixed), 1)

    def one_with_template(self, template, betas, pose):
        return self.with_template(template, betas[None], pose[None])


def loss(function):
    return lambda *arguments: function(*arguments).pow(3).sum()


def backward(function, *inputs):
    inputs = [t.detach().clone().requires_grad_() for t in inputs]
    return torch.autograd.grad(loss(function)(*inputs), inputs)


def in_twos(*tensors):
    return [t.unflatten(0, (2, 2)) for t in tensors]


TRANSFORMS = {
    "grad": lambda f, b, p: grad(loss(f), (0, 1))(b, p),
    "vjp": lambda f, b, p: vjp(f, b, p)[1](f(b, p)),
    "jvp": lambda f, b, p: jvp(f, (b, p), (b + 1, p.sin())),
    "jacrev": lambda f, b, p: jacrev(f, (0, 1))(b[:2], p[:2]),
    "jacfwd": lambda f, b, p: jacfwd(f, (0, 1))(b[:1], p[:1]),
    "vmap": lambda f, b, p: vmap(f.one)(b, p),
    "vmap over a column": lambda f, b, p: vmap(f.one, (1, 0))(b.T.contiguous(), p),
    "vmap over the pose alone": lambda f, b, p: vmap(f.one, (None, 0))(b[0], p),
    "vmap of batches": lambda f, b, p: vmap(f)(*in_twos(b, p)),
    "vmap of vmap": lambda f, b, p: vmap(vmap(f.one))(*in_twos(b, p)),
    "vmap of grad": lambda f, b, p: vmap(grad(loss(f.one), (0, 1)))(b, p),
    "vmap of jacrev": lambda f, b, p: vmap(jacrev(f.one))(b[:2], p[:2]),
    "grad of vmap": lambda f, b, p: grad(loss(vmap(f.one)), (0, 1))(b, p),
    "grad of jvp": lambda f, b, p: grad(lambda b: jvp(lambda b: loss(f)(b, p), (b,), (b,))[1])(b),
    "backward through vmap": lambda f, b, p: backward(vmap(f.one), b, p),
    "functionalize": lambda f, b, p: backward(functionalize(f), b, p),
}
TEMPLATES = {
    "vmap": lambda f, t, b, p: vmap(f.one_with_template)(t, b, p),
    "vmap of grad": lambda f, t, b, p: vmap(grad(loss(f.one_with_template), (0, 1, 2)))(t, b, p),
    "vmap of grad, a shared one": lambda f, t, b, p: vmap(grad(loss(f.with_template), (0, 1, 2)), (None, 0, 0))(
        t[0], *in_twos(b, p)
    ),
    "jacrev": lambda f, t, b, p: jacrev(f.with_template)(t[0], b[:2], p[:2]),
    "jvp": lambda f, t, b, p: jvp(lambda t: f.with_template(t, b, p), (t,), (t + 1,)),
}


def assert_same(transform, model, *inputs):
    torch.testing.assert_close(
        transform(Functions(ops, model), *inputs), transform(Functions(reference, model), *inputs)
    )


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_derivatives_in_transforms(transform, random_model):
    model = random_model(V=20, K=3, J=3, L=4, C=2)
    for _ in range(2):  # of a model that is prepared too
        assert_same(transform, model, *model.inputs(4))


@pytest.mark.parametrize("transform", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_derivatives_by_a_template_in_transforms(transform, random_model):
    model = random_model(V=20, K=3, J=3)
    assert_same(transform, model, model.v_template + 0.1 * torch.randn(4, 20, 3, dtype=torch.float64), *model.inputs(4))


@pytest.mark.parametrize("index", range(8))
@pytest.mark.parametrize(
    "second",
    [
        lambda f, b: grad(lambda b: grad(loss(f))(b).sum())(b),
        lambda f, b: hessian(loss(f))(b),
        lambda f, b: jvp(grad(loss(f)), (b,), (b,)),
        lambda f, b: vmap(lambda b: jacrev(jacrev(lambda b: f(b[None])))(b))(b),
    ],
    ids=["grad of grad", "hessian", "jvp of grad", "vmap of jacrev of jacrev"],
)
def test_second_derivatives_in_transforms_raise(index, second, random_model):
    model = random_model(V=20, K=9, J=3, L=4, C=2)
    with pytest.raises(NotImplementedError, match="second derivative"):
        second(lambda x: Functions(ops, model).each(x, x)[index], model.inputs(2)[1])


def test_vmap_over_a_constant_is_refused_by_name(random_model):
    model = random_model()
    betas, pose = model.inputs(2)
    with pytest.raises(NotImplementedError, match="shapedirs: flame_lbs can't be vectorised over it"):
        vmap(lambda s: ops.flame_lbs(betas, pose, model.v_template, s, *model.fixed[1:]))(
            torch.stack([model.shapedirs] * 2)
        )


@pytest.mark.parametrize("constant", [None, "v_template", "shapedirs", "posedirs", "J_regressor", "lbs_weights"])
def test_raw_operators_are_differentiated(constant, random_model):
    model = random_model()
    betas, pose = (t.requires_grad_() for t in model.inputs(2))
    by = [betas, pose] + ([] if constant is None else [getattr(model, constant).requires_grad_()])
    call, points = (betas, pose, *model.constants), (*model.embedding, 1, True)
    raw = torch.ops.ringnet_ext
    vertices, joints, landmarks = reference.flame_head(*call, *model.embedding)
    for got, want in (
        (raw.lbs_forward(*call, True, False)[:2], (vertices, joints)),
        (raw.landmarks_forward(*call, *points, False)[:1], (landmarks,)),
        (raw.head_forward(*call, *points, False)[:3], (vertices, joints, landmarks)),
    ):
        weights = [torch.randn_like(w) for w in want]
        grads, expected = (torch.autograd.grad(r, by, weights, retain_graph=True) for r in (got, want))
        for a, b in zip(grads, expected, strict=True):
            torch.testing.assert_close(a, b)


# --- compilers and tracers, of the layer ---


@pytest.fixture
def layer():
    return FLAME(random_head(), shape_params=7, expression_params=4)


class Outputs(torch.nn.Module):
    """The layer's outputs as a plain tuple."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, *arguments):
        return tuple(self.layer(*arguments))


def codes(B, requires_grad=True):
    return [torch.randn(B, size).requires_grad_(requires_grad) for size in (7, 4, 3)]


def assert_same_step(module, layer, given):
    want, got = Outputs(layer)(*given), tuple(module(*given))
    weights = [torch.randn_like(w) for w in want]
    for a, b in zip(
        got + torch.autograd.grad(got, given, weights), want + torch.autograd.grad(want, given, weights), strict=True
    ):
        torch.testing.assert_close(a, b)


class Counting:
    """A backend that counts what it compiles."""

    compiled = 0

    def __call__(self, module, inputs):
        self.compiled += 1
        return torch._dynamo.backends.debugging.aot_eager(module, inputs)


@pytest.mark.parametrize("dynamic, most", [(True, 1), (None, 2)])
def test_one_graph_for_any_batch(layer, dynamic, most):
    torch._dynamo.reset()
    backend = Counting()
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend=backend)
    for B in range(2, 14):
        assert_same_step(compiled, layer, codes(B))
    assert backend.compiled == most


def test_exported_with_a_dynamic_batch(layer, tmp_path):
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(
        Outputs(layer), tuple(codes(4, False)), dynamic_shapes={"arguments": ({0: batch},) * 3}
    )
    torch.export.save(program, tmp_path / "layer.pt2")
    for module in (program.module(), torch.export.load(tmp_path / "layer.pt2").module()):
        for B in (2, 9):
            assert_same_step(module, layer, codes(B))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_traced(layer):
    traced = torch.jit.trace(Outputs(layer), tuple(codes(3, False)))
    for _ in range(3):  # TorchScript's profiler changes the graph
        assert_same_step(traced, layer, codes(3))


@pytest.mark.parametrize(
    "moves", ["template of each", "v_template", "shapedirs", "posedirs", "J_regressor", "lbs_weights"]
)
def test_compiled_where_the_formula_is_used(moves, random_model):
    model = random_model(V=50)
    torch._dynamo.reset()
    if moves == "template of each":
        model.v_template = model.v_template.expand(3, -1, -1).clone()
        moves = "v_template"
    constant = getattr(model, moves).requires_grad_()

    def function(betas, pose):
        head = ops.flame_head(betas, pose, *model.constants, *model.embedding)
        landmarks = ops.flame_landmarks(betas, pose, *model.constants, *model.embedding)
        return torch.cat([*ops.flame_lbs(betas, pose, *model.constants), *head, landmarks], 1)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    given = [t.requires_grad_() for t in model.inputs(3)]
    results = [
        (out := f(*given), *torch.autograd.grad(out.sin().sum(), (*given, constant))) for f in (compiled, function)
    ]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_buffers_may_be_swapped(layer):
    """As load_state_dict does where the user has asked for it."""
    other = FLAME(random_head(seed=1), shape_params=7, expression_params=4)
    given = codes(2, False)
    for _ in range(3):
        layer(*given)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        layer.load_state_dict(other.state_dict())
        torch.testing.assert_close(layer(*given), other(*given))
        layer.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    torch.testing.assert_close(
        layer(*(t.double() for t in given)).vertices, other.double()(*(t.double() for t in given)).vertices
    )
