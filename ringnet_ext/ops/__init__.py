"""FLAME's operators, fused: blending, skinning and landmarks in C++ and CUDA, with exact gradients.

The same functions as readable formulas are in :mod:`ringnet_ext.ops.reference`. Common to all:

- **Types and devices.** float32 and float64, on the CPU and on CUDA devices (where built with CUDA). A model's
  constants have one type and one device, and the results have the same. Betas, pose, v_template, vertices and rotation
  vectors may be float16 or bfloat16 too, with autocast or without: they are converted to the constants' type, or to
  float32 where there are no constants.
- **Gradients** are exact, or an error is raised. The kernels compute those of betas, pose, template and vertices. The
  reference's formula computes those of constants, and forward-mode derivatives (``torch.func.jvp``); it is slower.
  ``torch.func.grad``, ``vjp``, ``jacrev`` and ``vmap`` work; ``vmap`` adds to the kernels' batch. Second derivatives
  raise.
- **Constants** (directions, weights, regressors, barycentric coordinates) are prepared from their second call on, each
  on its own, and reused while they keep their values. Changes are noticed by the next call, with one exception: a write
  of a few values, or to a CUDA device, that PyTorch's version counter doesn't count. :func:`clear_prepared` says what
  to do then. Constants that are or were trainable are never kept.
- **CUDA graphs.** Call an operator once before its capture. The graph keeps the constants that it was captured with.
- **Errors.** Wrong arguments raise ValueError or TypeError with the argument's name, what was expected and what came.
- **Reproducibility.** Results are bitwise the same run to run, and on the CPU for any number of threads
  (``torch.set_num_threads``).
- **Compilers.** ``torch.compile(fullgraph=True)`` and ``torch.export`` work, with a batch of any size. Compiled code
  that has folded constants (``freezing``, AOTInductor) makes small tensors anew for every call: on the CPU they are
  known by their values. On a CUDA device keep ``parents`` in host memory there, or every call prepares the model.
"""

from . import reference
from ._cache import clear_prepared
from .functions import (
    batch_rodrigues,
    flame_head,
    flame_landmarks,
    flame_landmarks_jacobian,
    flame_lbs,
    vertices2landmarks,
)

lbs = flame_lbs  # smplx's name for it

__all__ = [
    "batch_rodrigues", "clear_prepared", "flame_head", "flame_landmarks", "flame_landmarks_jacobian", "flame_lbs",
    "lbs", "reference", "vertices2landmarks",
]  # fmt: skip
