"""Photographs in, heads out: the network with what lies between it and a picture."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from .. import network
from ..detection.boxes import FaceBoxes
from ..detection.detectors import Detectors
from ..detection.landmark_files import checked_landmarks
from ..detection.squares import Square
from ..fitting import refine
from ..flame import FLAME, FlameModel
from ..flame.parameters import FlameParams, HeadParams
from ..geometry.camera import project, to_pixels, yaw_of
from ..geometry.surface import vertex_normals
from ..render.pictures import over
from .finders import by_boxes, by_face_boxes, by_landmarks, by_network, whole
from .inputs import Image, pixels_of
from .trust import Trust, certainties

if TYPE_CHECKING:
    import trimesh


#: The frames that a posed head is written in; either is half a turn about x through the root joint from the other.
FRAMES = {
    "flame": "x to the viewer's right (the subject's left), y up, z towards the viewer",
    "ringnet": "x to the viewer's right, y down, z away from the viewer",
}

_UNKNOWN = Trust()


@dataclass(frozen=True, eq=False, repr=False)  # arrays have no one answer to whether they are equal, and are long
class Reconstruction:
    """One reconstructed face. Arrays are numpy, float32.

    Both meshes are in FLAME's frame, near its origin: metres, y up, z out of the face, the head turned about its root
    joint. They are what ``ringnet pose`` makes of the same parameters, and the posed mesh lies where the
    neutral one does.

    params: HeadParams with a batch of one. vertices (V, 3): posed. neutral_vertices (V, 3): the same person without
    pose and expression. landmarks (68, 2): pixels of the original image. landmarks_3d, neutral_landmarks (68, 3): on
    the two meshes. head: the model whose triangles they have. square: what the network saw, (224, 224, 3), and where it
    lies in the original image. square_landmarks (68, 2): pixels of it. image_vertices (V, 3): metres, in the frame of
    the camera (y down). root (3,): the joint about which the head turns, the same in both frames. yaw: radians,
    positive to the subject's left. neck_pose (3,), eye_pose (6,): axis-angle, zeros where a network says
    them. original: the image that the square was cut from, (H, W, 3) uint8 RGB, or its file; None if not known.
    trust: what speaks for it. source: of many pictures, the place of the one that it is from.
    """

    params: HeadParams
    vertices: np.ndarray
    neutral_vertices: np.ndarray
    landmarks: np.ndarray
    landmarks_3d: np.ndarray
    neutral_landmarks: np.ndarray
    head: FlameModel
    square: Square
    square_landmarks: np.ndarray
    image_vertices: np.ndarray
    root: np.ndarray
    yaw: float
    neck_pose: np.ndarray
    eye_pose: np.ndarray
    original: np.ndarray | str | os.PathLike | None = None
    trust: Trust = _UNKNOWN
    source: int = 0

    def __repr__(self) -> str:
        score = "" if self.trust.score is None else f", score {self.trust.score:.2f}"
        return f"<Reconstruction: {len(self.vertices)} vertices, yaw {np.degrees(self.yaw):.0f} degrees{score}>"

    @property
    def faces(self) -> np.ndarray:
        """The triangles of both meshes, (F, 3)."""
        return self.head.faces

    @property
    def image(self) -> np.ndarray:
        """What the network saw, (224, 224, 3)."""
        return self.square.image

    @property
    def flame_params(self) -> FlameParams:
        """The parameters in FLAME's frame: ``flame(*face.flame_params)`` is the posed mesh."""
        params, _ = FlameParams.from_ringnet(self.params, torch.from_numpy(self.root)[None])
        return params._replace(
            neck_pose=torch.from_numpy(self.neck_pose)[None], eye_pose=torch.from_numpy(self.eye_pose)[None]
        )

    def in_frame(self, points: np.ndarray, frame: str = "flame") -> np.ndarray:
        """Points (..., 3) of the posed head in FLAME's frame -> in one of :data:`FRAMES`."""
        if frame not in FRAMES:
            raise ValueError(f"frame: expected one of {', '.join(FRAMES)}, got {frame!r}")
        return points if frame == "flame" else turned_over(points, self.root)

    def projection(self, frame: str = "flame") -> np.ndarray:
        """The camera as a matrix (2, 4), float64: ``projection @ (x, y, z, 1)`` is where a point of the posed head, in
        metres and that frame, lies in the original image, in pixels."""
        scale, *shift = self.params.camera[0].double().tolist()
        half = len(self.square.image) / 2
        ring = np.array([[scale, 0, 0, scale * shift[0]], [0, scale, 0, scale * shift[1]]])
        ring[:, 3] += 1
        pixels = (half * ring - np.column_stack([np.zeros((2, 3)), self.square.offset])) / self.square.scale
        turn = np.eye(4)
        if frame == "flame":
            turn[1:3, 1:3], turn[1:3, 3] = -np.eye(2), 2 * self.root[1:].astype(np.float64)
        return pixels @ turn

    def mesh(self) -> trimesh.Trimesh:
        """The posed head in FLAME's frame, with normals, its vertices in the model's order."""
        import trimesh

        normals = vertex_normals(self.vertices, self.faces)
        return trimesh.Trimesh(self.vertices, self.faces, vertex_normals=normals, process=False)

    def overlay(self, image: Image | None = None, opacity: float = 0.85) -> np.ndarray:
        """The posed head over the image that it was found in, (H, W, 3) uint8 RGB.

        Args:
            image: that image, as :meth:`RingNet.reconstruct` takes it; None for :attr:`original`, and for the square
                where there is none.
            opacity: of the head, 0 to 1.
        """
        image = self.original if image is None else image
        points = self.image_vertices.astype(np.float64)
        points[:, :2] = np.column_stack([points, np.ones(len(points))]) @ self.projection("ringnet").T
        if image is None:
            pixels = self.image
            points[:, :2] = points[:, :2] * self.square.scale + self.square.offset
        else:
            pixels = pixels_of(image)
        return over(pixels, points, self.faces, vertex_normals(self.image_vertices, self.faces), opacity)

    def save(
        self, folder: str | os.PathLike, name: str = "face", kinds: Iterable[str] | None = None, *, frame: str = "flame"
    ) -> list[Path]:
        """Write files of the face under a name, all or none; see :func:`ringnet_ext.inference.outputs.write`.

        Args:
            kinds: names of :data:`ringnet_ext.inference.outputs.KINDS`; None: panel, mesh and parameters.
        """
        from .outputs import DEFAULT, write

        if isinstance(kinds, str):
            raise ValueError(f"kinds: expected a list of names, such as {kinds.split(',')}, got {kinds!r}")

        return write(folder, name, self, DEFAULT if kinds is None else kinds, frame=frame)


