import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from heads import random_model, read_head

from ringnet_ext.flame import FLAME, FlameModel
from ringnet_ext.flame.landmarks import contour_row
from ringnet_ext.ops import batch_rodrigues


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture(scope="module")
def layer(model):
    return FLAME(model, dtype=torch.float64)


def random_arguments(batch, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    sizes = dict(shape=7, expression=4, global_pose=3, neck_pose=3, jaw_pose=3, eye_pose=6, translation=3)
    return {
        name: 0.5 * torch.randn(batch, size, generator=generator, dtype=torch.float64).to(dtype)
        for name, size in sizes.items()
    }


def turned(yaw, pitch=0.0, roll=0.0, y_down=False):
    """Rotation matrix of a head that is turned by yaw, then pitched and rolled, in degrees."""
    yaw, pitch, roll = (math.radians(a) for a in (yaw, pitch, roll))
    about = torch.tensor([[0, yaw, 0], [pitch, 0, 0], [0, 0, roll], [math.pi * y_down, 0, 0]], dtype=torch.float64)
    y, x, z, flip = batch_rodrigues(about)
    return flip @ z @ x @ y


def axis_angle(rotation):
    import cv2

    return torch.tensor(cv2.Rodrigues(rotation.numpy())[0]).T


def test_zero_pose_gives_the_template(model, layer):
    output = layer()
    assert torch.allclose(output.vertices[0], torch.tensor(model.v_template), atol=1e-12)
    assert torch.allclose(output.joints[0], torch.tensor(model.J_regressor @ model.v_template), atol=1e-12)


def test_shape_and_expression_move_vertices_along_their_directions(model, layer):
    given = {name: value for name, value in random_arguments(3).items() if name in ("shape", "expression")}
    expected = (
        model.v_template
        + np.einsum("bk,vck->bvc", given["shape"], model.shapedirs)
        + np.einsum("bk,vck->bvc", given["expression"], model.expressiondirs)
    )
    assert np.allclose(layer(**given).vertices, expected, atol=1e-12)


def test_rotating_the_root_rotates_the_mesh(layer):
    given = random_arguments(4)
    turn = batch_rodrigues(given.pop("global_pose"))
    translation = given.pop("translation")[:, None]
    still, moved = layer(**given), layer(**given, global_pose=axis_angles(turn), translation=translation[:, 0])
    root = still.joints[:, :1]
    for before, after in zip(still[:2], moved[:2], strict=True):
        expected = (before - root) @ turn.transpose(1, 2) + root + translation
        assert torch.allclose(after, expected, atol=1e-12)


def axis_angles(rotations):
    return torch.cat([axis_angle(rotation) for rotation in rotations])


def test_landmarks_lie_on_the_mesh_contour_first(model, layer):
    yaws = [-50.0, -12.4, 0.0, 0.6, 25.0, 70.0]
    given = random_arguments(len(yaws)) | {
        "global_pose": axis_angles([turned(yaw, pitch=8, roll=-15) for yaw in yaws]),
        "neck_pose": torch.zeros(1, 3, dtype=torch.float64),
    }
    output = layer(**given)
    embedding = model.landmarks
    for i, row in enumerate(contour_row(yaws)):
        vertices = output.vertices[i].numpy()
        faces = np.concatenate([embedding.contour_faces_idx[row], embedding.static_faces_idx])
        bary = np.concatenate([embedding.contour_bary_coords[row], embedding.static_bary_coords])
        assert np.allclose(output.landmarks[i], (vertices[model.faces[faces]] * bary[..., None]).sum(1), atol=1e-12)
    assert torch.allclose(layer.static_landmarks(output.vertices), output.landmarks[:, 17:], atol=1e-12)


def contour_rows_of(model, layer, pose):
    """Rows of the contour table that the landmarks of the posed head are those of."""
    output = layer(pose=pose)
    corners = output.vertices[:, model.faces[model.landmarks.contour_faces_idx]]  # (B, 79, 17, 3 corners, 3)
    points = (corners * torch.tensor(model.landmarks.contour_bary_coords)[..., None]).sum(-2)
    distance = (points - output.landmarks[:, None, :17]).abs().amax((2, 3))
    assert distance.min(1).values.max() < 1e-12
    return distance.argmin(1).tolist()


@pytest.mark.parametrize("y_down", [False, True])
def test_contour_row_follows_yaw_and_not_roll_or_pitch(model, layer, y_down):
    yaws = np.arange(-60, 61, 1.7)
    for pitch, roll in ((0, 0), (0, 120), (-20, 0), (15, -40)):
        pose = torch.eye(3, dtype=torch.float64).repeat(len(yaws), 5, 1, 1)
        pose[:, 0] = torch.stack([turned(yaw, pitch, roll, y_down) for yaw in yaws])
        assert contour_rows_of(model, layer, pose) == contour_row(yaws).tolist()


def test_contour_row_is_that_of_root_and_neck_together(model, layer):
    pose = torch.eye(3, dtype=torch.float64).repeat(1, 5, 1, 1)
    pose[:, 0], pose[:, 1], pose[:, 2] = turned(33.2), turned(-10), turned(-30)
    assert contour_rows_of(model, layer, pose) == contour_row([23.2]).tolist()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.float64, 1e-12)])
