"""Threads where they aren't at their best: on cores that others use, short of memory, after a fork."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux about threads and memory")

MODEL = """
import os, resource, signal, statistics, sys, time, torch
sys.path.insert(0, "tests")
from conftest import RandomModel
from ringnet_ext import ops
"""


def run(script, **environment):
    root = str(Path(__file__).resolve().parents[2])
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "MKL_"))}
    return subprocess.run(
        [sys.executable, "-c", MODEL + script], cwd=root, env={**kept, "OMP_NUM_THREADS": "2", **environment},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


ONE_CORE = """
model = RandomModel.make(V=5023, K=400, J=5).to(dtype=torch.float32)
betas, pose = model.inputs(1)
results, times = [], {1: [], 2: []}
torch.set_num_threads(2)
results.append(ops.flame_lbs(betas, pose, *model.constants)[0])
for thread in os.listdir("/proc/self/task"):
    os.sched_setaffinity(int(thread), {min(os.sched_getaffinity(0))})
for _ in range(10):
    for threads in times:
        torch.set_num_threads(threads)
        for _ in range(8):
            began = time.perf_counter()
            results.append(ops.flame_lbs(betas, pose, *model.constants)[0])
            times[threads].append(time.perf_counter() - began)
assert all(torch.equal(result, results[0]) for result in results)
print(*(statistics.median(t) for t in times.values()))
"""


@linux
def test_a_small_call_does_without_a_thread_that_is_late():
    """Both threads on one core: whoever waits for the other keeps it from running."""
    result = run(ONE_CORE)
    assert result.returncode == 0, result.stderr
    one, two = map(float, result.stdout.split())
    assert two < 3 * one


NO_MEMORY = """
model = RandomModel.make(V=40, K=3, J=1200).to(dtype=torch.float32)
calls = [lambda b, p: ops.flame_lbs(b, p, *model.constants),
         lambda b, p: [ops.flame_landmarks(b, p, *model.constants, *model.embedding)],
         lambda b, p: ops.flame_head(b, p, *model.constants, *model.embedding)]
inputs = [t.requires_grad_() for t in model.inputs(9)]

def outcome(call):
    try:
        outputs = call(*inputs)
        return [*outputs, *torch.autograd.grad(sum(o.sum() for o in outputs), inputs)]
    except (MemoryError, RuntimeError) as error:
        return error

def pages():
    return int(open("/proc/self/statm").read().split()[0])

want = [outcome(call) for call in calls]
errors = 0
for extra in range(0, 2000, 40):
    for call, values in zip(calls, want):
        resource.setrlimit(resource.RLIMIT_AS, ((pages() + extra) * resource.getpagesize(), -1))
        got = outcome(call)
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        if isinstance(got, Exception):
            errors += isinstance(got, MemoryError)  # ours; PyTorch's is a RuntimeError
        else:
            assert all(torch.equal(a, b) for a, b in zip(got, values, strict=True))
assert errors > 10 and not isinstance(got, Exception), (errors, got)
for call, values in zip(calls, want):
    assert all(torch.equal(a, b) for a, b in zip(outcome(call), values, strict=True))
print("alive")
"""


@linux
def test_no_memory_is_an_error_like_any_other():
    """At every limit, wherever in a call memory runs out."""
    result = run(NO_MEMORY, MALLOC_MMAP_THRESHOLD_="8192", MALLOC_TRIM_THRESHOLD_="0")  # each request asks the system
    assert (result.returncode, result.stdout) == (0, "alive\n"), result.stderr


FORK = """
model = RandomModel.make(V=1003, K=20).to(dtype=torch.float32)
betas, pose = model.inputs(64)
want = ops.flame_lbs(betas, pose, *model.constants)[0]
torch.set_num_threads(2)
torch.ones(1 << 20).cos().sum()  # threads that the fork leaves behind
ops.flame_lbs(betas, pose, *model.constants)
child = os.fork()
if child == 0:
    signal.alarm(20)
    for _ in range(3):  # compared by NumPy: PyTorch would wait for its threads for ever
        assert (ops.flame_lbs(betas, pose, *model.constants)[0].numpy() == want.numpy()).all()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert torch.equal(ops.flame_lbs(betas, pose, *model.constants)[0], want)
"""


@linux
def test_a_forked_process_has_threads_of_its_own():
    result = run(FORK)
    assert result.returncode == 0, result.stderr
