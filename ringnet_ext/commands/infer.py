"""``ringnet infer``: reconstruct the faces of photographs."""

from __future__ import annotations

import argparse
import errno
import hashlib
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from .._version import __version__
from ..detection.landmark_files import SUFFIXES as LANDMARK_SUFFIXES
from ..files.errors import explained
from ..files.images import SUFFIXES, silence_decoders
from ..files.videos import SUFFIXES as VIDEO_SUFFIXES
from ..files.whole import output_folder
from ..inference.framing import NotAFaceError, limit_of
from ..inference.inputs import (
    Picture,
    face_name,
    image_files,
    landmark_place,
    pictures_of,
)
from ..inference.outputs import DEFAULT, KINDS, folders, place, write
from ..inference.pipeline import OF_ONE_PICTURE, THREADS, Outcome, reconstruct_all
from ..inference.reconstruction import FRAMES
from ..inference.results import Results, parameter_columns
from ..inference.ringnet import RingNet
from ..inference.shares import can_share, shared
from ..inference.trust import described
from ..progress import progress
from ..training.processes import Processes, joined_processes
from .faces import finder, finds_landmarks
from .options import (
    FAILED,
    OptionError,
    Parser,
    add_device,
    add_head,
    add_out,
    add_threads,
    called,
    command,
    path,
    report,
    require_apart,
    use_threads,
)
from .options import whole as whole_number
from .videos import OVERLAY, PARAMETERS, infer_video

TABLES = {"csv": "results.csv", "parquet": "results.parquet"}
_NOWHERE_TO_WRITE = errno.ENOSPC, errno.EDQUOT, errno.EROFS  # every image after it would fail the same way
_SHARE = 64  # images for which a process is started at least