def turned_over(points: np.ndarray, root: np.ndarray) -> np.ndarray:
    """Points (..., 3) after half a turn about x through the root joint, which leads from the camera's frame to FLAME's,
    and back."""
    return (points - root) * np.array([1, -1, -1], np.float32) + root


@torch.no_grad()
def reconstructions(
    flame: FLAME,
    head: FlameModel,
    squares: Sequence[Square],
    params: HeadParams,
    neck_pose: Tensor | None = None,
    eye_pose: Tensor | None = None,
) -> list[Reconstruction]:
    """What HeadParams, one for each of some squares, are as meshes and landmarks; head: the model of the layer."""
    posed = flame(params.shape, params.expression, params.global_pose, neck_pose, params.jaw_pose, eye_pose)
    neutral = flame(params.shape)
    seen = project(posed.landmarks, params.camera).cpu()
    roots = posed.joints[:, 0].cpu().numpy()
    image_vertices, image_landmarks = posed.vertices.cpu().numpy(), posed.landmarks.cpu().numpy()
    neutral_vertices, neutral_landmarks = neutral.vertices.cpu().numpy(), neutral.landmarks.cpu().numpy()
    neck, eyes = (
        np.zeros((len(squares), width), np.float32) if pose is None else pose.detach().cpu().numpy()
        for pose, width in ((neck_pose, 3), (eye_pose, 6))
    )
    yaw = yaw_of(params.global_pose).tolist()
    params = HeadParams(*(value.cpu() for value in params))
    faces = []
    for i, square in enumerate(squares):
        landmarks = to_pixels(seen[i], len(square.image)).numpy()
        faces.append(
            Reconstruction(
                params=HeadParams(*(value[i : i + 1] for value in params)),
                vertices=turned_over(image_vertices[i], roots[i]),
                neutral_vertices=neutral_vertices[i],
                landmarks=square.to_original(landmarks).astype(np.float32),
                landmarks_3d=turned_over(image_landmarks[i], roots[i]),
                neutral_landmarks=neutral_landmarks[i],
                head=head,
                square=square,
                square_landmarks=landmarks,
                image_vertices=image_vertices[i],
                root=roots[i],
                yaw=yaw[i],
                neck_pose=neck[i],
                eye_pose=eyes[i],
            )
        )
    return faces


