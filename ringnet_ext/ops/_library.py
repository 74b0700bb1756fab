"""The operators as the dispatcher sees them: schemas, kernels for real tensors, shapes for a compiler's fake ones.

Forward and backward are operators of their own, opaque and without autograd; the functions of :mod:`ringnet_ext.ops` join
them. ``state`` is private to the core: scratch, and with ``keep`` what the backward call needs. A gradient that is not
wanted comes back as an empty tensor.
"""

import _ringnet_core as core
import torch
from torch import Tensor

from . import _checks as checks
from ._prepared import (
    _LANDMARKS, _LBS, PreparedLandmarks, PreparedLbs, _regress, on_device, prepared_landmarks, prepared_lbs, require_device,
    template_joints, where,
)

_MODEL = "Tensor shapedirs, Tensor posedirs, Tensor J_regressor, Tensor parents, Tensor lbs_weights"
_CALL = f"Tensor betas, Tensor pose, Tensor v_template, {_MODEL}"
_EMBEDDING = (
    "Tensor faces, Tensor lmk_faces_idx, Tensor lmk_bary_coords, Tensor? contour_faces_idx, Tensor? contour_bary_coords, "
    "int neck_joint"
)
_POINTS = "Tensor faces, Tensor lmk_faces_idx, Tensor lmk_bary_coords"

_library = torch.library.Library("ringnet_ext", "DEF")


def _operator(schema: str, fake):
    """Defines an operator and registers the decorated function for the CPU and CUDA."""
    name = schema.split("(")[0]

    def register(kernel):
        _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        for key in ("CPU", "CUDA"):
            _library.impl(name, kernel, key)
        for key in ("SparseCPU", "SparseCUDA"):
            _library.impl(name, _refuse_sparse(name), key)
        torch.library.register_fake(f"ringnet_ext::{name}", fake, lib=_library)
        return kernel

    return register


def _refuse_sparse(name: str):
    def kernel(*arguments):
        schema = getattr(torch.ops.ringnet_ext, name).default._schema
        for parameter, value in zip(schema.arguments, arguments):
            sparse = isinstance(value, Tensor) and value.layout is not torch.strided
            checks.require(not sparse, parameter.name, "a dense tensor", getattr(value, "layout", None))

    return kernel


def _rows(t: Tensor) -> Tensor:
    """Contiguous inside a row; any distance between rows, 0 where expanded."""
    return t if t.shape[1] <= 1 or t.stride(1) == 1 else t.contiguous()


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


# --- batch_rodrigues ---


def _rodrigues_forward_fake(rot_vecs):
    checks.require_tensor("rot_vecs", rot_vecs, (None, 3))
    return rot_vecs.new_empty((rot_vecs.shape[0], 3, 3))


@_operator("rodrigues_forward(Tensor rot_vecs) -> Tensor", _rodrigues_forward_fake)
def _rodrigues_forward(rot_vecs):
    matrices = _rodrigues_forward_fake(rot_vecs)
    cuda, rot_vecs = require_device(rot_vecs, "rot_vecs"), rot_vecs.contiguous()
    run = core.rodrigues_forward_f32 if rot_vecs.dtype == torch.float32 else core.rodrigues_forward_f64
    with on_device(rot_vecs.device):
        run(cuda, rot_vecs.shape[0], rot_vecs.data_ptr(), matrices.data_ptr(), where(rot_vecs.device))
    return matrices


def _rodrigues_backward_fake(grad, rot_vecs):
    checks.require_tensor("rot_vecs", rot_vecs, (None, 3))
    checks.require_tensor("grad", grad, (rot_vecs.shape[0], 3, 3), rot_vecs)
    return rot_vecs.new_empty(rot_vecs.shape)


