"""``ringnet fit``: fit heads to the landmarks of photographs and videos."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..detection.detectors import Detectors, FaceLandmarker
from ..detection.landmark_files import SUFFIXES as LANDMARK_SUFFIXES
from ..detection.squares import Square, around_landmarks
from ..files.errors import explained
from ..files.images import read_image, silence_decoders, write_image
from ..files.videos import SUFFIXES as VIDEO_SUFFIXES
from ..files.whole import output_folder, written_whole
from ..fitting import Fit, fit
from ..fitting.pictures import uncertainty
from ..flame import FLAME, FlameModel, builtin_head
from ..flame.landmarks import OUTER_EYE_CORNERS
from ..flame.parameters import HeadParams
from ..flame.sources import require_landmarks
from ..inference.inputs import image_files, landmarks_of, named
from ..inference.outputs import folders, write
from ..inference.reconstruction import reconstruction
from ..inference.ringnet import RingNet
from ..inference.trust import Trust, certainties, inside
from ..inference.video import (
    through_pinhole,
    whole_frame,
)
from ..progress import progress
from .options import (
    FAILED,
    OptionError,
    Parser,
    add_device,
    add_head,
    add_out,
    add_threads,
    called,
    chosen_device,
    command,
    path,
    real,
    report,
    require_apart,
)
from .videos import fit_video

_WRITTEN = ("panel", "mesh", "neutral", "parameters")


def make_parser() -> Parser:
    parser = Parser(
        prog=called("fit"),
        description="Fit heads to landmarks: the most probable shape, expression, jaw and pose of each image, and how "
        "sure they are. For every image NAME the output folder gets what infer writes: images/NAME.png, mesh/NAME.obj, "
        "neutral_mesh/NAME.obj and params/NAME.npz. uncertainty/NAME.png shows the standard deviation of the head's "
        "surface, report.json and report.csv what was reached, and residuals.csv how far each landmark is from where "
        "it was given. A video gets params.npz with a row a frame and overlay.mp4 instead.",
    )
    parser.add_argument(
        "images",
        nargs="+",
        type=path,
        metavar="IMAGE",
        help="image files or folders of them, or one video: " + ", ".join(VIDEO_SUFFIXES),
    )
    add_out(parser, "folder to write to; made if missing", required=True)
    source = parser.add_argument_group("landmarks (one of these)").add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--landmarks",
        type=path,
        metavar="DIR",
        help="folder with a file of 68 landmarks for each image: NAME and one of "
        f"{', '.join(LANDMARK_SUFFIXES)}, as for prepare; for a video a .npy or .npz file, (frames, 68, 2) pixels, or "
        "with a third column of confidences; NaN where there is no face",
    )
    source.add_argument(
        "--detector", type=path, metavar="FILE", help="MediaPipe's face_landmarker.task; needs the package mediapipe"
    )
    people = parser.add_argument_group("who is in the images").add_mutually_exclusive_group()
    people.add_argument("--same-person", action="store_true", help="one person: all images get one shape")
    people.add_argument("--by-folder", action="store_true", help="one person a folder")
    parser.add_argument(
        "--checkpoint",
        type=path,
        metavar="RUN",
        help="begin at what this network says (with --camera weak), and use its head; a run folder "
        "of training, or a checkpoint file [begin at the mean head]",
    )
    add_head(parser, "head model file with landmarks [the built-in one, or the checkpoint's]")
    parser.add_argument(
        "--camera",
        choices=["weak", "perspective"],
        default="weak",
        help="weak perspective as RingNet has it, or a pinhole [weak]",
    )
    parser.add_argument(
        "--focal", type=real(above=0), metavar="PIXELS", help="of the pinhole camera [estimated, one a person]"
    )
    parser.add_argument(
        "--sigma",
        type=real(above=0),
        metavar="S",
        help="standard deviation of the landmarks, parts of the face's square's "
        "half side (of a video, and for a pinhole camera, of the image's) [estimated]",
    )
    parser.add_argument(
        "--robust", choices=["huber", "geman-mcclure"], help="let landmarks that are far off count less"
    )
    parser.add_argument(
        "--smoothness",
        type=real(0),
        default=1.0,
        metavar="X",
        help="of a video: how little a frame differs from the next; 0 for frames on their own [1]",
    )
    add_device(parser)
    add_threads(parser)
    return parser


@command
def main(arguments: list[str]) -> int:
    options = make_parser().parse_args(arguments)
    silence_decoders()
    if options.focal is not None and options.camera != "perspective":
        raise OptionError("--focal: expected --camera perspective with it")
    device = chosen_device(options)
    network = None
    if options.checkpoint is not None:
        network = RingNet.load(options.checkpoint, head=options.head).to(device)
        flame, head = network.flame, network.head
    else:
        head = builtin_head() if options.head is None else FlameModel.load(options.head)
        require_landmarks(head, f"--head: {options.head}")
        flame = FLAME(head).to(device)
    if any(file.suffix.lower() in VIDEO_SUFFIXES for file in options.images):
        if len(options.images) > 1 or options.same_person or options.by_folder:
            raise OptionError("IMAGE: expected one video alone, without --same-person and --by-folder")
        return fit_video(options, flame, head, network)
    return _fit_images(options, flame, head, network)


# Photographs.


class _Seen(NamedTuple):
    """An image's landmarks: in pixels of it, and their confidence; the square around them; its width and height."""

    name: str
    file: Path
    points: np.ndarray
    confidence: np.ndarray
    square: Square
    size: tuple[int, int]


