"""Timing of contenders side by side, so that their ratios hold on a machine that isn't quiet, and their peak memory."""

import ctypes
import gc
import itertools
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from contenders import Problem, Solution
from torch import Tensor

from ringnet_ext.ops import _memory

Call = Callable[[], tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]


def call_of(solution: Solution, problem: Problem, backward: bool) -> Call:
    """A function that runs the solution, returning its results and, with backward, the gradients of its inputs."""
    inputs = tuple(x.requires_grad_(backward) for x in problem.inputs())
    if not backward:

        def forward():
            with torch.no_grad():
                return solution(*inputs), ()

        return forward
    with torch.no_grad():
        shapes = [x.shape for x in solution(*inputs)]
    random = torch.Generator().manual_seed(0)
    grads = [torch.randn(s, generator=random).to(problem.device, problem.dtype) for s in shapes]

    def both():
        results = solution(*inputs)
        return results, torch.autograd.grad(results, inputs, grads)

    return both


def interleaved(
    calls: dict[str, Call | Callable[[], float]],
    device: torch.device,
    seconds: float,
    burst: float = 0.02,
    rounds: int = 3,
) -> dict[str, list[list[float]]]:
    """Seconds of each call, in rounds: in each round every contender runs for a burst, warm, one after the other.

    At least so many rounds; more while the contenders have had less than `seconds` each. A call that returns a float
    has timed itself.
    """
    times: dict[str, list[list[float]]] = {name: [] for name in calls}
    slow = dict.fromkeys(calls, False)  # longer than a burst: needs no second call to be warm
    end = time.perf_counter() + seconds * len(calls)
    while len(times[next(iter(calls))]) < rounds or time.perf_counter() < end:
        for name, call in calls.items():
            if not slow[name]:
                call()
            times[name].append(_burst(call, device, burst))
            slow[name] = times[name][-1][0] > burst
    return times


def compared(times: dict[str, list[list[float]]], baseline: str) -> dict[str, dict]:
    """Of each contender its durations, and the quartiles, over the rounds, of its median time over the baseline's.

    Without the quartiles where the baseline was not timed.
    """
    medians = {name: [statistics.median(burst) for burst in rounds] for name, rounds in times.items()}
    found = {}
    for name, rounds in times.items():
        found[name] = {"durations": [t for burst in rounds for t in burst]}
        if baseline in medians:
            ratios = [mine / other for mine, other in zip(medians[name], medians[baseline], strict=True)]
            found[name]["relative"] = statistics.quantiles(ratios, n=4, method="inclusive")
    return found


def _burst(call: Call | Callable[[], float], device: torch.device, seconds: float) -> list[float]:
    if device.type == "cuda":
        return _cuda_burst(call, device, seconds)
    times = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        result = call()
        times.append(result if isinstance(result, float) else time.perf_counter() - start)
    return times


def _cuda_burst(call, device: torch.device, seconds: float) -> list[float]:
    """As many calls as the host queues in that time, each between two events: the host's overhead is included."""
    marks = [torch.cuda.Event(enable_timing=True)]
    marks[0].record()
    end = time.perf_counter() + seconds
    while len(marks) < 2 or (time.perf_counter() < end and len(marks) < 1000):
        result = call()
        if isinstance(result, float):
            return [result]
        marks.append(torch.cuda.Event(enable_timing=True))
        marks[-1].record()
    torch.cuda.synchronize(device)
    return [a.elapsed_time(b) / 1000 for a, b in itertools.pairwise(marks)]


def peak_memory(call: Call, device: torch.device) -> int | None:
    """Bytes at the peak of a call beyond its inputs, results and gradients; None where the system can't tell.

    On a CPU from the high-water mark of resident memory (Linux): what is allocated and touched, by whomever.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        results, gradients = call()
        peak = torch.cuda.max_memory_allocated(device)
    else:
        try:
            _memory.release()  # what we keep from call to call counts as ours, like everything else
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            before = _resident("VmRSS")
            results, gradients = call()
            peak = _resident("VmHWM")
        except (OSError, AttributeError):
            return None
    return peak - before - sum(t.nbytes for t in (*results, *gradients))


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(field)


class Neighbours:
    """The share of the processors that other processes used between construction and :meth:`share`; NaN off Linux."""

    def __init__(self):
        self._start = self._now()

    def share(self) -> float:
        busy, total = (b - a for a, b in zip(self._start, self._now(), strict=True))
        return max(0.0, busy / total) if total > 0 else float("nan")

    @staticmethod
    def _now() -> tuple[float, float]:
        try:
            fields = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        except OSError:
            return 0.0, 0.0
        total = sum(fields) / os.sysconf("SC_CLK_TCK")
        idle = (fields[3] + fields[4]) / os.sysconf("SC_CLK_TCK")
        own = os.times()
        return total - idle - own.user - own.system, total


def wait_for_quiet(seconds: float) -> None:
    """Return when other processes use less than a twentieth of the processors, or after so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        neighbours = Neighbours()
        time.sleep(1)
        if not neighbours.share() > 0.05:
            return
