"""RingNet: an encoder that reads head parameters off an image, and the FLAME decoder that makes them a head."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .camera import FILL, UPRIGHT, project, to_pixels, yaw_of
from .checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from .encoder import ENCODERS, CompactEncoder, IterativeRegressor
from .flame import FLAME, FlameModel, builtin_head
from .flame.builtin import VERSION as BUILTIN_VERSION
from .framing import find_face
from .images import read_image, to_input
from .squares import Square, around_landmarks


class HeadParams(NamedTuple):
    """What RingNet says of an image, in the order of its 159-vector (camera 0:3, pose 3:9, shape 9:109, ...).

    camera (B, 3): s in 1/metre, tx, ty in metres. global_pose, jaw_pose (B, 3): axis-angle, radians, in RingNet's
    frame, where an upright head has the global pose (pi, 0, 0). shape (B, S), expression (B, E): coefficients.
    """

    camera: Tensor
    global_pose: Tensor
    jaw_pose: Tensor
    shape: Tensor
    expression: Tensor

    def to_vector(self) -> Tensor:
        """(B, 9 + S + E); (B, 159) for RingNet's 100 shape and 50 expression coefficients."""
        return torch.cat(self, dim=1)

    @classmethod
    def from_vector(cls, vector: Tensor, shape_params: int = 100) -> HeadParams:
        """From (B, 9 + S + E). Raises ValueError for another shape."""
        if vector.dim() != 2 or vector.shape[1] < 9 + shape_params:
            raise ValueError(f"vector: expected (B, >= {9 + shape_params}), got {tuple(vector.shape)}")
        sizes = [3, 3, 3, shape_params, vector.shape[1] - 9 - shape_params]
        return cls(*vector.split(sizes, dim=1))


