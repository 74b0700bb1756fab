"""How far a reconstructed face can be trusted, as far as the pictures themselves tell.

None of this sees a likeness: a network that was trained on rendered faces can be sure of a head that is coarse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
import torch

if TYPE_CHECKING:
    from ..detection.squares import Square
    from ..fitting import Fit
    from ..flame import FLAME
    from ..network.ringnet import RingNet

#: The second crop lies within the first: moved by these parts of its side, and this part of it.
_SHIFT, _PART = np.array([0.04, -0.03]), 1 / 1.12


class Trust(NamedTuple):
    """What speaks for a face, each from 0 to 1; None where it is not known.

    agreement: how far the network's landmarks stay with the face when the crop is moved and scaled, instead of moving
    with it. inside: the part of the landmarks that lie in the image. certainty: of a head that was fitted to landmarks,
    the part of what was unknown of its surface that they have told: 1 less the variance of its vertices, in terms of
    that before anything is seen.
    """

    agreement: float | None = None
    inside: float | None = None
    certainty: float | None = None

    @property
    def score(self) -> float | None:
        """The product of what is known."""
        known = [value for value in self if value is not None]
        return math.prod(known) if known else None


def second_crops(squares: Sequence[Square]) -> list[np.ndarray]:
    """The other pictures that the network is asked about, one of each square, of its size."""
    return [
        cv2.warpAffine(
            square.image, _matrix(len(square.image)), square.image.shape[1::-1],
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE,
        )
        for square in squares
    ]  # fmt: skip


def _matrix(size: int) -> np.ndarray:
    """Pixels of the second crop -> pixels of the first, centres at whole numbers."""
    start = size * (0.5 * (1 - _PART) + _SHIFT) + (_PART - 1) / 2
    return np.array([[_PART, 0, start[0]], [0, _PART, start[1]]])


def agreements(first: np.ndarray, second: np.ndarray, size: int) -> np.ndarray:
    """Agreement (N,) of the network's landmarks in squares (N, 68, 2) and in their second crops (N, 68, 2); pixels of
    each, which have `size` a side."""
    matrix = _matrix(size)
    back = (second - 0.5) * _PART + matrix[:, 2] + 0.5
    standing = (first - 0.5) * _PART + matrix[:, 2] + 0.5  # where they come to lie if they stay where they are in it
    moved = np.square(back - first).sum((1, 2)) / np.maximum(np.square(standing - first).sum((1, 2)), 1e-12)
    return np.clip(1 - np.sqrt(moved), 0, 1)


def inside(landmarks: np.ndarray, size: tuple[int, int]) -> float:
    """The part of landmarks (68, 2) that lie in an image of that width and height."""
    return np.count_nonzero(((landmarks >= 0) & (landmarks <= size)).all(1)) / len(landmarks)


@torch.no_grad()
def certainties(found: Fit, flame: FLAME) -> list[float]:
    """Of every person of a fit, see :class:`Trust`."""
    directions = flame.shapedirs[..., : flame.shape_params]
    before = directions.square().sum((1, 2)).mean()  # shapes have a standard deviation of 1 in every direction
    after = found.vertex_std().to(before).square().mean(1)
    return (1 - after / before).clamp(0, 1).tolist()


def described(model: RingNet) -> str:
    """What the network was trained on, and what that means for its results, in one line."""
    if model.trained_on is None:
        return "note: the checkpoint doesn't say what its network was trained on"
    if model.trained_on == "photographs":
        return "note: the network was trained on photographs"
    return (
        f"note: the network was trained on {model.trained_on}, not on photographs: expect coarse proportions, no "
        "likeness. For a likeness fit heads to landmarks (ringnet fit), or train on photographs (ringnet prepare)"
    )
