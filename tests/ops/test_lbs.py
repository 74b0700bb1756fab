"""flame_lbs, flame_landmarks and flame_head: values and gradients against the float64 formula, and the operator
contract."""

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

from ringnet_ext import ops
from ringnet_ext.ops import _prepared, reference

# V and B around the kernels' tiles and groups; the smallest sizes; no betas; one joint; SMPL-X's number of joints.
SIZES = [
    dict(V=1, K=1, J=1, B=1),
    dict(V=7, K=0, J=1, B=2),
    dict(V=8, K=3, J=2, B=3),
    dict(V=33, K=0, J=5, B=4),
    dict(V=101, K=7, J=5, B=9),
    dict(V=130, K=150, J=5, B=15),
    dict(V=96, K=10, J=55, B=2),
    dict(V=600, K=12, J=3, B=67),
]
VALUES = {torch.float32: 1e-6, torch.float64: 1e-14}
GRADIENTS = {torch.float32: 1e-5, torch.float64: 1e-13}


def relative(a, b):
    return float(
        (a.double().cpu() - b.double().cpu()).norm() / b.double().norm().clamp_min(0.03)
    )  # some are exactly zero


def leaves(*tensors):
    return [t.detach().clone().requires_grad_() for t in tensors]


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.mark.parametrize("size", SIZES, ids=lambda s: "-".join(f"{k}{v}" for k, v in s.items()))
@pytest.mark.parametrize("template", ["shared", "batch"])
@pytest.mark.parametrize("pose2rot", [True, False], ids=["axis-angle", "matrices"])
def test_lbs_matches_reference(device, dtype, size, template, pose2rot, random_model):
    B = size["B"]
    exact = random_model(**{k: v for k, v in size.items() if k != "B"})
    model = exact.to(device, dtype)
    betas, pose = exact.inputs(B)
    if not pose2rot:  # any matrices, not only rotations
        pose = torch.eye(3).repeat(B, len(exact.parents), 1, 1) + 0.3 * torch.randn(B, len(exact.parents), 3, 3)
        pose = pose.double()
    v_template = exact.v_template
    if template == "batch":
        v_template = v_template + 0.01 * torch.randn(B, *v_template.shape)
    args64 = leaves(betas, pose, v_template)
    args = leaves(*(t.to(device, dtype) for t in args64))
    args64 = leaves(*(t.double().cpu() for t in args))  # the reference sees the rounded inputs
    exact = model.to("cpu", torch.float64)
    got = ops.flame_lbs(*args, *model.fixed, pose2rot=pose2rot)
    want = reference.flame_lbs(*args64, *exact.fixed, pose2rot=pose2rot)
    scale = max(1.0, float(want[0].detach().abs().max()))
    for a, b in zip(got, want, strict=False):
        assert a.shape == b.shape and a.dtype == dtype
        assert float((a.double().cpu() - b).detach().abs().max()) <= VALUES[dtype] * scale
    weights = [torch.randn_like(w) for w in want]
    grads = torch.autograd.grad(got, args, [w.to(device, dtype) for w in weights])
    expected = torch.autograd.grad(want, args64, weights)
    for name, a, b in zip(("betas", "pose", "v_template"), grads, expected, strict=False):
        assert a.shape == b.shape
        if b.numel():
            assert relative(a, b) <= GRADIENTS[dtype], name


