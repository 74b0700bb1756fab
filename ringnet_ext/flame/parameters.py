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

EMOCA's and SMIRK's are as DECA's; smplx, FLAME_PyTorch, VHAP, GaussianAvatars and metrical-tracker have FLAME's with
names of their own, which :func:`read_parameters` knows.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ..files.arrays import read_file, write_arrays
from ..files.pickles import numbers
from ..geometry.rotations import axis_angle_from_matrix, matrix_from_axis_angle, matrix_from_six
from .layer import POSES


class HeadParams(NamedTuple):
    """What RingNet says of an image, in the order of its 159-vector (camera 0:3, pose 3:9, shape 9:109, ...).

    camera (B, 3): s in 1/metre, tx, ty in metres. global_pose, jaw_pose (B, 3): axis-angle, radians, in RingNet's
    frame, where an upright head has the global pose (pi, 0, 0). shape (B, S), expression (B, E): coefficients.
    """

    camera: Tensor
    global_pose: Tensor
    jaw_pose: Tensor
    shape: Tensor
    expression: Tensor

    def to_vector(self) -> Tensor:
        """(B, 9 + S + E); (B, 159) for RingNet's 100 shape and 50 expression coefficients."""
        return torch.cat(self, dim=1)

    @classmethod
    def from_vector(cls, vector: Tensor, shape_params: int = 100) -> HeadParams:
        """From (B, 9 + S + E). Raises ValueError for another shape."""
        if vector.dim() != 2 or vector.shape[1] < 9 + shape_params:
            raise ValueError(f"vector: expected (B, >= {9 + shape_params}), got {tuple(vector.shape)}")
        sizes = [3, 3, 3, shape_params, vector.shape[1] - 9 - shape_params]
        return cls(*vector.split(sizes, dim=1))


_WIDTHS = POSES | {"translation": 3}
_EYELIDS, _VERTEX = 2, 3  # where there are any

#: What the fields of :class:`FlameParams` are called elsewhere.
_SYNONYMS = {
    "shape": ("betas", "shape_params", "shapecode", "identity"),
    "expression": ("exp", "expr", "expression_params", "expcode"),
    "global_pose": ("global_orient", "rotation", "rot_params"),
    "neck_pose": ("neck_pose_params", "neck"),
    "jaw_pose": ("jaw_pose_params", "jaw_params", "jaw"),
    "eye_pose": ("eyes_pose", "eye_pose_params", "eyes"),
    "translation": ("transl", "trans_params"),
    "eyelids": ("eyelid_params",),
    "static_offset": (),
}
_FIELD = {name: field for field, names in _SYNONYMS.items() for name in (field, *names)}
_SEVERAL_POSES = ("pose", "pose_params", "posecode", "full_pose")
_BEYOND_DECA = "neck_pose", "eye_pose", "translation", "eyelids", "static_offset"
_ONE_EYE = ("leye_pose", "reye_pose")  # smplx's
_PARAMETERS = {*_FIELD, *_SEVERAL_POSES, *_ONE_EYE}

#: What files hold besides, and what is left out of them: cameras, and what a head looks like and was seen in.
_LEFT_OUT = frozenset(
    "cam camera cam_params opencv focal_length img_size K RT "  # cameras
    "tex texcode tex_params tex_extra light lights lightcode light_params lit sh albedo albedos detail detailcode "
    "image images mask masks name timestep_id n_processed_frames frame_id global_step "
    # of the posed head, which follows from the rest
    "verts trans_verts landmarks landmarks2d landmarks3d kpt7 kpt68 "
    # ours
    "about camera_translation focal landmarks_3d neutral_landmarks pixel_centres projection square shape_std "
    "fps residuals score seen size".split()
)


