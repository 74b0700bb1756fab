"""Levenberg-Marquardt for many independent least-squares problems at once, on the CPU and on a GPU.

A problem is a person or a video. It has frames (images), each with parameters of its own (``local``), and parameters
that its frames share (``shared``). Its objective is half the sum of

    |residuals of frame n|^2  +  |(local_n - mean) root|^2  over its frames  +  |(shared - mean) root|^2

with independent Gaussian priors: mean, and root of the precision. Every problem has its own damping, acceptance and
convergence. The last ``common`` columns of the shared parameters are the same for all problems: these then have one
damping, acceptance and convergence.

:class:`~ringnet_ext.fitting.images.Images` and :class:`~ringnet_ext.fitting.track.Video` are such :class:`Equations`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

#: Why a problem ended: the values of Solution.stopped are indices.
INVALID = "not a number"
REASONS = ("converged", "iteration limit", "no step decreases the objective", INVALID)
_CONVERGED, _LIMIT, _STUCK, _INVALID = range(4)
_RUNNING = -1
_LEAST_DAMPING, _MOST_DAMPING, _FIRST_DAMPING = 1e-12, 1e8, 1e-4


class Linearization(NamedTuple):
    """Of n frames: cost (n,), half the squared residuals, after the robust function where there is one; residuals (n,
    M) and their derivatives with respect to the local (n, M, P) and shared (n, M, S) parameters, all times the root of
    the residual's weight."""

    cost: Tensor
    residuals: Tensor
    local: Tensor
    shared: Tensor

    def double(self) -> Linearization:
        return Linearization(*(value.double() for value in self))


class Residuals(Protocol):
    """Of frames (n,) with local (n, P) and shared (n, S) parameters, a row for each."""

    def __call__(self, frames: Tensor, local: Tensor, shared: Tensor) -> Linearization: ...

    def cost(self, frames: Tensor, local: Tensor, shared: Tensor) -> Tensor:
        """Only the cost (n,), which is much cheaper."""


class Prior(NamedTuple):
    """Independent Gaussians: mean, and root of the precision, 0 for none. (P,) each, or (n, P)."""

    mean: Tensor
    root: Tensor

    def rows(self, index: Tensor) -> Prior:
        return Prior(*(value if value.dim() == 1 else value[index] for value in self))

    def cost(self, x: Tensor) -> Tensor:
        return ((x - self.mean) * self.root).square().sum(-1) / 2

    def gradient(self, x: Tensor) -> Tensor:
        return (x - self.mean) * self.root.square()


class Block(NamedTuple):
    """Posterior covariance of some frames: frames (n,), the covariance of their local parameters (n, P, P), and the
    covariance of each of them with the same one of the next frame (n, P), or None where frames aren't tied."""

    frames: Tensor
    local: Tensor
    beside: Tensor | None


class Covariance(NamedTuple):
    """Inverse Hessian at a solution, in double: of the shared parameters (g, S, S), and of the frames, some at a
    time."""

    shared: Tensor
    blocks: Iterator[Block]


class Equations(Protocol):
    """Problems that can be linearised where they are. ``local`` (N, P) and ``shared`` (G, S) are where that is."""

    local: Tensor
    shared: Tensor
    common: int

    def objective(self) -> Tensor:
        """(G,), in double."""

    def step(self, damping: Tensor) -> Tensor:
        """Finds the damped step from where the problems are; the decrease that it promises (g,), in double. The
        diagonal is raised by the fraction ``damping`` (g,) of itself."""

    def trial(self) -> Tensor:
        """The objective (g,) after the step, in double."""

    def accept(self, accepted: Tensor) -> None:
        """Makes the step for some of the problems: accepted (g,)."""

    def keep(self, running: Tensor) -> None:
        """From here on concerns itself with some of its problems: running (g,)."""

    def covariance(self) -> Covariance:
        """Of all problems."""


class Solution(NamedTuple):
    """local (N, P), shared (G, S), and of each problem its objective, iterations and reason to stop, an index of
    REASONS, (G,). covariance() has the posterior's."""

    local: Tensor
    shared: Tensor
    objective: Tensor
    iterations: Tensor
    stopped: Tensor
    covariance: Callable[[], Covariance]


def add_up(values: Tensor, problem: Tensor, count: int) -> Tensor:
    """Sums over the frames of each problem, in double: (n, ...) -> (count, ...)."""
    values = values.double()
    if len(values) == count:  # a frame a problem
        return values
    return values.new_zeros((count, *values.shape[1:])).index_add_(0, problem, values)


def cholesky(blocks: Tensor) -> Tensor:
    """Factors; NaN where a block isn't positive definite: a step with them is never accepted."""
    factors, info = torch.linalg.cholesky_ex(blocks)
    if info.any():
        factors[info != 0] = torch.nan
    return factors


def damped(blocks: Tensor, fraction: Tensor) -> Tensor:
    """Blocks (n, P, P), in place, with the diagonal raised: by the fraction (n,) of itself."""
    diagonal = blocks.diagonal(dim1=-2, dim2=-1)
    diagonal += fraction[:, None] * diagonal + torch.finfo(blocks.dtype).tiny
    return blocks


