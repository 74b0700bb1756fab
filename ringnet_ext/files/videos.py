"""Video files, frame by frame, by way of OpenCV."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np

# What FFmpeg has to say of broken files we say. OpenCV reads this when it opens a video.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

#: Names that are taken for videos.
SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")


class VideoError(ValueError):
    """The file is not a video that can be used; the message says why."""


class Video:
    """A video file. fps: frames a second. count: how many frames it says it has; a broken file ends earlier."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such file")
        with open(self.path, "rb"):  # OpenCV doesn't say why it can't
            pass
        capture = self._open()
        self.fps = capture.get(cv2.CAP_PROP_FPS) or 25.0
        self.count = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self.size = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        capture.release()

    def _open(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(str(self.path))
        if not capture.isOpened():
            raise VideoError(f"{self.path}: not a video that OpenCV can read")
        return capture

    def __iter__(self) -> Iterator[np.ndarray]:
        """The frames, (H, W, 3) uint8 RGB, upright."""
        capture = self._open()
        try:
            while True:
                there, frame = capture.read()
                if not there:
                    return
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        finally:
            capture.release()


def record(path: str | os.PathLike, camera: int, count: int | None = None) -> int:
    """Record a camera as MP4, for so many frames, or until the keyboard's interrupt. Returns how many there were.

    Raises:
        VideoError: there is no such camera, or it gives no picture.
        OSError: the file cannot be written.
    """
    capture = cv2.VideoCapture(camera)
    try:
        if not capture.isOpened():
            raise VideoError(f"camera {camera}: there is none that OpenCV can open")
        fps = capture.get(cv2.CAP_PROP_FPS)
        recorded = write_video(path, _seen_by(capture, count), fps if 1 <= fps <= 1000 else 25.0)
    finally:
        capture.release()
    if not recorded:
        raise VideoError(f"camera {camera}: it gives no picture")
    return recorded


def _seen_by(capture: cv2.VideoCapture, count: int | None) -> Iterator[np.ndarray]:
    try:
        while count is None or count > 0:
            there, frame = capture.read()
            if not there:
                return
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            count = None if count is None else count - 1
    except KeyboardInterrupt:  # that is how it is stopped
        return


def write_video(path: str | os.PathLike, frames: Iterable[np.ndarray], fps: float) -> int:
    """Write frames (H, W, 3) uint8 RGB as MP4, whole or not at all. Returns how many there were.

    Raises:
        OSError: the file cannot be written.
    """
    path, writer, count = Path(path), None, 0
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        for frame in frames:
            if writer is None:
                writer = cv2.VideoWriter(str(unfinished), cv2.VideoWriter.fourcc(*"mp4v"), fps, frame.shape[1::-1])
                if not writer.isOpened():
                    raise OSError(
                        f"{path}: cannot be written: this OpenCV has no MPEG-4 writer, or the folder can't be "
                        "written to"
                    )
            writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
            count += 1
        if writer is not None:
            writer.release()
            if _frames_in(unfinished) != count:  # OpenCV says nothing of a full disk
                raise OSError(f"{path}: cannot be written as a whole: is the disk full?")
            unfinished.replace(path)
        return count
    finally:
        unfinished.unlink(missing_ok=True)


def _frames_in(path: Path) -> int:
    capture = cv2.VideoCapture(str(path))
    try:
        return int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
    finally:
        capture.release()