def reconstruction(
    flame: FLAME,
    head: FlameModel,
    square: Square,
    params: HeadParams,
    neck_pose: Tensor | None = None,
    eye_pose: Tensor | None = None,
    original: np.ndarray | str | os.PathLike | None = None,
) -> Reconstruction:
    """What HeadParams with a batch of one, found in a square, are as meshes and landmarks.

    Args:
        head: the model of the layer. original: see :class:`Reconstruction`.
    """
    return replace(reconstructions(flame, head, [square], params, neck_pose, eye_pose)[0], original=original)


class RingNet(network.RingNet):
    """:class:`ringnet_ext.network.RingNet` with :meth:`reconstruct`, from pictures to heads."""

    @torch.no_grad()
    def reconstruct(
        self,
        images: Image | Iterable[Image] | Tensor,
        *,
        landmarks: np.ndarray | Sequence[np.ndarray] | None = None,
        boxes: Sequence | np.ndarray | None = None,
        detector: FaceBoxes | Detectors | None = None,
        same_person: bool = False,
        sigma: float | None = None,
    ) -> Reconstruction | list[Reconstruction]:
        """Reconstruct one face, or those of many pictures, in batches.

        Args:
            images: a picture of one face: a file; an array (H, W), (H, W, 3) or (H, W, 4), or a tensor (C, H, W), of
                uint8, uint16 or floating point from 0 to 1; a Pillow image. The face is found in it as
                :func:`ringnet_ext.inference.framing.find_face` does. Or a square cut from one, see
                :mod:`ringnet_ext.detection.squares`: the network sees it as it is, and whether it is a face isn't
                asked. Or many of these (an array (N, H, W, 3), a tensor (N, C, H, W)), for a list of results in their
                order.
            landmarks: (68, 2) pixels of the image, NaN where one isn't known; of many images one each. The square is
                cut around them, and what the network says is refined until its landmarks are these, see
                :func:`ringnet_ext.fit`.
            boxes: left, top, right, bottom in pixels, about where the face is; of many images one each.
            detector: finds the faces: a :class:`ringnet_ext.detection.boxes.FaceBoxes`, or
                :class:`ringnet_ext.detection.detectors.Detectors`. The result is a list of all faces then, those of a
                picture from left to right; ``source`` tells the picture.
            same_person: of many images with landmarks: whether all are of one person, and get one shape.
            sigma: standard deviation of the landmarks, in half sides of the square; None: estimated.

        Raises:
            FileNotFoundError, ImageError: naming the file.
            NotAFaceError: the picture is not a face as the network knows them.
            ValueError: what cannot be used, naming the image; images and landmarks or boxes that don't fit together.
        """
        from . import pipeline

        many = not _is_one(images)
        pictures = pipeline.pictures_from(cast("Iterable[Image]", images if many else [images]))
        if sum(value is not None for value in (landmarks, boxes, detector)) > 1:
            raise ValueError("landmarks, boxes, detector: expected one of them at most")
        if same_person and landmarks is None:
            raise ValueError("same_person: expected landmarks too, by which the images are brought together")
        if sigma is not None and landmarks is None:
            raise ValueError("sigma: expected landmarks too, whose standard deviation it is")
        if not isinstance(detector, FaceBoxes | Detectors | None):
            raise ValueError(f"detector: expected FaceBoxes or Detectors, got {type(detector).__name__}")
        points = _one_each(landmarks, many, len(pictures), "landmarks", (68, 2), "set")
        places = _one_each(boxes, many, len(pictures), "boxes", (4,), "box")
        of = {picture.name: i for i, picture in enumerate(pictures)}
        if points is not None:
            find = by_landmarks(lambda picture, image: [_known(points[of[picture.name]])])
        elif places is not None:
            find = by_boxes(self, lambda picture, image: [tuple(places[of[picture.name]].tolist())])
        elif isinstance(detector, FaceBoxes):
            find = by_face_boxes(self, detector)
        elif detector is not None:
            find = by_landmarks(lambda picture, image: detector.faces(image))
        else:
            find = by_network(self)
        own = lambda picture, image: (whole if isinstance(picture.image, Square) else find)(picture, image)

        training = self.training
        batch = min(len(pictures), pipeline.BATCH) if self.flame.v_template.device.type == "cpu" else None
        faces: list[Reconstruction] = []
        try:
            for outcome in pipeline.reconstruct_all(self, pictures, own, batch=batch and max(batch, 1)):
                for error in outcome.errors:
                    raise _named(error, outcome.picture.label) if many else error
                source = int(outcome.picture.name)
                faces += [replace(made, source=source) for face in outcome.faces if (made := face.reconstruction)]
        finally:
            self.train(training)
        if points is not None and faces:
            faces = refined(self, faces, points, same_person=same_person, sigma=sigma)
        return faces if many or detector is not None else faces[0]


