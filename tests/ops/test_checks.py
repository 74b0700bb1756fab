"""Every wrong argument is refused by name, on either path and on the formula's, and what the field passes is taken."""

import pytest
import torch

import ringnet_ext.deca
import ringnet_ext.flame_pytorch
from ringnet_ext import ops
from ringnet_ext.ops import reference

WAYS = {
    "kernel": lambda a: None,
    "formula": lambda a: a.update(shapedirs=a["shapedirs"].clone().requires_grad_()),
    "own template": lambda a: a.update(v_template=a["v_template"].clone().requires_grad_()),
}
OPERATORS = ("flame_lbs", "flame_landmarks", "flame_head")


@pytest.fixture
def arguments(random_model):
    def make(op):
        model = random_model()
        betas, pose = model.inputs(2)
        made = dict(betas=betas, pose=pose, **vars(model))
        return made if op != "flame_lbs" else {k: v for k, v in made.items() if "face" not in k and "bary" not in k}

    return make


def refused(name, call, error=(ValueError, TypeError)):
    with pytest.raises(error, match=rf"^{name}: expected "):
        call()


@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(
    "name, change",
    [
        ("parents", lambda a: a.update(parents=torch.tensor([0, 0, 1, 1, 1]))),  # for ever round the root, once
        ("parents", lambda a: a.update(parents=torch.tensor([-1, 2, 1, 1, 1]))),
        ("parents", lambda a: a.update(parents=a["parents"].to("meta"))),
        ("betas", lambda a: a.update(betas=a["betas"][:, :1])),
        ("betas", lambda a: a.update(shapedirs=a["shapedirs"][:, :, :1])),  # which is right, but of one direction
        ("v_template", lambda a: a.update(v_template=a["v_template"][0])),
        ("v_template", lambda a: a.update(v_template=a["v_template"][:1])),
        ("pose2rot", lambda a: a.update(pose2rot="x")),
        ("pose", lambda a: a.update(pose2rot=False)),
        ("neck_joint", lambda a: a.update(neck_joint=-1)),
        ("neck_joint", lambda a: a.update(neck_joint="neck")),
        ("contour_faces_idx", lambda a: a.update({k: a[k][1:] for k in ("contour_faces_idx", "contour_bary_coords")})),
        ("faces", lambda a: a.update(faces=a["faces"] + 60)),
        ("lmk_faces_idx", lambda a: a.update(lmk_faces_idx=a["lmk_faces_idx"] - 202)),
        ("contour_faces_idx", lambda a: a.update(contour_faces_idx=a["contour_faces_idx"] + 202)),
    ],
)
def test_refused_on_every_way(op, way, name, change, arguments):
    given = arguments(op)
    if op == "flame_lbs" and name in ("neck_joint", "contour_faces_idx", "faces", "lmk_faces_idx"):
        return  # it has none
    way(given)
    for _ in range(3):
        getattr(ops, op)(**given)
    change(given)
    refused(name, lambda: getattr(ops, op)(**given))


