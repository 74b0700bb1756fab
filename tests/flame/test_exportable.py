"""The layer in PyTorch's own operators, and as others run it: ONNX Runtime."""

from dataclasses import replace

import pytest
import torch

from ringnet_ext.flame import FLAME, FlameModel, builtin_head
from ringnet_ext.ops import reference

WIDTHS = {"shape": 8, "expression": 4, "global_pose": 3, "neck_pose": 3, "jaw_pose": 3, "eye_pose": 6, "translation": 3}


def inputs(B, names=tuple(WIDTHS), dtype=torch.float32):
    g = torch.Generator().manual_seed(B)
    # Heads turned by up to a radian: many rows of the contour table.
    return {
        name: torch.randn(B, WIDTHS[name], generator=g, dtype=dtype) * (0.4 if "pose" in name else 1) for name in names
    }


@pytest.fixture(scope="module")
def layer():
    return FLAME(shape_params=8, expression_params=4)


@pytest.fixture
def many_joints(random_model):
    """Without landmarks, and not FLAME's joints."""
    m = random_model(V=61, K=12, J=7)
    return FLAME(
        FlameModel(
            m.v_template.numpy(),
            m.shapedirs[..., :8].numpy(),
            m.shapedirs[..., 8:].numpy(),
            m.posedirs.T.reshape(61, 3, -1).numpy(),
            m.J_regressor.numpy(),
            m.parents.numpy(),
            m.lbs_weights.numpy(),
            m.faces.numpy(),
        )
    )


@pytest.mark.parametrize("names", [tuple(WIDTHS), ("expression", "jaw_pose"), ("global_pose",), ()], ids=len)
def test_it_is_the_layer(layer, names):
    layer = FLAME(shape_params=8, expression_params=4, dtype=torch.float64)
    given = {name: value.requires_grad_() for name, value in inputs(3, names, torch.float64).items()}
    results = []
    for module in (layer, layer.exportable()):
        outputs = module(**given)
        gradients = torch.autograd.grad(sum((o * o).sum() for o in outputs), list(given.values())) if given else ()
        results.append([*outputs, *gradients])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_it_takes_what_the_layer_takes(layer, many_joints):
    given = inputs(3)
    narrow = {**given, "shape": given["shape"][:, :5]}
    torch.testing.assert_close(layer.exportable()(**narrow), tuple(layer(**narrow)))
    fixed = layer.fixed(shape=given["shape"][:1])
    torch.testing.assert_close(
        fixed.exportable()(expression=given["expression"]), tuple(fixed(expression=given["expression"]))
    )
    turned = many_joints(given["shape"], global_pose=given["global_pose"])
    torch.testing.assert_close(
        many_joints.exportable()(given["shape"], global_pose=given["global_pose"]), tuple(turned)[:2]
    )
    pose = torch.linspace(-1, 1, 42).view(2, 21)
    matrices = torch.linalg.matrix_exp(torch.randn(2, 7, 3, 3) - torch.randn(2, 7, 3, 3))
    for value in (pose, matrices):
        torch.testing.assert_close(many_joints.exportable()(pose=value), tuple(many_joints(pose=value))[:2])


def test_eyelids_and_a_static_offset():
    lids = torch.randn(5023, 3, 2, generator=torch.Generator().manual_seed(1)).numpy() * 0.001
    layer = FLAME(replace(builtin_head(), eyeliddirs=lids), shape_params=8, expression_params=4)
    given = inputs(3, ("shape", "expression", "jaw_pose"))
    given |= {"eyelids": torch.rand(3, 2), "static_offset": 0.001 * torch.randn(3, 5023, 3)}
    torch.testing.assert_close(layer.exportable()(**given), tuple(layer(**given)), rtol=0, atol=1e-6)
    del given["eyelids"]
    torch.testing.assert_close(layer.exportable()(**given), tuple(layer(**given)), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"^static_offset: expected shape"):
        layer.exportable()(static_offset=torch.zeros(3, 5022, 3))