@_operator("rodrigues_backward(Tensor grad, Tensor rot_vecs) -> Tensor", _rodrigues_backward_fake)
def _rodrigues_backward(grad, rot_vecs):
    out = _rodrigues_backward_fake(grad, rot_vecs)
    cuda, grad, rot_vecs = require_device(rot_vecs, "rot_vecs"), grad.contiguous(), rot_vecs.contiguous()
    run = core.rodrigues_backward_f32 if rot_vecs.dtype == torch.float32 else core.rodrigues_backward_f64
    with on_device(rot_vecs.device):
        run(cuda, rot_vecs.shape[0], rot_vecs.data_ptr(), grad.data_ptr(), out.data_ptr(), where(rot_vecs.device))
    return out


# --- flame_lbs ---


def _lbs_forward_fake(
    betas, pose, v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights, pose2rot, keep
):
    V, K, J = checks.lbs_constants(shapedirs, posedirs, J_regressor, parents, lbs_weights)
    B = checks.lbs_call(betas, pose, v_template, shapedirs, V, K, J, pose2rot)
    cuda = require_device(shapedirs, "shapedirs")
    size = _LBS[betas.dtype].state_size(cuda, int(V), int(K), int(J), keep)
    return betas.new_empty((B, V, 3)), betas.new_empty((B, J, 3)), betas.new_empty((B, size))


def _joint_template(v_template: Tensor, J_regressor: Tensor) -> tuple[Tensor, int]:
    """The template's joints, (J, 3) or (B, J, 3), and the distance between batch elements."""
    if v_template.ndim == 2:
        # What requires grad is being optimised, and may be written in ways that leave no trace: never kept.
        joints = _regress(J_regressor, v_template) if v_template.requires_grad else template_joints((J_regressor, v_template))
        return joints, 0
    with torch.autocast(v_template.device.type, enabled=False):
        joints = torch.matmul(J_regressor, v_template).contiguous()
    return joints, joints.stride(0)


@_operator(f"lbs_forward({_CALL}, bool pose2rot, bool keep) -> (Tensor, Tensor, Tensor)", _lbs_forward_fake)
def _lbs_forward(betas, pose, v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights, pose2rot, keep):
    model: PreparedLbs = prepared_lbs((shapedirs, posedirs, J_regressor, parents, lbs_weights))
    V, K, J = model.sizes
    B = checks.lbs_call(betas, pose, v_template, model.like, V, K, J, pose2rot)
    betas, pose = _rows(betas), _rows(pose)
    if v_template.stride()[-2:] != (3, 1):
        v_template = v_template.contiguous()
    joint_template, joint_stride = _joint_template(v_template, J_regressor)
    vertices, joints = betas.new_empty((B, V, 3)), betas.new_empty((B, J, 3))
    state = betas.new_empty((B, model.state_sizes[keep]))
    with on_device(model.device):
        model.core.forward(
            B, betas.data_ptr(), betas.stride(0), pose.data_ptr(), pose.stride(0), pose2rot, v_template.data_ptr(),
            v_template.stride(0) if v_template.ndim == 3 else 0, joint_template.data_ptr(), joint_stride, keep,
            state.data_ptr(), vertices.data_ptr(), joints.data_ptr(), where(model.device),
        )
    return vertices, joints, state


def _lbs_gradients(grad_vertices, grad_joints, betas, pose, v_template, state, sizes, wanted):
    B, V, J, state_size = sizes
    checks.gradient("grad_vertices", grad_vertices, (B, V, 3), betas)
    checks.gradient("grad_joints", grad_joints, (B, J, 3), betas)
    checks.gradient("state", state, (B, state_size), betas)
    return tuple(betas.new_empty(t.shape if w else (0,)) for t, w in zip((betas, pose, v_template), wanted))


def _lbs_backward_fake(
    grad_vertices, grad_joints, betas, pose, v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights, state,
    pose2rot, wanted,
):
    V, K, J = checks.lbs_constants(shapedirs, posedirs, J_regressor, parents, lbs_weights)
    B = checks.lbs_call(betas, pose, v_template, shapedirs, V, K, J, pose2rot)
    size = _LBS[betas.dtype].state_size(require_device(shapedirs, "shapedirs"), int(V), int(K), int(J), True)
    return _lbs_gradients(grad_vertices, grad_joints, betas, pose, v_template, state, (B, V, J, size), wanted)


