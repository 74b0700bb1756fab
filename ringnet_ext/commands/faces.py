"""Where the faces of images are: what ``--landmarks``, ``--detector``, ``--boxes`` and ``--cropped`` mean."""

from __future__ import annotations

from pathlib import Path

from ..detection.boxes import FaceBoxes
from ..detection.detectors import Detectors, FaceLandmarker
from ..inference.finders import Finder, by_boxes, by_face_boxes, by_landmarks, by_network, whole
from ..inference.inputs import Box, Picture, landmarks_of, read_boxes
from ..inference.pipeline import THREADS
from ..inference.ringnet import RingNet
from .options import OptionError

_MOST_FACES = 20  # of an image, that MediaPipe looks for


def finder(model: RingNet, options) -> Finder:
    """What finds the faces of images, by the options that say where they are."""
    if options.landmarks is not None:
        if not options.landmarks.is_dir():
            raise OptionError(f"--landmarks: {options.landmarks}: no such folder")
        return by_landmarks(lambda picture, image: [landmarks_of(Path(picture.label), options.landmarks)])
    if options.cropped:
        return whole
    if finds_landmarks(options):
        detectors = landmark_detectors(options)
        return by_landmarks(lambda picture, image: detectors.faces(image))
    if options.detector is not None:
        return by_face_boxes(model, FaceBoxes(options.detector))
    if options.boxes is not None:
        boxes = read_boxes(options.boxes)
        return by_boxes(model, lambda picture, image: _boxes_of(picture, boxes, options.boxes))
    return by_network(model)


def finds_landmarks(options) -> bool:
    """Whether the detector is MediaPipe's; OpenCV's find boxes."""
    return options.detector is not None and options.detector.suffix.lower() != ".onnx"


def landmark_detectors(options) -> Detectors:
    return Detectors(lambda: FaceLandmarker(options.detector, _MOST_FACES), THREADS)


def _boxes_of(picture: Picture, boxes: dict[str, list[Box]], source: Path) -> list[Box]:
    found = boxes.get(picture.label, boxes.get(Path(picture.label).name))
    if found is None:
        raise ValueError(f"no box: {source} has no line of {picture.label} or {Path(picture.label).name}")
    return found
