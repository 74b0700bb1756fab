"""``python -m ringnet_ext.infer``: reconstruct the faces of photographs."""

from __future__ import annotations

import csv
import errno
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..detection.detectors import Detectors, FaceLandmarker
from ..detection.landmark_files import SUFFIXES as LANDMARK_SUFFIXES
from ..detection.squares import Square, around_landmarks, fit_square
from ..files.errors import explained
from ..files.images import MIN_IMAGE, SUFFIXES, ImageError, read_image
from ..files.whole import output_folder, written_whole
from ..inference.framing import NotAFaceError, find_face
from ..inference.inputs import image_files, landmarks_of, named, read_boxes
from ..inference.outputs import folders, write
from ..inference.reconstruction import Reconstruction, RingNet
from ..ops.devices import computing_device
from ..progress import progress
from .options import FAILED, OptionError, Parser, command, path, report

INDEX = "index.csv"
_WRITTEN = ("panel", "mesh", "neutral", "parameters")
_OUTER_EYE_CORNERS = 36, 45
_NOWHERE_TO_WRITE = errno.ENOSPC, errno.EDQUOT, errno.EROFS  # every image after it would fail the same way


def _parser() -> Parser:
    parser = Parser(
        prog="python -m ringnet_ext.infer",
        description="Reconstruct heads from photographs, one face each. The network wants the square that training cuts: "
        "the 68 landmarks' box in its middle, filling 80 % of it. --landmarks, --detector or --boxes say where the face "
        "is. Without them the network looks for it, from the whole picture and parts of it, and what is not a face as it "
        "knows them counts as failed. For every image NAME the output folder gets images/NAME.png (input, overlay, mesh, "
        "mesh turned, neutral), mesh/NAME.obj (posed), neutral_mesh/NAME.obj, both in metres, y up, in FLAME's frame, and "
        "params/NAME.npz (cam, pose, shape, expression in RingNet's conventions; landmarks in pixels of the image). "
        f"{INDEX} says which input each NAME is of, what became of it, and which square was cut. An image that fails is "
        "reported, the others are still done, and the exit code is 1.",
    )
    parser.add_argument("images", nargs="+", type=path, metavar="IMAGE", help="image files, or folders of them: "
                        + ", ".join(SUFFIXES))  # fmt: skip
    parser.add_argument("--checkpoint", type=path, required=True, metavar="RUN",
                        help="run folder of training, or a checkpoint file")  # fmt: skip
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="folder to write to; made if missing")
    where = parser.add_argument_group("where the face is (one of these)").add_mutually_exclusive_group()
    where.add_argument("--landmarks", type=path, metavar="DIR", help="folder with a file of 68 landmarks for each image: NAME and "
                       f"one of {', '.join(LANDMARK_SUFFIXES)}, as for prepare")  # fmt: skip
    where.add_argument("--detector", type=path, metavar="FILE", help="MediaPipe's face_landmarker.task; needs the package "
                       "mediapipe")  # fmt: skip
    where.add_argument("--boxes", type=path, metavar="FILE", help="lines IMAGE,left,top,right,bottom: about where the face is, "
                       "pixels; IMAGE as it is given here, or its name. The network looks from there")  # fmt: skip
    where.add_argument("--cropped", action="store_true", help="the images are such squares already: they are taken whole, "
                       "and whether they are faces is not asked")  # fmt: skip
    parser.add_argument("--head", type=path, metavar="FILE",
                        help="head model file, if it has moved since training [the one trained on]")  # fmt: skip
    parser.add_argument("--device", help="cpu, cuda or cuda:N [cuda if there is one, else cpu]")
    return parser


