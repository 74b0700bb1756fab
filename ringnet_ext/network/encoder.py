"""From an image to a vector of head parameters: convolutional features, then an iterative regressor.

Every encoder takes (B, 1 or 3, H, W) images with values in [-1, 1], RGB where there are three channels, of any size:
what the network wants to see (its resolution, its colours, its normalisation) is the encoder's own business. Of uint8
images ``prepared`` keeps what the encoder looks at. Of a ``light`` one a CPU does thousands of images a second; several
cores are no faster with a few images than one is.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn


def to_input(images: torch.Tensor) -> torch.Tensor:
    """uint8 images -> float32 in [-1, 1], what a network takes."""
    return images.float().div_(127.5).sub_(1)


#: What torchvision calls its ResNet-50 weights, and where they are; the end of the name is that of their SHA-256.
PRETRAINED = {
    "IMAGENET1K_V1": "https://download.pytorch.org/models/resnet50-0676ba61.pth",
    "IMAGENET1K_V2": "https://download.pytorch.org/models/resnet50-11ad3fa6.pth",
}
LUMA = (0.299, 0.587, 0.114)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _resize(images: torch.Tensor, size: int) -> torch.Tensor:
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)


def _grey(images: torch.Tensor) -> torch.Tensor:
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


_IN_CACHE = 4  # images of 224 pixels, of which a core keeps what becomes of them at hand


class CompactEncoder(nn.Module):
    """Five 3 x 3 convolutions on a 64 x 64 grey image, flattened at 4 x 4: what a CPU trains in minutes.

    The position of the features is kept (no global pooling), since the camera and the pose are in it.

    Args:
        leak: slope of the features' activation below zero; 0 is ReLU.
    """

    light = True
    input_size = 64
    channels = 1
    features = 512

    def __init__(self, leak: float = 0.0, widths: tuple[int, ...] = (16, 32, 64, 128, 128)):
        super().__init__()
        self.leak = leak
        stages, previous = [], self.channels
        for index, width in enumerate(widths):
            stride = 2 if index < 4 else 1
            stages += [
                nn.Conv2d(previous, width, 3, stride, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            previous = width
        # Convolutions on a CPU run a fifth faster with the channels innermost.
        self.stages = nn.Sequential(*stages)
        self.stages.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # unknown to PyTorch's stubs
        self.head = nn.Linear(previous * (self.input_size // 16) ** 2, self.features)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 1 or 3, H, W) in [-1, 1] -> (B, 512)."""
        images = _resize(_grey(images), self.input_size)
        # Brightness and contrast belong to the photograph, not to the head.
        mean = images.mean((1, 2, 3), keepdim=True)
        images = (images - mean) / (images.std((1, 2, 3), keepdim=True) + 1e-3)
        return F.leaky_relu(self.head(self.stages(images).flatten(1)), self.leak)

    def prepared(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 1 or 3, H, W) uint8 -> (B, 1, 64, 64) in [-1, 1], of which :meth:`forward` makes the same, to the bit."""
        size = _IN_CACHE if images.device.type == "cpu" else len(images)
        return torch.cat([_resize(_grey(to_input(part)), self.input_size) for part in images.split(size)])


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNet50(nn.Module):
    """ResNet-50 (He et al. 2016; the stride in the 3 x 3 convolution), 2048 features, on 224 x 224 RGB.

    Parameter names are torchvision's, so that its weights load as they are; the normalisation is ImageNet's.
    """

    light = False
    input_size = 224
    channels = 3
    features = 2048
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for index, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
            stage = []
            for block in range(blocks):
                stage.append(Bottleneck(inputs, width, 2 if block == 0 and index > 1 else 1))
                inputs = width * Bottleneck.expansion
            setattr(self, f"layer{index}", nn.Sequential(*stage))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.to(memory_format=torch.channels_last)  # what tensor cores and CPUs read fastest

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 1 or 3, H, W) in [-1, 1] -> (B, 2048)."""
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        images = _resize(images, self.input_size)
        mean = images.new_tensor(IMAGENET_MEAN)[:, None, None]
        std = images.new_tensor(IMAGENET_STD)[:, None, None]
        x = ((images + 1) / 2 - mean) / std
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean((2, 3))

    def prepared(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 1 or 3, H, W) uint8 -> the same in [-1, 1]."""
        return to_input(images)

    def load_pretrained(self, path: str | os.PathLike) -> None:
        """Load torchvision's ResNet-50 weights.

        The classifier (``fc.*``) is left out; every other key must match.

        Args:
            path: a local ``.pth`` or ``.safetensors`` file, or a name of :data:`PRETRAINED`: that file is downloaded to
                PyTorch's cache, unless it is there, and its checksum compared.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it can't be downloaded, it is not a state dict, or its keys or shapes are not a ResNet-50's; the
                message names them.
        """
        name, path = os.fspath(path), Path(path)
        if name not in PRETRAINED and not path.is_file():
            raise FileNotFoundError(f"pretrained weights: no file {path}, nor one of {', '.join(PRETRAINED)}")
        try:
            if name in PRETRAINED:
                state = torch.hub.load_state_dict_from_url(
                    PRETRAINED[name], map_location="cpu", check_hash=True, weights_only=True
                )
            elif path.suffix == ".safetensors":
                from safetensors.torch import load_file

                state = load_file(path)
            else:
                state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            source = (
                f"{name}: can't get {PRETRAINED[name]}" if name in PRETRAINED else f"{path}: not a readable state dict"
            )
            raise ValueError(f"{source}: {error}") from error
        if not isinstance(state, dict):
            raise ValueError(f"{path}: expected a state dict, got {type(state).__name__}")
        state = {key: value for key, value in state.items() if not key.startswith("fc.")}
        own = self.state_dict()
        # Files from before PyTorch 0.4 lack the batch counters, which only a moving average without momentum reads.
        missing = sorted(key for key in own.keys() - state.keys() if not key.endswith("num_batches_tracked"))
        unexpected = sorted(state.keys() - own.keys())
        misshapen = sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape)
        for problem, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen)):
            if keys:
                raise ValueError(f"{path}: not a ResNet-50: {len(keys)} keys {problem}, such as {', '.join(keys[:3])}")
        self.load_state_dict(state, strict=False)


ENCODERS = {"compact": CompactEncoder, "resnet50": ResNet50}
