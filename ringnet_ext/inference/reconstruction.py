"""A reconstructed face: its parameters as meshes and landmarks, and where it lies in its picture."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .. import network
from ..detection.squares import Square
from ..fitting import refine
from ..flame import FLAME, FlameModel
from ..flame.parameters import FlameParams, HeadParams
from ..geometry.camera import project, to_pixels, yaw_of
from ..geometry.surface import vertex_normals
from ..render.pictures import over
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
    the two meshes. head: the model whose triangles they have; layer: its decoder. square: what the network saw,
    (224, 224, 3), and where it lies in the original image. square_landmarks (68, 2): pixels of it. image_vertices
    (V, 3): metres, in the frame of the camera (y down). root (3,): the joint about which the head turns, the same in
    both frames. yaw: radians, positive to the subject's left. neck_pose (3,), eye_pose (6,): axis-angle, zeros where a
    network says them. original: the image that the square was cut from, (H, W, 3) uint8 RGB, or its file; None if not
    known. trust: what speaks for it. source: of many pictures, the place of the one that it is from.
    """

    params: HeadParams
    vertices: np.ndarray
    landmarks: np.ndarray
    landmarks_3d: np.ndarray
    head: FlameModel
    layer: FLAME
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

    def __getstate__(self) -> dict:
        if self.layer.v_template.device.type == "cpu":
            return vars(self)
        return {**vars(self), "layer": copy.deepcopy(self.layer).cpu()}  # a pickle may be read where there is no other

    @property
    def faces(self) -> np.ndarray:
        """The triangles of both meshes, (F, 3)."""
        return self.head.faces

    @property
    def image(self) -> np.ndarray:
        """What the network saw, (224, 224, 3)."""
        return self.square.image

    @cached_property  # many a use has none for it
    @torch.no_grad()
    def _neutral(self) -> tuple[np.ndarray, np.ndarray]:
        head = self.layer(self.params.shape.to(self.layer.v_template))
        assert head.landmarks is not None
        return head.vertices[0].cpu().numpy(), head.landmarks[0].cpu().numpy()

    @property
    def neutral_vertices(self) -> np.ndarray:
        return self._neutral[0]

    @property
    def neutral_landmarks(self) -> np.ndarray:
        return self._neutral[1]

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
        scale, *shift = self.params.camera[0].tolist()
        half = len(self.square.image) / 2
        size = half * scale / self.square.scale
        x, y = (
            (half * (scale * by + 1) - offset) / self.square.scale
            for by, offset in zip(shift, self.square.offset, strict=True)
        )
        if frame == "ringnet":
            return np.array([[size, 0, 0, x], [0, size, 0, y]])
        return np.array([[size, 0, 0, x], [0, -size, 0, y + 2 * size * float(self.root[1])]])  # turned over

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
    turned = np.empty_like(points)
    turned[..., 0] = points[..., 0]
    for i in 1, 2:
        np.subtract(2 * root[..., i], points[..., i], out=turned[..., i])
    return turned


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
    heads = flame(params.shape, params.expression, params.global_pose, neck_pose, params.jaw_pose, eye_pose)
    image_vertices, image_landmarks, roots, seen = (
        value.cpu().numpy()
        for value in (heads.vertices, heads.landmarks, heads.joints[:, 0], project(heads.landmarks, params.camera))
    )
    vertices, landmarks_3d = (turned_over(points, roots[:, None]) for points in (image_vertices, image_landmarks))
    neck, eyes = (
        np.zeros((len(squares), width), np.float32) if pose is None else pose.detach().cpu().numpy()
        for pose, width in ((neck_pose, 3), (eye_pose, 6))
    )
    yaw = yaw_of(params.global_pose).tolist()
    each = [HeadParams(*values) for values in zip(*(value.cpu().split(1) for value in params), strict=True)]
    scales = np.array([square.scale for square in squares])[:, None, None]
    offsets = np.array([square.offset for square in squares])[:, None]
    square_landmarks = np.stack([to_pixels(seen[i], len(square.image)) for i, square in enumerate(squares)])
    landmarks = ((square_landmarks - offsets) / scales).astype(np.float32)
    return [
        Reconstruction(
            params=each[i],
            vertices=vertices[i],
            landmarks=landmarks[i],
            landmarks_3d=landmarks_3d[i],
            head=head,
            layer=flame,
            square=square,
            square_landmarks=square_landmarks[i],
            image_vertices=image_vertices[i],
            root=roots[i],
            yaw=yaw[i],
            neck_pose=neck[i],
            eye_pose=eyes[i],
        )
        for i, square in enumerate(squares)
    ]


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
