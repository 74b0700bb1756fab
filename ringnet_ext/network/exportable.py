"""The whole network, encoder, regressor and decoder, in PyTorch's own operators, for torch.export, ONNX and other
runtimes."""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..files.whole import written_whole
from ..flame.parameters import HeadParams
from ..geometry.camera import project, to_pixels

if TYPE_CHECKING:
    from .ringnet import RingNet

INPUT, OUTPUTS = "images", ("parameters", "vertices", "landmarks")
_SIZE = 224


class ExportableRingNet(nn.Module):
    """What :meth:`ringnet_ext.network.RingNet.exportable` returns."""

    def __init__(self, model: RingNet):
        super().__init__()
        self.encoder, self.regressor = copy.deepcopy(model.encoder), copy.deepcopy(model.regressor)
        self.flame = model.flame.exportable()
        self.shape_params = model.flame.shape_params
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 1 or 3, S, S) images in [-1, 1], RGB -> what is seen in them.

        Returns:
            parameters: (B, 159) for RingNet's 100 shape and 50 expression coefficients, its vector, see
                :class:`ringnet_ext.flame.parameters.HeadParams`.
            vertices: (B, V, 3) of the posed head in FLAME's frame: metres, y up, turned about its root joint.
            landmarks: (B, 68, 2) pixels of the images, the middle of the first pixel at (0.5, 0.5).
        """
        parameters = self.regressor(self.encoder(images)).float()
        head = HeadParams.from_vector(parameters, self.shape_params)
        seen, joints, points = self.flame(head.shape, head.expression, head.global_pose, jaw_pose=head.jaw_pose)
        landmarks = to_pixels(project(points, head.camera), images.shape[-1])
        root = joints[:, :1]
        return parameters, root + (seen - root) * seen.new_tensor([1.0, -1.0, -1.0]), landmarks


def exported(model: RingNet, channels: int = 3) -> torch.export.ExportedProgram:
    """The network as a program of torch.export, for images (B, channels, 224, 224) of any B."""
    example = torch.zeros(2, channels, _SIZE, _SIZE, device=model.flame.v_template.device)
    batch = torch.export.Dim("batch")
    return torch.export.export(model.exportable(), (example,), dynamic_shapes={INPUT: {0: batch}})


def write_program(path: str | os.PathLike, program: torch.export.ExportedProgram) -> None:
    """Write what :func:`exported` makes as a file (.pt2) that ``torch.export.load`` reads; whole or not at all."""
    with written_whole(path) as file:
        torch.export.save(program, file)


def write_onnx(path: str | os.PathLike, program: torch.export.ExportedProgram) -> None:
    """Write what :func:`exported` makes as one ONNX file; whole or not at all.

    Its input is ``images``, its outputs are :data:`OUTPUTS`. Raises ImportError without the packages onnx, onnxscript.
    """
    model = torch.onnx.export(program, dynamo=True, input_names=[INPUT], output_names=list(OUTPUTS), verbose=False)
    assert model is not None
    with written_whole(path) as file:
        file.write(model.model_proto.SerializeToString())
