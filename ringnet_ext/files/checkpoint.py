"""Checkpoints: one safetensors file of named tensors, with JSON beside them in its header.

Nothing in such a file can run code. It appears under its name whole or not at all, and carries a checksum, so that a
damaged one is refused instead of being trained on.
"""

from __future__ import annotations

import hashlib
import json
import os

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .whole import written_whole

_FACTS, _CHECKSUM = "ringnet_ext", "sha256"


class CheckpointError(ValueError):
    """The file is not a checkpoint, or a damaged one."""


def _checksum(tensors: dict[str, torch.Tensor], facts: str) -> str:
    digest = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_checkpoint(path: str | os.PathLike, tensors: dict[str, torch.Tensor], facts: dict) -> None:
    """Write tensors and JSON-able facts to one file, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(facts)
    with written_whole(path) as file:
        file.write(save(tensors, {_FACTS: text, _CHECKSUM: _checksum(tensors, text)}))
        file.flush()
        os.fsync(file.fileno())  # or a power failure could leave the name without the data


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
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(f"{os.fspath(path)}: not a readable checkpoint: {error}") from error
    if _FACTS not in metadata:
        raise CheckpointError(f"{os.fspath(path)}: a safetensors file, but not a checkpoint of ringnet_ext")
    if _checksum(tensors, metadata[_FACTS]) != metadata.get(_CHECKSUM):
        raise CheckpointError(f"{os.fspath(path)}: the checksum is wrong: the file is damaged")
    return tensors, json.loads(metadata[_FACTS])
