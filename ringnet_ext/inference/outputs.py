"""What is written of a reconstructed face: a table of kinds, each one file."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .._version import __version__
from ..files.arrays import npz_bytes
from ..files.images import image_bytes, png_bytes, read_png
from ..files.meshes import Mesh, glb_bytes, obj_parts, ply_bytes
from ..files.whole import write_together
from ..flame.formats import ringnet_parameters
from ..geometry.camera import project_to_pixels
from ..geometry.surface import vertex_normals
from ..render.maps import SurfaceMap
from ..render.sheets import sheet
from .panels import PANELS, panel
from .reconstruction import FRAMES, Reconstruction

#: Of the 51 inner landmarks: the corners of the eyes from the image's left to right, the nose's base, the mouth's.
NOW_LANDMARKS = 19, 22, 25, 28, 16, 31, 37
_PIXEL_CENTRES = 0.5
_CONTOUR = 17  # landmarks before the inner ones


class _Face:
    """A face as it is written: in the frame that was asked for, what several files need computed once."""

    def __init__(self, face: Reconstruction, frame: str, more: Mapping[str, np.ndarray]):
        self.face, self.frame, self.more = face, frame, more

    def mesh(self, vertices: np.ndarray) -> Mesh:
        head = self.face.head
        return Mesh(vertices, head.faces, head.uv, head.uv_faces, vertex_normals(vertices, head.faces))

    @cached_property
    def posed(self) -> Mesh:
        return self.mesh(self.face.in_frame(self.face.vertices, self.frame))

    @cached_property
    def neutral(self) -> Mesh:
        return self.mesh(self.face.neutral_vertices)

    @property
    def axes(self) -> str:
        return FRAMES[self.frame]

    @cached_property
    def maps(self) -> dict[str, np.ndarray]:
        """depth (S, S), normals and coordinates (S, S, 3) float32 over the square that the network saw; NaN where the
        head isn't."""
        face, size = self.face, len(self.face.image)
        points = project_to_pixels(face.image_vertices, face.params.camera[0].numpy(), size)
        surface = SurfaceMap(points, face.faces, size, size)
        z = self.posed.vertices[:, 2]
        normals = self.posed.normals
        assert normals is not None
        return {
            "depth": surface.of(z if self.frame == "ringnet" else -z),
            "normals": surface.of(normals, unit=True),
            "coordinates": surface.of(face.head.v_template),
        }

    @property
    def square(self) -> np.ndarray:
        """Left, top and side of the square that the network saw, pixels of the image."""
        return np.array(self.face.square.place)


# Pictures.


def _panel(face: _Face) -> bytes:
    return image_bytes(sheet([panel(face.face)], columns=PANELS), ".png")


def _overlay(face: _Face) -> bytes:
    return image_bytes(face.face.overlay(), ".jpg")


# Meshes.


def _comments(what: str, axes: str) -> list[str]:
    return [f"ringnet_ext {__version__}: {what}", "units: metres", f"axes: {axes}", "triangles: counter-clockwise"]


def _posed_comments(face: _Face) -> list[str]:
    return _comments("head, posed, turned about its root joint", face.axes)


_NEUTRAL = _comments("head without pose and expression", "x to the subject's left, y up, z out of the face")


def _glb(face: _Face) -> bytes:
    mesh = face.mesh(face.face.vertices)  # the format's axes are FLAME's, whatever the other files have
    what, *facts = _posed_comments(_Face(face.face, "flame", {}))
    return glb_bytes(mesh, {"what": what} | dict(fact.split(": ", 1) for fact in facts))


# Landmarks.


def _pts(face: _Face) -> bytes:
    """iBUG's format counts pixels from 1."""
    lines = ["version: 1", f"n_points: {len(face.face.landmarks)}", "{"]
    lines += [f"{x:.4f} {y:.4f}" for x, y in face.face.landmarks + 0.5]
    return "\n".join([*lines, "}\n"]).encode()


def _now_landmarks(face: _Face) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, face.face.neutral_landmarks[_CONTOUR + np.array(NOW_LANDMARKS)])
    return buffer.getvalue()


# Parameters.


def _ringnet(face: _Face) -> dict[str, np.ndarray]:
    """As RingNet has them."""
    camera, root, jaw, shape, expression = (value.detach().numpy()[0] for value in face.face.params)
    return {"cam": camera, "pose": np.concatenate([root, jaw]), "shape": shape, "expression": expression}


def _ringnet_file(face: _Face) -> bytes:
    for name, pose in (("neck_pose", face.face.neck_pose), ("eye_pose", face.face.eye_pose)):
        if pose.any():
            raise ValueError(f"ringnet: its file has no {name}, expected zeros; write parameters, json or vhap instead")
    return ringnet_parameters(_ringnet(face))


