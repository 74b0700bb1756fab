"""Work shared out among processes: the same results in the same order, and no process that outlives its use."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch

from ringnet_ext.inference.shares import can_share, shared

pytestmark = pytest.mark.skipif(not can_share(), reason="processes are copied on Linux")


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_results_come_in_the_order_of_the_items(processes):
    def work(items):
        for item in items:
            time.sleep(0.002 * (item % 3))
            yield item, os.getpid()

    for count in (0, 1, 2, 23):
        found = list(shared(work, range(count), processes))
        assert [item for item, _ in found] == list(range(count))
        pids = [pid for _, pid in found]
        assert len(set(pids)) == min(count, processes) and os.getpid() not in pids
        assert all(pid == pids[i % processes] for i, pid in enumerate(pids))  # every so many-th item
    assert not multiprocessing.active_children()


def test_large_results_and_many():
    assert [len(each) for each in shared(lambda items: (bytes(item) for item in items), [10**6] * 5, 2)] == [10**6] * 5
    assert list(shared(lambda items: items, range(10_000), 2)) == list(range(10_000))


def test_each_has_one_thread_and_this_process_keeps_its_own():
    threads, own = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(2)
    image = torch.rand(512, 512)
    try:
        product = image @ image  # these threads are not in the copies
        found = list(
            shared(
                lambda items: ((torch.get_num_threads(), cv2.getNumThreads(), (image @ image).numpy()) for _ in items),
                "ab",
                2,
            )
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert cv2.getNumThreads() == own
    for one, other, answer in found:
        assert one == other == 1 and np.allclose(answer, product, rtol=1e-4)


class OddError(ValueError):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


@pytest.mark.parametrize("error, raised", [(KeyError("x"), KeyError), (OddError(1, 2), RuntimeError)])
def test_an_error_comes_where_the_result_would_have(error, raised):
    def work(items):
        for item in items:
            if item == 5:
                raise error
            yield item

    found = shared(work, range(9), 2)
    assert [next(found) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(raised) as caught:
        next(found)
    assert "raise error" in str(caught.value.__cause__)  # the line that did
    assert not multiprocessing.active_children()


def test_one_that_is_killed_is_noticed():
    def work(items):
        for item in items:
            if item == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            yield item

    with pytest.raises(ChildProcessError, match="a process that shared the work was killed by signal 9"):
        list(shared(work, range(6), 2))
    assert not multiprocessing.active_children()


def test_closing_ends_them_and_they_clean_up(tmp_path):
    def work(items):
        try:
            for item in items:
                time.sleep(0.06)
                yield item
        finally:
            (tmp_path / str(os.getpid())).touch()

    found = shared(work, range(1000), 2)
    assert [next(found), next(found)] == [0, 1]  # both are at work
    began = time.monotonic()
    found.close()
    assert time.monotonic() - began < 2 and not multiprocessing.active_children()
    assert len(list(tmp_path.iterdir())) == 2


def test_they_end_when_this_process_is_killed(tmp_path):
    script = """
import os, sys, time
from ringnet_ext.inference.shares import shared
def work(items):
    open(f"{sys.argv[1]}/{os.getpid()}", "w").close()
    for item in items:
        time.sleep(0.01)
        yield item
for item in shared(work, range(100_000), 2):
    pass
"""
    first = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    while first.poll() is None and len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.01)
    first.kill()
    first.wait()
    pids = [int(file.name) for file in tmp_path.iterdir()]
    assert len(pids) == 2
    until = time.monotonic() + 10
    while any(map(_runs, pids)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(map(_runs, pids))


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
