"""The compute core of ringnet_ext. Trusts the tensors it is given: use :mod:`ringnet_ext.ops`, which checks them.

Calls run where their tensors live: on the CPU with PyTorch's number of threads, on a CUDA device on PyTorch's current
stream. Shapes and meanings are those of the structures in csrc/ops.h; rows may have any distance from each other,
gradients any strides.
"""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from torch import Tensor
from typing_extensions import Self

Entry = TypeVar("Entry")

__version__: str
compiler: str
cuda_architectures: str
openmp: bool

def simd_level() -> str: ...
def discard(address: int, bytes: int, /) -> None:
    """Lets the system have these pages, if it runs short of them before they are written again. Their values are
    lost."""

def vertex_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Unit normals (V, 3), in the vertices' dtype, of (V, 3) float32 or float64 vertices and (F, 3) int64 triangles.
    ValueError for other shapes, IndexError for a vertex that there isn't."""

def number_lines(word: bytes, numbers: np.ndarray, decimals: int) -> bytes | None:
    """A line for each row of (N, C) float32 or float64 numbers: the word, of four bytes at most, and after a space
    each number with 4 or 8 decimals. None where one has more than 15 digits or is not finite."""

class Tag:
    """Lies in the ``__dict__`` of a tensor of which there are marks, and dies with the tensor."""

class Marks:
    """What tensors (or None) were when something was made of them: which, where, how often written to, and what they
    held."""

    constant: bool
    """Whether they are all of PyTorch's own types."""

    def __init__(self, tensors: tuple[Tensor | None, ...], on_death: Callable[[object], object]) -> None: ...

def key(tensors: tuple[Tensor | None, ...], settings: tuple, /) -> tuple:
    """What tensors and settings are known by: a tensor by its identity, few integers in host memory by their values."""

def find(entries: dict[tuple, Entry], tensors: tuple[Tensor | None, ...], settings: tuple, again: bool) -> Entry | None:
    """The entry of these tensors and settings, where its ``marks`` see no change; otherwise None.

    When tensors are looked for again for the first time, nothing is found: their values are noted only then. Nothing is
    found again where autograd follows a tensor. ``again`` is false for the use that the marks were made for."""

def seen_again(tensor: Tensor, /) -> bool:
    """Whether a tensor of which there are marks was looked for again."""

def batch_size(tensors: tuple[Tensor | None, ...], widths: tuple[int, ...], like: Tensor, /) -> int:
    """B where a kernel can take the tensors that are there, (B, width) each, and of the type and device of ``like``;
    otherwise -1."""

def shaped_like(
    tensors: tuple[Tensor | None, ...],
    shapes: tuple[tuple[int, ...] | None, ...],
    like: Tensor,
    /,
    contiguous: bool = False,
) -> bool:
    """Whether a kernel can take the tensors that are there, of these shapes, and of the type and device of ``like``."""

def use_exchange(wanted: bool, /) -> None:
    """Whether tensors are read through DLPack's C exchange interface, where PyTorch has it, or through their
    attributes."""

class DirectionsF32:
    """Those of shapedirs (V, 3, K) or posedirs (9 (J - 1), 3 V), packed or as they lie. Only for the CPU."""

    def __init__(self, *, source: Tensor, packed: Tensor | None, index: Tensor | None) -> None: ...
    @staticmethod
    def packed_size(V: int, count: int, /) -> int: ...
    @staticmethod
    def index_size(V: int, count: int, /) -> int: ...
    @staticmethod
    def pack(*, source: Tensor, packed: Tensor, index: Tensor) -> None: ...

class DirectionsF64(DirectionsF32): ...

class LbsModelF32:
    def __init__(
        self,
        *,
        is_cuda: bool,
        V: int,
        parents: Tensor,
        joint_dirs: Tensor,
        packed: Tensor,
        index: Tensor,
        shape: DirectionsF32 | None,
        pose: DirectionsF32 | None,
    ) -> None: ...
    @staticmethod
    def separate_directions(is_cuda: bool, /) -> bool:
        """Whether shape and pose are expected, and pack takes the weights only."""
    @staticmethod
    def packed_size(is_cuda: bool, V: int, K: int, J: int, /) -> int: ...
    @staticmethod
    def index_size(is_cuda: bool, V: int, K: int, J: int, /) -> int: ...
    @staticmethod
    def state_size(is_cuda: bool, V: int, K: int, J: int, keep: bool, /) -> int: ...
    @staticmethod
    def workspace_size(is_cuda: bool, B: int, V: int, K: int, J: int, template_shared: bool, /) -> int: ...
    @staticmethod
    def pack(
        *,
        is_cuda: bool,
        shapedirs: Tensor | None,
        posedirs: Tensor | None,
        lbs_weights: Tensor,
        packed: Tensor,
        index: Tensor,
    ) -> None: ...
    def with_landmarks(
        self, *, L: int, C: int, neck_joint: int, vertices: Tensor, points: Tensor, bary: Tensor
    ) -> Self:
        """The model with landmarks, which forward can give then, and backward take. Only for the CPU."""

    def forward(
        self,
        *,
        betas: Tensor,
        pose: Tensor,
        axis_angle: bool,
        v_template: Tensor,
        joint_template: Tensor,
        keep: bool,
        state: Tensor | None,
        vertices: Tensor,
        joints: Tensor,
        landmarks: Tensor | None,
    ) -> None: ...
    def backward(
        self,
        *,
        betas: Tensor,
        pose: Tensor,
        axis_angle: bool,
        joint_template: Tensor,
        state: Tensor,
        grad_vertices: Tensor | None,
        grad_joints: Tensor | None,
        grad_landmarks: Tensor | None,
        grad_betas: Tensor | None,
        grad_pose: Tensor | None,
        grad_v_template: Tensor | None,
        grad_joint_template: Tensor | None,
        workspace: Tensor | None,
    ) -> None: ...