@_operator(
    f"lbs_backward(Tensor? grad_vertices, Tensor? grad_joints, {_CALL}, Tensor state, bool pose2rot, bool[] wanted)"
    " -> (Tensor, Tensor, Tensor)",
    _lbs_backward_fake,
)
def _lbs_backward(
    grad_vertices, grad_joints, betas, pose, v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights, state,
    pose2rot, wanted,
):
    model: PreparedLbs = prepared_lbs((shapedirs, posedirs, J_regressor, parents, lbs_weights))
    V, K, J = model.sizes
    B = checks.lbs_call(betas, pose, v_template, model.like, V, K, J, pose2rot)
    sizes = (B, V, J, model.state_sizes[True])
    outputs = _lbs_gradients(grad_vertices, grad_joints, betas, pose, v_template, state, sizes, wanted)
    betas, pose, state = _rows(betas), _rows(pose), state.contiguous()
    if v_template.stride()[-2:] != (3, 1):
        v_template = v_template.contiguous()
    joint_template, joint_stride = _joint_template(v_template, J_regressor)
    if grad_joints is not None:
        grad_joints = grad_joints.contiguous()
    grad_betas, grad_pose, grad_v_template = (g if w else None for g, w in zip(outputs, wanted))
    shared = v_template.ndim == 2
    grad_joint_template = betas.new_empty((B, J, 3)) if grad_v_template is not None else None
    workspace = betas.new_empty(model.workspace_size(B, shared and grad_v_template is not None))
    with on_device(model.device):
        model.core.backward(
            B, betas.data_ptr(), betas.stride(0), pose.data_ptr(), pose.stride(0), pose2rot, joint_template.data_ptr(),
            joint_stride, state.data_ptr(), _address(grad_vertices),
            *(grad_vertices.stride() if grad_vertices is not None else (0, 0, 0)), _address(grad_joints),
            _address(grad_betas), _address(grad_pose), _address(grad_v_template), shared, _address(grad_joint_template),
            workspace.data_ptr(), where(model.device),
        )
    if grad_v_template is not None:  # through the rest joints
        with torch.autocast(model.device.type, enabled=False):
            if shared:
                grad_v_template.addmm_(J_regressor.T, grad_joint_template.sum(0))
            else:
                grad_v_template.baddbmm_(J_regressor.T.expand(B, V, J), grad_joint_template)
    return outputs


# --- flame_landmarks ---


def _landmarks_sizes(shapedirs, posedirs, J_regressor, parents, lbs_weights, *embedding):
    V, K, J = checks.lbs_constants(shapedirs, posedirs, J_regressor, parents, lbs_weights)
    L, C = checks.landmark_constants(shapedirs, *embedding, J)
    return V, K, J, L, C


def _landmarks_forward_fake(
    betas, pose, v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights, faces, lmk_faces_idx, lmk_bary_coords,
    contour_faces_idx, contour_bary_coords, neck_joint, pose2rot, keep,
):
    V, K, J, L, C = _landmarks_sizes(
        shapedirs, posedirs, J_regressor, parents, lbs_weights, faces, lmk_faces_idx, lmk_bary_coords, contour_faces_idx,
        contour_bary_coords, neck_joint,
    )
    checks.require_tensor("v_template", v_template, (V, 3), shapedirs)
    B = checks.lbs_call(betas, pose, v_template, shapedirs, V, K, J, pose2rot)
    cuda = require_device(shapedirs, "shapedirs")
    size = _LANDMARKS[betas.dtype].state_size(cuda, int(K), int(J), int(L), int(C), keep)
    return betas.new_empty((B, C + L, 3)), betas.new_empty((B, size))


