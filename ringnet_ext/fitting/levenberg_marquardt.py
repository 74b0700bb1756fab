"""Levenberg-Marquardt for many independent least-squares problems at once, on the CPU and on a GPU.

A problem is a person or a video. It has frames (images), each with parameters of its own (``local``), and parameters that its frames
share (``shared``). Its objective is half the sum of

    |residuals of frame n|^2  +  |(local_n - mean) root|^2  +  |(local_n - local_{n+1}) tie_n|^2  over its frames  +  |(shared - mean) root|^2

with independent Gaussian priors (mean, and root of the precision) and, in a video, ties between neighbouring frames.
Every problem has its own damping, acceptance and convergence, and leaves the batch when it is done. Frames are eliminated first
(a Schur complement), so that the cost is linear in their number: one by one where nothing ties them, otherwise by cyclic
reduction, which halves the chain of frames again and again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

#: Why a problem ended: the values of Solution.stopped are indices.
REASONS = ("converged", "iteration limit", "no step decreases the objective", "too little data, or not a number")
_CONVERGED, _LIMIT, _STUCK, _INVALID = range(4)
_RUNNING = -1


class Linearization(NamedTuple):
    """Of n frames: cost (n,), half the squared residuals, after the robust function where there is one; residuals (n, M) and their
    derivatives with respect to the local (n, M, P) and shared (n, M, S) parameters, all times the root of the residual's weight."""

    cost: Tensor
    residuals: Tensor
    local: Tensor
    shared: Tensor


class Prior(NamedTuple):
    """Independent Gaussians: mean, and root of the precision, 0 for none. (P,) each, or (n, P)."""

    mean: Tensor
    root: Tensor

    def rows(self, index: Tensor) -> Prior:
        return Prior(*(value if value.dim() == 1 else value[index] for value in self))

    def cost(self, x: Tensor) -> Tensor:
        return ((x - self.mean) * self.root).square().sum(-1) / 2


class Solution(NamedTuple):
    """local (N, P), shared (G, S), and of each problem its objective, iterations and reason to stop, an index of REASONS, (G,).

    equations() has the normal equations at the solution, for the posterior.
    """

    local: Tensor
    shared: Tensor
    objective: Tensor
    iterations: Tensor
    stopped: Tensor
    equations: Callable[[], NormalEquations]


