"""How far landmarks are from where the heads say, once these are fitted: an estimate of their sigma."""

from __future__ import annotations

import torch
from torch import Tensor

from .levenberg_marquardt import Prior, Solution
from .problem import LandmarkResiduals


def noise(
    residuals: LandmarkResiduals,
    solution: Solution,
    values: Tensor,
    local: Prior,
    shared: Prior,
    common: int,
    tie: Tensor | None,
) -> float:
    """Standard deviation of what is left, in units of what it was said to be: from how many numbers there are, less
    those that the parameters took up.

    Args:
        residuals, solution: of the fit; values (N, Q): all parameters there.
        local, shared: priors, of a frame's and of the shared parameters. common: of the shared parameters, how many all
            people have in common. tie: (N, P), root of the precision between a frame and the next.
    """
    count = int((residuals.root_weight > 0).sum()) * residuals.target.shape[-1]
    left = count - _told(solution, local, shared, common, tie)
    return float((residuals.squares(values).double().sum() / max(1.0, left)).sqrt())


def _told(solution: Solution, local: Prior, shared: Prior, common: int, tie: Tensor | None) -> float:
    """How many numbers the data have told: the trace of the inverse Hessian times the data's part of it; the rest of
    the Hessian are the priors and ties."""
    covariance = solution.covariance()
    told = torch.zeros((), dtype=torch.float64, device=solution.local.device)
    precision = None if tie is None else tie.double().square()
    for block in covariance.blocks:
        frames, variance = block.frames, block.local.diagonal(dim1=1, dim2=2)
        told += (1 - variance * local.root[frames].double().square()).sum()
        if precision is not None and block.beside is not None:
            after, before = precision[frames], torch.where(frames[:, None] > 0, precision[frames - 1], 0)
            told -= (variance * (after + before) - 2 * after * block.beside).sum()
    variance = covariance.shared.diagonal(dim1=1, dim2=2) * shared.root.double().square()
    own = variance.shape[1] - common
    told += (1 - variance[:, :own]).sum()
    if common:
        told += common - variance[:, own:].sum()  # of every person a part of the prior
    return float(told)
