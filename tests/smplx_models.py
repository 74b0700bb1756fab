"""smplx's body models of the sizes of the real ones, with random values: a regressor and weights as sparse as
theirs."""

import functools
import pickle
import tempfile
from pathlib import Path

import numpy as np
import torch

SIZES = {"FLAME": (5023, 5), "SMPL": (6890, 24), "SMPLH": (6890, 52), "SMPLX": (10475, 55), "MANO": (778, 16)}  # V, J
POSES = {  # what a call gives: name and number of values a batch element
    "FLAME": dict(global_orient=3, neck_pose=3, jaw_pose=3, leye_pose=3, reye_pose=3),
    "SMPL": dict(global_orient=3, body_pose=69),
    "SMPLH": dict(global_orient=3, body_pose=63, left_hand_pose=6, right_hand_pose=6),
    "SMPLX": dict(
        global_orient=3, body_pose=63, jaw_pose=3, leye_pose=3, reye_pose=3, left_hand_pose=6, right_hand_pose=6
    ),
    "MANO": dict(global_orient=3, hand_pose=6),
}


def fields(name: str) -> dict:
    """A model file's, as smplx reads them."""
    rng = np.random.default_rng(0)
    V, J = SIZES[name]
    F, joints, vertices = 60, np.arange(J), np.arange(V)
    shapes = 400 if name in ("FLAME", "SMPLX") else 10

    def normal(*shape, scale):
        return rng.standard_normal(shape, np.float32) * np.float32(scale)

    regressor, weights = np.zeros((J, V), np.float32), np.zeros((V, J), np.float32)
    for _ in range(20):
        regressor[joints, rng.integers(0, V, J)] += 0.05
    for k in range(4):  # neighbours move with the same joints
        weights[vertices, (vertices * J // V + k) % J] += rng.random(V, np.float32) + 0.1
    result = dict(
        v_template=normal(V, 3, scale=0.1),
        shapedirs=normal(V, 3, shapes, scale=0.003),
        posedirs=normal(V, 3, 9 * (J - 1), scale=0.003),
        J_regressor=regressor,
        weights=weights / weights.sum(1, keepdims=True),
        f=rng.integers(0, V, (F, 3)),
        kintree_table=np.stack([np.array([-1, *(int(rng.integers(0, j)) for j in range(1, J))]), joints]),
    )
    for side in ("l", "r", ""):
        result |= {f"hands_components{side}": normal(45, 45, scale=0.1), f"hands_mean{side}": normal(45, scale=0.1)}
    result |= dict(
        lmk_faces_idx=rng.integers(0, F, 51), lmk_bary_coords=rng.dirichlet(np.ones(3), 51),
        dynamic_lmk_faces_idx=rng.integers(0, F, (79, 17)), dynamic_lmk_bary_coords=rng.dirichlet(np.ones(3), (79, 17)),
    )  # fmt: skip
    return result


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()


def body_model(name: str, batch_size: int = 1, layer: bool = False, **options) -> torch.nn.Module:
    """An instance of smplx's class of this name, or of its layer's; options are its own."""
    import smplx

    folder = Path(_folder().name) / name
    path = folder / {"FLAME": "FLAME_NEUTRAL.pkl", "MANO": "MANO_RIGHT.pkl"}.get(name, f"{name}_NEUTRAL.pkl")
    if not path.exists():
        folder.mkdir()
        data = fields(name)
        static = {"lmk_face_idx": data["lmk_faces_idx"], "lmk_b_coords": data["lmk_bary_coords"]}
        (folder / "flame_static_embedding.pkl").write_bytes(pickle.dumps(static))
        path.write_bytes(pickle.dumps(data, 4))
    if name in ("SMPLH", "SMPLX", "MANO"):
        options.setdefault("ext", "pkl")
    return getattr(smplx, name + "Layer" * layer)(folder if name == "FLAME" else path, batch_size=batch_size, **options)


def arguments(module: torch.nn.Module, name: str, B: int, gradients: bool = False) -> dict[str, torch.Tensor]:
    """Of a call of the module."""
    g, like = torch.Generator().manual_seed(B), module.v_template
    sizes = dict(betas=module.num_betas) | POSES[name]
    if name in ("FLAME", "SMPLX"):
        sizes["expression"] = module.num_expression_coeffs
    return {key: (0.3 * torch.randn(B, n, generator=g)).to(like).requires_grad_(gradients) for key, n in sizes.items()}
