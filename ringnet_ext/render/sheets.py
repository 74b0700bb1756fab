"""Pictures in rows, and the contact sheet of a head."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from ..flame import FLAME, FlameModel
from .pictures import head_picture

_SKIN, _LIPS, _HAIR, _WHITE, _IRIS, _DARK = (
    (0.86, 0.70, 0.60),
    (0.74, 0.42, 0.38),
    (0.26, 0.19, 0.15),
    (0.93, 0.93, 0.91),
    (0.30, 0.42, 0.50),
    (0.08, 0.05, 0.05),
)
_COLORS = {
    "lips": _LIPS, "brows": _HAIR, "mouth_interior": (0.30, 0.10, 0.10),
    "left_eyeball": _WHITE, "right_eyeball": _WHITE, "left_iris": _IRIS, "right_iris": _IRIS,
    "left_pupil": _DARK, "right_pupil": _DARK,
}  # fmt: skip
_EXTENT = 0.30
_DEGREES = np.pi / 180


def sheet(
    rows: list[list[np.ndarray]], labels: list[str] | None = None, columns: list[str] | None = None
) -> np.ndarray:
    """Pictures of one size in rows, with an optional caption above each row or above each column."""
    height, width = rows[0][0].shape[:2]
    across = max(len(row) for row in rows)
    blank = np.full((height, width, 3), 255, np.uint8)
    bands = []
    if columns is not None:
        bands.append(np.concatenate([_caption(text, width) for text in columns], axis=1))
    for index, row in enumerate(rows):
        if labels is not None:
            bands.append(_caption(labels[index], across * width))
        bands.append(np.concatenate([*row, *[blank] * (across - len(row))], axis=1))
    return np.concatenate(bands, axis=0)


def _caption(text: str, width: int) -> np.ndarray:
    band = np.full((22, width, 3), 255, np.uint8)
    cv2.putText(band, text, (6, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (40, 40, 40), 1, cv2.LINE_AA)
    return band


def complexion(head: FlameModel) -> np.ndarray:
    """Plain colours (V, 3) for the regions that a head names; skin everywhere else."""
    colors = np.tile(np.array(_SKIN, np.float32), (len(head.v_template), 1))
    for region, color in _COLORS.items():
        if region in head.regions:
            colors[head.regions[region]] = color
    return colors


@torch.no_grad()
def contact_sheet(head: FlameModel, size: int = 150, columns: int = 8) -> np.ndarray:
    """Shape directions, random people, expression directions, joints and landmarks of a model of FLAME's layout.

    Returns:
        (H, W, 3) uint8, RGB, with ``columns`` pictures of ``size`` pixels a row.
    """
    layer = FLAME(head, shape_params=head.shapedirs.shape[2], expression_params=head.expressiondirs.shape[2])
    colors = complexion(head)
    centre = (head.v_template.min(0) + head.v_template.max(0)) / 2

    def picture(yaw=0.0, points=False, **arguments):
        tensors = {name: torch.tensor(np.atleast_2d(value), dtype=torch.float32) for name, value in arguments.items()}
        posed = layer(**tensors)
        landmarks = posed.landmarks[0].numpy() if points else None
        return head_picture(
            posed.vertices[0].numpy(), head.faces, size, yaw=yaw, albedo=colors, extent=_EXTENT, centre=centre,
            points=landmarks,
        )  # fmt: skip

    def unit(index, value, count):
        vector = np.zeros(count)
        vector[index] = value
        return vector

    shapes, expressions = layer.shape_params, layer.expression_params
    random = np.random.default_rng(0)
    rows, labels = [], []

    def row(label, pictures):
        labels.append(label)
        rows.append(pictures)

    row("the mean head", [picture(yaw * _DEGREES) for yaw in np.linspace(-90, 90, columns)])
    for sigma in (-2.5, 2.5):
        row(f"shape directions 1 ... {columns}, {sigma:+g} sigma",
            [picture(shape=unit(i, sigma, shapes)) for i in range(min(columns, shapes))])  # fmt: skip
    people = random.standard_normal((columns, shapes))
    row("random people", [picture(shape=person) for person in people])
    row("the same people, turned", [picture(40 * _DEGREES, shape=person) for person in people])
    for first in range(0, min(2 * columns, expressions), columns):
        row(
            f"expression directions {first + 1} ... {first + columns}, +2.5 sigma",
            [picture(expression=unit(i, 2.5, expressions)) for i in range(first, min(first + columns, expressions))],
        )
    poses = [
        {"jaw_pose": [0.15, 0, 0]}, {"jaw_pose": [0.35, 0, 0]}, {"neck_pose": [0, 0.5, 0]}, {"neck_pose": [0, 0, 0.35]},
        {"neck_pose": [-0.3, 0, 0]}, {"eye_pose": [0, 0.4, 0, 0, 0.4, 0]}, {"eye_pose": [-0.25, 0, 0, -0.25, 0, 0]},
        {"global_pose": [0.2, -0.5, 0.1]},
    ]  # fmt: skip
    row("jaw, neck, eyes, global rotation", [picture(**pose) for pose in poses[:columns]])
    if head.landmarks is not None:
        row(
            "68 landmarks: 51 fixed, 17 on the contour that move with the head",
            [picture(points=True, global_pose=[0, yaw * _DEGREES, 0]) for yaw in np.linspace(-39, 39, columns)],
        )
    return sheet(rows, labels)
