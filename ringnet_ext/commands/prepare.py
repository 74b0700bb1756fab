"""``ringnet prepare``: make a training set of photographs of people and landmark files."""

from __future__ import annotations

import sqlite3
from functools import partial

import numpy as np

from ..data.photographs import load_photographs
from ..data.prepare import LEAST_PEOPLE, SIZES, PrepareSettings, prepare
from ..detection.detectors import FaceLandmarker
from ..detection.landmark_files import SUFFIXES as LANDMARK_SUFFIXES
from .options import Parser, add_out, add_threads, called, command, path, real, whole


def make_parser() -> Parser:
    default = PrepareSettings()
    parser = Parser(
        prog=called("prepare"),
        description="Make a training set of photographs: check every image and its 68 landmarks, cut a loose square "
        "around the face, and write a manifest and a report. SOURCE holds a folder of images for each person, as "
        "VGGFace2 does, or the images that --identities lists. DIR/dropped.csv names what cannot be used, and why. The "
        "same command continues an interrupted run, and brings a set up to date whose source has changed.",
    )
    parser.add_argument("source", type=path, metavar="SOURCE", help="folder of photographs")
    add_out(parser, "folder of the set; made if missing", required=True)
    parser.add_argument("--landmarks", type=path, metavar="DIR", help="folder with the landmark files, laid out like "
                        f"SOURCE: NAME and one of {', '.join(LANDMARK_SUFFIXES)} [beside the images]")  # fmt: skip
    parser.add_argument("--detector", type=path, metavar="FILE", help="MediaPipe's face_landmarker.task, to find the "
                        "landmarks of images without a file of them; needs the package mediapipe [such images are "
                        "dropped]")  # fmt: skip
    parser.add_argument("--identities", type=path, metavar="FILE", help="lines path,identity or, as CelebA's "
                        "identity_CelebA.txt, path identity; paths relative to SOURCE; an empty identity or -1 for "
                        "none [each person's folder]")  # fmt: skip
    parser.add_argument("--anonymous", metavar="NAME", help="the folder in SOURCE whose images have no identity: their "
                        "rings are made of crops of the one image [none]")  # fmt: skip
    parser.add_argument(
        "--size", type=whole(*SIZES), default=default.size, help=f"side of the crops, pixels [{default.size}]"
    )
    parser.add_argument("--format", choices=("jpg", "png"), default=default.format,
                        help=f"of the crops [{default.format}]")  # fmt: skip
    parser.add_argument("--min-face", type=real(1), default=default.min_face, help="least size of a face: the larger "
                        f"side of its landmarks' box, pixels of the photograph [{default.min_face:g}]")  # fmt: skip
    add_threads(parser, former="--workers")
    return parser


@command
def main(arguments: list[str]) -> int:
    options = make_parser().parse_args(arguments)
    try:
        report = prepare(
            options.source, options.out, PrepareSettings(options.size, options.format, options.min_face),
            landmarks=options.landmarks, identities=options.identities, anonymous=options.anonymous,
            detector=None if options.detector is None else partial(FaceLandmarker, options.detector),
            workers=options.threads or None,
        )  # fmt: skip
    except sqlite3.Error as error:
        why = "; is another run at work on it?" if "locked" in str(error) else ""
        raise OSError(f"{options.out / 'progress.sqlite'}: {error}{why}") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command continues") from None
    print(report, end="")
    try:
        identity = load_photographs(options.out).identity
    except ValueError:
        raise ValueError(f"{options.source}: no image could be used; {options.out / 'dropped.csv'} says why") from None
    enough = len(np.unique(identity[identity >= 0])) >= LEAST_PEOPLE
    advice = f"; train with ringnet train --data {options.out}" if enough else ""
    print(f"everything is in {options.out}{advice}")
    return 0
