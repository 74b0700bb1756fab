"""Landmarks with all their derivatives at once, as least-squares solvers need them."""

from torch import Tensor

from . import reference
from ._cache import Cache
from ._landmarks import LandmarkOperator
from ._operator import Operator, _has_tangent, differentiated
from ._prepared import PreparedLandmarks, prepared_landmarks

_NO_DERIVATIVES = (
    "flame_landmarks_jacobian has no derivatives of its own; ringnet_ext.ops.reference.flame_landmarks can be "
    "differentiated twice"
)


class PreparedJacobian:
    """A model prepared for its landmarks and their derivatives."""

    def __init__(self, *constants):
        *tensors, neck_joint = constants
        self.landmarks: PreparedLandmarks = prepared_landmarks(tuple(tensors), neck_joint)
        self.K, self.J, self.like = self.landmarks.K, self.landmarks.J, self.landmarks.like

    def shapes(self, B: int) -> tuple[tuple[int, ...], ...]:
        return self.landmarks.shapes(B)

    def forward(self, betas: Tensor, pose: Tensor, pose2rot: bool, keep: bool) -> tuple[tuple, tuple]:
        """(landmarks, d_betas, d_pose), and no states. Expects checked arguments with contiguous rows."""
        model, B, N = self.landmarks, betas.shape[0], self.landmarks.points
        landmarks, d_betas = betas.new_empty(B, N, 3), betas.new_empty(B, N, 3, self.K)
        d_pose = betas.new_empty(B, N, 3, (3 if pose2rot else 9) * self.J)
        size = model.core.jacobian_workspace_size(model.cuda, B, *model.landmark_sizes)
        model.core.jacobian(
            betas=betas, pose=pose, axis_angle=pose2rot, landmarks=landmarks, d_betas=d_betas, d_pose=d_pose,
            workspace=betas.new_empty(size) if size else None,
        )  # fmt: skip
        return (landmarks, d_betas, d_pose), ()


class Jacobian(LandmarkOperator):
    name, function = "landmarks_jacobian", "flame_landmarks_jacobian"
    moving, results, states = ("betas", "pose"), ("landmarks", "d_betas", "d_pose"), ()
    reference = staticmethod(reference.flame_landmarks_jacobian)
    cache = Cache(PreparedJacobian)

    def shapes(self, sizes):
        B, _, K, _, L, C, pose_size = sizes
        return (B, C + L, 3), (B, C + L, 3, K), (B, C + L, 3, pose_size)

    def check(self, betas, pose, *rest):
        return *super().check(betas, pose, *rest), pose.shape[1]

    def prepared(self, betas, pose, *rest):
        model, sizes = super().prepared(betas, pose, *rest)
        return model, (*sizes, pose.shape[1])

    def dispatch(self, *inputs):
        self.check(*inputs)
        return Operator.dispatch(self, *inputs)

    def _forward_autograd(self, *arguments):
        for name, value in zip(self.names, arguments, strict=False):
            if _has_tangent((value,)) or (name not in self.moving and differentiated((value,))):
                raise NotImplementedError(f"{name}: {_NO_DERIVATIVES}; detach it")
        return super()._forward_autograd(*arguments)

    def backward_kernel(self, model, gradients, inputs, states, wanted):
        raise NotImplementedError(_NO_DERIVATIVES)


JACOBIAN = Jacobian()
