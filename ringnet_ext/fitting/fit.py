"""Fit heads to landmarks: single images, all images of a person, videos, calibrated views, points in space and whole
meshes."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..flame import FLAME
from ..flame.parameters import FlameParams, HeadParams
from ..geometry.camera import UPRIGHT
from ..geometry.rotations import axis_angle_from_matrix, matrix_from_axis_angle
from .cameras import Perspective, Space, Views, WeakPerspective
from .levenberg_marquardt import INVALID, REASONS, NormalEquations, Prior, Solution, covariance, minimise
from .problem import POSES, Columns, LandmarkResiduals, Robust, observations


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


@dataclass(frozen=True)
class Walk:
    """How far parameters move from one frame of a video to the next: standard deviations. Less is smoother.

    scale: of the camera's scale, relative; or of the distance, for a pinhole camera. translation: metres. Poses:
    radians.
    """

    scale: float = 0.01
    translation: float = 0.002
    global_pose: float = 0.03
    neck_pose: float = 0.03
    jaw_pose: float = 0.025
    eye_pose: float = 0.05
    expression: float = 0.1

    def times(self, factor: float) -> Walk:
        """A walk with steps longer by a factor."""
        return Walk(**{name: factor * value for name, value in vars(self).items()})


@dataclass(frozen=True)
class Fit:
    """Heads fitted to N images of G people.

    params: HeadParams of every image; its camera is weak-perspective, and for a pinhole camera the nearest one.
    person (N,): index of the image's person, 0 .. G - 1, in the order of first appearance. neck_pose (N, 3), eye_pose
    (N, 6). translation (N, 3): metres, and focal (N,), half image sizes, of a pinhole camera; None for others.
    landmarks (N, n, 2 or 3): those of the fitted heads, as the camera sees them. residuals (N, n): their distance to
    what was fitted, in its units, NaN where there was nothing. sigma: of the landmarks, given or estimated.
    objective, iterations (G,), stopped: per person what was reached, in how many steps, and why there were no more.
    failed: those people for whom nothing could be fitted, with the reason; their parameters are the start's.
    """

    params: HeadParams
    person: Tensor
    neck_pose: Tensor
    eye_pose: Tensor
    translation: Tensor | None
    focal: Tensor | None
    landmarks: Tensor
    residuals: Tensor
    sigma: float
    objective: Tensor
    iterations: Tensor
    stopped: list[str]
    failed: dict[int, str]
    _posterior: Callable[[], Posterior] = field(repr=False)

    @property
    def shape(self) -> Tensor:
        """(G, S): one row a person."""
        order = self.person.argsort(stable=True)
        return self.params.shape[order[_first(self.person[order], len(self.objective))]]

    @property
    def flame_params(self) -> FlameParams:
        """What :class:`FLAME` takes: ``flame(*fit.flame_params)`` is the head, in the frame of the camera, or of what
        was fitted in space."""
        p = self.params
        still = p.camera.new_zeros(len(self.person), 3)
        return FlameParams.make(
            shape=p.shape, expression=p.expression, global_pose=p.global_pose, neck_pose=self.neck_pose, jaw_pose=p.jaw_pose,
            eye_pose=self.eye_pose, translation=still if self.translation is None else self.translation,
        )  # fmt: skip

    @property
    def std(self) -> dict[str, Tensor]:
        """Posterior standard deviation of every parameter that was fitted: name -> (N, width), or (G, width) where a
        person's images share it."""
        return self._posterior().std

    @property
    def shape_std(self) -> Tensor:
        """(G, S): posterior standard deviation of the shape coefficients."""
        return self._posterior().std["shape"]

    def vertex_std(self) -> Tensor:
        """(G, V): posterior standard deviation of the neutral head's vertices, metres: the root of the sum over x, y
        and z."""
        return self._posterior().vertex_std()


@dataclass(frozen=True)
class Posterior:
    """The Gaussian around the solution. shape_covariance (G, S, S); directions (V, 3, S)."""

    std: dict[str, Tensor]
    shape_covariance: Tensor
    directions: Tensor

    def vertex_std(self) -> Tensor:
        directions = self.directions.flatten(0, 1)
        rows = [
            ((directions @ c) * directions).sum(1).view(-1, 3).sum(1).clamp_min(0).sqrt() for c in self.shape_covariance
        ]
        return torch.stack(rows)