@_operator(f"landmarks_forward({_CALL}, {_EMBEDDING}, bool pose2rot, bool keep) -> (Tensor, Tensor)", _landmarks_forward_fake)
def _landmarks_forward(
    betas, pose, v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights, faces, lmk_faces_idx, lmk_bary_coords,
    contour_faces_idx, contour_bary_coords, neck_joint, pose2rot, keep,
):
    model: PreparedLandmarks = prepared_landmarks(
        (v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights, faces, lmk_faces_idx, lmk_bary_coords,
         contour_faces_idx, contour_bary_coords),
        neck_joint,
    )  # fmt: skip
    B = checks.lbs_call(betas, pose, v_template, model.like, *model.sizes, pose2rot)
    betas, pose = _rows(betas), _rows(pose)
    landmarks, state = betas.new_empty((B, model.points, 3)), betas.new_empty((B, model.state_sizes[keep]))
    with on_device(model.device):
        model.core.forward(
            B, betas.data_ptr(), betas.stride(0), pose.data_ptr(), pose.stride(0), pose2rot, keep, state.data_ptr(),
            landmarks.data_ptr(), where(model.device),
        )
    return landmarks, state


def _landmarks_gradients(grad_landmarks, betas, pose, state, sizes, wanted):
    B, points, state_size = sizes
    checks.gradient("grad_landmarks", grad_landmarks, (B, points, 3), betas)
    checks.gradient("state", state, (B, state_size), betas)
    return tuple(betas.new_empty(t.shape if w else (0,)) for t, w in zip((betas, pose), wanted))


def _landmarks_backward_fake(
    grad_landmarks, betas, pose, v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights, faces, lmk_faces_idx,
    lmk_bary_coords, contour_faces_idx, contour_bary_coords, neck_joint, state, pose2rot, wanted,
):
    V, K, J, L, C = _landmarks_sizes(
        shapedirs, posedirs, J_regressor, parents, lbs_weights, faces, lmk_faces_idx, lmk_bary_coords, contour_faces_idx,
        contour_bary_coords, neck_joint,
    )
    checks.require_tensor("v_template", v_template, (V, 3), shapedirs)
    B = checks.lbs_call(betas, pose, v_template, shapedirs, V, K, J, pose2rot)
    cuda = require_device(shapedirs, "shapedirs")
    size = _LANDMARKS[betas.dtype].state_size(cuda, int(K), int(J), int(L), int(C), True)
    return _landmarks_gradients(grad_landmarks, betas, pose, state, (B, C + L, size), wanted)


@_operator(
    f"landmarks_backward(Tensor grad_landmarks, {_CALL}, {_EMBEDDING}, Tensor state, bool pose2rot, bool[] wanted)"
    " -> (Tensor, Tensor)",
    _landmarks_backward_fake,
)
def _landmarks_backward(
    grad_landmarks, betas, pose, v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights, faces, lmk_faces_idx,
    lmk_bary_coords, contour_faces_idx, contour_bary_coords, neck_joint, state, pose2rot, wanted,
):
    model: PreparedLandmarks = prepared_landmarks(
        (v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights, faces, lmk_faces_idx, lmk_bary_coords,
         contour_faces_idx, contour_bary_coords),
        neck_joint,
    )  # fmt: skip
    B = checks.lbs_call(betas, pose, v_template, model.like, *model.sizes, pose2rot)
    outputs = _landmarks_gradients(grad_landmarks, betas, pose, state, (B, model.points, model.state_sizes[True]), wanted)
    betas, pose, state = _rows(betas), _rows(pose), state.contiguous()
    grad_betas, grad_pose = (g if w else None for g, w in zip(outputs, wanted))
    workspace = betas.new_empty(model.workspace_size(B))
    with on_device(model.device):
        model.core.backward(
            B, betas.data_ptr(), betas.stride(0), pose.data_ptr(), pose.stride(0), pose2rot, state.data_ptr(),
            grad_landmarks.data_ptr(), *grad_landmarks.stride(), _address(grad_betas), _address(grad_pose),
            workspace.data_ptr(), where(model.device),
        )
    return outputs


