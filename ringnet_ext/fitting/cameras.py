"""How fitted heads are seen: each camera's parameters, its projection with derivatives, and the pose to begin with."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Steps(Protocol):
    """How far a camera moves from one frame of a video to the next: of its scale, relative, and its translation,
    metres."""

    @property
    def scale(self) -> float: ...

    @property
    def translation(self) -> float: ...


class Camera(Protocol):
    @property
    def names(self) -> tuple[str, ...]:
        """Of its parameters."""

    def project(self, points: Tensor, camera: Tensor) -> tuple[Tensor, Tensor]:
        """Points (n, N, 3) -> what is seen (n, M, d) and its derivatives with respect to the camera (n, M, d, C)."""

    def chain(self, points: Tensor, camera: Tensor, derivatives: Tensor) -> Tensor:
        """Derivatives of the points (n, N, 3, Q) -> of what is seen (n, M, d, Q)."""

    def nearest(
        self, points: Tensor, target: Tensor, weight: Tensor, camera: Tensor, turned: bool = True
    ) -> tuple[Tensor, Tensor]:
        """The rotation (n, 3, 3) of the points, and the camera, that bring them nearest to the target, in closed form;
        the identity where not ``turned``."""

    def weak(self, camera: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The nearest weak-perspective camera (n, 3), translation (n, 3) or None, focal length (n,) or None."""

    def from_weak(self, weak: Tensor, camera: Tensor) -> Tensor:
        """A camera that sees about the same."""

    def walk(self, walk: Steps, camera: Tensor) -> list[Tensor]:
        """The steps (n,) of a walk, a parameter each."""


