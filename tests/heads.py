"""Heads for the tests: small random models, and a head with its embeddings in the files that RingNet publishes."""

import io
import os
from pathlib import Path

import numpy as np
from flame_files import python2_pickle

from ringnet_ext.files.meshes import read_mesh
from ringnet_ext.flame import FlameModel, LandmarkEmbedding, builtin_head

MESH, STATIC, DYNAMIC = "FLAME_sample.ply", "flame_static_embedding.pkl", "flame_dynamic_embedding.npy"
REAL = os.environ.get("RINGNET_TEST_DATA")
NO_REAL = (
    f"needs FLAME's surface: set RINGNET_TEST_DATA to a folder with {MESH}, {STATIC} and {DYNAMIC}, which are in the "
    "folder flame_model of https://github.com/soubhiksanyal/RingNet"
)


def random_embedding(rng, faces, static=51, contour=17):
    return LandmarkEmbedding(
        static_faces_idx=rng.integers(0, faces, static),
        static_bary_coords=rng.dirichlet(np.ones(3), static),
        contour_faces_idx=rng.integers(0, faces, (79, contour)),
        contour_bary_coords=rng.dirichlet(np.ones(3), (79, contour)),
    )


def random_model(seed=0, V=60, J=5, S=7, E=4, F=90, landmarks=True):
    """A model of SMPL's family with nothing special about it: any J, any tree, dense weights."""
    rng = np.random.default_rng(seed)
    return FlameModel(
        v_template=rng.normal(0, 0.1, (V, 3)),
        shapedirs=rng.normal(0, 0.01, (V, 3, S)),
        expressiondirs=rng.normal(0, 0.01, (V, 3, E)),
        posedirs=rng.normal(0, 0.01, (V, 3, 9 * (J - 1))),
        J_regressor=rng.dirichlet(np.full(V, 0.1), J),
        parents=[-1, *(rng.integers(0, j) for j in range(1, J))],
        lbs_weights=rng.dirichlet(np.full(J, 0.3), V),
        faces=rng.permuted(np.tile(np.arange(V), (F, 1)), axis=1)[:, :3],
        landmarks=random_embedding(rng, F) if landmarks else None,
        regions={"face": rng.integers(0, V, 10)},
    )


def write_head(folder: Path) -> None:
    """The built-in head's surface and landmarks, in the files and formats in which RingNet publishes FLAME's."""
    import trimesh

    head = builtin_head()
    trimesh.Trimesh(head.v_template, head.faces, process=False).export(folder / MESH)
    marks = head.landmarks
    static = {"lmk_face_idx": marks.static_faces_idx.astype(np.uint32), "lmk_b_coords": marks.static_bary_coords}
    (folder / STATIC).write_bytes(python2_pickle(static, protocol=0))
    dynamic = np.empty((), object)
    dynamic[()] = {"lmk_face_idx": list(marks.contour_faces_idx), "lmk_b_coords": list(marks.contour_bary_coords)}
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
    (folder / DYNAMIC).write_bytes(file.getvalue() + python2_pickle(dynamic, protocol=2))


def read_embedding(folder: Path) -> LandmarkEmbedding:
    return LandmarkEmbedding.load(folder / STATIC, folder / DYNAMIC)


def read_head(folder: Path) -> FlameModel:
    """The surface of such a folder, without directions: one rigid head on FLAME's five joints."""
    mesh = read_mesh(folder / MESH)
    V = len(mesh.vertices)
    weights = np.zeros((V, 5))
    weights[:, 1] = 1  # all of it follows the neck, as a head does
    return FlameModel(
        v_template=mesh.vertices,
        shapedirs=np.zeros((V, 3, 0)),
        expressiondirs=np.zeros((V, 3, 0)),
        posedirs=np.zeros((V, 3, 36)),
        J_regressor=np.full((5, V), 1 / V),
        parents=[-1, 0, 1, 1, 1],
        lbs_weights=weights,
        faces=mesh.faces,
        landmarks=read_embedding(folder),
    )
