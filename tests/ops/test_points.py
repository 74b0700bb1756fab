"""batch_rodrigues and vertices2landmarks."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ringnet_ext import ops
from ringnet_ext.ops import reference

ANGLES = [
    0.0,
    1e-30,
    1e-12,
    1e-8,
    1e-4,
    1e-2,
    0.999,
    1.0,
    1.001,
    2.0,
    math.pi - 1e-4,
    math.pi,
    2 * math.pi,
    10.0,
    100.0,
]


def leaf(t):
    return t.detach().clone().requires_grad_()


def exact_rotation(rot_vecs):
    """The matrix exponential of the cross product matrix, in float64: no formula in common with Rodrigues'."""
    x, y, z = rot_vecs.double().cpu().unbind(-1)
    o = torch.zeros_like(x)
    return torch.linalg.matrix_exp(torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).view(-1, 3, 3))


def vectors(dtype=torch.float64):
    axes = torch.nn.functional.normalize(
        torch.randn(len(ANGLES), 3, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    return (axes.double() * torch.tensor(ANGLES, dtype=torch.float64)[:, None]).to(dtype)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 5e-7), (torch.float64, 2e-15)])
def test_rodrigues_values(device, dtype, tolerance):
    r = vectors(dtype)
    got = ops.batch_rodrigues(r.to(device))
    scale = 1 + r.double().norm(dim=-1)[:, None, None]  # a rounding of the angle is a rounding of the rotation
    assert ((got.double().cpu() - exact_rotation(r)).abs() <= tolerance * scale).all()
    assert torch.equal(got[0].cpu(), torch.eye(3, dtype=dtype))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-13)])
def test_rodrigues_gradients(device, dtype, tolerance):
    r, weight = vectors(dtype), torch.randn(len(ANGLES), 3, 3, dtype=torch.float64)
    (got,) = torch.autograd.grad(ops.batch_rodrigues(a := leaf(r.to(device))), a, weight.to(device, dtype))
    (want,) = torch.autograd.grad(exact_rotation(b := leaf(r.double())), b, weight.to(dtype).double())
    scale = 1 + r.double().norm(dim=-1, keepdim=True)
    assert ((got.double().cpu() - want).abs() <= 20 * tolerance * scale).all()
    (formula,) = torch.autograd.grad(reference.batch_rodrigues(c := leaf(r.double())), c, weight.to(dtype).double())
    assert ((formula - want).abs() <= 1e-12 * scale).all()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-20, 20), min_size=3, max_size=3), st.floats(-15, 0))
def test_rodrigues_is_a_rotation(values, exponent):
    r = torch.tensor([values], dtype=torch.float64) * 10**exponent
    R = ops.batch_rodrigues(r)[0]
    torch.testing.assert_close(R @ R.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-13)
    torch.testing.assert_close(torch.linalg.det(R), torch.tensor(1.0, dtype=torch.float64), rtol=0, atol=1e-13)
    torch.testing.assert_close(R @ r[0], r[0], rtol=0, atol=1e-12)


def test_rodrigues_gradcheck(device):
    r = torch.tensor([[0.0, 0, 0], [1e-9, 0, 0], [0.3, -0.4, 0.5], [math.pi, 0, 0], [3.0, 4, 5]], dtype=torch.float64)
    assert torch.autograd.gradcheck(ops.batch_rodrigues, leaf(r.to(device)))
    assert torch.autograd.gradcheck(reference.batch_rodrigues, leaf(r))
    assert torch.autograd.gradgradcheck(reference.batch_rodrigues, leaf(r))
    (grad,) = torch.autograd.grad(ops.batch_rodrigues(a := leaf(r)).sum(), a, create_graph=True)
    with pytest.raises(NotImplementedError, match="batch_rodrigues has no second derivative"):
        grad.sum().backward()


def test_rodrigues_inputs(device):
    r = torch.randn(4, 6, device=device, dtype=torch.float64)
    torch.testing.assert_close(ops.batch_rodrigues(r[:, ::2]), ops.batch_rodrigues(r[:, ::2].clone()), rtol=0, atol=0)
    assert ops.batch_rodrigues(r[:0, :3]).shape == (0, 3, 3)
    for bad, error in (
        (r, r"rot_vecs: expected shape \(any, 3\)"),
        (r[:, :3].long(), "rot_vecs: expected float32 or float64"),
    ):
        with pytest.raises((ValueError, TypeError), match=error):
            ops.batch_rodrigues(bad)


