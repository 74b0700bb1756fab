"""What a run measured on its way: as CSV, and as curves."""

from __future__ import annotations

import csv
import io
import os
from contextlib import contextmanager
from pathlib import Path

from ..files.whole import written_whole


def write_curves(path: str | os.PathLike, history: list[dict[str, float]]) -> None:
    """Plot a training history (the rows of history.csv) as PNG."""
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    steps = [row["step"] for row in history]
    titles = {
        "loss": "loss (held out: without read-out)",
        "landmarks": "landmarks, L1, half images",
        "ring": "ring shape loss",
    }
    for axes, (name, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        for key, label in ((name, "training"), (f"validation_{name}", "held out")):
            axes.plot(steps, [row[key] for row in history], label=label, marker="." if len(history) == 1 else "")
        axes.set(title=title, xlabel="step", yscale="log" if name != "ring" else "linear")
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    with written_whole(path) as file:
        file.write(buffer.getvalue())


def write_history(path: Path, history: list[dict[str, float]]) -> None:
    """The rows as CSV, columns named in the first line."""
    if not history:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, history[0].keys())
    writer.writeheader()
    writer.writerows({**{key: f"{value:.6g}" for key, value in row.items()}, "step": row["step"]} for row in history)
    with written_whole(path) as file:
        file.write(text.getvalue().encode())


@contextmanager
def tensorboard_events(folder: str | os.PathLike, step: int):
    """A TensorBoard writer whose events before it are kept up to a step.

    Raises:
        ValueError: the package tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(f"tensorboard: {error}; pip install tensorboard") from None
    with SummaryWriter(os.fspath(folder), purge_step=step + 1) as writer:
        yield writer
