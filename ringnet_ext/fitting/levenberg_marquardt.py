"""Levenberg-Marquardt for many independent least-squares problems at once, on the CPU and on a GPU.

A problem is a person or a video. It has frames (images), each with parameters of its own (``local``), and parameters
that its frames share (``shared``). Its objective is half the sum of

    |residuals of frame n|^2  +  |(local_n - mean) root|^2  +  |(local_n - local_{n+1}) tie_n|^2  over its frames  +
    |(shared - mean) root|^2

with independent Gaussian priors (mean, and root of the precision) and, in a video, ties between neighbouring frames.
Every problem has its own damping, acceptance and convergence, and leaves the batch when it is done. Frames are
eliminated first (a Schur complement), so that the cost is linear in their number: one by one where nothing ties them,
otherwise by cyclic reduction, which halves the chain of frames again and again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

#: Why a problem ended: the values of Solution.stopped are indices.
INVALID = "not a number"
REASONS = ("converged", "iteration limit", "no step decreases the objective", INVALID)
_CONVERGED, _LIMIT, _STUCK, _INVALID = range(4)
_RUNNING = -1


class Linearization(NamedTuple):
    """Of n frames: cost (n,), half the squared residuals, after the robust function where there is one; residuals (n,
    M) and their derivatives with respect to the local (n, M, P) and shared (n, M, S) parameters, all times the root of
    the residual's weight."""

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
    """local (N, P), shared (G, S), and of each problem its objective, iterations and reason to stop, an index of
    REASONS, (G,).

    equations() has the normal equations at the solution, in double, for the posterior.
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

    local (n, P, P), mixed (n, P, S), shared (g, S, S); local_gradient (n, P), shared_gradient (g, S); tie (n - 1, P):
    precision between frame i and i + 1, or None where there are no ties.
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
    """Frames eliminated: the inverse of their blocks times their gradient (n, P) and times ``mixed`` (n, P, S); what is
    left for the shared parameters, gradient (g, S) and Cholesky factors (g, S, S)."""

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
    """x of ``diagonal_i x_i - tie_i x_{i+1} - tie_{i-1} x_{i-1} = right_i``, a symmetric positive definite
    block-tridiagonal system.

    By cyclic reduction: every other block is eliminated, all of them at once, which leaves a chain of half the length.

    Args:
        diagonal: (n, P, P). tie: (n - 1, P), or (n - 1, P, P) for the block at row i, column i + 1, negated. right: (n,
            P, k).
    """
    if len(diagonal) == 1:
        return torch.cholesky_solve(right, _cholesky(diagonal))
    reduced = _reduce_chain(diagonal, tie, right)
    even = solve_chain(reduced.diagonal, reduced.tie, reduced.right)
    odd, following = len(reduced.by_before), len(even) - 1
    x = torch.empty_like(right)
    x[0::2] = even
    x[1::2] = reduced.by_right + reduced.by_before @ even[:odd]
    x[1::2][:following] += reduced.by_after[:following] @ even[1:]
    return x


class _Reduced(NamedTuple):
    """A chain without its odd blocks; what these are in terms of the even ones before and after them, and of the right
    side."""

    diagonal: Tensor
    tie: Tensor
    right: Tensor
    factors: Tensor
    by_before: Tensor
    by_after: Tensor
    by_right: Tensor


def _reduce_chain(diagonal: Tensor, tie: Tensor, right: Tensor) -> _Reduced:
    if tie.dim() == 2:
        tie = torch.diag_embed(tie)
    P, k = right.shape[1:]
    before, after = tie[0::2], tie[1::2]
    if len(after) < len(before):  # nothing follows the last odd one
        after = torch.cat([after, after.new_zeros(1, P, P)])
    factors = _cholesky(diagonal[1::2])
    solved = torch.cholesky_solve(torch.cat([before.transpose(1, 2), after, right[1::2]], dim=-1), factors)
    by_before, by_after, by_right = solved.split([P, P, k], dim=-1)
    even, even_right = diagonal[0::2].clone(), right[0::2].clone()
    odd, following = len(before), len(even) - 1
    even[:odd] -= before @ by_before
    even_right[:odd] += before @ by_right
    even[1:] -= after[:following].transpose(1, 2) @ by_after[:following]
    even_right[1:] += after[:following].transpose(1, 2) @ by_right[:following]
    return _Reduced(even, before[:following] @ by_after[:following], even_right, factors, by_before, by_after, by_right)


def chain_inverse(diagonal: Tensor, tie: Tensor) -> tuple[Tensor, Tensor]:
    """Blocks of the inverse of :func:`solve_chain`'s matrix: on the diagonal (n, P, P), and beside it, row i and column
    i + 1, (n - 1, P, P)."""
    n, P = len(diagonal), diagonal.shape[1]
    if n == 1:
        return torch.cholesky_inverse(_cholesky(diagonal)), diagonal.new_zeros(0, P, P)
    reduced = _reduce_chain(diagonal, tie, diagonal.new_zeros(n, P, 0))
    even, beside = chain_inverse(reduced.diagonal, reduced.tie)
    odd, following = len(reduced.by_before), len(even) - 1
    # x_o = by_before x_(o - 1) + by_after x_(o + 1) + noise of covariance D_o^-1.
    with_before = even[:odd] @ reduced.by_before.transpose(1, 2)  # of (o - 1, o)
    with_after = torch.zeros_like(with_before)  # of (o, o + 1)
    with_before[:following] += beside @ reduced.by_after[:following].transpose(1, 2)
    with_after[:following] = reduced.by_before[:following] @ beside + reduced.by_after[:following] @ even[1:]
    blocks, next_to = torch.empty_like(diagonal), diagonal.new_empty(n - 1, P, P)
    blocks[0::2] = even
    blocks[1::2] = (
        torch.cholesky_inverse(reduced.factors)
        + reduced.by_before @ with_before
        + reduced.by_after @ with_after.transpose(1, 2)
    )
    next_to[0::2], next_to[1::2] = with_before, with_after[: n - 1 - odd]
    return blocks, next_to


class Covariance(NamedTuple):
    """Inverse Hessian at a solution: of each frame (n, P, P), frame and shared (n, P, S), shared (g, S, S)."""

    local: Tensor
    mixed: Tensor
    shared: Tensor


def covariance(equations: NormalEquations) -> Covariance:
    """Of the Gaussian that the normal equations describe."""
    e = equations.eliminated(equations.shared_gradient.new_zeros(len(equations.shared_gradient)))
    if equations.tie is None:
        local = torch.cholesky_inverse(_cholesky(equations.local))
    else:
        local = chain_inverse(equations.local, equations.tie)[0]
    shared = torch.cholesky_inverse(e.factors) if e.factors.numel() else e.factors
    mixed = -e.by_shared @ shared[equations.problem]
    return Covariance(local - mixed @ e.by_shared.transpose(1, 2), mixed, shared)


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
        iterations: at most. tolerance: a problem has converged when a step lowers its objective by less than this
            fraction.
        frames_at_once: bounds the memory of the derivatives.
        progress: called with the number of problems that are done.
    """
    G, device = len(shared), local.device
    everybody = torch.arange(G, device=device)
    tie_square = None if tie is None else tie.square()

    def evaluate(frames, problems, of, x, y, ties, exact=False):
        """Objective (g,) and equations of some problems, at local x (n, P) and shared y (g, S); exact: with sums in
        double."""
        parts, (count, S), common = [], y.shape, shared_prior.rows(problems)
        dtype = torch.float64 if exact else y.dtype
        ss, gs = y.new_zeros((count, S, S), dtype=dtype), y.new_zeros((count, S), dtype=dtype)
        for some in range(0, max(1, len(frames)), frames_at_once):  # once where there are none
            rows = slice(some, some + frames_at_once)
            line = linearize(frames[rows], x[rows], y[of[rows]])
            if exact:
                line = Linearization(*(value.double() for value in line))
            right, transposed = line.residuals[..., None], line.local.transpose(1, 2)
            parts.append((transposed @ line.local, transposed @ line.shared, (transposed @ right)[..., 0], line.cost))
            if S:
                transposed = line.shared.transpose(1, 2)
                ss.index_add_(0, of[rows], transposed @ line.shared)
                gs.index_add_(0, of[rows], (transposed @ right)[..., 0])
        ll, ls, gl, cost = (torch.cat(column) if len(column) > 1 else column[0] for column in zip(*parts))
        prior = local_prior.rows(frames)
        if exact:
            x, y, ties = x.double(), y.double(), None if ties is None else ties.double()
        ll.diagonal(dim1=-2, dim2=-1).add_(prior.root.square())
        ss.diagonal(dim1=-2, dim2=-1).add_(common.root.square())
        gl = gl + (x - prior.mean) * prior.root.square()
        gs = gs + (y - common.mean) * common.root.square()
        cost = _sum(cost + prior.cost(x), of, count) + common.cost(y)
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
    cost, equations = evaluate(frames, alive, of, local, shared, tie_square)
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
        trial, trial_equations = evaluate(frames, alive, of, x, y, ties)
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
        return evaluate(
            torch.arange(len(problem), device=device), everybody, problem, local, shared, tie_square, exact=True
        )[1]

    return Solution(local, shared, objective, taken, stopped, final)
