"""Checkpoints: one safetensors file of named tensors, with JSON beside them in its header.

Nothing in such a file can run code. It appears under its name whole or not at all, and carries a checksum, so that a
damaged one is refused instead of being trained on.
"""

import hashlib
import json
import os

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .flame.files import written_whole

_KEY = "ringnet_ext"


class CheckpointError(ValueError):
    """The file is not a checkpoint, or a damaged one."""


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_checkpoint(path: str | os.PathLike, tensors: dict[str, torch.Tensor], facts: dict) -> None:
    """Write tensors and JSON-able facts to one file, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {_KEY: json.dumps({"facts": facts, "sha256": _checksum(tensors)})}
    with written_whole(path) as file:
        file.write(save(tensors, metadata))


def read_checkpoint(path: str | os.PathLike) -> tuple[dict[str, torch.Tensor], dict]:
    """Read what :func:`write_checkpoint` wrote: (tensors on the CPU, facts).

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is not a checkpoint of ours, or its checksum is wrong.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"checkpoint: no file {os.fspath(path)}")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except KeyError:
        raise CheckpointError(f"{os.fspath(path)}: a safetensors file, but not a checkpoint of ringnet_ext") from None
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(f"{os.fspath(path)}: not a readable checkpoint: {error}") from error
    if _checksum(tensors) != header.get("sha256"):
        raise CheckpointError(f"{os.fspath(path)}: the checksum is wrong: the file is damaged")
    return tensors, header["facts"]
