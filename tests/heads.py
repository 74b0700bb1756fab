"""Heads for the tests: small random models, and FLAME's real surface where it is at hand."""

from pathlib import Path

import numpy as np
import pytest

from ringnet_ext.flame import FlameModel, LandmarkEmbedding

RINGNET_DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "ringnet"

needs_ringnet_data = pytest.mark.skipif(
    not RINGNET_DATA.is_dir(), reason=f"the real FLAME surface and RingNet's embeddings are not at {RINGNET_DATA}"
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


def real_embedding():
    return LandmarkEmbedding.load(
        RINGNET_DATA / "flame_static_embedding.pkl", RINGNET_DATA / "flame_dynamic_embedding.npy"
    )


def real_head():
    """FLAME's real surface, without directions: one rigid head on FLAME's five joints."""
    import trimesh

    mesh = trimesh.load(RINGNET_DATA / "FLAME_sample.ply", process=False)
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
        landmarks=real_embedding(),
    )
