"""``python -m ringnet_ext.contact_sheet``: what a head model can do, in one picture."""

from __future__ import annotations

import sys

import numpy as np
import torch

from .command_line import Parser, command, output_file, path, whole
from .flame import FLAME, FlameModel, builtin_head
from .images import PICTURES, write_image
from .render import head_picture, sheet

_SKIN, _LIPS, _HAIR, _WHITE, _IRIS, _DARK = (
    (0.86, 0.70, 0.60), (0.74, 0.42, 0.38), (0.26, 0.19, 0.15), (0.93, 0.93, 0.91), (0.30, 0.42, 0.50), (0.08, 0.05, 0.05),
)  # fmt: skip
_COLORS = {
    "lips": _LIPS, "brows": _HAIR, "mouth_interior": (0.30, 0.10, 0.10),
    "left_eyeball": _WHITE, "right_eyeball": _WHITE, "left_iris": _IRIS, "right_iris": _IRIS,
    "left_pupil": _DARK, "right_pupil": _DARK,
}  # fmt: skip
_EXTENT = 0.30
_DEGREES = np.pi / 180


def complexion(head: FlameModel) -> np.ndarray:
    """Plain colours (V, 3) for the regions that a head names; skin everywhere else."""
    colors = np.tile(np.float32(_SKIN), (len(head.v_template), 1))
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
        row(f"expression directions {first + 1} ... {first + columns}, +2.5 sigma",
            [picture(expression=unit(i, 2.5, expressions)) for i in range(first, min(first + columns, expressions))])  # fmt: skip
    poses = [
        {"jaw_pose": [0.15, 0, 0]}, {"jaw_pose": [0.35, 0, 0]}, {"neck_pose": [0, 0.5, 0]}, {"neck_pose": [0, 0, 0.35]},
        {"neck_pose": [-0.3, 0, 0]}, {"eye_pose": [0, 0.4, 0, 0, 0.4, 0]}, {"eye_pose": [-0.25, 0, 0, -0.25, 0, 0]},
        {"global_pose": [0.2, -0.5, 0.1]},
    ]  # fmt: skip
    row("jaw, neck, eyes, global rotation", [picture(**pose) for pose in poses[:columns]])
    if head.landmarks is not None:
        row("68 landmarks: 51 fixed, 17 on the contour that move with the head",
            [picture(points=True, global_pose=[0, yaw * _DEGREES, 0]) for yaw in np.linspace(-39, 39, columns)])  # fmt: skip
    return sheet(rows, labels)


@command
def main(arguments: list[str]) -> int:
    parser = Parser(
        prog="python -m ringnet_ext.contact_sheet",
        description="Draw a head model's shapes, expressions, joints and landmarks into one picture.",
    )
    parser.add_argument("model", nargs="?", type=path, help="head model file [the built-in head]")
    parser.add_argument(
        "--out", type=path, default=path("contact_sheet.png"), help="picture to write [contact_sheet.png]"
    )
    parser.add_argument("--size", type=whole(32, 2048), default=150, help="side of one picture, pixels [150]")
    options = parser.parse_args(arguments)
    output_file(options.out, PICTURES)
    head = builtin_head() if options.model is None else FlameModel.load(options.model)
    if len(head.parents) != 5:
        raise ValueError(f"{options.model}: expected a head with FLAME's 5 joints, got {len(head.parents)}")
    write_image(options.out, contact_sheet(head, options.size))
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
