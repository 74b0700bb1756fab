"""Detectors of the 68 iBUG landmarks, for photographs that come without a file of them."""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

import numpy as np

from .boxes import left_to_right
from .landmark_files import POINTS, LandmarkError, NoFaceError, checked_landmarks

#: Vertices of MediaPipe's face mesh that are the 68 iBUG points: those of the mesh's own outlines (oval, brows, eyes,
#: lips, line of the nose) that lie nearest to the points of a mean face laid over the canonical mesh, and of rendered
#: heads whose points are known.
MESH_POINTS = np.array(
    [127, 234, 132, 58, 172, 136, 149, 176, 152, 400, 378, 365, 397, 288, 361, 454, 356]  # contour
    + [70, 63, 105, 66, 107, 336, 296, 334, 293, 300]  # brows
    + [168, 197, 195, 4, 98, 97, 2, 326, 327]  # nose
    + [33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380]  # eyes
    + [61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181]  # outer lips
    + [78, 82, 13, 312, 308, 317, 14, 87]  # inner lips
)

#: The contour of the side that is turned away slides over the cheek in iBUG's scheme and stays on it in MediaPipe's
#: mesh. Its confidence falls linearly, to nothing when the head is turned this far.
_TURN = np.radians(30)
_RIGHT, _LEFT = 234, 454  # of the mesh, before the subject's ears
_FACES = 5  # looked at, to take the largest


class Detector(Protocol):
    """Finds the 68 iBUG landmarks of the largest face of an image. One thread calls it at a time.

    version: stored with what it found; landmarks of another version are found again.

    One that can find several faces has a method ``faces(image)`` too, which gives a list of what a call gives of one.
    """

    version: str

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """(H, W, 3) uint8 RGB -> (68, 2) pixels, the first pixel's centre at (0.5, 0.5), and (68,) confidences in
        [0, 1], 0 for points that are not known; None if there is no face."""
        ...


class Detectors:
    """Several of the same detector, for as many threads.

    Args:
        make: makes one.
        count: how many.
    """

    def __init__(self, make: Callable[[], Detector], count: int):
        self._idle: SimpleQueue[Detector] = SimpleQueue()
        for _ in range(count):
            detector = make()
            self.version = detector.version
            self._idle.put(detector)

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, 3) uint8 RGB -> (68, 2) float32 pixels, (68,) float32 confidences.

        Raises:
            NoFaceError: there is no face.
            LandmarkError: the landmarks found cannot be used, as those of a file.
            TypeError: the detector does not return what a :class:`Detector` does.
        """
        detector = self._idle.get()
        try:
            found = detector(image)
        finally:
            self._idle.put(detector)
        if found is None:
            raise NoFaceError("it found none")
        return _checked(found)

    def faces(self, image: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """All faces whose landmarks can be used, from left to right, each as of a call; of a detector that finds the
        largest alone, that one.

        Raises:
            NoFaceError: there is none.
            LandmarkError, TypeError: as of a call, of the only face that there is.
        """
        detector = self._idle.get()
        try:
            several = getattr(detector, "faces", None)
            found = several(image) if several else [one for one in (detector(image),) if one is not None]
        finally:
            self._idle.put(detector)
        if not found:
            raise NoFaceError("the detector found no face")
        faces, wrong = [], None
        for one in found:
            try:
                faces.append(_checked(one))
            except LandmarkError as error:
                wrong = error
        if wrong and not faces:
            raise wrong
        middles = [points[known > 0].mean(0)[0] for points, known in faces]
        return [faces[i] for i in left_to_right(np.array(middles))]


def _checked(found) -> tuple[np.ndarray, np.ndarray]:
    points, confidence = (np.asarray(array, np.float64) for array in found)
    if points.shape != (POINTS, 2) or confidence.shape != (POINTS,):
        raise TypeError(
            f"detector: expected points ({POINTS}, 2) and confidences ({POINTS},), "
            f"got {points.shape} and {confidence.shape}"
        )
    return checked_landmarks(np.column_stack([points, confidence]))


class FaceLandmarker:
    """MediaPipe's Face Landmarker.

    Args:
        model: its model bundle, ``face_landmarker.task``, which MediaPipe's documentation offers for download.
        most: how many faces of an image are looked at.

    Raises:
        ImportError: the package ``mediapipe`` is not installed.
        FileNotFoundError: there is no such file.
        ValueError: MediaPipe cannot load it.
    """

    def __init__(self, model: str | os.PathLike, most: int = _FACES):
        model = Path(model)
        if not model.is_file():
            raise FileNotFoundError(
                f"{model}: no such model of MediaPipe's Face Landmarker; face_landmarker.task can be had from "
                "MediaPipe's documentation of the Face Landmarker"
            )
        try:
            import mediapipe
            from mediapipe.tasks.python import BaseOptions
            from mediapipe.tasks.python.vision import FaceLandmarker as Landmarker
            from mediapipe.tasks.python.vision import FaceLandmarkerOptions
        except ImportError as error:
            raise ImportError(
                f"detector: MediaPipe cannot be imported ({error}); pip install 'mediapipe>=1.2', or give "
                "landmark files"
            ) from None
        content = model.read_bytes()
        options = FaceLandmarkerOptions(base_options=BaseOptions(model_asset_buffer=content), num_faces=most)
        try:
            self._landmarker = Landmarker.create_from_options(options)
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"{model}: MediaPipe's Face Landmarker cannot be made of it: {error}") from None
        weakref.finalize(self, self._landmarker.close)  # MediaPipe's own comes too late when the interpreter exits
        self._mediapipe = mediapipe
        self.version = f"mediapipe {hashlib.sha256(content).hexdigest()}"

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """See :class:`Detector`."""
        meshes = self._meshes(image)
        return of_mesh(max(meshes, key=lambda mesh: np.ptp(mesh[:, :2], axis=0).max())) if meshes else None

    def faces(self, image: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """See :class:`Detector`."""
        return [of_mesh(mesh) for mesh in self._meshes(image)]

    def _meshes(self, image: np.ndarray) -> list[np.ndarray]:
        height, width = image.shape[:2]
        picture = self._mediapipe.Image(image_format=self._mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(image))
        found = self._landmarker.detect(picture).face_landmarks
        return [np.array([(p.x * width, p.y * height, p.z * width) for p in face]) for face in found]


def of_mesh(mesh: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 68 landmarks and their confidences of MediaPipe's mesh.

    Args:
        mesh: (468, 3), or (478, 3) with the irises: x, y, z in pixels, z away from the camera.

    Returns:
        (68, 2) pixels, (68,) confidences: 1, less for the contour of the side that is turned away.
    """
    x, y, z = mesh[_LEFT] - mesh[_RIGHT]
    turn = np.arctan2(abs(z), np.hypot(x, y))
    confidence = np.ones(POINTS)
    away = slice(9, 17) if z > 0 else slice(0, 8)
    confidence[away] = max(0.0, 1 - turn / _TURN)
    return mesh[MESH_POINTS, :2], confidence
