"""Which parameters a head has, which of them are fitted, what is known of them before, and where to begin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..flame import FLAME
from ..flame.parameters import HeadParams
from ..geometry.camera import UPRIGHT
from .cameras import Camera
from .problem import POSES, Columns


@dataclass(frozen=True)
class Priors:
    """What is known before any landmark is seen: standard deviations of normal distributions around zero, None for no
    knowledge.

    shape, expression: of each coefficient. jaw_pose, neck_pose, eye_pose: radians, of each component. log_focal: of the
    logarithm of an estimated focal length, around that of ``focal``, half image sizes.
    """

    shape: float | None = 1.0
    expression: float | None = 0.5
    jaw_pose: float | None = 0.3
    neck_pose: float | None = 0.3
    eye_pose: float | None = 0.3
    focal: float = 5.0
    log_focal: float | None = 1.0


class Parameters(NamedTuple):
    """columns; start (N, Q); mean (N, Q) and root (Q,) of the priors."""

    columns: Columns
    start: Tensor
    mean: Tensor
    root: Tensor


_ROLES = ("image", "person", "all", "fixed")


def _roles(lens: Camera, roles: Mapping[str, str] | None, focal_given: bool) -> dict[str, str]:
    """Every parameter's."""
    camera = [name for name in lens.names if name != "log_focal"]
    role = dict.fromkeys((*camera, "global_pose", "jaw_pose", "expression"), "image") | {"shape": "person"}
    role |= {"neck_pose": "fixed", "eye_pose": "fixed"}
    if "log_focal" in lens.names:
        role["log_focal"] = "fixed" if focal_given else "person"
    for name, value in (roles or {}).items():
        names = {"camera": camera, "focal": ["log_focal"]}.get(name, [name])
        if name == "focal" and "log_focal" not in role:
            raise ValueError("roles: a focal length has only the perspective camera, got focal with another one")
        if name in lens.names or not set(names) <= role.keys():
            known = ("camera", "focal", *POSES, "expression", "shape")
            raise ValueError(f"roles: expected some of {', '.join(known)}, got {name!r}")
        if value not in _ROLES:
            raise ValueError(f"roles: expected {', '.join(_ROLES[:-1])} or {_ROLES[-1]} for {name}, got {value!r}")
        role |= dict.fromkeys(names, value)
    return role


def parameters_of(
    flame: FLAME,
    lens: Camera,
    priors: Priors,
    roles: Mapping[str, str] | None,
    focal: float | Tensor | None,
    person: Tensor,
) -> Parameters:
    """Those of images, whose people are given (N,). A start's pose is frontal, its camera's parameters are 0."""
    like, count = flame.v_template, len(person)
    widths = dict.fromkeys(lens.names, 1) | POSES | {"expression": flame.expression_params, "shape": flame.shape_params}
    role = _roles(lens, roles, focal is not None)
    alone = count == 0 or int(person.max()) + 1 == count  # nothing is shared by images: one elimination less
    local = [name for name in widths if role[name] == "image" or (alone and role[name] == "person")]
    own = [name for name in widths if role[name] == "person" and not alone]
    columns = Columns(widths, local, own, [name for name in widths if role[name] == "all"])

    start, root = like.new_zeros(count, columns.width), like.new_zeros(columns.width)
    start[:, columns["global_pose"]] = like.new_tensor(UPRIGHT)
    if "log_focal" in widths:
        length = torch.as_tensor(priors.focal if focal is None else focal).to(like)
        start[:, columns["log_focal"]] = length.log().view(-1, 1)
    for name in ("shape", "expression", "jaw_pose", "neck_pose", "eye_pose", "log_focal"):
        sigma = getattr(priors, name)
        if name in widths and sigma is not None:
            if not sigma > 0:
                raise ValueError(f"priors.{name}: expected a positive number or None, got {sigma}")
            root[columns[name]] = 1 / sigma
    mean = start.clone()
    mean[:, columns["global_pose"]] = 0
    return Parameters(columns, start, mean, root)


def given(parameters: Parameters, lens: Camera, start: HeadParams) -> Tensor:
    """The rows that start there."""
    columns, values = parameters.columns, parameters.start.clone()
    for name in ("global_pose", "jaw_pose", "shape", "expression"):
        value, size = getattr(start, name), values[:, columns[name]].shape
        if value.shape[0] not in (1, size[0]) or value.shape[1] > size[1]:
            raise ValueError(f"start.{name}: expected shape {tuple(size)}, got {tuple(value.shape)}")
        values[:, columns[name]][:, : value.shape[1]] = value.to(values)
    columns.put(values, lens.names, lens.from_weak(start.camera.to(values), columns.take(values, lens.names)))
    return values
