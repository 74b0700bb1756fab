"""What the files of the field hold, as arguments of FlameModel and LandmarkEmbedding; and landmark files for others."""

from __future__ import annotations

import io
import pickle

import numpy as np

from ..files.pickles import Inert, Sparse, numbers

MODEL_ARRAYS = (
    "v_template", "shapedirs", "expressiondirs", "posedirs", "J_regressor", "parents", "lbs_weights", "faces",
)  # fmt: skip

OPTIONAL_ARRAYS = "eyeliddirs", "uv", "uv_faces"

_SHAPE_DIRECTIONS = 300  # of FLAME's 400, and of SMPL-X's; the rest are expressions
_FLAME_NAMES = {
    "v_template": "v_template",
    "shapedirs": "shapedirs",
    "posedirs": "posedirs",
    "lbs_weights": "weights",
    "faces": "f",
}
_NO_PARENT = (-1, 2**32 - 1, 2**64 - 1)


def model_arguments(content) -> dict:
    """Arguments of FlameModel from the content of a file: one of this project's, or FLAME's and those of SMPL's family.

    The latter have v_template, shapedirs, posedirs, J_regressor (dense or sparse), kintree_table, weights and f. Where
    shapedirs has more than 300 directions, those after the 300th are expressions.
    Raises ValueError with what is missing or wrong.
    """
    _require_dict(content, "a head model")
    if "parents" in content:
        _require_keys(content, MODEL_ARRAYS)
        arguments = {name: numbers(name, content[name]) for name in MODEL_ARRAYS}
        landmarks = _below("landmarks/", content)
        if landmarks:
            arguments["landmarks"] = landmarks
        arguments |= {name: numbers(name, content[name]) for name in OPTIONAL_ARRAYS if name in content}
        return arguments | {"regions": _below("regions/", content)}

    names = ("v_template", "shapedirs", "posedirs", "J_regressor", "kintree_table", "weights", "f")
    _require_keys(content, names)
    arrays = {name: numbers(name, content[name]) for name in names if not isinstance(content[name], Sparse)}
    regressor = content["J_regressor"]
    arguments = {}
    for name, key in _FLAME_NAMES.items():
        if key not in arrays or arrays[key].ndim == 0:
            raise ValueError(f"{name}: expected an array, got {'a number' if key in arrays else 'a sparse matrix'}")
        arguments[name] = arrays[key]
    parents = _parents(arrays.get("kintree_table"))
    if isinstance(regressor, Sparse):
        # Before it is made dense, its size must be that of an array which the file holds in full.
        if regressor.shape != arguments["lbs_weights"].shape[::-1]:
            raise ValueError(
                f"J_regressor: expected shape (J, V) where weights has (V, J), "
                f"got {regressor.shape} and {arguments['lbs_weights'].shape}"
            )
        regressor = regressor.dense()
    else:
        regressor = arrays["J_regressor"]
    directions = arguments["shapedirs"]
    arguments["shapedirs"] = directions[..., :_SHAPE_DIRECTIONS]
    arguments["expressiondirs"] = directions[..., _SHAPE_DIRECTIONS:]
    landmarks = {"landmarks": landmark_arguments(content)} if "lmk_faces_idx" in content else {}
    return arguments | {"J_regressor": regressor, "parents": parents} | landmarks


def _parents(table):
    if table is None or table.ndim != 2 or table.shape[0] != 2 or table.dtype.kind not in "iu" or not table.size:
        got = "a sparse matrix" if table is None else f"{table.dtype} of shape {table.shape}"
        raise ValueError(f"kintree_table: expected integers of shape (2, J), got {got}")
    parents, joints = ([int(n) for n in row] for row in table)
    if joints != list(range(len(joints))):
        raise ValueError(
            f"kintree_table: expected the joints 0 ... {len(joints) - 1} in its second row, got {joints[:8]}"
        )
    if parents[0] not in _NO_PARENT:
        raise ValueError(f"kintree_table: expected no parent (-1 or 2^32 - 1) for joint 0, got {parents[0]}")
    require_parents_first("kintree_table", parents)
    return np.array([-1, *parents[1:]], dtype=np.int64)


def require_parents_first(name: str, parents) -> None:
    """Raises ValueError unless the parent of every joint but the root comes before it."""
    for joint, parent in enumerate(parents[1:], start=1):
        if not 0 <= parent < joint:
            raise ValueError(f"{name}: expected the parent of joint {joint} among 0 ... {joint - 1}, got {parent}")


# Field of LandmarkEmbedding -> its key in: this project, DECA and SMIRK, SMPL-X's model files
_LANDMARK_KEYS = {
    "static_faces_idx": ("static_faces_idx", "static_lmk_faces_idx", "lmk_faces_idx"),
    "static_bary_coords": ("static_bary_coords", "static_lmk_bary_coords", "lmk_bary_coords"),
    "contour_faces_idx": ("contour_faces_idx", "dynamic_lmk_faces_idx"),
    "contour_bary_coords": ("contour_bary_coords", "dynamic_lmk_bary_coords"),
    "static_ids": ("static_ids",),
}