def _fit_images(options, flame: FLAME, head: FlameModel, network: RingNet | None) -> int:
    find = _landmark_source(options)
    files, failures, _ = image_files(options.images)
    for failure in failures:
        report(failure)
    parts = (*folders(_WRITTEN), "uncertainty")
    sources = {file.parent for file in files} | ({options.landmarks} if options.landmarks else set())
    require_apart(options.out, parts, sources)
    output_folder(options.out, parts)
    (options.out / "uncertainty").mkdir(exist_ok=True)
    seen: list[_Seen] = []
    answers = []
    for name, file in progress(named(files), desc="reading", unit="image"):
        try:
            image = read_image(file)
            points, confidence = find(file, image)
            square = around_landmarks(image, points, confidence)
            seen.append(
                _Seen(name, file, points, confidence, square._replace(image=square.image[:1]), image.shape[1::-1])
            )
            if network is not None:
                answers.append(network.answer(torch.from_numpy(square.image).permute(2, 0, 1)[None]))
        except (OSError, ValueError) as error:
            failures.append(_named_failure(file, error))
            report(failures[-1])
    if not seen:
        print(f"0 of {len(files)} images fitted in {options.out}")
        return FAILED

    found, seconds = _fitted(options, flame, seen, answers)
    print(
        f"{len(seen)} images of {len(found.objective)} people fitted in {seconds:.2f} s, "
        f"{len(seen) / seconds:.0f} a second; "
        f"sigma {found.sigma:.4f}"
    )
    spread = found.vertex_std().cpu().numpy() * 1000
    limit = float(np.quantile(spread, 0.99))
    certain = certainties(found, flame)
    shapes, done, rows = found.shape, 0, []
    for i, each in enumerate(progress(seen, desc="writing", unit="image")):
        person = int(found.person[i])
        if person in found.failed:
            failures.append(f"{each.file}: {found.failed[person]}")
            report(failures[-1])
            continue
        try:
            square = around_landmarks(read_image(each.file), each.points, each.confidence)
            face = reconstruction(
                flame,
                head,
                square,
                _in_square(found, i, each, square, flame),
                found.neck_pose[i : i + 1],
                found.eye_pose[i : i + 1],
            )
            more: dict[str, Any] = {}
            if found.focal is not None and found.translation is not None:
                focal, translation = found.focal[i].item(), found.translation[i].cpu().numpy()
                face = through_pinhole(face, focal, translation, each.size)
                more["camera_translation"] = translation
                more["focal"] = focal * max(each.size) / 2
                more["projection"] = _pinhole(more["focal"], translation, each.size, face.root)
            trust = Trust(inside=inside(face.landmarks, each.size), certainty=certain[person])
            face = replace(face, original=each.file, trust=trust)
            more["shape_std"] = found.shape_std[person].cpu().numpy()
            write(options.out, each.name, face, _WRITTEN, more=more)
            picture = uncertainty(
                flame(shapes[person : person + 1]).vertices[0].cpu().numpy(), head.faces, spread[person], limit
            )
            write_image(options.out / "uncertainty" / f"{each.name}.png", picture)
            rows.append((i, each, found.residuals[i].cpu().numpy() * _unit(found, each), trust))
            done += 1
        except (OSError, ValueError) as error:
            failures.append(_named_failure(each.file, error))
            report(failures[-1])
    _write_reports(options.out, found, rows)
    print(f"{done} of {len(files)} images fitted in {options.out}")
    return FAILED if failures else 0


def _named_failure(file: Path, error: Exception) -> str:
    text = explained(error)
    return text if text.startswith(str(file)) else f"{file}: {text}"