def make_parser() -> Parser:
    parser = Parser(
        prog=called("infer"),
        description="Reconstruct heads from photographs. The network wants the square that training cuts: the 68 "
        "landmarks' box in its middle, filling 80 % of it. --landmarks, --detector or --boxes say where the "
        "faces are. Without them the network looks for one face, from the whole picture and parts of it, and "
        "what is not a face as it knows them counts as failed. For every image NAME the output folder gets "
        "the files of --write; several faces of an image are called NAME_face1, NAME_face2 and so on from "
        "left to right. results.csv has a line for each face: which input, what became of it, how far to "
        "trust it, which square was cut, its files and parameters. An image that fails is reported, the "
        "others are still done, and the exit code is 1. A run that was killed goes on where it was when the "
        "same command is given again; torchrun's processes share the images. A video gets params.npz, with a "
        "row a frame, and overlay.mp4 instead: with --landmarks or MediaPipe's detector one head is fitted to"
        " all frames, smooth over time; without, the network follows the face. Frames without a face are "
        "bridged, and marked.",
    )
    parser.add_argument(
        "images",
        nargs="*",
        type=path,
        metavar="IMAGE",
        help="image files, folders of them, and patterns such as "
        "'photos/*.jpg': " + ", ".join(SUFFIXES) + "; or one video: " + ", ".join(VIDEO_SUFFIXES),
    )
    parser.add_argument("--checkpoint", type=path, metavar="RUN", help="run folder of training, or a checkpoint file")
    add_out(parser, "folder to write to; made if missing")
    parser.add_argument(
        "--camera",
        type=whole_number(0),
        metavar="N",
        help="record this camera to camera.mp4 and take that for the video, until Ctrl-C or for --frames",
    )
    parser.add_argument("--frames", type=whole_number(1), metavar="N", help="how many the camera records")
    parser.add_argument("--recursive", action="store_true", help="the folders' folders too")
    where = parser.add_argument_group("where the faces are (one of these)").add_mutually_exclusive_group()
    where.add_argument(
        "--landmarks",
        type=path,
        metavar="DIR",
        help=f"folder with a file of 68 landmarks for each image: NAME and one of {', '.join(LANDMARK_SUFFIXES)}, as "
        "for prepare; for a video a .npy or .npz file, (frames, 68, 2) pixels, or with a third column of confidences; "
        "NaN where there is no face",
    )
    where.add_argument(
        "--detector",
        type=path,
        metavar="FILE",
        help="OpenCV's face detector: a file of YuNet, .onnx, in whose "
        "boxes the network looks; or MediaPipe's face_landmarker.task; needs the package mediapipe",
    )
    where.add_argument(
        "--boxes",
        type=path,
        metavar="FILE",
        help="lines IMAGE,left,top,right,bottom: about where a face is, "
        "pixels; IMAGE as it is given here, or its name. The network looks from there",
    )
    where.add_argument(
        "--cropped",
        action="store_true",
        help="the images are such squares already: they are taken whole, and whether they are faces is not asked",
    )
    parser.add_argument(
        "--write",
        type=_kinds,
        metavar="KIND,KIND",
        help="what is written of a face, one file each: "
        + "; ".join(f"{name} ({kind.folder}/NAME{kind.suffix}: {kind.what})" for name, kind in KINDS.items())
        + f" [{','.join(DEFAULT)}]",
    )
    parser.add_argument(
        "--frame",
        choices=list(FRAMES),
        help="of posed meshes and their landmarks: "
        + "; ".join(f"{name}: {axes}" for name, axes in FRAMES.items())
        + " [flame]",
    )
    parser.add_argument(
        "--table",
        choices=list(TABLES),
        default="csv",
        help="the table of results: results.csv or results.parquet (needs the package pyarrow) [csv]",
    )
    parser.add_argument(
        "--score",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask the network about a second crop of each face, for its score [yes]",
    )
    parser.add_argument(
        "--refine",
        action=argparse.BooleanOptionalAction,
        help="where landmarks are known, by --landmarks or MediaPipe, fit the network's answer to them [yes; no with "
        "flags of RingNet's demo]",
    )
    parser.add_argument(
        "--batch",
        type=whole_number(1, 4096),
        metavar="N",
        help="faces that the network sees at a time [on a CPU 96 with the compact encoder and 8 with ResNet-50, 64 "
        "elsewhere]",
    )
    add_head(parser, "head model file, if it has moved since training [the one trained on]")
    add_device(parser)
    add_threads(parser)
    theirs = parser.add_argument_group(
        "flags of RingNet's demo",
        "With any of these the outputs are the demo's: images/NAME.png and what the flags ask for, in RingNet's frame, "
        "and no table. As there, images are taken whole, unless it is said where the faces are, and --out is "
        "RingNet_output.",
    )
    theirs.add_argument("--img_path", type=path, metavar="IMAGE", help="an image")
    for flag, kind in _DEMO.items():
        what = f"{KINDS[kind].folder}/NAME{KINDS[kind].suffix}" if kind else "is not written yet"
        theirs.add_argument(f"--{flag}", type=_boolean, nargs="?", const=True, metavar="True|False", help=what)
        theirs.add_argument(f"--no{flag}", dest=flag, action="store_const", const=False, help=argparse.SUPPRESS)
    for flag, ours in (("--out_folder", "out"), ("--load_path", "checkpoint"), ("--flame_model_path", "head")):
        theirs.add_argument(flag, dest=ours, type=path, default=argparse.SUPPRESS, metavar="PATH", help=f"as --{ours}")
    theirs.add_argument("--flame_texture_data_path", type=path, help=argparse.SUPPRESS)
    return parser


#: Flags of RingNet's demo, and the kind of file that each asks for.
_DEMO = {
    "save_obj_file": "mesh",
    "save_flame_parameters": "ringnet",
    "neutralize_expression": "neutral",
    "save_texture": None,
}


def _boolean(text: str) -> bool:
    """As absl reads it, which RingNet's demo uses; Python's bool("False") is True."""
    values = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"expected True or False, got {text!r}")
    return values[text.lower()]


