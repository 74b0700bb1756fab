"""Argument checks. Each error names the argument, what was expected and what came.

Shapes, dtypes and devices are checked here, on real tensors and on the fake ones of a compiler alike; indices are
checked where a model is prepared, because only real tensors have values.
"""

import operator
from typing import Any

import _ringnet_core as core
import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64)
HALVES = (torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32)


def require(condition: bool, argument: str, expected: str, got: object) -> None:
    if not condition:
        raise ValueError(f"{argument}: expected {expected}, got {got}")


def require_dense(argument: str, value: object) -> None:
    """Raises where value isn't a tensor, or is sparse, nested, quantised or on the meta device."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{argument}: expected a tensor, got {type(value).__name__}")
    if value.is_nested or value.layout is not torch.strided:
        raise ValueError(
            f"{argument}: expected a dense tensor, got {'a nested one' if value.is_nested else value.layout}"
        )
    if value.is_quantized:
        raise TypeError(
            f"{argument}: expected float32 or float64, got {str(value.dtype).removeprefix('torch.')}, quantised"
        )
    if value.is_meta:
        raise ValueError(f"{argument}: expected a tensor with values, got one on the meta device")


def raised(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors, those of half precision converted to the type of the last one that isn't, or to float32."""
    full = [t.dtype for t in tensors if t.dtype in FLOATS]
    return tuple(t.to(full[-1] if full else torch.float32) if t.dtype in HALVES else t for t in tensors)


def require_integer(argument: str, value: Any) -> None:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{argument}: expected an integer, got {type(value).__name__}") from None
    require(-(2**63) <= number < 2**63, argument, "an integer of 64 bits", value)


def require_boolean(argument: str, value: object) -> None:
    if isinstance(value, Tensor) or value not in (True, False):
        raise TypeError(f"{argument}: expected True or False, got {value!r}")


def require_dtype(dtype: object) -> None:
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype: expected a torch.dtype or None, got {dtype!r}")


def require_tensor(argument: str, value: Any, shape: tuple, like: Tensor | None = None, dtypes: tuple = FLOATS) -> None:
    """Raises where value isn't a dense tensor of this shape (None: any size), of one of the dtypes (floats: of
    ``like``'s), on ``like``'s device."""
    require_dense(argument, value)
    if like is not None and dtypes is FLOATS:
        dtypes = (like.dtype,)
    if value.dtype not in dtypes:
        names = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        todo = "; .float() brings a module back" if dtypes is not INTEGERS and value.dtype in HALVES else ""
        raise TypeError(f"{argument}: expected {names}, got {str(value.dtype).removeprefix('torch.')}{todo}")
    if value.ndim != len(shape) or any(
        want is not None and want != have for want, have in zip(shape, value.shape, strict=False)
    ):
        wanted = ", ".join("any" if s is None else str(s) for s in shape)
        raise ValueError(f"{argument}: expected shape ({wanted}), got {tuple(value.shape)}")
    if like is not None and value.device != like.device:
        raise ValueError(f"{argument}: expected device {like.device}, got {value.device}")


def capturing(device: torch.device) -> bool:
    """Whether the device's current stream is being captured in a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def require_device(tensor: Tensor, argument: str) -> bool:
    """Whether the tensor is on a CUDA device. Raises where the core can't compute."""
    kind = tensor.device.type
    if kind == "cuda" and not core.cuda_architectures:
        raise RuntimeError(
            f"{argument} is on {tensor.device}, but ringnet_ext was built without CUDA; "
            "reinstall it with `pip install . -C cmake.define.RINGNET_CUDA=ON`"
        )
    require(kind in ("cpu", "cuda"), argument, "a tensor on a CPU or a CUDA device", f"one on {tensor.device}")
    return kind == "cuda"


def require_readable(argument: str, device: torch.device) -> None:
    """Raises where the host can't read values: during the capture of a CUDA graph."""
    if capturing(device):
        raise RuntimeError(
            f"{argument}: its values can't be checked while a CUDA graph is captured, and haven't been checked before; "
            "call the operator with the same tensors before the capture (and before torch.compile, where constants are "
            "no buffers of a module)"
        )


def require_range(argument: str, value: Tensor, low: int, high: int, what: str) -> None:
    """Raises where an element isn't in [low, high). Reads the values."""
    if value.numel() == 0:
        return
    require_readable(argument, value.device)
    smallest, largest = int(value.min()), int(value.max())
    bad = smallest if smallest < low else largest
    require(low <= bad < high, argument, f"{what} in [{low}, {high})", bad)


