"""FLAME's operators, fused: blending, skinning and landmarks in C++ and CUDA, with exact gradients.

The same functions as readable formulas are in :mod:`ringnet_ext.ops.reference`. Common to all:

- float32 and float64, CPU and CUDA (where built with it): a model's constants are of one type and on one device, and so
  are the results. What changes from call to call (betas, pose, v_template, vertices, rotation vectors) may be float16
  or bfloat16 too, with
  autocast or without: it is raised to the constants' type, or to float32 where there are none.
- Gradients are exact, or an error is raised. By betas, pose, template and vertices the kernels give them; by constants
  that require grad, and in forward mode (``torch.func.jvp``), the reference's formula does, slower.
  ``torch.func.grad``, ``vjp``, ``jacrev`` and ``vmap`` work, with the transform's elements in the kernels' batch.
  Second derivatives raise.
- Constants (directions, weights, regressors, barycentric coordinates) are prepared when they come back, each on its
  own, and reused while they stay as they are. Changes are noticed, whoever makes them, but for a few values written
  past PyTorch's version counter, and such
  writes on a CUDA device: these need :func:`clear_prepared`, which says more. What is or was trainable is never kept.
- CUDA graphs: call an operator once before it is captured; a graph goes on with the constants that it was captured
  with.
- Wrong arguments raise ValueError or TypeError with the argument's name, what was expected and what came.
- Results are bitwise the same run to run, and on the CPU for any number of threads (``torch.set_num_threads``).
- ``torch.compile(fullgraph=True)`` and ``torch.export`` work, with a batch of any size.
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
    "batch_rodrigues", "clear_prepared", "flame_head", "flame_landmarks", "flame_landmarks_jacobian", "flame_lbs", "lbs", "reference",
    "vertices2landmarks",
]  # fmt: skip