def fit(
    flame: FLAME,
    landmarks: Tensor,
    *,
    person: Sequence | Tensor | None = None,
    confidence: Tensor | None = None,
    sigma: float | None = 0.01,
    camera: str = "weak",
    focal: float | Tensor | None = None,
    center: tuple[float, float] = (0.0, 0.0),
    views: Tensor | None = None,
    points: tuple[Tensor, Tensor] | None = None,
    start: HeadParams | None = None,
    roles: Mapping[str, str] | None = None,
    priors: Priors = Priors(),
    robust: str | None = None,
    video: bool = False,
    walk: Walk = Walk(),
    iterations: int = 30,
    tolerance: float = 1e-6,
    progress: Callable[[int], object] | None = None,
) -> Fit:
    """The most probable heads given landmarks: maximum a posteriori, by Levenberg-Marquardt with exact derivatives.

    Minimises, for every person, half the sum of |landmark residual / sigma|^2 and of the priors' squares. Images of one
    person are fitted together, with one shape.

        fit(flame, landmarks)                             # (N, 68, 2): N people, an image each
        fit(flame, landmarks, person=[0, 0, 0, 1, 1])     # three images of one person, two of another
        fit(flame, landmarks, person=[0] * N, video=True) # the frames of a video

    Args:
        flame: the layer; its dtype and device are those of the computation.
        landmarks: (N, n, 2) normalised image coordinates, [-1, 1] over the square image, y down, or (N, n, 3) metres, y
            down as RingNet has it; n is the model's 68, or the number of ``points``. For ``views`` (N, views, n, 2).
            Not a number stands for not known.
        person: N labels; images with the same one share a shape. None: every image is another person.
        confidence: (N, n), or (N, views, n), weights >= 0; a landmark counts as if it had been seen that often.
        sigma: standard deviation of a landmark's coordinates, in the landmarks' units. None: estimated, one for all.
        camera: ``weak`` (RingNet's) or ``perspective``, for landmarks with two coordinates.
        focal: of the pinhole camera, half image sizes; a number or (N,). None: estimated, one a person.
        center: its principal point, normalised image coordinates.
        views: (views, 3, 4) projection matrices, metres to normalised image coordinates: several cameras that see the
            same moment.
        points: triangles (n,) and barycentric coordinates (n, 3), instead of the model's landmarks.
        start: where to begin; None: the mean head, in the pose that fits best.
        roles: parameter -> ``image`` (each image has its own), ``person`` (shared by a person's images) or ``fixed``
            (as in ``start``). As it is: shape is the person's, neck_pose and eye_pose are fixed, and so is a focal
            length that is given.
        priors: of the parameters.
        robust: ``huber`` or ``geman-mcclure``: landmarks far off count less, beyond about 1.5 or 3 sigma.
        video: whether a person's images are the frames of a video, in order; ``walk`` then ties neighbours. A frame
            without landmarks is bridged.
        iterations: at most. tolerance: relative decrease at which to stop.
        progress: called with the number of people done since the last call.

    Raises:
        ValueError, TypeError: naming the argument.
    """
    if robust not in _ROBUST:
        raise ValueError(f"robust: expected {', '.join(name for name in _ROBUST if name)} or None, got {robust!r}")
    if sigma is not None and not 0 < sigma < math.inf:
        raise ValueError(f"sigma: expected a positive number, or None to estimate it, got {sigma}")
    target, weight, per_image = observations(flame, landmarks, confidence, views, points)
    lens = _lens(camera, target.shape[-1], center, views, target)
    order, person = _people(person, len(target), target.device)
    parameters = _parameters(flame, lens, priors, roles, focal, person, len(target))
    values = parameters.start.clone() if start is None else _given(parameters, lens, start)
    target, weight, values, of = target[order], weight[order], values[order], person[order]
    people = int(of[-1]) + 1 if len(of) else 0

    usable = (weight > 0).sum(1) >= _FEWEST
    if start is None and usable.any():
        values[usable] = _posed(flame, lens, parameters.columns, values[usable], target[usable], weight[usable], points)
    if video:
        values = values[_nearest_usable(usable, of)]
    weight = torch.where(usable[:, None], weight, 0)
    columns, root = parameters.columns, parameters.root
    tie = _ties(columns, lens, walk, values, of) if video and len(of) > 1 else None
    # Nothing but a prior holds the frames of which nothing is known, unless neighbours do.
    adrift = ~usable if tie is None else ~_any(usable, of, people)[of]
    local_root = columns.take(root, columns.local).repeat(len(of), 1)
    local_root[adrift] = local_root[adrift].clamp_min(1.0)
    mean = torch.where(root > 0, parameters.mean, values)  # of a flat prior it matters only there
    first = _first(of, people)

    estimated, sigma = sigma is None, _FIRST_SIGMA if sigma is None else sigma
    for _ in range(_SIGMA_ROUNDS if estimated else 1):
        residuals = LandmarkResiduals(
            flame, lens, columns, values, target, weight.sqrt() / sigma, Robust(robust, _ROBUST[robust]) if robust else None, points
        )  # fmt: skip
        solution = minimise(
            residuals, of, columns.take(values, columns.local), columns.take(values[first], columns.shared),
            Prior(columns.take(mean, columns.local), local_root),
            Prior(columns.take(mean[first], columns.shared), columns.take(root, columns.shared)), tie=tie, iterations=iterations,
            tolerance=tolerance, frames_at_once=max(1, _ROWS_AT_ONCE // max(1, math.prod(target.shape[1:]))), progress=progress,
        )  # fmt: skip
        values = residuals.row(solution.local, solution.shared[of], torch.arange(len(of), device=of.device))
        if estimated:
            sigma = _estimated_sigma(residuals, of, solution, sigma)
    reasons = [REASONS[reason] for reason in solution.stopped.tolist()]
    nothing = ~_any(usable, of, people)
    for g in nothing.nonzero()[:, 0].tolist():
        reasons[g] = f"no image with at least {_FEWEST} known landmarks"
    invalid = solution.stopped == REASONS.index(INVALID)
    failed = {g: reasons[g] for g in (nothing | invalid).nonzero()[:, 0].tolist()}

    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    seen, distance = residuals.seen(values)
    row, C = values[back], columns
    weak, translation, focal_length = lens.weak(C.take(row, lens.names))
    return Fit(
        params=HeadParams(weak, *(row[:, C[name]] for name in ("global_pose", "jaw_pose", "shape", "expression"))),
        person=person, neck_pose=row[:, C["neck_pose"]], eye_pose=row[:, C["eye_pose"]], translation=translation, focal=focal_length,
        landmarks=seen[back].reshape(len(back), *per_image), residuals=distance[back].reshape(len(back), *per_image[:-1]), sigma=sigma,
        objective=solution.objective, iterations=solution.iterations, stopped=reasons, failed=failed,
        _posterior=functools.cache(lambda: _posterior(flame, columns, solution, back)),
    )  # fmt: skip


def fit_mesh(flame: FLAME, vertices: Tensor, *, sigma: float = 2e-5, priors: Priors | None = None, **options) -> Fit:
    """Parameters of meshes in the model's topology: shape, expression, all poses and translation, a mesh a person.

    Computed in float64: the vertices come back to a few micrometres where the model can make them at all.

    Args:
        vertices: (N, V, 3) metres, in any frame.
        sigma: standard deviation of a vertex's coordinates, metres; more for scans that were registered with some
            error.
        priors: None for wide ones, standard deviation 1 for everything.
        options: as of :func:`fit`, such as ``person`` and ``roles``.
    """
    V = len(flame.v_template)
    if not isinstance(vertices, Tensor) or vertices.dim() != 3 or vertices.shape[1:] != (V, 3):
        got = tuple(vertices.shape) if isinstance(vertices, Tensor) else type(vertices).__name__
        raise ValueError(f"vertices: expected shape (N, {V}, 3), got {got}")
    exact = copy.deepcopy(flame).double()
    corner = torch.zeros(V, dtype=torch.int64, device=flame.faces.device)  # of the last triangle that has the vertex
    corner[flame.faces.flatten()] = torch.arange(flame.faces.numel(), device=corner.device)
    used = flame.faces.flatten()[corner] == torch.arange(V, device=corner.device)
    coordinates = torch.nn.functional.one_hot(corner[used] % 3, 3).double()
    roles = {"neck_pose": "image", "eye_pose": "image"} | dict(options.pop("roles", {}))
    wide = Priors(expression=1.0, jaw_pose=1.0, neck_pose=1.0, eye_pose=1.0)
    return fit(
        exact,
        vertices[:, used],
        points=(corner[used] // 3, coordinates),
        sigma=sigma,
        priors=priors or wide,
        roles=roles,
        **options,
    )


_ROBUST = {None: 0.0, "huber": 1.5, "geman-mcclure": 3.0}
_FEWEST = 6  # known landmarks from which a head is fitted
_FIRST_SIGMA, _SIGMA_ROUNDS = 0.01, 4
_LEAST_SIGMA = 1e-4  # that is estimated
_ROWS_AT_ONCE = 512 * 136  # residuals whose derivatives are held at a time
_POSE_TRIALS = 4


def _people(person, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """An order in which a person's images follow each other, as they were, and each image's person, 0 .. G - 1 by first
    appearance."""
    if person is None:
        return (torch.arange(count, device=device),) * 2
    labels = person.tolist() if isinstance(person, Tensor) else list(person)
    if len(labels) != count:
        raise ValueError(f"person: expected {count} labels, one an image, got {len(labels)}")
    numbers: dict = {}
    index = torch.tensor(
        [numbers.setdefault(label, len(numbers)) for label in labels], dtype=torch.int64, device=device
    )
    return index.argsort(stable=True), index


def _lens(camera: str, dimensions: int, center, views: Tensor | None, like: Tensor):
    if camera not in ("weak", "perspective"):
        raise ValueError(f"camera: expected weak or perspective, got {camera!r}")
    if views is not None:
        return Views(views.to(like))
    if dimensions == 3:
        return Space()
    return WeakPerspective() if camera == "weak" else Perspective(like.new_tensor(center))


class _Parameters(NamedTuple):
    """columns; start (N, Q); mean (N, Q) and root (Q,) of the priors."""

    columns: Columns
    start: Tensor
    mean: Tensor
    root: Tensor


def _parameters(flame: FLAME, lens, priors: Priors, roles, focal, person: Tensor, count: int) -> _Parameters:
    like = flame.v_template
    widths = dict.fromkeys(lens.names, 1) | POSES | {"expression": flame.expression_params, "shape": flame.shape_params}
    camera = [name for name in lens.names if name != "log_focal"]
    role = dict.fromkeys((*camera, "global_pose", "jaw_pose", "expression"), "image") | {"shape": "person"}
    role |= {"neck_pose": "fixed", "eye_pose": "fixed", "log_focal": "person" if focal is None else "fixed"}
    for name, value in (roles or {}).items():
        names = {"camera": camera, "focal": ["log_focal"]}.get(name, [name])
        if name in lens.names or not set(names) <= role.keys():
            known = ("camera", "focal", *POSES, "expression", "shape")
            raise ValueError(f"roles: expected some of {', '.join(known)}, got {name!r}")
        if value not in ("image", "person", "fixed"):
            raise ValueError(f"roles: expected image, person or fixed for {name}, got {value!r}")
        role |= dict.fromkeys(names, value)
    alone = count == 0 or int(person.max()) + 1 == count  # nothing is shared: one elimination less
    local = [name for name in widths if role[name] == "image" or (alone and role[name] == "person")]
    shared = [name for name in widths if role[name] == "person" and not alone]
    columns = Columns(widths, local, shared)

    start, root = like.new_zeros(count, columns.width), like.new_zeros(columns.width)
    start[:, columns["global_pose"]] = like.new_tensor(UPRIGHT)
    if "log_focal" in widths:
        start[:, columns["log_focal"]] = (
            torch.as_tensor(priors.focal if focal is None else focal).to(like).log().view(-1, 1)
        )
    for name in ("shape", "expression", "jaw_pose", "neck_pose", "eye_pose", "log_focal"):
        sigma = getattr(priors, name)
        if name in widths and sigma is not None:
            if not sigma > 0:
                raise ValueError(f"priors.{name}: expected a positive number or None, got {sigma}")
            root[columns[name]] = 1 / sigma
    mean = start.clone()
    mean[:, columns["global_pose"]] = 0
    return _Parameters(columns, start, mean, root)


def _given(parameters: _Parameters, lens, start: HeadParams) -> Tensor:
    """The rows that start there."""
    columns, values = parameters.columns, parameters.start.clone()
    for name in ("global_pose", "jaw_pose", "shape", "expression"):
        value, size = getattr(start, name), values[:, columns[name]].shape
        if value.shape[0] not in (1, size[0]) or value.shape[1] > size[1]:
            raise ValueError(f"start.{name}: expected shape {tuple(size)}, got {tuple(value.shape)}")
        values[:, columns[name]][:, : value.shape[1]] = value.to(values)
    columns.put(values, lens.names, lens.from_weak(start.camera.to(values), columns.take(values, lens.names)))
    return values


def _posed(flame: FLAME, lens, columns: Columns, values: Tensor, target: Tensor, weight: Tensor, points) -> Tensor:
    """With the rotation and the camera that bring the mean head's landmarks nearest to the target, in closed form;
    which contour there is depends on the rotation, hence several times."""
    residuals = LandmarkResiduals(flame, lens, columns, values, target, weight, None, points)
    values, known = values.clone(), torch.where(weight[..., None] > 0, target, 0)
    for _ in range(_POSE_TRIALS):
        now = residuals.landmarks(values)[0]
        turn, camera = lens.nearest(now, known, weight, columns.take(values, lens.names))
        pose = matrix_from_axis_angle(values[:, columns["global_pose"]].contiguous())
        values[:, columns["global_pose"]] = _near_upright(axis_angle_from_matrix(turn @ pose))
        columns.put(values, lens.names, camera)
    # The landmarks turned about the root joint, not about the origin; the camera follows.
    now = residuals.landmarks(values)[0]
    columns.put(values, lens.names, lens.nearest(now, known, weight, columns.take(values, lens.names), turned=False)[1])
    return values


def _near_upright(vector: Tensor) -> Tensor:
    """The same rotations; of the two vectors of each the one that is nearer to UPRIGHT, if it isn't far from half a
    turn: a whole turn is where axis-angle vectors tell rotations apart no longer."""
    length = vector.norm(dim=1, keepdim=True)
    other = vector * (1 - 2 * math.pi / length.clamp_min(1e-6))
    upright = vector.new_tensor(UPRIGHT)
    turned_over = (vector - upright).norm(dim=1, keepdim=True) > (other - upright).norm(dim=1, keepdim=True)
    return torch.where(turned_over & (length > 0.75 * math.pi), other, vector)


def _any(flags: Tensor, of: Tensor, count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int64, device=of.device).index_add_(0, of, flags.long()) > 0


def _first(of: Tensor, count: int) -> Tensor:
    """The first frame of every person."""
    return torch.searchsorted(of, torch.arange(count, device=of.device))


def _nearest_usable(usable: Tensor, of: Tensor) -> Tensor:
    """For every frame the usable one of its person that is nearest in time; itself where there is none."""
    frames = torch.arange(len(of), device=of.device)
    before = torch.where(usable, frames, -1).cummax(0).values
    after = torch.where(usable, frames, len(of)).flip(0).cummin(0).values.flip(0)
    has_before = (before >= 0) & (of[before.clamp_min(0)] == of)
    has_after = (after < len(of)) & (of[after.clamp_max(len(of) - 1)] == of)
    nearer_before = has_before & (~has_after | (frames - before <= after - frames))
    return torch.where(nearer_before, before, torch.where(has_after, after, frames))


def _ties(columns: Columns, lens, walk: Walk, values: Tensor, of: Tensor) -> Tensor:
    """(N - 1, P): root of the precision between neighbouring frames, 0 between two people."""
    steps = torch.full_like(values, math.inf)
    for name in (*POSES, "expression"):
        steps[:, columns[name]] = getattr(walk, name)
    for name, step in zip(lens.names, lens.walk(walk, columns.take(values, lens.names)), strict=True):
        steps[:, columns[name]] = step[:, None]
    root = 1 / columns.take(steps, columns.local)[1:]
    return torch.where((of[1:] == of[:-1])[:, None], root, 0)


def _estimated_sigma(residuals: LandmarkResiduals, of: Tensor, solution: Solution, sigma: float) -> float:
    """From the residuals that are left, and from how many of them the parameters took up."""
    equations = solution.equations()
    line = residuals(torch.arange(len(of), device=of.device), solution.local, solution.shared[of])
    count = (residuals.root_weight > 0).sum() * residuals.target.shape[-1]
    taken = _information(equations, line)
    left = line.residuals.square().sum() / (count - taken).clamp_min(1)
    return max(_LEAST_SIGMA, float(sigma * left.sqrt()))


def _information(equations: NormalEquations, line) -> Tensor:
    """How many numbers the data have told: the trace of the inverse Hessian times the data's part of it."""
    blocks = covariance(equations)
    line = type(line)(*(value.double() for value in line))
    data = line.local.transpose(1, 2) @ line.local
    told = (blocks.local * data).sum()
    if blocks.shared.numel():
        shared = line.shared.transpose(1, 2) @ line.shared
        mixed = line.local.transpose(1, 2) @ line.shared
        told = told + (blocks.shared[equations.problem] * shared).sum() + 2 * (blocks.mixed * mixed).sum()
    return told


def _posterior(flame: FLAME, columns: Columns, solution: Solution, back: Tensor) -> Posterior:
    blocks = covariance(solution.equations())
    std, shape = {}, flame.v_template.new_zeros(len(solution.shared), flame.shape_params, flame.shape_params)
    for names, part, order in ((columns.local, blocks.local, back), (columns.shared, blocks.shared, slice(None))):
        first = 0
        for name in names:
            width = columns[name].stop - columns[name].start
            block = part[:, first : first + width, first : first + width]
            std[name] = block.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()[order].to(shape.dtype)
            shape = block.to(shape.dtype) if name == "shape" else shape
            first += width
    return Posterior(std, shape, flame.shapedirs[..., : flame.shape_params])
