"""``ringnet evaluate``: the NoW benchmark, by a trained network or by predictions of any method."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..evaluation.now import UNITS, ScanErrors, scan_errors
from ..evaluation.now_files import (
    CHALLENGES,
    LISTS,
    Dataset,
    Entry,
    read_distances,
    read_list,
    read_prediction,
    write_distances,
)
from ..evaluation.now_report import Scored, table, write_lines, write_picture
from ..files.errors import explained
from ..files.images import silence_decoders
from ..files.whole import output_folder, written_whole
from ..geometry.surface import Surface
from ..inference.finders import by_boxes
from ..inference.inputs import Picture
from ..inference.outputs import KINDS, place, write
from ..inference.pipeline import OF_ONE_PICTURE, Outcome, reconstruct_all, side_by_side
from ..inference.ringnet import RingNet
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
    report,
)

_KINDS = "neutral", "now"
_FOLDER = KINDS["neutral"].folder


def make_parser() -> Parser:
    parser = Parser(
        prog=called("evaluate"),
        description="Evaluate a trained network, or predictions of any method, on the NoW benchmark: how far each head "
        "lies from the scan of its person, in mm. With --checkpoint the network predicts the head of every image, cut "
        f"by the benchmark's boxes, into DIR/{_FOLDER}, laid out as the benchmark asks for it; the test set's scans "
        "aren't public, and that folder is what its authors evaluate. DIR gets now.txt, a table of median, mean and "
        "standard deviation; now.csv, a line for each image; now.png, curves and where the errors lie; and "
        "NAME_computed_distances.npy, as now_evaluation writes it. Needs the package libigl.",
    )
    parser.add_argument("dataset", type=path, metavar="NOW", help="the benchmark's folder, with NoW_Dataset, scans and "
                        "scans_lmks_onlypp in it")  # fmt: skip
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--checkpoint", type=path, metavar="RUN", help="run folder of training, or a checkpoint file")
    which.add_argument("--predictions", type=path, metavar="DIR", help="folder of SUBJECT/CHALLENGE/NAME.obj or .ply, "
                       "neutral heads, and NAME.npy or .txt, their seven landmarks")  # fmt: skip
    add_out(parser, "folder to write to; made if missing", required=True)
    parser.add_argument("--split", choices=list(LISTS), default="validation", help="the list of images in NOW: "
                        + ", ".join(f"{name}: {file}" for name, file in LISTS.items()) + " [validation]")  # fmt: skip
    parser.add_argument("--list", type=path, metavar="FILE", help="another list, lines SUBJECT/CHALLENGE/IMAGE.jpg")
    parser.add_argument("--challenge", choices=CHALLENGES, nargs="+", help="only these [all of the list]")
    parser.add_argument("--scans", type=path, metavar="DIR", help="a folder for each subject [NOW/scans]")
    parser.add_argument("--scan-landmarks", type=path, metavar="DIR", help="the same [NOW/scans_lmks_onlypp]")
    parser.add_argument("--metrical", choices=list(UNITS), metavar="UNIT", help="the metrical evaluation: sizes count, "
                        f"and are in {', '.join(UNITS)} [the scale is chosen for each image]")  # fmt: skip
    parser.add_argument("--name", default="ringnet_ext", help="of the method [ringnet_ext]")
    parser.add_argument("--compare", type=path, nargs="+", default=[], metavar="FILE",
                        help="computed distances of other methods, .npy, beside which these are shown")  # fmt: skip
    add_head(parser, "head model file, if it has moved since training [the one trained on]")
    add_device(parser)
    add_threads(parser)
    return parser


@command
def main(arguments: list[str]) -> int:
    options = make_parser().parse_args(arguments)
    silence_decoders()
    if not re.fullmatch(r"[\w. -]+", options.name):
        raise OptionError(f"--name: expected letters, digits, -, _ and ., got {options.name!r}")
    device = chosen_device(options)
    if not options.dataset.is_dir():
        raise OptionError(f"NOW: {options.dataset}: no such folder")
    dataset = Dataset(
        options.dataset,
        options.scans or options.dataset / "scans",
        options.scan_landmarks or options.dataset / "scans_lmks_onlypp",
    )
    entries = read_list(options.list or options.dataset / LISTS[options.split])
    if options.challenge:
        entries = [entry for entry in entries if entry.challenge in options.challenge]
        if not entries:
            raise OptionError(f"--challenge: the list has no image of {', '.join(options.challenge)}")
    others = _compared(options.compare)
    if options.predictions is not None and not options.predictions.is_dir():
        raise OptionError(f"--predictions: {options.predictions}: no such folder")
    subjects = dict.fromkeys(entry.subject for entry in entries)
    there = any((dataset.scans / subject).is_dir() for subject in subjects)  # of the test set, not only of the other
    if there:  # what measuring needs is missed before the work is done
        os.environ.setdefault("IGL_NUM_THREADS", str(torch.get_num_threads()))  # else libigl takes all cores
        Surface(np.eye(3), np.array([[0, 1, 2]]))
        for subject in progress(subjects, total=len(subjects), desc="reading scans", unit="scan"):
            dataset.scan(subject)
    elif options.predictions is not None:
        raise OSError(f"{dataset.scans}: no subject's folder in it; --scans says where the scans are")
    output_folder(options.out, sorted({f"{_FOLDER}/{entry.subject}/{entry.challenge}" for entry in entries}))
    failed = False
    predictions = options.predictions
    if predictions is None:
        predictions = options.out / _FOLDER
        failed = _predict(RingNet.load(options.checkpoint, head=options.head).to(device), dataset, entries, options.out)
        if not there:
            print(
                f"the predictions are in {predictions}; their scans aren't in {dataset.scans}, so nothing is measured. "
                "For the test set's errors send them to the benchmark's authors"
            )
            return FAILED if failed else 0
    scored, failures = _score(dataset, predictions, entries, options.metrical)
    _write(options.out, options.name + ("_metrical" if options.metrical else ""), scored, others)
    return FAILED if failed or failures else 0


def _compared(files: Sequence[Path]) -> dict[str, np.ndarray]:
    """The distances in files of other methods by their names, or by their paths where several have one name."""
    methods = [file.with_name(file.stem.removesuffix("_computed_distances")) for file in files]
    names = [method.name for method in methods]
    return {
        method.name if names.count(method.name) == 1 else str(method): read_distances(file)
        for method, file in zip(methods, files, strict=True)
    }


def _predict(model: RingNet, dataset: Dataset, entries: Sequence[Entry], out: Path) -> bool:
    """Write the neutral head of each image and its landmarks. Returns whether one failed."""
    of = {entry.name: entry for entry in entries}  # a list may have an image twice
    pictures = [Picture(name, name, dataset.image(entry)) for name, entry in of.items()]
    find = by_boxes(model, lambda picture, image: [dataset.box(of[picture.name])], certain=True)

    def finish(outcome: Outcome) -> Outcome:
        try:
            for face in outcome.faces:
                if face.reconstruction is not None:
                    write(out, outcome.picture.name, face.reconstruction, _KINDS)
        except OF_ONE_PICTURE as error:
            return replace(outcome, error=error)
        return outcome

    failed = False
    made = reconstruct_all(model, pictures, find, finish, trust=False)
    for outcome in progress(made, total=len(pictures), desc="reconstructing", unit="image"):
        for error in outcome.errors:
            failed = True
            report(f"{outcome.picture.label}: {explained(error)}")
            for kind in _KINDS:  # what an earlier run left of it would be measured
                (out / place(kind, outcome.picture.name)).unlink(missing_ok=True)
    return failed


def _score(
    dataset: Dataset, predictions: Path, entries: Sequence[Entry], unit: str | None
) -> tuple[list[Scored], bool]:
    """Each image's errors, and whether a prediction was missing or could not be used."""

    def score(entry: Entry) -> ScanErrors | Exception | None:
        scan, landmarks = dataset.scan(entry.subject)
        try:
            found = read_prediction(predictions, entry)
            if found is None:
                return None
            head, points = found
            return scan_errors(scan, landmarks, head.vertices, head.faces, points, unit)
        except OF_ONE_PICTURE as error:
            return error

    scored, failed, missing = [], False, 0
    made = side_by_side(score, entries, threads=max(1, torch.get_num_threads()))
    for entry, errors in zip(entries, progress(made, total=len(entries), desc="measuring", unit="image"), strict=True):
        if isinstance(errors, Exception):
            report(f"{entry.name}: {explained(errors)}")
            failed, errors = True, None
        elif errors is None:
            missing += 1
        elif errors.mirrored:
            report(f"{entry.name}: its mirror image lay closer; are its landmarks in order?", kind="warning")
        scored.append(Scored(entry, errors))
    if missing:
        report(f"{missing} of {len(entries)} images have no prediction in {predictions}, or no landmarks of it")
    return scored, failed or missing > 0


def _write(out: Path, name: str, scored: Sequence[Scored], others: dict[str, np.ndarray]) -> None:
    text = table(scored, others)
    with written_whole(out / "now.txt") as file:
        file.write(text.encode())
    write_lines(out / "now.csv", scored)
    write_picture(out / "now.png", scored, others)
    used = [(entry, errors.distances) for entry, errors in scored if errors is not None]
    missing = len(scored) - len(used)
    distances = [each for _, each in used]
    write_distances(out / f"{name}_computed_distances.npy", distances, missing, ["/".join(entry) for entry, _ in used])
    print(text, end="")
    print(f"everything is in {out}")
