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
    _LANDMARKS, _LBS, PreparedHead, PreparedLandmarks, PreparedLbs, gradient_like, launch, place, prepared_head,
    prepared_landmarks, prepared_lbs, prepared_mesh, require_device, rows_of_points,
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
    """Defines an operator and registers the decorated function, its kernel, for the CPU and CUDA. Returns the operator."""
    name = schema.split("(")[0]

    def register(kernel):
        _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        for key in ("CPU", "CUDA"):
            _library.impl(name, kernel, key)
        for key in ("SparseCPU", "SparseCUDA"):
            _library.impl(name, _refuse_sparse(name), key)
        torch.library.register_fake(f"ringnet_ext::{name}", fake, lib=_library)
        return getattr(torch.ops.ringnet_ext, name).default

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


# --- batch_rodrigues ---


def _rodrigues_forward_fake(rot_vecs):
    checks.require_tensor("rot_vecs", rot_vecs, (None, 3))
    return rot_vecs.new_empty((rot_vecs.shape[0], 3, 3))


@_operator("rodrigues_forward(Tensor rot_vecs) -> Tensor", _rodrigues_forward_fake)
def rodrigues_forward(rot_vecs):
    matrices = _rodrigues_forward_fake(rot_vecs)
    cuda, rot_vecs = require_device(rot_vecs, "rot_vecs"), rot_vecs.contiguous()
    run = core.rodrigues_forward_f32 if rot_vecs.dtype == torch.float32 else core.rodrigues_forward_f64
    launch(run, rot_vecs.device, cuda, rot_vecs.shape[0], rot_vecs.data_ptr(), matrices.data_ptr())
    return matrices


def _rodrigues_backward_fake(grad, rot_vecs):
    checks.require_tensor("rot_vecs", rot_vecs, (None, 3))
    checks.require_tensor("grad", grad, (rot_vecs.shape[0], 3, 3), rot_vecs)
    return rot_vecs.new_empty(rot_vecs.shape)


@_operator("rodrigues_backward(Tensor grad, Tensor rot_vecs) -> Tensor", _rodrigues_backward_fake)
def rodrigues_backward(grad, rot_vecs):
    out = _rodrigues_backward_fake(grad, rot_vecs)
    cuda, grad, rot_vecs = require_device(rot_vecs, "rot_vecs"), grad.contiguous(), rot_vecs.contiguous()
    run = core.rodrigues_backward_f32 if rot_vecs.dtype == torch.float32 else core.rodrigues_backward_f64
    launch(run, rot_vecs.device, cuda, rot_vecs.shape[0], rot_vecs.data_ptr(), grad.data_ptr(), out.data_ptr())
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


@_operator(f"lbs_forward({_CALL}, bool pose2rot, bool keep) -> (Tensor, Tensor, Tensor)", _lbs_forward_fake)
def lbs_forward(betas, pose, v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights, pose2rot, keep):
    model: PreparedLbs = prepared_lbs((shapedirs, posedirs, J_regressor, parents, lbs_weights))
    checks.lbs_call(betas, pose, v_template, model.like, *model.sizes, pose2rot)
    joint_template = _joint_template(model, v_template, (shapedirs, posedirs, J_regressor, parents, lbs_weights))
    v_template = rows_of_points(v_template)
    template = *place(v_template), *place(joint_template)
    vertices, joints, state = model.forward(_rows(betas), _rows(pose), template, pose2rot, keep)
    return vertices, joints, _state(state, betas)


def _joint_template(model: PreparedLbs, v_template, constants):
    # What requires grad is being optimised, and may be written in ways that leave no trace: never kept.
    if v_template.ndim == 3 or v_template.requires_grad:
        return model.joint_template(v_template)
    return prepared_mesh((v_template, *constants)).joint_template


def _check_lbs_backward(grad_vertices, grad_joints, state, B, V, J, state_size, like):
    checks.gradient("grad_vertices", grad_vertices, (B, V, 3), like)
    checks.gradient("grad_joints", grad_joints, (B, J, 3), like)
    checks.gradient("state", state, (B, state_size), like)


def _returned(gradients, like):
    """As an operator returns them: an empty tensor for what wasn't wanted."""
    return tuple(like.new_empty(0) if g is None else g for g in gradients)


def _state(state, betas):
    """As an operator returns it: a tensor even where the core needs none."""
    return betas.new_empty((betas.shape[0], 0)) if state is None else state


def _lbs_backward_fake(
    grad_vertices, grad_joints, betas, pose, v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights, state,
    pose2rot, wanted,
):
    V, K, J = checks.lbs_constants(shapedirs, posedirs, J_regressor, parents, lbs_weights)
    B = checks.lbs_call(betas, pose, v_template, shapedirs, V, K, J, pose2rot)
    size = _LBS[betas.dtype].state_size(require_device(shapedirs, "shapedirs"), int(V), int(K), int(J), True)
    _check_lbs_backward(grad_vertices, grad_joints, state, B, V, J, size, betas)
    return _returned([gradient_like(t, w) for t, w in zip((betas, pose, v_template), wanted)], betas)


