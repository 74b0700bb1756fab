"""Videos as least-squares problems: neighbouring frames are tied to each other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .cameras import Camera
from .chain import Eliminated, Layout
from .levenberg_marquardt import Covariance, Prior, Residuals, SharedBlock, add_up, damped, promised_decrease
from .problem import POSES, Columns


@dataclass(frozen=True)
class Walk:
    """How far parameters move from one frame of a video to the next: standard deviations. Less is smoother.

    scale: of the camera's scale, relative; or of the distance, for a pinhole camera. translation: metres. Poses:
    radians.
    """

    scale: float = 0.01
    translation: float = 0.002
    global_pose: float = 0.03
    neck_pose: float = 0.03
    jaw_pose: float = 0.025
    eye_pose: float = 0.05
    expression: float = 0.1

    def times(self, factor: float) -> Walk:
        """A walk with steps longer by a factor."""
        return Walk(**{name: factor * value for name, value in vars(self).items()})


def nearest_usable(usable: Tensor, of: Tensor) -> Tensor:
    """For every frame the usable one of its person that is nearest in time; itself where there is none."""
    frames = torch.arange(len(of), device=of.device)
    before = torch.where(usable, frames, -1).cummax(0).values
    after = torch.where(usable, frames, len(of)).flip(0).cummin(0).values.flip(0)
    has_before = (before >= 0) & (of[before.clamp_min(0)] == of)
    has_after = (after < len(of)) & (of[after.clamp_max(len(of) - 1)] == of)
    nearer_before = has_before & (~has_after | (frames - before <= after - frames))
    return torch.where(nearer_before, before, torch.where(has_after, after, frames))


def ties(columns: Columns, lens: Camera, walk: Walk, values: Tensor, of: Tensor, number: Tensor) -> Tensor:
    """(N, P): root of the precision between a frame and the next, 0 where the next one in the row isn't its neighbour:
    of another video, or its number (N,) isn't the next."""
    steps = torch.full_like(values, math.inf)
    for name in (*POSES, "expression"):
        steps[:, columns[name]] = getattr(walk, name)
    for name, step in zip(lens.names, lens.walk(walk, columns.take(values, lens.names)), strict=True):
        steps[:, columns[name]] = step[:, None]
    root = 1 / columns.take(steps, columns.local)
    neighbours = (of[1:] == of[:-1]) & (number[1:] == number[:-1] + 1)
    root[:-1] = torch.where(neighbours[:, None], root[1:], 0)
    root[-1:] = 0
    return root


_CLIPS, _CLIP = 8, 64  # and frames of one


def clips(usable: Tensor, of: Tensor) -> Tensor:
    """Frames (n,) of videos, a few runs of neighbours spread over each, enough to know the shape and the noise; all
    of a video that isn't much longer than that. usable: (N,), the frames where something is seen."""
    chosen = torch.zeros_like(usable)
    for video in torch.unique(of).tolist():
        frames = (of == video).nonzero()[:, 0]
        seen = frames[usable[frames]]
        if len(frames) <= 2 * _CLIPS * _CLIP or len(seen) <= _CLIPS * _CLIP:
            chosen[frames] = True
            continue
        first = seen[torch.linspace(0, len(seen) - _CLIP, _CLIPS, device=of.device).long()]
        run = first[:, None] + torch.arange(_CLIP, device=of.device)
        chosen[run[run <= frames[-1]]] = True
    return chosen.nonzero()[:, 0]


#: A step is made shorter or longer by this at most, and not if that differs by less.
_LENGTHS, _NEAR_ENOUGH = (0.05, 2.0), 0.2


