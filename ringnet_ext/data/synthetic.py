"""Synthetic faces: rendered random heads with identities, exact landmarks and the truth they were made from.

Shape belongs to a person. Everything else is drawn anew for each image: expression, pose, light, background, and also
the colours of skin, lips, eyes and hair. If those belonged to the person, an encoder could tell people apart by colour
and never look at their shape.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from ..files.arrays import write_arrays
from ..files.cache import cache_folder
from ..files.cores import available_cores
from ..files.whole import folder_written_whole, remove_leftovers
from ..flame import FLAME, FlameModel, builtin_head
from ..flame.sources import require_landmarks
from ..geometry.camera import UPRIGHT, project, project_to_pixels
from ..geometry.surface import vertex_normals
from ..progress import progress
from ..render.raster import draw_mesh
from .face_set import FaceSet

#: Raised whenever the same configuration would give other pictures, so that cached ones are not used.
_VERSION = 2
_SPLITS = {"train": 0, "validation": 1, "test": 2}


@dataclass(frozen=True)
class SyntheticFaces:
    """What to render. Angles in degrees, sigmas of normal distributions.

    The people of the three splits are different ones. The same configuration always gives the same pictures.
    """

    identities: int = 2000
    images_per_identity: int = 6
    split: str = "train"
    size: int = 128
    color: bool = False
    seed: int = 0
    shape_params: int = 100
    expression_params: int = 50
    expression_sigma: float = 0.5
    yaw_sigma: float = 22.0
    yaw_limit: float = 39.0
    pitch_sigma: float = 8.0
    roll_sigma: float = 5.0
    jaw_sigma: float = 5.0
    occlusion: float = 0.15  # probability of something in front of the face

    def __post_init__(self):
        if self.split not in _SPLITS:
            raise ValueError(f"split: expected one of {', '.join(_SPLITS)}, got {self.split!r}")
        for name in ("identities", "images_per_identity", "size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 <= self.yaw_limit <= 60:
            raise ValueError(f"yaw_limit: expected 0 ... 60 degrees, got {self.yaw_limit}")

    def load(self, head: FlameModel | None = None, cache: str | os.PathLike | None = None) -> FaceSet:
        """The faces, from the cache folder if they are there, else rendered into it.

        Args:
            head: the model to render; None for the built-in head.
            cache: folder; None for ``$RINGNET_CACHE``, else ``~/.cache/ringnet_ext``.

        Raises:
            ValueError: the head has no 68 landmarks.
            OSError: the cache cannot be written to.
        """
        head = builtin_head() if head is None else head
        require_landmarks(head)
        recipe = json.dumps([_VERSION, head.digest(), dataclasses.asdict(self)], sort_keys=True)
        key = f"{recipe} OpenCV {cv2.__version__} NumPy {np.__version__}"  # they draw, and draw the random numbers
        name = f"faces-{self.split}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
        folder = cache_folder(cache) / name
        try:
            images, labels = _read(folder)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):  # not there, or not whole any more
            self._render(head, folder)
            images, labels = _read(folder)
        landmarks, identity = labels.pop("landmarks"), labels.pop("identity")
        return FaceSet(
            images=images,
            landmarks=landmarks,
            confidence=np.ones(landmarks.shape[:2], np.float32),
            identity=identity,
            truth=labels,
            recipe=recipe,
        )

    def _render(self, head: FlameModel, folder: Path) -> None:
        count = self.identities * self.images_per_identity
        shape = (count, self.size, self.size) + ((3,) if self.color else ())
        layer = FLAME(head, shape_params=self.shape_params, expression_params=self.expression_params)
        painter = _Painter(head, self)
        labels = []
        chunk = max(1, 96 // self.images_per_identity)
        bar = progress(total=count, desc=f"rendering {self.split} faces", unit="face")
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder.parent)
        needed, free = math.prod(shape), shutil.disk_usage(folder.parent).free
        if needed > free:
            raise OSError(f"{folder.parent}: the faces need {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")
        with folder_written_whole(folder) as unfinished, ThreadPoolExecutor(available_cores()) as pool, bar:
            images = np.lib.format.open_memmap(unfinished / "images.npy", "w+", np.uint8, shape)
            for first in range(0, self.identities, chunk):
                people = range(first, min(first + chunk, self.identities))
                truth, vertices, landmarks = self._pose(layer, people)
                labels.append({**truth, "landmarks": landmarks})
                offset = first * self.images_per_identity

                def paint(index, vertices=vertices, camera=truth["camera"], offset=offset):
                    images[offset + index] = painter.paint(vertices[index], camera[index], offset + index)

                list(pool.map(paint, range(len(vertices))))
                bar.update(len(vertices))
            images.flush()
            arrays = {name: np.concatenate([part[name] for part in labels]) for name in labels[0]}
            identity = np.repeat(np.arange(self.identities), self.images_per_identity)
            write_arrays(unfinished / "labels.npz", {"identity": identity, **arrays})

    @torch.no_grad()
    def _pose(self, layer: FLAME, people: range) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        rows = []
        for person in people:
            random = np.random.default_rng([self.seed, _SPLITS[self.split], person])
            shape = random.standard_normal(layer.shape_params)
            rows += [self._draw(random, layer, shape) for _ in range(self.images_per_identity)]
        truth = {name: np.stack([row[name] for row in rows]).astype(np.float32) for name in rows[0]}
        as_tensor = {name: torch.from_numpy(value) for name, value in truth.items()}
        frame = as_tensor.pop("frame")
        posed = layer(**as_tensor)
        # The crop: the landmarks' box fills a part of the frame, somewhat off centre.
        low, high = posed.landmarks[..., :2].amin(1), posed.landmarks[..., :2].amax(1)
        extent = (high - low).amax(1)
        del truth["frame"]
        scale = 2 * frame[:, 0] / extent
        translation = -(low + high) / 2 + frame[:, 1:] * extent[:, None]
        camera = torch.cat([scale[:, None], translation], dim=1)
        truth["camera"] = camera.numpy()
        return truth, posed.vertices.numpy(), project(posed.landmarks, camera).numpy()

    def _draw(self, random: np.random.Generator, layer: FLAME, shape: np.ndarray) -> dict[str, np.ndarray]:
        yaw = np.clip(random.normal(0, self.yaw_sigma), -self.yaw_limit, self.yaw_limit)
        pitch, roll = random.normal(0, self.pitch_sigma), random.normal(0, self.roll_sigma)
        gaze = np.radians(random.normal(0, 8, 2))
        return {
            "shape": shape,
            "expression": self.expression_sigma * random.standard_normal(layer.expression_params),
            "global_pose": global_pose(*np.radians([yaw, pitch, roll])),
            "jaw_pose": np.radians([abs(random.normal(0, self.jaw_sigma)), 0, 0]),
            "eye_pose": np.array([gaze[0], gaze[1], 0, gaze[0], gaze[1], 0]),
            "frame": np.concatenate([[random.uniform(0.52, 0.62)], random.uniform(-0.04, 0.04, 2)]),
        }


def _read(folder: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The images of a folder of the cache, memory-mapped, and their labels."""
    with np.load(folder / "labels.npz", allow_pickle=False) as labels:
        return np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False), dict(labels)