# --- vertices2landmarks ---


@pytest.fixture
def points(device):
    g = torch.Generator().manual_seed(0)
    vertices = torch.randn(3, 20, 3, generator=g, dtype=torch.float64)
    faces, index = torch.randint(20, (12, 3), generator=g), torch.randint(12, (3, 6), generator=g)
    bary = torch.rand(3, 6, 3, generator=g, dtype=torch.float64)
    return [t.to(device) for t in (vertices, faces, index, bary)]


def test_vertices2landmarks(points):
    vertices, faces, index, bary = points
    for i, b in (
        (index, bary),
        (index[0], bary[0]),
        (index, bary[0]),
        (index.int(), bary),
        (index, bary.transpose(1, 2).transpose(1, 2)),
    ):
        torch.testing.assert_close(
            ops.vertices2landmarks(vertices, faces, i, b), reference.vertices2landmarks(vertices, faces, i, b)
        )
    wide = torch.stack([vertices, vertices], 2)[:, :, 1]
    torch.testing.assert_close(ops.vertices2landmarks(wide, faces.int(), index, bary), ops.vertices2landmarks(*points))
    one = torch.eye(3, dtype=torch.float64, device=vertices.device)
    corners = ops.vertices2landmarks(vertices, faces, torch.full((3,), 5, device=vertices.device), one)
    torch.testing.assert_close(corners, vertices[:, faces[5]], rtol=0, atol=0)  # landmarks lie on the mesh
    assert ops.vertices2landmarks(vertices[:0], faces, index[:0], bary[:0]).shape == (0, 6, 3)


def test_vertices2landmarks_gradients(points):
    vertices, faces, index, bary = points
    assert torch.autograd.gradcheck(lambda v: ops.vertices2landmarks(v, faces, index, bary), leaf(vertices))
    a, b = leaf(bary), leaf(bary)
    (got,) = torch.autograd.grad(ops.vertices2landmarks(vertices, faces, index, a).sum(), a)
    (want,) = torch.autograd.grad(reference.vertices2landmarks(vertices, faces, index, b).sum(), b)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    "name, change, kind, message",
    [
        ("faces", lambda t: t + 10, ValueError, r"expected vertices in \[0, 20\), got "),
        ("lmk_faces_idx", lambda t: t - 12, ValueError, r"expected faces in \[0, 12\), got -"),
        ("lmk_faces_idx", lambda t: t + 12, ValueError, r"expected faces in \[0, 12\), got "),
        ("lmk_faces_idx", lambda t: t[:2], ValueError, r"expected shape \(3, 6\)"),
        ("lmk_bary_coords", lambda t: t[:, :2], ValueError, r"expected shape \(3, 6, 3\)"),
        ("lmk_bary_coords", lambda t: t.float(), TypeError, "expected float64, got float32"),
        ("vertices", lambda t: t[..., :2], ValueError, r"expected shape \(any, any, 3\)"),
        ("faces", lambda t: t.double(), TypeError, "expected int64 or int32, got float64"),
    ],
)
def test_vertices2landmarks_bad_arguments(points, name, change, kind, message):
    arguments = dict(zip(("vertices", "faces", "lmk_faces_idx", "lmk_bary_coords"), points, strict=True))
    arguments[name] = change(arguments[name])
    if re.search("(vertices|faces) in", message) and points[0].is_cuda:  # no synchronisation: not a number instead
        assert ops.vertices2landmarks(**arguments).isnan().any()
        return
    with pytest.raises(kind, match=f"{name}: {message}"):
        ops.vertices2landmarks(**arguments)


def test_opcheck(points):
    op = torch.ops.ringnet_ext
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    vertices, faces, index, bary = points
    r = vertices[0]
    R = op.rodrigues_forward(r)
    for overload, arguments in (
        (op.rodrigues_forward, (r,)),
        (op.rodrigues_backward, (R, r, [True])),
        (op.vertices2landmarks_forward, (vertices, faces, index, bary)),
        (op.vertices2landmarks_backward, (bary, *points, [True])),
    ):
        torch.library.opcheck(overload.default, arguments, test_utils=checks)
