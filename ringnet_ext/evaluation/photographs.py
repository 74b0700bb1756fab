"""How good a model is on held-out photographs, whose true shapes nobody knows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from ..data.face_set import FaceSet
from ..detection.pose import estimate_yaw
from ..flame.landmarks import OUTER_EYE_CORNERS
from ..flame.parameters import HeadParams
from ..geometry.camera import yaw_of
from ..network.ringnet import RingNet
from .synthetic import _shape_distances, predict


@dataclass(frozen=True)
class PhotographReport:
    """How good a model is on held-out photographs, of which landmarks and identities are known and the shape isn't."""

    people: int
    images: int
    nme: float | None  # landmark error over the distance of the outer eye corners, of the images that show both
    yaw_correlation: float | None  # with the yaw that the mean head's landmarks have in the image
    yaw_degrees: float | None  # mean difference to it
    intra_mm: float | None  # RMS vertex distance between the shapes of two images of one person; None if none has two
    inter_mm: float | None  # the same for two people

    @property
    def intra_inter(self) -> float | None:
        return None if self.intra_mm is None or self.inter_mm is None else self.intra_mm / self.inter_mm

    def lines(self) -> list[str]:
        """The table as text."""

        def row(name, value, digits):
            return f"  {name:<40}" + ("not known" if value is None else f"{value:8.{digits}f}")

        return [
            f"held out: {self.people} people, {self.images} photographs",
            row("landmark NME (by outer eye distance)", self.nme, 4),
            row("yaw, correlation with the landmarks'", self.yaw_correlation, 4),
            row("yaw, difference to the landmarks', deg.", self.yaw_degrees, 1),
            row("shape distance within a person, mm", self.intra_mm, 2),
            row("shape distance between people, mm", self.inter_mm, 2),
            row("within / between", self.intra_inter, 3),
        ]


def evaluate_photographs(model: RingNet, faces: FaceSet, *, people: int = 240, images: int = 6) -> PhotographReport:
    """The table of a model on photographs, of at most so many people and images of each, taken evenly from all."""
    known = np.unique(faces.identity[faces.identity >= 0])
    by_person = []
    for person in known[np.linspace(0, len(known) - 1, min(people, len(known))).round().astype(int)]:
        own = np.flatnonzero(faces.identity == person)
        by_person.append(own[np.linspace(0, len(own) - 1, min(images, len(own))).round().astype(int)])
    chosen = np.concatenate(by_person)
    params, target, confidence = predict(model, faces, chosen)
    with torch.no_grad():
        on_device = HeadParams(*(value.to(model.flame.v_template.device) for value in params))
        points = model.landmarks(on_device).cpu()
    both = (confidence[:, OUTER_EYE_CORNERS] > 0).all(1)
    eyes = (target[:, OUTER_EYE_CORNERS[0]] - target[:, OUTER_EYE_CORNERS[1]]).norm(dim=-1)
    weight = (confidence > 0).float()
    errors = ((points - target).norm(dim=-1).nan_to_num() * weight).sum(1) / weight.sum(1).clamp_min(1) / eyes
    yaw, seen = yaw_of(params.global_pose).numpy(), estimate_yaw(target.numpy(), confidence.numpy())
    clear = ~np.isnan(seen)
    intra, inter = _shape_distances(model, params.shape, faces.identity[chosen])
    return PhotographReport(
        people=min(people, len(known)),
        images=len(chosen),
        nme=_finite(errors[both].mean()),
        yaw_correlation=_finite(np.corrcoef(yaw[clear], seen[clear])[0, 1]) if clear.sum() > 1 else None,
        yaw_degrees=_finite(np.degrees(np.abs(yaw[clear] - seen[clear]).mean())) if clear.any() else None,
        intra_mm=_finite(intra),
        inter_mm=_finite(inter),
    )


def _finite(value) -> float | None:
    return float(value) if math.isfinite(value) else None
