"""Landmarks as a least-squares problem: what was observed, which parameters are fitted, and how both make residuals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..flame import FLAME
from ..ops import flame_landmarks, flame_landmarks_jacobian
from .cameras import Camera
from .levenberg_marquardt import Linearization

#: Parameters in the order of their columns, and the width of those that have a fixed one.
POSES = {"global_pose": 3, "neck_pose": 3, "jaw_pose": 3, "eye_pose": 6}
_POSE_COLUMNS = {
    "global_pose": slice(0, 3),
    "neck_pose": slice(3, 6),
    "jaw_pose": slice(6, 9),
    "eye_pose": slice(9, 15),
}
_FRAMES_AT_ONCE = 2048  # whose landmarks are held together


def observations(
    flame: FLAME,
    landmarks: Tensor,
    confidence: Tensor | None,
    views: Tensor | None,
    points: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Checked: target (N, n, d) and weight (N, n), 0 where a landmark isn't known, all views' in one row; and an
    image's own shape."""
    if not isinstance(landmarks, Tensor):
        raise TypeError(f"landmarks: expected a tensor, got {type(landmarks).__name__}")
    if points is None:
        flame._require_landmarks()
        count = len(flame.lmk_faces_idx) + (0 if flame.contour_faces_idx is None else flame.contour_faces_idx.shape[1])
    else:
        count = len(points[0])
        if tuple(points[1].shape) != (count, 3):
            raise ValueError(f"points: expected barycentric coordinates ({count}, 3), got {tuple(points[1].shape)}")
    wanted = (count,) if views is None else (len(views), count)
    dimensions = (2, 3) if views is None else (2,)
    if landmarks.shape[1:-1] != wanted or landmarks.shape[-1] not in dimensions:
        sizes = ", ".join(map(str, wanted))
        raise ValueError(
            f"landmarks: expected shape (N, {sizes}, {' or '.join(map(str, dimensions))}), got {tuple(landmarks.shape)}"
        )
    target = landmarks.to(flame.v_template)
    known = target.isfinite().all(-1)
    if confidence is None:
        weight = known.to(target.dtype)
    else:
        if confidence.shape != landmarks.shape[:-1]:
            raise ValueError(f"confidence: expected shape {tuple(landmarks.shape[:-1])}, got {tuple(confidence.shape)}")
        weight = confidence.to(target)
        if not ((weight >= 0) & weight.isfinite() | ~known).all():
            raise ValueError("confidence: expected finite numbers that are not negative")
        weight = torch.where(known, weight, 0)
    if views is not None:
        target, weight = target.flatten(1, 2), weight.flatten(1)
    return target, weight, tuple(landmarks.shape[1:])


class Robust(NamedTuple):
    """A function of the squared length s of a landmark's residual in units of its sigma: value and derivative."""

    name: str
    width: float

    def __call__(self, s: Tensor) -> tuple[Tensor, Tensor]:
        square = self.width**2
        if self.name == "huber":
            root = s.clamp_min(square).sqrt()
            return torch.where(s <= square, s, 2 * self.width * root - square), torch.where(
                s <= square, 1.0, self.width / root
            )
        return s / (1 + s / square), (1 + s / square).square().reciprocal()  # Geman-McClure


class Columns:
    """Where a frame's parameters are in its row of values, and which of them are fitted: those of the frame, those its
    problem shares, and last among these those that all problems have in common.

    Args:
        widths: name -> width, in order.
        local, own, common: names.
    """

    def __init__(self, widths: dict[str, int], local: Sequence[str], own: Sequence[str], common: Sequence[str] = ()):
        ends = list(itertools.accumulate(widths.values()))
        self.width = ends[-1]
        self.slices = {name: slice(end - width, end) for (name, width), end in zip(widths.items(), ends, strict=True)}
        self.local, own, self.common = ([name for name in widths if name in names] for names in (local, own, common))
        self.shared = [*own, *self.common]

    def __getitem__(self, name: str) -> slice:
        return self.slices[name]

    def take(self, values: Tensor, names: Sequence[str]) -> Tensor:
        """The columns of some parameters, side by side."""
        return torch.cat([values[..., self.slices[name]] for name in names], dim=-1) if names else values[..., :0]

    def count(self, names: Sequence[str]) -> int:
        """How many numbers some parameters are."""
        return sum(self.slices[name].stop - self.slices[name].start for name in names)

    def put(self, values: Tensor, names: Sequence[str], columns: Tensor) -> None:
        """The other way: overwrites them in values."""
        for name, part in zip(names, columns.split([self.count([name]) for name in names], dim=-1), strict=True):
            values[:, self.slices[name]] = part


