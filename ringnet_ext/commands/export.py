"""``ringnet export``: a trained network as a program for ONNX Runtime and others, or for torch.export."""

from __future__ import annotations

import logging
import warnings

from ..inference.ringnet import RingNet
from ..network.exportable import exported, write_onnx, write_program
from .options import OptionError, Parser, add_head, add_out, called, command, output_file, path

ONNX, PROGRAM = ".onnx", ".pt2"


def make_parser() -> Parser:
    parser = Parser(
        prog=called("export"),
        description="Write a trained network, encoder and decoder, as one program. It takes images (B, 3, 224, 224) "
        "in RGB from -1 to 1, any B: squares as training cuts them. It returns parameters (B, 159) as RingNet has, "
        "vertices (B, V, 3) of the posed heads in metres, y up, and landmarks (B, 68, 2) in pixels of these images. "
        "FILE.onnx is for ONNX Runtime and others; writing it needs the packages onnx and onnxscript. FILE.pt2 is for "
        "torch.export.load.",
    )
    parser.add_argument("checkpoint", type=path, metavar="RUN", help="run folder of training, or a checkpoint file")
    add_out(parser, "file to write, *.onnx or *.pt2", "FILE", required=True)
    add_head(parser, "head model file, if it has moved since training [the one trained on]")
    return parser


@command
def main(arguments: list[str]) -> int:
    options = make_parser().parse_args(arguments)
    output_file(options.out, (ONNX, PROGRAM))
    onnx = options.out.suffix.lower() == ONNX
    if onnx:
        _require_onnx()
    model = RingNet.load(options.checkpoint, head=options.head)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters, about themselves
        program = exported(model)
        (write_onnx if onnx else write_program)(options.out, program)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.0f} MB")
    return 0


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise OptionError(f"--out: an .onnx file needs {error.name}: pip install onnx onnxscript") from None
