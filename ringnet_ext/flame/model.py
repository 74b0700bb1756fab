"""The parameters of a FLAME head, or of any model of the SMPL family, as plain arrays."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..files.arrays import read_file, write_arrays
from ..files.meshes import MESHES
from .formats import (
    MODEL_ARRAYS,
    OPTIONAL_ARRAYS,
    eyelid_arguments,
    model_arguments,
    region_arguments,
    require_parents_first,
)
from .landmarks import LandmarkEmbedding, given_embedding, index_range, integer_array, real_array


def read_head_file(path: str | os.PathLike):
    """What is in a file that is no mesh. Raises ValueError, naming the file, for a mesh and for what cannot be read."""
    if Path(path).suffix.lower() in MESHES:
        raise ValueError(
            f"{os.fspath(path)}: expected a head model file, got a mesh, which has no directions; "
            "ringnet_ext.flame.sources.load_head makes a rigid head of it"
        )
    return read_file(path)


@dataclass(frozen=True, eq=False)
class FlameModel:
    """A linear head model in numpy. FLAME: V = 5023, F = 9976, J = 5 (global, neck, jaw, left eye, right eye).

    Attributes:
        v_template: (V, 3) mean head; metres, x to the subject's left, y up, z out of the face.
        shapedirs: (V, 3, S) vertex displacement per unit of each shape coefficient.
        expressiondirs: (V, 3, E) the same for expressions.
        posedirs: (V, 3, 9(J-1)) pose correctives for vec(R_j - I) of the joints 1 ... J-1, row-major 9 each.
        J_regressor: (J, V) joints from vertices, dense.
        parents: (J,) parent of each joint, -1 for the root (joint 0); a parent comes before its children.
        lbs_weights: (V, J) skinning weights.
        faces: (F, 3) triangles, counter-clockwise from outside.
        landmarks: LandmarkEmbedding or None.
        regions: name -> (n,) vertex indices.
        eyeliddirs: (V, 3, 2) displacement for shutting the left and the right eyelid, or None; as blendshapes, which
            are posed with the head.
        uv: (T, 2) texture coordinates, or None; v up.
        uv_faces: (F, 3) the texture coordinate of each corner of the faces, where there are any.

    Reals become float64, indices int64.

    Raises:
        ValueError: naming the array, where shapes disagree, values are not finite, or indices point outside.
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
    eyeliddirs: np.ndarray | None = None
    uv: np.ndarray | None = None
    uv_faces: np.ndarray | None = None

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
        if self.eyeliddirs is not None:
            arrays["eyeliddirs"] = real_array("eyeliddirs", self.eyeliddirs, (V, 3, 2))
        if (self.uv is None) != (self.uv_faces is None):
            raise ValueError("uv and uv_faces: expected both or neither")
        if self.uv is not None:
            arrays["uv"] = real_array("uv", self.uv, ("T", 2))
            arrays["uv_faces"] = integer_array("uv_faces", self.uv_faces, arrays["faces"].shape)
            index_range("uv_faces", arrays["uv_faces"], len(arrays["uv"]), "texture coordinates")
        if parents[0] != -1:
            raise ValueError(f"parents: expected -1 for the root, joint 0, got {parents[0]}")
        require_parents_first("parents", parents)
        index_range("faces", arrays["faces"], V, "vertices")
        for name, ids in arrays["regions"].items():
            index_range(f"regions[{name!r}]", ids, V, "vertices")
        if self.landmarks is not None:
            for name, array in self.landmarks.arrays().items():
                if name.endswith("faces_idx"):
                    index_range(f"landmarks.{name}", array, len(arrays["faces"]), "faces")
        for name, value in arrays.items():
            object.__setattr__(self, name, value)

    @classmethod
    def rigid(cls, vertices, faces, landmarks: LandmarkEmbedding | None = None, uv=None, uv_faces=None) -> FlameModel:
        """A mesh (V, 3), (F, 3) as a model with one joint at its middle and no directions."""
        count = len(vertices)
        return cls(
            v_template=vertices,
            shapedirs=np.zeros((count, 3, 0)),
            expressiondirs=np.zeros((count, 3, 0)),
            posedirs=np.zeros((count, 3, 0)),
            J_regressor=np.full((1, count), 1 / max(count, 1)),
            parents=np.array([-1]),
            lbs_weights=np.ones((count, 1)),
            faces=faces,
            landmarks=landmarks,
            uv=uv,
            uv_faces=uv_faces,
        )

    def digest(self) -> str:
        """Tells heads apart by everything in them; the same for a head in any file format, in float32 or float64."""
        digest = hashlib.sha256()
        landmarks = {} if self.landmarks is None else self.landmarks.arrays()
        for group in ({name: getattr(self, name) for name in MODEL_ARRAYS}, landmarks, self.regions):
            for name in sorted(group):
                array = np.asarray(group[name])
                array = np.ascontiguousarray(array, np.float32 if array.dtype.kind == "f" else np.int64)
                digest.update(f"{name} {array.shape} ".encode())
                digest.update(array.data)
        return digest.hexdigest()[:16]

    def save(self, path: str | os.PathLike) -> None:
        """Writes the model as `.npz` (uncompressed) or `.safetensors`, whole or not at all."""
        arrays = {name: getattr(self, name) for name in MODEL_ARRAYS}
        arrays |= {name: getattr(self, name) for name in OPTIONAL_ARRAYS if getattr(self, name) is not None}
        if self.landmarks is not None:
            arrays |= {f"landmarks/{name}": array for name, array in self.landmarks.arrays().items()}
        write_arrays(path, arrays | {f"regions/{name}": ids for name, ids in self.regions.items()})

    def with_regions(self, path: str | os.PathLike) -> FlameModel:
        """The model with the regions of FLAME_masks.pkl. Raises ValueError, naming the file, where they are not this
        model's."""
        content = read_file(path)
        try:
            return replace(self, regions=region_arguments(content))
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from error

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        landmarks: LandmarkEmbedding | str | os.PathLike | Sequence[str | os.PathLike] | None = None,
        regions: str | os.PathLike | None = None,
        eyelids: tuple[str | os.PathLike, str | os.PathLike] | None = None,
    ) -> FlameModel:
        """Reads a head model: what `save` wrote, or a FLAME or SMPL-family file of any year, told by content.

        Nothing in the files is executed.

        Args:
            landmarks: an embedding, the path of one, or the paths of RingNet's static and dynamic embeddings; it
                replaces the file's own.
            regions: path of FLAME_masks.pkl.
            eyelids: paths of the displacements of the left and the right eyelid, (V, 3) each: l_eyelid.npy and
                r_eyelid.npy of SMIRK and metrical-tracker.

        Raises:
            ValueError: naming the file and the reason, for anything else.
        """
        content = read_head_file(path)
        try:
            arguments = model_arguments(content)
            if "landmarks" in arguments:
                arguments["landmarks"] = LandmarkEmbedding(**arguments["landmarks"])
            model = cls(**arguments)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{os.fspath(path)}: not a head model: {error}") from error
        if landmarks is not None:
            model = replace(model, landmarks=given_embedding(landmarks))
        if regions is not None:
            model = model.with_regions(regions)
        if eyelids is not None:
            if isinstance(eyelids, (str, os.PathLike)) or len(eyelids) != 2:
                raise ValueError(f"eyelids: expected two paths, of the left and of the right one, got {eyelids!r}")
            try:
                model = replace(model, eyeliddirs=eyelid_arguments(*(read_file(path) for path in eyelids)))
            except ValueError as error:
                raise ValueError(f"eyelids: {error}") from error
        return model
