"""Heads from wherever they are: model files, meshes, or the built-in one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .landmarks import LandmarkEmbedding
from .model import FlameModel

MESHES = (".obj", ".ply", ".stl", ".off", ".glb")


def load_head(
    path: str | os.PathLike | None = None,
    landmarks: Sequence[str | os.PathLike] | None = None,
    regions: str | os.PathLike | None = None,
) -> FlameModel:
    """A model file, a mesh (metres, y up, face towards +z) as a rigid head, or the built-in head for None.

    landmarks  paths of an embedding, or of RingNet's static and dynamic ones, in place of the head's own
    regions    path of FLAME_masks.pkl, for a model file

    Raises ValueError, naming the file, for what cannot be read.
    """
    embedding = LandmarkEmbedding.load(*landmarks) if landmarks else None
    if path is None:
        from .builtin import builtin_head

        return builtin_head() if embedding is None else replace(builtin_head(), landmarks=embedding)
    if Path(path).suffix.lower() not in MESHES:
        return FlameModel.load(path, embedding, regions)
    import trimesh

    try:
        mesh = trimesh.load(path, process=False, force="mesh")
        return FlameModel.rigid(mesh.vertices, mesh.faces, embedding)
    except (FileNotFoundError, ValueError):
        raise
    except Exception as error:  # whatever its readers of broken files raise
        raise ValueError(f"{os.fspath(path)}: not a mesh that can be read: {error}") from error
