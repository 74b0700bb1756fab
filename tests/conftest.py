"""Fixtures shared by all tests: the device, and random models of any size."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

REQUIRE_CUDA = os.environ.get("RINGNET_REQUIRE_CUDA") == "1"


def cuda_works() -> bool:
    import _ringnet_core

    return torch.cuda.is_available() and bool(_ringnet_core.cuda_architectures)


@pytest.fixture(autouse=True)
def seed():
    """Random numbers that don't depend on which tests ran before."""
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", "cuda"])
def device(request) -> torch.device:
    """Each device in turn. CUDA is skipped where there is none, and fails instead where RINGNET_REQUIRE_CUDA=1."""
    if request.param == "cuda" and not cuda_works():
        reason = "needs a CUDA device and a build with RINGNET_CUDA=ON"
        if REQUIRE_CUDA:
            pytest.fail(f"RINGNET_REQUIRE_CUDA=1, but it {reason}")
        pytest.skip(reason)
    return torch.device(request.param)


@pytest.fixture(scope="session", params=["built-in", "FLAME"])
def head_files(request, tmp_path_factory) -> Path:
    """A folder with a head and its embeddings as RingNet publishes FLAME's: the built-in head's, and FLAME's own."""
    from heads import NO_REAL, REAL, write_head  # here: other scripts import this file before the package

    if request.param == "FLAME":
        if not REAL:
            pytest.skip(NO_REAL)
        return Path(REAL)
    folder = tmp_path_factory.mktemp("head")
    write_head(folder)
    return folder


@dataclass
class RandomModel:
    """A model without meaning, of any size, with sparse skinning as real ones have; float64 until asked for less."""

    v_template: torch.Tensor
    shapedirs: torch.Tensor
    posedirs: torch.Tensor
    J_regressor: torch.Tensor
    parents: torch.Tensor
    lbs_weights: torch.Tensor
    faces: torch.Tensor
    lmk_faces_idx: torch.Tensor
    lmk_bary_coords: torch.Tensor
    contour_faces_idx: torch.Tensor
    contour_bary_coords: torch.Tensor

    @classmethod
    def make(cls, V=101, K=7, J=5, L=10, C=4, seed=0) -> "RandomModel":
        g = torch.Generator().manual_seed(seed)

        def normal(*shape, scale=1.0):
            return scale * torch.randn(*shape, generator=g, dtype=torch.float64)

        def integers(high, *shape):
            return torch.randint(high, shape, generator=g)

        weights = torch.zeros(V, J, dtype=torch.float64)
        for _ in range(2):
            weights[torch.arange(V), integers(J, V)] += torch.rand(V, generator=g, dtype=torch.float64) + 0.1
        F = 2 * V
        return cls(
            v_template=normal(V, 3, scale=0.1),
            shapedirs=normal(V, 3, K, scale=0.003),
            posedirs=normal((J - 1) * 9, V * 3, scale=0.003),
            J_regressor=normal(J, V).softmax(1),
            parents=torch.tensor([-1, *(int(integers(j, 1)) for j in range(1, J))]),
            lbs_weights=weights / weights.sum(1, keepdim=True),
            faces=integers(V, F, 3),
            lmk_faces_idx=integers(F, L),
            lmk_bary_coords=normal(L, 3).softmax(1),
            contour_faces_idx=integers(F, 79, C),
            contour_bary_coords=normal(79, C, 3).softmax(2),
        )

    def to(self, device="cpu", dtype=torch.float64) -> "RandomModel":
        def convert(t):
            return t.to(device, dtype) if t.is_floating_point() else t.to(device)

        return RandomModel(**{name: convert(t) for name, t in vars(self).items()})

    @property
    def constants(self) -> tuple:
        """All of flame_lbs's arguments but betas and pose."""
        return (self.v_template, *self.fixed)

    @property
    def fixed(self) -> tuple:
        """flame_lbs's arguments after v_template."""
        return self.shapedirs, self.posedirs, self.J_regressor, self.parents, self.lbs_weights

    @property
    def embedding(self) -> tuple:
        """flame_landmarks's arguments after lbs_weights."""
        return (
            self.faces, self.lmk_faces_idx, self.lmk_bary_coords, self.contour_faces_idx, self.contour_bary_coords,
        )  # fmt: skip

    def inputs(self, B: int, seed=1) -> tuple[torch.Tensor, torch.Tensor]:
        """betas (B, K) and an axis-angle pose (B, 3 J), on the model's device and of its dtype."""
        g = torch.Generator().manual_seed(seed)
        betas = torch.randn(B, self.shapedirs.shape[2], generator=g, dtype=torch.float64)
        pose = 0.5 * torch.randn(B, 3 * len(self.parents), generator=g, dtype=torch.float64)
        return betas.to(self.shapedirs), pose.to(self.shapedirs)


@pytest.fixture
def random_model():
    """random_model(V=..., K=..., J=..., L=..., C=..., seed=...) -> RandomModel."""
    return RandomModel.make