class FlameParams(NamedTuple):
    """The arguments of :meth:`FLAME.forward`: ``flame(*params)`` is the head. All (B, n), y up; metres, radians.

    eyelids is (B, 2), or (B, 0) for none; static_offset (B, V, 3), or (B, 0, 3) for none.
    """

    shape: Tensor
    expression: Tensor
    global_pose: Tensor
    neck_pose: Tensor
    jaw_pose: Tensor
    eye_pose: Tensor
    translation: Tensor
    eyelids: Tensor
    static_offset: Tensor

    @classmethod
    def make(cls, **given: Tensor) -> FlameParams:
        """From some of the fields; the others are zeros (and no coefficients at all). A batch of 1 is broadcast."""
        unknown = given.keys() - set(cls._fields)
        if unknown or not given:
            got = ", ".join(sorted(unknown)) or "nothing"
            raise ValueError(f"expected some of {', '.join(cls._fields)}, got {got}")
        wanted: int | str
        for name, value in given.items():
            if name == "static_offset":
                wanted, fits = "V, 3", value.dim() == 3 and value.shape[2] == _VERTEX
            elif name == "eyelids":
                wanted, fits = _EYELIDS, value.dim() == 2 and value.shape[1] in (0, _EYELIDS)
            else:
                wanted = _WIDTHS.get(name, "n")
                fits = value.dim() == 2 and wanted in ("n", value.shape[1])
            if not fits:
                raise ValueError(f"{name}: expected shape (B, {wanted}), got {tuple(value.shape)}")
        like = next(iter(given.values()))
        sizes = {len(value) for value in given.values()} - {1} or {1}
        if len(sizes) > 1:
            raise ValueError(f"batch sizes differ: {', '.join(f'{n} {len(value)}' for n, value in given.items())}")
        (batch,) = sizes
        missing = {name: like.new_zeros(1, _WIDTHS.get(name, 0)) for name in cls._fields}
        missing["static_offset"] = like.new_zeros(1, 0, _VERTEX)
        values = [given.get(name, missing[name]) for name in cls._fields]
        return cls(*(value.expand(batch, *value.shape[1:]) for value in values))

    def resized(self, shape: int, expression: int, vertices: int | None = None) -> FlameParams:
        """With that many coefficients, and a static offset of that many vertices: padded with zeros, or cut off.

        VHAP and GaussianAvatars have 5143 vertices, FLAME's 5023 and then teeth. None leaves the offset as it is, and
        an offset that isn't there stays so.
        """
        offset = self.static_offset
        if vertices is not None and offset.shape[1]:
            offset = pad(offset, (0, 0, 0, vertices - offset.shape[1]))
        return self._replace(
            shape=_resized(self.shape, shape), expression=_resized(self.expression, expression), static_offset=offset
        )

    def to_full(self) -> Tensor:
        """(B, 415): 300 shape, 100 expression, 15 pose. The translation isn't part of it.

        Raises ValueError where eyelids, a static offset or further coefficients are not zero: the 415 numbers have
        none.
        """
        self._require_zero("the vector", "eyelids", "static_offset")
        return torch.cat(self._held("the vector", 300, 100)[:6], dim=1)

    @classmethod
    def from_full(cls, vector: Tensor) -> FlameParams:
        """From (B, 415)."""
        if vector.dim() != 2 or vector.shape[1] != 415:
            raise ValueError(f"vector: expected shape (B, 415), got {tuple(vector.shape)}")
        names = ("shape", "expression", *POSES)
        return cls.make(**dict(zip(names, vector.split([300, 100, *POSES.values()], dim=1), strict=True)))

    def to_deca(self, camera: Tensor) -> dict[str, Tensor]:
        """DECA's code dictionary with `shape`, `exp`, `pose` and `cam`, from a DECA camera (B, 3).

        Raises ValueError where the neck, the eyes, the translation, the eyelids, the static offset or further
        coefficients are not zero: DECA has none.
        """
        self._require_zero("DECA", *_BEYOND_DECA)
        sized = self._held("DECA", 100, 50)
        pose = torch.cat([self.global_pose, self.jaw_pose], dim=1)
        return {"shape": sized.shape, "exp": sized.expression, "pose": pose, "cam": camera}

    @classmethod
    def from_deca(cls, codes: Mapping[str, Tensor]) -> tuple[FlameParams, Tensor]:
        """Parameters and camera (B, 3) of DECA's code dictionary; texture, detail, light and images in it are left
        alone.

        Raises ValueError where something is missing, or where there is more.
        """
        missing = {"shape", "exp", "pose", "cam"} - codes.keys()
        if missing:
            raise ValueError(f"DECA's codes: expected shape, exp, pose and cam; {', '.join(sorted(missing))} missing")
        more = codes.keys() - {"shape", "exp", "pose", "cam"} - _LEFT_OUT
        if more:
            raise ValueError(f"DECA's codes: expected shape, exp, pose and cam, got {_listed(sorted(more))} too")
        pose = codes["pose"]
        if pose.dim() != 2 or pose.shape[1] != 6:
            raise ValueError(f"pose: expected shape (B, 6), got {tuple(pose.shape)}")
        params = cls.make(shape=codes["shape"], expression=codes["exp"], global_pose=pose[:, :3], jaw_pose=pose[:, 3:])
        return params, codes["cam"]

    def to_ringnet(self, camera: Tensor, root: Tensor) -> HeadParams:
        """RingNet's parameters of the head that a DECA camera (B, 3) sees; ``to_vector()`` of them is the 159-vector.

        Args:
            camera: (B, 3), DECA's.
            root: (B, 3) or (1, 3), the joint about which the head turns: ``flame(shape, expression).joints[:, 0]``.

        Raises ValueError where the neck, the eyes, the translation, the eyelids, the static offset or further
        coefficients are not zero: RingNet has none.
        """
        self._require_zero("RingNet", *_BEYOND_DECA)
        sized = self._held("RingNet", 100, 50)
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

    def to_vhap(self, vertices: int) -> dict[str, np.ndarray]:
        """The arrays of VHAP's and GaussianAvatars' ``flame_param.npz``, float32, of one person's frames: 300 shape and
        100 expression coefficients, and a static offset of that many vertices.

        Raises ValueError where eyelids or further coefficients are not zero, which VHAP has none of, or where shape or
        static offset, which it has once for all frames, are not the same in all rows.
        """
        self._require_zero("VHAP", "eyelids")
        for name in ("shape", "static_offset"):
            rows = getattr(self, name)
            if len(rows) == 0 or (rows != rows[:1]).any():
                raise ValueError(
                    f"{name}: VHAP has one for all frames of a person, expected the same in all rows, "
                    f"got {'different ones' if len(rows) else 'no rows'}"
                )
        sized = self._held("VHAP", 300, 100).resized(300, 100, vertices)
        offset = sized.static_offset[:1] if sized.static_offset.shape[1] else torch.zeros(1, vertices, 3)
        arrays = {
            "shape": sized.shape[0],
            "expr": sized.expression,
            "rotation": sized.global_pose,
            "neck_pose": sized.neck_pose,
            "jaw_pose": sized.jaw_pose,
            "eyes_pose": sized.eye_pose,
            "translation": sized.translation,
            "static_offset": offset,
        }
        return {name: value.detach().cpu().float().numpy() for name, value in arrays.items()}

    def save(self, path: str | os.PathLike) -> None:
        """Writes the fields as `.npz` or `.safetensors`; bfloat16, which NumPy doesn't have, as float32."""
        fields = {name: value.detach().cpu() for name, value in self._asdict().items()}
        write_arrays(path, {n: (v.float() if v.dtype == torch.bfloat16 else v).numpy() for n, v in fields.items()})

    def _held(self, who, shape, expression):
        """With as many coefficients as somebody has, where no others are lost."""
        for name, count in (("shape", shape), ("expression", expression)):
            if getattr(self, name)[:, count:].any():
                raise ValueError(
                    f"{name}: {who} has {count} coefficients, expected zeros after them; "
                    f"resized({shape}, {expression}) cuts them off"
                )
        return self.resized(shape, expression)

    def _require_zero(self, who, *names):
        held = [name for name in names if getattr(self, name).any()]
        if held:
            raise ValueError(f"{', '.join(held)}: {who} has no such parameters, expected zeros")


