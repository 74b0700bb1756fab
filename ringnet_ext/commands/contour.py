"""``ringnet contour``: the contour table of any head, and a picture of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..files.images import PICTURES, write_image
from ..flame import FlameModel, LandmarkEmbedding
from ..flame.contour import contour_embedding, ear_embedding
from ..flame.landmarks import contour_row
from ..flame.sources import load_head
from ..render.pictures import head_picture, mark_points
from ..render.sheets import sheet
from .convert import ARRAYS
from .options import Parser, add_head, add_out, called, command, output_file, path

_YAWS = (-39, -30, -15, 0, 15, 30, 39)
_SIZE, _EXTENT = 300, 0.24  # pixels, metres
_OURS, _OTHER = (220, 30, 40), (20, 90, 220)


def make_parser() -> Parser:
    parser = Parser(
        prog=called("contour"),
        description="Compute the dynamic contour of a head: for every degree of yaw from -39 to 39, 17 points along "
        "the jaw line on the near side and the silhouette on the far side. The head needs its 51 inner landmarks, from "
        "which the face is found.",
    )

    def add(flag, text, **kwargs):
        parser.add_argument(flag, help=text, **kwargs)

    file = {"type": path, "metavar": "FILE"}
    add_head(parser, "model file, or a mesh (metres, y up, face towards +z) [the built-in head]", former="model")
    add("--landmarks", "embedding of the inner landmarks, in any format [the model's own]", nargs="+", **file)
    add(
        "--regions",
        "FLAME_masks.pkl, of a model file or a mesh in FLAME's order: shows where the ears are [the model's own]",
        **file,
    )
    add("--ears", "add 8 points on the rim of each ear (right, then left) to the static landmarks; the ears must be "
        "among the regions", action="store_true")  # fmt: skip
    add_out(parser, "landmark embedding to write, .npz or .safetensors [none]", "FILE")
    add("--picture", "picture to write: the head turned, its contour in red, the one it had in blue [none]", **file)
    return parser


@command
def main(arguments: list[str]) -> int:
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.out is None and options.picture is None:
        parser.error("nothing to do: give --out or --picture")
    if options.out is not None:
        output_file(options.out, ARRAYS)
    if options.picture is not None:
        output_file(options.picture, PICTURES, "--picture")
    head = load_head(options.head, options.landmarks, options.regions)
    ears = ear_embedding(head) if options.ears else None
    landmarks = contour_embedding(head)
    if ears is not None:
        landmarks = replace(
            landmarks,
            static_faces_idx=np.concatenate([landmarks.static_faces_idx, ears.static_faces_idx]),
            static_bary_coords=np.concatenate([landmarks.static_bary_coords, ears.static_bary_coords]),
        )
    if options.out is not None:
        landmarks.save(options.out)
        print(f"{options.out}: {landmarks.num_contour} contour and {landmarks.num_static} static landmarks")
    if options.picture is not None:
        write_image(options.picture, picture(head, landmarks, head.landmarks))
        print(f"{options.picture}: the contour at yaws of {', '.join(map(str, _YAWS))} degrees")
    return 0


def picture(head: FlameModel, landmarks: LandmarkEmbedding, other: LandmarkEmbedding | None = None) -> np.ndarray:
    """The head turned, with its landmarks in red and another embedding's contour, if it has one, in blue."""
    static = _points(head, landmarks.static_faces_idx, landmarks.static_bary_coords)
    middle = static[:51].mean(0) - [0, 0.03, 0.06]  # within the head, somewhat below the face's middle
    views = []
    for yaw in _YAWS:
        row = int(contour_row(yaw))
        image = head_picture(head.v_template, head.faces, _SIZE, yaw=np.radians(yaw), extent=_EXTENT, centre=middle)
        for embedding, color in ((other, _OTHER), (landmarks, _OURS)):
            if embedding is None or embedding.contour_faces_idx is None or embedding.contour_bary_coords is None:
                continue
            points = _points(head, embedding.contour_faces_idx[row], embedding.contour_bary_coords[row])
            mark_points(image, _seen(points - middle, yaw), color, radius=2.2 if color == _OTHER else 1.8)
        ears = static[51:]
        mark_points(image, _seen(ears[ears[:, 0] * yaw <= 0] - middle, yaw), _OURS)  # those that the head doesn't hide
        views.append(image)
    return sheet([views], columns=[f"yaw {yaw}" for yaw in _YAWS])


def _points(head, faces_idx, bary_coords):
    return (head.v_template[head.faces[faces_idx]] * bary_coords[..., None]).sum(1)


def _seen(points, yaw):
    """Pixels of points relative to the middle of the picture, orthographic."""
    cos, sin = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
    across = points[:, 0] * cos + points[:, 2] * sin
    return np.stack([across, -points[:, 1]], axis=1) * (_SIZE / _EXTENT) + _SIZE / 2
