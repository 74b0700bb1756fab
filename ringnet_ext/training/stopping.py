"""A run that is asked to stop."""

from __future__ import annotations

import signal
import sys
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def stop_requests():
    """A list that becomes true once SIGINT or SIGTERM has come. Ctrl-C under torchrun sends both, and the impatient
    press it twice: only a third SIGINT interrupts at once, without a checkpoint."""
    requests: list[int] = []

    def note(number, frame):
        requests.append(number)
        interrupts = requests.count(signal.SIGINT)
        if interrupts == 2:
            tqdm.write(
                "stopping after this step, with a checkpoint; once more, and it stops at once without one", sys.stderr
            )
        elif interrupts > 2:
            raise KeyboardInterrupt

    try:
        earlier = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread, where no signal arrives
        earlier = {}
    try:
        yield requests
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
