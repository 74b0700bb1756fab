"""FLAME_PyTorch's names on this project's decoder.

Code written for ``from flame_pytorch import FLAME, get_config`` runs with
``from ringnet_ext.flame_pytorch import FLAME, get_config``: same configuration, same forward, same two results.
What is different, and meant to be:

- any batch size; ``batch_size`` of the configuration is not needed
- no argument of forward has to be given, and fewer coefficients than configured stand for the first ones
- contour landmarks are on the visible side in any frame; ``original_contour`` gives the original's choice, which is
  right only where y points down (RingNet's frame) and the head isn't pitched
- ``--flag False`` on the command line means False
- model files are read without chumpy, and without running what is in them
- the coefficients that the configuration leaves out are not computed, so there are no ``shape_betas`` and
  ``expression_betas`` to hold their zeros, and ``shapedirs`` holds the directions that are used
- ``eye_pose``, ``neck_pose`` and ``transl`` are (1, n), for any batch, where the original's are (batch_size, n)

State dicts have the original's names, and those of the original load: directions that the configuration leaves out are
dropped, and a default that is the same for the whole batch becomes one row. A state dict that doesn't fit is refused by
PyTorch.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from .flame import FLAME as _Layer
from .flame import FlameModel, FlameOutput, LandmarkEmbedding
from .ops import batch_rodrigues, lbs, vertices2landmarks
from .ops.reference import contour_rows_of_yaw


def _boolean(text: str) -> bool:
    """True or False from their usual spellings; argparse's own `type=bool` takes every one of them for True."""
    values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False, "": False}
    try:
        return values[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"expected True or False, got {text!r}") from None


def get_config(arguments: list[str] | None = None) -> argparse.Namespace:
    """FLAME_PyTorch's configuration from command line arguments; None for those of the program."""
    parser = argparse.ArgumentParser(description="FLAME model")

    def add(name, default, text):
        kind = _boolean if isinstance(default, bool) else type(default)
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{text} [{default}]")

    add("flame_model_path", "./model/generic_model.pkl", "FLAME model file, of any year")
    add("static_landmark_embedding_path", "./model/flame_static_embedding.pkl", "embedding of the 51 static landmarks")
    add("dynamic_landmark_embedding_path", "./model/flame_dynamic_embedding.npy", "embedding of the 17 contour points")
    add("shape_params", 100, "number of shape coefficients")
    add("expression_params", 50, "number of expression coefficients")
    add("pose_params", 6, "number of pose parameters: 3 of the root, 3 of the jaw")
    add("use_face_contour", True, "whether the landmarks begin with those of the contour")
    add("use_3D_translation", True, "whether forward adds its transl; RingNet has False")
    add("optimize_eyeballpose", True, "for the caller: whether to optimise the eyes' pose; RingNet has False")
    add("optimize_neckpose", True, "for the caller: whether to optimise the neck's pose; RingNet has False")
    add("num_worker", 4, "for the caller: data loading processes")
    add("batch_size", 8, "for the caller: forward takes any")
    add("ring_margin", 0.5, "for the caller: margin of the ring loss, in squared coefficients")
    add("ring_loss_weight", 1.0, "for the caller: weight of the ring loss")
    add("original_contour", False, "whether to choose the contour by the original's formula")
    return parser.parse_args(arguments)


class OriginalContour(_Layer):
    """The layer with the contour row that FLAME_PyTorch chooses: that of minus the second Euler angle of the head."""

    sign = -1

    def _head(self, betas, pose, template):
        batch = len(pose)
        faces_idx, bary_coords = self.lmk_faces_idx.expand(batch, -1), self.lmk_bary_coords.expand(batch, -1, -1)
        if self.contour_faces_idx is not None:
            with torch.no_grad():
                root, neck = batch_rodrigues(pose[:, :6].reshape(-1, 3)).view(-1, 2, 3, 3).unbind(1)
                head = root @ neck
                angle = self.sign * torch.atan2(-head[:, 2, 0], torch.hypot(head[:, 0, 0], head[:, 1, 0]))
                row = contour_rows_of_yaw(torch.rad2deg(angle))
            faces_idx = torch.cat([self.contour_faces_idx[row], faces_idx], dim=1)
            bary_coords = torch.cat([self.contour_bary_coords[row], bary_coords], dim=1)
        vertices, joints = lbs(betas, pose, *self._body(template))
        return vertices, joints, vertices2landmarks(vertices, self.faces, faces_idx, bary_coords)

    def _landmarks(self, betas, pose, template):
        return self._head(betas, pose, template)[2]


