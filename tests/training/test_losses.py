import numpy as np
import pytest
import torch

from ringnet_ext.training.losses import coefficient_norm, landmark_loss, ring_shape_loss


def test_ring_loss_is_the_double_sum_of_the_paper():
    shape = torch.randn(3, 5, 7, dtype=torch.float64)
    margin, total = 0.5, 0.0
    for ring in shape.numpy():
        for i in range(4):
            for j in range(4):
                near, far = np.sum((ring[i] - ring[j]) ** 2), np.sum((ring[i] - ring[4]) ** 2)
                total += max(0.0, margin + near - far)
    assert float(ring_shape_loss(shape, margin)) == pytest.approx(total / 3 / 16)


def test_ring_loss_vanishes_for_equal_shapes_of_one_person_far_from_the_other():
    shape = torch.zeros(2, 6, 4)
    shape[:, -1, 0] = 1.0
    assert ring_shape_loss(shape, 0.5) == 0
    shape[:, -1, 0] = 0.5
    assert float(ring_shape_loss(shape, 0.5)) == pytest.approx(0.25)


def test_descending_the_ring_loss_brings_a_person_together_and_others_apart():
    shape = torch.randn(4, 6, 10).requires_grad_()

    def distances():
        same = (shape[:, :-1, None] - shape[:, None, :-1]).norm(dim=-1).mean()
        other = (shape[:, :-1] - shape[:, -1:]).norm(dim=-1).mean()
        return float(same.detach()), float(other.detach())

    before = distances()
    optimizer = torch.optim.Adam([shape], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        ring_shape_loss(shape, margin=0.5).backward()
        optimizer.step()
    after = distances()
    assert after[0] < before[0] and after[1] > before[1]
    assert ring_shape_loss(shape, margin=0.5) < 0.05


def test_landmark_loss_is_the_confidence_weighted_mean():
    predicted, target = torch.rand(2, 68, 2), torch.rand(2, 68, 2)
    assert torch.allclose(landmark_loss(predicted, target), landmark_loss(predicted, target, torch.ones(2, 68)))
    confidence = torch.rand(2, 68)
    expected = ((predicted - target).abs().mean(-1) * confidence).sum() / confidence.sum()
    assert torch.allclose(landmark_loss(predicted, target, confidence), expected)


def test_points_without_confidence_may_hold_anything():
    predicted = torch.rand(1, 68, 2, requires_grad=True)
    target, confidence = torch.rand(1, 68, 2), torch.ones(1, 68)
    target[0, 3], confidence[0, 3] = float("nan"), 0
    loss = landmark_loss(predicted, target, confidence)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(predicted.grad).all()
    assert (predicted.grad[0, 3] == 0).all() and (predicted.grad[0, 4] != 0).all()
    assert landmark_loss(predicted, target, torch.zeros(1, 68)) == 0


def test_coefficient_norm():
    assert float(coefficient_norm(torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]]))) == 12.5  # of two people
