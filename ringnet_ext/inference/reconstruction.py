"""Photographs in, heads out: the network with what lies between it and a picture."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .. import network
from ..detection.squares import Square, around_landmarks
from ..files.images import read_image
from ..fitting import fit
from ..flame import FLAME, FlameModel
from ..flame.parameters import FlameParams, HeadParams
from ..geometry.camera import project, to_pixels, yaw_of
from ..geometry.surface import vertex_normals
from ..render.pictures import over
from .framing import find_face

if TYPE_CHECKING:
    import trimesh


#: The frames that a posed head is written in; either is half a turn about x through the root joint from the other.
FRAMES = {
    "flame": "x to the viewer's right (the subject's left), y up, z towards the viewer",
    "ringnet": "x to the viewer's right, y down, z away from the viewer",
}


@dataclass(frozen=True)
class Reconstruction:
    """One reconstructed face. Arrays are numpy, float32.

    Both meshes are in FLAME's frame, near its origin: metres, y up, z out of the face, the head turned about its root
    joint. They are what ``python -m ringnet_ext.flame`` makes of the same parameters, and the posed mesh lies where the
    neutral one does.

    params: HeadParams with a batch of one. vertices (V, 3): posed. neutral_vertices (V, 3): the same person without
    pose and expression. landmarks (68, 2): pixels of the original image. landmarks_3d, neutral_landmarks (68, 3): on
    the two meshes. head: the model whose triangles they have. square: what the network saw, (224, 224, 3), and where it
    lies in the original image. square_landmarks (68, 2): pixels of it. image_vertices (V, 3): metres, in the frame of
    the camera (y down). root (3,): the joint about which the head turns, the same in both frames. yaw: radians,
    positive to the subject's left. neck_pose (3,), eye_pose (6,): axis-angle, zeros where a network says
    them. original: the image that the square was cut from, (H, W, 3) uint8 RGB, or its file; None if not known.
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

    def overlay(self, image: np.ndarray | None = None, opacity: float = 0.85) -> np.ndarray:
        """The posed head over the image that it was found in, (H, W, 3) uint8 RGB.

        Args:
            image: that image; None for :attr:`original`, and for the square where there is none.
            opacity: of the head, 0 to 1.
        """
        if image is None and self.original is not None:
            image = self.original if isinstance(self.original, np.ndarray) else read_image(self.original)
        points = self.image_vertices.astype(np.float64)
        points[:, :2] = np.column_stack([points, np.ones(len(points))]) @ self.projection("ringnet").T
        if image is None:
            image = self.image
            points[:, :2] = points[:, :2] * self.square.scale + self.square.offset
        return over(image, points, self.faces, vertex_normals(self.image_vertices, self.faces), opacity)

    def save(
        self, folder: str | os.PathLike, name: str = "face", kinds: Iterable[str] | None = None, *, frame: str = "flame"
    ) -> list[Path]:
        """Write files of the face under a name, all or none; see :func:`ringnet_ext.inference.outputs.write`.

        Args:
            kinds: names of :data:`ringnet_ext.inference.outputs.KINDS`; None: panel, mesh and parameters.
        """
        from .outputs import DEFAULT, write

        return write(Path(folder), name, self, DEFAULT if kinds is None else kinds, frame=frame)


def turned_over(points: np.ndarray, root: np.ndarray) -> np.ndarray:
    """Points (..., 3) after half a turn about x through the root joint, which leads from the camera's frame to FLAME's,
    and back."""
    return (points - root) * np.array([1, -1, -1], np.float32) + root


#: A picture of one face: a file, (H, W, 3) uint8 RGB, or a square cut from one.
Image = str | os.PathLike | np.ndarray | Square


