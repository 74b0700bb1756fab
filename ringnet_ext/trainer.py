"""The ring trainer."""

from __future__ import annotations

import copy
import csv
import dataclasses
import io
import math
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from .data.augment import crop
from .data.faces import FaceSet
from .data.rings import RingSampler
from .flame.files import written_whole
from .losses import coefficient_norm, landmark_loss, ring_shape_loss
from .model import RingNet

_LOSSES = ("landmarks", "ring", "shape", "expression")


@dataclass(frozen=True)
class TrainingSettings:
    """How to train. The weights of the losses and the margin are the paper's."""

    steps: int
    rings_per_step: int = 8
    ring_size: int = 6
    learning_rate: float = 3e-3
    beta2: float = 0.98
    weight_decay: float = 0.01
    warmup_steps: int = 50
    final_learning_rate: float = 0.01  # as a fraction, reached along a cosine
    gradient_clip: float | None = 5.0  # norm of the whole gradient; None for none
    ring_weight: float = 1.0
    landmark_weight: float = 60.0
    shape_weight: float = 1e-4
    expression_weight: float = 1e-4
    margin: float = 0.5
    readout_weight: float = 0.0  # of the L1 distance of the landmarks that a linear layer reads off the features
    workers: int = 1  # threads that share a step's rings, each with batch statistics of its own
    checkpoint_steps: int = 250
    seed: int = 0

    def __post_init__(self):
        if self.workers < 1 or self.rings_per_step % self.workers:
            raise ValueError(f"workers: expected a divisor of the {self.rings_per_step} rings of a step, got {self.workers}")

    def learning_rate_at(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        low = self.final_learning_rate
        return self.learning_rate * (low + (1 - low) * (1 + math.cos(math.pi * progress)) / 2)


class Trainer:
    """Trains a model in a run folder.

    The folder holds ``last.safetensors`` (the state to resume from) with the one before it, ``best.safetensors`` (the
    model with the lowest validation loss) and ``history.csv``. Everything random in a step follows from (seed, step), so
    a resumed run takes the same steps as one that was never interrupted.

    Args:
        model: the network to train, on its device.
        faces, validation: training faces, and faces of other people.
        settings: see :class:`TrainingSettings`.
        folder: the run folder; made if missing.
    """

    def __init__(
        self, model: RingNet, faces: FaceSet, validation: FaceSet, settings: TrainingSettings, folder: str | os.PathLike
    ):
        self.model, self.faces, self.validation = model, faces, validation
        self.settings, self.folder = settings, Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.sampler = RingSampler(faces.identity, settings.ring_size, settings.rings_per_step, settings.seed)
        count = max(1, min(32, len(np.unique(validation.identity))))
        self._validation_rings = RingSampler(validation.identity, settings.ring_size, count, 0).rings(0)
        self.parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=settings.learning_rate, betas=(0.9, settings.beta2),
            weight_decay=settings.weight_decay, fused=True,
        )  # fmt: skip
        if settings.workers > 1 and model.configuration["dropout"] > 0:
            raise ValueError("workers: threads share one random generator, so more than one worker needs dropout 0")
        # A worker has the same parameters and head, and running statistics of its own. Those of the first are kept.
        shared = {id(value): value for value in (*model.parameters(), model.flame, model.head)}
        self.replicas = [model, *(copy.deepcopy(model, dict(shared)) for _ in range(settings.workers - 1))]
        self.step = 0
        self.best = math.inf
        self.history: list[dict[str, float]] = []

    def losses(
        self, model: RingNet, images: torch.Tensor, landmarks: torch.Tensor, confidence: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The terms of the loss of (rings R, ...) images, unweighted, and their weighted sum as ``loss``."""
        settings = self.settings
        features = model.encoder(images)
        params = model.regress(features)
        terms = {
            "landmarks": landmark_loss(model.landmarks(params), landmarks, confidence),
            "ring": ring_shape_loss(params.shape.unflatten(0, (-1, settings.ring_size)), settings.margin),
            "shape": coefficient_norm(params.shape),
            "expression": coefficient_norm(params.expression),
        }
        weights = (settings.landmark_weight, settings.ring_weight, settings.shape_weight, settings.expression_weight)
        terms["loss"] = sum(weight * terms[name] for weight, name in zip(weights, _LOSSES, strict=True))
        if model.readout is not None and model.training:
            read = model.readout(features).unflatten(1, (-1, 2))
            terms["loss"] = terms["loss"] + settings.readout_weight * landmark_loss(read, landmarks, confidence)
        return terms

    def train(self) -> bool:
        """Train to the last step, or until SIGINT or SIGTERM asks to stop; both end with a checkpoint.

        Returns:
            True if training is complete, False if it was asked to stop.
        """
        settings = self.settings
        device = next(iter(self.parameters.values())).device
        bar = tqdm(total=settings.steps, initial=self.step, desc="training", unit="step", disable=None)
        sums = dict.fromkeys((*_LOSSES, "loss"), 0.0)
        summed, since = 0, time.perf_counter()
        with _stop_requests() as stop, ThreadPoolExecutor(1) as loader, ThreadPoolExecutor(settings.workers) as pool, bar:
            upcoming = loader.submit(self._batch, self.step) if self.step < settings.steps else None
            while self.step < settings.steps and not stop:
                batch = upcoming.result()
                if self.step + 1 < settings.steps:
                    upcoming = loader.submit(self._batch, self.step + 1)
                terms = self._update(pool, *(tensor.to(device) for tensor in batch))
                self.step += 1
                bar.update()
                if not math.isfinite(terms["loss"]):
                    raise FloatingPointError(
                        f"step {self.step}: the loss is {terms['loss']}; resume from {self.folder} with a lower "
                        "learning rate"
                    )
                for name in sums:
                    sums[name] += terms[name]
                summed += 1
                if self.step % settings.checkpoint_steps == 0 or self.step == settings.steps:
                    seconds = time.perf_counter() - since
                    row = {"step": self.step, "learning_rate": settings.learning_rate_at(self.step - 1)}
                    row |= {name: value / summed for name, value in sums.items()}
                    row |= {f"validation_{name}": value for name, value in self._validate(device).items()}
                    row["images_per_second"] = summed * settings.rings_per_step * settings.ring_size / seconds
                    self.history.append(row)
                    bar.set_postfix({"loss": f"{row['loss']:.3f}", "held out": f"{row['validation_loss']:.3f}"})
                    if row["validation_loss"] < self.best:
                        self.best = row["validation_loss"]
                        self.model.save(self.folder / "best.safetensors")
                    self.save()
                    sums, summed = dict.fromkeys(sums, 0.0), 0
                    since = time.perf_counter()
        if stop:
            self.save()
        return not stop

    def _batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rings = self.sampler.rings(step)
        random = np.random.default_rng([self.settings.seed, 2, step])
        return crop(self.faces, rings, self.model.encoder.input_size, random)

    def _update(self, pool: ThreadPoolExecutor, *batch: torch.Tensor) -> dict[str, float]:
        """One optimiser step. Returns the terms of the loss, averaged over the workers."""
        settings = self.settings
        torch.manual_seed(settings.seed * 1_000_003 + self.step)  # for dropout
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate_at(self.step)
        shares = zip(*(tensor.chunk(settings.workers) for tensor in batch), strict=True)
        if settings.workers == 1:
            done = [self._gradients(self.model, *next(shares))]
        else:
            done = [future.result() for future in [
                pool.submit(self._gradients, replica, *share) for replica, share in zip(self.replicas, shares, strict=True)
            ]]  # fmt: skip
        (terms, gradients), *others = done
        for _, more in others:  # in the order of the workers, whichever was first
            torch._foreach_add_(gradients, more)
        for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        if settings.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), settings.gradient_clip)
        self.optimizer.step()
        return {name: sum(float(part[name]) for part, _ in done) / len(done) for name in terms}

    def _gradients(self, model: RingNet, *share: torch.Tensor) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
        """A worker's part of a step: its losses, and the gradients of its part of the mean loss."""
        model.train()
        terms = self.losses(model, *share)
        gradients = torch.autograd.grad(terms["loss"] / self.settings.workers, list(self.parameters.values()))
        return {name: value.detach() for name, value in terms.items()}, list(gradients)

    @torch.no_grad()
    def _validate(self, device) -> dict[str, float]:
        self.model.eval()
        images, landmarks, confidence = crop(self.validation, self._validation_rings, self.model.encoder.input_size)
        terms = self.losses(self.model, images.to(device), landmarks.to(device), confidence.to(device))
        return {name: float(value) for name, value in terms.items()}

    def save(self) -> None:
        """Write ``last.safetensors`` and ``history.csv``; the last but one stays as ``previous.safetensors``."""
        tensors = self.model.checkpoint_tensors()
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
        facts = self.model.checkpoint_facts()
        facts["trainer"] = {
            "step": self.step, "best": self.best, "history": self.history,
            "settings": dataclasses.asdict(self.settings),
        }  # fmt: skip
        last, previous = self.folder / "last.safetensors", self.folder / "previous.safetensors"
        if last.exists():
            second_name = previous.with_suffix(".tmp")
            second_name.unlink(missing_ok=True)
            os.link(last, second_name)
            os.replace(second_name, previous)
        write_checkpoint(last, tensors, facts)
        write_history(self.folder / "history.csv", self.history)

    def resume(self) -> None:
        """Continue from the folder's last checkpoint, or from the one before if the last is damaged.

        Raises:
            FileNotFoundError: there is none.
            CheckpointError: both are damaged, or they are of another model or another configuration.
        """
        for leftover in self.folder.glob(".*.tmp"):  # of a run that was killed while it wrote
            leftover.unlink()
        last, previous = self.folder / "last.safetensors", self.folder / "previous.safetensors"
        try:
            tensors, facts = read_checkpoint(last)
        except CheckpointError:
            if not previous.exists():
                raise
            tensors, facts = read_checkpoint(previous)
        state = facts.get("trainer")
        if state is None:
            raise CheckpointError(f"{last}: a model, but not the state of a training run")
        settings = dataclasses.asdict(self.settings)
        changed = [name for name in settings if settings[name] != state["settings"].get(name)]
        if changed:
            names = ", ".join(f"{name} {state['settings'].get(name)} -> {settings[name]}" for name in changed)
            raise CheckpointError(f"{last}: a run is resumed with the settings it began with, and these differ: {names}")
        own = self.model.checkpoint_tensors()
        missing = [name for name in own if name not in tensors or tensors[name].shape != own[name].shape]
        if missing:
            raise CheckpointError(f"{last}: a run of another model: {', '.join(missing[:3])} differ")
        self.model.load_state_dict({name: tensors[name] for name in own}, strict=False)
        for name, parameter in self.parameters.items():
            keys = {key: f"optimizer.{key}.{name}" for key in ("step", "exp_avg", "exp_avg_sq")}
            if all(stored in tensors for stored in keys.values()):
                # The averages in the parameter's memory format, which the fused optimiser takes for granted.
                moments = {key: tensors[stored].to(parameter.device) for key, stored in keys.items()}
                for key in ("exp_avg", "exp_avg_sq"):
                    moments[key] = torch.empty_like(parameter).copy_(moments[key])
                self.optimizer.state[parameter] = moments
        self.step, self.best, self.history = state["step"], state["best"], state["history"]


def write_history(path: Path, history: list[dict[str, float]]) -> None:
    """The rows as CSV, columns named in the first line."""
    if not history:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, history[0].keys())
    writer.writeheader()
    writer.writerows({key: f"{value:.6g}" for key, value in row.items()} for row in history)
    with written_whole(path) as file:
        file.write(text.getvalue().encode())


@contextmanager
def _stop_requests():
    """A list that becomes true once SIGINT or SIGTERM has come; a second one interrupts at once."""
    requests: list[int] = []

    def note(number, frame):
        if requests:
            raise KeyboardInterrupt
        requests.append(number)

    try:
        earlier = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread, where no signal arrives
        earlier = {}
    try:
        yield requests
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