# --- vertices2landmarks ---


def _points_sizes(vertices, faces, lmk_faces_idx, lmk_bary_coords):
    checks.require_tensor("faces", faces, (None, 3), vertices, checks.INTEGERS)
    B, L = vertices.shape[0], lmk_faces_idx.shape[-1]
    checks.require_tensor("lmk_faces_idx", lmk_faces_idx, (B, L), vertices, checks.INTEGERS)
    checks.require_tensor("lmk_bary_coords", lmk_bary_coords, (B, L, 3), vertices)
    return B, L


def _vertices2landmarks_forward_fake(vertices, faces, lmk_faces_idx, lmk_bary_coords):
    checks.require_tensor("vertices", vertices, (None, None, 3))
    return vertices.new_empty((*_points_sizes(vertices, faces, lmk_faces_idx, lmk_bary_coords), 3))


def _embedding_rows(faces: Tensor, lmk_faces_idx: Tensor, lmk_bary_coords: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if lmk_bary_coords.stride()[1:] != (3, 1):
        lmk_bary_coords = lmk_bary_coords.contiguous()
    return faces.long().contiguous(), _rows(lmk_faces_idx.long()), lmk_bary_coords


@_operator(f"vertices2landmarks_forward(Tensor vertices, {_POINTS}) -> Tensor", _vertices2landmarks_forward_fake)
def _vertices2landmarks_forward(vertices, faces, lmk_faces_idx, lmk_bary_coords):
    landmarks = _vertices2landmarks_forward_fake(vertices, faces, lmk_faces_idx, lmk_bary_coords)
    cuda = require_device(vertices, "vertices")
    if vertices.stride()[1:] != (3, 1):
        vertices = vertices.contiguous()
    faces, index, bary = _embedding_rows(faces, lmk_faces_idx, lmk_bary_coords)
    run = core.vertices2landmarks_forward_f32 if vertices.dtype == torch.float32 else core.vertices2landmarks_forward_f64
    with on_device(vertices.device):
        run(
            cuda, vertices.shape[0], vertices.shape[1], faces.shape[0], index.shape[1], vertices.data_ptr(),
            vertices.stride(0), faces.data_ptr(), index.data_ptr(), index.stride(0), bary.data_ptr(), bary.stride(0),
            landmarks.data_ptr(), where(vertices.device),
        )
    return landmarks


def _vertices2landmarks_backward_fake(grad, faces, lmk_faces_idx, lmk_bary_coords, num_vertices):
    checks.require_tensor("grad", grad, (None, None, 3))
    _points_sizes(grad, faces, lmk_faces_idx, lmk_bary_coords)
    return grad.new_empty((grad.shape[0], num_vertices, 3))


@_operator(
    f"vertices2landmarks_backward(Tensor grad, {_POINTS}, SymInt num_vertices) -> Tensor", _vertices2landmarks_backward_fake
)
def _vertices2landmarks_backward(grad, faces, lmk_faces_idx, lmk_bary_coords, num_vertices):
    out = _vertices2landmarks_backward_fake(grad, faces, lmk_faces_idx, lmk_bary_coords, num_vertices)
    cuda, grad = require_device(grad, "grad"), grad.contiguous()
    checks.require(grad.shape[1] == lmk_faces_idx.shape[1], "grad", "one row per landmark", tuple(grad.shape))
    faces, index, bary = _embedding_rows(faces, lmk_faces_idx, lmk_bary_coords)
    run = core.vertices2landmarks_backward_f32 if grad.dtype == torch.float32 else core.vertices2landmarks_backward_f64
    with on_device(grad.device):
        run(
            cuda, grad.shape[0], num_vertices, faces.shape[0], index.shape[1], faces.data_ptr(), index.data_ptr(),
            index.stride(0), bary.data_ptr(), bary.stride(0), grad.data_ptr(), out.data_ptr(), where(grad.device),
        )
    return out
