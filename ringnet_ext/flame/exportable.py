"""The layer in PyTorch's own operators, for what can't take ours along: ONNX and other runtimes."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

from ..ops import reference
from .layer import _BODY, _COEFFICIENTS, _EMBEDDING, _JOINTS, POSES, HeadBuffers, _given, _rows


class ExportableFLAME(HeadBuffers):
    """What :meth:`ringnet_ext.flame.FLAME.exportable` returns: it takes what the layer takes and returns what the layer
    returns.

    Those of the arguments, all optional, that are given when it is exported are the inputs of the exported model. They
    have one batch size, which may be dynamic, and the module's dtype.
    """

    def __init__(self, layer):
        super().__init__()
        for name in (*_BODY, *_EMBEDDING):
            self.register_buffer(name, getattr(layer, name))
        self.shape_params, self.expression_params = layer.shape_params, layer.expression_params
        self.eyelid_params = layer.eyelid_params
        self.neck_joint = layer.neck_joint

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
        pose: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """vertices (B, V, 3), joints (B, J, 3) and, for a model that has them, landmarks (B, C + L, 3); metres.

        Args:
            shape: (B, <=shape_params) coefficients.
            expression: (B, <=expression_params) coefficients.
            global_pose, neck_pose, jaw_pose: (B, 3) axis-angle, radians.
            eye_pose: (B, 6) axis-angle, left eye then right.
            translation: (B, 3) metres, added last.
            eyelids: (B, 2) coefficients, for a model that has their directions.
            static_offset: (B, V, 3) metres that vertices are off the model's, in its neutral pose.
            pose: all joints at once instead of the four poses, (B, 3J) axis-angle or (B, J, 3, 3) rotation matrices.

        Raises:
            ValueError: naming the argument that has a wrong shape.
        """
        joints, like, poses = len(self.parents), self.v_template, (global_pose, neck_pose, jaw_pose, eye_pose)
        if pose is not None and any(value is not None for value in poses):
            raise ValueError(f"pose: expected either the pose of all joints or {_given(poses)}, got both")
        if joints != _JOINTS and any(value is not None for value in poses[1:]):
            raise ValueError(f"{_given(poses)}: these are FLAME's joints, but the model has {joints}; use pose")
        pose2rot = pose is None or pose.dim() != 4
        _require("pose", pose, (3 * joints,) if pose2rot else (joints, 3, 3))
        for name, value, width in (("translation", translation, 3), *zip(POSES, poses, POSES.values(), strict=True)):
            _require(name, value, (width,))
        if static_offset is not None and static_offset.shape[1:] == (0, 3):  # as in FlameParams without one
            static_offset = None
        _require("static_offset", static_offset, tuple(like.shape))
        widths = (self.shape_params, self.expression_params, self.eyelid_params)
        coefficients = [
            _padded(name, value, width)
            for name, value, width in zip(_COEFFICIENTS, (shape, expression, eyelids), widths, strict=True)
        ]

        given = [value for value in (*coefficients, translation, static_offset, pose, *poses) if value is not None]
        size = given[0].shape[0] if given else 1
        betas = _rows(coefficients, widths, size, like)
        if pose is None:
            pose = _rows(poses[:1], (3,), size, like) if joints != _JOINTS else _rows(poses, POSES.values(), size, like)
            pose = pad(pose, (0, 3 * joints - pose.shape[1]))

        template = like if static_offset is None else like + static_offset
        model = (template, self.shapedirs, self.posedirs, self.J_regressor, self.parents, self.lbs_weights)
        outputs: tuple[Tensor, ...]
        if self.lmk_faces_idx is None or self.lmk_bary_coords is None:
            outputs = reference.flame_lbs(betas, pose, *model, pose2rot=pose2rot)
        else:
            static, contour = (
                (self.faces, self.lmk_faces_idx, self.lmk_bary_coords),
                (self.contour_faces_idx, self.contour_bary_coords),
            )
            outputs = reference.flame_head(betas, pose, *model, *static, *contour, self.neck_joint, pose2rot=pose2rot)
        return outputs if translation is None else tuple(points + translation[:, None] for points in outputs)


def _require(name: str, value: Tensor | None, shape: tuple[int, ...]) -> None:
    if value is not None and value.shape[1:] != shape:
        raise ValueError(f"{name}: expected shape (B, {', '.join(map(str, shape))}), got {tuple(value.shape)}")


def _padded(name: str, value: Tensor | None, width: int) -> Tensor | None:
    if value is None:
        return None
    if value.dim() != 2 or value.shape[1] > width:
        raise ValueError(f"{name}: expected shape (B, at most {width}), got {tuple(value.shape)}")
    return pad(value, (0, width - value.shape[1]))