class Video:
    """Equations of videos: a frame's parameters differ little from the next one's. Its objective has another term,
    half the sum of |(local_n - local_{n+1}) tie_n|^2.

    They aren't held: derivatives are taken anew, some frames at a time, whenever a step is wanted. As the
    objective alone costs little, a step that overshoots is made shorter rather than refused: in a long video some
    frames nearly always do, as their contour jumps from one row of its table to the next.

    Args:
        residuals, problem, local, shared, local_prior, shared_prior, common: as of
            :class:`~ringnet_ext.fitting.images.Images`.
        tie: (N, P), root of the precision between a frame and the next; 0 where there is none.
        frames_at_once: bounds the memory of the derivatives.
    """

    def __init__(
        self,
        residuals: Residuals,
        problem: Tensor,
        local: Tensor,
        shared: Tensor,
        local_prior: Prior,
        shared_prior: Prior,
        tie: Tensor,
        *,
        common: int = 0,
        frames_at_once: int = 256,
    ):
        self.local, self.shared, self.common = local.clone(), shared.clone(), common
        self._residuals, self._problem, self._frames_at_once = residuals, problem, frames_at_once
        self._local_prior, self._shared_prior, self._all_ties = local_prior, shared_prior, tie.square()
        self._work_on(torch.ones(len(shared), dtype=torch.bool, device=problem.device))

    def _work_on(self, alive: Tensor) -> None:
        frames = alive[self._problem].nonzero()[:, 0]
        self._frames, self._alive = frames, alive.nonzero()[:, 0]
        self._of = (alive.cumsum(0) - 1)[self._problem[frames]]
        self._tie, self._layout = self._all_ties[frames], Layout(self._of)

    def objective(self) -> Tensor:
        self._costs = self._frame_costs(self.local, self.shared)
        return self._total(self._costs, self.shared)

    def keep(self, running: Tensor) -> None:
        frames = running[self._of]
        self._costs = self._costs[frames]
        alive = torch.zeros(len(self.shared), dtype=torch.bool, device=running.device)
        alive[self._alive[running]] = True
        self._work_on(alive)

    def step(self, damping: Tensor) -> Tensor:
        by_frame = damping[self._of].to(self.local)
        linear = _Linear(self, by_frame, damping)
        eliminated = linear.eliminated(self.local.dtype)
        # Damped after the elimination: of a long video's own large diagonal little is left in some directions.
        gradient, left = linear.shared_gradient, linear.shared - eliminated.border[:, 1:, 1:]
        undamped = left.diagonal(dim1=1, dim2=2).clone()
        d_shared = torch.zeros_like(gradient)
        if gradient.shape[1]:
            d_shared = SharedBlock(damped(left, damping), self.common).step(gradient - eliminated.border[:, 1:, 0])
        d_local = -eliminated.solution(torch.cat([gradient.new_ones(len(gradient), 1), d_shared], dim=1))
        self._step = d_local, d_shared.to(self.shared)
        slopes = (d_local * linear.gradient).sum(1)
        self._slope = add_up(slopes, self._of, len(damping)) + (d_shared * gradient).sum(1)
        promised = promised_decrease(d_local, linear.gradient, linear.diagonal, by_frame)
        return add_up(promised, self._of, len(damping)) + promised_decrease(d_shared, gradient, undamped, damping)

    def trial(self) -> Tensor:
        before, length = self._total(self._costs, self.shared[self._alive]), torch.ones_like(self._slope)
        after, costs = self._after(length)
        # Where the step was too long or too short, a parabola says by how much. To look there costs little.
        curvature = after - before - self._slope
        other = torch.where(curvature > 0, -self._slope / (2 * curvature), length).clamp(*_LENGTHS)
        other = torch.where(after.isfinite(), other, _LENGTHS[0])
        other = torch.where((other - 1).abs() > _NEAR_ENOUGH, other, length)
        if (other != length).any():
            there, costs_there = self._after(other)
            better = ~(after <= there)
            length, after = torch.where(better, other, length), torch.where(better, there, after)
            costs = torch.where(better[self._of], costs_there, costs)
        self._next, self._next_costs = self._moved(length), costs
        return after

    def _after(self, length: Tensor) -> tuple[Tensor, Tensor]:
        """The objective (g,) after a part (g,) of the step, and the frames' part of it (n,)."""
        x, y = self._moved(length)
        costs = self._frame_costs(x, y)
        return self._total(costs, y), costs

    def _moved(self, length: Tensor) -> tuple[Tensor, Tensor]:
        d_local, d_shared = self._step
        length = length.to(d_local)
        return (
            self.local[self._frames] + length[self._of][:, None] * d_local,
            self.shared[self._alive] + length[:, None] * d_shared,
        )

    def accept(self, accepted: Tensor) -> None:
        frames = accepted[self._of]
        x, y = self._next
        self.local[self._frames[frames]] = x[frames]
        self.shared[self._alive[accepted]] = y[accepted]
        self._costs = torch.where(frames, self._next_costs, self._costs)

    def covariance(self) -> Covariance:
        self._work_on(torch.ones(len(self.shared), dtype=torch.bool, device=self._problem.device))
        nothing = self.local.new_zeros(len(self.shared))
        linear = _Linear(self, nothing[self._of], nothing, exact=True)
        eliminated = linear.eliminated(self.local.dtype)
        left = linear.shared - eliminated.border
        shared = SharedBlock(left, self.common).covariance() if left.shape[-1] else left
        return Covariance(shared, eliminated.covariance(shared))

    def _total(self, costs: Tensor, shared: Tensor) -> Tensor:
        total = add_up(costs, self._of, len(self._alive))
        return total + self._shared_prior.rows(self._alive).cost(shared).double()

    def _frame_costs(self, x: Tensor, y: Tensor) -> Tensor:
        """(n,), in double: residuals, prior, and half of either tie."""
        parts = [
            self._residuals.cost(self._frames[rows], x[rows], y[self._of[rows]])
            for rows in torch.arange(len(x), device=x.device).split(8 * self._frames_at_once)
        ]
        costs = (torch.cat(parts) + self._local_prior.rows(self._frames).cost(x)).double()
        pull = ((x[1:] - x[:-1]).square() * self._tie[:-1]).sum(1).double() / 4
        costs[1:] += pull
        costs[:-1] += pull
        return costs