def _landmark_source(options) -> Callable[[Path, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    if options.detector is not None:
        detectors = Detectors(lambda: FaceLandmarker(options.detector), 1)
        return lambda file, image: detectors(image)
    if not options.landmarks.is_dir():
        raise OptionError(f"--landmarks: {options.landmarks}: no such folder")
    return lambda file, image: landmarks_of(file, options.landmarks)


def _fitted(options, flame: FLAME, seen: list[_Seen], answers: list[HeadParams]) -> tuple[Fit, float]:
    perspective = options.camera == "perspective"
    normalised = [whole_frame(each.points, each.size) if perspective else _normalised(each) for each in seen]
    like = flame.v_template
    landmarks = torch.from_numpy(np.stack(normalised)).to(like)
    confidence = torch.from_numpy(np.stack([each.confidence for each in seen])).to(like)
    person = None
    if options.same_person:
        person = ["the person"] * len(seen)
    elif options.by_folder:
        person = [str(each.file.parent) for each in seen]
    start = (
        HeadParams(*(torch.cat(parts) for parts in zip(*answers, strict=True))) if answers and not perspective else None
    )
    focal = None
    if options.focal is not None:
        focal = like.new_tensor([options.focal / (max(each.size) / 2) for each in seen])
    began = time.perf_counter()
    found = fit(
        flame,
        landmarks,
        person=person,
        confidence=confidence,
        sigma=options.sigma,
        camera=options.camera,
        focal=focal,
        start=start,
        robust=options.robust,
    )
    return found, time.perf_counter() - began


def _normalised(each: _Seen) -> np.ndarray:
    side = each.square.image.shape[1]
    return (each.points * each.square.scale + np.asarray(each.square.offset)) * (2 / side) - 1


def _unit(found: Fit, each: _Seen) -> float:
    """Pixels of the image in a unit of what was fitted."""
    return max(each.size) / 2 if found.focal is not None else each.square.image.shape[1] / 2 / each.square.scale


def _in_square(found: Fit, i: int, each: _Seen, square: Square, flame: FLAME) -> HeadParams:
    """An image's parameters, with the camera that sees the head in its square."""
    params = HeadParams(*(value[i : i + 1] for value in found.params))
    if found.focal is None:
        return params
    # The square is a part of the image: x' = a x + b, so s' = a s and t' = t + b / s'.
    half = max(each.size) / 2
    a = half * square.scale * 2 / len(square.image)
    b = square.normalised(np.array(each.size) / 2)
    scale = a * params.camera[:, :1]
    return params._replace(camera=torch.cat([scale, params.camera[:, 1:] + params.camera.new_tensor(b) / scale], dim=1))


def _pinhole(focal: float, translation: np.ndarray, size: tuple[int, int], root: np.ndarray) -> np.ndarray:
    """The camera as a matrix (3, 4): ``projection @ (x, y, z, 1)``, divided by its last number, is where a point of the
    posed head, in FLAME's frame, lies in the image.

    Args:
        focal: pixels. translation: (3,) metres. size: of the image. root: (3,), about which FLAME's frame is half a
            turn from the camera's.
    """
    turned = np.diag([1.0, -1.0, -1.0])
    moved = (root - turned @ root + translation)[:, None]
    return np.array([[focal, 0, size[0] / 2], [0, focal, size[1] / 2], [0, 0, 1]]) @ np.hstack([turned, moved])


def _write_reports(folder: Path, found: Fit, rows: list[tuple[int, _Seen, np.ndarray, Trust]]) -> None:
    people: dict[int, list[str]] = {}
    summary = io.StringIO()
    writer = csv.writer(summary, lineterminator="\n")
    writer.writerow(
        [
            "image",
            "name",
            "person",
            "landmark_error",
            "pixels",
            "objective",
            "iterations",
            "stopped",
            "score",
            "inside",
            "certainty",
        ]
    )
    each_landmark = io.StringIO()
    details = csv.writer(each_landmark, lineterminator="\n")
    details.writerow(["name", *range(68)])
    for i, each, distance, trust in rows:
        known = each.confidence > 0
        person = int(found.person[i])
        eyes = float(np.linalg.norm(np.subtract(*each.points[list(OUTER_EYE_CORNERS)])))
        both = known[list(OUTER_EYE_CORNERS)].all()
        pixels = float(distance[known].mean())
        error = f"{pixels / max(eyes, 1e-9):.4f}" if both else ""
        writer.writerow(
            [
                each.file,
                each.name,
                person,
                error,
                f"{pixels:.3f}",
                f"{float(found.objective[person]):.4f}",
                int(found.iterations[person]),
                found.stopped[person],
                f"{trust.score:.4f}",
                f"{trust.inside:.4f}",
                f"{trust.certainty:.4f}",
            ]
        )
        details.writerow(
            [each.name, *(f"{value:.3f}" if there else "" for value, there in zip(distance, known, strict=True))]
        )
        people.setdefault(person, []).append(each.name)
    facts = [
        {
            "images": names,
            "objective": float(found.objective[g]),
            "iterations": int(found.iterations[g]),
            "stopped": found.stopped[g],
            "shape_std": [round(value, 5) for value in found.shape_std[g].tolist()],
        }
        for g, names in people.items()
    ]
    reports = {
        "report.csv": summary.getvalue(),
        "residuals.csv": each_landmark.getvalue(),
        "report.json": json.dumps({"sigma": found.sigma, "people": facts}, indent=1) + "\n",
    }
    for name, text in reports.items():
        with written_whole(folder / name) as file:
            file.write(text.encode("utf-8", "surrogateescape"))
