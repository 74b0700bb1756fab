"""Photographs in, heads out: the network with what lies between it and a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import network
from ..detection.squares import Square, around_landmarks
from ..files.images import read_image
from ..fitting import refine
from ..flame import FLAME
from ..flame.parameters import HeadParams
from ..geometry.camera import project, to_pixels, yaw_of
from .framing import find_face


@dataclass(frozen=True)
class Reconstruction:
    """One reconstructed face. Arrays are numpy, float32.

    Both meshes are in FLAME's frame, near its origin: metres, y up, z out of the face, the head turned about its root
    joint. They are what ``ringnet pose`` makes of the same parameters, and the posed mesh lies where the
    neutral one does.

    params: HeadParams with a batch of one. vertices (V, 3): posed. neutral_vertices (V, 3): the same person without
    pose and expression. faces (F, 3). landmarks (68, 2): pixels of the original image. square: what the network saw,
    (224, 224, 3), and where it lies in the original image. square_landmarks (68, 2): pixels of it. image_vertices (V,
    3): metres, in the frame of the camera (y down). yaw: radians, positive to the subject's left.
    """

    params: HeadParams
    vertices: np.ndarray
    neutral_vertices: np.ndarray
    faces: np.ndarray
    landmarks: np.ndarray
    square: Square
    square_landmarks: np.ndarray
    image_vertices: np.ndarray
    yaw: float

    @property
    def image(self) -> np.ndarray:
        """What the network saw, (224, 224, 3)."""
        return self.square.image


#: A picture of one face: a file, (H, W, 3) uint8 RGB, or a square cut from one.
Image = str | os.PathLike | np.ndarray | Square


@torch.no_grad()
def reconstruction(
    flame: FLAME,
    triangles: np.ndarray,
    square: Square,
    params: HeadParams,
    neck_pose: Tensor | None = None,
    eye_pose: Tensor | None = None,
) -> Reconstruction:
    """What HeadParams with a batch of one, found in a square, are as meshes and landmarks."""
    posed = flame(params.shape, params.expression, params.global_pose, neck_pose, params.jaw_pose, eye_pose)
    landmarks = to_pixels(project(posed.landmarks, params.camera), len(square.image))[0].cpu().numpy()
    image_vertices = posed.vertices[0].cpu().numpy()
    # Half a turn about the root joint, about which the head is posed, leads from the camera's frame to FLAME's.
    root = posed.joints[0, 0].cpu().numpy()
    return Reconstruction(
        params=HeadParams(*(value.cpu() for value in params)),
        vertices=(image_vertices - root) * np.float32([1, -1, -1]) + root,
        neutral_vertices=flame(params.shape).vertices[0].cpu().numpy(),
        faces=triangles,
        landmarks=square.to_original(landmarks).astype(np.float32),
        square=square,
        square_landmarks=landmarks,
        image_vertices=image_vertices,
        yaw=float(yaw_of(params.global_pose)[0]),
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
            reconstruction(self.flame, self.head.faces, square, params)
            for square, params in zip(squares, answers, strict=True)
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
        params = refine(self.flame, start, seen.to(self.flame.v_template), same_person=same_person, sigma=sigma)
        return [HeadParams(*(value[i : i + 1] for value in params)) for i in range(len(squares))]
