"""The suite: every contender on every problem, forward and forward + backward.

The contenders of a problem are timed together, interleaved, when the first of them comes up; each test then reports its
own timings to pytest-benchmark, by a clock that replays them. A test also checks that its contender solves the problem.
"""

import functools
import statistics
from dataclasses import dataclass

import pytest
import torch
from contenders import CONTENDERS, FULL, KERNEL, OPS, OURS, Problem, Unavailable
from limits import Limits
from timing import Neighbours, call_of, compared, interleaved, peak_memory, wait_for_quiet

BOUND = "bound"
DIRECTIONS = {False: "forward", True: "forward + backward"}
MEMORY_BATCH = 256  # peak memory is measured at this batch size


@dataclass(frozen=True)
class Trial:
    problem: Problem
    backward: bool
    contender: str

    @property
    def case(self) -> tuple[Problem, bool]:
        return self.problem, self.backward

    def __str__(self) -> str:
        p = self.problem
        size = f"B{p.B}" if p.op == "rodrigues" else f"K{p.K}-B{p.B}"
        return f"{p.op}-{'both' if self.backward else 'forward'}-{size}-{self.contender.replace(' ', '_')}"


def pytest_generate_tests(metafunc):
    if "trial" not in metafunc.fixturenames:
        return
    option = metafunc.config.getoption
    device = torch.device(option("--device"))
    batches = [1, 64] if option("--quick") else [1, 8, 64, 256, 1024] + [1088, 3000, 4096] * (device.type == "cuda")
    trials = []
    for op in OPS:
        wide = not option("--quick") and (op == "lbs" or (option("--full") and op in ("landmarks", "layer")))
        sizes = [(K, B) for K in ([150, 400] if wide else [150]) for B in batches]
        if op == "fixed":
            sizes = [(150, B) for B in batches if B <= 64]
        if op == "dense":
            sizes = [(150, B) for B in batches if B in (1, 64, 1024)]
        if op == "landmarks" and not option("--quick"):
            sizes.append((150, 192))  # a training step's worth
        for K, B in sizes:
            for backward in (False, True):
                for contender in (*CONTENDERS, BOUND):
                    if contender == KERNEL and (backward or op != "lbs"):
                        continue
                    if (contender.startswith("body-models") and op != "lbs") or (contender == FULL and op != "fixed"):
                        continue
                    trials.append(Trial(Problem(op, K, B, device), backward, contender))
    metafunc.parametrize("trial", trials, ids=str)


class Replay:
    """A clock that stands still until a call moves it on by the next of some durations."""

    def __init__(self):
        self.now, self.durations = 0.0, iter(())

    def time(self) -> float:
        return self.now

    def __call__(self):
        self.now += next(self.durations)


replay = Replay()


@functools.cache
def limits(device) -> Limits:
    return Limits(device)


@functools.lru_cache(maxsize=len(CONTENDERS))
def solved(problem: Problem, backward: bool, contender: str):
    """The contender's call for this case, or the reason why there is none."""
    try:
        return call_of(CONTENDERS[contender](problem), problem, backward)
    except Unavailable as reason:
        return reason


@functools.lru_cache(maxsize=1)
def measured(
    problem: Problem, backward: bool, contenders: tuple[str, ...], seconds: float, patience: float
) -> dict[str, dict]:
    """Of each contender: timings, quartiles of its time over ours by rounds, peak memory; of "": what they share."""
    calls = {name: solved(problem, backward, name) for name in contenders if name != BOUND}
    calls = {name: call for name, call in calls.items() if not isinstance(call, Unavailable)}
    work, limit = problem.work(backward), limits(problem.device)
    for call in calls.values():
        call()  # compiles, prepares
    found = {name: {} for name in contenders}
    if backward and problem.B == MEMORY_BATCH and problem.op != "rodrigues":
        for name, call in calls.items():
            found[name]["peak_bytes"] = peak_memory(call, problem.device)
    arithmetic = []

    def bound() -> float:
        arithmetic.append(limit.arithmetic(work.flops))
        return max(arithmetic[-1], limit.memory(work.read, work.written))

    if BOUND in contenders:
        calls[BOUND] = bound
    wait_for_quiet(patience)
    neighbours = Neighbours()
    times = interleaved(calls, problem.device, seconds)
    others = neighbours.share()
    for name, result in compared(times, OURS).items():
        found[name] |= result
    found[""] = {"processors_used_by_others": others}
    if arithmetic:
        found[""]["fma_seconds"] = statistics.median(arithmetic)
    return found


def agreement(results, expected) -> float:
    """Largest difference, relative to the largest value."""
    pairs = ((a.detach().double(), b.detach()) for a, b in zip(results, expected, strict=True))
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def check(trial: Trial, call) -> None:
    """Values and gradients against float64. Of smplx's landmarks the static ones: its contour takes the other side."""
    problem, contender = trial.problem, trial.contender
    exact = Problem(problem.op, problem.K, problem.B, problem.device, torch.float64)
    values, gradients = call()
    if contender == "smplx" and problem.op in ("landmarks", "layer", "fixed"):
        expected = call_of(CONTENDERS["reference"](exact), exact, False)()[0]
        values, expected, gradients = (*values[:-1], values[-1][:, 17:]), (*expected[:-1], expected[-1][:, 17:]), ()
    else:
        expected, expected_gradients = call_of(CONTENDERS["reference"](exact), exact, trial.backward)()
        if gradients:
            assert agreement(gradients, expected_gradients) < 1e-3
    assert agreement(values, expected) < 1e-4


@pytest.mark.benchmark(timer=replay.time)
def test_speed(benchmark, request, trial):
    problem, backward, contender = trial.problem, trial.backward, trial.contender
    call = (lambda: None) if contender == BOUND else solved(*trial.case, contender)
    if isinstance(call, Unavailable):
        benchmark.skipped = True
        pytest.skip(str(call))
    if contender != BOUND and problem.B <= 8:
        check(trial, call)
    if benchmark.disabled:
        benchmark(call)
        return
    selected = (item.callspec.params["trial"] for item in request.session.items if "trial" in item.fixturenames)
    selected = tuple(t.contender for t in selected if t.case == trial.case)
    option = request.config.getoption
    measurement = measured(*trial.case, selected, option("--seconds"), option("--patience"))
    mine = dict(measurement[contender])
    durations = mine.pop("durations")
    benchmark.group = str(trial).removesuffix("-" + contender.replace(" ", "_"))
    benchmark.extra_info |= {
        "op": problem.op,
        "K": problem.K,
        "B": problem.B,
        "direction": DIRECTIONS[backward],
        "contender": contender,
        **mine,
        **measurement[""],
    }
    replay.durations = iter(durations)
    benchmark.pedantic(replay, rounds=len(durations))


@pytest.mark.parametrize("what", ["one core", "all threads", "copy"])
@pytest.mark.benchmark(timer=replay.time)
def test_limits(benchmark, request, what):
    """1e9 floating-point operations as multiply-adds; a copy of 256 MB."""
    limit = limits(torch.device(request.config.getoption("--device")))
    if what == "copy":
        benchmark.extra_info |= {"bytes": 2**29}
        durations = [limit.memory(2**28, 2**28) for _ in range(5)]
    else:
        benchmark.extra_info |= {"flops": 1e9}
        durations = [limit.arithmetic(1e9, 1 if what == "one core" else None) for _ in range(30)]
    benchmark.group = "limits"
    benchmark.extra_info |= {"limit": what, "method": limit.method}
    replay.durations = iter(durations)
    benchmark.pedantic(replay, rounds=len(durations))
