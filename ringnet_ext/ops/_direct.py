"""The direct way to a kernel, past the dispatcher and the checks that a prepared model has passed already.

At batch 1 Python takes as long as the kernel, so the usual call has a way of its own: a model that is prepared and hasn't
changed, betas and pose just as the kernel wants them, nobody watching. Anything else, errors included, is left to the long way,
through :mod:`._autograd` and :mod:`._library`; the first call of a model takes it, and prepares the model.
"""

from collections.abc import Callable
from typing import NamedTuple

import _ringnet_core as core
import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _autograd as autograd
from . import _library as operators
from ._prepared import Cache, prepared_head, prepared_landmarks, prepared_mesh

try:
    from torch._C import _get_tracing_state, _len_torch_dispatch_stack, _len_torch_function_stack
    from torch._C._autograd import _profiler_enabled
    from torch._C._functorch import peek_interpreter_stack
except ImportError:  # not the public interface: a PyTorch without them goes the long way
    _len_torch_dispatch_stack = lambda: 1  # noqa: E731


class Operator(NamedTuple):
    """A function of betas and pose: its name, its prepared models, and its backward operator for the long way."""

    name: str
    cache: Cache
    backward: Callable
    unwanted: tuple[bool, ...] = ()  # of the gradients that the backward operator knows beyond those of betas and pose


LBS = Operator("flame_lbs", prepared_mesh, operators.lbs_backward, (False,))
LANDMARKS = Operator("flame_landmarks", prepared_landmarks, operators.landmarks_backward)
HEAD = Operator("flame_head", prepared_head, operators.head_backward)


def watched() -> bool:
    """Whether a compiler, transform, mode, tracer or profiler wants to see the operators called."""
    return bool(
        torch.compiler.is_compiling()
        or _len_torch_dispatch_stack()
        or _len_torch_function_stack()
        or peek_interpreter_stack() is not None
        or _get_tracing_state() is not None
        or _profiler_enabled()
        or forward_ad._current_level >= 0
    )


class _Direct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, betas, pose, pose2rot, prepared, *call):
        outputs, states = prepared.model.forward(betas, pose, pose2rot, True)
        ctx.save_for_backward(betas, pose, *states)
        ctx.call = prepared, pose2rot, *call  # operator, constants, settings
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx, *gradients):
        betas, pose, *states = ctx.saved_tensors
        prepared, pose2rot, operator, constants, settings = ctx.call
        if not prepared.marks.unchanged(constants):
            raise RuntimeError(
                f"a constant of {operator.name} that is needed for its gradients has been modified by an inplace operation"
            )
        wanted, model = ctx.needs_input_grad[:2], prepared.model
        if watched() or not core.shaped_like(gradients, model.shapes(betas.shape[0]), model.like):
            arguments = *gradients, betas, pose, *constants, *settings, *states, pose2rot, (*wanted, *operator.unwanted)
            results = autograd.without_graph(operator.backward, *arguments)
        else:
            results = model.backward(gradients, betas, pose, states, pose2rot, wanted)
        return *autograd.first_derivatives(operator.name, results, wanted, (*gradients, betas, pose)), *[None] * 5


# Function.apply without its care for functorch: `watched` has seen that there is none.
_apply = super(torch.autograd.Function, _Direct).apply


def call(
    operator: Operator, betas: Tensor, pose: Tensor, constants: tuple[Tensor | None, ...], settings: tuple, pose2rot: bool
) -> tuple[Tensor, ...] | None:
    """The operator's results; None where the long way has to be taken."""
    if watched() or betas is None or pose is None:  # None would pass for a tensor that needn't be there
        return None
    prepared = operator.cache.find(constants, *settings)
    if prepared is None or not prepared.marks.constant:
        return None
    model = prepared.model
    if type(pose) is Tensor and pose.ndim > 2:
        pose = pose.flatten(1)
    if core.batch_size((betas, pose), (model.K, (3 if pose2rot else 9) * model.J), model.like) < 0:
        return None
    if torch.is_grad_enabled() and (betas.requires_grad or pose.requires_grad):
        return _apply(betas, pose, pose2rot, prepared, operator, constants, settings)
    return model.forward(betas, pose, pose2rot, False)[0]


class _DirectRodrigues(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rot_vecs):
        ctx.save_for_backward(rot_vecs)
        return _matrices(rot_vecs)

    @staticmethod
    def backward(ctx, grad):
        (rot_vecs,) = ctx.saved_tensors
        N = rot_vecs.shape[0]
        if watched() or not core.shaped_like((grad,), ((N, 3, 3),), rot_vecs) or not grad.is_contiguous():
            result = autograd.without_graph(operators.rodrigues_backward, grad, rot_vecs)
        else:
            result, run = rot_vecs.new_empty((N, 3)), _RODRIGUES[rot_vecs.dtype][1]
            run(is_cuda=rot_vecs.is_cuda, rot_vecs=rot_vecs, grad_matrices=grad, grad_rot_vecs=result)
        return autograd.first_derivatives("batch_rodrigues", (result,), (True,), (grad, rot_vecs))[0]


_RODRIGUES = {
    torch.float32: (core.rodrigues_forward_f32, core.rodrigues_backward_f32),
    torch.float64: (core.rodrigues_forward_f64, core.rodrigues_backward_f64),
}
_apply_rodrigues = super(torch.autograd.Function, _DirectRodrigues).apply


def _matrices(rot_vecs: Tensor) -> Tensor:
    matrices, run = rot_vecs.new_empty((rot_vecs.shape[0], 3, 3)), _RODRIGUES[rot_vecs.dtype][0]
    run(is_cuda=rot_vecs.is_cuda, rot_vecs=rot_vecs, matrices=matrices)
    return matrices


def rodrigues(rot_vecs: Tensor) -> Tensor | None:
    """Rotation matrices; None where the long way has to be taken."""
    if watched() or rot_vecs is None or core.batch_size((rot_vecs,), (3,), rot_vecs) < 0:
        return None
    usable = rot_vecs.is_cpu or (rot_vecs.is_cuda and core.cuda_architectures)
    if not usable or not rot_vecs.is_contiguous() or rot_vecs.dtype not in _RODRIGUES:
        return None
    return _apply_rodrigues(rot_vecs) if torch.is_grad_enabled() and rot_vecs.requires_grad else _matrices(rot_vecs)
