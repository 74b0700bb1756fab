"""What a run looks like: its curves, and faces beside their reconstructions."""

from __future__ import annotations

import io
import os

import numpy as np

from .flame.files import written_whole
from .images import INPUT_SIZE
from .model import Reconstruction
from .render import head_picture, mark_points, overlay, sheet

PANELS = ["input", "overlay", "mesh", "mesh, turned", "neutral"]
_TURNED = np.radians(50)


def panel(face: Reconstruction) -> list[np.ndarray]:
    """Pictures of one reconstruction, (224, 224, 3) each, in the order of :data:`PANELS`."""
    camera = face.params.camera[0].numpy()
    over = overlay(face.image, face.image_vertices, face.faces, camera)
    mark_points(over, face.square_landmarks)
    # The view from the side is turned against the pose, so that it shows what the photograph doesn't.
    turn = -_TURNED if face.yaw > 0 else _TURNED
    return [
        face.image,
        over,
        head_picture(face.vertices, face.faces, INPUT_SIZE),
        head_picture(face.vertices, face.faces, INPUT_SIZE, yaw=turn),
        head_picture(face.neutral_vertices, face.faces, INPUT_SIZE),
    ]


def reconstructions(faces: list[Reconstruction]) -> np.ndarray:
    """One row of panels a face."""
    return sheet([panel(face) for face in faces], columns=PANELS)


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
        axes.plot(steps, [row[name] for row in history], label="training")
        axes.plot(steps, [row[f"validation_{name}"] for row in history], label="held out")
        axes.set(title=title, xlabel="step", yscale="log" if name != "ring" else "linear")
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    with written_whole(path) as file:
        file.write(buffer.getvalue())
