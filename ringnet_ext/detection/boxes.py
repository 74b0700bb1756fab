"""Boxes of the faces in an image, by OpenCV's detector."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import cv2
import numpy as np

from .squares import shrunk

_LONGEST = 1024  # pixels: what is larger is shrunk, so that a face that fills the image is of a size that YuNet knows
_SCORE, _OVERLAP = 0.7, 0.3
_MOST = 5000  # boxes before those of the same face are brought together


class FaceBoxes:
    """OpenCV's ``FaceDetectorYN``. Several threads may use it.

    Args:
        model: an ONNX file of YuNet, such as OpenCV's zoo has (``face_detection_yunet_2023mar.onnx``).
        score: the least that a face must have, in [0, 1].

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: OpenCV cannot load it.
    """

    def __init__(self, model: str | os.PathLike, score: float = _SCORE):
        self._model, self._score, self._own = Path(model), score, threading.local()
        if not self._model.is_file():
            raise FileNotFoundError(
                f"{self._model}: no such model of OpenCV's FaceDetectorYN; OpenCV's model zoo has it as "
                "face_detection_yunet_2023mar.onnx"
            )
        self._detector()

    def _detector(self) -> cv2.FaceDetectorYN:
        if not hasattr(self._own, "detector"):
            try:
                self._own.detector = cv2.FaceDetectorYN.create(
                    str(self._model), "", (32, 32), self._score, _OVERLAP, _MOST
                )
            except cv2.error as error:
                raise ValueError(f"{self._model}: OpenCV's FaceDetectorYN cannot be made of it: {error.err}") from None
        return self._own.detector

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> (N, 5): left, top, right, bottom in pixels and a score, from left to right.

        Raises:
            ValueError: the model is not one of YuNet.
        """
        small, scale = shrunk(image, _LONGEST)
        detector = self._detector()
        try:
            detector.setInputSize((small.shape[1], small.shape[0]))
            _, found = detector.detect(np.ascontiguousarray(small[..., ::-1]))
        except cv2.error as error:
            raise ValueError(f"{self._model}: not a model of YuNet: {error.err}") from None
        if found is None:
            return np.zeros((0, 5))
        found = found.astype(np.float64)
        corners = np.column_stack([found[:, :2], found[:, :2] + found[:, 2:4]]) / scale
        return np.column_stack([corners, found[:, 14]])[left_to_right((corners[:, 0] + corners[:, 2]) / 2)]


def left_to_right(x: np.ndarray) -> np.ndarray:
    """The order in which faces are numbered: that of the middles of their boxes, the first given first of equal
    ones."""
    return np.argsort(np.asarray(x, np.float64), kind="stable")
