"""``ringnet convert``: model and landmark files of the field -> .npz or .safetensors."""

from __future__ import annotations

from ..files.whole import written_whole
from ..flame import FlameModel, LandmarkEmbedding
from ..flame.formats import deca, ringnet_dynamic, ringnet_static
from ..flame.model import read_head_file
from .options import OptionError, Parser, called, command, output_file, path

ARRAYS = (".npz", ".safetensors")
FORMATS = {"ringnet-static": ringnet_static, "ringnet-dynamic": ringnet_dynamic, "deca": deca}


def make_parser() -> Parser:
    parser = Parser(
        prog=called("convert"),
        description="Convert a head model (FLAME 2017 to 2023 Open, or any of SMPL's family: .pkl, .npz) or a landmark "
        "embedding (RingNet's .pkl and .npy, DECA's .npy, MediaPipe's .npz) to this project's .npz or .safetensors. "
        "Nothing in the files is executed; what they are is told by their content.",
    )
    parser.add_argument("source", type=path, metavar="SRC", help="model or landmark file")
    parser.add_argument("destination", type=path, metavar="DST", help="file to write, *.npz or *.safetensors")
    parser.add_argument(
        "--landmarks", type=path, nargs="+", metavar="FILE",
        help="landmark embedding to store with the model, or RingNet's static and dynamic ones; beside a landmark "
        "SRC, the file of its contour [the model's own, if it has any]",
    )  # fmt: skip
    parser.add_argument("--regions", type=path, metavar="FILE", help="FLAME_masks.pkl, to store with the model [none]")
    parser.add_argument("--eyelids", type=path, nargs=2, metavar="FILE", help="l_eyelid.npy and r_eyelid.npy of SMIRK "
                        "or metrical-tracker, to store with the model [the model's own, if it has any]")  # fmt: skip
    parser.add_argument("--format", choices=FORMATS, help="write a landmark embedding for that project instead: "
                        "RingNet's static .pkl or dynamic .npy, or DECA's .npy")  # fmt: skip
    parser.add_argument("--full", action="store_true", help="of DECA's embedding, take the 68 static points")
    return parser


@command
def main(arguments: list[str]) -> int:
    options = make_parser().parse_args(arguments)
    content = read_head_file(options.source)
    if isinstance(content, dict) and "v_template" in content:
        if options.format is not None:
            raise OptionError(f"--format: only for landmarks, and {options.source} is a head model")
        output_file(options.destination, ARRAYS, "DST")
        landmarks = LandmarkEmbedding.load(*options.landmarks, full=options.full) if options.landmarks else None
        model = FlameModel.load(options.source, landmarks, options.regions, options.eyelids)
        model.save(options.destination)
        print(f"{options.destination}: {_describe_model(model)}")
    else:
        output_file(options.destination, () if options.format else ARRAYS, "DST")
        for name in ("regions", "eyelids"):
            if getattr(options, name) is not None:
                raise OptionError(f"--{name}: only for a head model, and {options.source} is a landmark embedding")
        landmarks = LandmarkEmbedding.load(options.source, *(options.landmarks or ()), full=options.full)
        if options.format is None:
            landmarks.save(options.destination)
        else:
            try:
                content = FORMATS[options.format](landmarks)
            except ValueError as error:
                raise ValueError(f"{options.source}: {error}") from error
            with written_whole(options.destination) as file:
                file.write(content)
        print(f"{options.destination}: {_describe_landmarks(landmarks)}")
    return 0


def _describe_model(model: FlameModel) -> str:
    vertices, _, shapes = model.shapedirs.shape
    parts = [
        f"{vertices} vertices, {len(model.faces)} faces, {len(model.parents)} joints",
        f"{shapes} shape and {model.expressiondirs.shape[2]} expression directions",
    ]
    if model.eyeliddirs is not None:
        parts.append("eyelids")
    if model.landmarks is not None:
        parts.append(_describe_landmarks(model.landmarks))
    if model.regions:
        parts.append(f"{len(model.regions)} regions")
    return ", ".join(parts)


def _describe_landmarks(landmarks: LandmarkEmbedding) -> str:
    return f"{landmarks.num_contour} contour and {landmarks.num_static} static landmarks"
