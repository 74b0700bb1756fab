"""The FLAME layer: coefficients and poses in, a posed head and its landmarks out."""

from __future__ import annotations

import copy
import os
from numbers import Integral
from typing import TYPE_CHECKING, NamedTuple

import _ringnet_core as core
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..ops import clear_prepared, flame_head, flame_landmarks, flame_lbs, vertices2landmarks
from .model import FlameModel

if TYPE_CHECKING:
    from .exportable import ExportableFLAME

_DTYPES = torch.float32, torch.float64
_JOINTS = 5  # global, neck, jaw, left eye, right eye

#: Widths of the poses by name: columns of the pose, in the joints' order.
POSES = {"global_pose": 3, "neck_pose": 3, "jaw_pose": 3, "eye_pose": 6}
_COEFFICIENTS = "shape", "expression", "eyelids"
_BODY = "v_template", "shapedirs", "posedirs", "J_regressor", "parents", "lbs_weights"
_EMBEDDING = "faces", "lmk_faces_idx", "lmk_bary_coords", "contour_faces_idx", "contour_bary_coords"


def _given(poses) -> str:
    return ", ".join(name for name, value in zip(POSES, poses, strict=True) if value is not None)


def _rows(values, widths, size: int, like: Tensor) -> Tensor:
    """The values (size, width) side by side, zeros for those that are None."""
    parts, missing = [], 0
    for value, width in zip(values, widths, strict=True):
        if value is None:
            missing += width
            continue
        if missing:
            parts.append(like.new_zeros((size, missing)))
        parts.append(value)
        missing = 0
    if missing or not parts:
        parts.append(like.new_zeros((size, missing)))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class FlameOutput(NamedTuple):
    """vertices (B, V, 3), joints (B, J, 3), landmarks (B, C + L, 3) or None for a model without landmarks; metres."""

    vertices: Tensor
    joints: Tensor
    landmarks: Tensor | None


class HeadBuffers(nn.Module):
    """The constants of a head model as buffers, under the names of the operators' arguments; None without landmarks."""

    v_template: Tensor
    shapedirs: Tensor
    posedirs: Tensor
    J_regressor: Tensor
    parents: Tensor
    lbs_weights: Tensor
    faces: Tensor
    lmk_faces_idx: Tensor | None
    lmk_bary_coords: Tensor | None
    contour_faces_idx: Tensor | None
    contour_bary_coords: Tensor | None


