"""The whole network, encoder, regressor and decoder, in PyTorch's own operators, for ONNX and other runtimes."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..flame.parameters import HeadParams
from ..geometry.camera import project, to_pixels

if TYPE_CHECKING:
    from .ringnet import RingNet

#: Names of the outputs, in their order.
OUTPUTS = ("parameters", "vertices", "landmarks")


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
        vertices = root + (seen - root) * torch.tensor([1.0, -1.0, -1.0], dtype=seen.dtype, device=seen.device)
        return parameters, vertices, landmarks
