"""Where the face of a photograph is, by the network's own landmarks, and whether it is a face as the network knows them.

A network that has learnt on crops answers for any picture: a cat gets a head too. Two things tell. The square that the
network's landmarks ask for must be the one that it was shown (:func:`settled`). And on a face the landmarks stay with
the face when the square is moved, scaled or mirrored, while elsewhere they stay with the square (:func:`steadiness`).
How steady they are on faces is measured on held-out ones (:func:`calibrated`), and the limit is kept with the network.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from .camera import to_pixels
from .data.augment import FLIP
from .images import INPUT_SIZE, to_input
from .squares import Square, cut_square, landmark_square, whole_image

if TYPE_CHECKING:
    from .data.faces import FaceSet
    from .model import RingNet

_ROUNDS = 8  # of cutting anew
_SETTLED = 0.02  # of the square's side: moves less than this are none
_SMALLEST = 24  # pixels a side: no face is looked for in less
_STARTS = 0.8, 0.62, 0.48  # sides of squares that the search starts from, of the image's longer side
_STRIDE = 0.3  # of the side, between two of them
_SHIFT, _ZOOM = 0.05, 1.12  # of the other squares that the network is asked about
_OTHERS = [(_SHIFT, 0, 1), (-_SHIFT, 0, 1), (0, _SHIFT, 1), (0, -_SHIFT, 1), (0, 0, _ZOOM), (0, 0, 1 / _ZOOM)]
_DEVIATIONS = 3.0  # of the logarithm among known faces: one in 700 of them is beyond
_UNSURE = 0.9  # a network whose landmarks follow the square like this knows no faces
_DETAIL = 10  # squares of the network's input size that fit along the image in which a face is looked for
_BATCH = 64


class NotAFaceError(ValueError):
    """The picture is not a face as the network knows them; the message says by what."""


def landmarks_of(model: RingNet, squares: list[Square]) -> np.ndarray:
    """What the network sees in squares: (N, 68, 2) pixels of the squares."""
    found = []
    for start in range(0, len(squares), _BATCH):
        images = np.stack([square.image for square in squares[start : start + _BATCH]])
        params = model.answer(torch.from_numpy(images).permute(0, 3, 1, 2))
        with torch.no_grad():
            found.append(to_pixels(model.landmarks(params), images.shape[1]).cpu().numpy())
    return np.concatenate(found) if found else np.zeros((0, 68, 2))


def _cut(model: RingNet, image: np.ndarray, middle: np.ndarray, side: float) -> Square:
    return cut_square(image, middle, side, model.encoder.input_size)


def settled(model: RingNet, image: np.ndarray, middles: np.ndarray, sides: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut squares anew around the landmarks that the network finds in them, until they stay where they are.

    Args:
        image: (H, W, 3) uint8 RGB. middles: (N, 2), sides: (N,): where to start, pixels.

    Returns:
        middles (M, 2) and sides (M,) of the different squares that were come to. Starts that leave the image, or don't
        come to rest, are left out.
    """
    extent = np.array(image.shape[1::-1], np.float64)
    middles, sides = np.asarray(middles, np.float64), np.asarray(sides, np.float64)
    moved = np.full(len(sides), np.inf)
    for _ in range(_ROUNDS):
        active = np.flatnonzero(moved >= _SETTLED / 4)
        if not len(active):
            break
        squares = [_cut(model, image, middles[i], sides[i]) for i in active]
        points = landmarks_of(model, squares)
        found = np.stack([square.to_original(each) for square, each in zip(squares, points, strict=True)])
        middle, side = landmark_square(found)
        moved[active] = np.maximum(np.abs(middle - middles[active]).max(1) / sides[active], abs(np.log(side / sides[active])))
        middles[active], sides[active] = middle, side
        stays = (middles > 0).all(1) & (middles < extent).all(1) & (sides >= _SMALLEST) & (sides <= 3 * extent.max())
        middles, sides, moved = middles[stays], sides[stays], moved[stays]
    order = np.flatnonzero(moved < _SETTLED)
    kept: list[int] = []
    for i in order:
        if not any(
            np.abs(middles[i] - middles[j]).max() < 0.05 * sides[j] and abs(np.log(sides[i] / sides[j])) < 0.05 for j in kept
        ):  # fmt: skip
            kept.append(i)
    return middles[kept], sides[kept]