def _all_parameters(face: _Face) -> dict[str, np.ndarray]:
    arrays = _ringnet(face)
    poses = {"neck_pose": face.face.neck_pose, "eye_pose": face.face.eye_pose}
    arrays |= {name: pose for name, pose in poses.items() if pose.any()}
    return arrays | {
        "landmarks": face.face.landmarks,
        "landmarks_3d": face.face.in_frame(face.face.landmarks_3d, face.frame),
        "projection": face.face.projection(face.frame),
        "square": face.square,
        "pixel_centres": np.array(_PIXEL_CENTRES),
        **face.more,
    }


def _about(names: tuple[str, ...], axes: str) -> dict[str, str]:
    known = {
        "cam": "s (1/metre), tx, ty (metres): x = s (X + tx), y = s (Y + ty) over the square that the network saw, "
        "from -1 to 1, x to the right, y down",
        "pose": "root and jaw, axis-angle, radians, in the frame of that camera, where an upright head has (pi, 0, 0)",
        "shape": "coefficients of the head model",
        "expression": "coefficients of the head model",
        "neck_pose": "axis-angle, radians",
        "eye_pose": "left and right eye, axis-angle, radians",
        "landmarks": "68 points of iBUG, pixels of the image, the middle of its first pixel at (0.5, 0.5)",
        "landmarks_3d": f"the same on the posed head; metres, {axes}",
        "projection": "pixels of the image are projection @ (x, y, z, 1) of points of the posed head; metres, "
        f"{axes}; of three rows the last is what the others are divided by",
        "focal": "pixels",
        "camera_translation": "metres, from the head's frame, y down, to the camera's",
        "square": "left, top and side of the square that the network saw, pixels of the image",
        "pixel_centres": "where the middle of an image's first pixel is, in x and y",
        "shape_std": "standard deviations of shape",
        "depth": "metres that the head lies behind z = 0 of the posed head's frame",
        "normals": f"unit vectors out of the head; {axes}",
        "coordinates": "place on the mean head; metres, x to the subject's left, y up, z out of the face",
        "expr": "coefficients of the head model",
        "rotation": "of the root, axis-angle, radians, y up",
        "jaw_pose": "axis-angle, radians",
        "eyes_pose": "left and right eye, axis-angle, radians",
        "translation": "metres, y up",
        "static_offset": "metres that vertices are moved before the head is posed",
    }
    return {name: known[name] for name in names if name in known}


@lru_cache(16)
def _about_array(names: tuple[str, ...], axes: str) -> np.ndarray:
    return np.array("\n".join(f"{name}: {text}" for name, text in _about(names, axes).items()))


def _npz(face: _Face, arrays: Mapping[str, np.ndarray]) -> bytes:
    return npz_bytes({**arrays, "about": _about_array(tuple(arrays), face.axes)})


def _json(face: _Face) -> bytes:
    arrays = _all_parameters(face)
    numbers = {name: np.asarray(value).tolist() for name, value in arrays.items()}
    return (json.dumps({"about": _about(tuple(arrays), face.axes), **numbers}) + "\n").encode()


def _vhap(face: _Face) -> bytes:
    return _npz(face, face.face.flame_params.to_vhap(len(face.face.vertices)))


# Maps. Sixteen bits hold a number of steps from the middle, which stands for 0; 0 where the head isn't.

_MIDDLE = 2**15
_METRES, _UNIT = 1e-5, 1 / (_MIDDLE - 1)


def _map(face: _Face, name: str) -> bytes:
    values = face.maps[name]
    there = np.isfinite(values)
    step = _UNIT if name == "normals" else _METRES
    while name != "normals" and there.any() and np.abs(values[there]).max() > step * (_MIDDLE - 1):
        step *= 10  # a head larger than heads are
    numbers = np.where(there, np.rint(np.where(there, values, 0) / step) + _MIDDLE, 0).astype(np.uint16)
    left, top, side = face.square
    return png_bytes(numbers, {
        "Description": _about((name,), face.axes)[name],
        "step": repr(step),
        "zero": str(_MIDDLE),
        "Comment": f"value = (number - {_MIDDLE}) * {step!r}; 0 where the head isn't",
        "square": f"left {left:.3f}, top {top:.3f}, side {side:.3f}, pixels of the image",
        "Software": f"ringnet_ext {__version__}",
    })  # fmt: skip


def read_map(path: str | os.PathLike) -> np.ndarray:
    """A map that was written as a PNG: (S, S) or (S, S, 3) float32, NaN where the head isn't.

    Raises FileNotFoundError, and ValueError, naming the file, for other files.
    """
    numbers, text = read_png(path)
    try:
        zero, step = int(text["zero"]), float(text["step"])
    except (KeyError, ValueError):
        raise ValueError(f"{os.fspath(path)}: expected a map, which says its zero and step, got another PNG") from None
    return np.where(numbers > 0, (numbers.astype(np.float64) - zero) * step, np.nan).astype(np.float32)


