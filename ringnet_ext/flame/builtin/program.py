"""The program that makes the built-in head. It runs in about a second, and nothing about it is random."""

from __future__ import annotations

import numpy as np

from ...geometry.surface import vertex_normals
from ..model import FlameModel
from . import directions, embedding, rig, template

_METRES = 1e-3


def compute() -> FlameModel:
    """The built-in head, to the last bits but one or two: :func:`.builtin_head` has what this gave once."""
    head = template.build()
    weights = rig.skinning_weights(head)
    normals = vertex_normals(head.vertices, head.faces)
    fields = directions.Fields(head)
    jaw = weights[:, rig.JAW]
    expressions = np.stack(list(directions.expression_fields(fields, jaw).values()), -1)
    correctives = rig.pose_correctives(head, directions.pose_fields(fields, jaw))
    return FlameModel(
        v_template=head.vertices * _METRES,
        shapedirs=directions.shape_directions(head, normals) * _METRES,
        expressiondirs=expressions * _METRES,
        posedirs=correctives * _METRES,
        J_regressor=rig.regressor(head),
        parents=rig.PARENTS,
        lbs_weights=weights,
        faces=head.faces,
        landmarks=embedding.landmark_embedding(head),
        regions=embedding.regions(head),
    )
