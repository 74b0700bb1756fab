"""How far a face is to be trusted: what the score is made of."""

import numpy as np
import pytest
import torch

from ringnet_ext import RingNet, fit
from ringnet_ext.detection.squares import Square
from ringnet_ext.flame import FLAME
from ringnet_ext.inference.trust import Trust, agreements, certainties, described, inside, second_crops
from ringnet_ext.render.pictures import mark_points


def test_the_score_is_the_product_of_what_is_known():
    assert Trust().score is None
    assert Trust(agreement=0.5).score == 0.5
    assert Trust(0.5, 0.8).score == pytest.approx(0.4)
    assert Trust(None, 0.5, 0.5).score == 0.25


def test_landmarks_that_stay_with_the_picture_agree_and_those_that_stay_with_the_crop_do_not():
    """Judged by dots that are drawn in the first crop and found again in the second."""
    size, random = 224, np.random.default_rng(0)
    points = random.uniform(60, 160, (4, 68, 2))
    back = np.empty_like(points)
    for i, each in enumerate(points):
        for j, point in enumerate(each[:5]):
            image = np.zeros((size, size, 3), np.uint8)
            mark_points(image, point[None], (255, 255, 255), radius=3)
            second = second_crops([Square(image, 1.0, (0.0, 0.0))])[0][..., 0].astype(float)
            y, x = np.mgrid[:size, :size] + 0.5
            back[i, j] = (second * x).sum() / second.sum(), (second * y).sum() / second.sum()
    with_picture = agreements(points[:, :5], back[:, :5], size)
    assert (with_picture > 0.97).all()
    assert (agreements(points, points, size) < 1e-6).all()
    halfway = agreements(points[:, :5], (points[:, :5] + back[:, :5]) / 2, size)
    assert np.abs(halfway - 0.5).max() < 0.03


def test_inside():
    points = np.array([[0, 0], [10, 5], [10.1, 5], [5, -0.1]])
    assert inside(points, (10, 5)) == 0.5


def test_more_landmarks_make_a_fit_more_certain():
    flame = FLAME()
    points = flame.landmarks(global_pose=torch.tensor([[torch.pi, 0.2, 0.0]]))[..., :2] * 5
    known = torch.ones(1, 68)
    few = known.clone()
    few[:, 20:] = 0
    sure, unsure, vague = (
        certainties(fit(flame, points, confidence=weight, sigma=sigma), flame)[0]
        for weight, sigma in ((known, 0.002), (few, 0.002), (known, 0.2))
    )
    assert 1 > sure > unsure > 0 and sure > vague > 0


def test_certainty_is_the_part_of_the_shape_s_variance_that_is_found():
    """Of people as the prior expects them, who are seen with the noise that the fit assumes."""
    flame, g, sigma = FLAME(), torch.Generator().manual_seed(0), 0.01
    shape = torch.randn(60, flame.shape_params, generator=g)
    turned = torch.tensor([[torch.pi, 0.2, 0.0]]).expand(60, -1)
    points = flame.landmarks(shape, global_pose=turned)[..., :2] * 7
    found = fit(flame, points + sigma * torch.randn(points.shape, generator=g), sigma=sigma)
    truth, guess = flame(shape).vertices, flame(found.shape).vertices
    left = (guess - truth).square().sum() / (truth - flame.v_template).square().sum()
    assert float(left) == pytest.approx(1 - sum(certainties(found, flame)) / 60, rel=0.15)


@pytest.mark.parametrize(
    "trained_on, said", [("synthetic faces", "ringnet fit"), ("photographs", "photographs"), (None, "doesn't say")]
)
def test_what_the_network_was_trained_on(trained_on, said):
    model = RingNet()
    model.trained_on = trained_on
    assert said in described(model) and "\n" not in described(model)
    assert ("no likeness" in described(model)) == (trained_on == "synthetic faces")