@command
def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    device = computing_device(options.device)
    model = RingNet.load(options.checkpoint, head=options.head).to(device)
    cut = _cutter(model, options)
    files, failures, others = image_files(options.images)
    for failure in failures:
        report(failure)
    output_folder(options.out, folders(_WRITTEN))
    if others:
        print("left out of the folders: " + ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items())))
    print(_trained_on(model))
    rows, not_found = [], 0
    try:
        for name, file in progress(named(files), desc="reconstructing", unit="image"):
            try:
                image = read_image(file)
                if min(image.shape[:2]) < MIN_IMAGE:
                    size = f"{image.shape[1]} x {image.shape[0]}"
                    raise ImageError(f"{size} pixels, expected at least {MIN_IMAGE} x {MIN_IMAGE}")
                found = cut(file, image)
                face = model.reconstruct(found.square)
                write(options.out, name, face, _WRITTEN)
                rows.append([file, name, "reconstructed", *_place(found.square), _error(face, found)])
            except (OSError, ValueError, MemoryError) as error:
                not_found += isinstance(error, NotAFaceError)
                text = explained(error)
                failures.append(text if text.startswith(str(file)) else f"{file}: {text}")
                report(failures[-1])
                rows.append([file, "", text.removeprefix(f"{file}: "), "", "", "", ""])
                if isinstance(error, OSError) and error.errno in _NOWHERE_TO_WRITE:
                    break
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted after {len(rows)} of {len(files)} images; {options.out / INDEX} names them"
        ) from None
    finally:
        try:
            _write_index(options.out / INDEX, rows)
        except OSError as error:
            report(error)
    done = sum(bool(row[1]) for row in rows)
    if not_found:
        print(
            f"in {not_found} images no face was found: --landmarks, --detector or --boxes say where it is, --cropped takes "
            "images as they are"
        )
    print(f"{done} of {len(files)} images reconstructed in {options.out}")
    return FAILED if failures else 0


# Where the face is.


class _Found(NamedTuple):
    square: Square
    points: np.ndarray | None = None  # (68, 2) pixels of the image, where they are known
    confidence: np.ndarray | None = None


def _cutter(model: RingNet, options) -> Callable[[Path, np.ndarray], _Found]:
    """Cuts the square around the face of an image, as the options say."""
    if options.landmarks is not None:
        if not options.landmarks.is_dir():
            raise OptionError(f"--landmarks: {options.landmarks}: no such folder")
        return lambda file, image: _by_landmarks(image, *landmarks_of(file, options.landmarks))
    if options.detector is not None:
        detectors = Detectors(lambda: FaceLandmarker(options.detector), 1)
        return lambda file, image: _by_landmarks(image, *detectors(image))
    if options.boxes is not None:
        boxes = read_boxes(options.boxes)
        return lambda file, image: _Found(find_face(model, image, _box_of(file, boxes, options.boxes)))
    if options.cropped:
        return lambda file, image: _Found(fit_square(image))
    return lambda file, image: _Found(find_face(model, image))


def _by_landmarks(image: np.ndarray, points: np.ndarray, confidence: np.ndarray) -> _Found:
    return _Found(around_landmarks(image, points, confidence), points, confidence)


def _box_of(file: Path, boxes: dict, source: Path) -> tuple[float, float, float, float]:
    box = boxes.get(str(file), boxes.get(file.name))
    if box is None:
        raise ValueError(f"no box: {source} has no line of {file} or {file.name}")
    return box


def _place(square: Square) -> list[str]:
    """Left, top and side of the square, pixels of the image."""
    left, top = square.to_original(np.zeros(2))
    return [f"{value:.1f}" for value in (left, top, len(square.image) / square.scale)]


def _error(face: Reconstruction, found: _Found) -> str:
    """Mean distance of the landmarks from those given, in distances of the given outer eye corners; '' if not known."""
    if found.points is None or not (found.confidence[list(_OUTER_EYE_CORNERS)] > 0).all():
        return ""
    known = found.confidence > 0
    eyes = np.linalg.norm(np.subtract(*found.points[list(_OUTER_EYE_CORNERS)]))
    return f"{np.linalg.norm(face.landmarks - found.points, axis=1)[known].mean() / max(eyes, 1e-9):.4f}"


def _write_index(file: Path, rows: list[list]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "name", "result", "left", "top", "side", "landmark_error"])
    writer.writerows(rows)
    with written_whole(file) as target:
        target.write(text.getvalue().encode("utf-8", "surrogateescape"))


def _trained_on(model: RingNet) -> str:
    if model.trained_on is None:
        return "note: the checkpoint doesn't say what its network was trained on"
    if model.trained_on == "photographs":
        return "note: the network was trained on photographs"
    return f"note: the network was trained on {model.trained_on}, not on photographs: expect coarse proportions, no likeness"
