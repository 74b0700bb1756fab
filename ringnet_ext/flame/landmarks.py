"""Landmarks as points on the triangles of a head: a face index and barycentric coordinates for each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..files.arrays import read_file, write_arrays
from .formats import landmark_arguments

CONTOUR_ROWS = 79
"""Rows of a contour table: 0 frontal, 1..39 = yaw of +1..+39 degrees, 40..78 = yaw of -1..-39 degrees (39 - angle)."""

OUTER_EYE_CORNERS = 36, 45
"""Of iBUG's 68 landmarks: those whose distance landmark errors are measured in."""

CONTOUR_MAX_DEGREES = 39


def integer_array(name: str, value, shape: tuple) -> np.ndarray:
    """`value` as int64 of `shape`, where a letter in `shape` stands for any length; raises ValueError by `name`."""
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected integers, got dtype {array.dtype}")
    if array.size and array.dtype == np.uint64 and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name}: values exceed int64")
    return _check_shape(name, array.astype(np.int64), shape)


def real_array(name: str, value, shape: tuple) -> np.ndarray:
    """`value` as finite float64 of `shape`, letters in which stand for any length; raises ValueError by `name`."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name}: expected real numbers, got dtype {array.dtype}")
    array = _check_shape(name, array.astype(np.float64), shape)
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: holds {np.count_nonzero(~np.isfinite(array))} values that are NaN or infinite")
    return array


def _check_shape(name, array, shape):
    wanted = "(" + ", ".join(str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"
    fits = array.ndim == len(shape) and all(
        isinstance(n, str) or n == m for n, m in zip(shape, array.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name}: expected shape {wanted}, got {array.shape}")
    return array


def index_range(name: str, array: np.ndarray, stop: int, of: str) -> None:
    """Raises ValueError unless all of `array` lies in 0 ... stop-1."""
    if array.size and (array.min() < 0 or array.max() >= stop):
        bad = array.min() if array.min() < 0 else array.max()
        raise ValueError(f"{name}: holds {bad}, but there are {stop} {of} (0 ... {stop - 1})")


def _barycentric(name, value, shape):
    array = real_array(name, value, shape)
    error = np.abs(array.sum(-1) - 1).max(initial=0)
    if error > 1e-3:
        raise ValueError(f"{name}: barycentric coordinates must sum to 1, one is off by {error:.3g}")
    return array


@dataclass(frozen=True, eq=False)
class LandmarkEmbedding:
    """Landmarks of a head: static points, and contour points that slide along the head with its yaw.

    In the order of this project the contour comes first. For the 68 points of iBUG, C = 17 and L = 51.

    Attributes:
        static_faces_idx: (L,) int64, triangle of each static point.
        static_bary_coords: (L, 3) float64, its barycentric coordinates there, summing to 1.
        contour_faces_idx: (79, C) int64, one row per degree of yaw, see CONTOUR_ROWS; None without a contour.
        contour_bary_coords: (79, C, 3) float64.
        static_ids: (L,) int64, numbers of the static points in their own scheme, such as MediaPipe's 478; None for the
            51 inner points of iBUG in their order.
    """

    static_faces_idx: np.ndarray
    static_bary_coords: np.ndarray
    contour_faces_idx: np.ndarray | None = None
    contour_bary_coords: np.ndarray | None = None
    static_ids: np.ndarray | None = None

    def __post_init__(self):
        static_faces = integer_array("static_faces_idx", self.static_faces_idx, ("L",))
        fields = {
            "static_faces_idx": static_faces,
            "static_bary_coords": _barycentric("static_bary_coords", self.static_bary_coords, (len(static_faces), 3)),
        }
        if (self.contour_faces_idx is None) != (self.contour_bary_coords is None):
            raise ValueError("contour_faces_idx and contour_bary_coords: expected both or neither")
        if self.contour_faces_idx is not None:
            contour_faces = integer_array("contour_faces_idx", self.contour_faces_idx, (CONTOUR_ROWS, "C"))
            fields["contour_faces_idx"] = contour_faces
            fields["contour_bary_coords"] = _barycentric(
                "contour_bary_coords", self.contour_bary_coords, (*contour_faces.shape, 3)
            )
        if self.static_ids is not None:
            fields["static_ids"] = integer_array("static_ids", self.static_ids, static_faces.shape)
        for name, array in fields.items():
            if name.endswith("faces_idx") and array.size and array.min() < 0:
                raise ValueError(f"{name}: holds the negative index {array.min()}")
            object.__setattr__(self, name, array)

    @classmethod
    def load(cls, *paths: str | os.PathLike, full: bool = False) -> LandmarkEmbedding:
        """Reads an embedding in any format of the field, told by content.

        One path: this project's, DECA's (also MICA's and SMIRK's), MediaPipe's, or RingNet's static embedding. Two
        paths: RingNet's static and dynamic embeddings, in either order, or others of which one has the static points
        and the other the contour. `full` takes the 68 static points that DECA's file has besides. Raises ValueError,
        naming the file.
        """
        arguments: dict = {}
        for path in paths:
            content = read_file(path)
            try:
                found = landmark_arguments(content, full)
                for kind in ("static", "contour"):
                    if {f"{kind}_faces_idx"} <= arguments.keys() & found.keys():
                        raise ValueError(f"has {kind} landmarks, and so has a file before it; expected them in one")
                arguments |= found
            except ValueError as error:
                raise ValueError(f"{os.fspath(path)}: {error}") from error
        names = ", ".join(os.fspath(path) for path in paths)
        if "static_faces_idx" not in arguments:
            raise ValueError(
                f"{names or 'no path'}: no static landmarks; RingNet's dynamic embedding goes with its static one"
            )
        try:
            return cls(**arguments)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{names}: {error}") from error

    def save(self, path: str | os.PathLike) -> None:
        """Writes the embedding as `.npz` or `.safetensors`, whole or not at all."""
        write_arrays(path, self.arrays())

    @property
    def num_static(self) -> int:
        return len(self.static_faces_idx)

    @property
    def num_contour(self) -> int:
        return 0 if self.contour_faces_idx is None else self.contour_faces_idx.shape[1]

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that are there, by field name."""
        return {name: array for name, array in vars(self).items() if array is not None}


