"""Points on a mesh."""

import _ringnet_core as core
import torch

from . import _checks as checks
from . import reference
from ._lbs import in_rows
from ._operator import Operator
from ._prepared import rows_of_points

_FORWARD = {torch.float32: core.vertices2landmarks_forward_f32, torch.float64: core.vertices2landmarks_forward_f64}
_BACKWARD = {torch.float32: core.vertices2landmarks_backward_f32, torch.float64: core.vertices2landmarks_backward_f64}


class Points(Operator):
    name, function = "vertices2landmarks", "vertices2landmarks"
    moving, results = ("vertices",), ("landmarks",)
    constants = "Tensor faces, Tensor lmk_faces_idx, Tensor lmk_bary_coords"
    batched = "lmk_faces_idx", "lmk_bary_coords"
    reference = staticmethod(reference.vertices2landmarks)

    def __call__(self, vertices, faces, lmk_faces_idx, lmk_bary_coords):
        self.require_types(vertices, faces, lmk_faces_idx, lmk_bary_coords)
        vertices, lmk_bary_coords = checks.raised(vertices, lmk_bary_coords)
        if vertices.ndim and lmk_faces_idx.ndim == 1:
            lmk_faces_idx = lmk_faces_idx.expand(vertices.shape[0], -1)
        if vertices.ndim and lmk_bary_coords.ndim == 2:
            lmk_bary_coords = lmk_bary_coords.expand(vertices.shape[0], -1, -1)
        return self.dispatch(vertices, faces, lmk_faces_idx, lmk_bary_coords)[0]

    def check(self, vertices, faces, lmk_faces_idx, lmk_bary_coords):
        checks.require_tensor("vertices", vertices, (None, None, 3))
        checks.require_tensor("faces", faces, (None, 3), vertices, checks.INTEGERS)
        B, L = vertices.shape[0], lmk_faces_idx.shape[-1] if lmk_faces_idx.ndim else None
        checks.require_tensor("lmk_faces_idx", lmk_faces_idx, (B, L), vertices, checks.INTEGERS)
        checks.require_tensor("lmk_bary_coords", lmk_bary_coords, (B, L, 3), vertices)
        return B, L

    def check_values(self, vertices, faces, lmk_faces_idx, lmk_bary_coords):
        checks.require_range("faces", faces, 0, vertices.shape[1], "vertices")
        checks.require_range("lmk_faces_idx", lmk_faces_idx, 0, faces.shape[0], "faces")

    def shapes(self, sizes):
        return ((*sizes, 3),)

    def to_save(self, moving):
        (vertices,) = moving  # backward needs the shape alone: a tensor of it that takes no memory
        return (), (vertices.new_empty(()).expand(vertices.shape),)

    def _run(self, kernel, inputs, **arguments):
        vertices, faces, lmk_faces_idx, lmk_bary_coords = inputs
        try:
            kernel[vertices.dtype](
                is_cuda=checks.require_device(vertices, "vertices"), faces=faces.long().contiguous(),
                lmk_faces_idx=in_rows(lmk_faces_idx.long()), lmk_bary_coords=rows_of_points(lmk_bary_coords),
                **arguments,
            )  # fmt: skip
        except IndexError as error:
            raise ValueError(error) from None

    def forward_kernel(self, model, *inputs, keep):
        vertices, _, lmk_faces_idx, _ = inputs
        landmarks = vertices.new_empty((*lmk_faces_idx.shape, 3))
        self._run(_FORWARD, inputs, vertices=rows_of_points(vertices), landmarks=landmarks)
        return (landmarks,), ()

    def backward_kernel(self, model, gradients, inputs, states, wanted):
        (grad,), (vertices, *_) = gradients, inputs
        if not wanted[0]:
            return (None,)
        if grad is None:
            return (vertices.new_zeros(vertices.shape),)
        result = vertices.new_empty(vertices.shape)
        self._run(_BACKWARD, inputs, grad_landmarks=grad.contiguous(), grad_vertices=result)
        return (result,)


POINTS = Points()
