"""flame_landmarks_jacobian: against reverse-mode derivatives of the reference in float64."""

import pytest
import torch

from ringnet_ext import ops
from ringnet_ext.ops import reference

SIZES = [
    (101, 7, 5, 10, 4),
    (50, 0, 3, 7, 0),
    (60, 33, 1, 5, 2),
    (200, 150, 5, 51, 17),
    (90, 20, 24, 9, 3),
    (30, 5, 2, 0, 3),
]


def case(random_model, V, K, J, L, C, axis_angle, B=3):
    model = random_model(V=V, K=K, J=J, L=L, C=C)
    betas, pose = model.inputs(B)
    if not axis_angle:  # near rotations: derivatives are by every element
        pose = reference.batch_rodrigues(pose.view(-1, 3)).view(B, J, 3, 3) + 0.1 * torch.randn(
            B, J, 3, 3, dtype=torch.float64
        )
    return model, betas, pose, min(1, J - 1)


def error(got, want):
    return float((got.double() - want).norm() / want.norm().clamp_min(1e-30)) if want.numel() else 0.0


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("axis_angle", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
def test_values(random_model, device, sizes, axis_angle, dtype, tolerance):
    model, betas, pose, neck = case(random_model, *sizes, axis_angle)
    want = reference.flame_landmarks_jacobian(
        betas, pose, *model.constants, *model.embedding, neck, pose2rot=axis_angle
    )
    own = model.to(device, dtype)
    got = ops.flame_landmarks_jacobian(
        betas.to(own.shapedirs), pose.to(own.shapedirs), *own.constants, *own.embedding, neck, axis_angle
    )
    assert [g.shape for g in got] == [w.shape for w in want]
    assert max(error(g.cpu(), w) for g, w in zip(got, want, strict=False)) < tolerance
    again = ops.flame_landmarks(
        betas.to(own.shapedirs), pose.to(own.shapedirs), *own.constants, *own.embedding, neck, axis_angle
    )
    assert torch.allclose(got[0], again, atol=1e-6 if dtype == torch.float32 else 1e-14)


def test_they_are_what_the_landmarks_do(random_model):
    """Against differences of the operator's own landmarks."""
    model, betas, pose, neck = case(random_model, 101, 7, 5, 10, 4, True)

    def landmarks(b, p):
        return ops.flame_landmarks(b, p, *model.constants, *model.embedding, neck)

    _points, d_betas, d_pose = ops.flame_landmarks_jacobian(betas, pose, *model.constants, *model.embedding, neck)
    h = 1e-6
    for values, derivatives, at in ((betas, d_betas, 0), (pose, d_pose, 1)):
        for i in range(values.shape[1]):
            step = torch.zeros_like(values)
            step[:, i] = h
            ends = [landmarks(*(v + s if n == at else v for n, v in enumerate((betas, pose)))) for s in (step, -step)]
            assert torch.allclose((ends[0] - ends[1]) / (2 * h), derivatives[..., i], atol=1e-7)


def test_points_of_ones_own_and_at_rest(random_model):
    """Any points by triangle and barycentric coordinates; at rest, where the rotation vectors are zero."""
    model, betas, _, _ = case(random_model, 101, 7, 5, 10, 4, True)
    g = torch.Generator().manual_seed(1)
    triangles, bary = (
        torch.randint(len(model.faces), (105,), generator=g),
        torch.rand(105, 3, generator=g, dtype=torch.float64),
    )
    arguments = betas, torch.zeros(3, 15, dtype=torch.float64), *model.constants, model.faces, triangles, bary
    want = reference.flame_landmarks_jacobian(*arguments, pose2rot=True)
    for got, expected in zip(ops.flame_landmarks_jacobian(*arguments), want, strict=False):
        assert got.shape[1] == 105 and torch.allclose(got, expected, atol=1e-13)


@pytest.mark.parametrize("level", ["baseline", "avx2", "avx512"])
def test_threads_give_the_same_bits(random_model, level):
    """At the level this process runs; every level's values are test_ops_lbs's to compare, in processes of their own."""
    import _ringnet_core

    if _ringnet_core.simd_level() != level:
        pytest.skip(f"this process runs {_ringnet_core.simd_level()}")
    model, betas, pose, neck = case(random_model, 200, 150, 5, 51, 17, True, B=9)
    own, before = model.to(dtype=torch.float32), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.append(
                ops.flame_landmarks_jacobian(betas.float(), pose.float(), *own.constants, *own.embedding, neck)
            )
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=False))


def test_layouts(random_model):
    model, betas, pose, neck = case(random_model, 101, 7, 5, 10, 4, True)

    def run(b, p):
        return ops.flame_landmarks_jacobian(b, p, *model.constants, *model.embedding, neck)

    spread = torch.stack([pose, pose], dim=2)[..., 0]
    for got, want in zip(run(betas[:1], spread), run(betas[:1].expand(3, -1).contiguous(), pose), strict=False):
        assert torch.equal(got, want)
    assert [tuple(r.shape) for r in run(betas[:0], pose[:0])] == [(0, 14, 3), (0, 14, 3, 7), (0, 14, 3, 15)]
    matrices = ops.batch_rodrigues(pose.reshape(-1, 3)).view(3, 5, 3, 3)[:0]
    for jacobian in (ops.flame_landmarks_jacobian, reference.flame_landmarks_jacobian):
        empty = jacobian(betas[:0], matrices, *model.constants, *model.embedding, neck, pose2rot=False)
        assert [tuple(r.shape) for r in empty] == [(0, 14, 3), (0, 14, 3, 7), (0, 14, 3, 45)]


def test_what_it_cannot_is_said(random_model):
    model, betas, pose, neck = case(random_model, 101, 7, 5, 10, 4, True)
    with pytest.raises(ValueError, match="betas: expected shape"):
        ops.flame_landmarks_jacobian(betas[:, :6], pose, *model.constants, *model.embedding, neck)
    with pytest.raises(ValueError, match="v_template: expected shape"):
        ops.flame_landmarks_jacobian(
            betas, pose, model.v_template.expand(3, -1, -1), *model.fixed, *model.embedding, neck
        )
    _points, d_betas, _ = ops.flame_landmarks_jacobian(
        betas.requires_grad_(), pose, *model.constants, *model.embedding, neck
    )
    with pytest.raises(NotImplementedError, match="flame_landmarks_jacobian has no derivatives of its own"):
        d_betas.sum().backward()
    constants, embedding = [*model.constants], [*model.embedding]
    constants[1] = constants[1].clone().requires_grad_()
    with pytest.raises(NotImplementedError, match="shapedirs: flame_landmarks_jacobian has no derivatives"):
        ops.flame_landmarks_jacobian(betas.detach(), pose, *constants, *embedding, neck)
    with torch.no_grad():
        ops.flame_landmarks_jacobian(betas.detach(), pose, *constants, *embedding, neck)
    with pytest.raises(NotImplementedError, match="pose: flame_landmarks_jacobian has no derivatives"):
        torch.func.jvp(
            lambda p: ops.flame_landmarks_jacobian(betas.detach(), p, *model.constants, *embedding, neck)[0],
            (pose,), (pose,),
        )  # fmt: skip


def test_compile(random_model):
    model, betas, pose, neck = case(random_model, 101, 7, 5, 10, 4, True)

    def run(b, p):
        return ops.flame_landmarks_jacobian(b, p, *model.constants, *model.embedding, neck)

    for got, want in zip(
        torch.compile(run, fullgraph=True, backend="aot_eager")(betas, pose), run(betas, pose), strict=False
    ):
        assert torch.equal(got, want)