def test_landmarks_alone_equal_those_of_forward(model, dtype, tolerance):
    layer = FLAME(model, dtype=dtype)
    given = random_arguments(9, dtype=dtype)
    assert torch.allclose(layer.landmarks(**given), layer(**given).landmarks, atol=tolerance)
    pose = torch.cat([given.pop(name) for name in ("global_pose", "neck_pose", "jaw_pose", "eye_pose")], dim=1)
    assert torch.allclose(layer.landmarks(**given, pose=pose), layer(**given, pose=pose).landmarks, atol=tolerance)
    matrices = batch_rodrigues(pose.reshape(-1, 3)).view(9, 5, 3, 3)
    assert torch.allclose(layer.landmarks(**given, pose=matrices), layer(**given, pose=pose).landmarks, atol=tolerance)


def test_gradients_reach_every_argument(layer):
    given = {name: value.requires_grad_() for name, value in random_arguments(2).items()}
    weights = torch.randn(68, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (layer(**given).landmarks * weights).sum().backward()
    through_mesh = {name: value.grad.clone() for name, value in given.items()}
    for value in given.values():
        value.grad = None
    (layer.landmarks(**given) * weights).sum().backward()
    for name, value in given.items():
        assert through_mesh[name].abs().max() > 1e-4, name
        assert torch.allclose(value.grad, through_mesh[name], atol=1e-10), name
    assert not list(layer.parameters())


def test_missing_arguments_are_zeros_and_short_ones_are_padded(layer):
    given = random_arguments(3)
    zeros = {name: torch.zeros_like(value) for name, value in given.items()}
    assert torch.equal(layer(**given).vertices, layer(**zeros | given).vertices)
    for name in given:
        one = layer(**{name: given[name]})
        assert torch.allclose(one.vertices, layer(**zeros | {name: given[name]}).vertices, atol=1e-12)
    padded = torch.cat([given["shape"][:, :2], torch.zeros(3, 5, dtype=torch.float64)], dim=1)
    assert torch.equal(layer(shape=given["shape"][:, :2]).vertices, layer(shape=padded).vertices)


@pytest.mark.parametrize(
    "missing", [[], ["neck_pose", "eye_pose"], ["shape", "translation"], ["jaw_pose", "eye_pose", "expression"]]
)
def test_usual_arguments_need_no_second_look(layer, missing, monkeypatch):
    given = {name: value.requires_grad_() for name, value in random_arguments(3).items() if name not in missing}

    def step():
        output = layer(**given)
        return *output, *torch.autograd.grad([value.square().sum() for value in output], list(given.values()))

    looks = []
    fitted = layer._fitted
    monkeypatch.setattr(layer, "_fitted", lambda *a: looks.append(a) or fitted(*a))
    usual = step()
    assert not looks
    monkeypatch.setattr("ringnet_ext.flame.layer.core.batch_size", lambda *a: -1)
    assert all(torch.equal(a, b) for a, b in zip(usual, step(), strict=True)) and looks


def test_a_buffer_may_be_replaced_by_a_parameter(model):
    layer = FLAME(model, dtype=torch.float64)
    given = random_arguments(2)
    layer(**given)
    layer.v_template = torch.nn.Parameter(1.1 * layer.v_template)
    output = layer(**given)
    (gradient,) = torch.autograd.grad(output.vertices.sum() + output.landmarks.sum(), layer.v_template)
    step = torch.randn(gradient.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer.v_template += 1e-3 * step
        moved = layer(**given)
    difference = (moved.vertices - output.vertices).sum() + (moved.landmarks - output.landmarks).sum()
    assert torch.allclose(difference, 1e-3 * (gradient * step).sum(), rtol=1e-9)


@pytest.mark.parametrize("single", ["shape", "expression", "global_pose", "jaw_pose", "eye_pose", "translation"])
def test_a_batch_of_one_is_broadcast(layer, single):
    given = random_arguments(3)
    given[single] = given[single][:1]
    expected = layer(**given | {single: given[single].repeat(3, 1)})
    for ours, theirs in zip(layer(**given), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_each_element_of_a_batch_is_on_its_own(layer):
    given = random_arguments(5)
    together = layer(**given)
    alone = layer(**{name: value[3:4] for name, value in given.items()})
    for ours, theirs in zip(alone, together, strict=True):
        assert torch.allclose(ours, theirs[3:4], atol=1e-12)


def test_a_model_of_any_size(model):
    body = random_model(seed=3, V=83, J=24, S=12, E=0, landmarks=False)
    layer = FLAME(body, shape_params=10, dtype=torch.float64)
    assert (layer.shape_params, layer.expression_params) == (10, 0)
    generator = torch.Generator().manual_seed(0)
    pose = 0.3 * torch.randn(2, 72, generator=generator, dtype=torch.float64)
    output = layer(torch.randn(1, 10, generator=generator, dtype=torch.float64), pose=pose)
    assert output.vertices.shape == (2, 83, 3) and output.joints.shape == (2, 24, 3) and output.landmarks is None
    only_root = torch.cat([pose[:, :3], torch.zeros(2, 69, dtype=torch.float64)], dim=1)
    assert torch.equal(layer(global_pose=pose[:, :3]).vertices, layer(pose=only_root).vertices)
    with pytest.raises(ValueError, match="no landmarks"):
        layer.landmarks()
    with pytest.raises(ValueError, match="jaw_pose: these are FLAME's joints, but the model has 24"):
        layer(jaw_pose=pose[:, :3])


def test_state_dict_carries_the_model(model, layer):
    other = FLAME(random_model(seed=9), dtype=torch.float64)
    given = random_arguments(2)
    assert not torch.allclose(other(**given).vertices, layer(**given).vertices)
    other.load_state_dict(layer.state_dict())
    for ours, theirs in zip(other(**given), layer(**given), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(other.landmarks(**given), layer.landmarks(**given))


# A fixed identity


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("folded", [["shape", "expression"], ["shape"], ["expression"]], ids="-".join)
@pytest.mark.parametrize("matrices", [False, True], ids=["axis-angle", "matrices"])
def test_a_fixed_identity_gives_what_the_full_layer_gives(model, device, dtype, tolerance, folded, matrices):
    layer = FLAME(model, dtype=dtype, neck_joint=2).to(device)
    given = {name: value.to(device) for name, value in random_arguments(20, dtype=dtype).items()}
    if matrices:
        pose = torch.cat([given.pop(name) for name in ("global_pose", "neck_pose", "jaw_pose", "eye_pose")], dim=1)
        given["pose"] = batch_rodrigues(pose.reshape(-1, 3)).view(20, 5, 3, 3)
    given |= {name: given[name][:1, :3] for name in folded}  # of one person, the first three coefficients
    fixed = layer.fixed(**{name: given[name] for name in folded})
    free = {name: value.requires_grad_() for name, value in given.items() if name not in folded}
    weights = [torch.randn(20, n, 3, device=device, dtype=dtype) for n in (60, 5, 68)]
    want, got = layer(**given), fixed(**free)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == dtype and (a - b).abs().max() <= tolerance
    assert torch.allclose(fixed.landmarks(**free), want.landmarks, rtol=0, atol=tolerance)
    gradients = [torch.autograd.grad(output, list(free.values()), weights) for output in (got, want)]
    for name, a, b in zip(free, *gradients, strict=True):
        assert (a - b).abs().max() <= 20 * tolerance * b.abs().max().clamp_min(1), name


def test_an_identity_is_fixed_in_steps_or_at_once(layer):
    given = random_arguments(1)
    shape, expression, jaw_pose = (given[name] for name in ("shape", "expression", "jaw_pose"))
    at_once = layer.fixed(shape, expression)
    for fixed in (layer.fixed(shape).fixed(expression=expression), layer.fixed(expression=expression).fixed(shape)):
        assert (fixed.shape_params, fixed.expression_params) == (0, 0)
        assert torch.allclose(
            fixed(jaw_pose=jaw_pose).vertices, at_once(jaw_pose=jaw_pose).vertices, rtol=0, atol=1e-14
        )
    assert (layer.fixed(shape).expression_params, layer.fixed(expression=expression).shape_params) == (4, 7)
    assert at_once().vertices.shape == (1, 60, 3) and at_once(jaw_pose=jaw_pose.expand(6, -1)).joints.shape == (6, 5, 3)


def test_a_fixed_layer_and_its_original_go_their_own_ways(model):
    layer = FLAME(model, dtype=torch.float64)
    given = random_arguments(3)
    shape, pose = given["shape"][:1], {"jaw_pose": given["jaw_pose"], "global_pose": given["global_pose"]}
    fixed = layer.fixed(shape)
    assert not {t.data_ptr() for t in layer.buffers()} & {t.data_ptr() for t in fixed.buffers() if t.numel()}

    full, folded = layer(shape, **pose), fixed(**pose)
    for constant in layer.buffers():
        if constant.is_floating_point():
            constant.mul_(1.5)
    assert not torch.allclose(layer(shape, **pose).vertices, full.vertices)
    for ours, theirs in zip(fixed(**pose), folded, strict=True):
        assert torch.equal(ours, theirs)

    layer.load_state_dict(FLAME(model, dtype=torch.float64).state_dict())
    for constant in fixed.buffers():
        if constant.is_floating_point():
            constant.mul_(1.5)
    assert not torch.allclose(fixed(**pose).vertices, folded.vertices)
    fixed.float()
    for ours, theirs in zip(layer(shape, **pose), full, strict=True):
        assert torch.equal(ours, theirs)


def test_a_fixed_identity_is_a_constant(layer):
    shape = random_arguments(1)["shape"].requires_grad_()
    fixed = layer.fixed(shape)
    assert not fixed().vertices.requires_grad and not list(fixed.parameters())
    with torch.no_grad():
        before = fixed().vertices
        shape.zero_()
    assert torch.equal(fixed().vertices, before)


def test_any_model_can_have_its_identity_fixed():
    layer = FLAME(random_model(seed=3, V=83, J=24, S=12, E=0, landmarks=False), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    shape, pose = (torch.randn(n, k, generator=generator, dtype=torch.float64) for n, k in ((1, 12), (2, 72)))
    full, fixed = layer(shape, pose=pose), layer.fixed(shape)(pose=pose)
    assert torch.allclose(fixed.vertices, full.vertices, rtol=0, atol=1e-13) and fixed.landmarks is None


def test_wrong_identities_are_named(model):
    layer = FLAME(model)
    shape, expression = torch.zeros(1, 7), torch.zeros(1, 4)
    for arguments, message in (
        (dict(), "shape, expression, static_offset: expected at least one of them, got none"),
        (dict(shape=torch.zeros(3, 7)), "shape: expected one person, a batch of 1, got 3"),
        (dict(shape=torch.zeros(7)), r"shape: expected shape \(B, at most 7\), got \(7,\)"),
        (dict(expression=torch.zeros(1, 5)), r"expression: expected shape \(B, at most 4\), got \(1, 5\)"),
        (dict(expression=expression.double()), "expression: expected torch.float32 like the layer, got torch.float64"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            layer.fixed(**arguments)
    fixed = layer.fixed(shape)
    for call in (fixed, fixed.landmarks, fixed.fixed):
        with pytest.raises(
            ValueError, match="shape: expected none, as this layer's is fixed; use the layer that fixed"
        ):
            call(shape)
    fixed(expression=expression)
    with pytest.raises(RuntimeError, match="size mismatch for shapedirs"):
        fixed.load_state_dict(layer.state_dict())


def test_dtype(model, layer):
    given = random_arguments(2)
    single = FLAME(model)
    low = {name: value.float() for name, value in given.items()}
    assert single(**low).vertices.dtype == torch.float32
    assert torch.allclose(single(**low).vertices.double(), layer(**given).vertices, atol=1e-5)
    half = {name: value.half() for name, value in given.items()}
    assert torch.equal(single(**half).vertices, single(**{n: v.float() for n, v in half.items()}).vertices)
    with pytest.raises(TypeError, match=r"shape: expected torch.float32 like the layer, got torch.float64"):
        single(shape=given["shape"])
    double = single.double()(**given)
    assert double.vertices.dtype == double.landmarks.dtype == torch.float64
    assert torch.allclose(double.vertices, layer(**given).vertices, atol=1e-6)


def test_to_a_device_and_back(model, layer, device):
    given = random_arguments(3)
    expected = layer(**given)
    moved = FLAME(model, dtype=torch.float64).to(device)
    there = {name: value.to(device) for name, value in given.items()}
    for ours, theirs in zip(moved(**there), expected, strict=True):
        assert ours.device.type == device.type and torch.allclose(ours.cpu(), theirs, atol=1e-12)
    assert torch.allclose(moved.landmarks(**there).cpu(), expected.landmarks, atol=1e-12)
    assert torch.equal(moved.cpu()(**given).vertices, expected.vertices)


def test_compiles_whole(model):
    layer = FLAME(model)
    given = random_arguments(2, dtype=torch.float32)
    poses = {name: value for name, value in given.items() if name not in ("shape", "expression")}
    person = FLAME(replace(model, eyeliddirs=np.full((60, 3, 2), 0.01)))
    tracked = given | {"eyelids": torch.rand(2, 2), "static_offset": offsets(1).float()}
    fixed = layer.fixed(given["shape"][:1], given["expression"][:1])
    for module, arguments in ((layer, given), (fixed, poses), (person, tracked)):
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        for ours, theirs in zip(compiled(**arguments), module(**arguments), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("batch", [0, 1])
def test_small_batches(layer, batch):
    output = layer(**random_arguments(batch))
    assert output.vertices.shape == (batch, 60, 3) and output.landmarks.shape == (batch, 68, 3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(shape=torch.zeros(1, 8)), r"shape: expected shape \(B, at most 7\), got \(1, 8\)"),
        (dict(expression=torch.zeros(4)), r"expression: expected shape \(B, at most 4\), got \(4,\)"),
        (dict(global_pose=torch.zeros(2, 4)), r"global_pose: expected shape \(B, 3\), got \(2, 4\)"),
        (dict(eye_pose=torch.zeros(2, 3)), r"eye_pose: expected shape \(B, 6\), got \(2, 3\)"),
        (dict(pose=torch.zeros(2, 12)), r"pose: expected shape \(B, 15\), got \(2, 12\)"),
        (dict(pose=torch.zeros(2, 4, 3, 3)), r"pose: expected shape \(B, 5, 3, 3\), got \(2, 4, 3, 3\)"),
        (dict(pose=torch.zeros(1, 15), neck_pose=torch.zeros(1, 3)), "pose of all joints or neck_pose, got both"),
        (dict(shape=torch.zeros(2, 7), jaw_pose=torch.zeros(3, 3)), "batch sizes differ: shape 2, jaw_pose 3"),
        (dict(shape=torch.zeros(1, 7, dtype=torch.int64)), "shape: expected torch.float32 like the layer"),
        (dict(jaw_pose=torch.zeros(1, 3, device="meta")), "jaw_pose: expected device cpu like the layer, got meta"),
        (dict(shape=[[0.0] * 7]), "shape: expected a tensor, got list"),
    ],
)
def test_wrong_arguments_are_named(model, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        FLAME(model)(**arguments)


def test_a_layer_with_a_parameter_for_a_buffer_is_fixed_and_exported(model):
    layer, parameter = FLAME(model, dtype=torch.float64), FLAME(model, dtype=torch.float64)
    del parameter.v_template
    parameter.v_template = torch.nn.Parameter(layer.v_template.clone())
    shape, jaw = torch.ones(1, 7, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)
    want = layer(shape, jaw_pose=jaw).vertices
    fixed = parameter.fixed(shape)
    assert torch.allclose(fixed(jaw_pose=jaw).vertices, want, atol=1e-12) and not list(fixed.parameters())
    assert fixed.state_dict().keys() == layer.state_dict().keys()
    exported = parameter.exportable()(shape, jaw_pose=jaw)[0]
    assert torch.allclose(exported, want, atol=1e-12) and exported.requires_grad


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(shape_params=None), "shape_params: expected how many directions to use at most, got None"),
        (dict(expression_params=-1), "expression_params: expected how many directions to use at most, got -1"),
        (dict(dtype=torch.float16), r"dtype: expected torch.float32 or torch.float64, got torch.float16"),
        (dict(neck_joint=5), "neck_joint: expected one of the model's 5 joints, got 5"),
    ],
)
def test_wrong_settings_are_named(model, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        FLAME(model, **arguments)


def test_half_precision_is_refused_with_what_to_do(model):
    half = FLAME(model).half()
    for dtype, message in (
        (torch.float32, "this layer is torch.float16"),
        (torch.float16, "shapedirs: .* float16"),
    ):
        with pytest.raises(TypeError, match=rf"{message}.*; .float\(\) brings"):
            half(torch.zeros(1, 7, dtype=dtype), torch.zeros(1, 4, dtype=dtype))


def test_from_a_file(model, layer, tmp_path):
    model.save(tmp_path / "head.npz")
    assert torch.equal(FLAME(tmp_path / "head.npz", dtype=torch.float64)().landmarks, layer().landmarks)


# The real surface: with the right row of the contour table, the landmarks of the far side are on the silhouette


def distance_to_silhouette(vertices, faces, points, pixel=5e-4):
    """Distance of points to the outline of an orthographic picture of the mesh, in millimetres."""
    import cv2

    low = vertices[:, :2].min(0) - 20 * pixel
    width, height = np.ceil((vertices[:, :2].max(0) + 20 * pixel - low) / pixel).astype(int)
    mask = np.zeros((height, width), np.uint8)
    for triangle in np.rint((vertices[:, :2] - low) / pixel * 16).astype(np.int32)[faces]:
        cv2.fillConvexPoly(mask, triangle, 255, shift=4)
    inside, outside = (cv2.distanceTransform(m, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for m in (mask, 255 - mask))
    column, row = np.rint((points[:, :2] - low) / pixel).astype(int).T
    return np.maximum(inside, outside)[row, column] * pixel * 1000


@pytest.mark.parametrize("y_down", [False, True], ids=["y_up", "y_down"])
@pytest.mark.parametrize("yaw", [-39, -30, 30, 39])
def test_far_side_contour_is_on_the_silhouette(head_files, yaw, y_down):
    head = read_head(head_files)
    layer = FLAME(head, dtype=torch.float64)
    far = slice(0, 8) if yaw < 0 else slice(9, 17)
    output = layer(global_pose=axis_angle(turned(yaw, y_down=y_down)))
    vertices = output.vertices[0].numpy()
    distance = distance_to_silhouette(vertices, head.faces, output.landmarks[0, far].numpy())
    assert distance.max() < 3 and np.median(distance) < 1.5

    wrong = contour_row(-yaw)
    bary = head.landmarks.contour_bary_coords[wrong, far, :, None]
    points = (vertices[head.faces[head.landmarks.contour_faces_idx[wrong, far]]] * bary).sum(1)
    off = distance_to_silhouette(vertices, head.faces, points)
    assert off.max() > 7 and np.median(off) > 2 * np.median(distance)


def offsets(batch, V=60, seed=3):
    return 0.01 * torch.randn(batch, V, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same_output(ours, expected):
    return all(torch.allclose(a, b, rtol=0, atol=1e-13) for a, b in zip(ours, expected, strict=True))


def test_a_static_offset_is_another_template(model, layer):
    given, offset = random_arguments(3), offsets(3)
    output = layer(**given, static_offset=offset)
    for i in range(3):
        person = FLAME(replace(model, v_template=model.v_template + offset[i].numpy()), dtype=torch.float64)
        one = {name: value[i : i + 1] for name, value in given.items()}
        assert same_output([part[i : i + 1] for part in output], person(**one))
        assert same_output(layer(**one, static_offset=offset[i : i + 1]), person(**one))
        assert same_output(layer.fixed(static_offset=offset[i : i + 1])(**one), person(**one))
        fixed = layer.fixed(one["shape"], static_offset=offset[i : i + 1])
        assert same_output(fixed(**one | {"shape": None}), person(**one))
    assert torch.allclose(layer.landmarks(**given, static_offset=offset), output.landmarks, rtol=0, atol=1e-13)


def test_static_offsets_broadcast(layer):
    given, offset = random_arguments(3), offsets(3)
    one = {name: value[:1] for name, value in given.items()}
    assert same_output(
        layer(**given, static_offset=offset[:1]), layer(**given, static_offset=offset[:1].expand(3, -1, -1))
    )
    many = layer(**one, static_offset=offset)
    assert same_output(many, layer(**{k: v.expand(3, -1) for k, v in one.items()}, static_offset=offset))
    assert layer(static_offset=offset).vertices.shape == (3, 60, 3)
    matrices = batch_rodrigues(given["eye_pose"].reshape(-1, 3)[:5]).unsqueeze(0)
    assert layer(pose=matrices, static_offset=offset).vertices.shape == (3, 60, 3)
    assert same_output(layer(**given, static_offset=torch.zeros(1, 0, 3, dtype=torch.float64)), layer(**given))


def test_gradients_reach_a_static_offset(layer):
    given, offset = random_arguments(2), offsets(2).requires_grad_()
    for part in layer(**given, static_offset=offset):
        assert torch.autograd.grad(part.square().sum(), offset, retain_graph=True)[0].abs().max() > 0
    assert torch.autograd.gradcheck(lambda o: layer(**given, static_offset=o).vertices, (offset,), atol=1e-7)


def test_wrong_static_offsets_are_named(layer):
    for offset, message in (
        (offsets(1, V=61), r"static_offset: expected shape \(B, 60, 3\), got \(1, 61, 3\)"),
        (offsets(1)[0], r"static_offset: expected shape \(B, 60, 3\), got \(60, 3\)"),
        (0, "static_offset: expected a tensor, got int"),
        (offsets(2), "batch sizes differ: static_offset 2, shape 3"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            layer(random_arguments(3)["shape"], static_offset=offset)
    fixed = layer.fixed(static_offset=offsets(1))
    with pytest.raises(ValueError, match="static_offset: expected none, as this layer's is fixed"):
        fixed(static_offset=offsets(1))
    with pytest.raises(ValueError, match="static_offset: expected one person"):
        layer.fixed(static_offset=offsets(2))


@pytest.mark.parametrize("expression_params", [0, 2, 50])
def test_eyelids_come_on_top_of_any_number_of_expressions(model, expression_params, tmp_path):
    lids = offsets(2, seed=4).permute(1, 2, 0).numpy()
    model.save(tmp_path / "model.npz")
    for i, name in enumerate(("l_eyelid", "r_eyelid")):
        np.save(tmp_path / f"{name}.npy", lids[..., i])
    with_lids = FlameModel.load(tmp_path / "model.npz", eyelids=(tmp_path / "l_eyelid.npy", tmp_path / "r_eyelid.npy"))
    with_lids.save(tmp_path / "both.npz")
    with_lids = FlameModel.load(tmp_path / "both.npz")
    assert np.array_equal(with_lids.eyeliddirs, lids)
    layer = FLAME(with_lids, expression_params=expression_params, dtype=torch.float64)
    assert (layer.expression_params, layer.eyelid_params) == (min(expression_params, 4), 2)
    given = random_arguments(3)
    given["expression"] = given["expression"][:, :expression_params]
    eyelids = given["translation"][:, :2]
    # Coefficients of further expressions, counted by hand.
    columns = np.concatenate([model.expressiondirs[..., : layer.expression_params], lids], axis=2)
    by_hand = FLAME(replace(model, expressiondirs=columns), dtype=torch.float64)
    expected = by_hand(**given | {"expression": torch.cat([given["expression"], eyelids], 1)})
    assert same_output(layer(**given, eyelids=eyelids), expected)
    assert same_output(layer.fixed(given["shape"][:1])(**given | {"shape": None}, eyelids=eyelids),
                       layer(**given | {"shape": given["shape"][:1]}, eyelids=eyelids))  # fmt: skip
    assert same_output(layer(**given), layer(**given, eyelids=0 * eyelids))
    assert same_output(layer(**given, eyelids=eyelids[:, :0]), layer(**given))


def test_eyelids_without_their_directions(model, layer):
    with pytest.raises(
        ValueError, match=r"eyelids: this model has no directions of the eyelids; FlameModel.load\(..., eyelids="
    ):
        layer(eyelids=torch.ones(1, 2, dtype=torch.float64))
    assert layer(eyelids=torch.ones(1, 0, dtype=torch.float64)).vertices.shape == (1, 60, 3)
    with pytest.raises(ValueError, match=r"eyeliddirs: expected shape \(60, 3, 2\), got \(60, 3, 3\)"):
        replace(model, eyeliddirs=np.zeros((60, 3, 3)))