def read_parameters(path: str | os.PathLike, dtype: torch.dtype = torch.float32) -> FlameParams:
    """Parameters in a file or in a folder of ``.npy`` files, y up: ours, or those of another project, told by their
    names.

    ====================  ========================================================================================
    RingNet               ``.npy``, ``.npz`` or ``.json`` with pose, shape, expression; its 159 numbers
    DECA, EMOCA, SMIRK    shape, exp, pose, or shape_params, expression_params, pose_params, jaw_params, eyelid_params,
                          or shapecode, expcode, posecode: ``.npz``, ``.npy``, ``.mat``, a folder of ``.npy``. The
                          ``.mat`` of DECA's demo has vertices and no parameters
    VHAP                  ``flame_param.npz`` with static_offset, GaussianAvatars' too; ``tracked_flame_params.npz``
    metrical-tracker      ``.frame``: the head stands still, its camera moves
    MICA                  ``identity.npy``
    smplx                 betas, expression, global_orient, neck_pose, jaw_pose, leye_pose, reye_pose, transl
    FLAME_PyTorch         shape_params, expression_params, pose_params, neck_pose, eye_pose, transl
    FLAME                 its 415 numbers
    ====================  ========================================================================================

    Nothing in a file is run. Cameras, textures, lights, images and landmarks are left out; anything else that isn't
    known is refused by name. Raises ValueError, naming the file, for what cannot be read.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        content = _read_folder(path)
    else:
        content = _read_mat(path) if path.endswith(".mat") else read_file(path)
    try:
        params = _recognised(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return FlameParams(*(_to(value, dtype) for value in params))


def _to(value, dtype):
    """`value` in another dtype; rows that are one row of memory stay so."""
    if len(value) > 1 and value.stride(0) == 0:
        return value[:1].to(dtype).expand_as(value)
    return value.to(dtype)


def _read_folder(path):
    names = sorted(name for name in os.listdir(path) if name.endswith(".npy"))
    if not names:
        raise ValueError(f"{path}: a folder without .npy files; expected shape.npy, exp.npy and so on")
    return {name.removesuffix(".npy"): read_file(os.path.join(path, name)) for name in names}


def _recognised(content) -> FlameParams:
    if isinstance(content, np.ndarray):
        return _from_vector(_tensor("the array", content))
    if not isinstance(content, dict):
        raise ValueError(f"expected a dictionary or numbers, got {type(content).__name__}")
    if isinstance(content.get("flame"), dict):  # metrical-tracker's frames
        content = content["flame"] | {name: value for name, value in content.items() if name != "flame"}
    content = {name: value for name, value in content.items() if name not in _LEFT_OUT}
    offsets = content.pop("dynamic_offset", None)
    if offsets is not None and np.any(numbers("dynamic_offset", offsets)):
        raise ValueError(
            "dynamic_offset: expected zeros, as vertices that move by themselves are not parameters of a head"
        )
    if not content.keys() & _PARAMETERS:
        raise ValueError(
            f"no parameters: expected some of {', '.join(FlameParams._fields)}, or what other projects call them, got "
            f"{_listed(content)}; DECA's demo writes its results, and what to save is its code dictionary"
        )
    _require_known(content)
    tensors = {name: _tensor(name, value) for name, value in content.items()}
    given: dict[str, Tensor] = {}
    origin: dict[str, str] = {}

    def take(field, name, value):
        if field in given:
            raise ValueError(f"{origin[field]} and {name}: both say what {field} is, expected one of them")
        given[field], origin[field] = value, name

    for name, value in tensors.items():
        if name in _FIELD:
            field = _FIELD[name]
            take(field, name, _axis_angle(value, POSES[field]) if field in POSES else value)
    if tensors.keys() & set(_ONE_EYE):
        eyes = [tensors.get(name, torch.zeros(1, 3, dtype=torch.float64)) for name in _ONE_EYE]
        if any(eye.shape[1] != 3 for eye in eyes):
            got = " and ".join(str(tuple(eye.shape)) for eye in eyes)
            raise ValueError(f"{' and '.join(_ONE_EYE)}: expected shape (B, 3), got {got}")
        size = max(map(len, eyes))
        take("eye_pose", " and ".join(_ONE_EYE), torch.cat([eye.expand(size, 3) for eye in eyes], dim=1))
    for name in _SEVERAL_POSES:
        if name in tensors:
            for field, value in _split_poses(name, tensors[name], origin.get("expression")).items():
                take(field, name, value)
    if "shape" in given and given["shape"].shape[1] > 300:  # smplx's betas of FLAME, and those of its own files
        take("expression", origin["shape"], given["shape"][:, 300:])
        given["shape"] = given["shape"][:, :300]
    return FlameParams.make(**given)


def _require_known(content):
    unknown = content.keys() - _PARAMETERS - _LEFT_OUT
    if unknown:
        raise ValueError(
            f"{_listed(sorted(unknown, key=str))}: not among the names that are known; remove what isn't a parameter "
            f"of the head, and call the others {', '.join(FlameParams._fields)}"
        )


def _listed(names) -> str:
    names = [str(name)[:40] for name in names]
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") or "nothing"


def _split_poses(name: str, pose: Tensor, expression: str | None) -> dict[str, Tensor]:
    """The poses of the joints that are in one array; `expression` is the name under which the file has the
    expression."""
    width = pose.shape[1]
    if width == 15:
        return dict(zip(POSES, pose.split(list(POSES.values()), dim=1), strict=True))
    if width == 3 and name == "pose_params":  # SMIRK's
        return {"global_pose": pose}
    if width != 6:
        raise ValueError(f"{name}: expected shape (B, 6), root and jaw, or (B, 15), got {tuple(pose.shape)}")
    root, jaw = pose.split(3, dim=1)
    if name == "pose" and expression is None:
        raise ValueError("pose: expected exp beside it, as DECA has (y up), or expression, as RingNet has (y down)")
    if name == "pose" and expression == "expression":  # RingNet's: in its frame, but the head is the same one
        root = _half_turn(root)
    return {"global_pose": root, "jaw_pose": jaw}


def _axis_angle(pose: Tensor, width: int) -> Tensor:
    """`pose` (B, width), or from (B, 2 width): six numbers a joint, metrical-tracker's, which are rows of its
    matrix."""
    if pose.dim() != 2 or pose.shape[1] != 2 * width:
        return pose
    matrices = matrix_from_six(pose.unflatten(1, (-1, 6))).transpose(-1, -2)
    return axis_angle_from_matrix(matrices).flatten(1)


def _from_vector(vector: Tensor) -> FlameParams:
    width = vector.shape[-1]
    if vector.dim() == 2 and width == 415:
        return FlameParams.from_full(vector)
    if vector.dim() == 2 and width == 300:
        return FlameParams.make(shape=vector)
    if vector.dim() == 2 and width == 159:
        return FlameParams.from_ringnet(HeadParams.from_vector(vector), vector.new_zeros(1, 3))[0]
    raise ValueError(
        f"expected shape (B, 415) of FLAME's parameters, (B, 300) of MICA's identity or (B, 159) of RingNet's, got "
        f"{tuple(vector.shape)}"
    )


def _read_mat(path):
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError:
        raise ValueError(f"{path}: .mat files need SciPy (pip install scipy)") from None
    try:
        return {name: value for name, value in loadmat(path).items() if not name.startswith("__")}
    except (MatReadError, ValueError, TypeError, NotImplementedError) as error:
        raise ValueError(f"{path}: not a .mat file that can be read: {error}") from error


def _tensor(name, value):
    array = numbers(name, value)
    most = 3 if name == "static_offset" else 2
    if array.dtype.kind not in "fiu" or not most - 1 <= array.ndim <= most:
        wanted = "(V, 3) or (B, V, 3)" if most == 3 else "(n,) or (B, n)"
        raise ValueError(f"{name}: expected numbers of shape {wanted}, got {array.dtype} of shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: holds {np.count_nonzero(~np.isfinite(array))} values that are NaN or infinite")
    return torch.tensor(array if array.ndim == most else array[None], dtype=torch.float64)


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
