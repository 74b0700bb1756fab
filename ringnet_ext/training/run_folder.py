"""The folder of a run: its checkpoints, and the facts that it came from."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
from pathlib import Path

import cv2
import numpy as np
import torch

from .._version import __version__


def checkpoints(folder: str | os.PathLike) -> list[Path]:
    """The checkpoints that a run folder holds, oldest first."""
    return sorted((Path(folder) / "checkpoints").glob("step-*.safetensors"))


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
