"""Fit heads to what is seen of them."""

from .fit import Fit, Priors, Walk, fit, fit_mesh

__all__ = ["Fit", "Priors", "Walk", "fit", "fit_mesh"]