def global_pose(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Axis-angle (3,) in RingNet's frame of a head turned by yaw (to the subject's left), pitch (down), roll;
    radians."""
    vectors = UPRIGHT, (0, 0, roll), (pitch, 0, 0), (0, yaw, 0)
    upright, rolled, pitched, turned = (cv2.Rodrigues(np.array(vector, float))[0] for vector in vectors)
    vector = cv2.Rodrigues(upright @ rolled @ pitched @ turned)[0][:, 0]
    # Half a turn about an axis is half a turn about its opposite too. Of the two vectors of a rotation take the one
    # near UPRIGHT, so that heads that look alike have poses that are alike.
    return vector if vector[0] > 0 else vector * (1 - 2 * math.pi / np.linalg.norm(vector))


# Ends and middles of the palettes that colours are mixed from, linear in [0, 1].
_SKIN = np.array([[0.97, 0.83, 0.74], [0.86, 0.64, 0.50], [0.62, 0.42, 0.29], [0.30, 0.19, 0.13]])
_HAIR = np.array([[0.05, 0.04, 0.04], [0.24, 0.14, 0.08], [0.50, 0.26, 0.12], [0.82, 0.66, 0.40], [0.75, 0.74, 0.73]])
_IRIS = np.array([[0.22, 0.12, 0.06], [0.38, 0.30, 0.14], [0.30, 0.42, 0.52], [0.42, 0.46, 0.44]])


class _Painter:
    """Paints one posed head: colours, light, background, something in front, a camera that is not perfect."""

    def __init__(self, head: FlameModel, faces: SyntheticFaces):
        self.triangles = head.faces.astype(np.int32)
        self.regions = head.regions
        self.rest = head.v_template.astype(np.float32)
        self.configuration = faces

    def paint(self, vertices: np.ndarray, camera: np.ndarray, index: int) -> np.ndarray:
        """(V, 3) vertices in RingNet's frame -> (S, S) or (S, S, 3) uint8."""
        faces, size = self.configuration, self.configuration.size
        random = np.random.default_rng([faces.seed, 3 + _SPLITS[faces.split], index])
        image = self._background(random, size)
        normals = vertex_normals(vertices, self.triangles)
        points = project_to_pixels(vertices, camera, size)
        colors = self._light(random, normals, self._albedo(random))
        draw_mesh(image, points, self.triangles, colors, back_faces=False)
        if random.random() < faces.occlusion:
            self._occlude(random, image)
        if not faces.color:
            image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        return self._expose(random, image)

    def _albedo(self, random: np.random.Generator) -> np.ndarray:
        skin = _mixed(random, _SKIN) * random.uniform(0.9, 1.1, 3)
        hair = _mixed(random, _HAIR) * random.uniform(0.85, 1.15, 3)
        lips = skin * random.uniform([0.75, 0.45, 0.45], [1.0, 0.85, 0.85])
        colors = np.broadcast_to(skin.astype(np.float32), (len(self.rest), 3)).copy()

        def fill(region, color, opacity=1.0):
            ids = self.regions.get(region)
            if ids is not None:
                colors[ids] = (1 - opacity) * colors[ids] + opacity * np.asarray(color, np.float32)

        # Smooth blotches over the skin, so that light alone doesn't tell the surface.
        waves = self.rest @ random.normal(0, 60, (3, 3)).astype(np.float32) + random.uniform(0, 6.3, 3).astype(
            np.float32
        )
        colors *= 1 + 0.03 * np.sin(waves).sum(1, keepdims=True)
        if random.random() < 0.85:
            fill("scalp", hair)
        fill("lips", lips)
        fill("brows", hair * 0.9, random.uniform(0.3, 1.0))
        fill("mouth_interior", (0.22, 0.07, 0.07))
        white, iris = random.uniform(0.8, 0.95), _mixed(random, _IRIS)
        for side in ("left", "right"):
            fill(f"{side}_eyeball", (white, white, white))
            fill(f"{side}_iris", iris)
            fill(f"{side}_pupil", (0.03, 0.03, 0.03))
        return colors

    @staticmethod
    def _light(random: np.random.Generator, normals: np.ndarray, albedo: np.ndarray) -> np.ndarray:
        def direction(spread):  # towards the light; up is -y, the viewer is at -z
            vector = np.array([random.normal(0, spread), random.normal(-0.4, 0.5), -1.0])
            return (vector / np.linalg.norm(vector)).astype(np.float32)

        ambient = random.uniform(0.3, 0.65)
        key, fill = direction(0.7), direction(1.2)
        tint = random.uniform(0.85, 1.15, 3).astype(np.float32)
        diffuse = np.clip(normals @ key, 0, None) * (1 - ambient)
        diffuse += np.clip(normals @ fill, 0, None) * random.uniform(0, 0.3)
        halfway = key + np.array([0, 0, -1], np.float32)
        gloss = np.clip(normals @ (halfway / np.linalg.norm(halfway)), 0, None) ** 24 * random.uniform(0, 0.25)
        return np.clip(albedo * (ambient + diffuse[:, None]) * tint + gloss[:, None].astype(np.float32), 0, 1)

    @staticmethod
    def _background(random: np.random.Generator, size: int) -> np.ndarray:
        # Blotches of three sizes, in brightness rather than in colour.
        image: np.ndarray = np.zeros((1, 1, 3), np.float32) + random.uniform(0.05, 0.95) + random.normal(0, 0.08, 3)
        for cells, brightness, color in ((3, 0.25, 0.06), (8, 0.12, 0.03), (24, 0.08, 0.01)):
            noise = random.normal(0, brightness, (cells, cells, 1)) + random.normal(0, color, (cells, cells, 3))
            image = cv2.resize(image.astype(np.float32), (cells, cells), interpolation=cv2.INTER_LINEAR) + noise
        image = cv2.resize(image.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
        return np.clip(image, 0, 1, out=image)

    @staticmethod
    def _occlude(random: np.random.Generator, image: np.ndarray) -> None:
        size = image.shape[0]
        color = tuple(float(c) for c in random.uniform(0, 1, 3))
        centre = random.uniform(0.1, 0.9, 2) * size
        axes = random.uniform(0.08, 0.22, 2) * size
        angle = random.uniform(0, 180)
        if random.random() < 0.5:
            box = cv2.boxPoints((tuple(map(float, centre)), tuple(map(float, 1.6 * axes)), float(angle)))
            cv2.fillConvexPoly(image, box.astype(np.int32), color)
        else:
            centre, axes = tuple(map(int, centre)), tuple(map(int, axes))
            cv2.ellipse(image, centre, axes, float(angle), 0, 360, color, -1)

    @staticmethod
    def _expose(random: np.random.Generator, image: np.ndarray) -> np.ndarray:
        if random.random() < 0.4:
            image = cv2.GaussianBlur(image, (0, 0), random.uniform(0.3, 1.0) * image.shape[0] / 128)
        image = np.clip(image, 0, 1) ** random.uniform(0.8, 1.25) * random.uniform(0.6, 1.0)
        image += random.uniform(0, 0.02) * random.standard_normal(image.shape, dtype=np.float32)
        return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def _mixed(random: np.random.Generator, palette: np.ndarray) -> np.ndarray:
    """A colour somewhere along the line through the palette."""
    position = random.uniform(0, len(palette) - 1)
    low = min(int(position), len(palette) - 2)
    return palette[low] + (position - low) * (palette[low + 1] - palette[low])