@pytest.mark.parametrize("B", [1, 2, 5, 70])
def test_local_directions(device, dtype, B, random_model):
    """Directions that are zero over many neighbouring vertices, as the kernels leave out: each kind of zero, and none
    at all."""
    exact = random_model(V=700, K=20, J=4)
    shapedirs, posedirs = exact.shapedirs.clone(), exact.posedirs.view(27, 700, 3).clone()
    shapedirs[:160, :, 3:] = 0
    shapedirs[160:400, :, ::2] = 0
    shapedirs[:, :, 7] = 0  # moves nothing at all
    shapedirs[:-1, :, 8] = 0  # moves the last vertex only
    shapedirs[320:480, :, 9], shapedirs[333, 1, 9] = 0, 0.01
    posedirs[9:18, 100:] = 0
    posedirs[:, 480:640] = 0
    shapedirs[480:640] = 0  # these move with the joints alone
    exact.shapedirs, exact.posedirs = shapedirs, posedirs.reshape(27, -1)
    model = exact.to(device, dtype)
    exact = model.to("cpu", torch.float64)
    args = leaves(*(t.to(device, dtype) for t in exact.inputs(B)), model.v_template)
    args64 = leaves(*(t.double().cpu() for t in args))
    got, want = ops.flame_lbs(*args, *model.fixed)[0], reference.flame_lbs(*args64, *exact.fixed)[0]
    assert float((got.double().cpu() - want).detach().abs().max()) <= VALUES[dtype]
    weight = torch.randn_like(want)
    grads = torch.autograd.grad(got, args, weight.to(device, dtype))
    for name, a, b in zip(
        ("betas", "pose", "v_template"), grads, torch.autograd.grad(want, args64, weight), strict=False
    ):
        assert relative(a, b) <= GRADIENTS[dtype], name
    # What was zero isn't when the model is prepared again.
    with torch.no_grad():
        model.shapedirs[:, :, 7] = 0.01
    assert float((ops.flame_lbs(*args, *model.fixed)[0] - got).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("size", SIZES, ids=lambda s: "-".join(f"{k}{v}" for k, v in s.items()))
@pytest.mark.parametrize("contour", [True, False], ids=["contour", "static"])
@pytest.mark.parametrize("pose2rot", [True, False], ids=["axis-angle", "matrices"])
def test_landmarks_match_reference(device, dtype, size, contour, pose2rot, random_model):
    exact = random_model(L=11, C=5, **{k: v for k, v in size.items() if k != "B"})
    model = exact.to(device, dtype)
    betas, pose = model.inputs(size["B"])
    if not pose2rot:
        pose = reference.batch_rodrigues(pose.reshape(-1, 3)).view(size["B"], -1, 3, 3)
    args, args64 = leaves(betas, pose), leaves(betas.double().cpu(), pose.double().cpu())
    exact = model.to("cpu", torch.float64)
    n, neck = (5 if contour else 3), min(1, len(exact.parents) - 1)
    got = ops.flame_landmarks(*args, *model.constants, *model.embedding[:n], neck_joint=neck, pose2rot=pose2rot)
    want = reference.flame_landmarks(
        *args64, *exact.constants, *exact.embedding[:n], neck_joint=neck, pose2rot=pose2rot
    )
    assert got.shape == (size["B"], 16 if contour else 11, 3) and got.dtype == dtype
    assert float((got.double().cpu() - want).detach().abs().max()) <= VALUES[dtype]
    # As large as for one point: a gradient that is exactly zero is a sum of many that cancel.
    weight = torch.randn_like(want) / want.shape[1] ** 0.5
    grads = torch.autograd.grad(got, args, weight.to(device, dtype))
    for a, b in zip(grads, torch.autograd.grad(want, args64, weight), strict=False):
        if b.numel():
            assert relative(a, b) <= GRADIENTS[dtype]


def test_as_close_as_eager_float32(device, random_model):
    exact = random_model(V=2000, K=150)
    model = exact.to(device, torch.float32)
    exact = model.to("cpu", torch.float64)
    betas, pose = model.inputs(16)
    weight = torch.randn(16, 2000, 3)
    errors = {}
    truth = None
    for name, f, m, dt in (
        ("truth", reference.flame_lbs, exact, torch.float64),
        ("eager", reference.flame_lbs, model, torch.float32),
        ("ours", ops.flame_lbs, model, torch.float32),
    ):
        args = leaves(betas.to(m.v_template.device, dt), pose.to(m.v_template.device, dt))
        vertices, joints = f(*args, *m.constants)
        grads = torch.autograd.grad(vertices, args, weight.to(vertices))
        results = [t.detach().double().cpu() for t in (vertices, joints, *grads)]
        truth = truth or results
        errors[name] = [float((a - b).norm()) for a, b in zip(results, truth, strict=False)]
    for ours, eager in zip(errors["ours"], errors["eager"], strict=False):
        assert ours <= 1.1 * eager


def test_smplx_agrees(random_model):
    smplx_lbs = pytest.importorskip("smplx.lbs")
    model = random_model(V=300, K=20)
    betas, pose = model.inputs(5)
    for a, b in zip(
        ops.flame_lbs(betas, pose, *model.constants), smplx_lbs.lbs(betas, pose, *model.constants), strict=False
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-7)  # smplx adds 1e-8 to every rotation vector
    vertices = ops.flame_lbs(betas, pose, *model.constants)[0]
    index, bary = model.lmk_faces_idx.repeat(5, 1), model.lmk_bary_coords.repeat(5, 1, 1)
    torch.testing.assert_close(
        ops.vertices2landmarks(vertices, model.faces, index, bary),
        smplx_lbs.vertices2landmarks(vertices, model.faces.clone(), index, bary),
    )


# --- properties ---


def test_zero_pose_gives_the_template(device, random_model):
    model = random_model().to(device)
    vertices, joints = ops.flame_lbs(
        torch.zeros_like(model.inputs(1)[0]), torch.zeros_like(model.inputs(1)[1]), *model.constants
    )
    torch.testing.assert_close(vertices[0], model.v_template)
    torch.testing.assert_close(joints[0], model.J_regressor @ model.v_template)


def test_rotating_the_root_rotates_the_mesh(device, random_model):
    model = random_model().to(device)
    betas, pose = model.inputs(3)
    pose[:, :3] = 0
    rest, joints = ops.flame_lbs(betas, pose, *model.constants)
    turned = pose.clone()
    turned[:, :3] = torch.tensor([0.3, -2.0, 0.7])
    R = ops.batch_rodrigues(turned[:, :3])
    root = joints[:, :1]
    vertices, _ = ops.flame_lbs(betas, turned, *model.constants)
    torch.testing.assert_close(vertices, (rest - root) @ R.mT + root)


def test_landmarks_equal_the_way_through_the_mesh(device, random_model):
    model = random_model(V=400, L=51, C=17).to(device)
    betas, pose = model.inputs(12)
    pose[:, :3] *= 2
    vertices, _ = ops.flame_lbs(betas, pose, *model.constants)
    index, bary = reference.landmark_points(pose, model.parents, *model.embedding[1:], 1, True)
    direct = ops.flame_landmarks(betas, pose, *model.constants, *model.embedding)
    torch.testing.assert_close(direct, ops.vertices2landmarks(vertices, model.faces, index, bary))
    # A template with a batch, or with a gradient, gives the same.
    template = model.v_template.expand(12, -1, -1)
    torch.testing.assert_close(direct, ops.flame_landmarks(betas, pose, template, *model.fixed, *model.embedding))


@pytest.mark.parametrize("contour", [True, False], ids=["contour", "static"])
@pytest.mark.parametrize("pose2rot", [True, False], ids=["axis-angle", "matrices"])
def test_head_is_mesh_and_landmarks(device, dtype, contour, pose2rot, random_model):
    """The mesh's same bits, landmarks on it, and the gradients of whichever results are used."""
    model = random_model(V=401, K=7, J=4 if contour else 5, L=134).to(device, dtype)
    model.faces[:134] = torch.arange(402, device=device).clamp_max(400).view(134, 3)
    model.lmk_faces_idx = torch.arange(
        134, device=device
    )  # every vertex, those at the borders of a kernel's blocks too
    args = leaves(*model.inputs(9))
    if not pose2rot:
        args = leaves(args[0], ops.batch_rodrigues(args[1].detach().view(-1, 3)).view(9, -1, 3, 3))
    embedding = model.embedding[: 5 if contour else 3]
    head = ops.flame_head(*args, *model.constants, *embedding, pose2rot=pose2rot)
    parts = (
        *ops.flame_lbs(*args, *model.constants, pose2rot=pose2rot),
        ops.flame_landmarks(*args, *model.constants, *embedding, pose2rot=pose2rot),
    )
    with torch.no_grad():
        unkept = ops.flame_head(*args, *model.constants, *embedding, pose2rot=pose2rot)
    weights = [torch.randn_like(part) for part in parts]
    assert all(torch.equal(a, b) for a, b in zip(head, unkept, strict=True))
    assert torch.equal(head[0], parts[0]) and torch.equal(head[1], parts[1])
    assert relative(head[2], parts[2]) <= VALUES[dtype]
    for used in ([0], [1], [2], [0, 2], [1, 2], [0, 1, 2]):
        got, want = (
            torch.autograd.grad([r[i] for i in used], args, [weights[i] for i in used], retain_graph=True)
            for r in (head, parts)
        )
        for a, b in zip(got, want, strict=False):
            assert relative(a, b) <= GRADIENTS[dtype]
    (template,) = leaves(model.v_template)  # the way of a template that is optimised
    for a, b in zip(ops.flame_head(*args, template, *model.fixed, *embedding, pose2rot=pose2rot), parts, strict=False):
        torch.testing.assert_close(a, b)
        assert torch.autograd.grad(a.sum(), template, retain_graph=True)[0].abs().sum() > 0


def test_contour_row_by_yaw(device, random_model):
    """Row = rounded yaw up to 39 degrees either way, the same in a y-up and a y-down frame, whatever the roll."""
    model = random_model().to(device)
    yaw = torch.tensor([0.0, 0.3, 5.2, -5.2, 38.7, -38.7, 60.0, -60.0])
    rows = torch.tensor([0, 0, 5, 44, 39, 78, 39, 78])
    B = len(yaw)
    zero = torch.zeros(B)
    about_y = reference.batch_rodrigues(torch.stack([zero, torch.deg2rad(yaw), zero], 1).double())
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    roll = reference.batch_rodrigues(torch.tensor([[0.0, 0.0, 0.6]], dtype=torch.float64))[0]
    betas = torch.zeros(B, 7, dtype=torch.float64, device=device)
    for frame in (torch.eye(3, dtype=torch.float64), flip, roll, roll @ flip):
        R = frame @ about_y
        assert reference.contour_rows(R).tolist() == rows.tolist()
        pose = torch.eye(3, dtype=torch.float64).repeat(B, 5, 1, 1)
        pose[:, 0] = R
        got = ops.flame_landmarks(betas, pose.to(device), *model.constants, *model.embedding, pose2rot=False)
        vertices, _ = ops.flame_lbs(betas, pose.to(device), *model.constants, pose2rot=False)
        r = rows.to(device)
        want = ops.vertices2landmarks(vertices, model.faces, model.contour_faces_idx[r], model.contour_bary_coords[r])
        torch.testing.assert_close(got[:, :4], want)


def test_contour_survives_not_a_number(device, random_model):
    model = random_model().to(device)
    betas, pose = model.inputs(2)
    pose[0] = float("nan")
    landmarks = ops.flame_landmarks(betas, pose, *model.constants, *model.embedding)
    assert landmarks[0].isnan().all() and landmarks[1].isfinite().all()


# --- autograd ---


def test_gradcheck(device, random_model):
    model = random_model(V=9, K=3, J=3, L=4, C=2).to(device)
    betas, pose = leaves(*model.inputs(2))
    (template,) = leaves(model.v_template)
    with torch.no_grad():
        pose[0] = 0  # exactly at rest
    assert torch.autograd.gradcheck(lambda *a: ops.flame_lbs(*a, *model.fixed), (betas, pose, template))
    assert torch.autograd.gradcheck(
        lambda b, p: ops.flame_landmarks(b, p, *model.constants, *model.embedding), (betas, pose), nondet_tol=0
    )
    assert torch.autograd.gradcheck(
        lambda b, p: ops.flame_head(b, p, *model.constants, *model.embedding), (betas, pose), nondet_tol=0
    )
    (batch_template,) = leaves(model.v_template.repeat(2, 1, 1))
    assert torch.autograd.gradcheck(
        lambda *a: ops.flame_landmarks(*a, *model.fixed, *model.embedding), (betas, pose, batch_template)
    )
    matrices = ops.batch_rodrigues(pose.detach().view(-1, 3)).view(2, 3, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda b, p: ops.flame_lbs(b, p, *model.constants, pose2rot=False), (betas, matrices)
    )


def test_gradcheck_without_betas(device, random_model):
    """K = 0: what is left of a model whose identity is in the template."""
    model = random_model(V=9, K=0, J=3, L=4, C=2).to(device)
    betas, pose = leaves(*model.inputs(2))
    assert torch.autograd.gradcheck(lambda p: ops.flame_lbs(betas, p, *model.constants), pose)
    assert torch.autograd.gradcheck(lambda p: ops.flame_landmarks(betas, p, *model.constants, *model.embedding), pose)
    assert torch.autograd.gradcheck(lambda p: ops.flame_head(betas, p, *model.constants, *model.embedding), pose)
    gradient, _ = torch.autograd.grad(ops.flame_lbs(betas, pose, *model.constants)[0].sum(), (betas, pose))
    assert gradient.shape == (2, 0)


@pytest.mark.parametrize("constant", ["shapedirs", "posedirs", "J_regressor", "lbs_weights"])
def test_constants_that_require_grad_are_differentiated(constant, random_model):
    model = random_model()
    betas, pose = model.inputs(2)
    setattr(model, constant, leaves(getattr(model, constant))[0])
    got = torch.autograd.grad(ops.flame_lbs(betas, pose, *model.constants)[0].pow(2).sum(), getattr(model, constant))
    want = torch.autograd.grad(
        reference.flame_lbs(betas, pose, *model.constants)[0].pow(2).sum(), getattr(model, constant)
    )
    torch.testing.assert_close(got, want)
    head = (betas, pose, *model.constants, *model.embedding)
    got = torch.autograd.grad(torch.cat(ops.flame_head(*head), 1).pow(2).sum(), getattr(model, constant))
    want = torch.autograd.grad(torch.cat(reference.flame_head(*head), 1).pow(2).sum(), getattr(model, constant))
    torch.testing.assert_close(got, want)


def test_only_some_gradients_wanted(device, random_model):
    model = random_model().to(device)
    betas, pose = model.inputs(3)
    full = torch.autograd.grad(ops.flame_lbs(*(a := leaves(betas, pose)), *model.constants)[0].sum(), a)
    for i in range(2):
        args = [betas, pose]
        (args[i],) = leaves(args[i])
        (got,) = torch.autograd.grad(ops.flame_lbs(*args, *model.constants)[0].sum(), args[i])
        torch.testing.assert_close(got, full[i], rtol=0, atol=0)
    (pose,) = leaves(pose)  # joints alone
    (got,) = torch.autograd.grad(ops.flame_lbs(betas, pose, *model.constants)[1].sum(), pose)
    (want,) = torch.autograd.grad(reference.flame_lbs(betas, pose, *model.constants)[1].sum(), pose)
    torch.testing.assert_close(got, want)


def call_lbs(model, betas, pose):
    return ops.flame_lbs(betas, pose, *model.constants)[0]


def call_landmarks(model, betas, pose):
    return ops.flame_landmarks(betas, pose, *model.constants, *model.embedding)


def call_head(model, betas, pose):
    return torch.cat(ops.flame_head(betas, pose, *model.constants, *model.embedding), dim=1)


def again(call):
    """The call of a model that is prepared: the usual one, which takes the fast path to its kernel."""

    def second(model, *arguments):
        call(model, *(t.to(model.v_template) for t in model.inputs(2)))
        return call(model, *arguments)

    second.__name__ = f"{call.__name__}_again"
    return second


CALLS = (call_lbs, call_landmarks, call_head)
each = pytest.mark.parametrize("call", [*CALLS, *map(again, CALLS)], ids=lambda call: call.__name__)


@each
def test_second_derivative_raises(call, random_model):
    model = random_model()
    args = leaves(*model.inputs(2))
    grads = torch.autograd.grad(call(model, *args).pow(2).sum(), args, create_graph=True)
    assert all(g.requires_grad for g in grads)
    with pytest.raises(NotImplementedError, match="second derivative"):
        (args[0].sum() + grads[1].sum()).backward()
    # Linear in the output: the first backward doesn't depend on a differentiable gradient, the term is there all the
    # same.
    grads = torch.autograd.grad(call(model, *args).sum(), args, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        (args[0].sum() + grads[0].sum()).backward()


@each
def test_forward_mode(call, random_model):
    """By the formula. More in test_ops_transforms.py."""
    model = random_model()
    betas, pose = model.inputs(2)
    step = 1e-6 * torch.randn_like(pose)
    with torch.autograd.forward_ad.dual_level():
        out = call(model, betas, torch.autograd.forward_ad.make_dual(pose, step))
        tangent = torch.autograd.forward_ad.unpack_dual(out).tangent
    torch.testing.assert_close(
        tangent, (call(model, betas, pose + step) - call(model, betas, pose - step)) / 2, rtol=1e-4, atol=1e-12
    )


@each
def test_changing_an_input_before_backward_raises(call, random_model):
    model = random_model()
    args = leaves(*model.inputs(2))
    out = call(model, *args)
    with torch.no_grad():
        model.shapedirs.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


# --- inputs of every kind ---


@each
def test_expanded_strided_and_empty(call, device, dtype, random_model):
    model = random_model(K=6).to(device, dtype)
    betas, pose = model.inputs(1)
    want = call(model, betas.repeat(5, 1), pose.repeat(5, 1))
    torch.testing.assert_close(call(model, betas.expand(5, -1), pose.expand(5, -1)), want, rtol=0, atol=0)
    torch.testing.assert_close(call(model, betas, pose.expand(5, -1)), want, rtol=0, atol=0)  # a batch of one
    betas, pose = model.inputs(5)
    want = call(model, betas, pose)
    for b, p in (
        (betas.T.contiguous().T, pose.T.contiguous().T),
        (torch.stack([betas, betas], 1)[:, 1], torch.stack([pose, pose], 2)[..., 0]),
    ):
        assert not b.is_contiguous()
        torch.testing.assert_close(call(model, b, p), want, rtol=0, atol=0)
    strided = type(model)(**{k: torch.stack([t, t], -1)[..., 0] for k, t in vars(model).items()})
    torch.testing.assert_close(call(strided, betas, pose), want, rtol=0, atol=0)
    empty = leaves(betas[:0], pose[:0])
    out = call(model, *empty)
    assert out.shape == (0, *want.shape[1:])
    assert [g.shape for g in torch.autograd.grad(out.sum(), empty)] == [e.shape for e in empty]


@each
def test_strided_and_expanded_gradients(call, device, random_model):
    model = random_model().to(device)
    args = leaves(*model.inputs(5))
    out = call(model, *args)
    for weight in (
        torch.ones(1, 1, 1).to(out).expand_as(out),
        torch.randn(3, out.shape[1], 5).to(out).permute(2, 1, 0),
        torch.randn(1, out.shape[1], 3).to(out).expand_as(out),
    ):
        got = torch.autograd.grad(out, args, weight, retain_graph=True)
        want = torch.autograd.grad(out, args, weight.contiguous(), retain_graph=True)
        for a, b in zip(got, want, strict=False):
            torch.testing.assert_close(a, b)


def test_autocast_runs_in_full_precision(device, random_model):
    model = random_model().to(device, torch.float32)
    betas, pose = (t.bfloat16() for t in model.inputs(3))
    template = model.v_template.repeat(3, 1, 1)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        vertices, _ = ops.flame_lbs(betas, pose, template, *model.fixed)
        landmarks = call_landmarks(model, betas, pose)
        assert ops.batch_rodrigues(pose[:, :3]).dtype == torch.float32
    assert vertices.dtype == landmarks.dtype == torch.float32
    torch.testing.assert_close(vertices, call_lbs(model, betas.float(), pose.float()))


@pytest.mark.parametrize(
    "change, error",
    [
        (lambda a: a.update(betas=a["betas"][:, :-1]), r"betas: expected shape \(any, 7\), got \(2, 6\)"),
        (lambda a: a.update(betas=a["betas"].tolist()), "betas: expected a tensor, got list"),
        (lambda a: a.update(pose=None), "pose: expected a tensor, got NoneType"),
        (lambda a: a.update(betas=a["betas"].float()), "betas: expected float64, got float32"),
        (lambda a: a.update(pose=a["pose"][:, :-1]), r"pose: expected shape \(2, 15\), got \(2, 14\)"),
        (lambda a: a.update(pose=a["pose"].repeat(2, 1)), r"pose: expected shape \(2, 15\), got \(4, 15\)"),
        (lambda a: a.update(pose2rot=False), r"pose: expected shape \(2, 45\)"),
        (lambda a: a.update(v_template=a["v_template"][:-1]), r"v_template: expected shape \(101, 3\)"),
        (lambda a: a.update(v_template=a["v_template"].repeat(3, 1, 1)), r"v_template: expected shape \(2, 101, 3\)"),
        (lambda a: a.update(shapedirs=a["shapedirs"][:, :2]), r"shapedirs: expected shape \(any, 3, any\)"),
        (lambda a: a.update(shapedirs=a["shapedirs"].half()), "shapedirs: expected float32 or float64, got float16"),
        (lambda a: a.update(posedirs=a["posedirs"].T), r"posedirs: expected shape \(36, 303\), got \(303, 36\)"),
        (lambda a: a.update(J_regressor=a["J_regressor"].to_sparse()), "J_regressor: expected a dense tensor"),
        (lambda a: a.update(lbs_weights=a["lbs_weights"].T), r"lbs_weights: expected shape \(101, 5\)"),
        (lambda a: a.update(parents=a["parents"][:-1]), r"parents: expected shape \(5\), got \(4,\)"),
        (lambda a: a.update(parents=a["parents"].double()), "parents: expected int64 or int32, got float64"),
        (lambda a: a.update(parents=torch.tensor([-1, 0, 9, 1, 1])), r"parents: .*parents\[2\] in \[0, 2\), got 9"),
        (lambda a: a.update(parents=torch.tensor([-1, 0, -1, 1, 1])), r"parents: .*parents\[2\] in \[0, 2\), got -1"),
        (lambda a: a.update(parents=torch.tensor([0, 0, 1, 1, 1])), "parents: expected -1 for the root"),
    ],
)
@pytest.mark.parametrize("prepared", [False, True], ids=["first", "again"])
@pytest.mark.parametrize("op", ["flame_lbs", "flame_landmarks", "flame_head"])
def test_bad_arguments(op, prepared, change, error, random_model):
    model = random_model()
    betas, pose = model.inputs(2)
    arguments = dict(betas=betas, pose=pose, **vars(model), pose2rot=True)
    if op == "flame_lbs":
        arguments = {k: v for k, v in arguments.items() if "face" not in k and "bary" not in k}
    if prepared:
        getattr(ops, op)(**arguments)
    change(arguments)
    with pytest.raises((ValueError, TypeError), match=error):
        getattr(ops, op)(**arguments)


@pytest.mark.parametrize(
    "change, error",
    [
        (lambda a: a.update(faces=a["faces"] + 60), r"faces: expected vertices in \[0, 101\), got "),
        (lambda a: a.update(faces=a["faces"] - 1), r"faces: expected vertices in \[0, 101\), got -1"),
        (lambda a: a.update(lmk_faces_idx=a["lmk_faces_idx"] + 202), r"lmk_faces_idx: expected faces in \[0, 202\)"),
        (
            lambda a: a.update(contour_faces_idx=a["contour_faces_idx"] - 202),
            r"contour_faces_idx: expected faces in \[0, 202\)",
        ),
        (
            lambda a: a.update(contour_faces_idx=a["contour_faces_idx"][1:]),
            r"contour_faces_idx: expected shape \(79, any\)",
        ),
        (lambda a: a.update(contour_bary_coords=None), "contour_bary_coords: expected a tensor"),
        (lambda a: a.update(contour_faces_idx=None), "contour_bary_coords: expected None"),
        (lambda a: a.update(lmk_bary_coords=a["lmk_bary_coords"][1:]), r"lmk_bary_coords: expected shape \(10, 3\)"),
        (lambda a: a.update(lmk_faces_idx=a["lmk_faces_idx"].double()), "lmk_faces_idx: expected int64 or int32"),
        (lambda a: a.update(neck_joint=5), r"neck_joint: expected a joint in \[0, 5\), got 5"),
    ],
)
@pytest.mark.parametrize("op", ["flame_landmarks", "flame_head"])
def test_bad_landmarks(op, change, error, random_model):
    model = random_model()
    betas, pose = model.inputs(2)
    arguments = dict(betas=betas, pose=pose, **vars(model))
    change(arguments)
    with pytest.raises((ValueError, TypeError), match=error):
        getattr(ops, op)(**arguments)


def test_raw_operators_check_too(random_model):
    model = random_model()
    betas, pose = model.inputs(2)
    with pytest.raises(ValueError, match="betas: expected shape"):
        torch.ops.ringnet_ext.lbs_forward(betas[:, :2], pose, *model.constants, True, False)
    state = torch.ops.ringnet_ext.lbs_forward(betas, pose, *model.constants, True, False)[2]
    with pytest.raises(ValueError, match="state: expected shape"):
        torch.ops.ringnet_ext.lbs_backward(None, None, betas, pose, *model.constants, True, state, [True] * 3)
    head = (betas, pose, *model.constants, *model.embedding, 1, True)
    vertices, joints, landmarks, small, big = torch.ops.ringnet_ext.head_forward(*head, True)
    backward = torch.ops.ringnet_ext.head_backward
    for grads, states, message in (
        ((vertices[:1], None, None), (small, big), "grad_vertices: expected shape"),
        ((None, joints.float(), None), (small, big), "grad_joints: expected float64"),
        ((None, None, landmarks[:, 1:]), (small, big), "grad_landmarks: expected shape"),
        ((vertices, None, landmarks), (big, big), "state: expected shape"),
        ((vertices, None, landmarks), (small, small), "state: expected shape"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            backward(*grads, *head, *states, [True] * 2)


@pytest.mark.parametrize("library", [ops, reference], ids=["ops", "reference"])
def test_an_empty_batch_of_matrices(library, random_model):
    model = random_model(J=3)
    betas, matrices = leaves(model.inputs(1)[0][:0], torch.zeros(0, 3, 3, 3, dtype=torch.float64))
    vertices, joints = library.flame_lbs(betas, matrices, *model.constants, pose2rot=False)
    assert vertices.shape == (0, 101, 3) and joints.shape == (0, 3, 3)
    gradients = torch.autograd.grad(vertices.sum() + joints.sum(), (betas, matrices))
    assert [g.shape for g in gradients] == [betas.shape, matrices.shape]


# --- prepared models ---


def test_a_changed_model_is_prepared_again(random_model):
    """In place, a new storage, a state dict, a type and back: the result is always that of the values now there."""

    class Module(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            for name, t in vars(model).items():
                self.register_buffer(name, t.clone())

        def forward(self, betas, pose):
            model = type(first)(**dict(self.named_buffers()))
            return *(call(model, betas, pose) for call in (call_lbs, call_landmarks, call_head)), model

    first, second = random_model(seed=0), random_model(seed=1)
    module = Module(first)
    betas, pose = first.inputs(2)

    def check(dtype=torch.float64):
        b, p = betas.to(dtype), pose.to(dtype)
        vertices, landmarks, head, now = module(b, p)
        tolerance = dict(rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-13)
        torch.testing.assert_close(vertices, reference.flame_lbs(b, p, *now.constants)[0], **tolerance)
        want = reference.flame_head(b, p, *now.constants, *now.embedding)
        torch.testing.assert_close(landmarks, want[2], **tolerance)
        torch.testing.assert_close(head, torch.cat(want, dim=1), **tolerance)
        return vertices.clone()

    before = check()
    for name in ("v_template", "shapedirs", "posedirs", "J_regressor", "lbs_weights"):
        getattr(module, name).mul_(1.25)
        after = check()
        assert not torch.equal(before, after), name
        before = after
    for name in ("faces", "lmk_faces_idx", "lmk_bary_coords", "contour_faces_idx", "contour_bary_coords"):
        getattr(module, name).copy_(getattr(module, name).flip(0))
        check()
    module.load_state_dict({k: v for k, v in vars(second).items()})
    check()
    module.float()
    check(torch.float32)
    module.double()
    check()
    module.shapedirs.data = module.shapedirs.data.clone().neg_()
    check()
    module.parents[2] = 0
    check()


def test_prepared_models_are_reused_and_released(random_model):
    gc.collect()  # what other tests have left
    model = random_model()
    betas, pose = model.inputs(2)
    for call in (call_lbs, call_landmarks, call_head):
        call(model, betas, pose)
    prepared = [
        _prepared.prepared_lbs(model.fixed),
        _prepared.prepared_mesh(model.constants),
        _prepared.prepared_landmarks((*model.constants, *model.embedding), 1),
        _prepared.prepared_head((*model.constants, *model.embedding), 1),
    ]
    lbs, mesh, landmarks, head = prepared
    assert _prepared.prepared_lbs(model.fixed) is lbs is mesh.lbs
    assert mesh is head.mesh
    alive = [weakref.ref(value) for value in prepared]
    caches = (_prepared.prepared_lbs, _prepared.prepared_mesh, _prepared.prepared_landmarks, _prepared.prepared_head)
    counts = [len(cache) for cache in caches]
    del prepared, lbs, mesh, landmarks, head
    storage = weakref.ref(model.shapedirs.untyped_storage())
    del model
    gc.collect()
    assert [ref() for ref in alive] == [None] * 4 and storage() is None
    assert [len(cache) for cache in caches] == [count - 1 for count in counts]


def test_inference_tensors_are_never_stale(random_model):
    with torch.inference_mode():
        model = random_model().to(dtype=torch.float32).to(dtype=torch.float64)
        betas, pose = model.inputs(2)
        before = call_lbs(model, betas, pose)
        model.shapedirs.mul_(2)
        after = call_lbs(model, betas, pose)
        assert not torch.equal(before, after)
        torch.testing.assert_close(after, reference.flame_lbs(betas, pose, *model.constants)[0])


def test_a_model_holds_what_the_core_reads(random_model, monkeypatch):
    made, build = [], _prepared.landmark_corners._build

    def noted(*arguments):
        corners = build(*arguments)
        made.extend(weakref.ref(t) for t in corners.by_vertex)
        return corners

    monkeypatch.setattr(_prepared.landmark_corners, "_build", noted)
    with torch.inference_mode():  # of such tensors no cache keeps anything
        model = random_model().to(dtype=torch.float32).to(dtype=torch.float64)
        head = _prepared.prepared_head((*model.constants, *model.embedding), 1)
        gc.collect()
        assert head is not None and made and all(ref() is not None for ref in made)


@pytest.mark.parametrize("K", [0, 3])
def test_no_heads_each_with_a_template_of_its_own(random_model, K):
    model = random_model(K=K)
    args = leaves(*model.inputs(0), model.v_template.expand(0, -1, -1).clone())
    vertices, joints = ops.flame_lbs(*args, *model.fixed)
    assert vertices.shape == (0, 101, 3) and joints.shape == (0, 5, 3)
    gradients = torch.autograd.grad(vertices.sum() + joints.sum(), args)
    assert [g.shape for g in gradients] == [a.shape for a in args]


# --- determinism, threads, instruction sets ---

RESULTS = """
import hashlib, sys, torch
sys.path.insert(0, "tests")
from conftest import RandomModel
from ringnet_ext import ops
digest, errors = hashlib.sha256(), []
threads = [int(t) for t in sys.argv[1].split(",")]
for dtype in (torch.float32, torch.float64):
    for B in (1, 7, 130):
        model = RandomModel.make(V=1003, K=20, L=51, C=17).to(dtype=dtype)
        betas, pose = (t.requires_grad_() for t in model.inputs(B))
        template = model.v_template.requires_grad_()
        first = None
        for n in threads:
            torch.set_num_threads(n)
            vertices, joints = ops.flame_lbs(betas, pose, *model.constants)
            grads = torch.autograd.grad((vertices.sin().sum() + joints.sum()), (betas, pose, template))
            landmarks = ops.flame_landmarks(betas, pose, template.detach(), *model.fixed, *model.embedding)
            more = torch.autograd.grad(landmarks.sin().sum(), (betas, pose))
            head = ops.flame_head(betas, pose, template.detach(), *model.fixed, *model.embedding)
            more += head + torch.autograd.grad(head[0].sin().sum() + head[2].cos().sum(), (betas, pose))
            own = template.detach().expand(B, -1, -1).clone().requires_grad_()  # a template for each element
            alone = ops.flame_lbs(betas, pose, own, *model.fixed)
            more += alone + torch.autograd.grad(alone[0].sin().sum() + alone[1].sum(), (betas, pose, own))
            now = [t.detach().clone() for t in (vertices, joints, *grads, landmarks, *more)]
            first = first or now
            errors += [i for i, (a, b) in enumerate(zip(first, now)) if not torch.equal(a, b)]
        exact = model.to(dtype=torch.float64)
        want = ops.reference.flame_lbs(betas.double(), pose.double(), *exact.constants)[0]
        assert (vertices - want).abs().max() < (1e-6 if dtype == torch.float32 else 1e-13)
assert not errors, errors
import _ringnet_core
print(_ringnet_core.simd_level())
"""


@pytest.mark.parametrize("level", ["baseline", "avx2", "avx512"])
def test_same_bits_for_any_number_of_threads_at_every_simd_level(level):
    root = str(Path(__file__).resolve().parents[2])
    run = subprocess.run(
        [sys.executable, "-c", RESULTS, "1,2,4,1"], cwd=root, env={**os.environ, "RINGNET_SIMD": level},
        capture_output=True, text=True,
    )  # fmt: skip
    if "and a processor that has it" in run.stderr:
        pytest.skip(f"this processor has no {level}")
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == level


def test_run_to_run(device, random_model):
    model = random_model(V=1003).to(device, torch.float32)
    args = leaves(*model.inputs(70))
    first = None
    for _ in range(3):
        vertices, joints = ops.flame_lbs(*args, *model.constants)
        now = (vertices, joints, *torch.autograd.grad(vertices.sin().sum(), args))
        first = first or now
        assert all(torch.equal(a, b) for a, b in zip(first, now, strict=False))


# --- the dispatcher and the compiler ---


def test_opcheck(device, random_model):
    model = random_model(V=20, K=3, J=3, L=4, C=2).to(device)
    betas, pose = model.inputs(2)
    op = torch.ops.ringnet_ext
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_static", "test_aot_dispatch_dynamic")
    torch.library.opcheck(op.lbs_forward.default, (betas, pose, *model.constants, True, True), test_utils=checks)
    vertices, joints, state = op.lbs_forward(betas, pose, *model.constants, True, True)
    torch.library.opcheck(
        op.lbs_backward.default,
        (vertices, joints, betas, pose, *model.constants, True, state, [True, False, True]), test_utils=checks,
    )  # fmt: skip
    arguments = (betas, pose, *model.constants, *model.embedding, 1, True)
    torch.library.opcheck(op.landmarks_forward.default, (*arguments, True), test_utils=checks)
    landmarks, state = op.landmarks_forward(*arguments, True)
    torch.library.opcheck(
        op.landmarks_backward.default, (landmarks, *arguments, state, [True, True]), test_utils=checks
    )
    torch.library.opcheck(op.head_forward.default, (*arguments, True), test_utils=checks)
    *results, small, big = op.head_forward(*arguments, True)
    torch.library.opcheck(op.head_backward.default, (*results, *arguments, small, big, [True, True]), test_utils=checks)


def test_compile_fullgraph(device, random_model):
    model = random_model(V=50).to(device, torch.float32)

    def step(betas, pose):
        vertices, joints = ops.flame_lbs(betas, pose, *model.constants)
        landmarks = ops.flame_landmarks(betas, pose, *model.constants, *model.embedding)
        head = ops.flame_head(betas, pose, *model.constants, *model.embedding)
        return vertices.square().sum() + joints.sum() + landmarks.square().sum() + sum(t.square().sum() for t in head)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for B in (3, 4, 9):  # the batch becomes symbolic
        args = leaves(*model.inputs(B))
        want, got = step(*args), compiled(*args)
        torch.testing.assert_close(got, want)
        for a, b in zip(torch.autograd.grad(got, args), torch.autograd.grad(want, args), strict=False):
            torch.testing.assert_close(a, b)
