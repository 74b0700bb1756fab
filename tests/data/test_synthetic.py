"""What is painted on synthetic faces: as varied as a training set needs, and always a picture."""

import itertools

import numpy as np
import pytest

from ringnet_ext.data import synthetic
from ringnet_ext.data.synthetic import _Painter


@pytest.mark.parametrize("palette", ["_SKIN", "_HAIR", "_IRIS"])
def test_palettes_are_colours_and_every_mixture_lies_between_two_neighbours(palette):
    colours = getattr(synthetic, palette)
    assert colours.min() >= 0 and colours.max() <= 1
    random = np.random.default_rng(0)
    mixtures = np.array([synthetic._mixed(random, colours) for _ in range(500)])
    for low, high in itertools.pairwise(colours):
        share = (mixtures - low) @ (high - low) / ((high - low) @ (high - low))
        near = np.abs(mixtures - low - np.clip(share, 0, 1)[:, None] * (high - low)).max(1) < 1e-9
        assert near.sum() > 500 / len(colours) / 2  # each stretch of the line has its part
    assert mixtures.min() >= 0 and mixtures.max() <= 1


def test_something_in_front_of_the_face_hides_a_part_of_it():
    size, random = 64, np.random.default_rng(0)
    hidden, colours, full, middles = [], [], [], []
    for _ in range(300):
        image = np.full((size, size, 3), -1.0, np.float32)
        _Painter._occlude(random, image)
        covered = image[..., 0] >= 0
        hidden.append(covered.mean())
        rows, columns = np.nonzero(covered)
        colours.append(image[rows[0], columns[0]])
        assert np.ptp(image[covered], axis=0).max() == 0  # one colour
        middles.append((rows.mean() / size, columns.mean() / size))
        box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        full.append(covered.sum() / box)
    hidden, colours, middles = np.array(hidden), np.array(colours), np.array(middles)
    assert hidden.min() > 0.005 and hidden.max() < 0.35 and hidden.std() > 0.02
    assert (colours >= 0).all() and (colours <= 1).all()
    assert (colours.std(0) > 0.2).all()  # any colour
    assert (middles.std(0) > 0.15).all()  # anywhere
    assert np.mean(np.array(full) > 0.9) < 0.4  # boxes are turned, and half are ellipses


def test_backgrounds_and_exposure_are_pictures_that_differ():
    random = np.random.default_rng(0)
    backgrounds = np.array([_Painter._background(random, 32) for _ in range(100)])
    assert backgrounds.min() >= 0 and backgrounds.max() <= 1
    means = backgrounds.mean((1, 2))
    assert means.std() > 0.15 and np.corrcoef(means[:, 0], means[:, 1])[0, 1] > 0.8  # bright or dark, rather grey
    assert np.median(backgrounds.std((1, 2))) > 0.05  # not plain
    grey = np.full((32, 32, 3), 0.5, np.float32)
    exposed = np.array([_Painter._expose(random, grey) for _ in range(100)]) / 255
    level = exposed.mean((1, 2, 3))
    assert level.max() < 0.5**0.8 + 0.01 and level.min() > 0.6 * 0.5**1.25 - 0.01 and level.std() > 0.04
    assert exposed.std((1, 2, 3)).max() < 0.03  # sensor noise


def test_poses_and_frames_are_drawn_as_far_as_they_are_said_to_go():
    faces, layer = synthetic.SyntheticFaces(), synthetic.FLAME(shape_params=5, expression_params=4)
    random = np.random.default_rng(0)
    drawn = [faces._draw(random, layer, np.zeros(5)) for _ in range(400)]
    fill, *shift = np.array([row["frame"] for row in drawn]).T
    assert fill.min() >= 0.52 and fill.max() <= 0.62
    assert 0.035 < np.abs(shift).max() <= 0.04
    eyes = np.array([row["eye_pose"] for row in drawn]).reshape(-1, 2, 3)
    assert (eyes[:, 0] == eyes[:, 1]).all() and (eyes[..., 2] == 0).all()  # both look at one thing, and don't roll
    np.testing.assert_allclose(np.degrees(eyes[:, 0, :2].std(0)), 8, rtol=0.15)
    jaw = np.array([row["jaw_pose"] for row in drawn])
    assert jaw[:, 0].min() >= 0 and (jaw[:, 1:] == 0).all()  # it opens
    assert np.array([row["expression"] for row in drawn]).std() == pytest.approx(faces.expression_sigma, rel=0.1)


def test_skin_is_blotched_a_little():
    """So that light alone doesn't tell the surface."""
    painter = _Painter(synthetic.builtin_head(), synthetic.SyntheticFaces())
    random = np.random.default_rng(0)
    head = synthetic.builtin_head()
    cheeks = np.setdiff1d(head.regions["face"], np.concatenate([v for k, v in head.regions.items() if k != "face"]))
    spreads = []
    for _ in range(10):
        albedo = painter._albedo(random)[cheeks if len(cheeks) > 100 else head.regions["face"]]
        spreads.append(np.abs(albedo / np.median(albedo, axis=0) - 1).max(1))
    assert 0.005 < np.median(spreads) < 0.1
    assert np.quantile(spreads, 0.99) < 0.25  # nowhere more than that
