"""Landmarks as a least-squares problem: which parameters are fitted, how they are seen, and what is known of them before."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..flame import FLAME
from ..ops._jacobian import flame_landmarks_jacobian
from .levenberg_marquardt import Linearization

#: Parameters in the order of their columns, and the width of those that have a fixed one.
POSES = {"global_pose": 3, "neck_pose": 3, "jaw_pose": 3, "eye_pose": 6}
_POSE_COLUMNS = {"global_pose": slice(0, 3), "neck_pose": slice(3, 6), "jaw_pose": slice(6, 9), "eye_pose": slice(9, 15)}


class WeakPerspective:
    """RingNet's camera: x = s (X_xy + t). Parameters (log s, tx, ty): a scale is positive."""

    names = ("log_scale", "tx", "ty")
    dimensions = 2

    def project(self, points: Tensor, camera: Tensor) -> tuple[Tensor, Tensor]:
        """(n, N, 3) points -> (n, N, 2), and the derivatives with respect to the camera (n, N, 2, 3)."""
        scale = camera[:, None, :1].exp()
        seen = scale * (points[..., :2] + camera[:, None, 1:])
        moved = scale[..., None] * torch.eye(2, dtype=points.dtype, device=points.device)
        return seen, torch.cat([seen[..., None], moved.expand(*seen.shape, 2)], dim=-1)

    def chain(self, points: Tensor, camera: Tensor, derivatives: Tensor) -> Tensor:
        """Derivatives of the points (n, N, 3, Q) -> of what is seen (n, N, 2, Q)."""
        return camera[:, :1, None, None].exp() * derivatives[..., :2, :]


class Perspective:
    """A pinhole camera at the origin, looking along +z, y down: x = f (X + T)_xy / (X + T)_z + c, normalised image coordinates.

    Parameters (Tx, Ty, Tz, log f). center (2,): the principal point.
    """

    names = ("tx", "ty", "tz", "log_focal")
    dimensions = 2

    def __init__(self, center: Tensor):
        self.center = center

    def _seen(self, points: Tensor, camera: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        moved = points + camera[:, None, :3]
        depth = moved[..., 2:]
        return moved, depth, camera[:, None, 3:].exp() / depth

    def project(self, points: Tensor, camera: Tensor) -> tuple[Tensor, Tensor]:
        moved, depth, scale = self._seen(points, camera)
        seen = scale * moved[..., :2]
        eye = torch.eye(2, dtype=points.dtype, device=points.device)
        across = scale[..., None] * eye
        along = -(seen / depth)[..., None]
        # Behind the camera there is no image: not a number, and the solver refuses the step.
        bad = torch.where(depth > 0, 0.0, torch.nan)
        return seen + self.center + bad, torch.cat([across, along, seen[..., None]], dim=-1)

    def chain(self, points: Tensor, camera: Tensor, derivatives: Tensor) -> Tensor:
        moved, depth, scale = self._seen(points, camera)
        slope = (moved[..., :2] / depth)[..., None]
        return scale[..., None] * (derivatives[..., :2, :] - slope * derivatives[..., 2:, :])


class Space:
    """No camera: landmarks in metres, moved by T."""

    names = ("tx", "ty", "tz")
    dimensions = 3

    def project(self, points: Tensor, camera: Tensor) -> tuple[Tensor, Tensor]:
        eye = torch.eye(3, dtype=points.dtype, device=points.device)
        return points + camera[:, None], eye.expand(*points.shape, 3)

    def chain(self, points: Tensor, camera: Tensor, derivatives: Tensor) -> Tensor:
        return derivatives


class Robust(NamedTuple):
    """A function of the squared length s of a landmark's residual in units of its sigma: value and derivative."""

    name: str
    width: float

    def __call__(self, s: Tensor) -> tuple[Tensor, Tensor]:
        square = self.width**2
        if self.name == "huber":
            root = s.clamp_min(square).sqrt()
            return torch.where(s <= square, s, 2 * self.width * root - square), torch.where(s <= square, 1.0, self.width / root)
        return s / (1 + s / square), (1 + s / square).square().reciprocal()  # Geman-McClure


class Columns:
    """Where a frame's parameters are in its row of values, and which of them are fitted: those of the frame, and those its problem shares.

    Args:
        widths: name -> width, in order.
        local, shared: names.
    """

    def __init__(self, widths: dict[str, int], local: Sequence[str], shared: Sequence[str]):
        ends = list(itertools.accumulate(widths.values()))
        self.slices = {name: slice(end - width, end) for (name, width), end in zip(widths.items(), ends)}
        self.local, self.shared = ([name for name in widths if name in names] for names in (local, shared))

    def __getitem__(self, name: str) -> slice:
        return self.slices[name]

    def take(self, values: Tensor, names: Sequence[str]) -> Tensor:
        """The columns of some parameters, side by side."""
        return torch.cat([values[..., self.slices[name]] for name in names], dim=-1) if names else values[..., :0]

    def put(self, values: Tensor, names: Sequence[str], columns: Tensor) -> None:
        """The other way: overwrites them in values."""
        for name, part in zip(names, columns.split([values[0, self.slices[name]].numel() for name in names], dim=-1)):
            values[:, self.slices[name]] = part


class LandmarkResiduals:
    """Residuals of landmarks, for :func:`minimise`.

    Args:
        flame: the layer. camera: one of the cameras above.
        columns: the parameters: the camera's names, those of POSES, expression, shape.
        values: (N, Q); those parameters that are not fitted keep theirs.
        target: (N, n, 2 or 3). root_weight: (N, n), root of confidence over sigma, 0 for landmarks that are not known.
    """

    def __init__(
        self, flame: FLAME, camera, columns: Columns, values: Tensor, target: Tensor, root_weight: Tensor, robust: Robust | None = None
    ):
        self.flame, self.camera, self.columns, self.values = flame, camera, columns, values
        self.target, self.root_weight, self.robust = target, root_weight, robust

    def landmarks(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(n, N, 3) landmarks of rows of parameters, and their derivatives with respect to shape and expression, and to the pose."""
        pose = self.columns.take(values, list(POSES))
        return flame_landmarks_jacobian(
            self.columns.take(values, ["shape", "expression"]), pose, *self.flame._body(), *self.flame._embedding()
        )

    def __call__(self, frames: Tensor, local: Tensor, shared: Tensor) -> Linearization:
        columns, values = self.columns, self.values[frames]
        columns.put(values, columns.local, local)
        columns.put(values, columns.shared, shared)
        points, d_betas, d_pose = self.landmarks(values)
        camera = columns.take(values, self.camera.names)
        seen, d_camera = self.camera.project(points, camera)
        weight = self.root_weight[frames]
        residuals = torch.where(weight[..., None] > 0, (seen - self.target[frames]) * weight[..., None], 0.0)
        square = residuals.square().sum(-1)
        if self.robust is None:
            cost = square.sum(-1) / 2
        else:
            rho, slope = self.robust(square)
            cost = rho.sum(-1) / 2
            residuals, weight = residuals * slope.sqrt()[..., None], weight * slope.sqrt()

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
                    S = self.flame.shape_params
                    part = d_betas[..., :S] if name == "shape" else d_betas[..., S:]
                parts.append(self.camera.chain(points, camera, part))
            if not parts:
                return d_camera.new_zeros((len(frames), residuals[0].numel(), 0))
            return torch.cat(parts, dim=-1).mul_(weight[..., None, None]).flatten(1, 2)

        return Linearization(cost, residuals.flatten(1), derivatives(columns.local), derivatives(columns.shared))
