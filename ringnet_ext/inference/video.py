"""Heads in videos: the network follows a face from frame to frame, landmarks are fitted as one, gaps are bridged.

A video's parameters are HeadParams with a row a frame, whose camera sees the head in the whole frame: in halves of its
longer side from its middle, as :func:`whole_frame` has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from ..detection.detectors import Detectors
from ..detection.landmark_files import POINTS, LandmarkError, read_landmark_array
from ..detection.squares import Square, around_landmarks, cut_square, fit_square
from ..files.videos import Video
from ..fitting import Fit, Walk, fit
from ..flame import FLAME, FlameModel
from ..flame.parameters import HeadParams
from ..geometry.camera import UPRIGHT
from ..geometry.rotations import axis_angle_from_matrix, matrix_from_axis_angle
from ..progress import progress
from ..render.pictures import mark_points, overlay, write_text
from .finders import Finder, Found
from .framing import limit_of, settled
from .inputs import Picture
from .pipeline import BATCH, ahead, reconstructed, side_by_side
from .reconstruction import Reconstruction, reconstruction
from .ringnet import RingNet

_MOST_OVERLAY = 720  # pixels along the longer side of an overlay video
_SEARCHES = 16  # frames without a face between two searches through the whole frame, at most


@dataclass(frozen=True)
class Heads:
    """What a network says of a video's frames.

    params: T rows; those of frames without a face are bridged. The shape is the mean over the frames. seen (T,): which
    frames show a face. score (T,): NaN in the others. landmarks (T, 68, 2): pixels.
    """

    params: HeadParams
    seen: np.ndarray
    score: np.ndarray
    landmarks: np.ndarray


# Coordinates.


def whole_frame(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixels of a frame of this width and height -> coordinates around its middle, in halves of its longer side."""
    return (points - np.array(size) / 2) / (max(size) / 2)


