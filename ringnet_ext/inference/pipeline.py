"""From pictures to faces, each stage beside the others: reading, detecting and cropping in threads, the network and the
decoder in batches, and what is done with the faces (rendering, writing) in threads again.

Between the stages there are never more than some batches of pictures, however many there are in all. The last batch is
filled up: so a face's numbers don't depend on which other faces it is computed with. They don't to the last bit where
the library of matrix products takes all rows of a batch alike (MKL, with multiples of 8), and within 1e-6 of the
largest with other libraries and sizes.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import cv2
import numpy as np
import torch

from ..detection.squares import Square
from ..flame.parameters import HeadParams
from .finders import Finder, Found
from .inputs import Image, Picture, pixels_of
from .reconstruction import Reconstruction, reconstructions, refined
from .trust import Trust, agreements, inside, second_crops

if TYPE_CHECKING:
    from ..network.ringnet import RingNet

T = TypeVar("T")
R = TypeVar("R")

#: Squares that the network sees at a time: on a CPU, there with a light encoder, and elsewhere. A light encoder's
#: weights take longer to read than to compute with.
BATCH, BATCH_LIGHT, BATCH_ELSEWHERE = 8, 96, 64
_ALIKE = 8  # a batch of a multiple of as many has all rows computed alike on a CPU
THREADS = max(2, min(8, os.cpu_count() or 2))
_BATCHES_BETWEEN = 2  # stages, at most


@dataclass(frozen=True)
class Face:
    """A face of a picture: how it was found, and what it was reconstructed as; or why it was not."""

    number: int  # from left to right, from 1
    found: Found | None = None
    reconstruction: Reconstruction | None = None
    error: Exception | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a picture: its faces from left to right, or why there are none."""

    picture: Picture
    faces: tuple[Face, ...] = ()
    error: Exception | None = None

    @property
    def errors(self) -> list[Exception]:
        own = [] if self.error is None else [self.error]
        return own + [face.error for face in self.faces if face.error is not None]


class _Read(NamedTuple):
    picture: Picture
    original: np.ndarray | str | os.PathLike | None  # pixels or file; of a square that was given not known
    size: tuple[int, int] | None  # width and height
    found: Sequence[Found | Exception]
    error: Exception | None


#: What can go wrong with one picture, and leaves the others alone.
OF_ONE_PICTURE = (OSError, ValueError, MemoryError, cv2.error)


def reconstruct_all(
    model: RingNet,
    pictures: Iterable[Picture],
    find: Finder,
    finish: Callable[[Outcome], Outcome] = lambda outcome: outcome,
    *,
    batch: int | None = None,
    trust: bool = True,
    refine: bool = False,
    threads: int = THREADS,
) -> Generator[Outcome]:
    """Reconstruct the faces of pictures, and finish each picture (writing its files, say), in their order.

    Args:
        find: where the faces of a picture are; called in several threads.
        finish: what is done with each outcome; called in several threads. What it returns is handed on.
        batch: squares that the network sees at a time; None for :func:`batch_of`.
        trust: ask the network about a second crop too, for each face's agreement.
        refine: fit the network's answer to the landmarks by which a face was cut, where it was.
        threads: of reading, and of finishing; 0: everything in the caller's.
    """
    if batch is None:
        batch = batch_of(model)
    model.eval()
    coming = iter(pictures)
    between = _BATCHES_BETWEEN * batch
    readers, finishers = (
        ThreadPoolExecutor(threads, name) if threads else _NoThreads() for name in ("reading", "finishing")
    )
    reading: deque[Future[_Read] | _Later] = deque()
    finishing: deque[Future[Outcome] | _Later] = deque()
    group: list[_Read] = []
    found = 0  # faces in it
    try:
        while True:
            reading.extend(readers.submit(_read, picture, find) for picture in islice(coming, between - len(reading)))
            if reading:
                group.append(reading.popleft().result())
                found += len(group[-1].found)
            if not reading or found >= batch or len(group) >= between:
                for outcome in _outcomes(model, group, batch, trust, refine):
                    finishing.append(finishers.submit(finish, outcome))
                    while finishing and (finishing[0].done() or len(finishing) > between):
                        yield finishing.popleft().result()
                group, found = [], 0
            while finishing and finishing[0].done():
                yield finishing.popleft().result()
            if not reading and not group:
                break
        while finishing:
            yield finishing.popleft().result()
    finally:
        for pool in (readers, finishers):
            pool.shutdown(cancel_futures=True)


class _Later(NamedTuple):
    """What is done when its result is asked for."""

    function: Callable
    arguments: tuple

    def done(self) -> bool:
        return True

    def result(self):
        return self.function(*self.arguments)


