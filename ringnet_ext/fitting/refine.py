"""A network's answer, refined on landmarks."""

from __future__ import annotations

from torch import Tensor

from ..flame import FLAME
from ..flame.parameters import HeadParams
from .fit import fit
from .result import Fit


def refine(
    flame: FLAME, answer: HeadParams, landmarks: Tensor, *, same_person: bool = False, sigma: float | None = None
) -> Fit:
    """The most probable heads given landmarks, found from what a network says of them.

    Args:
        answer: of N images.
        landmarks: (N, 68, 2), normalised image coordinates as the network's; NaN where one isn't known.
        same_person: whether all images are of one person, and get one shape.
        sigma: standard deviation of the landmarks, in the landmarks' units; None: estimated.

    Raises:
        ValueError: where too few landmarks of a person are known.
    """
    person = [0] * len(landmarks) if same_person else None
    found = fit(flame, landmarks, person=person, start=answer, sigma=sigma)
    if found.failed:
        raise ValueError(f"landmarks: {next(iter(found.failed.values()))}")
    return found
