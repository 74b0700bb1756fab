"""The landmarks of a posed mesh: alone, without the mesh, or together with it."""

from . import _checks as checks
from . import reference
from ._cache import Cache
from ._lbs import LBS, ModelOperator, in_rows
from ._operator import differentiated, watched
from ._points import POINTS
from ._prepared import _LANDMARKS, _LBS, joint_tree, prepared_head, prepared_landmarks

_checked_values = Cache(checks.landmark_values)


class LandmarkOperator(ModelOperator):
    constants = (
        f"{ModelOperator.constants}, Tensor faces, Tensor lmk_faces_idx, Tensor lmk_bary_coords, "
        "Tensor? contour_faces_idx, Tensor? contour_bary_coords"
    )
    settings = "int neck_joint, bool pose2rot"

    def _sizes(self, *constants) -> tuple:
        """V, K, J, L and C."""
        *model, neck_joint = constants
        V, K, J = checks.lbs_constants(*model[:5])
        return V, K, J, *checks.landmark_constants(model[0], tuple(model[5:]), neck_joint, J)

    def check(self, betas, pose, v_template, *rest):
        *constants, pose2rot = rest
        V, K, J, L, C = self._sizes(*constants)
        checks.require_tensor("v_template", v_template, (V, 3), constants[0])
        return checks.lbs_call(betas, pose, v_template, constants[0], V, K, J, pose2rot), V, K, J, L, C

    def check_values(self, *inputs):
        _, _, _, shapedirs, _, _, parents, _, faces, lmk_faces_idx, _, contour_faces_idx, *_ = inputs
        joint_tree((parents,), parents.device)
        _checked_values((faces, lmk_faces_idx, contour_faces_idx), shapedirs.shape[0])

    def prepared(self, betas, pose, *rest):
        *constants, neck_joint, pose2rot = rest
        model = self.cache(tuple(constants), neck_joint)
        V = constants[0].shape[0]
        B = checks.lbs_call(betas, pose, constants[0], model.like, V, model.K, model.J, pose2rot)
        L, C = constants[7].shape[0], 0 if constants[9] is None else constants[9].shape[1]
        return model, (B, V, model.K, model.J, L, C)

    def forward_kernel(self, model, betas, pose, *rest, keep):
        return model.forward(in_rows(betas), in_rows(pose), rest[-1], keep)

    def backward_kernel(self, model, gradients, inputs, states, wanted):
        return model.backward(gradients, in_rows(inputs[0]), in_rows(inputs[1]), states, inputs[-1], wanted)

    def dispatch(self, *inputs):
        v_template = inputs[2]
        if v_template.ndim == 2 and not differentiated((v_template,)):
            return super().dispatch(*inputs)
        # A template that moves: the landmarks are points on the mesh.
        betas, pose, _, *constants, neck_joint, pose2rot = inputs
        self._sizes(*constants, neck_joint)
        if not watched():
            self.check_values(*inputs)
        vertices, joints = LBS.dispatch(betas, pose, v_template, *constants[:5], pose2rot)
        faces, *embedding = constants[5:]
        index, bary = reference.landmark_points(pose, constants[3], *embedding, neck_joint, pose2rot)
        return self._of_head(vertices, joints, POINTS.dispatch(vertices, faces, index, bary)[0])


class Landmarks(LandmarkOperator):
    name, function = "landmarks", "flame_landmarks"
    moving, results, states = ("betas", "pose"), ("landmarks",), ("state",)
    reference = staticmethod(reference.flame_landmarks)
    cache = prepared_landmarks

    def shapes(self, sizes):
        B, _, _, _, L, C = sizes
        return ((B, C + L, 3),)

    def state_sizes(self, sizes, cuda, dtype, keep):
        return (_LANDMARKS[dtype].state_size(cuda, *map(int, sizes[2:]), keep),)

    def _of_head(self, vertices, joints, landmarks):
        return (landmarks,)


class Head(LandmarkOperator):
    name, function = "head", "flame_head"
    moving, results, states = ("betas", "pose"), ("vertices", "joints", "landmarks"), ("landmark_state", "state")
    reference = staticmethod(reference.flame_head)
    cache = prepared_head

    def shapes(self, sizes):
        B, V, _, J, L, C = sizes
        return (B, V, 3), (B, J, 3), (B, C + L, 3)

    def state_sizes(self, sizes, cuda, dtype, keep):
        _, V, K, J, L, C = map(int, (0, *sizes[1:]))  # the batch may be a symbol
        landmark_state_size = _LANDMARKS[dtype].state_size(cuda, K, J, L, C, True) if cuda and keep else 0
        return landmark_state_size, _LBS[dtype].state_size(cuda, V, K, J, keep)

    def _of_head(self, vertices, joints, landmarks):
        return vertices, joints, landmarks


LANDMARKS, HEAD = Landmarks(), Head()