class _Linear:
    """A video's equations where it is. shared (g, S, S) and shared_gradient (g, S), in double, are complete when the
    frames are eliminated; gradient (n, P) and diagonal (n, P), undamped, too.

    exact: in double from the derivatives on, and without the gradient on the right side.
    """

    def __init__(self, video: Video, by_frame: Tensor, damping: Tensor, exact: bool = False):
        self._video, self._by_frame, self._exact = video, by_frame, exact
        self._x, self._y = video.local[video._frames], video.shared[video._alive]
        prior, x = video._local_prior.rows(video._frames), self._x
        self._prior, tie = prior, video._tie
        pull = tie[:-1] * (x[1:] - x[:-1])
        self.gradient, self.diagonal = prior.gradient(x), prior.root.square().expand_as(x) + tie
        self.gradient[:-1] -= pull
        self.gradient[1:] += pull
        self.diagonal[1:] += tie[:-1]
        common = video._shared_prior.rows(video._alive)
        self.shared = torch.diag_embed(common.root.double().square().expand_as(self._y)).contiguous()
        self.shared_gradient = common.gradient(self._y).double()

    def eliminated(self, keep: torch.dtype) -> Eliminated:
        video = self._video
        width = self._y.shape[1] + (0 if self._exact else 1)
        return Eliminated(
            video._layout, video._tie, self._rows, width, len(self._y), keep=keep, frames_at_once=video._frames_at_once
        )

    def _rows(self, some: Tensor) -> tuple[Tensor, Tensor]:
        video, of = self._video, self._video._of[some]
        line = video._residuals(video._frames[some], self._x[some], self._y[of])
        line = line.double() if self._exact else line
        transposed, residuals = line.local.transpose(1, 2), line.residuals[..., None]
        block, right = transposed @ line.local, transposed @ line.shared
        self._add_shared(of, line.shared, residuals)
        diagonal = block.diagonal(dim1=1, dim2=2)
        diagonal += self.diagonal[some]
        if self._exact:
            return block, right
        self.gradient[some] += (transposed @ residuals)[..., 0]
        self.diagonal[some] = diagonal
        return damped(block, self._by_frame[some]), torch.cat([self.gradient[some][..., None], right], dim=2)

    def _add_shared(self, of: Tensor, derivatives: Tensor, residuals: Tensor) -> None:
        if len(self.shared) == 1:  # one video: one product
            derivatives, residuals, of = derivatives.flatten(0, 1)[None], residuals.flatten(0, 1)[None], of[:1]
        transposed = derivatives.transpose(1, 2)
        self.shared.index_add_(0, of, (transposed @ derivatives).double())
        self.shared_gradient.index_add_(0, of, (transposed @ residuals)[..., 0].double())
