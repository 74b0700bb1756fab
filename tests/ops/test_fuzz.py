"""A part of what tests/fuzz_operators.py tries; .ci/run has it try all."""

import pytest
import torch
from fuzz_operators import fuzz

from ringnet_ext import ops


def test_random_configurations():
    findings, summary = fuzz(200, 0, seed=10_000, seconds=60)
    print(summary)
    assert not findings


@pytest.mark.filterwarnings("ignore")  # of nested and sparse tensors, about themselves
def test_malformed_calls():
    findings, summary = fuzz(0, 500, seed=10_000, seconds=60)
    print(summary)
    assert not findings


@pytest.mark.filterwarnings("ignore")
def test_what_is_accepted_is_found(monkeypatch):
    monkeypatch.setattr(ops, "flame_lbs", lambda **arguments: (torch.zeros(1), torch.zeros(1)))
    findings, _ = fuzz(0, 20)
    assert findings and all("flame_lbs" in finding and finding.endswith(": accepted") for finding in findings)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda outputs: (outputs[0] + 3e-6, *outputs[1:]),
        lambda outputs: (outputs[0] + 1e-3 * (outputs[0] - outputs[0].detach()), *outputs[1:]),
        lambda outputs: (outputs[0] * (1 + 1e-9 * torch.rand(()).double()), *outputs[1:]),
        lambda outputs: (outputs[0].mT, *outputs[1:]),
    ],
    ids=["value", "gradient", "bits", "shape"],
)
def test_what_is_wrong_is_found(wrong, monkeypatch):
    right = ops.flame_lbs
    monkeypatch.setattr(ops, "flame_lbs", lambda *arguments, **named: wrong(right(*arguments, **named)))
    findings, _ = fuzz(20, 0)
    assert any("flame_lbs" in finding for finding in findings)