@dataclass(frozen=True)
class Reconstruction:
    """One reconstructed face. Arrays are numpy, float32.

    Both meshes are in FLAME's frame, near its origin: metres, y up, z out of the face, the head turned about its root
    joint. They are what ``python -m ringnet_ext.flame`` makes of the same parameters, and the posed mesh lies where the
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


def fingerprint(head: FlameModel) -> str:
    """Tells apart what coefficients stand for: ``builtin-1`` for the first version of the built-in head, else a digest
    of template, directions and triangles, which is the same for a head in any file format, in float32 or float64."""
    digest = _digest(head)
    return f"builtin-{BUILTIN_VERSION}" if digest == _builtin_digest() else digest


def _digest(head: FlameModel) -> str:
    digest = hashlib.sha256()
    for array in (head.v_template, head.shapedirs, head.expressiondirs, head.faces):
        digest.update(np.ascontiguousarray(array, dtype=np.float32).data)
    return digest.hexdigest()[:16]


@lru_cache(1)
def _builtin_digest() -> str:
    return _digest(builtin_head())


def require_landmarks(head: FlameModel, name: str = "head") -> None:
    """Raises ValueError, saying what to do, for a head without the 68 landmarks that RingNet is trained on; `name` says
    which head."""
    found = head.landmarks
    count = 0 if found is None else found.num_contour + found.num_static
    if count != 68:
        raise ValueError(
            f"{name}: expected a model with iBUG's 68 landmarks, 17 of the contour and 51 inner ones, and this one has "
            f"{count or 'none'}; store them with it: python -m ringnet_ext.convert MODEL HEAD.npz --landmarks EMBEDDING"
        )


class RingNet(nn.Module):
    """The network of Sanyal et al. (CVPR 2019).

    Args:
        head: a FlameModel with landmarks, a model file, or None for the built-in head.
        encoder: ``compact`` or ``resnet50`` (the paper's).
        dropout: of the regressor.
        leak: slope below zero of the activations of the regressor, and of the compact encoder's features; 0 is ReLU,
            the paper's.
        scale: sizes of one unit of the regressor's output: camera scale (relative to the mean), translation (metres),
            global pose, jaw, shape, expression; None for ones in the units of the parameters, as in the paper.

        readout: with a linear layer that reads the landmarks directly off the features, for training only.

    The regressor starts from the mean head, upright, where its landmarks fill :data:`camera.FILL` of the image.
    """

    def __init__(
        self,
        head: FlameModel | str | os.PathLike | None = None,
        encoder: str = "compact",
        *,
        dropout: float = 0.0,
        leak: float = 0.0,
        scale: tuple[float, float, float, float, float, float] | None = None,
        readout: bool = False,
        shape_params: int = 100,
        expression_params: int = 50,
    ):
        super().__init__()
        if encoder not in ENCODERS:
            raise ValueError(f"encoder: expected one of {', '.join(ENCODERS)}, got {encoder!r}")
        self.head_path = None if head is None or isinstance(head, FlameModel) else os.path.abspath(head)
        if head is None:
            head = builtin_head()
        elif not isinstance(head, FlameModel):
            head = FlameModel.load(head)
        require_landmarks(head)
        self.head = head
        self.flame = FLAME(head, shape_params=shape_params, expression_params=expression_params)
        shape_params, expression_params = self.flame.shape_params, self.flame.expression_params
        self.encoder = CompactEncoder(leak) if encoder == "compact" else ENCODERS[encoder]()
        sizes = (1, 2, 3, 3, shape_params, expression_params)
        mean = torch.zeros(sum(sizes))
        mean[3:6] = torch.tensor(UPRIGHT)
        with torch.no_grad():
            points = self.flame.landmarks(global_pose=mean[None, 3:6])[0, :, :2]
        low, high = points.amin(0), points.amax(0)
        mean[0] = 2 * FILL / (high - low).max()
        mean[1:3] = -(low + high) / 2
        units = torch.ones(sum(sizes))
        if scale is not None:
            units = torch.cat([torch.full((size,), float(unit)) for size, unit in zip(sizes, scale, strict=True)])
            units[0] *= mean[0]
        self.regressor = IterativeRegressor(self.encoder.features, mean, units, dropout, leak)
        self.readout = nn.Linear(self.encoder.features, 2 * 68) if readout else None
        self.configuration = {
            "readout": readout,
            "encoder": encoder,
            "dropout": dropout,
            "leak": leak,
            "shape_params": shape_params,
            "expression_params": expression_params,
        }
        #: What it was trained on, ``synthetic faces`` or ``photographs``; None if that is not known.
        self.trained_on: str | None = None
        #: What :func:`ringnet_ext.framing.following` is at most on faces that it knows; None if not measured yet.
        self.limit: float | None = None

    def forward(self, images: Tensor) -> HeadParams:
        """(B, 1 or 3, H, W) images in [-1, 1] -> HeadParams."""
        return self.regress(self.encoder(images))

    def regress(self, features: Tensor) -> HeadParams:
        """(B, features) of the encoder -> HeadParams."""
        return HeadParams.from_vector(self.regressor(features).float(), self.flame.shape_params)

    def landmarks(self, params: HeadParams) -> Tensor:
        """The 68 landmarks in normalised image coordinates, (B, 68, 2), without computing the mesh."""
        points = self.flame.landmarks(params.shape, params.expression, params.global_pose, jaw_pose=params.jaw_pose)
        return project(points, params.camera)

    def neutral(self, shape: Tensor) -> Tensor:
        """(B, S) shape coefficients -> (B, V, 3) vertices without pose and expression; metres, y up."""
        return self.flame(shape).vertices

    @torch.no_grad()
    def answer(self, images: Tensor) -> HeadParams:
        """What the network says of (B, 1 or 3, H, W) uint8 images, as it is used: without dropout, in no training
        mode."""
        training = self.training
        self.eval()
        try:
            return self(to_input(images.to(self.flame.v_template.device)))
        finally:
            self.train(training)

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
                :func:`ringnet_ext.framing.find_face` does. Or a square cut from one, see :mod:`ringnet_ext.squares`:
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
        from .fitting import fit  # which stands above: it knows this class's results

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

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """What training changes: the state dict without the head, which is licensed separately and kept in its file."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("flame.")}

    def checkpoint_facts(self) -> dict:
        """What :meth:`load` needs beside the tensors to rebuild the model."""
        return {
            "model": self.configuration,
            "head": {"path": self.head_path, "fingerprint": fingerprint(self.head)},
            "faces": {"trained_on": self.trained_on, "limit": self.limit},
        }

    def save(self, path: str | os.PathLike) -> None:
        """Write one safetensors file from which :meth:`load` rebuilds the model; whole or not at all."""
        write_checkpoint(path, self.checkpoint_tensors(), self.checkpoint_facts())

    @classmethod
    def load(cls, path: str | os.PathLike, head: FlameModel | str | os.PathLike | None = None) -> RingNet:
        """Rebuild a model from a checkpoint file, or from a run folder (its best checkpoint).

        Args:
            head: the head model, if it is not the built-in one and its file is neither where it was in training nor,
                under the same name, beside the checkpoint.

        Raises:
            FileNotFoundError: no checkpoint, or no head model, where it should be.
            CheckpointError: the file is damaged, is no checkpoint, or was trained on another head.
        """
        path = Path(path)
        if path.is_dir():
            path = path / "best.safetensors"
        tensors, facts = read_checkpoint(path)
        try:
            configuration, saved_head = facts["model"], facts["head"]
        except (KeyError, TypeError):
            raise CheckpointError(f"{path}: a checkpoint, but not of a RingNet") from None
        try:
            model = cls._on_its_head(path, head, saved_head, configuration, tensors)
        except TypeError as error:  # an argument that there isn't
            raise CheckpointError(f"{path}: made by another version of ringnet_ext: {error}") from error
        own = model.checkpoint_tensors()
        wrong = [name for name in own if name not in tensors or tensors[name].shape != own[name].shape]
        if wrong:
            raise CheckpointError(f"{path}: lacks {', '.join(wrong[:3])} as this model has them")
        model.load_state_dict({name: tensors[name] for name in own}, strict=False)
        known = facts.get("faces", {})  # of older checkpoints nothing
        model.trained_on, model.limit = known.get("trained_on"), known.get("limit")
        return model.eval()

    @classmethod
    def _on_its_head(cls, path, head, saved, configuration, tensors) -> RingNet:
        """A model with the head that was saved, which is looked for where it was and beside the checkpoint if not
        given."""
        places = [head]
        if head is None and saved["path"] is not None:
            folders = (path.parent, path.parent.parent)
            places = [saved["path"], *(folder / Path(saved["path"]).name for folder in folders)]
            places = [place for place in places if os.path.isfile(place)]
            if not places:
                raise FileNotFoundError(
                    f"{path}: its head model, {saved['path']}, is not there any more, nor beside the checkpoint; say where "
                    "it is with --head, in Python with head="
                )
        for place in places:
            model = cls(place, **configuration)
            if _same_head(model, saved, tensors):
                return model
        own = (
            "the built-in one"
            if place is None
            else "the one given"
            if isinstance(place, FlameModel)
            else os.fspath(place)
        )
        raise CheckpointError(
            f"{path}: trained on another head than {own}: on {_described_head(saved)}; give it with --head, in Python with "
            "head="
        )


def _same_head(model: RingNet, saved: dict, tensors: dict[str, Tensor]) -> bool:
    own = fingerprint(model.head)
    if own == saved["fingerprint"]:
        return True
    # Before it had versions the built-in head was computed on every machine, with a digest of that machine's last bits.
    # That it was this one shows in the camera that the regressor starts from, as wide as the head's landmarks.
    unversioned = saved["path"] is None and not saved["fingerprint"].startswith("builtin-") and own == "builtin-1"
    mean = tensors.get("regressor.mean")
    return (
        unversioned
        and mean is not None
        and mean.shape == model.regressor.mean.shape
        and torch.allclose(mean, model.regressor.mean, rtol=1e-4, atol=1e-6)
    )


def _described_head(saved: dict) -> str:
    if saved["fingerprint"].startswith("builtin-"):
        return f"version {saved['fingerprint'].removeprefix('builtin-')} of the built-in one"
    return f"one of fingerprint {saved['fingerprint']}" + (f", {saved['path']}" if saved["path"] else "")