def given_embedding(
    landmarks: LandmarkEmbedding | str | os.PathLike | Sequence[str | os.PathLike],
) -> LandmarkEmbedding:
    """An embedding that was given as one, by its path, or by several, as :meth:`LandmarkEmbedding.load` takes them."""
    if isinstance(landmarks, LandmarkEmbedding):
        return landmarks
    return LandmarkEmbedding.load(*([landmarks] if isinstance(landmarks, (str, os.PathLike)) else landmarks))


def contour_row(yaw_degrees) -> np.ndarray:
    """Row of the contour table for a yaw in degrees, rounded and clamped; positive = turned to the subject's left."""
    # As reference.contour_rows_of_yaw, but without PyTorch, which reading a model does without.
    angle = np.rint(np.clip(yaw_degrees, -CONTOUR_MAX_DEGREES, CONTOUR_MAX_DEGREES)).astype(np.int64)
    return np.where(angle < 0, CONTOUR_MAX_DEGREES - angle, angle)


def static_first(points, num_contour: int = 17):
    """Landmarks (..., C + L, n) from contour first, as here, in FLAME_PyTorch and in DECA, to smplx's static first."""
    return _rolled(points, num_contour)


def contour_first(points, num_contour: int = 17):
    """The inverse of :func:`static_first`."""
    return _rolled(points, points.shape[-2] - num_contour)


def _rolled(points, first):
    order = [*range(first, points.shape[-2]), *range(first)]
    return points[..., order, :]