def steadiness(model: RingNet, image: np.ndarray, middle: np.ndarray, side: float) -> float:
    """How much the landmarks follow the square instead of the face: 0 not at all, 1 entirely.

    The network is asked about the square moved by 5 % of its side, scaled by 12 %, and mirrored. It is the root mean
    square of the distances by which landmarks differ on the image from those in the square itself, over those by which
    they would differ if they stood still in the square.
    """
    square = _cut(model, image, middle, side)
    others = [_cut(model, image, middle + side * np.array(move), side * zoom) for *move, zoom in _OTHERS]
    mirrored = square._replace(image=np.ascontiguousarray(square.image[:, ::-1]))
    points = landmarks_of(model, [square, *others, mirrored])
    own = square.to_original(points[0])
    found = [other.to_original(each) for other, each in zip(others, points[1:], strict=False)]
    back = points[-1][FLIP] * [-1, 1] + [len(square.image), 0]
    found.append(square.to_original(back))
    still = [other.to_original(points[0]) for other in others]

    def squares(positions):
        return sum(float(np.square(each - own).sum()) for each in positions)

    return math.sqrt(squares(found) / max(squares(still), 1e-12))


def find_face(model: RingNet, image: np.ndarray, box: tuple[float, float, float, float] | None = None) -> Square:
    """The square of the face in an image, found by the network itself.

    Args:
        image: (H, W, 3) uint8 RGB.
        box: left, top, right, bottom in pixels, about where the face is; None to look for it in the whole image.

    Raises:
        NotAFaceError: nothing there is a face as the network knows them.
    """
    small, shrunk = _shrunk(image, _DETAIL * model.encoder.input_size)
    middles, sides = settled(model, small, *_starts(small, None if box is None else shrunk * np.array(box)))
    if not len(sides):
        raise NotAFaceError("not a face as the network knows them: it does not come to rest on any part of the image")
    values = [steadiness(model, small, middle, side) for middle, side in zip(middles, sides, strict=True)]
    best = int(np.argmin(values))
    if not values[best] <= model.limit:
        raise NotAFaceError(
            f"not a face as the network knows them: its landmarks follow the crop by {values[best]:.2f}, and on faces by "
            f"at most {model.limit:.2f}"
        )
    return cut_square(image, middles[best] / shrunk, sides[best] / shrunk)


def _shrunk(image: np.ndarray, longest: int) -> tuple[np.ndarray, float]:
    """The image with its longer side brought down to ``longest`` pixels, and by how much."""
    height, width = image.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return image, 1.0
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA), scale


def _starts(image: np.ndarray, box) -> tuple[np.ndarray, np.ndarray]:
    """Middles and sides of the squares to start from: around the box, or all over the image in several sizes."""
    if box is not None:
        low, high = np.array(box[:2], np.float64), np.array(box[2:], np.float64)
        middle, side = landmark_square(np.stack([low, high]))
        return np.stack([middle] * 3), side * np.array([0.85, 1.0, 1.2])
    extent = np.array(image.shape[1::-1], np.float64)
    longer = extent.max()
    middles, sides = [extent / 2], [longer]
    for part in _STARTS:
        side = part * longer
        # Along each axis: as many as it takes to be no further apart than the stride, at the middle at least.
        axes = []
        for length in extent:
            room = max(0.0, length - side)
            count = 1 + math.ceil(room / (_STRIDE * side))
            axes.append(length / 2 + (np.linspace(-room / 2, room / 2, count) if count > 1 else np.zeros(1)))
        for x in axes[0]:
            for y in axes[1]:
                middles.append(np.array([x, y]))
                sides.append(side)
    return np.stack(middles), np.array(sides)