def refined(
    model: network.RingNet,
    faces: Sequence[Reconstruction],
    points: Sequence[np.ndarray],
    *,
    same_person: bool = False,
    sigma: float | None = None,
) -> list[Reconstruction]:
    """Faces that a network has reconstructed, fitted to their landmarks from there, see :func:`ringnet_ext.fit`.

    Args:
        points: (68, 2) pixels of each face's picture, NaN where one isn't known.
        same_person, sigma: as for :meth:`RingNet.reconstruct`.

    Raises:
        ValueError: where too few landmarks are known.
    """
    seen = np.stack([face.square.normalised(each) for face, each in zip(faces, points, strict=True)])
    start = HeadParams(*(torch.cat(parts) for parts in zip(*(face.params for face in faces), strict=True)))
    like = model.flame.v_template
    start = HeadParams(*(value.to(like) for value in start))
    found = refine(model.flame, start, torch.from_numpy(seen).to(like), same_person=same_person, sigma=sigma)
    made = reconstructions(model.flame, model.head, [face.square for face in faces], found.params)
    certain = certainties(found, model.flame)
    # The network's agreement is about what it said, and this is not it any more.
    return [
        replace(
            new,
            original=face.original,
            source=face.source,
            trust=Trust(None, face.trust.inside, certain[int(person)]),
        )
        for new, face, person in zip(made, faces, found.person, strict=True)
    ]


def _is_one(images) -> bool:
    if isinstance(images, (np.ndarray, Tensor)):
        return images.ndim < 4
    return isinstance(images, (str, os.PathLike, Square, PIL.Image.Image)) or not isinstance(images, Iterable)


def _one_each(values, many: bool, count: int, name: str, shape: tuple[int, ...], what: str) -> list[np.ndarray] | None:
    if values is None:
        return None
    each = [np.asarray(value, np.float64) for value in (values if many else [values])]
    if len(each) != count:
        raise ValueError(f"{name}: expected one {what} for each of {count} images, got {len(each)}")
    for value in each:
        if value.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {value.shape}")
    return each


def _known(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks and confidences. Raises LandmarkError, a ValueError, as a file of them would."""
    return checked_landmarks(np.column_stack([points, np.isfinite(points).all(1)]))


def _named(error: Exception, label: str) -> Exception:
    """The same error, naming the image."""
    if not isinstance(error, ValueError) or label in str(error):
        return error
    kind = type(error) if type(error).__init__ is ValueError.__init__ else ValueError
    return kind(f"{label}: {str(error).removeprefix('image: ')}")
