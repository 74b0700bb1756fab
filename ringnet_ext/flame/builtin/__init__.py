"""The built-in head: a procedural head model in FLAME's layout, free of anyone's data."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..model import FlameModel
from . import directions, embedding, rig, template

__all__ = ["builtin_head"]

_METRES = 1e-3
_TRACE = 1e-20  # metres


@lru_cache(maxsize=1)
def builtin_head() -> FlameModel:
    """The built-in head, made on first use (in about a second) and kept; nothing about it is random.

    5,023 vertices (3,931 of the skin, 546 of the left, 546 of the right eyeball), 9,976 triangles, 100 shape directions
    (orthogonal, sorted by RMS, 4 mm RMS in all) and 50 expressions, both for standard normal coefficients, 36 pose
    correctives, 5 joints, 68 landmarks. The arrays are shared and read-only.
    """
    head = template.build()
    weights = rig.skinning_weights(head)
    normals = vertex_normals(head)
    fields = directions.Fields(head)
    jaw = weights[:, rig.JAW]
    expressions = np.stack(list(directions.expression_fields(fields, jaw).values()), -1)
    correctives = rig.pose_correctives(head, directions.pose_fields(fields, jaw))
    model = FlameModel(
        v_template=head.vertices * _METRES,
        shapedirs=without_traces(directions.shape_directions(head, normals) * _METRES),
        expressiondirs=without_traces(expressions * _METRES),
        posedirs=without_traces(correctives * _METRES),
        J_regressor=rig.regressor(head),
        parents=rig.PARENTS,
        lbs_weights=weights,
        faces=head.faces,
        landmarks=embedding.landmark_embedding(head),
        regions=embedding.regions(head),
    )
    for array in (*vars(model).values(), *model.landmarks.arrays().values(), *model.regions.values()):
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
    return model


def without_traces(values: np.ndarray) -> np.ndarray:
    """The smooth fields without what is left of them far from where they act: nobody sees it, and where it is subnormal in
    single precision, or its products are, many processors take a hundred times as long for them."""
    return np.where(np.abs(values) < _TRACE, 0, values)


def vertex_normals(head: template.Template) -> np.ndarray:
    """Unit normals (V, 3) of the mean head."""
    a, b, c = (head.vertices[head.faces[:, k]] for k in range(3))
    normals = np.zeros_like(head.vertices)
    for k in range(3):
        np.add.at(normals, head.faces[:, k], np.cross(b - a, c - a))
    return normals / np.linalg.norm(normals, axis=1, keepdims=True)