class LandmarkResiduals:
    """Residuals of landmarks, for :func:`minimise`.

    Args:
        flame: the layer. camera: one of the cameras above.
        columns: the parameters: the camera's names, those of POSES, expression, shape.
        values: (N, Q); those parameters that are not fitted keep theirs.
        target: (N, n, 2 or 3). root_weight: (N, n), root of confidence over sigma, 0 for landmarks that are not known.
        points: triangles (n,) and barycentric coordinates (n, 3), instead of the model's landmarks.
    """

    def __init__(
        self,
        flame: FLAME,
        camera: Camera,
        columns: Columns,
        values: Tensor,
        target: Tensor,
        root_weight: Tensor,
        robust: Robust | None = None,
        points: tuple[Tensor, Tensor] | None = None,
    ):
        self.flame, self.camera, self.columns, self.values = flame, camera, columns, values
        self.target, self.root_weight, self.robust = target, root_weight, robust
        if points is None:
            self._embedding = flame._embedding()
        else:
            self._embedding = flame.faces, points[0].to(flame.faces), points[1].to(flame.v_template).contiguous()

    def row(self, local: Tensor, shared: Tensor, frames: Tensor) -> Tensor:
        """All parameters (n, Q) of some frames."""
        values = self.values[frames]
        self.columns.put(values, self.columns.local, local)
        self.columns.put(values, self.columns.shared, shared)
        return values

    def seen(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """What the camera sees of rows of parameters (N, n, d), and how far it is from the target (N, n), NaN where
        that isn't known."""
        parts = [self._seen(rows) for rows in values.split(_FRAMES_AT_ONCE)]
        seen = torch.cat(parts) if parts else torch.empty_like(self.target)
        return seen, torch.where(self.root_weight > 0, (seen - self.target).norm(dim=-1), torch.nan)

    def squares(self, values: Tensor) -> Tensor:
        """(N,): summed squares of the images' residuals, less of those that the robust function doesn't believe."""
        frames = torch.arange(len(values), device=values.device)
        parts = [
            self._weighted(some, self._seen(values[some]))[1].square().sum((1, 2))
            for some in frames.split(_FRAMES_AT_ONCE)
        ]
        return torch.cat(parts) if parts else values.new_zeros(0)

    def _seen(self, values: Tensor) -> Tensor:
        return self.camera.project(self.landmarks(values), self.columns.take(values, self.camera.names))[0]

    def _arguments(self, values: Tensor) -> tuple[Any, ...]:
        pose, betas = self.columns.take(values, list(POSES)), self.columns.take(values, ["shape", "expression"])
        betas = torch.nn.functional.pad(betas, (0, self.flame.eyelid_params))
        return betas, pose, *self.flame._body(), *self._embedding

    def landmarks(self, values: Tensor) -> Tensor:
        """(n, N, 3) landmarks of rows of parameters."""
        return flame_landmarks(*self._arguments(values))

    def _weighted(self, frames: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cost (n,), residuals (n, N, d) and their weights (n, N), the robust function's part in them."""
        weight = self.root_weight[frames]
        residuals = torch.where(weight[..., None] > 0, (seen - self.target[frames]) * weight[..., None], 0.0)
        square = residuals.square().sum(-1)
        if self.robust is None:
            return square.sum(-1) / 2, residuals, weight
        rho, slope = self.robust(square)
        root = slope.sqrt()
        return rho.sum(-1) / 2, residuals * root[..., None], weight * root

    def cost(self, frames: Tensor, local: Tensor, shared: Tensor) -> Tensor:
        return self._weighted(frames, self._seen(self.row(local, shared, frames)))[0]

    def __call__(self, frames: Tensor, local: Tensor, shared: Tensor) -> Linearization:
        columns, values = self.columns, self.row(local, shared, frames)
        points, d_betas, d_pose = flame_landmarks_jacobian(*self._arguments(values))
        camera = columns.take(values, self.camera.names)
        seen, d_camera = self.camera.project(points, camera)
        cost, residuals, weight = self._weighted(frames, seen)

        def derivatives(names):
            parts = []
            for name in names:
                if name in self.camera.names:
                    i = self.camera.names.index(name)
                    parts.append(d_camera[..., i : i + 1])
                    continue
                if name in POSES:
                    part = d_pose[..., _POSE_COLUMNS[name]]
                else:
                    S, E = self.flame.shape_params, self.flame.expression_params
                    part = d_betas[..., :S] if name == "shape" else d_betas[..., S : S + E]
                parts.append(self.camera.chain(points, camera, part))
            if not parts:
                return d_camera.new_zeros((len(frames), math.prod(residuals.shape[1:]), 0))
            return torch.cat(parts, dim=-1).mul_(weight[..., None, None]).flatten(1, 2)

        return Linearization(cost, residuals.flatten(1), derivatives(columns.local), derivatives(columns.shared))
