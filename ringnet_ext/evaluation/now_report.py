"""What the NoW benchmark says of a method: a table, a line for each image, and a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..files.whole import written_whole
from .now import ScanErrors
from .now_files import CHALLENGES, Entry

_MOST = 5.0  # mm, of what is drawn


class Scored(NamedTuple):
    """An image and its errors; None where there is no prediction of it that could be used."""

    entry: Entry
    errors: ScanErrors | None


def table(scored: Sequence[Scored], others: Mapping[str, np.ndarray] | None = None) -> str:
    """Median, mean and standard deviation of the distances, mm, pooled over the images of each challenge, and over all.

    Args:
        others: distances of other methods by name, for a line each.
    """
    others = others or {}
    wide = max([24, *(len(name) + 1 for name in others)])
    rows = [f"{'mm':{wide}}{'images':>8}{'missing':>9}{'median':>8}{'mean':>8}{'std':>8}"]
    challenges = [name for name in CHALLENGES if any(each.entry.challenge == name for each in scored)]
    for name in [*challenges, "all"]:
        some = [each for each in scored if name in ("all", each.entry.challenge)]
        there = [each.errors.distances for each in some if each.errors is not None]
        rows.append(f"{name:{wide}}{len(some):8}{len(some) - len(there):9}" + _figures(np.concatenate([[], *there])))
    for name, distances in others.items():
        rows.append(f"{name:{wide}}{'':8}{'':9}" + _figures(distances))
    return "\n".join(rows) + "\n"


def _figures(distances: np.ndarray) -> str:
    if not len(distances):
        return f"{'-':>8}" * 3
    return "".join(f"{value:8.2f}" for value in (np.median(distances), distances.mean(), distances.std()))


def write_lines(path: Path, scored: Sequence[Scored]) -> None:
    """A line for each image as CSV: subject, challenge, image, the errors' median, mean and standard deviation in mm,
    how many vertices the scan has in the ball, the scale that the prediction was given, and whether it was mirrored."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["subject", "challenge", "image", "median", "mean", "std", "points", "scale", "mirrored"])
    for (subject, challenge, image), errors in scored:
        if errors is None:
            writer.writerow([subject, challenge, image, *[None] * 6])
            continue
        figures = np.median(errors.distances), errors.distances.mean(), errors.distances.std()
        scale, mirrored = errors.alignment.scale, errors.mirrored
        more = [len(errors.distances), f"{scale:.6g}", int(mirrored)]
        writer.writerow([subject, challenge, image, *(f"{value:.4f}" for value in figures), *more])
    with written_whole(path) as file:
        file.write(text.getvalue().encode("utf-8", "surrogateescape"))


def write_picture(path: Path, scored: Sequence[Scored], others: Mapping[str, np.ndarray] | None = None) -> None:
    """The parts of all distances that are below each, as curves, and where they lie on the scans of the best, the
    middle and the worst image; a PNG."""
    from matplotlib.figure import Figure  # takes a second to import

    there = [(each.entry, each.errors) for each in scored if each.errors is not None]
    figure = Figure(figsize=(13, 4), layout="constrained")
    curves, *places = figure.subplots(1, 4, width_ratios=[1.6, 1, 1, 1])
    for name in CHALLENGES:
        some = [errors.distances for entry, errors in there if entry.challenge == name]
        if some:
            _curve(curves, np.concatenate(some), name.removeprefix("multiview_"), linewidth=1)
    if there:
        _curve(curves, np.concatenate([errors.distances for _, errors in there]), "all", color="black")
    for name, distances in (others or {}).items():
        _curve(curves, distances, name, linestyle="--")
    curves.set(xlabel="distance of the scan, mm", ylabel="% of the scans' vertices", xlim=(0, _MOST), ylim=(0, 100))
    curves.grid(alpha=0.3)
    if curves.lines:
        curves.legend(loc="lower right")
    order = sorted(there, key=lambda each: float(np.median(each[1].distances)))
    chosen = [order[0], order[len(order) // 2], order[-1]] if order else []
    for axes in places:
        axes.set_axis_off()
    for axes, word, (entry, errors) in zip(places, ("best", "middle", "worst"), chosen, strict=False):
        x, y, z = _face_on(errors)
        front = np.argsort(z)  # what lies in front is drawn last
        seen = axes.scatter(x[front], y[front], c=errors.distances[front], s=1, vmin=0, vmax=_MOST, cmap="turbo")
        axes.set_aspect("equal")
        axes.set_title(f"{word}: {np.median(errors.distances):.2f} mm\n{entry.name}", fontsize=8)
    if chosen:
        figure.colorbar(seen, ax=places, label="mm", shrink=0.8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    with written_whole(path) as file:
        file.write(buffer.getvalue())


def _face_on(errors: ScanErrors) -> np.ndarray:
    """The scan's vertices (3, N) by the axes of its face: to the right of who looks at it, up, and out of it."""
    marks = errors.landmarks
    right, up = marks[3] - marks[0], marks[[1, 2]].mean(0) - marks[4]
    right = right / np.linalg.norm(right)
    up = up - up @ right * right
    up = up / np.linalg.norm(up)
    return np.stack([right, up, np.cross(right, up)]) @ (errors.points - marks[4]).T


def _curve(axes, distances: np.ndarray, label: str, **style) -> None:
    at = np.linspace(0, _MOST, 501)
    below = np.searchsorted(np.sort(distances), at, side="right")
    axes.plot(at, 100 * below / len(distances), label=label, **style)