class Decoder(nn.Module):
    """What FLAME_PyTorch's and DECA's layers have in common: a layer of ours, and its buffers under their names, as
    attributes and in state dicts."""

    _NAMES = {
        "faces_tensor": "faces", "dynamic_lmk_faces_idx": "contour_faces_idx",
        "dynamic_lmk_bary_coords": "contour_bary_coords",
    } | {
        name: name for name in ("v_template", "shapedirs", "posedirs", "J_regressor", "parents", "lbs_weights",
                                "lmk_faces_idx", "lmk_bary_coords")
    }  # fmt: skip
    _UNUSED = "shape_betas", "expression_betas"  # zeros for what is left out, in FLAME_PyTorch's state dicts

    def __init__(self, layer: _Layer):
        super().__init__()
        self.decoder = layer
        for name, size in (("eye_pose", 6), ("neck_pose", 3)):  # what stands in for a missing argument
            self.register_parameter(name, nn.Parameter(layer.v_template.new_zeros(1, size), requires_grad=False))
        if layer.contour_faces_idx is not None:
            chain, joint = [], layer.neck_joint
            while joint != -1:
                chain.append(joint)
                joint = int(layer.parents[joint])
            self.register_buffer("neck_kin_chain", torch.tensor(chain))
        self.register_state_dict_post_hook(_under_their_names)
        self.register_load_state_dict_pre_hook(_from_their_names)

    def posed(self, shape, expression, pose, neck_pose=None, eye_pose=None, translation=None) -> FlameOutput:
        """The layer's output, `pose` (B, 6) being that of the root and the jaw."""
        if pose is not None and (pose.dim() != 2 or pose.shape[1] != 6):
            raise ValueError(f"pose_params: expected shape (B, 6), got {tuple(pose.shape)}")
        return self.decoder(
            shape,
            expression,
            None if pose is None else pose[:, :3],
            self.neck_pose if neck_pose is None else neck_pose,
            None if pose is None else pose[:, 3:],
            self.eye_pose if eye_pose is None else eye_pose,
            translation,
        )

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.v_template.dtype

    def __getattr__(self, name):
        if name in self._NAMES:
            return getattr(self.decoder, self._NAMES[name])
        return super().__getattr__(name)


def _under_their_names(module: Decoder, state: dict, prefix: str, _) -> None:
    """Of a state dict that is being made: our layer's buffers under the names of the original."""
    for theirs, ours in module._NAMES.items():
        key = f"{prefix}decoder.{ours}"
        if key in state:
            state[prefix + theirs] = state.pop(key)


def _from_their_names(module: Decoder, state: dict, prefix: str, *_) -> None:
    """Of a state dict that is to be loaded: the reverse, and what the original has more of."""
    for theirs, ours in module._NAMES.items():
        if prefix + theirs in state:
            state[f"{prefix}decoder.{ours}"] = state.pop(prefix + theirs)
    for name in module._UNUSED:
        if prefix + name in state and not state[prefix + name].any():
            del state[prefix + name]
    layer, key = module.decoder, f"{prefix}decoder.shapedirs"
    if key in state and state[key].dim() == 3 and state[key].shape[2] == 400 != layer.shapedirs.shape[2]:
        shape, expression = state[key].split([300, 100], dim=2)
        state[key] = torch.cat([shape[..., : layer.shape_params], expression[..., : layer.expression_params]], dim=2)
    for name in ("eye_pose", "neck_pose", "transl"):
        rows = state.get(prefix + name)
        if rows is not None and rows.dim() == 2 and len(rows) > 1 and (rows == rows[:1]).all():
            state[prefix + name] = rows[:1]


class FLAME(Decoder):
    """FLAME_PyTorch's layer. `config` is what :func:`get_config` returns, or any object with the same attributes; its
    `flame_model_path` may be None for the built-in head with its own landmarks."""

    NECK_IDX = 1

    def __init__(self, config):
        model = config.flame_model_path
        if model is not None:
            paths = [config.static_landmark_embedding_path]
            if config.use_face_contour:
                paths.append(config.dynamic_landmark_embedding_path)
            model = FlameModel.load(model, LandmarkEmbedding.load(*paths))
        layer = OriginalContour if getattr(config, "original_contour", False) else _Layer
        layer = layer(model, shape_params=config.shape_params, expression_params=config.expression_params)
        if not config.use_face_contour:
            layer.contour_faces_idx = layer.contour_bary_coords = None
        super().__init__(layer)
        self.use_face_contour, self.use_3D_translation = config.use_face_contour, config.use_3D_translation
        self.batch_size = getattr(config, "batch_size", 1)
        self.register_parameter("transl", nn.Parameter(layer.v_template.new_zeros(1, 3), requires_grad=False))

    def forward(
        self,
        shape_params: Tensor | None = None,
        expression_params: Tensor | None = None,
        pose_params: Tensor | None = None,
        neck_pose: Tensor | None = None,
        eye_pose: Tensor | None = None,
        transl: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Vertices (B, V, 3) and landmarks (B, 68, 3), or (B, 51, 3) without the contour; metres.

        shape_params, expression_params (B, n) coefficients; pose_params (B, 6) axis-angle of the root and the jaw;
        neck_pose (B, 3), eye_pose (B, 6); transl (B, 3), added where `use_3D_translation` is on.
        """
        translation = (self.transl if transl is None else transl) if self.use_3D_translation else None
        output = self.posed(shape_params, expression_params, pose_params, neck_pose, eye_pose, translation)
        return output.vertices, output.landmarks

    @property
    def faces(self):
        """Triangles (F, 3), a numpy array."""
        return self.decoder.faces.cpu().numpy()
