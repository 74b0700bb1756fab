"""RingNet: an encoder that reads head parameters off an image, and the FLAME decoder that makes them a head."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..files.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from ..flame import FLAME, FlameModel, builtin_head
from ..flame.fingerprint import fingerprint
from ..flame.parameters import HeadParams
from ..flame.sources import require_landmarks
from ..geometry.camera import FILL, UPRIGHT, project
from .encoder import ENCODERS, CompactEncoder
from .exportable import ExportableRingNet
from .regressor import IterativeRegressor

if TYPE_CHECKING:
    from typing_extensions import Self


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
        if head is not None and not isinstance(head, FlameModel):
            head = FlameModel.load(head)
        self.head: FlameModel = builtin_head() if head is None else head
        require_landmarks(self.head)
        self.flame = FLAME(self.head, shape_params=shape_params, expression_params=expression_params)
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
        #: What :func:`ringnet_ext.inference.framing.following` is at most on faces that it knows; None if not measured.
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
        if self.training:  # to ask every module for it takes as long as a small encoder
            self.eval()
            try:
                return self.answer(images)
            finally:
                self.train()
        return self(self.encoder.prepared(images.to(self.flame.v_template.device)))

    def exportable(self) -> ExportableRingNet:
        """A copy, as it is used, that ONNX and other runtimes can take along: ``module(images)`` returns parameters,
        vertices and landmarks, see :class:`ringnet_ext.network.exportable.ExportableRingNet`."""
        return ExportableRingNet(self)

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
    def load(cls, path: str | os.PathLike, head: FlameModel | str | os.PathLike | None = None) -> Self:
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
    def _on_its_head(cls, path, head, saved, configuration, tensors) -> Self:
        """A model with the head that was saved, which is looked for where it was and beside the checkpoint if not
        given."""
        candidates = [head]
        if head is None and saved["path"] is not None:
            folders = (path.parent, path.parent.parent)
            candidates = [saved["path"], *(folder / Path(saved["path"]).name for folder in folders)]
            candidates = [candidate for candidate in candidates if os.path.isfile(candidate)]
            if not candidates:
                raise FileNotFoundError(
                    f"{path}: its head model, {saved['path']}, is not there any more, nor beside the checkpoint; say "
                    "where it is with --head, in Python with head="
                )
        for candidate in candidates:
            model = cls(candidate, **configuration)
            if same_head(model, saved, tensors):
                return model
        if candidate is None:
            own = "the built-in one"
        else:
            own = "the one given" if isinstance(candidate, FlameModel) else os.fspath(candidate)
        raise CheckpointError(
            f"{path}: trained on another head than {own}: on {described_head(saved)}; give it with --head, in Python "
            "with head="
        )


def same_head(model: RingNet, saved: dict, tensors: dict[str, Tensor]) -> bool:
    """Whether the model's head is the one that a checkpoint of those tensors was trained on, by its facts ``head``."""
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


def described_head(saved: dict) -> str:
    """A checkpoint's facts ``head`` in words."""
    if saved["fingerprint"].startswith("builtin-"):
        return f"version {saved['fingerprint'].removeprefix('builtin-')} of the built-in one"
    return f"one of fingerprint {saved['fingerprint']}" + (f", {saved['path']}" if saved["path"] else "")
