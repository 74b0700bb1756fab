"""What is written of a reconstructed face."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
import trimesh

from ..files.images import write_image
from ..files.whole import written_whole
from ..render.sheets import sheet
from .panels import PANELS, panel
from .reconstruction import Reconstruction

KINDS = ("images", "mesh", "neutral_mesh", "params")


# What is written.


def write_reconstruction(folder: Path, name: str, face: Reconstruction, **more: np.ndarray) -> list[Path]:
    """Write the panel picture, both meshes and the parameters of one face under a name: all of them or none.

    more: further arrays for the file of parameters.
    """
    for kind in KINDS:
        (folder / kind).mkdir(parents=True, exist_ok=True)
    picture, mesh, neutral, arrays = (
        folder / kind / f"{name}.{suffix}" for kind, suffix in zip(KINDS, ("png", "obj", "obj", "npz"), strict=True)
    )
    try:
        write_image(picture, sheet([panel(face)], columns=PANELS))
        for target, vertices in ((mesh, face.vertices), (neutral, face.neutral_vertices)):
            content = trimesh.Trimesh(vertices, face.faces, process=False).export(
                file_type="obj", include_normals=False
            )
            with written_whole(target) as file:
                file.write(content.encode())
        with written_whole(arrays) as file:
            file.write(_parameters(face, more))
    except BaseException:
        for target in (picture, mesh, neutral, arrays):
            target.unlink(missing_ok=True)
        raise
    return [picture, mesh, neutral, arrays]


def _parameters(face: Reconstruction, more: dict[str, np.ndarray]) -> bytes:
    """An .npz file."""
    params = face.params
    arrays = {
        "cam": params.camera[0],
        "pose": torch.cat([params.global_pose, params.jaw_pose], dim=1)[0],
        "shape": params.shape[0],
        "expression": params.expression[0],
    }
    buffer = io.BytesIO()
    np.savez(buffer, landmarks=face.landmarks, **{key: value.numpy() for key, value in arrays.items()}, **more)
    return buffer.getvalue()