@torch.no_grad()
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
    posed = flame(params.shape, params.expression, params.global_pose, neck_pose, params.jaw_pose, eye_pose)
    neutral = flame(params.shape)
    landmarks = to_pixels(project(posed.landmarks, params.camera), len(square.image))[0].cpu().numpy()
    image_vertices, root = posed.vertices[0].cpu().numpy(), posed.joints[0, 0].cpu().numpy()
    neck, eyes = (
        np.zeros(width, np.float32) if pose is None else pose[0].detach().cpu().numpy()
        for pose, width in ((neck_pose, 3), (eye_pose, 6))
    )
    return Reconstruction(
        params=HeadParams(*(value.cpu() for value in params)),
        vertices=turned_over(image_vertices, root),
        neutral_vertices=neutral.vertices[0].cpu().numpy(),
        landmarks=square.to_original(landmarks).astype(np.float32),
        landmarks_3d=turned_over(posed.landmarks[0].cpu().numpy(), root),
        neutral_landmarks=neutral.landmarks[0].cpu().numpy(),
        head=head,
        square=square,
        square_landmarks=landmarks,
        image_vertices=image_vertices,
        root=root,
        yaw=float(yaw_of(params.global_pose)[0]),
        neck_pose=neck,
        eye_pose=eyes,
        original=original,
    )


class RingNet(network.RingNet):
    """:class:`ringnet_ext.network.RingNet` with :meth:`reconstruct`, from pictures to heads."""

    @torch.no_grad()
    def reconstruct(
        self,
        image: Image | Sequence[Image],
        *,
        landmarks: np.ndarray | Sequence[np.ndarray] | None = None,
        same_person: bool = False,
        sigma: float | None = None,
    ) -> Reconstruction | list[Reconstruction]:
        """Reconstruct one face, or a list of them.

        Args:
            image: a file, or (H, W, 3) uint8 RGB: a picture of one face, which is found in it as
                :func:`ringnet_ext.inference.framing.find_face` does. Or a square cut from one, see :mod:`ringnet_ext.detection.squares`:
                the network sees it as it is, and whether it is a face isn't asked. Or a list of these, for a list of
                results.
            landmarks: (68, 2) pixels of the image, NaN where one isn't known; of a list of images a list. The square is
                cut around them, and what the network says is refined until its landmarks are these, see
                :func:`ringnet_ext.fit`.
            same_person: of a list with landmarks: whether all images are of one person, and get one shape.
            sigma: standard deviation of the landmarks, in half sides of the square; None: estimated.

        Raises:
            FileNotFoundError, ImageError: naming the file.
            NotAFaceError: the picture is not a face as the network knows them.
            ValueError: images and landmarks that don't fit together.
        """
        many = isinstance(image, (list, tuple)) and not isinstance(image, Square)
        images = list(image) if many else [image]
        points = [None] * len(images) if landmarks is None else list(landmarks) if many else [landmarks]
        if len(points) != len(images):
            raise ValueError(f"landmarks: expected one set for each of {len(images)} images, got {len(points)}")
        if same_person and landmarks is None:
            raise ValueError("same_person: expected landmarks too, by which the images are brought together")
        squares = [self._square(*pair) for pair in zip(images, points, strict=True)]
        answers = [self.answer(torch.from_numpy(square.image).permute(2, 0, 1)[None]) for square in squares]
        if landmarks is not None and images:
            answers = self._refined(squares, points, answers, same_person, sigma)
        faces = [
            reconstruction(self.flame, self.head, square, params, original=None if image is square else image)
            for square, params, image in zip(squares, answers, images, strict=True)
        ]
        return faces if many else faces[0]

    def _square(self, image: Image, points: np.ndarray | None) -> Square:
        if isinstance(image, Square):
            return image
        pixels = image if isinstance(image, np.ndarray) else read_image(image)
        if points is None:
            return find_face(self, pixels)
        points = np.asarray(points, np.float64)
        if points.shape != (68, 2):
            raise ValueError(f"landmarks: expected shape (68, 2), got {points.shape}")
        return around_landmarks(pixels, np.nan_to_num(points), np.isfinite(points).all(1).astype(float))

    def _refined(self, squares, points, answers, same_person: bool, sigma: float | None) -> list[HeadParams]:
        seen = torch.stack(
            [
                torch.from_numpy(square.normalised(np.asarray(p, np.float64)))
                for square, p in zip(squares, points, strict=True)
            ]
        )
        start = HeadParams(*(torch.cat(parts) for parts in zip(*answers, strict=True)))
        person = [0] * len(squares) if same_person else None
        found = fit(self.flame, seen.to(self.flame.v_template), person=person, start=start, sigma=sigma)
        if found.failed:
            raise ValueError(f"landmarks: {next(iter(found.failed.values()))}")
        return [HeadParams(*(value[i : i + 1] for value in found.params)) for i in range(len(squares))]
