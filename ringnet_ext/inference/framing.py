"""Where the face of a photograph is, by the network's own landmarks, and whether it is a face as the network knows
them.

A network that has learnt on crops answers for any picture: a cat gets a head too. Two things tell. The square that the
network's landmarks ask for must be the one that it was shown (:func:`settled`). And on a face the landmarks stay with
the face when the square is moved, scaled or turned, while elsewhere they stay with the square (:func:`following`). How
far they do on faces is measured on held-out ones (:func:`calibrated`), and the limit is kept with the network.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from ..data.augment import crop
from ..detection.squares import INPUT_SIZE, Square, cut_square, landmark_square, shrunk
from ..geometry.camera import to_pixels

if TYPE_CHECKING:
    from ..data.face_set import FaceSet
    from ..network.ringnet import RingNet

_ROUNDS = 8  # of cutting anew
_SETTLED = 0.02  # of the square's side: moves less than this are none
_SMALLEST = 24  # pixels a side: no face is looked for in less
_PARTS = 0.8, 0.62, 0.48, 0.37, 0.28  # of the image's longer side: squares that the search starts from
_STRIDE = 0.3  # of their side, between two of them
#: The other squares that the network is asked about: moved (parts of the side), scaled, turned (degrees).
_SHIFT, _ZOOM, _TURN = 0.05, 1.12, 10.0
_OTHERS = [
    *[(x, y, 1.0, 0.0) for x, y in ((_SHIFT, 0.0), (-_SHIFT, 0.0), (0.0, _SHIFT), (0.0, -_SHIFT))],
    *[(0.0, 0.0, zoom, 0.0) for zoom in (_ZOOM, 1 / _ZOOM)],
    *[(0.0, 0.0, 1.0, turn) for turn in (_TURN, -_TURN)],
]
_DEVIATIONS = 3.5  # of the logarithm among known faces, whose upper tail is longer than a normal distribution's
_UNSURE = 0.9  # a network whose landmarks follow the square like this knows no faces
_DETAIL = 10  # squares of the network's input size that fit along the image in which a face is looked for
_LOOSER = 1.25  # times as large as the square of training: the other half of the squares that are calibrated on
_SAME = 0.05  # of the side, by which squares differ at least
_BATCH = 64
_measuring = threading.Lock()


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


def settled(
    model: RingNet, images: Sequence[np.ndarray], middles: np.ndarray, sides: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut squares anew around the landmarks that the network finds in them, until they stay where they are.

    Args:
        images: N of (H, W, 3) uint8 RGB. middles: (N, 2), sides: (N,): where to start in each, pixels.

    Returns:
        Which of the N came to rest, (M,), and the middles (M, 2) and sides (M,) of their squares. The others left their
        image, or did not come to rest.
    """
    middles, sides = np.array(middles, np.float64), np.array(sides, np.float64)  # changed below
    extents = np.array([image.shape[1::-1] for image in images], np.float64)
    moved, inside = np.full(len(sides), np.inf), np.ones(len(sides), bool)
    for _ in range(_ROUNDS):
        active = np.flatnonzero(inside & (moved >= _SETTLED / 4))
        if not len(active):
            break
        squares = [_cut(model, images[int(i)], middles[i], sides[i]) for i in active]
        points = landmarks_of(model, squares)
        found = np.stack([square.to_original(each) for square, each in zip(squares, points, strict=True)])
        middle, side = landmark_square(found)
        moved[active] = np.maximum(
            np.abs(middle - middles[active]).max(1) / sides[active], abs(np.log(side / sides[active]))
        )
        middles[active], sides[active] = middle, side
        inside = ((middles > 0) & (middles < extents)).all(1) & (sides >= _SMALLEST) & (sides <= 3 * extents.max(1))
    rest = np.flatnonzero(inside & (moved < _SETTLED))
    return rest, middles[rest], sides[rest]


