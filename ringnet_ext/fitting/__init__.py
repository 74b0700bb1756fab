"""Fit heads to what is seen of them."""

from .fit import fit
from .meshes import fit_mesh
from .parameters import Priors
from .refine import refine
from .result import Fit
from .track import Walk

__all__ = ["Fit", "Priors", "Walk", "fit", "fit_mesh", "refine"]