class Kind(NamedTuple):
    """A file of a face: the folder that it is in, the end of its name, what it is, and its content, whole or in parts
    that follow each other."""

    folder: str
    suffix: str
    what: str
    content: Callable[[_Face], bytes | Iterable[bytes]]


#: What can be written of a face, by the names of ``--write``.
KINDS: dict[str, Kind] = {
    "panel": Kind("images", ".png", "input, overlay, head, head turned, neutral head", _panel),
    "overlay": Kind("overlay", ".jpg", "the head over the original image", _overlay),
    "mesh": Kind("mesh", ".obj", "posed head", lambda face: obj_parts(face.posed, _posed_comments(face))),
    "ply": Kind("mesh", ".ply", "posed head", lambda face: ply_bytes(face.posed, _posed_comments(face))),
    "glb": Kind("mesh", ".glb", "posed head", _glb),
    "neutral": Kind("neutral_mesh", ".obj", "neutral head", lambda face: obj_parts(face.neutral, _NEUTRAL)),
    "neutral-ply": Kind("neutral_mesh", ".ply", "neutral head", lambda face: ply_bytes(face.neutral, _NEUTRAL)),
    "now": Kind("neutral_mesh", ".npy", "NoW's 7 landmarks on the neutral head", _now_landmarks),
    "landmarks": Kind("landmarks", ".pts", "68 landmarks in the image", _pts),
    "parameters": Kind(
        "params", ".npz", "parameters, camera, landmarks", lambda face: _npz(face, _all_parameters(face))
    ),
    "json": Kind("params", ".json", "parameters, camera, landmarks", _json),
    "ringnet": Kind("params", ".npy", "parameters for RingNet's code", _ringnet_file),
    "vhap": Kind("flame_param", ".npz", "parameters for VHAP and GaussianAvatars", _vhap),
    "depth": Kind("depth", ".png", "depth map, 16 bits", lambda face: _map(face, "depth")),
    "normals": Kind("normals", ".png", "normal map, 16 bits", lambda face: _map(face, "normals")),
    "coordinates": Kind(
        "coordinates", ".png", "canonical coordinates, 16 bits", lambda face: _map(face, "coordinates")
    ),
    "maps": Kind(
        "maps", ".npz", "the three maps, float32", lambda face: _npz(face, face.maps | {"square": face.square})
    ),
}

DEFAULT = ("panel", "mesh", "parameters")


def folders(kinds: Iterable[str]) -> list[str]:
    """The folders that the files of these kinds are in."""
    return list(dict.fromkeys(_kind(kind).folder for kind in kinds))


def place(kind: str, name: str) -> str:
    """Where in the output folder a kind's file of a face is; name: as for :func:`write`."""
    return f"{_kind(kind).folder}/{name}{_kind(kind).suffix}"


def write(
    folder: str | os.PathLike,
    name: str,
    face: Reconstruction,
    kinds: Iterable[str] = DEFAULT,
    *,
    frame: str = "flame",
    more: Mapping[str, np.ndarray] | None = None,
) -> list[Path]:
    """Write files of a face, folder / KIND'S FOLDER / name.SUFFIX: all of them or none.

    Args:
        folder: made where it is missing, as those in it are. name: without a suffix; it may have folders, sub/photo.
        kinds: names of :data:`KINDS`.
        frame: of the posed head's meshes, 3D landmarks, projection and maps: one of
            :data:`ringnet_ext.inference.reconstruction.FRAMES`, ``flame`` (y up) or ``ringnet`` (y down). A GLB has y
            up by its format; neutral heads have it, and parameters are what their readers expect.
        more: further arrays for ``parameters`` and ``json``.

    Returns:
        The files written, in the order of the kinds.

    Raises:
        ValueError: there is no such kind or frame, or a kind's file can't hold what the face has.
        OSError: naming the file that cannot be written.
    """
    if frame not in FRAMES:
        raise ValueError(f"frame: expected one of {', '.join(FRAMES)}, got {frame!r}")
    folder, source, contents = os.fspath(folder), _Face(face, frame, more or {}), {}
    for each in dict.fromkeys(kinds):
        target = os.path.join(folder, place(each, name))
        content = KINDS[each].content(source)
        contents[target] = [content] if isinstance(content, bytes) else content
    write_together(contents)
    return [Path(target) for target in contents]


def _kind(name: str) -> Kind:
    if name not in KINDS:
        raise ValueError(f"kinds: expected some of {', '.join(KINDS)}, got {name!r}")
    return KINDS[name]
