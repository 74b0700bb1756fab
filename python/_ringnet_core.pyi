"""The compute core of ringnet_ext. Takes addresses: use :mod:`ringnet_ext.ops`, which checks them.

``where`` is the number of threads on the CPU, the stream's handle on a CUDA device. Sizes and strides are in elements.
"""

from collections.abc import Callable
from typing import Self

from torch import Tensor

__version__: str
cuda_architectures: str
openmp: bool

def simd_level() -> str: ...

class Buffer:
    """Memory of so many bytes, with Python's buffer protocol. What the last one leaves is kept for the next one of its size."""

    def __init__(self, bytes: int, /) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    @staticmethod
    def release_spare() -> None: ...

class Marks:
    """What tensors (or None) were when something was made of them: which, where, and how often written to. Holds them weakly."""

    constant: bool
    """Whether they are all of PyTorch's own types, and autograd follows none."""

    def __init__(self, tensors: tuple[Tensor | None, ...], on_death: Callable[[object], object], /) -> None: ...
    def unchanged(self, tensors: tuple[Tensor | None, ...], /) -> bool:
        """Whether these are the same tensors, and nothing has happened to them."""

def batch_size(tensors: tuple[Tensor | None, ...], widths: tuple[int, ...], like: Tensor, /) -> int:
    """B where a kernel can take the tensors that are there, (B, width) each, and of the type and device of ``like``; otherwise -1."""

def shaped_like(tensors: tuple[Tensor | None, ...], shapes: tuple[tuple[int, ...], ...], like: Tensor, /) -> bool:
    """Whether a kernel can take the tensors that are there, of these shapes, and of the type and device of ``like``."""

def use_exchange(wanted: bool, /) -> None:
    """Whether tensors are read through DLPack's C exchange interface, where PyTorch has it, or through their attributes."""

class LbsModelF32:
    def __init__(
        self, is_cuda: bool, V: int, K: int, J: int, parents: int, joint_dirs: int, packed: int, index: int
    ) -> None: ...
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
        is_cuda: bool, V: int, K: int, J: int, shapedirs: int, posedirs: int, lbs_weights: int, packed: int, index: int,
        where: int, /,
    ) -> None: ...
    def with_landmarks(self, L: int, C: int, neck_joint: int, vertices: int, points: int, bary: int, /) -> Self:
        """The model with landmarks, which forward can give then, and backward take. Only for the CPU."""

    def forward(
        self, B: int, betas: int, betas_stride: int, pose: int, pose_stride: int, axis_angle: bool, v_template: int,
        v_template_stride: int, joint_template: int, joint_template_stride: int, keep: bool, state: int, vertices: int,
        joints: int, landmarks: int, where: int, /,
    ) -> None: ...
    def backward(
        self, B: int, betas: int, betas_stride: int, pose: int, pose_stride: int, axis_angle: bool, joint_template: int,
        joint_template_stride: int, state: int, grad_vertices: int, stride_b: int, stride_v: int, stride_c: int,
        grad_joints: int, grad_landmarks: int, landmarks_stride_b: int, landmarks_stride_l: int, landmarks_stride_c: int,
        grad_betas: int, grad_pose: int, grad_v_template: int, grad_v_template_shared: bool, grad_joint_template: int,
        workspace: int, where: int, /,
    ) -> None: ...

class LbsModelF64(LbsModelF32): ...

class LandmarkModelF32:
    def __init__(
        self, is_cuda: bool, K: int, J: int, L: int, C: int, neck_joint: int, parents: int, joint_dirs: int,
        joint_template: int, packed: int, index: int,
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
        is_cuda: bool, V: int, K: int, J: int, L: int, C: int, shapedirs: int, posedirs: int, lbs_weights: int,
        v_template: int, static_vertices: int, static_bary: int, contour_vertices: int, contour_bary: int, packed: int,
        index: int, where: int, /,
    ) -> None: ...
    def forward(
        self, B: int, betas: int, betas_stride: int, pose: int, pose_stride: int, axis_angle: bool, keep: bool, state: int,
        landmarks: int, where: int, /,
    ) -> None: ...
    def on_mesh(
        self, static_vertices: int, contour_vertices: int, B: int, V: int, vertices: int, mesh_state: int, keep: bool,
        state: int, landmarks: int, where: int, /,
    ) -> None: ...
    def backward(
        self, B: int, betas: int, betas_stride: int, pose: int, pose_stride: int, axis_angle: bool, state: int,
        grad_landmarks: int, stride_b: int, stride_l: int, stride_c: int, grad_betas: int, grad_pose: int, workspace: int,
        where: int, /,
    ) -> None: ...

class LandmarkModelF64(LandmarkModelF32): ...

def regress_joints_f32(
    B: int, V: int, J: int, M: int, regressor: int, values: int, values_stride: int, joints: int, threads: int, /
) -> None: ...
def regress_joints_f64(
    B: int, V: int, J: int, M: int, regressor: int, values: int, values_stride: int, joints: int, threads: int, /
) -> None: ...
def rodrigues_forward_f32(is_cuda: bool, N: int, rot_vecs: int, matrices: int, where: int, /) -> None: ...
def rodrigues_forward_f64(is_cuda: bool, N: int, rot_vecs: int, matrices: int, where: int, /) -> None: ...
def rodrigues_backward_f32(
    is_cuda: bool, N: int, rot_vecs: int, grad_matrices: int, grad_rot_vecs: int, where: int, /
) -> None: ...
def rodrigues_backward_f64(
    is_cuda: bool, N: int, rot_vecs: int, grad_matrices: int, grad_rot_vecs: int, where: int, /
) -> None: ...
def vertices2landmarks_forward_f32(
    is_cuda: bool, B: int, V: int, F: int, L: int, vertices: int, vertices_stride: int, faces: int, lmk_faces_idx: int,
    lmk_faces_idx_stride: int, lmk_bary_coords: int, lmk_bary_coords_stride: int, landmarks: int, where: int, /,
) -> None: ...
def vertices2landmarks_forward_f64(
    is_cuda: bool, B: int, V: int, F: int, L: int, vertices: int, vertices_stride: int, faces: int, lmk_faces_idx: int,
    lmk_faces_idx_stride: int, lmk_bary_coords: int, lmk_bary_coords_stride: int, landmarks: int, where: int, /,
) -> None: ...
def vertices2landmarks_backward_f32(
    is_cuda: bool, B: int, V: int, F: int, L: int, faces: int, lmk_faces_idx: int, lmk_faces_idx_stride: int,
    lmk_bary_coords: int, lmk_bary_coords_stride: int, grad_landmarks: int, grad_vertices: int, where: int, /,
) -> None: ...
def vertices2landmarks_backward_f64(
    is_cuda: bool, B: int, V: int, F: int, L: int, faces: int, lmk_faces_idx: int, lmk_faces_idx_stride: int,
    lmk_bary_coords: int, lmk_bary_coords_stride: int, grad_landmarks: int, grad_vertices: int, where: int, /,
) -> None: ...
