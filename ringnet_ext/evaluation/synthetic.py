"""How good a trained model is on synthetic faces, whose truth is known, and what bounds it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.augment import crop
from ..data.face_set import FaceSet
from ..fitting import Priors, fit
from ..flame.landmarks import OUTER_EYE_CORNERS
from ..flame.parameters import HeadParams
from ..geometry.alignment import similarity_align
from ..geometry.camera import yaw_of
from ..network.encoder import to_input
from ..network.ringnet import RingNet
from ..progress import progress

#: Standard deviation of landmarks in half images: of exact ones, where the crops' pixels end, and of a network's.
_EXACT, _PREDICTED = 0.003, 0.02
#: Of the faces that are rendered; nothing is said of the jaw.
_PRIORS = Priors(shape=1.0, expression=0.5, jaw_pose=None)


@dataclass(frozen=True)
class ShapeErrors:
    """Mean distance of corresponding vertices after similarity alignment, mm, over one image of each person."""

    face: float
    head: float


@dataclass(frozen=True)
class Report:
    """The held-out table of a model. Shape errors are of one image a person; ratios are to the mean shape's error."""

    identities: int
    images: int
    nme: float  # landmark error over the distance of the outer eye corners
    yaw_correlation: float
    intra_mm: float  # RMS vertex distance between the shapes of two images of one person
    inter_mm: float  # the same for two people
    network: ShapeErrors
    mean_shape: ShapeErrors
    two_directions: ShapeErrors  # the true coefficients of the first two shape directions, all others 0
    refined: ShapeErrors  # the network's landmarks of the one image, fitted
    map_fit: ShapeErrors  # the exact 2D landmarks of the one image, fitted: what landmarks can say of the shape
    map_fit_together: ShapeErrors  # those of all images of a person, with one shape
    coefficient_correlation: tuple[float, ...]  # predicted and true, first ten shape directions

    @property
    def intra_inter(self) -> float:
        return self.intra_mm / self.inter_mm

    def lines(self) -> list[str]:
        """The table as text."""

        def row(name, errors):
            face, head = errors.face / self.mean_shape.face, errors.head / self.mean_shape.head
            return f"  {name:<38}{errors.face:8.2f}{face:8.3f}   {errors.head:8.2f}{head:8.3f}"

        return [
            f"held out: {self.identities} people, {self.images} images",
            f"  landmark NME (by outer eye distance)  {self.nme:8.4f}",
            f"  yaw, correlation with the truth       {self.yaw_correlation:8.4f}",
            f"  shape distance within a person, mm    {self.intra_mm:8.2f}",
            f"  shape distance between people, mm     {self.inter_mm:8.2f}",
            f"  within / between                      {self.intra_inter:8.3f}",
            "shape from one image, mm after similarity alignment, and relative to the mean shape",
            f"  {'':<38}{'face':>8}{'rel.':>8}   {'head':>8}{'rel.':>8}",
            row("mean shape", self.mean_shape),
            row("this model", self.network),
            row("true first two directions", self.two_directions),
            row("this model, fitted to its landmarks", self.refined),
            row("fit to the exact 2D landmarks", self.map_fit),
            row("  of all images of a person together", self.map_fit_together),
            "correlation of predicted and true coefficient, shape directions 1 to 10",
            "  " + " ".join(f"{value:5.2f}" for value in self.coefficient_correlation),
        ]


@torch.no_grad()
def predict(
    model: RingNet, faces: FaceSet, images: np.ndarray | None = None, batch: int = 250
) -> tuple[HeadParams, Tensor, Tensor]:
    """Parameters of faces, cropped to their landmarks without jitter, and the crops' true landmarks with confidences.

    Args:
        images: (N,) which of them; None for all.

    Returns:
        HeadParams (N, ...) on the CPU, (N, 68, 2) normalised coordinates, (N, 68).
    """
    model.eval()
    device = model.flame.v_template.device
    images = np.arange(len(faces)) if images is None else images
    params, landmarks, confidences = [], [], []
    for rows in progress(
        np.split(images, range(batch, len(images), batch)), desc="evaluating", unit="batch", leave=False
    ):
        pixels, target, confidence = crop(faces, rows[:, None], model.encoder.input_size)
        params.append(HeadParams(*(value.cpu() for value in model(to_input(pixels.to(device))))))
        landmarks.append(target)
        confidences.append(confidence)
    together = HeadParams(*(torch.cat(parts) for parts in zip(*params, strict=True)))
    return together, torch.cat(landmarks), torch.cat(confidences)


