"""The parameters of a FLAME head, or of any model of the SMPL family, as plain arrays."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np

from .files import written_whole
from .landmarks import LandmarkEmbedding, index_range, integer_array, real_array

_ARRAYS = (
    "v_template", "shapedirs", "expressiondirs", "posedirs", "J_regressor", "parents", "lbs_weights", "faces",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class FlameModel:
    """A linear head model in numpy. FLAME: V = 5023, F = 9976, J = 5 (global, neck, jaw, left eye, right eye).

    v_template      (V, 3)          mean head; metres, x to the subject's left, y up, z out of the face
    shapedirs       (V, 3, S)       vertex displacement per unit of each shape coefficient
    expressiondirs  (V, 3, E)       the same for expressions
    posedirs        (V, 3, 9(J-1))  pose correctives for vec(R_j - I) of the joints 1 ... J-1, row-major 9 each
    J_regressor     (J, V)          joints from vertices, dense
    parents         (J,)            parent of each joint, -1 for the root (joint 0); a parent comes before its children
    lbs_weights     (V, J)          skinning weights
    faces           (F, 3)          triangles, counter-clockwise from outside
    landmarks       LandmarkEmbedding or None
    regions         name -> (n,) vertex indices

    Reals become float64, indices int64. Raises ValueError, naming the array, where shapes disagree, values are not
    finite, or indices point outside.
    """

    v_template: np.ndarray
    shapedirs: np.ndarray
    expressiondirs: np.ndarray
    posedirs: np.ndarray
    J_regressor: np.ndarray
    parents: np.ndarray
    lbs_weights: np.ndarray
    faces: np.ndarray
    landmarks: LandmarkEmbedding | None = None
    regions: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self):
        v_template = real_array("v_template", self.v_template, ("V", 3))
        parents = integer_array("parents", self.parents, ("J",))
        V, J = len(v_template), len(parents)
        if V == 0 or J == 0:
            raise ValueError(f"v_template, parents: expected at least one vertex and one joint, got {V} and {J}")
        arrays = {
            "v_template": v_template,
            "shapedirs": real_array("shapedirs", self.shapedirs, (V, 3, "S")),
            "expressiondirs": real_array("expressiondirs", self.expressiondirs, (V, 3, "E")),
            "posedirs": real_array("posedirs", self.posedirs, (V, 3, 9 * (J - 1))),
            "J_regressor": real_array("J_regressor", self.J_regressor, (J, V)),
            "parents": parents,
            "lbs_weights": real_array("lbs_weights", self.lbs_weights, (V, J)),
            "faces": integer_array("faces", self.faces, ("F", 3)),
            "regions": {name: integer_array(f"regions[{name!r}]", ids, ("n",)) for name, ids in self.regions.items()},
        }
        if parents[0] != -1:
            raise ValueError(f"parents: expected -1 for the root, joint 0, got {parents[0]}")
        for joint in range(1, J):
            if not 0 <= parents[joint] < joint:
                raise ValueError(
                    f"parents: expected the parent of joint {joint} among 0 ... {joint - 1}, got {parents[joint]}"
                )
        index_range("faces", arrays["faces"], V, "vertices")
        for name, ids in arrays["regions"].items():
            index_range(f"regions[{name!r}]", ids, V, "vertices")
        if self.landmarks is not None:
            for name, array in self.landmarks.arrays().items():
                if name.endswith("faces_idx"):
                    index_range(f"landmarks.{name}", array, len(arrays["faces"]), "faces")
        for name, value in arrays.items():
            object.__setattr__(self, name, value)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the model as an uncompressed `.npz`, whole or not at all."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        if self.landmarks is not None:
            arrays |= {f"landmarks/{name}": array for name, array in self.landmarks.arrays().items()}
        arrays |= {f"regions/{name}": ids for name, ids in self.regions.items()}
        with written_whole(path) as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike) -> FlameModel:
        """Reads what `save` wrote. Raises ValueError, naming the file, for anything that is no such model."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            missing = [name for name in _ARRAYS if name not in arrays]
            if missing:
                raise ValueError(f"lacks {', '.join(missing)}")
            landmarks = {n.removeprefix("landmarks/"): a for n, a in arrays.items() if n.startswith("landmarks/")}
            return cls(
                **{name: arrays[name] for name in _ARRAYS},
                landmarks=LandmarkEmbedding(**landmarks) if landmarks else None,
                regions={n.removeprefix("regions/"): a for n, a in arrays.items() if n.startswith("regions/")},
            )
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(f"{os.fspath(path)}: not a head model: {error}") from error