class LbsModelF64(LbsModelF32): ...

class LandmarkModelF32:
    def __init__(
        self,
        *,
        is_cuda: bool,
        L: int,
        C: int,
        neck_joint: int,
        parents: Tensor,
        joint_dirs: Tensor,
        joint_template: Tensor,
        packed: Tensor,
        index: Tensor,
    ) -> None: ...
    @staticmethod
    def packed_size(is_cuda: bool, K: int, J: int, L: int, C: int, /) -> int: ...
    @staticmethod
    def index_size(is_cuda: bool, K: int, J: int, L: int, C: int, /) -> int: ...
    @staticmethod
    def state_size(is_cuda: bool, K: int, J: int, L: int, C: int, keep: bool, /) -> int: ...
    @staticmethod
    def workspace_size(is_cuda: bool, B: int, K: int, J: int, L: int, C: int, /) -> int: ...
    @staticmethod
    def pack(
        *,
        is_cuda: bool,
        shapedirs: Tensor,
        posedirs: Tensor,
        lbs_weights: Tensor,
        v_template: Tensor,
        static_vertices: Tensor,
        static_bary: Tensor,
        contour_vertices: Tensor | None,
        contour_bary: Tensor | None,
        packed: Tensor,
        index: Tensor,
    ) -> None: ...
    def forward(
        self, *, betas: Tensor, pose: Tensor, axis_angle: bool, keep: bool, state: Tensor | None, landmarks: Tensor
    ) -> None: ...
    def on_mesh(
        self,
        *,
        static_vertices: Tensor,
        contour_vertices: Tensor | None,
        vertices: Tensor,
        mesh_state: Tensor,
        keep: bool,
        state: Tensor | None,
        landmarks: Tensor,
    ) -> None: ...
    def backward(
        self,
        *,
        betas: Tensor,
        pose: Tensor,
        axis_angle: bool,
        state: Tensor,
        grad_landmarks: Tensor,
        grad_betas: Tensor | None,
        grad_pose: Tensor | None,
        workspace: Tensor | None,
    ) -> None: ...
    @staticmethod
    def jacobian_workspace_size(is_cuda: bool, B: int, K: int, J: int, L: int, C: int, /) -> int: ...
    def jacobian(
        self,
        *,
        betas: Tensor,
        pose: Tensor,
        axis_angle: bool,
        landmarks: Tensor,
        d_betas: Tensor,
        d_pose: Tensor,
        workspace: Tensor | None,
    ) -> None: ...

class LandmarkModelF64(LandmarkModelF32): ...

def regress_joints_f32(*, regressor: Tensor, values: Tensor, joints: Tensor) -> None: ...
def regress_joints_f64(*, regressor: Tensor, values: Tensor, joints: Tensor) -> None: ...
def rodrigues_forward_f32(*, is_cuda: bool, rot_vecs: Tensor, matrices: Tensor) -> None: ...
def rodrigues_forward_f64(*, is_cuda: bool, rot_vecs: Tensor, matrices: Tensor) -> None: ...
def rodrigues_backward_f32(
    *, is_cuda: bool, rot_vecs: Tensor, grad_matrices: Tensor, grad_rot_vecs: Tensor
) -> None: ...
def rodrigues_backward_f64(
    *, is_cuda: bool, rot_vecs: Tensor, grad_matrices: Tensor, grad_rot_vecs: Tensor
) -> None: ...
def vertices2landmarks_forward_f32(
    *, is_cuda: bool, vertices: Tensor, faces: Tensor, lmk_faces_idx: Tensor, lmk_bary_coords: Tensor, landmarks: Tensor
) -> None: ...
def vertices2landmarks_forward_f64(
    *, is_cuda: bool, vertices: Tensor, faces: Tensor, lmk_faces_idx: Tensor, lmk_bary_coords: Tensor, landmarks: Tensor
) -> None: ...
def vertices2landmarks_backward_f32(
    *,
    is_cuda: bool,
    faces: Tensor,
    lmk_faces_idx: Tensor,
    lmk_bary_coords: Tensor,
    grad_landmarks: Tensor,
    grad_vertices: Tensor,
) -> None: ...
def vertices2landmarks_backward_f64(
    *,
    is_cuda: bool,
    faces: Tensor,
    lmk_faces_idx: Tensor,
    lmk_bary_coords: Tensor,
    grad_landmarks: Tensor,
    grad_vertices: Tensor,
) -> None: ...
