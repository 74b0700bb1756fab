"""``ringnet sheet``: what a head model can do, in one picture."""

from __future__ import annotations

from ..files.images import PICTURES, write_image
from ..flame import FlameModel, builtin_head
from ..render.sheets import contact_sheet
from .options import Parser, add_head, add_out, called, command, output_file, path, whole


def make_parser() -> Parser:
    parser = Parser(
        prog=called("sheet"),
        description="Draw a head model's shapes, expressions, joints and landmarks into one picture.",
    )
    add_head(parser, former="model")
    add_out(parser, "picture to write [contact_sheet.png]", "FILE", default=path("contact_sheet.png"))
    parser.add_argument("--size", type=whole(32, 2048), default=150, help="side of one picture, pixels [150]")
    return parser


@command
def main(arguments: list[str]) -> int:
    options = make_parser().parse_args(arguments)
    output_file(options.out, PICTURES)
    head = builtin_head() if options.head is None else FlameModel.load(options.head)
    if len(head.parents) != 5:
        raise ValueError(f"{options.head}: expected a head with FLAME's 5 joints, got {len(head.parents)}")
    write_image(options.out, contact_sheet(head, options.size))
    print(f"wrote {options.out}")
    return 0
