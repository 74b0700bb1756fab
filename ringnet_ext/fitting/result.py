"""What a fit has found, and how sure it is."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..flame import FLAME
from ..flame.parameters import FlameParams, HeadParams
from .levenberg_marquardt import Solution
from .problem import Columns


@dataclass(frozen=True)
class Fit:
    """Heads fitted to N images of G people.

    params: HeadParams of every image; its camera is weak-perspective, and for a pinhole camera the nearest one.
    person (N,): index of the image's person, 0 .. G - 1, in the order of first appearance. neck_pose (N, 3), eye_pose
    (N, 6). translation (N, 3): metres, and focal (N,), half image sizes, of a pinhole camera; None for others.
    landmarks (N, n, 2 or 3): those of the fitted heads, as the camera sees them. residuals (N, n): their distance to
    what was fitted, in its units, NaN where there was nothing. sigma: of the landmarks, given or estimated.
    objective, iterations (G,), stopped: per person what was reached, in how many steps, and why there were no more.
    failed: those people for whom nothing could be fitted, with the reason; their parameters are the start's.
    """

    params: HeadParams
    person: Tensor
    neck_pose: Tensor
    eye_pose: Tensor
    translation: Tensor | None
    focal: Tensor | None
    landmarks: Tensor
    residuals: Tensor
    sigma: float
    objective: Tensor
    iterations: Tensor
    stopped: list[str]
    failed: dict[int, str]
    _posterior: Callable[[], Posterior] = field(repr=False)

    @property
    def shape(self) -> Tensor:
        """(G, S): one row a person."""
        order = self.person.argsort(stable=True)
        return self.params.shape[order[first_images(self.person[order], len(self.objective))]]

    @property
    def flame_params(self) -> FlameParams:
        """What :class:`FLAME` takes: ``flame(*fit.flame_params)`` is the head, in the frame of the camera, or of what
        was fitted in space."""
        p = self.params
        still = p.camera.new_zeros(len(self.person), 3)
        return FlameParams.make(
            shape=p.shape, expression=p.expression, global_pose=p.global_pose, neck_pose=self.neck_pose,
            jaw_pose=p.jaw_pose, eye_pose=self.eye_pose,
            translation=still if self.translation is None else self.translation,
        )  # fmt: skip

    @property
    def std(self) -> dict[str, Tensor]:
        """Posterior standard deviation of every parameter that was fitted: name -> (N, width), or (G, width) where a
        person's images share it, or (1, width) where all people do."""
        return self._posterior().std

    @property
    def shape_std(self) -> Tensor:
        """(G, S): posterior standard deviation of the shape coefficients, 0 where the shape was given; (N, S) where
        every image has a shape of its own."""
        return _root(self._posterior().shape_covariance)

    def vertex_std(self) -> Tensor:
        """(G, V), or (N, V) as :attr:`shape_std`: posterior standard deviation of the neutral head's vertices, metres:
        the root of the sum over x, y and z."""
        return self._posterior().vertex_std()


@dataclass(frozen=True)
class Posterior:
    """The Gaussian around the solution. shape_covariance (G, S, S), or (N, S, S); directions (V, 3, S)."""

    std: dict[str, Tensor]
    shape_covariance: Tensor
    directions: Tensor

    def vertex_std(self) -> Tensor:
        directions = self.directions.flatten(0, 1)
        result = directions.new_zeros(len(self.shape_covariance), len(self.directions))
        for row, c in zip(result, self.shape_covariance, strict=True):
            row.copy_(((directions @ c) * directions).sum(1).view(-1, 3).sum(1).clamp_min(0).sqrt())
        return result


def posterior(flame: FLAME, columns: Columns, solution: Solution, back: Tensor) -> Posterior:
    """The Gaussian at a solution; back: the place of every image in it."""
    covariance, like = solution.covariance(), flame.v_template
    shape = torch.zeros(0)
    local = like.new_zeros(solution.local.shape)
    where = _places(columns, columns.local)
    if "shape" in where:
        shape = like.new_zeros(len(local), flame.shape_params, flame.shape_params)
    for block in covariance.blocks:
        local[block.frames] = _root(block.local).to(like)
        if "shape" in where:
            shape[block.frames] = block.local[:, where["shape"], where["shape"]].to(like)
    std = {name: local[back][:, place] for name, place in where.items()}
    shared = _root(covariance.shared).to(like)
    where = _places(columns, columns.shared)
    for name, place in where.items():
        std[name] = shared[:1, place] if name in columns.common else shared[:, place]
    if "shape" in where:
        shape = covariance.shared[:, where["shape"], where["shape"]].to(like)
    elif "shape" not in columns.local:  # it was given
        shape = like.new_zeros(len(solution.shared), flame.shape_params, flame.shape_params)
    return Posterior(std, shape, flame.shapedirs[..., : flame.shape_params])


def _places(columns: Columns, names: list[str]) -> dict[str, slice]:
    """Where some parameters are when they stand side by side."""
    ends = list(itertools.accumulate(columns.count([name]) for name in names))
    return {name: slice(end - columns.count([name]), end) for name, end in zip(names, ends, strict=True)}


def _root(covariance: Tensor) -> Tensor:
    return covariance.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()


def first_images(of: Tensor, count: int) -> Tensor:
    """The first image of every person, of images in the order of their people."""
    return torch.searchsorted(of, torch.arange(count, device=of.device))