def _options(arguments: list[str]):
    """The options, complete: those of RingNet's demo as what they mean here."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    as_demo = options.img_path is not None or any(getattr(options, flag) is not None for flag in _DEMO)
    if options.img_path is not None:
        options.images.insert(0, options.img_path)
    if as_demo:
        options.out = options.out or Path("RingNet_output")
        options.frame = options.frame or "ringnet"
        asked = [kind for flag, kind in _DEMO.items() if kind and getattr(options, flag)]
        options.write = tuple(dict.fromkeys(["panel", *asked, *(options.write or ())]))
        options.table = None
        if options.save_texture:
            report("--save_texture: textures are not written yet; all else is", kind="note")
        if not (options.landmarks or options.detector or options.boxes):
            options.cropped = True
    if _is_video(options):
        for name in ("write", "frame", "refine"):
            if getattr(options, name) is not None:
                parser.error(f"--{name}: of images alone; a video gets {PARAMETERS} and {OVERLAY}")
    if options.refine is None:
        options.refine = not as_demo
    if options.frames is not None and options.camera is None:
        parser.error("--frames: expected --camera with it")
    missing = [
        name
        for name, value in (
            ("IMAGE", options.images or options.camera is not None),
            ("--checkpoint", options.checkpoint),
            ("--out", options.out),
        )
        if not value
    ]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    options.write = options.write or DEFAULT
    options.frame = options.frame or "flame"
    return options


def _is_video(options) -> bool:
    return options.camera is not None or any(file.suffix.lower() in VIDEO_SUFFIXES for file in options.images)


def _kinds(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    wrong = [name for name in names if name not in KINDS]
    if wrong:
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(KINDS)}, got {wrong[0]!r}")
    return names


@command
def main(arguments: list[str]) -> int:
    options = _options(arguments)
    silence_decoders()
    _require_table(options.table)
    use_threads(options)
    with joined_processes(options.device) as processes:
        model = RingNet.load(options.checkpoint, head=options.head).to(processes.device)
        if _is_video(options):
            return infer_video(options, model, processes)
        return _infer_images(options, model, processes)


def _require_table(kind: str) -> None:
    if kind == "parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise OptionError("--table: parquet needs the package pyarrow: pip install pyarrow") from None


# Photographs.


def _infer_images(options, model: RingNet, processes: Processes) -> int:
    find = finder(model, options)
    files, failures, others = image_files(options.images, options.recursive, options.out)
    sources = {file.parent for file in files} | ({options.landmarks} if options.landmarks else set())
    require_apart(options.out, folders(options.write), sources)
    first = processes.rank == 0
    if first:
        for failure in failures:
            report(failure)
    output_folder(options.out, folders(options.write))
    if others and first:
        print("left out of the folders: " + ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items())))
    if first:
        print(described(model))
    pictures = pictures_of(files)
    beside = lambda picture: (
        None if options.landmarks is None else landmark_place(Path(picture.label), options.landmarks)
    )
    results = Results(options.out, _settings(options), processes.rank, processes.count, beside)
    processes.meet()
    own = pictures[processes.rank :: processes.count]
    left = [picture for picture in own if not results.has(picture)]
    done = len(own) - len(left)
    if done:
        print(f"going on with a run that was interrupted: {done} of {len(own)} images are there")
    columns = parameter_columns(model.flame.shape_params, model.flame.expression_params)
    table = options.out / TABLES[options.table] if options.table else None
    failed = bool(failures) and first
    tried, not_found = 0, 0
    count, threads = _workers(options, model, processes, len(left))

    def work(pictures: Sequence[Picture]) -> Generator[_Done]:
        made = reconstruct_all(
            model,
            pictures,
            find,
            _writer(options.out, results, options.write, options.frame),
            batch=options.batch,
            trust=options.score,
            refine=options.refine,
            threads=threads,
        )
        with closing(made):
            yield from map(_Done.of, made)

    outcomes = work(left) if count == 1 else shared(work, left, count)
    try:
        for outcome in progress(outcomes, total=len(own), initial=done, desc="reconstructing", unit="image"):
            tried += 1
            done += not outcome.complaints
            for line in outcome.complaints:
                report(line)
            failed = failed or bool(outcome.complaints)
            not_found += outcome.no_face
            if outcome.no_room:
                break
    except KeyboardInterrupt:
        outcomes.close()
        _write_so_far(results, table, pictures, columns)
        raise KeyboardInterrupt(
            f"interrupted after {done} of {len(own)} images; {'' if table is None else f'{table} names them, and '}"
            "the same command goes on from there"
        ) from None
    except ChildProcessError as error:
        _write_so_far(results, table, pictures, columns)
        raise ChildProcessError(f"{error}; the same command goes on from there") from None
    outcomes.close()
    if not_found:
        where = "boxes that lie closer, or" if options.boxes or options.detector else "--detector or --boxes, or"
        print(
            f"in {not_found} images a face was not found: {where} --landmarks say where it is, --cropped takes images "
            "as they are"
        )
    share = f" (process {processes.rank} of {processes.count})" if processes.count > 1 else ""
    print(f"{done} of {len(own)} images reconstructed in {options.out}{share}")
    try:
        if tried == len(left):
            results.finish(table, pictures, columns)
        else:
            _write_so_far(results, table, pictures, columns)
    except OSError as error:
        report(error)
        failed = True
    processes.meet()  # torchrun ends the others as soon as one exits with an error
    return FAILED if failed else 0


def _write_so_far(results: Results, table: Path | None, pictures: list[Picture], columns: list[str]) -> None:
    results.close()
    if table is None:
        return
    try:
        results.write(table, pictures, columns)
    except OSError as error:
        report(error)


class _Done(NamedTuple):
    """What there is to say of a picture that is done. complaints: none where all is well. no_face: none was found.
    no_room: nor will there be any for the others' files."""

    complaints: list[str]
    no_face: bool
    no_room: bool

    @classmethod
    def of(cls, outcome: Outcome) -> _Done:
        errors = outcome.errors
        return cls(
            _complaints(outcome),
            any(isinstance(error, NotAFaceError) for error in errors),
            any(isinstance(error, OSError) and error.errno in _NOWHERE_TO_WRITE for error in errors),
        )


