"""Faults that were planted and that no test noticed: each would leave a run that looks well and learns something
else."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from ringnet_ext import RingNet
from ringnet_ext.data.augment import crop
from ringnet_ext.data.face_set import FaceSet
from ringnet_ext.detection.squares import fit_square
from ringnet_ext.evaluation import synthetic as evaluation
from ringnet_ext.flame import FLAME
from ringnet_ext.flame.parameters import HeadParams
from ringnet_ext.network.encoder import CompactEncoder, ResNet50
from ringnet_ext.network.regressor import IterativeRegressor
from ringnet_ext.render.pictures import overlay
from ringnet_ext.training.settings import TrainingSettings
from ringnet_ext.training.trainer import Trainer

SETTINGS = TrainingSettings(
    steps=3,
    rings_per_step=2,
    ring_size=3,
    shares=1,
    checkpoint_steps=1,
    warmup_steps=0,
    learning_rate=1e-3,
    readout_weight=0.0,
)


def marked_faces(count=6, size=32):
    """Grey pictures, black on one side, whose landmarks say where: no face, but every pixel knows its side."""
    images = np.full((count, size, size), 200, np.uint8)
    images[:, :, : size // 2] = 20
    landmarks = np.random.default_rng(0).uniform(-0.5, 0.5, (count, 68, 2)).astype(np.float32)
    landmarks[:, :2] = [[-0.6, -0.6], [0.6, 0.6]]
    return FaceSet(images, landmarks, np.ones((count, 68), np.float32), np.repeat(np.arange(count // 3), 3))


@pytest.fixture
def trainer(tmp_path):
    torch.manual_seed(0)

    def made(settings=SETTINGS, dropout=0.0):
        faces = marked_faces()
        return Trainer(RingNet(dropout=dropout), faces, faces, settings, tmp_path / "run")

    return made


def test_the_regressor_corrects_its_estimate_three_times():
    """Two rounds learn nearly as well on easy faces; the paper's network, and weights trained as it was, have three."""
    torch.manual_seed(0)
    mean, scale, features = torch.randn(7), torch.rand(7) + 0.5, torch.randn(4, 12)
    regressor = IterativeRegressor(12, mean, scale, dropout=0.0, leak=0.1).eval()
    nn.init.normal_(regressor.layers[-1].weight, std=0.1)
    hidden, last = regressor.layers[2], regressor.layers[-1]
    estimate = torch.zeros(4, 7)
    with torch.no_grad():
        for _ in range(3):
            x = (
                torch.cat([features, estimate], 1)
                @ torch.cat([regressor.from_features.weight, regressor.from_estimate.weight], 1).T
            )
            x = nn.functional.leaky_relu(x + regressor.from_features.bias, 0.1)
            x = nn.functional.leaky_relu(x @ hidden.weight.T + hidden.bias, 0.1)
            estimate = estimate + x @ last.weight.T + last.bias
        assert torch.allclose(regressor(features), mean + scale * estimate, atol=1e-5)


def test_a_ring_is_mirrored_as_a_whole():
    """The mirror image of a face is another shape. Mirrored one by one, a ring asks two shapes to be the same."""
    faces = marked_faces()
    indices = np.tile(np.arange(6)[:3], (40, 1))
    images, landmarks, _ = crop(faces, indices, 32, np.random.default_rng(0))
    dark_left = (images[:, 0, :, :4].float().mean((1, 2)) < 100).view(40, 3)
    assert torch.equal(dark_left.all(1), dark_left.any(1))
    assert 8 < dark_left[:, 0].sum() < 32  # and both kinds occur
    # The landmarks are mirrored with the pixels, and numbered anew: point 0 of the contour, on the dark side, becomes
    # point 16.
    x = landmarks[..., 0].view(40, 3, 68)
    assert (torch.where(dark_left, x[..., 0], -x[..., 16]) < -0.4).all()