class SharedBlock:
    """The equations that are left for the shared parameters once the frames are eliminated: hessian (g, S, S) and
    gradient (g, S), of which the last ``common`` columns belong to all problems together."""

    def __init__(self, hessian: Tensor, common: int):
        own = hessian.shape[-1] - common
        self.own, self.common = own, common
        self._own = cholesky(hessian[:, :own, :own])
        if common:
            self._border = hessian[:, :own, own:]
            self._by_common = torch.cholesky_solve(self._border, self._own)  # own parameters' answer to the common ones
            left = hessian[:, own:, own:] - self._border.transpose(1, 2) @ self._by_common
            self._common = cholesky(left.sum(0))

    def step(self, gradient: Tensor) -> Tensor:
        """(g, S)."""
        own = -torch.cholesky_solve(gradient[:, : self.own, None], self._own)
        if not self.common:
            return own[..., 0]
        right = gradient[:, self.own :, None] + self._border.transpose(1, 2) @ own
        common = -torch.cholesky_solve(right.sum(0), self._common)
        own = own - self._by_common @ common
        return torch.cat([own, common.expand(len(own), -1, -1)], dim=1)[..., 0]

    def covariance(self) -> Tensor:
        """(g, S, S)."""
        own = torch.cholesky_inverse(self._own) if self.own else self._own
        if not self.common:
            return own
        common = torch.cholesky_inverse(self._common).expand(len(own), -1, -1)
        both = -self._by_common @ common
        own = own - both @ self._by_common.transpose(1, 2)
        return torch.cat([torch.cat([own, both], dim=2), torch.cat([both.transpose(1, 2), common], dim=2)], dim=1)


def promised_decrease(step: Tensor, gradient: Tensor, diagonal: Tensor, damping: Tensor) -> Tensor:
    """By the linearised residuals, of rows of parameters: (n, P) each but the damping (n,) -> (n,)."""
    return (step * (damping[:, None] * diagonal * step - gradient)).sum(-1).double() / 2


class _Damping:
    """Nielsen's rule: damping follows how well a step was predicted, and grows faster from refusal to refusal."""

    def __init__(self, like: Tensor):
        self.value = torch.full_like(like, _FIRST_DAMPING)
        self._growth = torch.full_like(like, 2.0)

    def update(self, accepted: Tensor, ratio: Tensor) -> None:
        lower = (1 - (2 * ratio.clamp(0, 1) - 1).pow(3)).clamp_min(1 / 10)
        self.value = torch.where(accepted, self.value * lower, self.value * self._growth).clamp_min(_LEAST_DAMPING)
        self._growth = torch.where(accepted, 2.0, self._growth * 2)

    def keep(self, running: Tensor) -> None:
        self.value, self._growth = self.value[running], self._growth[running]


def _reasons(
    accepted: Tensor, gain: Tensor, promised: Tensor, objective: Tensor, damping: Tensor, tolerance: float
) -> Tensor:
    """Why each problem ends after a step, or _RUNNING. objective: before the step."""
    trial = objective - gain
    small = accepted & (gain <= tolerance * trial) & (promised <= 10 * tolerance * trial)
    flat = promised <= tolerance * objective
    stuck = ~accepted & (flat | (damping > _MOST_DAMPING))
    reason = torch.full(accepted.shape, _RUNNING, device=accepted.device)
    reason[small | (stuck & flat)] = _CONVERGED
    reason[stuck & ~flat] = _STUCK
    return reason


def minimise(
    equations: Equations,
    *,
    iterations: int = 30,
    tolerance: float = 1e-6,
    progress: Callable[[int], object] | None = None,
) -> Solution:
    """Minimise all problems from where they are.

    Args:
        equations: the problems; they are moved to their minima.
        iterations: at most. tolerance: a problem has converged when a step lowers its objective by less than this
            fraction.
        progress: called with the number of problems that are done since the last call.
    """
    objective = equations.objective()
    G, together = len(objective), equations.common > 0
    stopped = torch.where(objective.isfinite(), _RUNNING, _INVALID)
    taken = torch.zeros(G, dtype=torch.int64, device=objective.device)
    alive, damping, done = torch.arange(G, device=objective.device), _Damping(objective), 0
    for iteration in range(iterations + 1):
        running = stopped[alive] == _RUNNING
        if not running.all():
            alive = alive[running]
            equations.keep(running)
            damping.keep(running)
        if progress is not None and G - len(alive) > done:
            progress(G - len(alive) - done)
            done = G - len(alive)
        if len(alive) == 0 or iteration == iterations:
            break
        promised, trial, before = equations.step(damping.value), equations.trial(), objective[alive]
        gain = before - trial
        if together:
            gain, promised, before = (value.sum().expand(len(alive)) for value in (gain, promised, before))
        accepted = (gain >= 0) & gain.isfinite()
        equations.accept(accepted)
        taken[alive] += 1
        damping.update(accepted, gain / promised.clamp_min(torch.finfo(gain.dtype).tiny))
        objective[alive[accepted]] = trial[accepted]
        stopped[alive] = _reasons(accepted, gain, promised, before, damping.value, tolerance)
    stopped[stopped == _RUNNING] = _LIMIT
    if progress is not None and G > done:
        progress(G - done)
    return Solution(equations.local, equations.shared, objective, taken, stopped, equations.covariance)