class _NoThreads:
    """A pool whose work the caller does."""

    def submit(self, function: Callable, *arguments) -> _Later:
        return _Later(function, arguments)

    def shutdown(self, cancel_futures: bool = False) -> None:
        pass


def batch_of(model: RingNet) -> int:
    """Squares that the network sees at a time, where it isn't said how many."""
    if model.flame.v_template.device.type != "cpu":
        return BATCH_ELSEWHERE
    return BATCH_LIGHT if model.encoder.light else BATCH


def _read(picture: Picture, find: Finder) -> _Read:
    try:
        image = pixels_of(picture.image)
        found = find(picture, image)
        if isinstance(picture.image, Square):
            return _Read(picture, None, None, found, None)
        original = picture.image if isinstance(picture.image, (str, os.PathLike)) else image
        return _Read(picture, original, (image.shape[1], image.shape[0]), found, None)
    except OF_ONE_PICTURE as error:
        return _Read(picture, None, None, (), error)


def _outcomes(model: RingNet, group: list[_Read], batch: int, trust: bool, refine: bool) -> list[Outcome]:
    squares = [one.square for each in group for one in each.found if isinstance(one, Found)]
    faces = iter(reconstructed(model, squares, batch, trust))

    def face(number: int, one: Found | Exception, each: _Read) -> Face:
        if not isinstance(one, Found):
            return Face(number, error=one)
        made = next(faces)
        if each.size is not None:
            trust = made.trust._replace(inside=inside(made.landmarks, each.size))
            made = replace(made, original=each.original, trust=trust)
        if refine and one.points is not None:
            try:  # by itself: its numbers don't depend on the others'
                made = refined(model, [made], [one.known])[0]
            except ValueError as error:
                return Face(number, one, error=error)
        return Face(number, one, made)

    return [
        Outcome(each.picture, tuple(face(i, one, each) for i, one in enumerate(each.found, start=1)), each.error)
        for each in group
    ]


def reconstructed(model: RingNet, squares: Sequence[Square], batch: int, trust: bool = True) -> list[Reconstruction]:
    """The faces in squares, up to `batch` at a time."""
    faces: list[Reconstruction] = []
    for part in _parts(squares, batch):
        made = reconstructions(model.flame, model.head, part, answers(model, [square.image for square in part], batch))
        if trust:
            second = answers(model, second_crops(part), batch)
            size = len(part[0].image)
            with torch.no_grad():
                points = (model.landmarks(second).cpu().double().numpy() + 1) * (size / 2)
            values = agreements(np.stack([face.square_landmarks for face in made]), points, size)
            made = [
                replace(face, trust=Trust(agreement=float(value))) for face, value in zip(made, values, strict=True)
            ]
        faces += made
    return faces


def _parts(squares: Sequence[Square], batch: int) -> Iterator[list[Square]]:
    """Up to `batch` squares that follow each other and have one size."""
    for _, alike in groupby(squares, key=lambda square: len(square.image)):
        while part := list(islice(alike, batch)):
            yield part


def answers(model: RingNet, images: Sequence[np.ndarray], batch: int) -> HeadParams:
    """What the network says of up to `batch` pictures (S, S, 3) uint8 of one size, in a batch that is filled up."""
    if model.flame.v_template.device.type == "cpu":
        batch = min(batch, -(-len(images) // _ALIKE) * _ALIKE)
    filled = np.zeros((batch, 3, *images[0].shape[:2]), np.uint8)
    for image, planes in zip(images, filled, strict=False):
        cv2.split(image, list(planes))
    params = model.answer(torch.from_numpy(filled))
    return HeadParams(*(value[: len(images)] for value in params))


def ahead(items: Iterable[T], count: int = BATCH) -> Iterator[T]:
    """The items, up to `count` of which a thread takes before they are asked for."""
    coming, end = iter(items), object()
    pool = ThreadPoolExecutor(1, "reading")
    waiting: deque[Future] = deque()
    try:
        while True:
            waiting.extend(pool.submit(next, coming, end) for _ in range(count - len(waiting)))
            item = waiting.popleft().result()
            if item is end:
                return
            yield item
    finally:
        pool.shutdown(cancel_futures=True)


def side_by_side(function: Callable[[T], R], items: Iterable[T], threads: int = THREADS) -> Iterator[R]:
    """What a function makes of each item, in their order, in several threads; no more than two for each thread are
    waiting."""
    coming = ahead(items)
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[R]] = deque()
    try:
        while True:
            waiting.extend(pool.submit(function, item) for item in islice(coming, 2 * threads - len(waiting)))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def pictures_from(images: Iterable[Image]) -> list[Picture]:
    """Pictures in Python, labelled by their files or their place among the others."""
    return [
        Picture(os.fspath(image) if isinstance(image, (str, os.PathLike)) else f"images[{i}]", str(i), image)
        for i, image in enumerate(images)
    ]