def lbs_constants(
    shapedirs: Tensor, posedirs: Tensor, J_regressor: Tensor, parents: Tensor, lbs_weights: Tensor
) -> tuple[int, int, int]:
    """Checks a model's constants; returns (V, K, J)."""
    require_tensor("shapedirs", shapedirs, (None, 3, None))
    V, _, K = shapedirs.shape
    require(V >= 1, "shapedirs", "at least one vertex", tuple(shapedirs.shape))
    require_tensor("J_regressor", J_regressor, (None, V), shapedirs)
    J = J_regressor.shape[0]
    require(J >= 1, "J_regressor", "at least one joint", tuple(J_regressor.shape))
    require_tensor("posedirs", posedirs, ((J - 1) * 9, V * 3), shapedirs)
    require_tensor("lbs_weights", lbs_weights, (V, J), shapedirs)
    require_tensor("parents", parents, (J,), dtypes=INTEGERS)
    # The tree is read on the host once; it may live on any device.
    return V, K, J


def parents_values(parents: Tensor) -> None:
    require_readable("parents", parents.device)
    values = parents.tolist()
    require(values[0] == -1, "parents", "-1 for the root, parents[0]", values[0])
    for joint, parent in enumerate(values[1:], start=1):
        require(0 <= parent < joint, "parents", f"a parent before its child: parents[{joint}] in [0, {joint})", parent)


def lbs_call(
    betas: Tensor, pose: Tensor, v_template: Tensor, like: Tensor, V: int, K: int, J: int, pose2rot: bool
) -> int:
    """Checks the arguments that change from call to call; returns the batch size. ``like`` is one of the constants."""
    B, pose_size = betas.shape[0] if betas.ndim else 0, (3 if pose2rot else 9) * J
    if not (  # one quick test for every call; where it fails, the checks below say why
        betas.shape == (B, K)
        and pose.shape == (B, pose_size)
        and (v_template.shape == (V, 3) or v_template.shape == (B, V, 3))
        and betas.dtype == pose.dtype == v_template.dtype == like.dtype
        and betas.device == pose.device == v_template.device == like.device
    ):
        require_tensor("betas", betas, (None, K), like)
        require_tensor("pose", pose, (B, pose_size), like)
        require_tensor("v_template", v_template, (V, 3) if v_template.ndim == 2 else (B, V, 3), like)
    return B


def kept(argument: str, value: Tensor | None, shape: tuple, like: Tensor) -> None:
    """Checks a gradient that came from autograd, or a state that came from the forward call."""
    if value is not None and not (value.shape == shape and value.dtype == like.dtype and value.device == like.device):
        require_tensor(argument, value, shape, like)


def landmark_constants(like: Tensor, embedding: tuple, neck_joint: int, J: int) -> tuple[int, int]:
    """Checks a landmark embedding; returns (L, C)."""
    faces, lmk_faces_idx, lmk_bary_coords, contour_faces_idx, contour_bary_coords = embedding
    require_tensor("faces", faces, (None, 3), like, INTEGERS)
    require_tensor("lmk_faces_idx", lmk_faces_idx, (None,), like, INTEGERS)
    L, C = lmk_faces_idx.shape[0], 0
    require_tensor("lmk_bary_coords", lmk_bary_coords, (L, 3), like)
    if contour_faces_idx is not None:
        require_tensor("contour_faces_idx", contour_faces_idx, (79, None), like, INTEGERS)
        C = contour_faces_idx.shape[1]
        require(contour_bary_coords is not None, "contour_bary_coords", "a tensor, as contour_faces_idx is given", None)
        require_tensor("contour_bary_coords", contour_bary_coords, (79, C, 3), like)
        require(0 <= neck_joint < J, "neck_joint", f"a joint in [0, {J})", neck_joint)
    else:
        require(contour_bary_coords is None, "contour_bary_coords", "None, as contour_faces_idx is None", "a tensor")
    return L, C


def landmark_values(faces: Tensor, lmk_faces_idx: Tensor, contour_faces_idx: Tensor | None, V: int) -> None:
    require_range("faces", faces, 0, V, "vertices")
    require_range("lmk_faces_idx", lmk_faces_idx, 0, faces.shape[0], "faces")
    if contour_faces_idx is not None:
        require_range("contour_faces_idx", contour_faces_idx, 0, faces.shape[0], "faces")
