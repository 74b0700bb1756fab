"""The ring trainer."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..data.augment import crop
from ..data.face_set import FaceSet
from ..data.rings import RingSampler
from ..files.checkpoint import write_checkpoint
from ..files.whole import remove_leftovers
from ..network.encoder import to_input
from ..network.ringnet import RingNet
from ..progress import progress
from .copies import average_of, follow, replica
from .history import tensorboard_events, write_history
from .losses import coefficient_norm, landmark_loss, ring_shape_loss
from .processes import Processes
from .run_folder import checkpoint_path, checkpoints, newest_checkpoint
from .settings import PRECISIONS, Execution, TrainingSettings
from .state import restore, state_of
from .stopping import stop_requests

_LOSSES = ("landmarks", "ring", "shape", "expression")


class Trainer:
    """Trains a model in a run folder.

    The folder holds ``checkpoints/``, to resume from, ``best.safetensors`` (the model with the lowest validation loss)
    and ``history.csv``. Everything random in a step follows from (seed, step), so a resumed run takes the same steps as
    one that was never interrupted.

    Args:
        model: the network to train, on its device.
        faces, validation: training faces, and faces of other people.
        settings: see :class:`TrainingSettings`.
        folder: the run folder; made if missing. Of several processes only the first writes to it; all read its
            checkpoints.
        execution: see :class:`Execution`.
        processes: those that train together, see :func:`ringnet_ext.training.processes.joined_processes`.
    """

    def __init__(
        self,
        model: RingNet,
        faces: FaceSet,
        validation: FaceSet,
        settings: TrainingSettings,
        folder: str | os.PathLike,
        execution: Execution = Execution(),
        processes: Processes | None = None,
    ):
        self.model, self.faces, self.validation = model, faces, validation
        model.trained_on = "photographs" if faces.truth is None else "synthetic faces"
        self.settings, self.folder, self.execution = settings, Path(folder), execution
        self.device = next(model.parameters()).device
        self.processes = processes or Processes(self.device)
        if self.processes.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
        self.sampler = RingSampler(faces.identity, settings.ring_size, settings.rings_per_step, settings.seed)
        count = max(1, min(32, len(np.unique(validation.identity))))
        self._validation_rings = RingSampler(validation.identity, settings.ring_size, count, 0).rings(0)
        self.parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=settings.learning_rate, betas=(0.9, settings.beta2),
            weight_decay=settings.weight_decay, fused=True,
        )  # fmt: skip
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "float16")

        if settings.readout_weight > 0 and model.readout is None:
            raise ValueError(
                f"readout_weight: {settings.readout_weight}, and the model has nothing to read the landmarks off its "
                "features with; make it with readout=True, or set the weight to 0"
            )
        if settings.shares % self.processes.count:
            raise ValueError(
                f"shares: expected a multiple of the {self.processes.count} processes, got {settings.shares}"
            )
        shares = settings.shares // self.processes.count
        self._first_share = shares * self.processes.rank
        # Each share has the same parameters and head, and running statistics of its own. Those of the first are kept.
        self.replicas = [model, *(replica(model) for _ in range(shares - 1))]
        one_random_generator = bool(model.configuration["dropout"])
        if one_random_generator and execution.workers > 1:
            raise ValueError("workers: threads share one random generator, so more than one needs dropout 0")
        one_after_the_other = one_random_generator or self.device.type != "cpu" or execution.compile
        self.workers = execution.workers or (1 if one_after_the_other else min(shares, torch.get_num_threads()))
        self.average = average_of(model) if settings.ema else None
        # A function of encoder and images: compiled once for all shares, which differ in their running statistics.
        self._encode = torch.compile(_encode) if execution.compile else _encode
        self.step = 0
        self.best = math.inf
        self.history: list[dict[str, float]] = []
        self.sums, self.summed = dict.fromkeys((*_LOSSES, "loss"), 0.0), 0  # since the last row of the history

    def losses(
        self, model: RingNet, images: torch.Tensor, landmarks: torch.Tensor, confidence: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The terms of the loss of (rings R, ...) uint8 images, unweighted, and their weighted sum as ``loss``."""
        settings = self.settings
        dtype = PRECISIONS[settings.precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            features = self._encode(model.encoder, to_input(images))
            params = model.regress(features)
            read = None
            if model.readout is not None and model.training:
                read = model.readout(features).float().unflatten(1, (-1, 2))
        terms = {
            "landmarks": landmark_loss(model.landmarks(params), landmarks, confidence),
            "ring": ring_shape_loss(params.shape.unflatten(0, (-1, settings.ring_size)), settings.margin),
            "shape": coefficient_norm(params.shape),
            "expression": coefficient_norm(params.expression),
        }
        weights = (settings.landmark_weight, settings.ring_weight, settings.shape_weight, settings.expression_weight)
        first, *more = (weight * terms[name] for weight, name in zip(weights, _LOSSES, strict=True))
        terms["loss"] = sum(more, first)
        if read is not None:
            terms["loss"] = terms["loss"] + settings.readout_weight * landmark_loss(read, landmarks, confidence)
        return terms

    def train(self) -> bool:
        """Train to the last step, or until SIGINT or SIGTERM asks to stop; both end with a checkpoint.

        Returns:
            True if training is complete, False if it was asked to stop.
        """
        settings, leads = self.settings, self.processes.rank == 0
        bar = progress(total=settings.steps, initial=self.step, desc="training", unit="step", show=leads)
        with (
            stop_requests() as requests,
            ThreadPoolExecutor(1) as loader,
            ThreadPoolExecutor(self.workers) as pool,
            self._events() as events,
            bar,
        ):
            steps = iter(range(self.step, settings.steps))
            upcoming: deque[Future] = deque()
            stopped = False
            since, waited, timed = time.perf_counter(), 0.0, 0
            while self.step < settings.steps and not stopped:
                while len(upcoming) <= self.execution.prefetch and (step := next(steps, None)) is not None:
                    upcoming.append(loader.submit(self._batch, step))
                began = time.perf_counter()
                batch = upcoming.popleft().result()
                waited += time.perf_counter() - began
                batch = [tensor.to(self.device, non_blocking=True) for tensor in batch]
                terms, stopped = self._update(pool, batch, bool(requests))
                self.step += 1
                bar.update()
                if not math.isfinite(terms["loss"]):
                    raise FloatingPointError(
                        f"step {self.step}: the loss is {terms['loss']}; start anew with a learning rate lower than "
                        f"{settings.learning_rate:g}"
                    )
                self.sums = {name: self.sums[name] + terms[name] for name in self.sums}
                self.summed, timed = self.summed + 1, timed + 1
                if self.step % settings.checkpoint_steps == 0 or self.step == settings.steps:
                    seconds = time.perf_counter() - since
                    if leads:
                        self._report(timed / seconds, waited / seconds, bar, events)
                    self.sums, self.summed = dict.fromkeys(self.sums, 0.0), 0
                    if leads:
                        self.save()
                    since, waited, timed = time.perf_counter(), 0.0, 0
            for batch in upcoming:
                batch.cancel()
        if self.summed and leads:  # stopped between two checkpoints
            self.save()
        return self.step == settings.steps

    def _batch(self, step: int) -> list[torch.Tensor]:
        """This process's images of a step, with their landmarks and confidences."""
        settings = self.settings
        random = np.random.default_rng([settings.seed, 2, step])
        count = settings.rings_per_step // self.processes.count
        own = slice(count * self.processes.rank, count * (self.processes.rank + 1))
        batch = crop(self.faces, self.sampler.rings(step), self.model.encoder.input_size, random, own)
        return [tensor.pin_memory() if self.device.type == "cuda" else tensor for tensor in batch]

    def _update(
        self, pool: ThreadPoolExecutor, batch: list[torch.Tensor], stop: bool = False
    ) -> tuple[dict[str, float], bool]:
        """One optimiser step. Returns the mean terms of the loss over all shares, and whether any process asked to
        stop."""
        settings = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate_at(self.step)
        numbers = range(self._first_share, self._first_share + len(self.replicas))
        tasks = (self.replicas, numbers, *(tensor.chunk(len(self.replicas)) for tensor in batch))
        # In the order of the shares, whichever was first.
        shares = iter((map if self.workers == 1 else pool.map)(self._gradients, *tasks))
        terms, gradients = next(shares)
        for others, more in shares:
            torch._foreach_add_(gradients, more)
            terms = {name: terms[name] + others[name] for name in terms}
        report = torch.stack([*terms.values(), torch.full((), float(stop), device=self.device)])
        self.processes.add_up([*gradients, report])
        for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        if settings.gradient_clip is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), settings.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            follow(self.average, self.model, settings.ema, self.step)
        *totals, stops = report.tolist()
        return {name: total / settings.shares for name, total in zip(self.sums, totals, strict=True)}, stops > 0

    def _gradients(
        self, model: RingNet, number: int, *share: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
        """A share of a step: its losses, and the gradients of its part of the mean loss."""
        seed = np.random.SeedSequence([self.settings.seed, 3, self.step, number]).generate_state(1, np.uint64)
        torch.manual_seed(int(seed[0]))  # for dropout
        model.train()
        terms = self.losses(model, *share)
        loss = self.scaler.scale(terms["loss"] / self.settings.shares)
        gradients = torch.autograd.grad(loss, list(self.parameters.values()))
        return {name: value.detach() for name, value in terms.items()}, list(gradients)

    def _report(self, steps_per_second: float, waiting: float, bar: tqdm, events) -> None:
        """A row of the history, and the model if it is the best so far."""
        row = {"step": self.step, "learning_rate": self.settings.learning_rate_at(self.step - 1)}
        row |= {name: value / self.summed for name, value in self.sums.items()}
        row |= {f"validation_{name}": value for name, value in self._validate().items()}
        row["images_per_second"] = steps_per_second * self.settings.rings_per_step * self.settings.ring_size
        row["waiting_for_data"] = waiting
        self.history.append(row)
        bar.set_postfix_str(
            f"loss {row['loss']:.3f}, held out {row['validation_loss']:.3f}, {row['images_per_second']:.0f} images/s, "
            f"waiting {waiting:.0%}",
            refresh=sys.stderr.isatty(),  # else with the next line
        )
        if events is not None:
            for name, value in row.items():
                events.add_scalar(name.replace("validation_", "validation/"), value, self.step)
        if row["validation_loss"] < self.best:
            self.best = row["validation_loss"]
            (self.average or self.model).save(self.folder / "best.safetensors")

    def _events(self):
        """Where TensorBoard's events go, or None."""
        if not self.execution.tensorboard or self.processes.rank:
            return nullcontext()
        return tensorboard_events(self.folder / "tensorboard", self.step)

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        model = (self.average or self.model).eval()
        batch = crop(self.validation, self._validation_rings, model.encoder.input_size)
        terms = self.losses(model, *(tensor.to(self.device) for tensor in batch))
        return {name: float(value) for name, value in terms.items()}

    def save(self) -> None:
        """Write a checkpoint and ``history.csv``, and remove the oldest checkpoint if there are enough."""
        write_checkpoint(checkpoint_path(self.folder, self.step), *state_of(self))
        for old in checkpoints(self.folder)[: -self.execution.keep]:
            old.unlink()
        write_history(self.folder / "history.csv", self.history)

    def resume(self) -> None:
        """Continue from the folder's newest checkpoint that is not damaged.

        Raises:
            FileNotFoundError: there is none.
            CheckpointError: all are damaged, or they are of another model, other faces or another configuration.
        """
        if self.processes.rank == 0:
            remove_leftovers(self.folder, self.folder / "checkpoints")
        restore(self, *newest_checkpoint(self.folder))


def _encode(encoder: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    return encoder(images)
