"""How the learning rate goes."""

import dataclasses
import itertools

import pytest

from ringnet_ext.training.settings import TrainingSettings


def test_up_in_a_line_down_in_a_cosine():
    settings = dataclasses.replace(
        TrainingSettings(), steps=1050, warmup_steps=50, learning_rate=2e-3, final_learning_rate=0.1
    )
    rates = [settings.learning_rate_at(step) for step in range(1051)]
    assert rates[24] == pytest.approx(1e-3) and rates[49] == pytest.approx(2e-3)
    assert rates[50] == max(rates)
    assert rates[550] == pytest.approx(2e-3 * (1 + 0.1) / 2)  # half way
    assert rates[1050] == pytest.approx(2e-3 * 0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[50:]))


def test_a_constant_rate():
    settings = dataclasses.replace(TrainingSettings(), steps=100, warmup_steps=0, final_learning_rate=1.0)
    assert {settings.learning_rate_at(step) for step in range(100)} == {settings.learning_rate}