def test_errors_name_the_argument(layer, many_joints):
    given = inputs(2)
    for name, value in given.items():
        with pytest.raises(ValueError, match=f"^{name}: expected shape"):
            layer.exportable()(**{**given, name: torch.cat([value, value], dim=1)})
    for wrong in (torch.zeros(2, 12), torch.zeros(2, 4, 3, 3)):
        with pytest.raises(ValueError, match=r"^pose: expected shape"):
            layer.exportable()(pose=wrong)
    with pytest.raises(ValueError, match=r"^pose: expected either .* or jaw_pose, got both"):
        layer.exportable()(pose=torch.zeros(2, 15), jaw_pose=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"^jaw_pose: .* 7; use pose"):
        many_joints.exportable()(jaw_pose=torch.zeros(2, 3))


def runtime(path):
    return pytest.importorskip("onnxruntime", reason="needs onnxruntime, of the test extra").InferenceSession(path)


def check(session, module, given):
    outputs = session.run(None, {name: value.numpy() for name, value in given.items()})
    for got, want in zip(
        outputs, module(**given), strict=False
    ):  # the layer's third is None for a model without landmarks
        torch.testing.assert_close(torch.from_numpy(got), want, rtol=0, atol=1e-5)
    return len(outputs)


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.filterwarnings("ignore")  # of the exporters, about themselves
def test_onnx_runtime_agrees_with_the_operators(dynamo, layer, tmp_path):
    pytest.importorskip("onnxscript", reason="needs onnx and onnxscript, of the test extra")
    example, names = inputs(2), ["vertices", "joints", "landmarks"]
    batch = torch.export.Dim("batch")
    if dynamo:
        arguments = {"args": (), "kwargs": example, "dynamic_shapes": {name: {0: batch} for name in example}}
    else:
        arguments = {
            "args": tuple(example.values()),
            "dynamic_axes": {name: {0: "batch"} for name in [*example, *names]},
        }
    path = str(tmp_path / "flame.onnx")
    torch.onnx.export(
        layer.exportable(), f=path, dynamo=dynamo, input_names=[*example], output_names=names, **arguments
    )
    session = runtime(path)
    for B in (1, 7, 33):
        assert check(session, layer, inputs(B)) == 3
    heads = reference.batch_rodrigues(inputs(33)["global_pose"]) @ reference.batch_rodrigues(inputs(33)["neck_pose"])
    assert len(reference.contour_rows(heads).unique()) > 10


@pytest.mark.filterwarnings("ignore")
def test_onnx_of_a_model_without_landmarks_posed_by_matrices(many_joints, tmp_path):
    pytest.importorskip("onnx", reason="needs onnx, of the test extra")

    def posed(B):
        torch.manual_seed(B)
        twist = torch.randn(B, 7, 3, 3)
        return {"shape": torch.randn(B, 8), "pose": torch.linalg.matrix_exp(twist - twist.mT)}

    path, module, example = str(tmp_path / "model.onnx"), many_joints.exportable(), posed(2)

    class Posed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.flame = module

        def forward(self, shape, pose):
            return self.flame(shape, pose=pose)

    axes = {name: {0: "batch"} for name in (*example, "vertices", "joints")}
    torch.onnx.export(
        Posed(),
        tuple(example.values()),
        path,
        dynamo=False,
        input_names=[*example],
        output_names=["vertices", "joints"],
        dynamic_axes=axes,
    )
    session = runtime(path)
    for B in (1, 7):
        assert check(session, many_joints, posed(B)) == 2


def test_torch_export_with_a_dynamic_batch(layer):
    example = inputs(2)
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        layer.exportable(), (), example, dynamic_shapes={name: {0: batch} for name in example}
    )
    for B in (1, 5):
        given = {name: value.requires_grad_() for name, value in inputs(B).items()}
        outputs = program.module()(**given)
        torch.testing.assert_close(tuple(outputs), tuple(layer(**given)), rtol=0, atol=1e-5)
        got, want = (
            torch.autograd.grad(o[0].sin().sum() + o[2].sum(), list(given.values())) for o in (outputs, layer(**given))
        )
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
