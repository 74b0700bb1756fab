"""Fit heads to landmarks: single images, all images of a person, videos, calibrated views, points in space."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..flame import FLAME
from ..flame.parameters import HeadParams
from .cameras import Camera, Perspective, Space, Views, WeakPerspective
from .images import Images
from .levenberg_marquardt import INVALID, REASONS, Prior, Solution, minimise
from .noise import noise
from .parameters import Priors, given, parameters_of
from .poses import posed
from .problem import Columns, LandmarkResiduals, Robust, observations
from .result import Fit, first_images, posterior
from .track import Video, Walk, clips, nearest_usable, ties


@torch.no_grad()
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
    tolerance: float | None = None,
    progress: Callable[[int], object] | None = None,
) -> Fit:
    """The most probable heads given landmarks: maximum a posteriori, by Levenberg-Marquardt with exact derivatives.

    Minimises, for every person, half the sum of ``|landmark residual / sigma|^2`` and of the priors' squares. Images
    of one person are fitted together, with one shape::

        fit(flame, landmarks)                             # (N, 68, 2): N people, an image each
        fit(flame, landmarks, person=[0, 0, 0, 1, 1])     # three images of one person, two of another
        fit(flame, landmarks, person=[0] * N, video=True) # the frames of a video

    The results are constants: no gradient flows to the landmarks.

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
        roles: parameter -> ``image`` (each image has its own), ``person`` (shared by a person's images), ``all``
            (shared by everybody's, such as the focal length of one camera) or ``fixed`` (as in ``start``). As it is:
            shape is the person's, neck_pose and eye_pose are fixed, and so is a focal length that is given.
        priors: of the parameters.
        robust: ``huber`` or ``geman-mcclure``: landmarks far off count less, beyond about 1.5 or 3 sigma.
        video: whether a person's images are the frames of a video, in order; ``walk`` then ties neighbours. A frame
            without landmarks is bridged.
        iterations: at most. tolerance: relative decrease at which to stop; None for 1e-6, and 1e-5 for a video, in
            which some frames' contours always go on jumping between rows of their table.
        progress: called with the number of people done since the last call.

    Raises:
        ValueError, TypeError: naming the argument.
    """
    if flame.num_joints != 5:
        raise ValueError(f"flame: expected a layer with FLAME's 5 joints, got one with {flame.num_joints}")
    if robust not in _ROBUST:
        raise ValueError(f"robust: expected {', '.join(name for name in _ROBUST if name)} or None, got {robust!r}")
    if sigma is not None and not 0 < sigma < math.inf:
        raise ValueError(f"sigma: expected a positive number, or None to estimate it, got {sigma}")
    target, weight, per_image = observations(flame, landmarks, confidence, views, points)
    lens = _lens(camera, target.shape[-1], center, views, target)
    order, person = _people(person, len(target), target.device)
    parameters = parameters_of(flame, lens, priors, roles, focal, person)
    values = parameters.start.clone() if start is None else given(parameters, lens, start)
    usable = ((weight > 0).sum(1) >= _FEWEST)[order]
    task = _Task(
        flame, lens, parameters.columns, points, Robust(robust, _ROBUST[robust]) if robust else None,
        person[order], torch.arange(len(order), device=order.device), usable, target[order],
        torch.where(usable[:, None], weight[order], 0), values[order], parameters.mean[order], parameters.root,
        walk if video and len(order) > 1 else None, start is None,
    )  # fmt: skip
    tolerance = (1e-5 if video else 1e-6) if tolerance is None else tolerance
    found, sigma = task.solved(sigma, iterations=iterations, tolerance=tolerance, progress=progress)
    return _result(task, found, sigma, order, person, per_image)


_ROBUST = {None: 0.0, "huber": 1.5, "geman-mcclure": 3.0}
_FEWEST = 6  # known landmarks from which a head is fitted
_FIRST_SIGMA, _SIGMA_ROUNDS = 0.01, 4
_LEAST_SIGMA = 1e-4  # that is estimated
_ROWS_AT_ONCE = 512 * 136  # residuals whose derivatives are held at a time
_VIDEO_ROWS_AT_ONCE = 256 * 136


class _Found(NamedTuple):
    """values (N, Q): all parameters, fitted or not."""

    residuals: LandmarkResiduals
    solution: Solution
    values: Tensor


@dataclass(frozen=True)
class _Task:
    """Images in the order of their people, and what is to be found out about them.

    of, number (N,): the image's person, and its place in the row. usable (N,): whether enough of it is known. target
    (N, n, d), weight (N, n): 0 in images that aren't usable. values (N, Q): where to begin; mean (N, Q), root (Q,): of
    the priors. walk: where the images are frames of a video. posed: whether the pose to begin with is to be found.
    """

    flame: FLAME
    lens: Camera
    columns: Columns
    points: tuple[Tensor, Tensor] | None
    robust: Robust | None
    of: Tensor
    number: Tensor
    usable: Tensor
    target: Tensor
    weight: Tensor
    values: Tensor
    mean: Tensor
    root: Tensor
    walk: Walk | None
    posed: bool

    @property
    def people(self) -> int:
        return int(self.of[-1]) + 1 if len(self.of) else 0

    def somewhere_usable(self) -> Tensor:
        """(G,)."""
        flags = torch.zeros(self.people, dtype=torch.int64, device=self.of.device)
        return flags.index_add_(0, self.of, self.usable.long()) > 0

    def some(self, frames: Tensor) -> _Task:
        """Of some of the images only, at least one of every person."""
        rows = {
            name: getattr(self, name)[frames]
            for name in ("of", "number", "usable", "target", "weight", "values", "mean")
        }
        return dataclasses.replace(self, **rows)

    def solved(self, sigma: float | None, **options) -> tuple[_Found, float]:
        """At the optimum, and the landmarks' sigma, which is estimated where it isn't given."""
        task = self
        if self.walk is not None:
            frames = clips(self.usable, self.of)
            if len(frames) < len(self.of):  # What all frames of a video share, a part of them knows well enough.
                found, sigma = self.some(frames).solved(sigma, **options | {"progress": None})
                shared = found.solution.shared[self.of]
                values = self.values.clone()
                self.columns.put(values, self.columns.shared, shared)
                task = dataclasses.replace(self, values=values)
        task = task._begun()
        if sigma is not None:
            return task._fitted(sigma, **options), sigma
        sigma = _FIRST_SIGMA
        for _ in range(_SIGMA_ROUNDS):
            found = task._fitted(sigma, **options)
            common, priors = self.columns.count(self.columns.common), task._priors()
            off = noise(found.residuals, found.solution, found.values, *priors, common, task._tie())
            sigma = max(_LEAST_SIGMA, off * sigma)
            task = dataclasses.replace(task, values=found.values)
        return found, sigma

    def _begun(self) -> _Task:
        """In the pose to begin with."""
        values, usable, columns = self.values, self.usable, self.columns
        if self.posed and usable.any():
            values = values.clone()
            values[usable] = posed(
                self.flame, self.lens, columns, values[usable], self.target[usable], self.weight[usable], self.points
            )
        if self.walk is not None:
            values = values[nearest_usable(usable, self.of)]
        if columns.common and usable.any():
            values = values.clone()
            common = columns.take(values[usable], columns.common).mean(0)
            columns.put(values, columns.common, common.expand(len(values), -1))
        return dataclasses.replace(self, values=values)

    def _tie(self) -> Tensor | None:
        if self.walk is None:
            return None
        return ties(self.columns, self.lens, self.walk, self.values, self.of, self.number)

    def _priors(self) -> tuple[Prior, Prior]:
        """Of the local parameters (N, P), and of the shared ones (S,)."""
        columns, people, values = self.columns, self.people, self.values
        first = first_images(self.of, people)
        # Nothing but a prior holds the frames of which nothing is known, unless neighbours do.
        adrift = ~self.usable if self.walk is None else ~self.somewhere_usable()[self.of]
        local_root = columns.take(self.root, columns.local).repeat(len(self.of), 1)
        local_root[adrift] = local_root[adrift].clamp_min(1.0)
        mean = torch.where(self.root > 0, self.mean, values)  # of a flat prior it matters only there
        shared_mean, shared_root = columns.take(mean[first], columns.shared), columns.take(self.root, columns.shared)
        if columns.common and people:
            own = len(shared_root) - columns.count(columns.common)
            shared_mean[:, own:] = columns.take(mean, columns.common).mean(0)
            shared_root[own:] /= math.sqrt(people)  # everybody brings a part of it
        return Prior(columns.take(mean, columns.local), local_root), Prior(shared_mean, shared_root)

    def _fitted(self, sigma: float, *, iterations: int, tolerance: float, progress) -> _Found:
        columns, of = self.columns, self.of
        residuals = LandmarkResiduals(
            self.flame, self.lens, columns, self.values, self.target, self.weight.sqrt() / sigma, self.robust,
            self.points,
        )  # fmt: skip
        local = columns.take(self.values, columns.local)
        shared = columns.take(self.values[first_images(of, self.people)], columns.shared)
        tie, common = self._tie(), columns.count(columns.common)
        numbers = max(1, math.prod(self.target.shape[1:]))
        equations: Images | Video
        if tie is None:
            equations = Images(
                residuals, of, local, shared, *self._priors(), common=common,
                frames_at_once=max(1, _ROWS_AT_ONCE // numbers),
            )  # fmt: skip
        else:
            equations = Video(
                residuals, of, local, shared, *self._priors(), tie, common=common,
                frames_at_once=max(1, _VIDEO_ROWS_AT_ONCE // numbers),
            )  # fmt: skip
        solution = minimise(equations, iterations=iterations, tolerance=tolerance, progress=progress)
        if common:  # people who could not be fitted share what the others found
            valid = solution.stopped != REASONS.index(INVALID)
            if valid.any():
                solution.shared[:, -common:] = solution.shared[valid][0, -common:]
        values = residuals.row(solution.local, solution.shared[of], torch.arange(len(of), device=of.device))
        return _Found(residuals, solution, values)


def _result(task: _Task, found: _Found, sigma: float, order: Tensor, person: Tensor, per_image: tuple[int, ...]) -> Fit:
    """What a task has found, in the order in which the images came: the task's are those of ``order``."""
    solution, reasons = found.solution, [REASONS[reason] for reason in found.solution.stopped.tolist()]
    nothing = ~task.somewhere_usable()
    for g in nothing.nonzero()[:, 0].tolist():
        reasons[g] = f"no image with at least {_FEWEST} known landmarks"
    invalid = solution.stopped == REASONS.index(INVALID)
    failed = {g: reasons[g] for g in (nothing | invalid).nonzero()[:, 0].tolist()}

    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    seen, distance = found.residuals.seen(found.values)
    row, C = found.values[back], task.columns
    weak, translation, focal_length = task.lens.weak(C.take(row, task.lens.names))
    return Fit(
        params=HeadParams(weak, *(row[:, C[name]] for name in ("global_pose", "jaw_pose", "shape", "expression"))),
        person=person, neck_pose=row[:, C["neck_pose"]], eye_pose=row[:, C["eye_pose"]],
        translation=translation, focal=focal_length, landmarks=seen[back].reshape(len(back), *per_image),
        residuals=distance[back].reshape(len(back), *per_image[:-1]), sigma=sigma,
        objective=solution.objective.to(row), iterations=solution.iterations, stopped=reasons, failed=failed,
        _posterior=functools.cache(lambda: posterior(task.flame, C, solution, back)),
    )  # fmt: skip


def _people(person: Sequence | Tensor | None, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
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


def _lens(camera: str, dimensions: int, center: tuple[float, float], views: Tensor | None, like: Tensor) -> Camera:
    if camera not in ("weak", "perspective"):
        raise ValueError(f"camera: expected weak or perspective, got {camera!r}")
    if views is not None:
        return Views(views.to(like))
    if dimensions == 3:
        return Space()
    return WeakPerspective() if camera == "weak" else Perspective(like.new_tensor(center))
