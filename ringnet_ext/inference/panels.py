"""What a run looks like: its curves, and faces beside their reconstructions."""

from __future__ import annotations

import numpy as np

from ..detection.squares import INPUT_SIZE
from ..render.pictures import head_picture, mark_points, overlay, write_text
from ..render.sheets import sheet
from .reconstruction import Reconstruction

PANELS = ["input", "overlay", "mesh", "mesh, turned", "neutral"]
_TURNED = np.radians(50)


def panel(face: Reconstruction) -> list[np.ndarray]:
    """Pictures of one reconstruction, (224, 224, 3) each, in the order of :data:`PANELS`."""
    camera = face.params.camera[0].numpy()
    over = overlay(face.image, face.image_vertices, face.faces, camera)
    mark_points(over, face.square_landmarks)
    if face.trust.score is not None:
        write_text(over, f"score {face.trust.score:.2f}")
    # The view from the side is turned against the pose, so that it shows what the photograph doesn't.
    turn = -_TURNED if face.yaw > 0 else _TURNED
    return [
        face.image,
        over,
        head_picture(face.vertices, face.faces, INPUT_SIZE),
        head_picture(face.vertices, face.faces, INPUT_SIZE, yaw=turn),
        head_picture(face.neutral_vertices, face.faces, INPUT_SIZE),
    ]


def reconstructions(faces: list[Reconstruction]) -> np.ndarray:
    """One row of panels a face."""
    return sheet([panel(face) for face in faces], columns=PANELS)
