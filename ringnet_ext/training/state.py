"""What a checkpoint holds of a training run, beside the model, so that it can be continued bit for bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..files.checkpoint import CheckpointError
from ..network.ringnet import described_head, same_head
from .run_folder import configuration_path

if TYPE_CHECKING:
    from .trainer import Trainer

_MOMENTS = ("exp_avg", "exp_avg_sq")


def state_of(trainer: Trainer) -> tuple[dict[str, torch.Tensor], dict]:
    """A trainer as tensors and JSON-able facts."""
    tensors = trainer.model.checkpoint_tensors()
    if trainer.average is not None:
        tensors |= {f"average.{name}": value for name, value in trainer.average.checkpoint_tensors().items()}
    for name, parameter in trainer.parameters.items():
        for key, value in trainer.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value
    facts = trainer.model.checkpoint_facts()
    facts["trainer"] = {
        "step": trainer.step,
        "best": trainer.best,
        "history": trainer.history,
        "sums": trainer.sums,
        "summed": trainer.summed,
        "scaler": trainer.scaler.state_dict(),
        "faces": trainer.faces.fingerprint(),
        "settings": dataclasses.asdict(trainer.settings),
    }
    return tensors, facts


def restore(trainer: Trainer, path: Path, tensors: dict[str, torch.Tensor], facts: dict) -> None:
    """Bring a trainer into the state of a checkpoint.

    Raises:
        CheckpointError: it is of another model, head, faces or configuration, or other processes have read
            another one.
    """
    state = facts.get("trainer")
    if state is None:
        raise CheckpointError(f"{path}: a model, but not the state of a training run")
    _require_same_run(trainer, path, state, facts, tensors)
    for model, prefix in ((trainer.model, ""), (trainer.average, "average.")):
        if model is None:
            continue
        own = model.checkpoint_tensors()
        missing = [
            name for name in own if prefix + name not in tensors or tensors[prefix + name].shape != own[name].shape
        ]
        if missing:
            raise CheckpointError(f"{path}: a run of another model: {', '.join(missing[:3])} differ")
        model.load_state_dict({name: tensors[prefix + name] for name in own}, strict=False)
    for name, parameter in trainer.parameters.items():
        keys = {key: f"optimizer.{key}.{name}" for key in ("step", *_MOMENTS)}
        if all(stored in tensors for stored in keys.values()):
            moments = {key: tensors[stored].to(parameter.device) for key, stored in keys.items()}
            # The averages in the parameter's memory format, which the fused optimiser takes for granted.
            moments |= {key: torch.empty_like(parameter).copy_(moments[key]) for key in _MOMENTS}
            trainer.optimizer.state[parameter] = moments
    read = torch.tensor([float(state["step"])], device=trainer.device)
    trainer.processes.add_up([read])
    if read.item() != trainer.processes.count * state["step"]:
        raise CheckpointError(f"{path}: other processes have read another one; all need the same run folder")
    trainer.scaler.load_state_dict(state["scaler"])
    trainer.step, trainer.best, trainer.history = state["step"], state["best"], state["history"]
    trainer.sums, trainer.summed = state["sums"], state["summed"]


def _require_same_run(trainer: Trainer, path: Path, state: dict, facts: dict, tensors: dict) -> None:
    settings = dataclasses.asdict(trainer.settings) | trainer.model.configuration
    before = state["settings"] | facts["model"]
    changed = [name for name in settings if settings[name] != before.get(name)]
    if changed:
        names = ", ".join(f"{name} {before.get(name)} -> {settings[name]}" for name in changed)
        file = configuration_path(trainer.folder)
        raise CheckpointError(
            f"{path}: a run is resumed with the settings it began with, and these differ: {names}"
            + (f"; --config {file} repeats those it began with" if file.is_file() else "")
        )
    if not same_head(trainer.model, facts["head"], tensors):
        raise CheckpointError(
            f"{path}: a run is resumed with the head it began with, {described_head(facts['head'])}; give it with "
            "--head, in Python with head=, and none where it is the built-in one"
        )
    if state["faces"] != trainer.faces.fingerprint():
        raise CheckpointError(
            f"{path}: a run is resumed with the faces it began with, and these are others (of photographs: the set has "
            "changed, or the share that is held out)"
        )
