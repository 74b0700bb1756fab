"""smplx's body models, the modules' own forward: as they are, with `smplx.body_models.lbs = ringnet_ext.flame_lbs`, and
accelerated.

Models of the real ones' sizes with random values (tests/smplx_models.py). FLAME and SMPLX with 10 and 10 coefficients,
smplx's default, and FLAME also with 300 and 100. Timed as in test_speed.py, ratios round by round, beside the machine's
bound for the body alone.
"""

import functools
import sys
from pathlib import Path

import pytest
import torch
from limits import Limits, skinned_points
from test_speed import BOUND, DIRECTIONS, Replay, limits
from timing import Neighbours, compared, interleaved, wait_for_quiet

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

UNCHANGED, LINE, ACCELERATED = "smplx", "lbs replaced", "accelerated"
WAYS = (UNCHANGED, LINE, ACCELERATED, BOUND)
MODELS = {name: (name, {}) for name in ("FLAME", "SMPL", "SMPLH", "SMPLX", "MANO")}
MODELS["FLAME-400"] = ("FLAME", dict(num_betas=300, num_expression_coeffs=100))

replay = Replay()


def pytest_generate_tests(metafunc):
    option = metafunc.config.getoption
    cases = [
        (model, B, backward, way)
        for model in MODELS
        for B in ([1, 64] if option("--quick") else [1, 64, 256])
        for backward in (False, True)
        for way in WAYS
    ]
    ids = [
        f"{model}-{'both' if backward else 'forward'}-B{B}-{way.replace(' ', '_')}" for model, B, backward, way in cases
    ]
    metafunc.parametrize("model, B, backward, way", cases, ids=ids)


def calls(model: str, B: int, backward: bool, device: torch.device) -> dict:
    """Each way's call. The module's joints are part of it, as smplx computes them."""
    import smplx.body_models
    from smplx_models import arguments, body_model

    import ringnet_ext

    name, options = MODELS[model]
    theirs = smplx.body_models.lbs

    def call(module, lbs):
        given = arguments(module, name, B, backward)
        with torch.no_grad():
            vertices = module(**given).vertices
            gradient = torch.randn(vertices.shape, generator=torch.Generator().manual_seed(0)).to(vertices)

        def run():
            smplx.body_models.lbs = lbs
            try:
                with torch.set_grad_enabled(backward):
                    vertices = module(**given).vertices
                gradients = torch.autograd.grad(vertices, list(given.values()), gradient) if backward else ()
                return (vertices,), gradients
            finally:
                smplx.body_models.lbs = theirs

        return run

    module, accelerated = (body_model(name, B, **options).to(device).requires_grad_(False) for _ in range(2))
    ringnet_ext.accelerate(accelerated)
    return {
        UNCHANGED: call(module, theirs),
        LINE: call(module, ringnet_ext.flame_lbs),
        ACCELERATED: call(accelerated, theirs),
    }


def coefficients(model: str) -> int:
    name, options = MODELS[model]
    return sum(options.values()) or (20 if name in ("FLAME", "SMPLX") else 10)


def bound(model: str, B: int, backward: bool, limit: Limits):
    """Seconds that the body's multiply-adds and bytes take at least."""
    from smplx_models import SIZES

    V, J = SIZES[MODELS[model][0]]
    K = coefficients(model)
    work = skinned_points(V, K + 9 * (J - 1), 4, K, J, B, backward, V)
    return lambda: max(limit.arithmetic(work.flops), limit.memory(work.read, work.written))


@functools.lru_cache(maxsize=1)
def measured(
    model: str, B: int, backward: bool, device: torch.device, seconds: float, patience: float
) -> dict[str, dict]:
    """Of each way: timings, and quartiles of its time over the unchanged module's, round by round."""
    timed = calls(model, B, backward, device)
    for _ in range(3):
        for call in timed.values():
            call()
    timed[BOUND] = bound(model, B, backward, limits(device))
    wait_for_quiet(patience)
    neighbours = Neighbours()
    times = interleaved(timed, device, seconds)
    others = neighbours.share()
    return {way: found | {"processors_used_by_others": others} for way, found in compared(times, UNCHANGED).items()}


@pytest.mark.benchmark(timer=replay.time)
def test_body_model(benchmark, request, model, B, backward, way):
    pytest.importorskip("smplx")
    option = request.config.getoption
    device = torch.device(option("--device"))
    if benchmark.disabled:
        if way in (LINE, ACCELERATED) and B == 1:
            every = calls(model, B, backward, device)
            (vertices,), gradients = every[way]()
            (expected,), expected_gradients = every[UNCHANGED]()
            torch.testing.assert_close(vertices, expected, rtol=0, atol=1e-5)
            for mine, theirs in zip(gradients, expected_gradients, strict=True):
                assert (mine - theirs).norm() <= 1e-3 * theirs.norm() + 1e-6
        benchmark(lambda: None)
        return
    found = dict(measured(model, B, backward, device, option("--seconds"), option("--patience"))[way])
    durations = found.pop("durations")
    benchmark.group = f"{model}-{'both' if backward else 'forward'}-B{B}"
    benchmark.extra_info |= {
        "op": f"smplx.{MODELS[model][0]}",
        "K": coefficients(model),
        "B": B,
        "direction": DIRECTIONS[backward],
        "contender": way,
        **found,
    }
    replay.durations = iter(durations)
    benchmark.pedantic(replay, rounds=len(durations))