def test_a_network_knows_what_it_was_trained_on(trainer, tmp_path):
    """What infer says of a network, and what keeps people from trusting one that has seen no photograph."""
    run = trainer()
    assert run.model.trained_on == "photographs"
    rendered = dataclasses.replace(run.faces, truth={"shape": np.zeros((6, 100), np.float32)})
    assert Trainer(RingNet(), rendered, rendered, SETTINGS, tmp_path / "other").model.trained_on == "synthetic faces"


@pytest.mark.parametrize("limit", [1e-3, None])
def test_the_whole_gradient_is_clipped(trainer, limit):
    """Without it a bad batch late in a long run throws the weights off. What is clipped is the length, not the
    direction."""
    run, plain = (trainer(dataclasses.replace(SETTINGS, gradient_clip=clip)) for clip in (limit, None))
    plain.model.load_state_dict(run.model.state_dict())
    seen = []
    for each in (run, plain):
        each.optimizer.step = lambda each=each: seen.append(
            torch.cat([p.grad.flatten() for p in each.parameters.values()])
        )
        each._update(None, each._batch(0))
    clipped, whole = seen
    assert whole.norm() > 0.01
    expected = whole if limit is None else whole * (limit / whole.norm())
    assert torch.allclose(clipped, expected, rtol=1e-3, atol=1e-6 * float(expected.norm()))


def test_each_prior_is_of_its_own_coefficients(trainer):
    """The pull towards the mean expression: computed from the shape it lets expressions grow without bound, and no loss
    shows it."""
    run = trainer(
        dataclasses.replace(SETTINGS, ring_weight=0.0, landmark_weight=0.0, shape_weight=2.0, expression_weight=30.0)
    )
    shape, expression = torch.full((6, 100), 0.1), torch.full((6, 50), 0.3)
    mean = run.model.regressor.mean
    params = HeadParams(mean[:3].expand(6, 3), mean[3:6].expand(6, 3), torch.zeros(6, 3), shape, expression)
    run.model.regress = lambda features: params
    terms = run.losses(run.model, *run._batch(0))
    assert float(terms["shape"]) == pytest.approx(100 * 0.1**2)
    assert float(terms["expression"]) == pytest.approx(50 * 0.3**2)
    assert float(terms["loss"]) == pytest.approx(2 * 1.0 + 30 * 4.5, rel=1e-5)


def test_a_neutral_mesh_has_no_expression_and_no_pose():
    """NoW scores this mesh: with the expression of the photograph in it every result is worse, and looks plausible."""
    model = RingNet().eval()
    random = np.random.default_rng(0)
    with torch.no_grad():
        model.regressor.mean[9:109] = torch.from_numpy(random.normal(size=100))
        model.regressor.mean[109:] = 2.0
        model.regressor.mean[6:9] = torch.tensor([0.3, 0.0, 0.0])
    face = model.reconstruct(fit_square(random.integers(0, 255, (64, 64, 3), dtype=np.uint8)))
    assert face.params.expression.abs().mean() > 1 and face.params.jaw_pose.norm() > 0.1
    shape = face.params.shape[0].double().numpy()
    expected = model.head.v_template + model.head.shapedirs @ shape
    assert np.abs(face.neutral_vertices - expected).max() < 1e-5
    posed = FLAME(model.head)(face.params.shape, face.params.expression).vertices[0].numpy()
    assert np.abs(face.neutral_vertices - posed).max() > 1e-3


def test_grey_is_what_grey_pictures_are():
    """Training faces are rendered grey with the eye's weights (BT.601, as OpenCV); other weights show the network other
    skin."""
    encoder = CompactEncoder().eval()
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    image[..., 0] //= 3  # of unequal channels, so that the order counts
    grey = torch.from_numpy(cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2GRAY))[None, None] / 127.5 - 1
    seen = []
    encoder.stages.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        encoder(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1)
        encoder(grey)
    assert torch.allclose(seen[0], seen[1], atol=1e-4) and seen[1].std() > 0.9


def test_resnet_sees_what_its_pretrained_weights_saw():
    """torchvision normalises red, green and blue each by its own mean and deviation. In another order nothing fails:
    features are a little worse."""
    encoder = ResNet50().eval()
    seen = []
    encoder.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    values = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        encoder(2 * values - 1)
    for channel, (mean, deviation) in enumerate(((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))):
        assert torch.allclose(seen[0][0, channel], (values[0, channel] - mean) / deviation, atol=1e-5)