class FLAME(HeadBuffers):
    """A head model as a differentiable layer without trainable parameters.

    Args:
        model: a :class:`FlameModel`, the path of a model file, or None for the built-in head.
        shape_params, expression_params: how many of the model's directions to use at most; the attributes of the same
            names say how many are used. Those of the eyelids come on top: ``eyelid_params`` is 2 where the model has
            them.
        neck_joint: the joint that turns the head, whose yaw chooses the contour landmarks.
        dtype: float32 or float64; ``.to()`` and ``.double()`` change it later.

    All arguments of :meth:`forward` are optional and stand for zeros where missing. Their batch size is free; a batch
    of 1 is broadcast. Fewer coefficients than the layer has stand for the first ones. Lower precisions (an encoder
    under autocast) are raised to the layer's dtype; a higher one is refused.

    The last argument, ``pose``, replaces the four poses by name: (B, 3J) axis-angle or (B, J, 3, 3) rotation matrices
    of all joints. It is the way to pose a model that does not have FLAME's five joints.
    """

    def __init__(
        self,
        model: FlameModel | str | os.PathLike | None = None,
        *,
        shape_params: int = 100,
        expression_params: int = 50,
        neck_joint: int = 1,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        if model is None:
            from .builtin import builtin_head

            model = builtin_head()
        elif not isinstance(model, FlameModel):
            model = FlameModel.load(model)
        for name, count in (("shape_params", shape_params), ("expression_params", expression_params)):
            if not isinstance(count, Integral) or count < 0:
                raise ValueError(f"{name}: expected how many directions to use at most, got {count!r}")
        if dtype not in _DTYPES:
            raise TypeError(f"dtype: expected torch.float32 or torch.float64, got {dtype}")

        def buffer(name, array, dtype=dtype):
            self.register_buffer(name, None if array is None else torch.tensor(array, dtype=dtype))

        shape = torch.tensor(model.shapedirs[..., :shape_params], dtype=dtype)
        expression = torch.tensor(model.expressiondirs[..., :expression_params], dtype=dtype)
        eyelids = torch.tensor(
            model.eyeliddirs if model.eyeliddirs is not None else model.shapedirs[..., :0], dtype=dtype
        )
        self.shape_params, self.expression_params, self.eyelid_params = (
            d.shape[-1] for d in (shape, expression, eyelids)
        )
        self._folded: tuple[str, ...] = ()  # coefficients that are part of the template, see fixed()
        self.num_joints = len(model.parents)
        self.neck_joint = neck_joint
        if not 0 <= neck_joint < self.num_joints and model.landmarks is not None:
            raise ValueError(f"neck_joint: expected one of the model's {self.num_joints} joints, got {neck_joint}")

        # Laid out for the operators once: they keep what they prepare of a model for as long as these tensors live.
        buffer("v_template", model.v_template)
        self.register_buffer("shapedirs", torch.cat([shape, expression, eyelids], dim=-1))  # (V, 3, S + E + L)
        buffer("posedirs", model.posedirs.reshape(3 * len(model.posedirs), -1 if self.num_joints > 1 else 0).T.copy())
        buffer("J_regressor", model.J_regressor)
        buffer("parents", model.parents, torch.int64)
        buffer("lbs_weights", model.lbs_weights)
        buffer("faces", model.faces, torch.int64)
        landmarks = model.landmarks.arrays() if model.landmarks is not None else {}
        buffer("lmk_faces_idx", landmarks.get("static_faces_idx"), torch.int64)
        buffer("lmk_bary_coords", landmarks.get("static_bary_coords"))
        buffer("contour_faces_idx", landmarks.get("contour_faces_idx"), torch.int64)
        buffer("contour_bary_coords", landmarks.get("contour_bary_coords"))

    def forward(
        self,
        shape: Tensor | None = None,
        expression: Tensor | None = None,
        global_pose: Tensor | None = None,
        neck_pose: Tensor | None = None,
        jaw_pose: Tensor | None = None,
        eye_pose: Tensor | None = None,
        translation: Tensor | None = None,
        eyelids: Tensor | None = None,
        static_offset: Tensor | None = None,
        *,
        pose: Tensor | None = None,
    ) -> FlameOutput:
        """The posed mesh, its joints and its landmarks.

        Args:
            shape: (B, <=shape_params) coefficients.
            expression: (B, <=expression_params) coefficients.
            global_pose, neck_pose, jaw_pose: (B, 3) axis-angle, radians.
            eye_pose: (B, 6) axis-angle, left eye then right.
            translation: (B, 3) metres, added last.
            eyelids: (B, 2) coefficients of the left and the right one, 1 for shut, for a model that has their
                directions.
            static_offset: (B, V, 3) metres that a person's vertices are off the model's, in its neutral pose; joints
                follow it. (B, 0, 3) stands for none. Of one person in many poses: see :meth:`fixed`.
            pose: all joints at once instead of the four poses, see the class.

        Raises:
            ValueError, TypeError: naming the argument that has a wrong shape, batch size, dtype or device.
        """
        betas, pose, template, translation = self._arguments(
            shape, expression, global_pose, neck_pose, jaw_pose, eye_pose, translation, eyelids, static_offset, pose
        )
        if self.lmk_faces_idx is None:
            (vertices, joints), landmarks = self._mesh(betas, pose, template), None
        else:
            vertices, joints, landmarks = self._head(betas, pose, template)
        if translation is not None:
            vertices, joints = vertices + translation, joints + translation
            landmarks = None if landmarks is None else landmarks + translation
        return FlameOutput(vertices, joints, landmarks)

    def landmarks(
        self,
        shape: Tensor | None = None,
        expression: Tensor | None = None,
        global_pose: Tensor | None = None,
        neck_pose: Tensor | None = None,
        jaw_pose: Tensor | None = None,
        eye_pose: Tensor | None = None,
        translation: Tensor | None = None,
        eyelids: Tensor | None = None,
        static_offset: Tensor | None = None,
        *,
        pose: Tensor | None = None,
    ) -> Tensor:
        """The landmarks (B, C + L, 3) that :meth:`forward` returns for these arguments, without computing the mesh."""
        self._require_landmarks()
        betas, pose, template, translation = self._arguments(
            shape, expression, global_pose, neck_pose, jaw_pose, eye_pose, translation, eyelids, static_offset, pose
        )
        landmarks = self._landmarks(betas, pose, template)
        return landmarks if translation is None else landmarks + translation

    def static_landmarks(self, vertices: Tensor) -> Tensor:
        """The static landmarks (B, L, 3) of a mesh (B, V, 3)."""
        return vertices2landmarks(vertices, self.faces, *self._require_landmarks())

    @torch.no_grad()
    def fixed(
        self, shape: Tensor | None = None, expression: Tensor | None = None, static_offset: Tensor | None = None
    ) -> FLAME:
        """A layer of one person: what is given is folded into the template, where it costs nothing any more.

        What is given is no longer an argument of the new layer; what isn't stays one. The new layer is independent:
        later changes to either, of values, dtype or device, don't reach the other. It treats the identity as a
        constant, so that no gradient flows to ``shape``, ``expression`` and ``static_offset``.

        Args:
            shape: (1, <=shape_params), as for :meth:`forward`.
            expression: (1, <=expression_params).
            static_offset: (1, V, 3).
        """
        if shape is None and expression is None and static_offset is None:
            raise ValueError("shape, expression, static_offset: expected at least one of them, got none")
        like, batch = self.v_template, dict[str, int]()
        given = {
            "shape": self._checked("shape", shape, (self.shape_params,), like, batch, at_most=True),
            "expression": self._checked("expression", expression, (self.expression_params,), like, batch, at_most=True),
        }
        offset = self._checked("static_offset", static_offset, like.shape, like, batch)
        for name, size in batch.items():
            if size != 1:
                raise ValueError(f"{name}: expected one person, a batch of 1, got {size}")

        layer = copy.deepcopy(self)
        template, free = like.double(), []
        *directions, eyelids = self.shapedirs.split(
            [self.shape_params, self.expression_params, self.eyelid_params], dim=-1
        )
        for (name, value), dirs in zip(given.items(), directions, strict=True):
            if value is None:
                free.append(dirs)
            else:
                template = template + dirs[..., : value.shape[1]].double() @ value[0].double()
                setattr(layer, f"{name}_params", 0)
                layer._folded += (name,)
        if offset is not None:
            template = template + offset[0].double()
            layer._folded += ("static_offset",)
        directions = torch.cat([*free, eyelids], dim=-1)
        for name, value in (("v_template", template.to(like.dtype)), ("shapedirs", directions)):
            layer._parameters.pop(name, None)  # where the buffer was replaced by one
            layer.register_buffer(name, value)
        return layer

    def exportable(self) -> ExportableFLAME:
        """This layer in PyTorch's own operators, which ``torch.onnx.export`` and ``torch.export`` can take along.

        It takes the arguments that :meth:`forward` takes, ``pose`` too, all of one batch size and in the layer's dtype;
        the batch may be dynamic. It returns a plain tuple, without landmarks where the model has none. The results are
        the same to rounding and as differentiable, in several times the time. It shares the constants that this layer
        has now.
        """
        from .exportable import ExportableFLAME

        return ExportableFLAME(self).eval()

    def _load_from_state_dict(self, *arguments, **options):
        if torch.__future__.get_swap_module_params_on_conversion():
            # what is prepared refers to the buffers weakly, and PyTorch swaps nothing that is referred to so
            clear_prepared()
        super()._load_from_state_dict(*arguments, **options)

    def extra_repr(self) -> str:
        vertices, joints = self.lbs_weights.shape
        return (
            f"vertices={vertices}, faces={len(self.faces)}, joints={joints}, "
            f"shape_params={self.shape_params}, expression_params={self.expression_params}, "
            f"eyelid_params={self.eyelid_params}"
        )

    def _body(self, template=None):
        body = self._constants(_BODY)
        return body if template is None else [template, *body[1:]]

    def _embedding(self):
        return *self._constants(_EMBEDDING), self.neck_joint

    def _constants(self, names):
        # As attributes of a module they would take longer than the landmarks do at batch 1; but whoever has replaced a
        # buffer, by a parameter say, finds it there alone.
        buffers = self._buffers
        try:
            return [buffers[name] for name in names]
        except KeyError:
            return [getattr(self, name) for name in names]

    def _mesh(self, betas, pose, template):
        return flame_lbs(betas, pose, *self._body(template), pose2rot=pose.dim() != 4)

    def _head(self, betas, pose, template):
        return flame_head(betas, pose, *self._body(template), *self._embedding(), pose2rot=pose.dim() != 4)

    def _landmarks(self, betas, pose, template):
        return flame_landmarks(betas, pose, *self._body(template), *self._embedding(), pose2rot=pose.dim() != 4)

    def _require_landmarks(self) -> tuple[Tensor, Tensor]:
        """Triangles and barycentric coordinates of the static landmarks."""
        if self.lmk_faces_idx is None or self.lmk_bary_coords is None:
            raise ValueError("the model of this layer has no landmarks; give FlameModel a LandmarkEmbedding")
        return self.lmk_faces_idx, self.lmk_bary_coords

    def _arguments(
        self, shape, expression, global_pose, neck_pose, jaw_pose, eye_pose, translation, eyelids, static_offset, pose
    ):
        """Checks all, and returns betas (B, K), pose (B, 3J) or (B, J, 3, 3), a template (B, V, 3) or None for the
        layer's own, and translation (B, 1, 3) or None."""
        J, poses = self.num_joints, (global_pose, neck_pose, jaw_pose, eye_pose)
        if pose is not None:
            if any(value is not None for value in poses):
                raise ValueError(f"pose: expected either the pose of all joints or {_given(poses)}, got both")
            names, poses, pose_widths = ("pose",), (pose,), (3 * J,)
        elif J == _JOINTS:
            names, pose_widths = tuple(POSES), tuple(POSES.values())
        elif all(value is None for value in poses[1:]):
            names, poses, pose_widths = ("global_pose", "the rest"), (global_pose, None), (3, 3 * J - 3)
        else:
            raise ValueError(f"{_given(poses)}: these are FLAME's joints, but the model has {J}; use pose")

        values, names = (shape, expression, eyelids, translation, *poses), (*_COEFFICIENTS, "translation", *names)
        widths = (self.shape_params, self.expression_params, self.eyelid_params, 3, *pose_widths)
        like, template = self._body()[0], None
        if static_offset is not None and getattr(static_offset, "shape", ())[1:] != (0, 3):
            template = like + self._checked("static_offset", static_offset, like.shape, like, {})
        # The core sees at once whether nothing is left to do: at batch 1 the checks one by one take as long as the
        # landmarks.
        size = -1 if torch.compiler.is_compiling() else core.batch_size(values, widths, like)
        if size < 0 or (template is not None and len(template) != size):
            values, size = self._fitted(names, values, widths, like, template)
            template = None if template is None else template.expand(size, -1, -1)
        shape, expression, eyelids, translation, *poses = values
        betas = _rows((shape, expression, eyelids), widths[:3], size, like)
        if pose is None or pose.dim() == 2:
            pose = _rows(poses, pose_widths, size, like)
        else:
            (pose,) = poses
        return betas, pose, template, None if translation is None else translation[:, None]

    def _fitted(self, names, values, widths, like, template):
        """The values in the layer's dtype and as wide as they should be, and their batch size, to which all are
        expanded."""
        if like.dtype not in _DTYPES:
            raise TypeError(f"this layer is {like.dtype}, expected float32 or float64; .float() brings it back")
        batch, fitted = {} if template is None else {"static_offset": len(template)}, []
        for name, value, width in zip(names, values, widths, strict=True):
            coefficients = name in _COEFFICIENTS
            matrices = name == "pose" and isinstance(value, Tensor) and value.dim() == 4
            value = self._checked(
                name, value, (width // 3, 3, 3) if matrices else (width,), like, batch, at_most=coefficients
            )
            if coefficients and value is not None and value.shape[1] < width:
                value = pad(value, (0, width - value.shape[1]))
            fitted.append(value)
        size = 1
        for other in batch.values():  # compared, not hashed: a compiler's may be symbols
            if size != 1 and other != 1 and other != size:
                raise ValueError(f"batch sizes differ: {', '.join(f'{name} {size}' for name, size in batch.items())}")
            size = other if size == 1 else size
        return [value if value is None else value.expand(size, *value.shape[1:]) for value in fitted], size

    def _checked(self, name, value, shape, like, batch, at_most=False):
        """The value, of the layer's dtype, if it is (B, *shape) and fit for it; notes its B in batch."""
        if value is None:
            return None
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
        if name in self._folded:
            raise ValueError(
                f"{name}: expected none, as this layer's is fixed; use the layer that fixed() was called on"
            )
        if name == "eyelids" and value.shape[1:] and value.shape[1] and not shape[0]:
            raise ValueError(
                "eyelids: this model has no directions of the eyelids; FlameModel.load(..., eyelids=(LEFT, RIGHT))"
            )
        fits = value.shape[1:] == shape or (at_most and value.dim() == 2 and value.shape[1] <= shape[0])
        if not fits:
            wanted = f"{'at most ' if at_most else ''}{', '.join(map(str, shape))}"
            raise ValueError(f"{name}: expected shape (B, {wanted}), got {tuple(value.shape)}")
        if value.device != like.device:
            raise ValueError(f"{name}: expected device {like.device} like the layer, got {value.device}")
        batch[name] = value.shape[0]
        if value.dtype == like.dtype:
            return value
        if not value.is_floating_point() or torch.promote_types(value.dtype, like.dtype) != like.dtype:
            raise TypeError(f"{name}: expected {like.dtype} like the layer, got {value.dtype}")
        return value.to(like.dtype)
