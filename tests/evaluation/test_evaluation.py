"""The held-out table, of networks whose answers are known."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from ringnet_ext import RingNet
from ringnet_ext.data.synthetic import SyntheticFaces
from ringnet_ext.evaluation import synthetic as evaluation
from ringnet_ext.evaluation.synthetic import evaluate, shape_errors
from ringnet_ext.fitting import Priors, fit
from ringnet_ext.flame import FLAME
from ringnet_ext.flame.parameters import HeadParams
from ringnet_ext.geometry.rotations import axis_angle_from_matrix, matrix_from_axis_angle


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    return SyntheticFaces(identities=8, images_per_identity=3, size=64).load(cache=tmp_path_factory.mktemp("cache"))


class Answering(RingNet):
    """A network that says what it is told of the images of a set, in their order."""

    def tell(self, params):
        self.told, self.asked = params, 0
        return self

    def forward(self, images):
        rows = slice(self.asked, self.asked + len(images))
        self.asked += len(images)
        return HeadParams(*(value[rows] for value in self.told))


@pytest.fixture(scope="module")
def truth(faces):
    """The true parameters, as the network sees them in its crops: the landmarks of both are the same but for the
    camera."""
    model = Answering()
    pose, jaw, shape, expression = (
        torch.from_numpy(faces.truth[name]) for name in ("global_pose", "jaw_pose", "shape", "expression")
    )
    params = HeadParams(torch.zeros(len(faces), 3), pose, jaw, shape, expression)
    _, target, *_ = evaluation.predict(model.tell(params), faces)
    points = model.flame.landmarks(shape, expression, pose, jaw_pose=jaw)[..., :2]
    middle, aim = points.mean(1, keepdim=True), target.mean(1, keepdim=True)
    scale = ((points - middle) * (target - aim)).sum((1, 2)) / (points - middle).square().sum((1, 2))
    camera = torch.cat([scale[:, None], (aim / scale[:, None, None] - middle)[:, 0]], dim=1)
    return model, params._replace(camera=camera), target


@pytest.fixture
def report(faces):
    """The table of these answers."""
    return lambda model, params: evaluate(model.tell(params), faces)


def aligned_distance(source, target):
    """Mean distance in mm after the similarity that SciPy finds."""
    a, b = source - source.mean(0), target - target.mean(0)
    turn, _ = Rotation.align_vectors(b, a)
    a = turn.apply(a)
    return 1000 * np.linalg.norm(a * (a * b).sum() / (a * a).sum() - b, axis=1).mean()


def meshes(model, shape):
    return model.head.v_template + np.einsum("vck,nk->nvc", model.head.shapedirs, shape.double().numpy())


def test_a_network_that_knows_everything(truth, report, faces):
    model, params, _ = truth
    table = report(model, params)
    assert (table.identities, table.images) == (8, 24)
    assert table.nme < 3e-3 and table.yaw_correlation == pytest.approx(1)  # eyes turn, and RingNet's don't
    assert max(dataclasses.astuple(table.network)) < 1e-3
    assert (
        table.map_fit_together.face < table.map_fit.face < 0.6 * table.mean_shape.face
        and table.refined.face < 0.85 * table.mean_shape.face  # landmarks of a network's accuracy say less, but much
    )
    assert table.intra_mm < 1e-3 < table.inter_mm and table.intra_inter == pytest.approx(
        table.intra_mm / table.inter_mm
    )
    assert table.coefficient_correlation == pytest.approx([1.0] * 10)
    # What doesn't depend on the answers: the mean shape and the first two directions, of the first image of each
    # person.
    first = [int(np.flatnonzero(faces.identity == person)[0]) for person in np.unique(faces.identity)]
    true = params.shape[first]
    two = torch.where(torch.arange(100) < 2, true, 0.0)
    face = model.head.regions["face"]
    for found, shape in ((table.mean_shape, 0 * true), (table.two_directions, two)):
        pairs = list(zip(meshes(model, shape), meshes(model, true), strict=True))
        assert found.head == pytest.approx(np.mean([aligned_distance(a, b) for a, b in pairs]), rel=1e-3)
        assert found.face == pytest.approx(np.mean([aligned_distance(a[face], b[face]) for a, b in pairs]), rel=1e-3)
    lines = "\n".join(table.lines())
    for value in (table.mean_shape.face, table.mean_shape.head, table.two_directions.face, table.inter_mm):
        assert f"{value:.2f}" in lines
    assert f"{table.two_directions.head / table.mean_shape.head:.3f}" in lines


def test_a_network_that_is_wrong_in_known_ways(truth, report, faces):
    model, params, target = truth
    moved = params._replace(camera=params.camera + torch.tensor([0.0, 0.003, 0.004]))  # by 5 mm
    eyes = (target[:, 36] - target[:, 45]).norm(dim=-1)
    table = report(model, moved)
    assert table.nme == pytest.approx(float((0.005 * params.camera[:, 0] / eyes).mean()), rel=0.02)
    assert max(dataclasses.astuple(table.network)) < 1e-3  # the shape has not moved

    mirrored = params.shape.clone()
    mirrored[:, 3] *= -1
    table = report(model, params._replace(shape=mirrored))
    assert table.coefficient_correlation == pytest.approx([1, 1, 1, -1, 1, 1, 1, 1, 1, 1])
    assert table.network.head > 0.1

    other_way = matrix_from_axis_angle(torch.tensor([[0.0, 0.3, 0.0]])) @ matrix_from_axis_angle(params.global_pose)
    random = axis_angle_from_matrix(other_way)[torch.randperm(len(faces))]
    assert report(model, params._replace(global_pose=random)).yaw_correlation < 0.9

    # One image of the first person with another shape: errors are of first images, distances of all.
    shape = params.shape.clone()
    shape[1] = shape[1] + 1
    table = report(model, params._replace(shape=shape))
    assert max(dataclasses.astuple(table.network)) < 1e-3 and table.intra_mm > 0.01


def test_faces_without_a_truth_have_no_such_table(faces, truth):
    with pytest.raises(ValueError, match="faces: this table needs faces whose true shape is known"):
        evaluate(truth[0], dataclasses.replace(faces, truth=None))


def test_errors_of_many_shapes_are_those_of_each(truth):
    """Whatever fits in a batch of the measurement."""
    model, params, _ = truth
    shape = torch.randn(5, 100)
    each = [shape_errors(model, shape[i : i + 1], params.shape[i : i + 1]) for i in range(5)]
    for batch in (1, 2, 5, 64):
        whole = shape_errors(model, shape, params.shape[:5], batch=batch)
        assert whole.face == pytest.approx(np.mean([one.face for one in each]), rel=1e-5)
        assert whole.head == pytest.approx(np.mean([one.head for one in each]), rel=1e-5)


def test_a_fit_explains_the_landmarks_and_stays_with_likely_heads(truth):
    """From the mean head upright in the frame; the truth itself is no better by much, in what the fit minimises."""
    model, params, target = truth
    some = slice(0, 24, 8)
    true = HeadParams(*(value[some] for value in params))
    start = HeadParams(true.camera, true.global_pose, 0 * true.jaw_pose, 0 * true.shape, 0 * true.expression)

    layer = FLAME(model.head, shape_params=100, expression_params=50, dtype=torch.float64)

    def objective(found):
        points = layer.landmarks(found.shape, found.expression, found.global_pose, jaw_pose=found.jaw_pose)
        image = found.camera[:, None, :1] * (points[..., :2] + found.camera[:, None, 1:])
        residual = (image - target[some]).square().sum((1, 2)) / (2 * 0.003**2)
        return residual + found.shape.square().sum(1) / 2 + (found.expression / 0.5).square().sum(1) / 2

    def doubled(params):
        return HeadParams(*(value.double() for value in params))

    fitted = fit(model.flame, target[some], sigma=0.003, priors=Priors(jaw_pose=None)).params
    lowest = objective(doubled(fitted))
    assert (lowest < objective(doubled(true)) + 1).all() and (lowest < 0.2 * objective(doubled(start))).all()
    # Another method finds nothing lower nearby.
    free = [value.clone().requires_grad_() for value in doubled(fitted)]
    optimizer = torch.optim.LBFGS(free, lr=1e-3, max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = objective(HeadParams(*free)).sum()
        value.backward()
        return value

    optimizer.step(closure)
    with torch.no_grad():
        assert (objective(HeadParams(*free)) > 0.995 * lowest).all()
