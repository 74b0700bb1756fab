"""How good a trained model is on synthetic faces, whose truth is known, and what bounds it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .camera import project, yaw_of
from .data.augment import crop
from .data.faces import FaceSet
from .images import to_input
from .model import HeadParams, RingNet

_OUTER_EYE_CORNERS = (36, 45)


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
    map_fit: ShapeErrors  # a MAP fit of the model to the exact 2D landmarks of the one image
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
            row("MAP fit to the exact 2D landmarks", self.map_fit),
            "correlation of predicted and true coefficient, shape directions 1 to 10",
            "  " + " ".join(f"{value:5.2f}" for value in self.coefficient_correlation),
        ]


def similarity_align(source: Tensor, target: Tensor) -> Tensor:
    """Least-squares similarity alignment (Umeyama 1991) of (B, N, 3) points to corresponding (B, N, 3) points."""
    source_mean, target_mean = source.mean(1, keepdim=True), target.mean(1, keepdim=True)
    a, b = source - source_mean, target - target_mean
    u, singular, vt = torch.linalg.svd(b.transpose(1, 2) @ a)
    sign = torch.ones_like(singular)
    sign[:, -1] = torch.linalg.det(u @ vt).sign()
    rotation = (u * sign[:, None]) @ vt
    scale = (singular * sign).sum(1) / a.square().sum((1, 2)).clamp_min(1e-30)
    return scale[:, None, None] * (a @ rotation.transpose(1, 2)) + target_mean


@torch.no_grad()
def predict(model: RingNet, faces: FaceSet, batch: int = 250) -> tuple[HeadParams, Tensor]:
    """Parameters of all faces, cropped to their landmarks without jitter, and the crops' true landmarks (N, 68, 2)."""
    model.eval()
    device = model.flame.v_template.device
    params, landmarks = [], []
    for start in range(0, len(faces), batch):
        rows = np.arange(start, min(start + batch, len(faces)))[:, None]
        images, target, _ = crop(faces, rows, model.encoder.input_size)
        params.append(HeadParams(*(value.cpu() for value in model(to_input(images.to(device))))))
        landmarks.append(target)
    return HeadParams(*(torch.cat(parts) for parts in zip(*params, strict=True))), torch.cat(landmarks)


def evaluate(model: RingNet, faces: FaceSet) -> Report:
    """The table of a model on faces with known truth: at least two people with two images each."""
    if faces.truth is None:
        raise ValueError("faces: this table needs faces whose true shape is known")
    device = model.flame.v_template.device
    params, target = predict(model, faces)
    on_device = HeadParams(*(value.to(device) for value in params))
    with torch.no_grad():
        points = model.landmarks(on_device).cpu()
    eyes = (target[:, _OUTER_EYE_CORNERS[0]] - target[:, _OUTER_EYE_CORNERS[1]]).norm(dim=-1)
    true_yaw = yaw_of(torch.from_numpy(faces.truth["global_pose"]))

    _, first = np.unique(faces.identity, return_index=True)  # the one image of each person
    true_shape = torch.from_numpy(faces.truth["shape"][first])
    shape = params.shape[first]
    two = true_shape.clone()
    two[:, 2:] = 0
    fitted = fit_landmarks(model, target[first].to(device), HeadParams(*(value[first] for value in on_device)))
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
        map_fit=shape_errors(model, fitted.shape.cpu(), true_shape),
        coefficient_correlation=tuple(correlations),
    )


@torch.no_grad()
def shape_errors(model: RingNet, shape: Tensor, true_shape: Tensor, batch: int = 64) -> ShapeErrors:
    """Errors of (N, S) coefficients in the neutral pose, aligned on the part that is measured."""
    device = model.flame.v_template.device
    face = torch.tensor(model.head.regions.get("face", np.arange(len(model.head.v_template))))
    sums = np.zeros(2)
    for start in range(0, len(shape), batch):
        rows = slice(start, start + batch)
        found, truth = (model.neutral(value[rows].to(device)).double() for value in (shape, true_shape))
        for index, part in enumerate((face, slice(None))):
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


def fit_landmarks(
    model: RingNet, target: Tensor, start: HeadParams, *, steps: int = 400, sigma: float = 0.003
) -> HeadParams:
    """MAP fit of the head model to exact 2D landmarks: what landmarks alone say of the shape.

    Minimises ``|residual|^2 / (2 sigma^2) + |shape|^2 / 2 + |expression / 0.5|^2 / 2`` by Adam, all images at once.

    Args:
        target: (B, 68, 2) normalised coordinates.
        start: parameters to begin from.
        sigma: of the landmarks, in normalised coordinates.
    """
    units = HeadParams(
        camera=start.camera.new_tensor([float(start.camera[:, 0].mean()), 0.1, 0.1]),
        global_pose=start.camera.new_tensor(1.0),
        jaw_pose=start.camera.new_tensor(0.3),
        shape=start.camera.new_tensor(1.0),
        expression=start.camera.new_tensor(0.5),
    )
    moves = [torch.zeros_like(value, requires_grad=True) for value in start]
    optimizer = torch.optim.Adam(moves, lr=0.05, betas=(0.9, 0.95))

    def params() -> HeadParams:
        return HeadParams(*(value + unit * move for value, unit, move in zip(start, units, moves, strict=True)))

    for step in tqdm(range(steps), desc="fitting landmarks", unit="step", disable=None, leave=False):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / steps)
        current = params()
        points = model.flame.landmarks(
            current.shape, current.expression, current.global_pose, jaw_pose=current.jaw_pose
        )
        residual = (project(points, current.camera) - target).square().sum()
        prior = current.shape.square().sum() + (current.expression / 0.5).square().sum()
        optimizer.zero_grad()
        (residual / (2 * sigma**2) + prior / 2).backward()
        optimizer.step()
    return HeadParams(*(value.detach() for value in params()))