def pixels(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The way back."""
    return points * (max(size) / 2) + np.array(size, points.dtype) / 2


def in_whole_frame(params: HeadParams, square: Square, size: tuple[int, int]) -> HeadParams:
    """Parameters of a head in a square, with the camera that sees it in the whole frame."""
    # The square is a part of the frame: its coordinates are x' = a x + b, so s' = a s and t' = t + b / s'.
    a = max(size) / 2 * square.scale * 2 / len(square.image)
    b = square.normalised(np.array(size) / 2)
    scale = params.camera[:, :1]
    return params._replace(camera=torch.cat([scale / a, params.camera[:, 1:] - scale.new_tensor(b) / scale], dim=1))


def through_pinhole(
    face: Reconstruction, focal: float, translation: np.ndarray, size: tuple[int, int]
) -> Reconstruction:
    """A face as a pinhole camera sees it: its landmarks, and vertices that its weak-perspective camera has in the same
    places. Otherwise a head that is near, or far from the middle, would be drawn beside the one in the image.

    Args:
        focal: in halves of the longer side of the frame, in whose middle the camera looks. translation: (3,) metres,
            from the head's frame (y down) to the camera's. size: width and height of the frame.
    """

    def seen(points: np.ndarray) -> np.ndarray:
        moved = points + translation.astype(np.float64)
        return pixels(focal * moved[:, :2] / moved[:, 2:], size)

    scale, *shift = face.params.camera[0].double().tolist()
    flat = face.image_vertices.copy()
    flat[:, :2] = face.square.normalised(seen(face.image_vertices)) / scale - shift
    landmarks = seen(face.in_frame(face.landmarks_3d, "ringnet"))
    on_square = landmarks * face.square.scale + face.square.offset
    return replace(face, image_vertices=flat, landmarks=landmarks.astype(np.float32), square_landmarks=on_square)


# Landmarks.

#: (T, 68, 2) pixels and (T, 68) confidences, 0 where there is no face.
Landmarks = tuple[np.ndarray, np.ndarray]


def read_video_landmarks(file: Path, video: Video) -> Landmarks:
    """Landmarks of every frame, from an .npy or .npz file of (T, 68, 2 or 3): x, y and perhaps confidence, NaN where
    there is no face. Pixels as in the files of images: see :mod:`..detection.landmark_files`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming the file, which holds something else.
    """
    try:
        values = read_landmark_array(file)
    except LandmarkError as error:
        raise ValueError(f"{file}: {error}") from None
    if values.ndim != 3 or values.shape[1] != POINTS or values.shape[2] not in (2, 3):
        raise ValueError(f"{file}: expected numbers of shape (frames, {POINTS}, 2 or 3), got {values.shape}")
    count = sum(1 for _ in video)
    if len(values) != count:
        raise ValueError(f"{file}: landmarks of {len(values)} frames, and {video.path} has {count}")
    points = values[..., :2].astype(np.float32)
    confidence = values[..., 2].astype(np.float32) if values.shape[2] == 3 else np.ones(values.shape[:2], np.float32)
    there = np.asarray(np.isfinite(values).all(-1))
    return np.where(there[..., None], points, 0), np.where(there, confidence, 0)


def detected_landmarks(detectors: Detectors, video: Video) -> Landmarks:
    """What a detector finds in every frame: its largest face.

    Raises:
        ValueError: no frame can be read.
    """

    def find(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        try:
            return detectors(frame)
        except LandmarkError:
            return np.zeros((POINTS, 2), np.float32), np.zeros(POINTS, np.float32)

    found = side_by_side(find, video)
    rows = list(progress(found, total=video.count or None, desc="finding landmarks", unit="frame"))
    if not rows:
        raise ValueError(f"{video.path}: no frame of it can be read")
    return np.stack([row[0] for row in rows]), np.stack([row[1] for row in rows])


def fit_landmarks(
    flame: FLAME,
    landmarks: Landmarks,
    size: tuple[int, int],
    *,
    smoothness: float = 1.0,
    start: HeadParams | None = None,
    **options,
) -> Fit:
    """One head fitted to the landmarks of a video, smooth over time, its gaps bridged.

    Args:
        size: width and height of the frames. smoothness: how little a frame differs from the next; 0 for frames on
            their own. options: of :func:`ringnet_ext.fit`.

    Raises:
        ValueError: no frame shows a face, or nothing could be fitted.
    """
    points, confidence = landmarks
    if not (confidence > 0).any():
        raise ValueError(f"no face in any of its {len(points)} frames")
    like = flame.v_template
    found = fit(
        flame,
        torch.from_numpy(whole_frame(points, size)).to(like),
        person=[0] * len(points),
        confidence=torch.from_numpy(confidence).to(like),
        start=start,
        video=smoothness > 0,
        walk=Walk().times(1 / smoothness) if smoothness > 0 else Walk(),
        **options,
    )
    if found.failed:
        raise ValueError(found.failed[0])
    return found


# The network.


def follow(model: RingNet, video: Video, find: Finder, *, every: bool = False) -> Heads:
    """The head of one person in a video, by the network.

    Args:
        find: where the face is in the first frame, and again where it was lost: the first that it finds is followed.
            In between the square is where the network's own landmarks were in the frame before.
        every: look for it anew in every frame.

    Raises:
        ValueError: no frame can be read, or none shows a face, and why the first doesn't.
    """
    size, label = video.size, str(video.path)
    why: list[ValueError] = []
    rows: list[HeadParams | None] = []
    scores: list[float] = []
    last: Square | None = None
    lost = 0
    for frame in progress(ahead(video), total=video.count or None, desc="reconstructing", unit="frame"):
        face = None if last is None or every else _again(model, frame, last)
        if (face is None and lost & (lost - 1) == 0) or (lost % _SEARCHES == 0 and face is None):
            face = _first(model, frame, find, Picture(label, "", frame), why)
        rows.append(None if face is None else in_whole_frame(face.params, face.square, size))
        scores.append(np.nan if face is None else float(face.trust.score or 0))
        lost = 0 if face is not None else lost + 1
        last = last if face is None else face.square
    if not rows:
        raise ValueError(f"{video.path}: no frame of it can be read")
    if not any(row is not None for row in rows):
        reason = f"; in the first: {why[0]}" if why else ""
        raise ValueError(f"{label}: no face in any of its {len(rows)} frames{reason}")
    return _bridged(model, rows, np.array(scores), size)


def _first(model: RingNet, frame: np.ndarray, find: Finder, picture: Picture, why: list[ValueError]):
    """The first face that is found, or None; why there is none is added to a list."""
    try:
        found = find(picture, frame)
    except ValueError as error:
        why.append(error)
        return None
    faces = [one for one in found if isinstance(one, Found)]
    why += [one for one in found if not isinstance(one, Found)]
    return reconstructed(model, [faces[0].square], 1)[0] if faces else None


def _again(model: RingNet, frame: np.ndarray, last: Square):
    """The face that was in this square of the frame before, if it is still about there."""
    side = len(last.image) / last.scale
    middle = last.to_original(np.full(2, len(last.image) / 2))
    rest, middles, sides = settled(model, [frame], middle[None], np.array([side]))
    if not len(rest) or np.abs(middles[0] - middle).max() > side / 2 or not 0.5 < sides[0] / side < 2:
        return None
    face = reconstructed(model, [cut_square(frame, middles[0], float(sides[0]))], 1)[0]
    agreement = face.trust.agreement
    return face if agreement is not None and 1 - agreement <= limit_of(model) else None


def at_landmarks(model: RingNet, video: Video, landmarks: Landmarks) -> HeadParams:
    """What the network says of a video's frames in the squares around known landmarks, bridged where there are none."""
    points, confidence = landmarks
    known = np.asarray((confidence > 0).any(1))
    if not known.any():
        raise ValueError(f"{video.path}: no face in any of its {len(points)} frames")
    rows: list[HeadParams | None] = []
    frames = enumerate(islice(ahead(video), len(points)))
    bar = progress(total=len(points), desc="reconstructing", unit="frame")
    while part := list(islice(frames, BATCH)):
        there = [(i, around_landmarks(frame, points[i], confidence[i])) for i, frame in part if known[i]]
        faces = reconstructed(model, [square for _, square in there], BATCH, trust=False)
        answers = {
            i: in_whole_frame(face.params, face.square, video.size) for (i, _), face in zip(there, faces, strict=True)
        }
        rows += [answers.get(i) for i, _ in part]
        bar.update(len(part))
    bar.close()
    rows += [None] * (len(points) - len(rows))
    return bridge(rows)


def _bridged(model: RingNet, rows: list[HeadParams | None], scores: np.ndarray, size) -> Heads:
    seen = np.array([row is not None for row in rows])
    params = bridge(rows)
    shape = params.shape[torch.from_numpy(seen)].mean(0, keepdim=True)
    params = params._replace(shape=shape.expand(len(rows), -1).contiguous())
    like = model.flame.v_template
    with torch.no_grad():
        points = [model.landmarks(HeadParams(*(value.to(like) for value in part))) for part in _parts(params)]
    return Heads(params, seen, scores, pixels(torch.cat(points).cpu().numpy(), size))


def _parts(params: HeadParams, count: int = 256) -> Iterator[HeadParams]:
    for start in range(0, len(params.camera), count):
        yield HeadParams(*(value[start : start + count] for value in params))


def bridge(rows: list[HeadParams | None]) -> HeadParams:
    """Parameters of all frames: between two that are known, numbers go along a line and rotations along the shortest
    way; before the first and after the last they stay.

    Args:
        rows: each with a batch of one; at least one is known.
    """
    known = [i for i, row in enumerate(rows) if row is not None]
    values = HeadParams(*(torch.cat(parts) for parts in zip(*(row for row in rows if row is not None), strict=True)))
    frames = torch.arange(len(rows))
    places = torch.tensor(known)
    after = torch.searchsorted(places, frames).clamp_max(len(known) - 1)
    before = torch.where(places[after] == frames, after, after - 1).clamp_min(0)
    before = torch.where(frames > places[-1], len(known) - 1, before)
    length = (places[after] - places[before]).clamp_min(1)
    part = ((frames - places[before]).to(values.camera) / length).clamp(0, 1)[:, None]
    straight = HeadParams(*(torch.lerp(value[before], value[after], part) for value in values))
    turned = {
        name: torch.where(
            part == 0, getattr(values, name)[before], _between(getattr(values, name), before, after, part)
        )
        for name in ("global_pose", "jaw_pose")
    }
    return straight._replace(**turned)


def _between(vectors: torch.Tensor, before: torch.Tensor, after: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    first, last = (matrix_from_axis_angle(vectors[index].double()) for index in (before, after))
    way = axis_angle_from_matrix(first.transpose(1, 2) @ last)
    found = axis_angle_from_matrix(first @ matrix_from_axis_angle(part.double() * way))
    # Near half a turn a rotation has two vectors; the one near the upright head's is what networks say.
    length = found.norm(dim=1, keepdim=True)
    other = found * (1 - 2 * torch.pi / length.clamp_min(1e-9))
    upright = found.new_tensor(UPRIGHT)
    nearer = (other - upright).norm(dim=1, keepdim=True) < (found - upright).norm(dim=1, keepdim=True)
    return torch.where(nearer & (length > torch.pi / 2), other, found).to(vectors)


# Pictures.


def overlays(
    frames: Iterable[np.ndarray],
    flame: FLAME,
    head: FlameModel,
    params: HeadParams,
    seen: np.ndarray,
    pinhole: tuple[np.ndarray, np.ndarray] | None = None,
) -> Iterator[np.ndarray]:
    """A video's frames with the head over them, for a video of up to 720 pixels. Frames in which no face was seen are
    marked, and the head in them is paler.

    Args:
        params: a row a frame. seen: (T,). pinhole: the focal lengths (T,) and translations (T, 3) of such a camera, see
            :func:`through_pinhole`.
    """

    def draw(numbered: tuple[int, np.ndarray]) -> np.ndarray:
        i, frame = numbered
        square = fit_square(frame, _MOST_OVERLAY)
        face = reconstruction(flame, head, square, HeadParams(*(value[i : i + 1] for value in params)))
        if pinhole is not None:
            focal, translation = pinhole
            face = through_pinhole(face, float(focal[i]), translation[i], frame.shape[1::-1])
        drawn = overlay(
            square.image,
            face.image_vertices,
            head.faces,
            face.params.camera[0].numpy(),
            opacity=0.85 if seen[i] else 0.4,
        )
        mark_points(drawn, face.square_landmarks)
        (left, top), (right, bottom) = (
            (np.array(point) * square.scale + square.offset).round().astype(int)
            for point in ((0, 0), frame.shape[1::-1])
        )
        picture = drawn[top:bottom, left:right]
        picture = np.ascontiguousarray(picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2])
        if not seen[i]:
            write_text(picture, "no face seen: bridged", (255, 120, 120))
        return picture

    return side_by_side(draw, enumerate(islice(frames, len(seen))))