def evaluate(model: RingNet, faces: FaceSet) -> Report:
    """The table of a model on faces with known truth: at least two people with two images each."""
    if faces.truth is None:
        raise ValueError("faces: this table needs faces whose true shape is known")
    device = model.flame.v_template.device
    params, target, _ = predict(model, faces)
    on_device = HeadParams(*(value.to(device) for value in params))
    with torch.no_grad():
        points = model.landmarks(on_device).cpu()
    eyes = (target[:, OUTER_EYE_CORNERS[0]] - target[:, OUTER_EYE_CORNERS[1]]).norm(dim=-1)
    true_yaw = yaw_of(torch.from_numpy(faces.truth["global_pose"]))

    _, first = np.unique(faces.identity, return_index=True)  # the one image of each person
    true_shape = torch.from_numpy(faces.truth["shape"][first])
    shape = params.shape[first]
    two = true_shape.clone()
    two[:, 2:] = 0
    seen = target.to(device)
    bound = fit(model.flame, seen[first], sigma=_EXACT, priors=_PRIORS)
    together = fit(model.flame, seen, person=torch.from_numpy(faces.identity), sigma=_EXACT, priors=_PRIORS)
    refined = fit(
        model.flame,
        points[first].to(device),
        sigma=_PREDICTED,
        priors=_PRIORS,
        start=HeadParams(*(value[first] for value in on_device)),
    )
    intra, inter = _shape_distances(model, params.shape, faces.identity)
    correlations = [float(np.corrcoef(shape[:, i], true_shape[:, i])[0, 1]) for i in range(min(10, shape.shape[1]))]
    return Report(
        identities=len(first),
        images=len(faces),
        nme=float(((points - target).norm(dim=-1).mean(1) / eyes).mean()),
        yaw_correlation=float(np.corrcoef(yaw_of(params.global_pose), true_yaw)[0, 1]),
        intra_mm=intra,
        inter_mm=inter,
        network=shape_errors(model, shape, true_shape),
        mean_shape=shape_errors(model, torch.zeros_like(shape), true_shape),
        two_directions=shape_errors(model, two, true_shape),
        refined=shape_errors(model, refined.shape.cpu(), true_shape),
        map_fit=shape_errors(model, bound.shape.cpu(), true_shape),
        map_fit_together=shape_errors(model, together.shape.cpu(), true_shape),
        coefficient_correlation=tuple(correlations),
    )


@torch.no_grad()
def shape_errors(model: RingNet, shape: Tensor, true_shape: Tensor, batch: int = 64) -> ShapeErrors:
    """Errors of (N, S) coefficients in the neutral pose, aligned on the part that is measured."""
    device = model.flame.v_template.device
    face = torch.tensor(model.head.regions.get("face", np.arange(len(model.head.v_template))))
    parts: tuple[Tensor | slice, ...] = face, slice(None)
    sums = np.zeros(len(parts))
    for start in range(0, len(shape), batch):
        rows = slice(start, start + batch)
        found, truth = (model.neutral(value[rows].to(device)).double() for value in (shape, true_shape))
        for index, part in enumerate(parts):
            aligned = similarity_align(found[:, part], truth[:, part])
            sums[index] += float((aligned - truth[:, part]).norm(dim=-1).mean(1).sum())
    return ShapeErrors(*(1000 * sums / len(shape)))


def _shape_distances(model: RingNet, shape: Tensor, identity: np.ndarray) -> tuple[float, float]:
    """Mean RMS vertex distance in mm between shapes of the same person, and of different people."""
    directions = model.flame.shapedirs[..., : shape.shape[1]].detach().cpu().double().flatten(0, 1)
    gram = directions.T @ directions / len(model.head.v_template)  # |mesh difference|^2 / V as a form in coefficients
    root = torch.linalg.cholesky(gram + 1e-12 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype))
    distances = 1000 * torch.cdist(shape.double() @ root, shape.double() @ root)
    same = torch.from_numpy(identity[:, None] == identity[None])
    different = ~same
    same = same & ~torch.eye(len(same), dtype=torch.bool)
    return float(distances[same].mean()), float(distances[different].mean())
