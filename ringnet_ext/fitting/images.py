"""Images of people as least-squares problems: what belongs to one image is eliminated first, by itself."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .levenberg_marquardt import (
    Block,
    Covariance,
    Prior,
    Residuals,
    SharedBlock,
    add_up,
    cholesky,
    damped,
    promised_decrease,
)


class _Normal(NamedTuple):
    """Gauss-Newton's Hessian and gradient, in blocks: local (n, P, P), mixed (n, P, S), shared (g, S, S),
    local_gradient (n, P), shared_gradient (g, S)."""

    local: Tensor
    mixed: Tensor
    shared: Tensor
    local_gradient: Tensor
    shared_gradient: Tensor

    def of(self, frames: Tensor, problems: Tensor) -> _Normal:
        """Those of some frames, and of their problems."""
        return _Normal(
            self.local[frames], self.mixed[frames], self.shared[problems], self.local_gradient[frames],
            self.shared_gradient[problems],
        )  # fmt: skip

    def where(self, frames: Tensor, problems: Tensor, other: _Normal) -> _Normal:
        """These where the masks say so, the others' for the rest."""

        def choose(mask, a, b):
            return torch.where(mask.view(-1, *[1] * (a.dim() - 1)), a, b)

        masks = (frames, frames, problems, frames, problems)
        return _Normal(*(choose(*each) for each in zip(masks, self, other, strict=True)))


class Images:
    """Equations of images that nothing ties to each other but what a person's images share. They are held from one
    step to the next.

    Args:
        residuals: of the frames. problem: (N,) int64, their problems, 0 .. G - 1, ascending.
        local: (N, P) and shared: (G, S), where to begin.
        local_prior, shared_prior: of these.
        common: of the shared parameters' last columns, how many all problems have in common.
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
        *,
        common: int = 0,
        frames_at_once: int = 512,
    ):
        self.local, self.shared, self.common = local.clone(), shared.clone(), common
        self._residuals, self._problem, self._frames_at_once = residuals, problem, frames_at_once
        self._local_prior, self._shared_prior = local_prior, shared_prior
        # Those that are still at work: their frames, problems, and the frames' problems numbered among these.
        self._frames = torch.arange(len(problem), device=problem.device)
        self._alive, self._of = torch.arange(len(shared), device=problem.device), problem
        self._now: _Normal
        self._next: tuple[Tensor, Tensor, _Normal]

    def objective(self) -> Tensor:
        value, self._now = self._evaluated(self.local, self.shared)
        return value

    def keep(self, running: Tensor) -> None:
        frames = running[self._of].nonzero()[:, 0]
        self._now = self._now.of(frames, running.nonzero()[:, 0])
        self._alive, self._frames = self._alive[running], self._frames[frames]
        self._of = (running.cumsum(0) - 1)[self._of[frames]]

    def step(self, damping: Tensor) -> Tensor:
        now, by_frame = self._now, damping[self._of]
        by_gradient, by_shared, shared, gradient = self._eliminated(
            damped(now.local.clone(), by_frame), damped(now.shared.clone(), damping)
        )
        d_local, d_shared = -by_gradient, torch.zeros_like(gradient)
        if gradient.shape[1]:
            d_shared = SharedBlock(shared, self.common).step(gradient)
            d_local = d_local - (by_shared @ d_shared[self._of][..., None])[..., 0]
        x, y = self.local[self._frames] + d_local, self.shared[self._alive] + d_shared
        self._next = x, y, now
        local_diagonal, shared_diagonal = (b.diagonal(dim1=-2, dim2=-1) for b in (now.local, now.shared))
        return self._sum(promised_decrease(d_local, now.local_gradient, local_diagonal, by_frame)) + promised_decrease(
            d_shared, now.shared_gradient, shared_diagonal, damping
        )

    def trial(self) -> Tensor:
        x, y, _ = self._next
        value, normal = self._evaluated(x, y)
        self._next = x, y, normal
        return value

    def accept(self, accepted: Tensor) -> None:
        x, y, normal = self._next
        frames = accepted[self._of]
        self._now = normal if accepted.all() else normal.where(frames, accepted, self._now)
        self.local[self._frames[frames]] = x[frames]
        self.shared[self._alive[accepted]] = y[accepted]

    def covariance(self) -> Covariance:
        everything = torch.ones(len(self.shared), dtype=torch.bool, device=self.shared.device)
        self._frames = torch.arange(len(self._problem), device=everything.device)
        self._alive, self._of = everything.nonzero()[:, 0], self._problem
        normal = self._evaluated(self.local, self.shared, exact=True)[1]
        self._now = normal
        _, by_shared, left, _ = self._eliminated(normal.local, normal.shared)
        shared = SharedBlock(left, self.common).covariance() if left.shape[-1] else left
        mixed = -by_shared @ shared[self._of]
        local = torch.cholesky_inverse(cholesky(normal.local)) - mixed @ by_shared.transpose(1, 2)
        return Covariance(shared, iter([Block(self._frames, local, None)]))

    def _sum(self, values: Tensor) -> Tensor:
        return add_up(values, self._of, len(self._alive))

    def _eliminated(self, local: Tensor, shared: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The inverse of the frames' blocks times their gradient (n, P) and times ``mixed`` (n, P, S); what is left for
        the shared parameters (g, S, S), and their gradient (g, S)."""
        now = self._now
        right = torch.cat([now.local_gradient[..., None], now.mixed], dim=-1)
        solved = torch.cholesky_solve(right, cholesky(local))
        by_gradient, by_shared = solved[..., 0], solved[..., 1:]
        gradient = now.shared_gradient
        if shared.shape[-1]:
            transposed = now.mixed.transpose(1, 2)
            shared = shared.index_add(0, self._of, transposed @ by_shared, alpha=-1)
            gradient = gradient.index_add(0, self._of, (transposed @ by_gradient[..., None])[..., 0], alpha=-1)
        return by_gradient, by_shared, shared, gradient

    def _evaluated(self, x: Tensor, y: Tensor, exact: bool = False) -> tuple[Tensor, _Normal]:
        """Objective (g,) and equations at local x (n, P) and shared y (g, S); exact: in double from the derivatives
        on."""
        parts, (count, S), common = [], y.shape, self._shared_prior.rows(self._alive)
        dtype = torch.float64 if exact else y.dtype
        ss, gs = y.new_zeros((count, S, S), dtype=dtype), y.new_zeros((count, S), dtype=dtype)
        for some in range(0, max(1, len(x)), self._frames_at_once):  # once where there are none
            rows = slice(some, some + self._frames_at_once)
            of = self._of[rows]
            line = self._residuals(self._frames[rows], x[rows], y[of])
            line = line.double() if exact else line
            right, transposed = line.residuals[..., None], line.local.transpose(1, 2)
            parts.append((transposed @ line.local, transposed @ line.shared, (transposed @ right)[..., 0], line.cost))
            if S:
                transposed = line.shared.transpose(1, 2)
                ss.index_add_(0, of, transposed @ line.shared)
                gs.index_add_(0, of, (transposed @ right)[..., 0])
        ll, ls, gl, cost = (torch.cat(column) if len(column) > 1 else column[0] for column in zip(*parts, strict=True))
        prior = self._local_prior.rows(self._frames)
        if exact:
            x, y = x.double(), y.double()
        ll.diagonal(dim1=-2, dim2=-1).add_(prior.root.square())
        ss.diagonal(dim1=-2, dim2=-1).add_(common.root.square())
        objective = self._sum(cost + prior.cost(x)) + common.cost(y).double()
        return objective, _Normal(ll, ls, ss, gl + prior.gradient(x), gs + common.gradient(y))
