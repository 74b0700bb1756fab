"""Parameters of heads as the projects of the field store them, and the ways between them.

========  ====================================================================  ===============  ======================
source    what there is                                                         frame            camera
========  ====================================================================  ===============  ======================
FLAME     shape 300, expression 100, pose 15 (root, neck, jaw, eyes)            y up             none
DECA      shape 100, exp 50, pose 6 (root, jaw), cam 3                          y up             x = s (X + tx),
                                                                                                 y = -s (Y + ty)
RingNet   cam 3, pose 6 (root, jaw), shape 100, expression 50, as 159 numbers   y down: upright  x = s (X + tx),
                                                                                is (pi, 0, 0)    y = s (Y + ty)
========  ====================================================================  ===============  ======================
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from .flame.files import read_file, write_arrays
from .flame.pickles import numbers
from .model import HeadParams
from .rotations import axis_angle_from_matrix, matrix_from_axis_angle

_POSES = {"global_pose": 3, "neck_pose": 3, "jaw_pose": 3, "eye_pose": 6}


class FlameParams(NamedTuple):
    """The arguments of :meth:`FLAME.forward`: ``flame(*params)`` is the head. All (B, n), y up; metres, radians."""

    shape: Tensor
    expression: Tensor
    global_pose: Tensor
    neck_pose: Tensor
    jaw_pose: Tensor
    eye_pose: Tensor
    translation: Tensor

    @classmethod
    def make(cls, **given: Tensor) -> FlameParams:
        """From some of the fields; the others are zeros (and no coefficients at all). A batch of 1 is broadcast."""
        unknown = given.keys() - set(cls._fields)
        if unknown or not given:
            got = ", ".join(sorted(unknown)) or "nothing"
            raise ValueError(f"expected some of {', '.join(cls._fields)}, got {got}")
        widths = _POSES | {"translation": 3}
        for name, value in given.items():
            if value.dim() != 2 or (name in widths and value.shape[1] != widths[name]):
                raise ValueError(f"{name}: expected shape (B, {widths.get(name, 'n')}), got {tuple(value.shape)}")
        like = next(iter(given.values()))
        sizes = {len(value) for value in given.values()} - {1} or {1}
        if len(sizes) > 1:
            raise ValueError(f"batch sizes differ: {', '.join(f'{n} {len(value)}' for n, value in given.items())}")
        (batch,) = sizes
        values = [given.get(name, like.new_zeros(1, widths.get(name, 0))) for name in cls._fields]
        return cls(*(value.expand(batch, -1) for value in values))

    def resized(self, shape: int, expression: int) -> FlameParams:
        """With that many coefficients: padded with zeros, or cut off."""
        return self._replace(shape=_resized(self.shape, shape), expression=_resized(self.expression, expression))

    def to_full(self) -> Tensor:
        """(B, 415): 300 shape, 100 expression, 15 pose. The translation isn't part of it."""
        return torch.cat(self.resized(300, 100)[:6], dim=1)

    @classmethod
    def from_full(cls, vector: Tensor) -> FlameParams:
        """From (B, 415)."""
        if vector.dim() != 2 or vector.shape[1] != 415:
            raise ValueError(f"vector: expected shape (B, 415), got {tuple(vector.shape)}")
        names = ("shape", "expression", *_POSES)
        return cls.make(**dict(zip(names, vector.split([300, 100, *_POSES.values()], dim=1))))

    def to_deca(self, camera: Tensor) -> dict[str, Tensor]:
        """DECA's code dictionary with `shape`, `exp`, `pose` and `cam`, from a DECA camera (B, 3).

        Raises ValueError where the neck, the eyes or the translation are not zero: DECA has none.
        """
        self._require_zero("DECA", "neck_pose", "eye_pose", "translation")
        sized = self.resized(100, 50)
        pose = torch.cat([self.global_pose, self.jaw_pose], dim=1)
        return {"shape": sized.shape, "exp": sized.expression, "pose": pose, "cam": camera}

    @classmethod
    def from_deca(cls, codes: Mapping[str, Tensor]) -> tuple[FlameParams, Tensor]:
        """Parameters and camera (B, 3) of DECA's code dictionary; what else is in it (texture, light) is left alone."""
        missing = {"shape", "exp", "pose", "cam"} - codes.keys()
        if missing:
            raise ValueError(f"DECA's codes: expected shape, exp, pose and cam; {', '.join(sorted(missing))} missing")
        pose = codes["pose"]
        if pose.dim() != 2 or pose.shape[1] != 6:
            raise ValueError(f"pose: expected shape (B, 6), got {tuple(pose.shape)}")
        params = cls.make(
            shape=codes["shape"], expression=codes["exp"], global_pose=pose[:, :3], jaw_pose=pose[:, 3:]
        )
        return params, codes["cam"]

    def to_ringnet(self, camera: Tensor, root: Tensor) -> HeadParams:
        """RingNet's parameters of the head that a DECA camera (B, 3) sees; ``to_vector()`` of them is the 159-vector.

        Args:
            camera: (B, 3), DECA's.
            root: (B, 3) or (1, 3), the joint about which the head turns: ``flame(shape, expression).joints[:, 0]``.

        Raises ValueError where the neck, the eyes or the translation are not zero: RingNet has none.
        """
        self._require_zero("RingNet", "neck_pose", "eye_pose", "translation")
        sized = self.resized(100, 50)
        camera = _turned_over(camera, root)
        return HeadParams(camera, _half_turn(self.global_pose), self.jaw_pose, sized.shape, sized.expression)

    @classmethod
    def from_ringnet(cls, params: HeadParams, root: Tensor) -> tuple[FlameParams, Tensor]:
        """The inverse of :meth:`to_ringnet`: parameters and DECA camera."""
        upright = cls.make(
            shape=params.shape,
            expression=params.expression,
            global_pose=_half_turn(params.global_pose),
            jaw_pose=params.jaw_pose,
        )
        return upright, _turned_over(params.camera, root)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the fields as `.npz` or `.safetensors`."""
        write_arrays(path, {name: value.detach().cpu().numpy() for name, value in self._asdict().items()})

    def _require_zero(self, who, *names):
        held = [name for name in names if getattr(self, name).any()]
        if held:
            raise ValueError(f"{', '.join(held)}: {who} has no such parameters, expected zeros")


def read_parameters(path: str | os.PathLike, dtype: torch.dtype = torch.float32) -> FlameParams:
    """Parameters in a file, y up: ours, RingNet's .npy or .npz, DECA's .npz or .mat codes, or FLAME's 415 numbers.

    A dictionary in a .npy is read without running anything. Cameras are left out.
    Raises ValueError, naming the file, for what cannot be read.
    """
    path = os.fspath(path)
    content = _read_mat(path) if path.endswith(".mat") else read_file(path)
    try:
        params = _recognised(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return FlameParams(*(value.to(dtype) for value in params))


def _recognised(content) -> FlameParams:
    if isinstance(content, np.ndarray):
        return FlameParams.from_full(_tensor("the array", content))
    if not isinstance(content, dict):
        raise ValueError(f"expected a dictionary or 415 numbers, got {type(content).__name__}")
    names = [name for name in content if name in {*FlameParams._fields, "pose", "exp"}]
    tensors = {name: _tensor(name, content[name]) for name in names}
    if "exp" in tensors:
        return FlameParams.from_deca(tensors | {"cam": torch.zeros(1, 3)})[0]
    if "pose" not in tensors:
        return FlameParams.make(**tensors)
    pose = tensors.pop("pose")  # RingNet's: in its frame, but the head is the same one
    if pose.shape[1] != 6:
        raise ValueError(f"pose: expected shape (B, 6), got {tuple(pose.shape)}")
    return FlameParams.make(global_pose=_half_turn(pose[:, :3]), jaw_pose=pose[:, 3:], **tensors)


def _read_mat(path):
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError:
        raise ValueError(f"{path}: .mat files need SciPy (pip install scipy)") from None
    try:
        return loadmat(path)
    except (MatReadError, ValueError, TypeError, NotImplementedError) as error:
        raise ValueError(f"{path}: not a .mat file that can be read: {error}") from error


def _tensor(name, value):
    array = numbers(name, value)
    if array.dtype.kind not in "fiu" or not 1 <= array.ndim <= 2:
        raise ValueError(f"{name}: expected numbers of shape (n,) or (B, n), got {array.dtype} of shape {array.shape}")
    return torch.tensor(np.atleast_2d(array), dtype=torch.float64)


def _resized(values, count):
    return pad(values, (0, count - values.shape[1]))  # a negative padding cuts off


def _half_turn(global_pose):
    """The rotation followed by a half turn about x, which leads from either frame to the other."""
    flip = torch.tensor([1.0, -1.0, -1.0], dtype=global_pose.dtype, device=global_pose.device)
    return axis_angle_from_matrix(flip[:, None] * matrix_from_axis_angle(global_pose))


def _turned_over(camera, root):
    # The head turns about its root joint, not about the origin: y -> root_y - (y - root_y), and the image must stay.
    scale, x, y = camera.unbind(1)
    return torch.stack([scale, x, -y - 2 * root[:, 1]], dim=1)