@_operator(
    f"lbs_backward(Tensor? grad_vertices, Tensor? grad_joints, {_CALL}, Tensor state, bool pose2rot, bool[] wanted)"
    " -> (Tensor, Tensor, Tensor)",
    _lbs_backward_fake,
)
def lbs_backward(
    grad_vertices, grad_joints, betas, pose, v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights, state,
    pose2rot, wanted,
):
    model: PreparedLbs = prepared_lbs((shapedirs, posedirs, J_regressor, parents, lbs_weights))
    V, K, J = model.sizes
    B = checks.lbs_call(betas, pose, v_template, model.like, V, K, J, pose2rot)
    _check_lbs_backward(grad_vertices, grad_joints, state, B, V, J, model.state_sizes[True], betas)
    gradients = [gradient_like(t, w) for t, w in zip((betas, pose, v_template), wanted)]
    grad_betas, grad_pose, grad_v_template = gradients
    grad_joint_template = None if grad_v_template is None else betas.new_empty((B, J, 3))
    joint_template = _joint_template(model, v_template, (shapedirs, posedirs, J_regressor, parents, lbs_weights))
    model.backward(
        grad_vertices, grad_joints, _rows(betas), _rows(pose), place(joint_template),
        state.contiguous(), pose2rot, grad_betas, grad_pose, grad_v_template, grad_joint_template,
    )
    if grad_v_template is not None:  # through the rest joints
        with torch.autocast(model.device.type, enabled=False):
            if grad_v_template.ndim == 2:
                grad_v_template.addmm_(J_regressor.T, grad_joint_template.sum(0))
            else:
                grad_v_template.baddbmm_(J_regressor.T.expand(B, V, J), grad_joint_template)
    return _returned(gradients, betas)


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
def landmarks_forward(
    betas, pose, v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights, faces, lmk_faces_idx, lmk_bary_coords,
    contour_faces_idx, contour_bary_coords, neck_joint, pose2rot, keep,
):
    model: PreparedLandmarks = prepared_landmarks(
        (v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights, faces, lmk_faces_idx, lmk_bary_coords,
         contour_faces_idx, contour_bary_coords),
        neck_joint,
    )  # fmt: skip
    checks.lbs_call(betas, pose, v_template, model.like, *model.sizes, pose2rot)
    (landmarks,), (state,) = model.forward(_rows(betas), _rows(pose), pose2rot, keep)
    return landmarks, _state(state, betas)


def _check_landmarks_backward(grad_landmarks, state, B, points, state_size, like):
    checks.gradient("grad_landmarks", grad_landmarks, (B, points, 3), like)
    checks.gradient("state", state, (B, state_size), like)


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
    _check_landmarks_backward(grad_landmarks, state, B, C + L, size, betas)
    return _returned((gradient_like(betas, wanted[0]), gradient_like(pose, wanted[1])), betas)


@_operator(
    f"landmarks_backward(Tensor grad_landmarks, {_CALL}, {_EMBEDDING}, Tensor state, bool pose2rot, bool[] wanted)"
    " -> (Tensor, Tensor)",
    _landmarks_backward_fake,
)
def landmarks_backward(
    grad_landmarks, betas, pose, v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights, faces, lmk_faces_idx,
    lmk_bary_coords, contour_faces_idx, contour_bary_coords, neck_joint, state, pose2rot, wanted,
):
    model: PreparedLandmarks = prepared_landmarks(
        (v_template, shapedirs, posedirs, J_regressor, parents, lbs_weights, faces, lmk_faces_idx, lmk_bary_coords,
         contour_faces_idx, contour_bary_coords),
        neck_joint,
    )  # fmt: skip
    B = checks.lbs_call(betas, pose, v_template, model.like, *model.sizes, pose2rot)
    _check_landmarks_backward(grad_landmarks, state, B, model.points, model.state_sizes[True], betas)
    states = (state.contiguous(),)
    return _returned(model.backward((grad_landmarks,), _rows(betas), _rows(pose), states, pose2rot, wanted), betas)


# --- flame_head ---


def _head_forward_fake(*arguments):
    *call, pose2rot, keep = arguments
    vertices, joints, state = _lbs_forward_fake(*call[:8], pose2rot, keep)
    landmarks, landmark_state = _landmarks_forward_fake(*arguments)
    return vertices, joints, landmarks, landmark_state if vertices.is_cuda and keep else vertices.new_empty((vertices.shape[0], 0)), state