@dataclass(frozen=True)
class NormalEquations:
    """Gauss-Newton's Hessian and gradient, in blocks. problem (n,): the frames' problems, 0 .. g - 1, ascending.

    local (n, P, P), mixed (n, P, S), shared (g, S, S); local_gradient (n, P), shared_gradient (g, S); tie (n - 1, P): precision between
    frame i and i + 1, or None where there are no ties.
    """

    problem: Tensor
    local: Tensor
    mixed: Tensor
    shared: Tensor
    local_gradient: Tensor
    shared_gradient: Tensor
    tie: Tensor | None

    def of(self, frames: Tensor, problems: Tensor, renumbered: Tensor) -> NormalEquations:
        """Those of some problems alone, whose frames are given; renumbered: the frames' problems from 0 on."""
        tie = None if self.tie is None else self.tie[frames[:-1]]
        return NormalEquations(
            renumbered, self.local[frames], self.mixed[frames], self.shared[problems], self.local_gradient[frames],
            self.shared_gradient[problems], tie,
        )  # fmt: skip

    def where(self, accepted: Tensor, other: NormalEquations) -> NormalEquations:
        """These for accepted problems (g,), the others' for the rest."""
        frames = accepted[self.problem]

        def choose(mask, a, b):
            return torch.where(mask.view(-1, *[1] * (a.dim() - 1)), a, b)

        return NormalEquations(
            self.problem, choose(frames, self.local, other.local), choose(frames, self.mixed, other.mixed),
            choose(accepted, self.shared, other.shared), choose(frames, self.local_gradient, other.local_gradient),
            choose(accepted, self.shared_gradient, other.shared_gradient), self.tie,
        )  # fmt: skip

    def sum(self, values: Tensor) -> Tensor:
        """Sums over the frames of each problem: (n, ...) -> (g, ...)."""
        return _sum(values, self.problem, len(self.shared_gradient))

    def damped(self, damping: Tensor) -> tuple[Tensor, Tensor]:
        """local and shared with the diagonal raised: by the fraction ``damping`` (g,) of itself."""
        local, shared = self.local.clone(), self.shared.clone()
        for blocks, fraction in ((local, damping[self.problem]), (shared, damping)):
            diagonal = blocks.diagonal(dim1=-2, dim2=-1)
            diagonal += fraction[:, None] * diagonal + torch.finfo(blocks.dtype).tiny
        return local, shared

    def eliminated(self, damping: Tensor) -> Elimination:
        """The frames eliminated from the damped equations."""
        local, shared = self.damped(damping)
        size = self.mixed.shape[-1]
        right = torch.cat([self.local_gradient[..., None], self.mixed], dim=-1)
        if self.tie is None:
            factors = _cholesky(local)
            solved = torch.cholesky_solve(right, factors)
        else:
            solved = solve_chain(local, self.tie, right)
        by_gradient, by_shared = solved[..., 0], solved[..., 1:]
        if size:
            shared = shared - self.sum(self.mixed.transpose(1, 2) @ by_shared)
            gradient = self.shared_gradient - self.sum((self.mixed * by_gradient[..., None]).sum(1))
            factors = _cholesky(shared)
        else:
            gradient, factors = self.shared_gradient, shared
        return Elimination(by_gradient, by_shared, gradient, factors)

    def step(self, damping: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The damped step of the local (n, P) and shared (g, S) parameters, and the decrease that it promises (g,)."""
        e = self.eliminated(damping)
        local = -e.by_gradient
        if e.gradient.shape[1]:
            shared = -torch.cholesky_solve(e.gradient[..., None], e.factors)[..., 0]
            local = local - (e.by_shared @ shared[self.problem][..., None])[..., 0]
        else:
            shared = torch.zeros_like(e.gradient)
        promised = 0
        for step, gradient, blocks, total in (
            (local, self.local_gradient, self.local, self.sum),
            (shared, self.shared_gradient, self.shared, lambda values: values),
        ):
            fraction = damping if step is shared else damping[self.problem]
            scale = fraction[:, None] * blocks.diagonal(dim1=-2, dim2=-1)
            promised = promised + total((step * (scale * step - gradient)).sum(-1)) / 2
        return local, shared, promised


class Elimination(NamedTuple):
    """Frames eliminated: the inverse of their blocks times their gradient (n, P) and times ``mixed`` (n, P, S); what is left for the
    shared parameters, gradient (g, S) and Cholesky factors (g, S, S)."""

    by_gradient: Tensor
    by_shared: Tensor
    gradient: Tensor
    factors: Tensor


def _sum(values: Tensor, problem: Tensor, count: int) -> Tensor:
    if len(values) == count:  # a frame a problem
        return values
    return values.new_zeros((count, *values.shape[1:])).index_add_(0, problem, values)


def _cholesky(blocks: Tensor) -> Tensor:
    """Factors; NaN where a block isn't positive definite: a step with them is never accepted."""
    factors, info = torch.linalg.cholesky_ex(blocks)
    if info.any():
        factors[info != 0] = torch.nan
    return factors


def solve_chain(diagonal: Tensor, tie: Tensor, right: Tensor) -> Tensor:
    """x of ``diagonal_i x_i - tie_i x_{i+1} - tie_{i-1} x_{i-1} = right_i``, a symmetric positive definite block-tridiagonal system.

    By cyclic reduction: every other block is eliminated, all of them at once, which leaves a chain of half the length.

    Args:
        diagonal: (n, P, P). tie: (n - 1, P), or (n - 1, P, P) for the block at row i, column i + 1, negated. right: (n, P, k).
    """
    n = len(diagonal)
    if n == 1:
        return torch.cholesky_solve(right, _cholesky(diagonal))
    if tie.dim() == 2:
        tie = torch.diag_embed(tie)
    P, k = right.shape[1:]
    odd, even = slice(1, None, 2), slice(0, None, 2)
    count = n // 2
    # Of the odd ones: their tie to the even one before, and to the one after, which the last may not have.
    before, after = tie[0::2], tie[1::2]
    after = torch.cat([after, after.new_zeros(count - len(after), P, P)]) if len(after) < count else after
    solved = torch.cholesky_solve(torch.cat([before.transpose(1, 2), after, right[odd]], dim=-1), _cholesky(diagonal[odd]))
    by_before, by_after, by_right = solved.split([P, P, k], dim=-1)
    reduced, reduced_right = diagonal[even].clone(), right[even].clone()
    reduced[:count] -= before @ by_before
    reduced_right[:count] += before @ by_right
    following = len(reduced) - 1
    reduced[1:] -= after[:following].transpose(1, 2) @ by_after[:following]
    reduced_right[1:] += after[:following].transpose(1, 2) @ by_right[:following]
    x = torch.empty_like(right)
    x[even] = solve_chain(reduced, before[:following] @ by_after[:following], reduced_right)
    x[odd] = by_right + by_before @ x[even][:count]
    x[odd][:following] += by_after[:following] @ x[even][1:]
    return x


def minimise(
    linearize: Callable[[Tensor, Tensor, Tensor], Linearization],
    problem: Tensor,
    local: Tensor,
    shared: Tensor,
    local_prior: Prior,
    shared_prior: Prior,
    *,
    tie: Tensor | None = None,
    iterations: int = 30,
    tolerance: float = 1e-6,
    frames_at_once: int = 512,
    progress: Callable[[int], object] | None = None,
) -> Solution:
    """Minimise all problems from their starts.

    Args:
        linearize: of frames (n,) with local (n, P) and shared (n, S) parameters, a row for each.
        problem: (N,) int64, the frames' problems, 0 .. G - 1, ascending. local: (N, P). shared: (G, S).
        tie: (N - 1, P), root of the precision between neighbouring frames; 0 where there is none.
        iterations: at most. tolerance: a problem has converged when a step lowers its objective by less than this fraction.
        frames_at_once: bounds the memory of the derivatives.
        progress: called with the number of problems that are done.
    """
    G, device = len(shared), local.device
    everybody = torch.arange(G, device=device)
    tie_square = None if tie is None else tie.square()

    def evaluate(frames, of, x, y, count, ties):
        """Objective (count,) and equations at local x (n, P) and shared y (count, S)."""
        parts, S = [], y.shape[1]
        ss, gs = y.new_zeros((count, S, S)), y.new_zeros((count, S))
        for some in range(0, len(frames), frames_at_once):
            rows = slice(some, some + frames_at_once)
            line = linearize(frames[rows], x[rows], y[of[rows]])
            right, transposed = line.residuals[..., None], line.local.transpose(1, 2)
            parts.append((transposed @ line.local, transposed @ line.shared, (transposed @ right)[..., 0], line.cost))
            if S:
                transposed = line.shared.transpose(1, 2)
                ss.index_add_(0, of[rows], transposed @ line.shared)
                gs.index_add_(0, of[rows], (transposed @ right)[..., 0])
        ll, ls, gl, cost = (torch.cat(column) if len(column) > 1 else column[0] for column in zip(*parts))
        prior = local_prior.rows(frames)
        ll.diagonal(dim1=-2, dim2=-1).add_(prior.root.square())
        ss.diagonal(dim1=-2, dim2=-1).add_(shared_prior.root.square())
        gl = gl + (x - prior.mean) * prior.root.square()
        gs = gs + (y - shared_prior.mean) * shared_prior.root.square()
        cost = _sum(cost + prior.cost(x), of, count) + shared_prior.cost(y)
        if ties is not None:
            difference = x[1:] - x[:-1]
            pull = ties * difference
            gl[:-1] -= pull
            gl[1:] += pull
            diagonal = ll.diagonal(dim1=-2, dim2=-1)
            diagonal[:-1] += ties
            diagonal[1:] += ties
            cost = cost.index_add(0, of[:-1], (pull * difference).sum(-1) / 2)
        return cost, NormalEquations(of, ll, ls, ss, gl, gs, ties)

    local, shared = local.clone(), shared.clone()
    objective = local.new_full((G,), torch.nan)
    stopped = torch.full((G,), _RUNNING, device=device)
    taken = torch.zeros(G, dtype=torch.int64, device=device)
    damping, growth = local.new_full((G,), 1e-4), local.new_full((G,), 2.0)

    frames, alive, of = torch.arange(len(problem), device=device), everybody, problem
    cost, equations = evaluate(frames, of, local, shared, G, tie_square)
    objective[:] = cost
    stopped[~cost.isfinite()] = _INVALID
    done = 0
    for iteration in range(iterations + 1):
        keep = stopped[alive] == _RUNNING
        if not keep.all():
            kept_frames = keep[of].nonzero()[:, 0]
            alive = alive[keep]
            frames = frames[kept_frames]
            of = (keep.cumsum(0) - 1)[of[kept_frames]]
            equations = equations.of(kept_frames, keep.nonzero()[:, 0], of)
        if progress is not None and G - len(alive) > done:
            progress(G - len(alive) - done)
            done = G - len(alive)
        if len(alive) == 0 or iteration == iterations:
            break
        d_local, d_shared, promised = equations.step(damping[alive])
        x, y = local[frames] + d_local, shared[alive] + d_shared
        ties = None if tie_square is None else equations.tie
        trial, trial_equations = evaluate(frames, of, x, y, len(alive), ties)
        gain = objective[alive] - trial
        accepted = (gain >= 0) & trial.isfinite()
        taken[alive] += 1
        ratio = gain / promised.clamp_min(torch.finfo(gain.dtype).tiny)
        if accepted.all():
            equations = trial_equations
        else:
            equations = trial_equations.where(accepted, equations)
        in_frames = accepted[of]
        local[frames[in_frames]] = x[in_frames]
        shared[alive[accepted]] = y[accepted]
        objective[alive[accepted]] = trial[accepted]
        # Nielsen's rule: damping follows how well the step was predicted, and grows faster from refusal to refusal.
        lower = (1 - (2 * ratio.clamp(0, 1) - 1).pow(3)).clamp_min(1 / 10)
        damping[alive] = torch.where(accepted, damping[alive] * lower, damping[alive] * growth[alive]).clamp_min(1e-12)
        growth[alive] = torch.where(accepted, torch.full_like(ratio, 2.0), growth[alive] * 2)
        small = accepted & (gain <= tolerance * trial) & (promised <= 10 * tolerance * trial)
        stuck = ~accepted & ((promised <= tolerance * objective[alive]) | (damping[alive] > 1e8))
        reason = torch.full_like(alive, _RUNNING)
        reason[small | (stuck & (promised <= tolerance * objective[alive]))] = _CONVERGED
        reason[stuck & ~(promised <= tolerance * objective[alive])] = _STUCK
        stopped[alive] = reason
    stopped[stopped == _RUNNING] = _LIMIT
    if progress is not None:
        progress(G - done)

    def final() -> NormalEquations:
        return evaluate(torch.arange(len(problem), device=device), problem, local, shared, G, tie_square)[1]

    return Solution(local, shared, objective, taken, stopped, final)