def _centred(points: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Points (n, N, d) around their weighted mean, and the mean (n, 1, d)."""
    total = weight.sum(1).clamp_min(1e-12)[:, None, None]
    mean = (points * weight[..., None]).sum(1, keepdim=True) / total
    return points - mean, mean


def _rotation(near: Tensor) -> Tensor:
    """The rotations nearest to matrices (n, 3, 3)."""
    u, _, vt = torch.linalg.svd(near)
    sign = torch.ones_like(near[:, 0])
    sign[:, 2] = torch.linalg.det(u @ vt).sign()
    return (u * sign[:, None]) @ vt


class WeakPerspective:
    """RingNet's camera: x = s (X_xy + t). Its scale is held as a logarithm, so that it stays positive."""

    names = ("log_scale", "tx", "ty")

    def project(self, points: Tensor, camera: Tensor) -> tuple[Tensor, Tensor]:
        scale = camera[:, None, :1].exp()
        seen = scale * (points[..., :2] + camera[:, None, 1:])
        moved = scale[..., None] * torch.eye(2, dtype=points.dtype, device=points.device)
        return seen, torch.cat([seen[..., None], moved.expand(*seen.shape, 2)], dim=-1)

    def chain(self, points: Tensor, camera: Tensor, derivatives: Tensor) -> Tensor:
        return camera[:, :1, None, None].exp() * derivatives[..., :2, :]

    def nearest(
        self, points: Tensor, target: Tensor, weight: Tensor, camera: Tensor, turned: bool = True
    ) -> tuple[Tensor, Tensor]:
        source, source_mean = _centred(points, weight)
        image, image_mean = _centred(target, weight)
        weighted = source.transpose(1, 2) * weight[:, None]
        moments = weighted @ source
        moments = moments + 1e-6 * moments.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(
            3, dtype=points.dtype, device=points.device
        )
        affine = torch.linalg.solve(moments, weighted @ image).transpose(1, 2)  # (n, 2, 3)
        if turned:
            u, singular, vt = torch.linalg.svd(affine, full_matrices=False)
            rows = u @ vt
            turn = torch.cat([rows, torch.linalg.cross(rows[:, 0], rows[:, 1])[:, None]], dim=1)
            scale = singular.mean(1)
        else:
            turn = torch.eye(3, dtype=points.dtype, device=points.device).expand(len(points), 3, 3)
            flat = source[..., :2]
            scale = (flat * image * weight[..., None]).sum((1, 2)) / (flat.square() * weight[..., None]).sum(
                (1, 2)
            ).clamp_min(1e-12)
        scale = scale.clamp_min(1e-6)
        centre = (turn @ source_mean.transpose(1, 2))[:, :2, 0]
        return turn, torch.cat([scale.log()[:, None], image_mean[:, 0] / scale[:, None] - centre], dim=1)

    def weak(self, camera: Tensor) -> tuple[Tensor, None, None]:
        return torch.cat([camera[:, :1].exp(), camera[:, 1:]], dim=1), None, None

    def from_weak(self, weak: Tensor, camera: Tensor) -> Tensor:
        return torch.cat([weak[:, :1].log(), weak[:, 1:]], dim=1).expand_as(camera)

    def walk(self, walk, camera: Tensor) -> list[Tensor]:
        step = torch.ones_like(camera[:, 0])
        return [walk.scale * step, walk.translation * step, walk.translation * step]


class Perspective:
    """A pinhole camera at the origin that looks along +z, y down: x = f (X + T)_xy / (X + T)_z + center. f in half
    image sizes.

    Its parameters are those of the weak-perspective camera that it is for a flat face, s = f / T_z, and the logarithm
    of f: how large a face looks is well known even where its distance isn't.

    Args:
        center: (2,), the principal point in normalised image coordinates.
    """

    names = ("log_scale", "tx", "ty", "log_focal")

    def __init__(self, center: Tensor):
        self.center = center
        self._weak = WeakPerspective()

    def _depth(self, points: Tensor, camera: Tensor) -> Tensor:
        """(n, N, 1): depth relative to T_z."""
        return 1 + points[..., 2:] * (camera[:, :1] - camera[:, 3:]).exp()[..., None]

    def project(self, points: Tensor, camera: Tensor) -> tuple[Tensor, Tensor]:
        flat, slopes = self._weak.project(points, camera[:, :3])
        depth = self._depth(points, camera)
        seen = flat / depth
        by_scale, by_focal = seen / depth, seen * (1 - 1 / depth)
        # Behind the camera there is no image: not a number, and the solver refuses the step.
        seen_at = torch.where(depth > 0, seen + self.center, torch.nan)
        return seen_at, torch.cat(
            [by_scale[..., None], slopes[..., 1:] / depth[..., None], by_focal[..., None]], dim=-1
        )

    def chain(self, points: Tensor, camera: Tensor, derivatives: Tensor) -> Tensor:
        depth = self._depth(points, camera)
        scale = camera[:, None, :1].exp() / depth  # (n, N, 1)
        inverse_distance = (camera[:, :1] - camera[:, 3:]).exp()[..., None]
        slope = (points[..., :2] + camera[:, None, 1:3]) * inverse_distance / depth
        return scale[..., None] * (derivatives[..., :2, :] - slope[..., None] * derivatives[..., 2:, :])

    def nearest(
        self, points: Tensor, target: Tensor, weight: Tensor, camera: Tensor, turned: bool = True
    ) -> tuple[Tensor, Tensor]:
        turn, weak = self._weak.nearest(points, target - self.center, weight, camera[:, :3], turned)
        return turn, torch.cat([weak, camera[:, 3:]], dim=1)

    def weak(self, camera: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scale, focal = camera[:, :1].exp(), camera[:, 3].exp()
        translation = torch.cat([camera[:, 1:3], focal[:, None] / scale], dim=1)
        return torch.cat([scale, camera[:, 1:3] + self.center / scale], dim=1), translation, focal

    def from_weak(self, weak: Tensor, camera: Tensor) -> Tensor:
        scale = weak[:, :1]
        flat = torch.cat([scale.log(), weak[:, 1:] - self.center / scale], dim=1)
        return torch.cat([flat.expand(len(camera), 3), camera[:, 3:]], dim=1)

    def walk(self, walk, camera: Tensor) -> list[Tensor]:
        step = torch.ones_like(camera[:, 0])
        return [*self._weak.walk(walk, camera), walk.scale * step]


class Space:
    """No camera: points in metres, in any frame, moved by T."""

    names = ("tx", "ty", "tz")

    def project(self, points: Tensor, camera: Tensor) -> tuple[Tensor, Tensor]:
        return points + camera[:, None], torch.eye(3, dtype=points.dtype, device=points.device).expand(*points.shape, 3)

    def chain(self, points: Tensor, camera: Tensor, derivatives: Tensor) -> Tensor:
        return derivatives

    def nearest(
        self, points: Tensor, target: Tensor, weight: Tensor, camera: Tensor, turned: bool = True
    ) -> tuple[Tensor, Tensor]:
        source, source_mean = _centred(points, weight)
        goal, goal_mean = _centred(target, weight)
        turn = torch.eye(3, dtype=points.dtype, device=points.device).expand(len(points), 3, 3)
        if turned:
            turn = _rotation((goal * weight[..., None]).transpose(1, 2) @ source)
        return turn, (goal_mean - source_mean @ turn.transpose(1, 2))[:, 0]

    def weak(self, camera: Tensor) -> tuple[Tensor, Tensor, None]:
        return torch.cat([torch.ones_like(camera[:, :1]), camera[:, :2]], dim=1), camera, None

    def from_weak(self, weak: Tensor, camera: Tensor) -> Tensor:
        return torch.cat([weak[:, 1:], torch.zeros_like(weak[:, :1])], dim=1).expand_as(camera)

    def walk(self, walk, camera: Tensor) -> list[Tensor]:
        return [walk.translation * torch.ones_like(camera[:, 0])] * 3


class Views:
    """Several cameras of one moment with known calibration: x = P [X + T; 1], divided by its last number. What is seen:
    a view's points after the other's.

    Args:
        matrices: (views, 3, 4), metres to normalised image coordinates.
    """

    names = ("tx", "ty", "tz")

    def __init__(self, matrices: Tensor):
        if matrices.dim() != 3 or matrices.shape[1:] != (3, 4):
            raise ValueError(f"views: expected shape (views, 3, 4), got {tuple(matrices.shape)}")
        self.matrices = matrices
        self._space = Space()

    def _slopes(self, points: Tensor, camera: Tensor) -> tuple[Tensor, Tensor]:
        """(n, views, N, 2) and the derivatives with respect to the points (n, views, N, 2, 3)."""
        moved = points + camera[:, None]
        P = self.matrices
        at = torch.einsum("vij,nkj->nvki", P[..., :3], moved) + P[:, None, :, 3]
        depth = at[..., 2:]
        seen = torch.where(depth > 0, at[..., :2] / depth, torch.nan)
        return seen, (P[:, None, :2, :3] - seen[..., None] * P[:, None, 2:, :3]) / depth[..., None]

    def project(self, points: Tensor, camera: Tensor) -> tuple[Tensor, Tensor]:
        seen, slopes = self._slopes(points, camera)
        return seen.flatten(1, 2), slopes.flatten(1, 2)

    def chain(self, points: Tensor, camera: Tensor, derivatives: Tensor) -> Tensor:
        return (self._slopes(points, camera)[1] @ derivatives[:, None]).flatten(1, 2)

    def nearest(
        self, points: Tensor, target: Tensor, weight: Tensor, camera: Tensor, turned: bool = True
    ) -> tuple[Tensor, Tensor]:
        """By triangulation: the points in space that the views agree on, where two or more see them."""
        n, N = points.shape[:2]
        target, seen = target.view(n, -1, N, 2), weight.view(n, -1, N)
        rows = (
            self.matrices[:, None, :2] - target[..., None] * self.matrices[:, None, 2:]
        )  # (n, views, N, 2, 4): rows [X; 1] = 0
        rows = (rows * seen[..., None, None].sqrt()).transpose(1, 2).flatten(2, 3)
        known = (seen > 0).sum(1) >= 2
        a, b = rows[..., :3], -rows[..., 3:]
        normal = a.transpose(-1, -2) @ a
        normal = torch.where(known[..., None, None], normal, torch.eye(3, dtype=a.dtype, device=a.device))
        found = torch.linalg.solve(normal, a.transpose(-1, -2) @ b)[..., 0]
        return self._space.nearest(points, found, known.to(points.dtype), camera, turned)

    def weak(self, camera: Tensor) -> tuple[Tensor, Tensor, None]:
        return self._space.weak(camera)

    def from_weak(self, weak: Tensor, camera: Tensor) -> Tensor:
        return self._space.from_weak(weak, camera)

    def walk(self, walk, camera: Tensor) -> list[Tensor]:
        return self._space.walk(walk, camera)
