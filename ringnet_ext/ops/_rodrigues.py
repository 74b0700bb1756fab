"""Rotation matrices of axis-angle vectors."""

import functools

import _ringnet_core as core
import torch

from . import _checks as checks
from . import reference
from ._operator import Operator, apply_call, watched
from ._prepared import gradient_like

_KERNELS = {
    torch.float32: (core.rodrigues_forward_f32, core.rodrigues_backward_f32),
    torch.float64: (core.rodrigues_forward_f64, core.rodrigues_backward_f64),
}


class _Kernels:
    """The kernels for a dtype and a device, in the form of a prepared model. There is nothing to prepare."""

    def __init__(self, dtype: torch.dtype, device: torch.device):
        self.like = torch.empty(0, dtype=dtype, device=device)
        self.cuda = checks.require_device(self.like, "rot_vecs")
        self._forward, self._backward = _KERNELS[dtype]

    def shapes(self, N):
        return ((N, 3, 3),)

    def forward(self, rot_vecs, keep):
        matrices = rot_vecs.new_empty(rot_vecs.shape[0], 3, 3)
        self._forward(is_cuda=self.cuda, rot_vecs=rot_vecs.contiguous(), matrices=matrices)
        return (matrices,), ()

    def backward(self, gradients, rot_vecs, states, wanted):
        (grad,), (result,) = gradients, (gradient_like(rot_vecs, wanted[0]),)
        if grad is None:
            return (result if result is None else result.zero_(),)
        if result is not None:
            self._backward(
                is_cuda=self.cuda, rot_vecs=rot_vecs.contiguous(), grad_matrices=grad.contiguous(), grad_rot_vecs=result
            )
        return (result,)


kernels = functools.cache(_Kernels)


class Rodrigues(Operator):
    name, function = "rodrigues", "batch_rodrigues"
    moving, constants, results = ("rot_vecs",), "", ("matrices",)
    reference = staticmethod(reference.batch_rodrigues)

    def __call__(self, rot_vecs):
        if not watched() and type(rot_vecs) in (torch.Tensor, torch.nn.Parameter) and rot_vecs.dtype in _KERNELS:
            if rot_vecs.is_cpu or (rot_vecs.is_cuda and core.cuda_architectures):
                model = kernels(rot_vecs.dtype, rot_vecs.device)
                if core.batch_size((rot_vecs,), (3,), model.like) >= 0:
                    if torch.is_grad_enabled() and rot_vecs.requires_grad:
                        return apply_call(self, (model, (3,), model.like), (), (), rot_vecs)[0]
                    return model.forward(rot_vecs, False)[0][0]
        self.require_types(rot_vecs)
        return self.dispatch(*checks.raised(rot_vecs))[0]

    def check(self, rot_vecs):
        checks.require_tensor("rot_vecs", rot_vecs, (None, 3))
        return (rot_vecs.shape[0],)

    def shapes(self, sizes):
        return ((sizes[0], 3, 3),)

    def prepared(self, rot_vecs):
        sizes = self.check(rot_vecs)
        return kernels(rot_vecs.dtype, rot_vecs.device), sizes

    def forward_kernel(self, model, rot_vecs, keep):
        return model.forward(rot_vecs, keep)

    def backward_kernel(self, model, gradients, inputs, states, wanted):
        return model.backward(gradients, *inputs, states, wanted)


RODRIGUES = Rodrigues()