KINDS = {
    "sparse": lambda t: t.to_sparse(),
    "sparse rows": lambda t: t.flatten(1).to_sparse_csr(),
    "quantised": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    "nested": lambda t: torch.nested.nested_tensor(list(t)),
    "jagged": lambda t: torch.nested.nested_tensor(list(t), layout=torch.jagged),
    "mkldnn": lambda t: t.float().to_mkldnn(),
    "meta": lambda t: t.to("meta"),
    "complex": lambda t: t.to(torch.complex64),
    "bool": lambda t: t.bool(),
    "eight bits": lambda t: t.to(torch.float8_e4m3fn),
    "list": lambda t: t.tolist(),
    "array": lambda t: t.numpy(),
    "number": lambda t: 3,
    "one number": lambda t: t.flatten()[0],
    "five dimensions": lambda t: t[None, None, None, None],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_tensors_of_every_kind_are_refused(kind, arguments, random_model):
    model = random_model()
    points = dict(
        zip(
            ("vertices", "faces", "lmk_faces_idx", "lmk_bary_coords"),
            (model.v_template[None], *model.embedding),
            strict=False,
        )
    )
    given = {op: arguments(op) for op in OPERATORS} | {
        "vertices2landmarks": points,
        "batch_rodrigues": {"rot_vecs": torch.randn(4, 3)},
    }
    tried = 0
    for op, arguments_of in given.items():
        for name, value in arguments_of.items():
            if (kind == "mkldnn" and not value.is_floating_point()) or (
                value.ndim == 1 and kind in ("sparse rows", "nested", "jagged")
            ):
                continue
            refused(name, lambda: getattr(ops, op)(**{**arguments_of, name: KINDS[kind](value)}))
            tried += 1
    assert tried >= 20


def test_raw_operators_refuse_by_name(random_model):
    model = random_model()
    betas, pose = model.inputs(2)
    refused(
        "parents",
        lambda: torch.ops.ringnet_ext.lbs_forward(
            betas, pose, *model.constants[:4], model.parents + 1, model.lbs_weights, True, False
        ),
    )
    model.shapedirs.requires_grad_()  # by the formula
    refused("pose", lambda: torch.ops.ringnet_ext.lbs_forward(betas, pose[:1], *model.constants, True, False))


# --- what is taken ---


@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_a_template_of_one_serves_any_batch(B, requires_grad, random_model):
    model = random_model()
    betas, pose = model.inputs(B)
    template = model.v_template[None].clone().requires_grad_(requires_grad)
    got = ops.flame_head(betas, pose, template, *model.fixed, *model.embedding)
    want = ops.flame_head(betas, pose, model.v_template, *model.fixed, *model.embedding)
    for a, b in zip(got + ops.flame_lbs(betas, pose, template, *model.fixed), want + want[:2], strict=True):
        torch.testing.assert_close(a, b)
    if requires_grad:
        (grad,) = torch.autograd.grad(got[0].sin().sum(), template)
        exact = reference.flame_lbs(betas, pose, template, *model.fixed)[0]
        torch.testing.assert_close(grad, torch.autograd.grad(exact.sin().sum(), template)[0])


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_raised_to_the_constants_type(half, autocast, random_model):
    for dtype in (torch.float32, torch.float64):
        model = random_model().to(dtype=dtype)
        betas, pose = (t.to(half).requires_grad_() for t in model.inputs(3))
        template = model.v_template.to(half).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            results = (
                *ops.flame_lbs(betas, pose, template, *model.fixed),
                *ops.flame_head(betas, pose, model.v_template, *model.fixed, *model.embedding),
                ops.flame_landmarks(betas, pose, *model.constants, *model.embedding),
                ops.vertices2landmarks(template[None].expand(3, -1, -1), *model.embedding[:3]),
            )
            matrices = ops.batch_rodrigues(pose.view(-1, 3))
        assert {r.dtype for r in results} == {dtype} and matrices.dtype == torch.float32
        exact = [t.detach().to(dtype) for t in (betas, pose, template)]
        torch.testing.assert_close(results[0], ops.flame_lbs(*exact, *model.fixed)[0])
        assert {
            g.dtype for g in torch.autograd.grad(results[0].sum() + results[-1].sum(), (betas, pose, template))
        } == {half}
    with pytest.raises(TypeError, match="shapedirs: expected float32 or float64, got "):
        ops.flame_lbs(*model.inputs(3), model.v_template, model.shapedirs.to(half), *model.fixed[1:])


@pytest.mark.parametrize("module", [ringnet_ext.deca, ringnet_ext.flame_pytorch, ops], ids=lambda m: m.__name__)
def test_names_and_arguments_of_other_projects(module, random_model):
    """lbs(..., dtype=) and batch_rodrigues(..., dtype=), as DECA, SMIRK, MICA and metrical-tracker call them."""
    model = random_model().to(dtype=torch.float32)
    betas, pose = model.inputs(3)
    vertices, joints = module.lbs(betas, pose, *model.constants, dtype=torch.float32)
    want = reference.flame_lbs(betas, pose, *model.constants)
    torch.testing.assert_close((vertices, joints), want)
    torch.testing.assert_close(
        module.batch_rodrigues(pose.view(-1, 3), dtype=torch.float32), reference.batch_rodrigues(pose.view(-1, 3))
    )
    index, bary = model.lmk_faces_idx.expand(3, -1), model.lmk_bary_coords.expand(3, -1, -1)
    assert module.vertices2landmarks(vertices, model.faces, index, bary).shape == (3, 10, 3)
    with pytest.raises(TypeError, match=r"dtype: expected a torch.dtype"):
        module.lbs(betas, pose, *model.constants, dtype="float32")
