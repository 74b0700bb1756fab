"""Heads from wherever they are: model files, meshes, or the built-in one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..files.meshes import MESHES, read_mesh
from .landmarks import LandmarkEmbedding, given_embedding
from .model import FlameModel


def load_head(
    path: str | os.PathLike | None = None,
    landmarks: LandmarkEmbedding | str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    regions: str | os.PathLike | None = None,
    eyelids: tuple[str | os.PathLike, str | os.PathLike] | None = None,
) -> FlameModel:
    """A model file, a mesh (metres, y up, face towards +z) as a rigid head, or the built-in head for None.

    A mesh keeps the order of its file's vertices and triangles, and its texture coordinates.

    Args:
        landmarks: an embedding, the path of one, or the paths of RingNet's static and dynamic ones, in place of the
            head's own.
        regions: path of FLAME_masks.pkl.
        eyelids: paths of l_eyelid.npy and r_eyelid.npy, for a model file.

    Raises:
        ValueError: naming the file, for what cannot be read.
    """
    embedding = given_embedding(landmarks) if landmarks else None
    if path is not None and Path(path).suffix.lower() not in MESHES:
        return FlameModel.load(path, embedding, regions, eyelids)
    if eyelids is not None:
        raise ValueError(
            f"eyelids: expected a model file to go with them, got {'no model' if path is None else os.fspath(path)}"
        )
    if path is None:
        from .builtin import builtin_head

        head = builtin_head() if embedding is None else replace(builtin_head(), landmarks=embedding)
    else:
        mesh = read_mesh(path)
        head = FlameModel.rigid(mesh.vertices, mesh.faces, embedding, mesh.uv, mesh.uv_faces)
    return head if regions is None else head.with_regions(regions)


def require_landmarks(head: FlameModel, name: str = "head") -> None:
    """Raises ValueError, saying what to do, for a head without the 68 landmarks that RingNet is trained on; `name` says
    which head."""
    found = head.landmarks
    count = 0 if found is None else found.num_contour + found.num_static
    if count != 68:
        raise ValueError(
            f"{name}: expected a model with iBUG's 68 landmarks, 17 of the contour and 51 inner ones, and this one has "
            f"{count or 'none'}; store them with it: ringnet convert MODEL HEAD.npz --landmarks EMBEDDING"
        )
