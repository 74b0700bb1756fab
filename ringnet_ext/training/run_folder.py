"""The folder of a run: its checkpoints, and the facts that it came from."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from .._version import __version__
from ..files.checkpoint import CheckpointError, read_checkpoint
from ..files.whole import written_whole

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: What else a run leaves in its folder.
_RESULTS = (
    "checkpoints/step-*.safetensors", "tensorboard/events.out.tfevents.*", "best.safetensors", "history.csv",
    "curves.png", "report.json", "reconstructions.png", "examples/[0-9]*.png",
)  # fmt: skip


def checkpoints(folder: str | os.PathLike) -> list[Path]:
    """The checkpoints that a run folder holds, oldest first."""
    return sorted((Path(folder) / "checkpoints").glob("step-*.safetensors"))


def checkpoint_path(folder: str | os.PathLike, step: int) -> Path:
    """The file of a step's checkpoint, in a folder that is made if missing."""
    path = Path(folder) / "checkpoints" / f"step-{step:08d}.safetensors"
    path.parent.mkdir(exist_ok=True)
    return path


def newest_checkpoint(folder: str | os.PathLike) -> tuple[Path, dict[str, torch.Tensor], dict]:
    """The newest checkpoint that is not damaged: its path, tensors and facts.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: all are damaged; of the newest.
    """
    *older, newest = checkpoints(folder) or [Path(folder) / "checkpoints" / "step-*.safetensors"]
    try:
        return newest, *read_checkpoint(newest)
    except CheckpointError as error:
        for path in reversed(older):
            try:
                found = path, *read_checkpoint(path)
            except CheckpointError:
                continue
            tqdm.write(f"{error}; using {path.name}")
            return found
        raise


@contextmanager
def alone_in(folder: str | os.PathLike) -> Iterator[None]:
    """While the block runs, no other run may be at work in the folder: each would remove the other's checkpoints.

    Raises:
        OSError: one is.
    """
    descriptor = os.open(folder, os.O_RDONLY) if fcntl else None
    try:
        try:
            if descriptor is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"--out: {os.fspath(folder)}: another run is at work in it; choose another folder") from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def configuration_path(folder: str | os.PathLike) -> Path:
    """What the run in a folder came from, and ``ringnet train --config`` reads."""
    return Path(folder) / "config.json"


def begin_run(folder: str | os.PathLike, description: dict) -> None:
    """Write what a new run comes from to the folder's ``config.json``.

    What an earlier run has left is removed, so that nothing of it passes for the new one's; other files stay.
    """
    folder = Path(folder)
    if configuration_path(folder).is_file() or checkpoints(folder):
        for earlier in [path for pattern in _RESULTS for path in folder.glob(pattern)]:
            earlier.unlink()
    write_json(configuration_path(folder), description)


def shares_of_run(folder: str | os.PathLike) -> int:
    """In how many shares the run in a folder divides its steps.

    Raises:
        ValueError: its ``config.json`` doesn't say so.
    """
    path = configuration_path(folder)
    try:
        shares = json.loads(path.read_text())["options"]["shares"]
    except (OSError, KeyError, TypeError, ValueError):
        shares = None
    if not isinstance(shares, int) or shares < 1:
        raise ValueError(f"{path}: doesn't say in how many shares the run divides its steps; give --shares")
    return shares


def write_json(path: str | os.PathLike, value: dict) -> None:
    """Write a JSON file for people and programs; whole or not at all."""
    with written_whole(path) as file:
        file.write(json.dumps(value, indent=2).encode() + b"\n")


def described(options: argparse.Namespace, **more) -> dict:
    """Everything that a run came from: its options, versions, machine and the state of the checkout it was started
    in."""
    device = torch.device(options.device)
    return {
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()},
        **more,
        "versions": {
            "ringnet_ext": __version__, "torch": torch.__version__, "cuda": torch.version.cuda, "numpy": np.__version__,
            "opencv": cv2.__version__, "python": platform.python_version(),
        },
        "machine": {
            "system": platform.platform(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
            "threads": torch.get_num_threads(),
        },
        "git": _git_state(),
    }  # fmt: skip


def _git_state() -> dict | None:
    """The commit of the current directory and the files that differ from it; None where there is no git checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10).stdout

    try:
        return {"commit": git("rev-parse", "HEAD").strip(), "changed": git("status", "--porcelain").splitlines()}
    except (OSError, subprocess.SubprocessError):
        return None