def landmark_arguments(content, full: bool = False) -> dict[str, np.ndarray]:
    """Arguments of LandmarkEmbedding from the content of a file, in any of the formats of the field.

    RingNet's static and dynamic embeddings give the static and the contour arguments; MediaPipe's gives static points
    and their numbers. `full` takes the 68 static points that DECA's file has besides.
    Raises ValueError with what is missing or wrong.
    """
    _require_dict(content, "landmarks")
    if full:
        _require_keys(content, ("full_lmk_faces_idx", "full_lmk_bary_coords"))
        faces_idx = numbers("full_lmk_faces_idx", content["full_lmk_faces_idx"])
        bary_coords = numbers("full_lmk_bary_coords", content["full_lmk_bary_coords"])
        return {"static_faces_idx": faces_idx.reshape(-1), "static_bary_coords": bary_coords.reshape(-1, 3)}
    if "lmk_face_idx" in content:  # RingNet's two files, and MediaPipe's
        _require_keys(content, ("lmk_b_coords",))
        faces_idx = numbers("lmk_face_idx", content["lmk_face_idx"])
        kind = "contour" if faces_idx.ndim == 2 else "static"
        arguments = {
            f"{kind}_faces_idx": faces_idx,
            f"{kind}_bary_coords": numbers("lmk_b_coords", content["lmk_b_coords"]),
        }
        if "landmark_indices" in content:
            arguments["static_ids"] = numbers("landmark_indices", content["landmark_indices"])
        return arguments
    arguments = {}
    for field, keys in _LANDMARK_KEYS.items():
        key = next((key for key in keys if key in content), None)
        if key is not None:
            arguments[field] = numbers(key, content[key])
    if not arguments:
        raise ValueError(f"no landmark embedding: it holds {_listed(content)}")
    return arguments


def ringnet_static(landmarks) -> bytes:
    """A LandmarkEmbedding's static points as RingNet's flame_static_embedding.pkl; with their numbers, where they have
    any, as MediaPipe's embedding has them."""
    content = _ringnet(landmarks.static_faces_idx, landmarks.static_bary_coords)
    return _pickle(content if landmarks.static_ids is None else content | {"landmark_indices": landmarks.static_ids})


def ringnet_dynamic(landmarks) -> bytes:
    """A LandmarkEmbedding's contour as RingNet's flame_dynamic_embedding.npy. Raises ValueError where it has none."""
    return _npy(_ringnet(*map(list, _contour(landmarks))))


def deca(landmarks) -> bytes:
    """A LandmarkEmbedding as DECA's landmark_embedding.npy, whose 68 fixed points are the frontal contour and the
    static ones. Raises ValueError where it has no contour."""
    import torch

    faces_idx, bary_coords = _contour(landmarks)
    return _npy({
        "static_lmk_faces_idx": landmarks.static_faces_idx,
        "static_lmk_bary_coords": landmarks.static_bary_coords,
        "dynamic_lmk_faces_idx": torch.tensor(faces_idx),
        "dynamic_lmk_bary_coords": torch.tensor(bary_coords),
        "full_lmk_faces_idx": np.concatenate([faces_idx[0], landmarks.static_faces_idx])[None],
        "full_lmk_bary_coords": np.concatenate([bary_coords[0], landmarks.static_bary_coords])[None],
    })  # fmt: skip


def ringnet_parameters(params: dict[str, np.ndarray]) -> bytes:
    """RingNet's parameters of a face as its demo's params/NAME.npy, a dictionary of cam, pose, shape and expression;
    for its NumPy and today's, which ask for ``allow_pickle=True`` to read it."""
    return _npy(params)


def _contour(landmarks):
    if landmarks.contour_faces_idx is None:
        raise ValueError("the landmarks have no contour")
    return landmarks.contour_faces_idx, landmarks.contour_bary_coords


def _ringnet(faces_idx, bary_coords):
    return {"lmk_face_idx": faces_idx, "lmk_b_coords": bary_coords}


def _pickle(value):
    # Protocol 2 and NumPy's former module name, which the readers of that time know and those of today still do
    return pickle.dumps(value, 2).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def _npy(value):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})
    return header.getvalue() + _pickle(np.array(value, dtype=object))


def region_arguments(content) -> dict[str, np.ndarray]:
    """Regions of a head, name -> vertex indices, from the content of FLAME_masks.pkl."""
    _require_dict(content, "regions")
    return {str(name): numbers(str(name), ids) for name, ids in content.items()}


def eyelid_arguments(left, right) -> np.ndarray:
    """Directions of the eyelids (V, 3, 2) from the content of l_eyelid.npy and r_eyelid.npy."""
    lids = {name: numbers(name, lid) for name, lid in (("left", left), ("right", right))}
    shapes = {lid.shape for lid in lids.values()}
    if len(shapes) > 1:
        raise ValueError(f"expected two arrays of the same shape (V, 3), got {' and '.join(map(str, sorted(shapes)))}")
    return np.stack(list(lids.values()), axis=-1)


def _below(prefix, content):
    return {
        key.removeprefix(prefix): numbers(key, value)
        for key, value in content.items()
        if isinstance(key, str) and key.startswith(prefix)
    }


def _require_dict(content, what):
    if not isinstance(content, dict):
        got = content.name if isinstance(content, Inert) else type(content).__name__
        raise ValueError(f"expected a dictionary with the arrays of {what}, got {got}")


def _require_keys(content, names):
    missing = [name for name in names if name not in content]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}; it holds {_listed(content)}")


def _listed(content):
    names = [str(name)[:40] for name in content]
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") or "nothing"
