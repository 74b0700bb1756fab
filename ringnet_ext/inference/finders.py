"""Where the faces of a picture are: by landmarks, by boxes, or by the network itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..detection.boxes import FaceBoxes
from ..detection.landmark_files import NoFaceError
from ..detection.squares import Square, around_landmarks, cut_square, fit_square, landmark_square
from .framing import NotAFaceError, find_face
from .inputs import Box, Picture

if TYPE_CHECKING:
    from ..network.ringnet import RingNet


class Found(NamedTuple):
    """A face in a picture: the square that the network is to see; the landmarks by which it was cut, (68, 2) pixels of
    the picture, and their confidences (68,), where they are known."""

    square: Square
    points: np.ndarray | None = None
    confidence: np.ndarray | None = None

    @property
    def known(self) -> np.ndarray:
        """The landmarks, NaN where they are not known."""
        return np.where(np.asarray(self.confidence)[:, None] > 0, np.asarray(self.points, np.float64), np.nan)


#: Finds the faces of a picture in its pixels (H, W, 3), from left to right; an error in place of a face that is not to
#: be used. Raises OSError or ValueError where there is none at all. Several threads call it at a time.
Finder = Callable[[Picture, np.ndarray], Sequence[Found | ValueError]]


def whole(picture: Picture, image: np.ndarray) -> list[Found]:
    """The picture is such a square already."""
    return [Found(picture.image if isinstance(picture.image, Square) else fit_square(image))]


def by_network(model: RingNet) -> Finder:
    """One face, by the network's own landmarks, see :func:`ringnet_ext.inference.framing.find_face`."""
    return lambda picture, image: [Found(find_face(model, image))]


def by_boxes(model: RingNet, boxes: Callable[[Picture, np.ndarray], Sequence[Box]], *, certain: bool = False) -> Finder:
    """A face in each box, where the network then looks for it. certain: there is one: where the network finds none, it
    sees the box."""

    def square(image: np.ndarray, box: Box) -> Square:
        try:
            return find_face(model, image, box)
        except NotAFaceError:
            if not certain:
                raise
            middle, side = landmark_square(np.reshape(box, (2, 2)))
            return cut_square(image, middle, float(side))

    def find(picture: Picture, image: np.ndarray) -> list[Found | ValueError]:
        found: list[Found | ValueError] = []
        for box in boxes(picture, image):
            try:
                found.append(Found(square(image, box)))
            except ValueError as error:
                found.append(error)
        return found

    return find


def by_face_boxes(model: RingNet, detector: FaceBoxes) -> Finder:
    """The same with what a detector of boxes finds."""

    def boxes(picture: Picture, image: np.ndarray) -> list[Box]:
        found = detector(image)
        if not len(found):
            raise NoFaceError("the detector found no face")
        return [(float(left), float(top), float(right), float(bottom)) for left, top, right, bottom, _ in found]

    return by_boxes(model, boxes)


def by_landmarks(landmarks: Callable[[Picture, np.ndarray], Sequence[tuple[np.ndarray, np.ndarray]]]) -> Finder:
    """Faces whose landmarks and confidences are known: the square is cut around them."""

    def find(picture: Picture, image: np.ndarray) -> list[Found | ValueError]:
        found: list[Found | ValueError] = []
        for points, confidence in landmarks(picture, image):
            try:
                found.append(Found(around_landmarks(image, points, confidence), points, confidence))
            except ValueError as error:
                found.append(error)
        return found

    return find
