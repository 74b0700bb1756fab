"""Parameters of meshes in the model's topology."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ..flame import FLAME
from .fit import fit
from .parameters import Priors
from .result import Fit


def fit_mesh(flame: FLAME, vertices: Tensor, *, sigma: float = 2e-5, priors: Priors | None = None, **options) -> Fit:
    """Parameters of meshes in the model's topology: shape, expression, all poses and translation, a mesh a person.

    Computed in float64: the vertices come back to a few micrometres where the model can make them at all.

    Args:
        vertices: (N, V, 3) metres, in any frame.
        sigma: standard deviation of a vertex's coordinates, metres; more for scans that were registered with some
            error.
        priors: None for wide ones, standard deviation 1 for everything.
        options: as of :func:`fit`, such as ``person`` and ``roles``.
    """
    V = len(flame.v_template)
    if not isinstance(vertices, Tensor) or vertices.dim() != 3 or vertices.shape[1:] != (V, 3):
        got = tuple(vertices.shape) if isinstance(vertices, Tensor) else type(vertices).__name__
        raise ValueError(f"vertices: expected shape (N, {V}, 3), got {got}")
    exact = copy.deepcopy(flame).double()
    corner = torch.zeros(V, dtype=torch.int64, device=flame.faces.device)  # of the last triangle that has the vertex
    corner[flame.faces.flatten()] = torch.arange(flame.faces.numel(), device=corner.device)
    used = flame.faces.flatten()[corner] == torch.arange(V, device=corner.device)
    coordinates = torch.nn.functional.one_hot(corner[used] % 3, 3).double()
    roles = {"neck_pose": "image", "eye_pose": "image"} | dict(options.pop("roles", None) or {})
    wide = Priors(expression=1.0, jaw_pose=1.0, neck_pose=1.0, eye_pose=1.0)
    return fit(
        exact,
        vertices[:, used],
        points=(corner[used] // 3, coordinates),
        sigma=sigma,
        priors=priors or wide,
        roles=roles,
        **options,
    )