def following(model: RingNet, images: Sequence[np.ndarray], middles: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """How far the landmarks follow each square instead of what is in it, (N,): 0 not at all, 1 entirely.

    The network is asked about the square moved by 5 % of its side to four sides, scaled by 12 % up and down, and turned
    by 10 degrees to both. Each time, the distance (a root mean square) by which the landmarks move on the image is
    taken in terms of that by which they would move if they stood still in the square. The answer is the root mean
    square of the eight.

    Args: see :func:`settled`.
    """
    squares = []
    for image, middle, side in zip(images, middles, sides, strict=True):
        squares.append(_cut(model, image, middle, side))
        for x, y, zoom, turn in _OTHERS:
            other = _cut(model, image, middle + side * np.array([x, y]), side * zoom)
            squares.append(other._replace(image=_turned(other.image, turn)) if turn else other)
    points = landmarks_of(model, squares)

    def one(first: int) -> float:
        own = squares[first].to_original(points[first])

        def moved(square: Square, seen: np.ndarray, turn: float) -> float:
            return np.square(square.to_original(_turned_back(seen, turn, len(square.image))) - own).sum()

        return math.sqrt(np.mean([
            moved(squares[first + i], points[first + i], turn) / moved(squares[first + i], points[first], turn)
            for i, (*_, turn) in enumerate(_OTHERS, start=1)
        ]))  # fmt: skip

    return np.array([one(first) for first in range(0, len(squares), 1 + len(_OTHERS))])


def _turned(image: np.ndarray, degrees: float) -> np.ndarray:
    """A square turned counterclockwise about its middle."""
    size = len(image)
    matrix = cv2.getRotationMatrix2D(((size - 1) / 2, (size - 1) / 2), degrees, 1.0)
    return cv2.warpAffine(image, matrix, (size, size), borderMode=cv2.BORDER_REPLICATE)


def _turned_back(points: np.ndarray, degrees: float, size: int) -> np.ndarray:
    """Pixels of what :func:`_turned` made of a square -> pixels of the square."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return (points - size / 2) @ np.array([[cos, sin], [-sin, cos]]) + size / 2


def find_face(model: RingNet, image: np.ndarray, box: tuple[float, float, float, float] | None = None) -> Square:
    """The square of the face in an image, found by the network itself.

    Args:
        image: (H, W, 3) uint8 RGB.
        box: left, top, right, bottom in pixels, about where the face is; None to look for it in the whole image.

    Raises:
        NotAFaceError: nothing there is a face as the network knows them.
        ValueError: it is no such image, or the box is none or lies outside of it.
    """
    longest = _DETAIL * model.encoder.input_size
    if box is not None:  # it may be small in a large image
        if not (box[0] < box[2] and box[1] < box[3]):
            raise ValueError(f"box: expected left < right and top < bottom, got {tuple(box)}")
        height, width = image.shape[:2]
        if not (box[0] < width and box[1] < height and box[2] > 0 and box[3] > 0):
            raise ValueError(f"box: expected part of the image of {width} x {height} pixels, got {tuple(box)}")
        part = max(box[2] - box[0], box[3] - box[1]) / max(image.shape[:2])
        longest = max(longest, math.ceil(2 * model.encoder.input_size / part))
    small, scale = shrunk(image, longest)
    limit, least = limit_of(model), math.inf
    for starts in _starts(small, None if box is None else scale * np.array(box)):
        _, middles, sides = settled(model, [small] * len(starts[1]), *starts)
        middles, sides = _distinct(middles, sides)
        values = following(model, [small] * len(sides), middles, sides)
        least = min([least, *values])
        if least <= limit:
            best = int(values.argmin())
            return cut_square(image, middles[best] / scale, float(sides[best] / scale))
    if least == math.inf:
        raise NotAFaceError("not a face as the network knows them: wherever it looks, its own landmarks lie elsewhere")
    raise NotAFaceError(
        f"not a face as the network knows them: when the crop is moved, the landmarks follow it by {least:.0%}, and by "
        f"at most {limit:.0%} on faces"
    )


def calibrated(model: RingNet, faces: FaceSet, count: int = 400) -> float:
    """The limit of :func:`following` for a network: what fewer than one in a hundred faces that it knows are beyond.

    Measured on faces of a set that it was not trained on, half of them cut as in training and half more loosely, each
    picture on its own: the mean of the logarithms and 3.5 standard deviations.
    """
    indices = np.unique(np.linspace(0, len(faces) - 1, count).astype(int))
    tight, loose = indices[::2], indices[1::2]
    pictures, _, _ = crop(faces, tight[:, None], INPUT_SIZE, np.random.default_rng(0))
    images = [
        np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))
        for image in [*pictures.permute(0, 2, 3, 1).numpy(), *(_loose(faces, index) for index in loose)]
    ]
    whole = [next(_starts(image, None)) for image in images]
    rest, middles, sides = settled(model, images, *(np.concatenate(parts) for parts in zip(*whole, strict=True)))
    values = following(model, [images[i] for i in rest], middles, sides)
    if len(values) < 2:
        return _UNSURE
    logarithms = np.log(values)
    return min(float(np.exp(logarithms.mean() + _DEVIATIONS * logarithms.std())), _UNSURE)


def _loose(faces: FaceSet, index: int) -> np.ndarray:
    """One of the set's faces in a square that is larger than the one of training."""
    image = np.asarray(faces.images[index])
    image = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image
    middle, side = landmark_square((faces.landmarks[index] + 1) * (len(image) / 2), faces.confidence[index])
    return cut_square(image, middle, _LOOSER * float(side)).image


def limit_of(model: RingNet) -> float:
    """The network's limit. That of a network without one is measured on rendered faces of its head, once."""
    with _measuring:
        if model.limit is None:
            from ..data.synthetic import SyntheticFaces

            faces = SyntheticFaces(split="validation", identities=64, images_per_identity=6)
            model.limit = calibrated(model, faces.load(model.head))
        return model.limit


def _distinct(middles: np.ndarray, sides: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One of each squares that are all but the same."""
    kept: list[int] = []
    for i, (middle, side) in enumerate(zip(middles, sides, strict=True)):
        far = np.abs(middles[kept] - middle).max(1) > _SAME * side
        if (far | (np.abs(np.log(sides[kept] / side)) > _SAME)).all():
            kept.append(i)
    return middles[kept], sides[kept]


def _starts(image: np.ndarray, box: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Middles and sides of the squares to start from, in the order to try them: around the box, or in the whole image
    and then in smaller and smaller parts all over it."""
    if box is not None:
        middle, side = landmark_square(np.array(box, np.float64).reshape(2, 2))
        yield np.stack([middle] * 3), side * np.array([0.85, 1.0, 1.2])
        return
    extent = np.array(image.shape[1::-1], np.float64)
    yield extent[None] / 2, extent.max(keepdims=True)
    for part in _PARTS:
        side = part * extent.max()
        if side < _SMALLEST:
            return
        rooms = np.maximum(0, extent - side)
        across, down = (
            np.linspace((length - room) / 2, (length + room) / 2, 1 + math.ceil(room / (_STRIDE * side)))
            for length, room in zip(extent, rooms, strict=True)
        )
        middles = np.stack(np.meshgrid(across, down), axis=-1).reshape(-1, 2)
        yield middles, np.full(len(middles), side)
