"""Pictures shared out among processes of this machine.

Threads of one process wait for each other: whoever runs Python holds its lock, and PyTorch's threads wait for work in a
loop. Where a network is so small that one core is enough for it, a process for each core does the whole way of its
pictures, and does it in one thread.
"""

from __future__ import annotations

import gc
import multiprocessing
import pickle
import signal
import sys
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import cv2
import torch

T = TypeVar("T")
R = TypeVar("R")

_TOGETHER = 0.1  # seconds: results of as long are sent at a time


def can_share() -> bool:
    """Whether processes can be started that have what this one has, in no time. On macOS they may not use its
    libraries."""
    return sys.platform == "linux"


def shared(work: Callable[[Sequence[T]], Iterable[R]], items: Sequence[T], processes: int) -> Generator[R]:
    """The results of ``work(items)``, one for each item and in their order, by several processes.

    Each of them calls `work` with every so many-th item. It begins as a copy of this process, and PyTorch and OpenCV
    have one thread in it. Results and exceptions must be what pickle takes. To close the generator ends the processes.

    Raises:
        ChildProcessError: one of them was killed.
        What `work` raises, where its first result without one would have come.
    """
    context = multiprocessing.get_context("fork")
    started, receivers = [], list[Connection]()
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # ends its other threads, which a copy of this process would wait for in vain
    try:
        for number in range(processes):
            receiver, sender = context.Pipe(duplex=False)
            receivers.append(receiver)
            arguments = work, items[number::processes], sender, tuple(receivers)
            process = context.Process(target=_work, args=arguments, daemon=True)
            with warnings.catch_warnings():  # that a process with threads is copied, as PyTorch's own loaders do
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            started.append(process)
            sender.close()
        waiting: list[deque[R]] = [deque() for _ in started]
        for i in range(len(items)):
            mine = waiting[i % processes]
            while not mine:
                mine += _received(receivers[i % processes], started[i % processes])
            yield mine.popleft()
    finally:
        cv2.setNumThreads(threads)
        for receiver in receivers:
            receiver.close()
        for process in started:
            process.terminate()
        for process in started:
            process.join()


def _received(receiver: Connection, process: Any) -> list:
    try:
        results, failure = receiver.recv()
    except EOFError:
        process.join()
        end = f"was killed by signal {-process.exitcode}" if process.exitcode < 0 else f"ended by {process.exitcode}"
        raise ChildProcessError(f"a process that shared the work {end}") from None
    if failure is not None:
        error, text = failure
        raise error from RuntimeError(f"in a process that shared the work:\n{text}")
    return results


def _work(work: Callable, items: Sequence, sender: Connection, others: Sequence[Connection]) -> None:
    """What one of the processes does. It ends when the first one does, to which nothing can be sent then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first one's to answer
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what is half-written is removed on the way
    for receiver in others:
        receiver.close()
    torch.set_num_threads(1)
    gc.freeze()  # what was there before needs no collecting, and its memory stays shared
    ready, sent, failure = [], time.monotonic(), None
    try:
        for result in work(items):
            ready.append(result)
            if time.monotonic() - sent > _TOGETHER:
                sender.send((ready, None))
                ready, sent = [], time.monotonic()
    except BrokenPipeError:
        return
    except Exception as error:
        failure = _picklable(error), traceback.format_exc()
    sender.send((ready, None))
    if failure is not None:
        sender.send(([], failure))


def _picklable(error: Exception) -> Exception:
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
