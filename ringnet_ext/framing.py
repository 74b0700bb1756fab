"""Where the face of a photograph is, by the network's own landmarks, and whether it is a face as the network knows them.

A network that has learnt on crops answers for any picture: a cat gets a head too. Two things tell. The square that the
network's landmarks ask for must be the one that it was shown (:func:`settled`). And on a face the landmarks stay with
the face when the square is moved, scaled or turned, while elsewhere they stay with the square (:func:`following`). How
far they do on faces is measured on held-out ones (:func:`calibrated`), and the limit is kept with the network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from .camera import to_pixels
from .data.augment import crop
from .images import INPUT_SIZE
from .squares import Square, cut_square, landmark_square

if TYPE_CHECKING:
    from .data.faces import FaceSet
    from .model import RingNet

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
_DEVIATIONS = 3.0  # of the logarithm among known faces: one in 700 of them is beyond
_UNSURE = 0.9  # a network whose landmarks follow the square like this knows no faces
_DETAIL = 10  # squares of the network's input size that fit along the image in which a face is looked for
_LOOSER = 1.25  # times as large as the square of training: the other half of the squares that are calibrated on
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
    middles, sides = np.array(middles, np.float64), np.array(sides, np.float64)  # changed below
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


def following(model: RingNet, image: np.ndarray, middle: np.ndarray, side: float) -> float:
    """How far the landmarks follow the square instead of the face: 0 not at all, 1 entirely.

    The network is asked about the square moved by 5 % of its side to four sides, scaled by 12 % up and down, and turned by
    10 degrees to both. Each time, the distance (a root mean square) by which the landmarks move on the image is taken in
    terms of that by which they would move if they stood still in the square. The answer is the root mean square of the eight.
    """
    square = _cut(model, image, middle, side)
    size = len(square.image)
    others = []
    for x, y, zoom, turn in _OTHERS:
        other = _cut(model, image, middle + side * np.array([x, y]), side * zoom)
        if turn:
            matrix = cv2.getRotationMatrix2D(((size - 1) / 2, (size - 1) / 2), turn, 1.0)
            turned = cv2.warpAffine(other.image, matrix, (size, size), borderMode=cv2.BORDER_REPLICATE)
            other = other._replace(image=turned)
        others.append(other)
    points = landmarks_of(model, [square, *others])
    own = square.to_original(points[0])

    def moved(square, seen, turn):
        return np.square(square.to_original(_turned_back(seen, turn, size)) - own).sum()

    parts = [
        moved(other, seen, turn) / moved(other, points[0], turn)
        for other, seen, (*_, turn) in zip(others, points[1:], _OTHERS, strict=True)
    ]
    return math.sqrt(np.mean(parts))


def _turned_back(points: np.ndarray, degrees: float, size: int) -> np.ndarray:
    """Pixels of a square that was turned counterclockwise about its middle -> pixels of the square before."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return (points - size / 2) @ np.array([[cos, sin], [-sin, cos]]) + size / 2


def find_face(model: RingNet, image: np.ndarray, box: tuple[float, float, float, float] | None = None) -> Square:
    """The square of the face in an image, found by the network itself.

    Args:
        image: (H, W, 3) uint8 RGB.
        box: left, top, right, bottom in pixels, about where the face is; None to look for it in the whole image.

    Raises:
        NotAFaceError: nothing there is a face as the network knows them.
    """
    small, shrunk = _shrunk(image, _DETAIL * model.encoder.input_size)
    limit, least = limit_of(model), math.inf
    for starts in _starts(small, None if box is None else shrunk * np.array(box)):
        squares = list(zip(*settled(model, small, *starts), strict=True))
        values = [following(model, small, *square) for square in squares]
        least = min([least, *values])
        if least <= limit:
            middle, side = squares[int(np.argmin(values))]
            return cut_square(image, middle / shrunk, side / shrunk)
    if least == math.inf:
        raise NotAFaceError("not a face as the network knows them: wherever it looks, its own landmarks lie elsewhere")
    raise NotAFaceError(
        f"not a face as the network knows them: when the crop is moved, the landmarks follow it by {least:.0%}, and by at "
        f"most {limit:.0%} on faces"
    )


def calibrated(model: RingNet, faces: FaceSet, count: int = 200) -> float:
    """The limit of :func:`following` for a network: what one in 700 faces that it knows is beyond.

    Measured on faces of a set that it was not trained on, half of them cut as in training and half more loosely, each
    picture on its own: the mean of the logarithms and three standard deviations.
    """
    indices = np.unique(np.linspace(0, len(faces) - 1, count).astype(int))
    tight, loose = indices[::2], indices[1::2]
    pictures, _, _ = crop(faces, tight[:, None], INPUT_SIZE, np.random.default_rng(0))
    values = []
    for image in [*pictures.permute(0, 2, 3, 1).numpy(), *(_loose(faces, index) for index in loose)]:
        image = np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))
        middles, sides = settled(model, image, *next(_starts(image, None)))
        values += [following(model, image, *square) for square in zip(middles, sides, strict=True)]
    if len(values) < 2:
        return _UNSURE
    logarithms = np.log(values)
    return min(float(np.exp(logarithms.mean() + _DEVIATIONS * logarithms.std())), _UNSURE)


def _loose(faces: FaceSet, index: int) -> np.ndarray:
    """One of the set's faces in a square that is larger than the one of training."""
    image = np.asarray(faces.images[index])
    image = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image
    middle, side = landmark_square((faces.landmarks[index] + 1) * (len(image) / 2), faces.confidence[index])
    return cut_square(image, middle, _LOOSER * side).image


def limit_of(model: RingNet) -> float:
    """The network's limit. That of a network without one is measured on rendered faces of its head, once."""
    if model.limit is None:
        from .data.synthetic import SyntheticFaces

        faces = SyntheticFaces(split="validation", identities=100, images_per_identity=2)
        model.limit = calibrated(model, faces.load(model.head))
    return model.limit


def _shrunk(image: np.ndarray, longest: int) -> tuple[np.ndarray, float]:
    """The image with its longer side brought down to ``longest`` pixels, and by how much."""
    height, width = image.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return image, 1.0
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA), scale


def _starts(image: np.ndarray, box: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Middles and sides of the squares to start from, in the order to try them: around the box, or in the whole image and
    then in smaller and smaller parts all over it."""
    if box is not None:
        middle, side = landmark_square(np.array(box, np.float64).reshape(2, 2))
        yield np.stack([middle] * 3), side * np.array([0.85, 1.0, 1.2])
        return
    extent = np.array(image.shape[1::-1], np.float64)
    yield extent[None] / 2, extent.max(keepdims=True)
    for part in _PARTS:
        side = part * extent.max()
        rooms = np.maximum(0, extent - side)
        across, down = (
            np.linspace((length - room) / 2, (length + room) / 2, 1 + math.ceil(room / (_STRIDE * side)))
            for length, room in zip(extent, rooms, strict=True)
        )
        middles = np.stack(np.meshgrid(across, down), axis=-1).reshape(-1, 2)
        yield middles, np.full(len(middles), side)
