"""The built-in head: a procedural head model in FLAME's layout, free of anyone's data.

:mod:`.program` computes it. What it computes differs in its last bits between processors, numbers of threads and
versions of NumPy, as sines, exponentials and sums of products do; so the package has what it computed once, in
``head.npz``, and the head is the same numbers everywhere.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from ...files.arrays import read_file
from ..landmarks import LandmarkEmbedding
from ..model import FlameModel

__all__ = ["VERSION", "builtin_head"]

#: Of the numbers in ``head.npz``: raised whenever they change. What was trained on one version is for that version
# only.
VERSION = 1

#: Directions are whole multiples of this, metres: a 70th of a micrometre. They are exact in single precision.
GRID = 2.0**-26

FILE = Path(__file__).with_name("head.npz")
_SHAPES, _EXPRESSIONS = 100, 50


@lru_cache(maxsize=1)
def builtin_head() -> FlameModel:
    """The built-in head, read on first use and kept: the same bits on every machine.

    5,023 vertices (3,931 of the skin, 546 of the left, 546 of the right eyeball), 9,976 triangles, 100 shape directions
    (orthogonal to 1e-4, sorted by RMS, 4 mm RMS in all) and 50 expressions, both for standard normal coefficients, 36
    pose correctives, 5 joints, 68 landmarks. The arrays are shared and read-only.
    """
    arrays = read_file(FILE)
    directions = _unpacked(arrays.pop("directions"), len(arrays["v_template"]))
    groups: dict[str, dict[str, np.ndarray]] = {"": {}, "landmarks": {}, "regions": {}}
    for name, array in arrays.items():
        group, _, rest = name.rpartition("/")
        groups[group][rest] = array
    shapes, expressions, correctives = np.split(directions, [_SHAPES, _SHAPES + _EXPRESSIONS], axis=2)
    landmarks = LandmarkEmbedding(**groups["landmarks"])
    model = FlameModel(
        shapedirs=np.ascontiguousarray(shapes),
        expressiondirs=np.ascontiguousarray(expressions),
        posedirs=np.ascontiguousarray(correctives),
        landmarks=landmarks,
        regions=groups["regions"],
        **groups[""],
    )
    for array in (*vars(model).values(), *landmarks.arrays().values(), *model.regions.values()):
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
    return model


def stored_arrays(head: FlameModel) -> dict[str, np.ndarray]:
    """What the file holds of a head: directions on the grid, everything else as it is."""
    directions = np.concatenate([head.shapedirs, head.expressiondirs, head.posedirs], axis=2)
    names = ("v_template", "J_regressor", "parents", "lbs_weights", "faces")
    landmarks = {} if head.landmarks is None else head.landmarks.arrays()
    return (
        {name: getattr(head, name) for name in names}
        | {"directions": _packed(directions)}
        | {f"landmarks/{name}": array for name, array in landmarks.items()}
        | {f"regions/{name}": ids for name, ids in head.regions.items()}
    )


# Neighbouring vertices move alike, so the differences between one and the next are small, and their upper bytes, put
# together, compress well.


def _packed(directions: np.ndarray) -> np.ndarray:
    """(V, 3, K) metres -> (4, 3 V K) uint8, the bytes of differences on the grid."""
    steps = np.rint(directions / GRID).astype("<i4").transpose(2, 1, 0)
    differences = np.ascontiguousarray(np.diff(steps, axis=2, prepend=np.int32(0)))
    return np.ascontiguousarray(differences.view(np.uint8).reshape(-1, 4).T)


def _unpacked(planes: np.ndarray, vertices: int) -> np.ndarray:
    differences = np.ascontiguousarray(planes.T).view("<i4").reshape(-1, 3, vertices)
    return (differences.cumsum(axis=2, dtype=np.int32) * GRID).transpose(2, 1, 0)
