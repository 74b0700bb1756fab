"""Linear blend skinning: a posed mesh and its joints."""

from typing import NamedTuple

import _ringnet_core as core
import torch
from torch import Tensor

from . import _checks as checks
from . import reference
from ._operator import Operator, apply_call, watched
from ._prepared import (
    _LBS,
    PreparedLbs,
    PreparedMesh,
    gradient_like,
    joint_tree,
    prepared_lbs,
    prepared_mesh,
    rows_of_points,
)


class Body(NamedTuple):
    """A model's constants, in the order of the functions' arguments."""

    v_template: Tensor
    shapedirs: Tensor
    posedirs: Tensor
    J_regressor: Tensor
    parents: Tensor
    lbs_weights: Tensor


def in_rows(t: Tensor) -> Tensor:
    """The tensor with contiguous rows. They may have any distance from each other, 0 where expanded."""
    return t if t.shape[1] <= 1 or t.stride(1) == 1 else t.contiguous()


class ModelOperator(Operator):
    """An operator on a model. Betas and pose move; in some the template moves too."""

    constants = ", ".join(f"Tensor {name}" for name in Body._fields)

    def __call__(self, betas: Tensor, pose: Tensor, constants: tuple, settings: tuple, pose2rot: bool) -> tuple:
        if (pose2rot is True or pose2rot is False) and betas is not None and pose is not None and not watched():
            prepared = self.cache.find(constants, *settings)
            if prepared is not None and prepared.marks.constant:
                model = prepared.model
                rows = pose.flatten(1) if type(pose) is Tensor and pose.ndim > 2 else pose
                widths, like = (model.K, (3 if pose2rot else 9) * model.J), model.like
                if core.batch_size((betas, rows), widths, like) >= 0:
                    if torch.is_grad_enabled() and (betas.requires_grad or rows.requires_grad):
                        return apply_call(self, (model, widths, like), constants, (*settings, pose2rot), betas, rows)
                    return model.forward(betas, rows, pose2rot, False)[0]
        self.require_types(betas, pose, *constants, *settings, pose2rot)
        body = Body(*constants[:6])
        betas, pose, v_template, _ = checks.raised(betas, pose, body.v_template, body.shapedirs)
        if pose.ndim > 2:
            pose = pose.flatten(1)
        if betas.ndim == 2 and pose.ndim == 2 and betas.shape[0] != pose.shape[0]:  # a batch of one fits any other
            if betas.shape[0] == 1:
                betas = betas.expand(pose.shape[0], -1)
            elif pose.shape[0] == 1:
                pose = pose.expand(betas.shape[0], -1)
        if v_template.ndim == 3 and v_template.shape[0] == 1:
            v_template = v_template[0]
        return self.dispatch(betas, pose, v_template, *constants[1:], *settings, pose2rot)


class Lbs(ModelOperator):
    name, function = "lbs", "flame_lbs"
    moving, constants = ("betas", "pose", "v_template"), ModelOperator.constants.partition(", ")[2]
    settings = "bool pose2rot"
    results, states = ("vertices", "joints"), ("state",)
    reference = staticmethod(reference.flame_lbs)
    cache = prepared_mesh

    def check(self, betas, pose, v_template, *rest):
        *constants, pose2rot = rest
        V, K, J = checks.lbs_constants(*constants)
        return checks.lbs_call(betas, pose, v_template, constants[0], V, K, J, pose2rot), V, K, J

    def check_values(self, *inputs):
        joint_tree((inputs[6],), inputs[6].device)

    def shapes(self, sizes):
        B, V, _, J = sizes
        return (B, V, 3), (B, J, 3)

    def state_sizes(self, sizes, cuda, dtype, keep):
        return (_LBS[dtype].state_size(cuda, *map(int, sizes[1:]), keep),)

    def prepared(self, betas, pose, v_template, *rest):
        """The model with its template's joints, and the sizes. The cache is asked once."""
        *constants, pose2rot = rest
        # A template that requires grad is never kept: an optimiser may write to it and leave no trace.
        if v_template.ndim == 3 or v_template.requires_grad:
            model: PreparedLbs = prepared_lbs(tuple(constants))
            B = checks.lbs_call(betas, pose, v_template, model.like, *model.sizes, pose2rot)
            return (model, model.joint_template(v_template)), (B, *model.sizes)
        mesh: PreparedMesh = prepared_mesh((v_template, *constants))
        B = checks.lbs_call(betas, pose, v_template, mesh.like, *mesh.lbs.sizes, pose2rot)
        return (mesh.lbs, mesh.joint_template), (B, *mesh.lbs.sizes)

    def to_save(self, moving):
        own = len(moving) > 2 and (moving[2].ndim == 3 or moving[2].requires_grad)
        return (moving, ()) if own else (moving[:2], moving[2:])

    def forward_kernel(self, prepared, betas, pose, v_template, *rest, keep):
        model, joint_template = prepared
        vertices, joints, state = model.forward(
            in_rows(betas), in_rows(pose), rows_of_points(v_template), joint_template, rest[-1], keep
        )
        return (vertices, joints), (state,)

    def backward_kernel(self, prepared, gradients, inputs, states, wanted):
        (model, joint_template), (betas, pose, _, *constants, pose2rot) = prepared, inputs
        results = [gradient_like(t, w) for t, w in zip(inputs, wanted, strict=False)]
        grad_v_template, B = results[2], betas.shape[0]
        grad_joint_template = None if grad_v_template is None else betas.new_empty(B, model.sizes[2], 3)
        model.backward(
            *gradients, in_rows(betas), in_rows(pose), joint_template, *states, pose2rot, *results, grad_joint_template
        )
        if grad_v_template is not None:  # through the rest joints
            regressor = constants[2].T
            with torch.autocast(model.device.type, enabled=False):
                if grad_v_template.ndim == 2:
                    grad_v_template.addmm_(regressor, grad_joint_template.sum(0))
                else:
                    grad_v_template.baddbmm_(regressor.expand(B, *regressor.shape), grad_joint_template)
        return results


LBS = Lbs()
