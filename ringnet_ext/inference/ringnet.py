"""Photographs in, heads out: the network with what lies between it and a picture."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from .. import network
from ..detection.boxes import FaceBoxes
from ..detection.detectors import Detectors
from ..detection.landmark_files import checked_landmarks
from ..detection.squares import Square
from . import pipeline
from .finders import by_boxes, by_face_boxes, by_landmarks, by_network, whole
from .inputs import Image
from .reconstruction import Reconstruction, refined


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
        batch = pipeline.batch_of(self)
        if self.flame.v_template.device.type == "cpu":
            batch = max(1, min(len(pictures), batch))
        faces: list[Reconstruction] = []
        try:
            for outcome in pipeline.reconstruct_all(self, pictures, own, batch=batch):
                for error in outcome.errors:
                    raise _named(error, outcome.picture.label) if many else error
                source = int(outcome.picture.name)
                faces += [replace(made, source=source) for face in outcome.faces if (made := face.reconstruction)]
        finally:
            self.train(training)
        if points is not None and faces:
            faces = refined(self, faces, points, same_person=same_person, sigma=sigma)
        return faces if many or detector is not None else faces[0]


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