def _workers(options, model: RingNet, processes: Processes, pictures: int) -> tuple[int, int]:
    """How many processes take a share of the pictures, and how many threads read and write in each; 0: the one that
    computes.

    Where one core is enough for the network, each core that there is to use gets a process, if the pictures are so many
    that starting it pays. MediaPipe's detectors have threads of their own.
    """
    cores = torch.get_num_threads()
    if processes.device.type != "cpu" or not model.encoder.light or finds_landmarks(options):
        return 1, THREADS
    count = min(cores, pictures // _SHARE) if processes.count == 1 and can_share() else 1
    if count > 1 and not options.cropped and options.landmarks is None:
        limit_of(model)  # measured once, if it has to be
    return max(1, count), 0 if count > 1 or cores == 1 else THREADS


def _complaints(outcome: Outcome) -> list[str]:
    label = outcome.picture.label
    if outcome.error is not None:
        return [_of(label, outcome.error)]
    several = len(outcome.faces) > 1
    return [
        _of(f"{label}: face {face.number}" if several else label, face.error)
        for face in outcome.faces
        if face.error is not None
    ]


def _of(label: str, error: Exception) -> str:
    text = explained(error)
    return text if text.startswith(label) else f"{label}: {text}"


def _settings(options) -> dict:
    """What the files depend on beside the images and their landmarks."""
    network = options.checkpoint / "best.safetensors" if options.checkpoint.is_dir() else options.checkpoint
    read = {"network": network, "lines": options.boxes}
    contents = {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in read.items() if file is not None}
    named = {
        name: str(value)
        for name, value in vars(options).items()
        if name not in ("images", "out", "device", "recursive")
    }
    return named | contents | {"version": __version__}


def _writer(folder: Path, results: Results, kinds: Sequence[str], frame: str) -> Callable[[Outcome], Outcome]:
    """Writes the files of a picture's faces, all or none, and its line of results."""

    def write_all(outcome: Outcome) -> Outcome:
        count = len(outcome.faces)
        names = [face_name(outcome.picture.name, face.number, count) for face in outcome.faces]
        there = [face.reconstruction is not None for face in outcome.faces]
        written: list[Path] = []
        try:
            for face, name in zip(outcome.faces, names, strict=True):
                if face.reconstruction is not None:
                    written += write(folder, name, face.reconstruction, kinds, frame=frame)
            places = [[place(kind, name) for kind in kinds if made] for name, made in zip(names, there, strict=True)]
            results.add(outcome, names, places)
            return outcome
        except OF_ONE_PICTURE as error:
            for file in written:
                file.unlink(missing_ok=True)
            outcome = replace(outcome, faces=(), error=error)
            if not (isinstance(error, OSError) and error.errno in _NOWHERE_TO_WRITE):
                results.add(outcome, [], [])
            return outcome

    return write_all