@_operator(
    f"head_forward({_CALL}, {_EMBEDDING}, bool pose2rot, bool keep) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _head_forward_fake,
)
def head_forward(betas, pose, *arguments):
    """vertices, joints, landmarks, and the states of landmarks and mesh."""
    *constants, neck_joint, pose2rot, keep = arguments
    head: PreparedHead = prepared_head(tuple(constants), neck_joint)
    checks.lbs_call(betas, pose, constants[0], head.like, *head.mesh.lbs.sizes, pose2rot)
    outputs, states = head.forward(_rows(betas), _rows(pose), pose2rot, keep)
    return *outputs, *(_state(state, betas) for state in states)


def _head_backward_fake(grad_vertices, grad_joints, grad_landmarks, *arguments):
    *call, _, state, pose2rot, wanted = arguments
    return _lbs_backward_fake(grad_vertices, grad_joints, *call[:8], state, pose2rot, [*wanted, False])[:2]


@_operator(
    f"head_backward(Tensor? grad_vertices, Tensor? grad_joints, Tensor? grad_landmarks, {_CALL}, {_EMBEDDING}, "
    "Tensor? landmark_state, Tensor state, bool pose2rot, bool[] wanted) -> (Tensor, Tensor)",
    _head_backward_fake,
)
def head_backward(grad_vertices, grad_joints, grad_landmarks, betas, pose, *arguments):
    *constants, neck_joint, landmark_state, state, pose2rot, wanted = arguments
    head: PreparedHead = prepared_head(tuple(constants), neck_joint)
    V, K, J = head.mesh.lbs.sizes
    B = checks.lbs_call(betas, pose, constants[0], head.like, V, K, J, pose2rot)
    _check_lbs_backward(grad_vertices, grad_joints, state, B, V, J, head.mesh.lbs.state_sizes[True], betas)
    _check_landmarks_backward(grad_landmarks, landmark_state, B, head.landmarks.points, head.landmark_state_size, betas)
    gradients = (grad_vertices, grad_joints, grad_landmarks)
    states = (landmark_state if landmark_state is None else landmark_state.contiguous(), state.contiguous())
    return _returned(head.backward(gradients, _rows(betas), _rows(pose), states, pose2rot, wanted), betas)


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
def vertices2landmarks_forward(vertices, faces, lmk_faces_idx, lmk_bary_coords):
    landmarks = _vertices2landmarks_forward_fake(vertices, faces, lmk_faces_idx, lmk_bary_coords)
    cuda = require_device(vertices, "vertices")
    if vertices.stride()[1:] != (3, 1):
        vertices = vertices.contiguous()
    faces, index, bary = _embedding_rows(faces, lmk_faces_idx, lmk_bary_coords)
    run = core.vertices2landmarks_forward_f32 if vertices.dtype == torch.float32 else core.vertices2landmarks_forward_f64
    launch(
        run, vertices.device, cuda, vertices.shape[0], vertices.shape[1], faces.shape[0], index.shape[1], vertices.data_ptr(),
        vertices.stride(0), faces.data_ptr(), index.data_ptr(), index.stride(0), bary.data_ptr(), bary.stride(0),
        landmarks.data_ptr(),
    )  # fmt: skip
    return landmarks


def _vertices2landmarks_backward_fake(grad, faces, lmk_faces_idx, lmk_bary_coords, num_vertices):
    checks.require_tensor("grad", grad, (None, None, 3))
    _points_sizes(grad, faces, lmk_faces_idx, lmk_bary_coords)
    return grad.new_empty((grad.shape[0], num_vertices, 3))


@_operator(
    f"vertices2landmarks_backward(Tensor grad, {_POINTS}, SymInt num_vertices) -> Tensor", _vertices2landmarks_backward_fake
)
def vertices2landmarks_backward(grad, faces, lmk_faces_idx, lmk_bary_coords, num_vertices):
    out = _vertices2landmarks_backward_fake(grad, faces, lmk_faces_idx, lmk_bary_coords, num_vertices)
    cuda, grad = require_device(grad, "grad"), grad.contiguous()
    checks.require(grad.shape[1] == lmk_faces_idx.shape[1], "grad", "one row per landmark", tuple(grad.shape))
    faces, index, bary = _embedding_rows(faces, lmk_faces_idx, lmk_bary_coords)
    run = core.vertices2landmarks_backward_f32 if grad.dtype == torch.float32 else core.vertices2landmarks_backward_f64
    launch(
        run, grad.device, cuda, grad.shape[0], num_vertices, faces.shape[0], index.shape[1], faces.data_ptr(), index.data_ptr(),
        index.stride(0), bary.data_ptr(), bary.stride(0), grad.data_ptr(), out.data_ptr(),
    )  # fmt: skip
    return out