def test_training_drops_hidden_units_and_nothing_else_does(trainer):
    """Dropout keeps a regressor with few people from learning them by heart; validation and use must not have it."""
    run = trainer(dropout=0.3)
    dropped = []
    layers = [layer for layer in run.model.regressor.modules() if isinstance(layer, nn.Dropout)]
    for layer in layers:
        layer.register_forward_hook(
            lambda _, inputs, output: dropped.append(
                (
                    float((output == 0).float().mean() - (inputs[0] == 0).float().mean()),
                    float((inputs[0] != 0).float().mean()),
                )
            )
        )
    run._update(None, run._batch(0))
    assert len(layers) == 2 and len(dropped) == 3 * 2  # both hidden layers, in every round
    for zeros, active in dropped:
        assert zeros == pytest.approx(0.3 * active, abs=0.05)
    dropped.clear()
    run._validate()
    assert dropped and all(zeros == 0 for zeros, _ in dropped)


def test_threads_share_no_dropout(trainer):
    """They have one random generator between them: with several, no run could be repeated or resumed exactly."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        shared = dataclasses.replace(SETTINGS, shares=2)
        assert (trainer(shared, dropout=0.3).workers, trainer(shared).workers) == (1, 2)
    finally:
        torch.set_num_threads(before)


def test_distances_within_and_between_people():
    """Their ratio is what the ring loss is for. Over everybody the pairs of one person would make it look worse than it
    is."""
    model = RingNet()
    identity = np.array([0, 0, 0, 1, 1, 2])
    shape = torch.randn(3, 100)[identity] + 0.2 * torch.randn(6, 100)
    meshes = model.head.v_template + np.einsum("vck,nk->nvc", model.head.shapedirs, shape.double().numpy())
    within, between = [], []
    for i in range(6):
        for j in range(i):
            distance = 1000 * np.sqrt(np.square(meshes[i] - meshes[j]).sum(-1).mean())
            (within if identity[i] == identity[j] else between).append(distance)
    found = evaluation._shape_distances(model, shape, identity)
    assert found == pytest.approx((np.mean(within), np.mean(between)), rel=1e-5)


def test_an_overlay_lies_where_the_camera_puts_the_head():
    """The picture people judge a fit by. The projection of the losses has its own tests; the overlay computes it
    anew."""
    corners = np.array([[-0.02, -0.03, 0], [0.02, -0.03, 0], [0.02, 0.03, 0], [-0.02, 0.03, 0]], np.float32)
    camera = np.array([8.0, 0.03, -0.05], np.float32)
    picture = overlay(np.zeros((100, 100, 3), np.uint8), corners, np.array([[0, 2, 1], [0, 3, 2]]), camera, opacity=1.0)
    rows, columns = np.nonzero(picture.sum(-1))
    x, y = (50 * (1 + 8.0 * (corners[:, axis] + shift)) for axis, shift in ((0, 0.03), (1, -0.05)))
    assert np.allclose([columns.min(), columns.max() + 1], [x.min(), x.max()], atol=1.01)
    assert np.allclose([rows.min(), rows.max() + 1], [y.min(), y.max()], atol=1.01)


def test_the_best_model_is_kept_not_the_last(trainer):
    """A run that overfits ends worse than it was: what is used is the model of the lowest validation loss."""
    run = trainer()
    losses, kept = iter([3.0, 1.0, 2.0]), []
    names = ("landmarks", "ring", "shape", "expression", "loss")

    def validate():
        kept.append({name: value.clone() for name, value in run.model.checkpoint_tensors().items()})
        return dict.fromkeys(names, next(losses))

    run._validate = validate
    assert run.train() and run.best == 1.0 and len(kept) == 3
    best = RingNet.load(run.folder).checkpoint_tensors()
    assert all(torch.equal(value, kept[1][name]) for name, value in best.items())
    assert not all(torch.equal(value, kept[2][name]) for name, value in best.items())
