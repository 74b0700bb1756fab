"""What autograd sees of the operators: a forward call each, and its backward, which can't be differentiated again."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _library as operators


def differentiated(*tensors: Tensor | None) -> bool:
    """Whether autograd is to see this call. In forward mode it must, to raise instead of losing tangents."""
    if forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


class _OnlyOnce(torch.autograd.Function):
    """Identity on a gradient, made where a second derivative might be taken of it: raises when one is."""

    @staticmethod
    def forward(ctx, name, gradient, *depends_on):
        ctx.name = name
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx, *_):
        raise NotImplementedError(
            f"{ctx.name} has no second derivative; ringnet_ext.ops.reference.{ctx.name} can be differentiated any number of times"
        )


def first_derivatives(name: str, gradients: tuple, wanted: tuple, depends_on: tuple) -> tuple:
    """The gradients that were wanted, guarded against being differentiated again where grad mode is on (create_graph)."""
    gradients = tuple(g if w else None for g, w in zip(gradients, wanted))
    if not torch.is_grad_enabled():
        return gradients
    return tuple(None if g is None else _OnlyOnce.apply(name, g, *depends_on) for g in gradients)


def without_graph(operator, *arguments):
    if not torch.is_grad_enabled():  # the rule in a backward pass, where entering no_grad would be for nothing
        return operator(*arguments)
    with torch.no_grad():
        return operator(*arguments)


class BatchRodrigues(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rot_vecs):
        ctx.save_for_backward(rot_vecs)
        return operators.rodrigues_forward(rot_vecs)

    @staticmethod
    def backward(ctx, grad):
        (rot_vecs,) = ctx.saved_tensors
        result = without_graph(operators.rodrigues_backward, grad, rot_vecs)
        return first_derivatives("batch_rodrigues", (result,), (True,), (grad, rot_vecs))[0]


class FlameLbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *arguments):
        vertices, joints, state = operators.lbs_forward(*arguments, True)
        *tensors, ctx.pose2rot = arguments
        ctx.save_for_backward(*tensors, state)
        ctx.set_materialize_grads(False)
        return vertices, joints

    @staticmethod
    def backward(ctx, grad_vertices, grad_joints):
        *tensors, state = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        gradients = without_graph(
            operators.lbs_backward, grad_vertices, grad_joints, *tensors, state, ctx.pose2rot, wanted
        )
        depends_on = (grad_vertices, grad_joints, *tensors[:3])
        return *first_derivatives("flame_lbs", gradients, wanted, depends_on), *[None] * 6


class Vertices2Landmarks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, vertices, *points):
        ctx.save_for_backward(*points)
        ctx.num_vertices = vertices.shape[1]
        return operators.vertices2landmarks_forward(vertices, *points)

    @staticmethod
    def backward(ctx, grad):
        points = ctx.saved_tensors
        result = without_graph(operators.vertices2landmarks_backward, grad, *points, ctx.num_vertices)
        return *first_derivatives("vertices2landmarks", (result,), (True,), (grad,)), None, None, None


class FlameLandmarks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *arguments):
        landmarks, state = operators.landmarks_forward(*arguments, True)
        *tensors, ctx.neck_joint, ctx.pose2rot = arguments
        ctx.save_for_backward(*tensors, state)
        return landmarks

    @staticmethod
    def backward(ctx, grad):
        *tensors, state = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        gradients = without_graph(
            operators.landmarks_backward, grad, *tensors, ctx.neck_joint, state, ctx.pose2rot, wanted
        )
        return *first_derivatives("flame_landmarks", gradients, wanted, (grad, *tensors[:2])), *[None] * 13


class FlameHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *arguments):
        vertices, joints, landmarks, *states = operators.head_forward(*arguments, True)
        *tensors, ctx.neck_joint, ctx.pose2rot = arguments
        ctx.save_for_backward(*tensors, *states)
        ctx.set_materialize_grads(False)
        return vertices, joints, landmarks

    @staticmethod
    def backward(ctx, *grads):
        *tensors, landmark_state, state = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        gradients = without_graph(
            operators.head_backward, *grads, *tensors, ctx.neck_joint, landmark_state, state, ctx.pose2rot, wanted
        )
        return *first_derivatives("flame_head", gradients, wanted, (*grads, *tensors[:2])), *[None] * 13
