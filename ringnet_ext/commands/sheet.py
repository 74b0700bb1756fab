"""``python -m ringnet_ext.contact_sheet``: what a head model can do, in one picture."""

from __future__ import annotations

from ..files.images import PICTURES, write_image
from ..flame import FlameModel, builtin_head
from ..render.sheets import contact_sheet
from .options import Parser, command, output_file, path, whole


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
