"""The ring trainer."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import signal
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..data.augment import crop
from ..data.face_set import FaceSet
from ..data.rings import RingSampler
from ..files.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from ..files.whole import remove_leftovers
from ..network.encoder import to_input
from ..network.ringnet import RingNet
from ..progress import progress
from .history import write_history
from .losses import coefficient_norm, landmark_loss, ring_shape_loss
from .processes import Processes
from .run_folder import checkpoints
from .settings import PRECISIONS, Execution, TrainingSettings

_LOSSES = ("landmarks", "ring", "shape", "expression")
_MOMENTS = ("exp_avg", "exp_avg_sq")


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

        if settings.shares % self.processes.count:
            raise ValueError(
                f"shares: expected a multiple of the {self.processes.count} processes, got {settings.shares}"
            )
        shares = settings.shares // self.processes.count
        self._first_share = shares * self.processes.rank
        # Each share has the same parameters and head, and running statistics of its own. Those of the first are kept.
        self.replicas = [model, *(self._copy(share_parameters=True) for _ in range(shares - 1))]
        one_random_generator = model.configuration["dropout"] > 0
        if one_random_generator and execution.workers > 1:
            raise ValueError("workers: threads share one random generator, so more than one needs dropout 0")
        one_after_the_other = one_random_generator or self.device.type != "cpu" or execution.compile
        self.workers = execution.workers or (1 if one_after_the_other else min(shares, torch.get_num_threads()))
        self.average = self._copy(share_parameters=False) if settings.ema else None
        # A function of encoder and images: compiled once for all shares, which differ in their running statistics.
        self._encode = torch.compile(_encode) if execution.compile else _encode
        self.step = 0
        self.best = math.inf
        self.history: list[dict[str, float]] = []
        self._sums, self._summed = dict.fromkeys((*_LOSSES, "loss"), 0.0), 0  # since the last row of the history

    def _copy(self, share_parameters: bool) -> RingNet:
        shared = (*(self.model.parameters() if share_parameters else ()), self.model.flame, self.model.head)
        return copy.deepcopy(self.model, {id(value): value for value in shared})

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
        terms["loss"] = sum(weight * terms[name] for weight, name in zip(weights, _LOSSES, strict=True))
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
            _stop_requests() as requests, ThreadPoolExecutor(1) as loader, ThreadPoolExecutor(self.workers) as pool,
            self._events() as events, bar,
        ):  # fmt: skip
            steps = iter(range(self.step, settings.steps))
            upcoming = deque()
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
                self._sums = {name: self._sums[name] + terms[name] for name in self._sums}
                self._summed, timed = self._summed + 1, timed + 1
                if self.step % settings.checkpoint_steps == 0 or self.step == settings.steps:
                    seconds = time.perf_counter() - since
                    if leads:
                        self._report(timed / seconds, waited / seconds, bar, events)
                        self.save()
                    self._sums, self._summed = dict.fromkeys(self._sums, 0.0), 0
                    since, waited, timed = time.perf_counter(), 0.0, 0
            for batch in upcoming:
                batch.cancel()
        if self._summed and leads:  # stopped between two checkpoints
            self.save()
        return self.step == settings.steps

    def _batch(self, step: int) -> list[torch.Tensor]:
        """This process's images of a step, with their landmarks and confidences."""
        settings = self.settings
        random = np.random.default_rng([settings.seed, 2, step])
        own = settings.rings_per_step // self.processes.count
        own = slice(own * self.processes.rank, own * (self.processes.rank + 1))
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
        gradients = report = None
        # In the order of the shares, whichever was first.
        for terms, more in (map if self.workers == 1 else pool.map)(self._gradients, *tasks):
            if gradients is None:
                gradients, report = more, terms
            else:
                torch._foreach_add_(gradients, more)
                report = {name: report[name] + terms[name] for name in report}
        report = torch.stack([*report.values(), torch.full((), float(stop), device=self.device)])
        self.processes.add_up([*gradients, report])
        for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        if settings.gradient_clip is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), settings.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._follow()
        *terms, stops = report.tolist()
        return {name: term / settings.shares for name, term in zip(self._sums, terms, strict=True)}, stops > 0

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

    def _follow(self) -> None:
        """The average of the weights follows them, faster in the beginning."""
        if self.average is None:
            return
        rate = 1 - min(self.settings.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            ours, theirs = ([*model.parameters(), *model.encoder.buffers()] for model in (self.average, self.model))
            pairs = [pair for pair in zip(ours, theirs, strict=True) if pair[0].is_floating_point()]
            torch._foreach_lerp_([own for own, _ in pairs], [value for _, value in pairs], rate)

    def _report(self, steps_per_second: float, waiting: float, bar: tqdm, events) -> None:
        """A row of the history, and the model if it is the best so far."""
        row = {"step": self.step, "learning_rate": self.settings.learning_rate_at(self.step - 1)}
        row |= {name: value / self._summed for name, value in self._sums.items()}
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

    @contextmanager
    def _events(self):
        """Where TensorBoard's events go, or None."""
        if not self.execution.tensorboard or self.processes.rank:
            yield None
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(f"tensorboard: {error}; pip install tensorboard") from None
        with SummaryWriter(os.fspath(self.folder / "tensorboard"), purge_step=self.step + 1) as writer:
            yield writer

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        model = (self.average or self.model).eval()
        batch = crop(self.validation, self._validation_rings, model.encoder.input_size)
        terms = self.losses(model, *(tensor.to(self.device) for tensor in batch))
        return {name: float(value) for name, value in terms.items()}

    def save(self) -> None:
        """Write a checkpoint and ``history.csv``, and remove the oldest checkpoint if there are enough."""
        tensors = self.model.checkpoint_tensors()
        if self.average is not None:
            tensors |= {f"average.{name}": value for name, value in self.average.checkpoint_tensors().items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
        facts = self.model.checkpoint_facts()
        facts["trainer"] = {
            "step": self.step, "best": self.best, "history": self.history, "sums": self._sums, "summed": self._summed,
            "scaler": self.scaler.state_dict(), "faces": self.faces.fingerprint(),
            "settings": dataclasses.asdict(self.settings),
        }  # fmt: skip
        path = self.folder / "checkpoints" / f"step-{self.step:08d}.safetensors"
        path.parent.mkdir(exist_ok=True)
        write_checkpoint(path, tensors, facts)
        for old in checkpoints(self.folder)[: -self.execution.keep]:
            old.unlink()
        write_history(self.folder / "history.csv", self.history)

    def resume(self) -> None:
        """Continue from the folder's newest checkpoint that is not damaged.

        Raises:
            FileNotFoundError: there is none.
            CheckpointError: all are damaged, or they are of another model, other faces or another configuration.
        """
        path, tensors, facts = self._newest()
        state = facts.get("trainer")
        if state is None:
            raise CheckpointError(f"{path}: a model, but not the state of a training run")
        settings = dataclasses.asdict(self.settings) | self.model.configuration
        before = state["settings"] | facts["model"]
        changed = [name for name in settings if settings[name] != before.get(name)]
        if changed:
            names = ", ".join(f"{name} {before.get(name)} -> {settings[name]}" for name in changed)
            raise CheckpointError(
                f"{path}: a run is resumed with the settings it began with, and these differ: {names}"
            )
        if state["faces"] != self.faces.fingerprint():
            raise CheckpointError(f"{path}: a run is resumed with the faces it began with, and these are others")
        for model, prefix in ((self.model, ""), (self.average, "average.")):
            if model is None:
                continue
            own = model.checkpoint_tensors()
            missing = [
                name for name in own if prefix + name not in tensors or tensors[prefix + name].shape != own[name].shape
            ]
            if missing:
                raise CheckpointError(f"{path}: a run of another model: {', '.join(missing[:3])} differ")
            model.load_state_dict({name: tensors[prefix + name] for name in own}, strict=False)
        for name, parameter in self.parameters.items():
            keys = {key: f"optimizer.{key}.{name}" for key in ("step", *_MOMENTS)}
            if all(stored in tensors for stored in keys.values()):
                moments = {key: tensors[stored].to(parameter.device) for key, stored in keys.items()}
                # The averages in the parameter's memory format, which the fused optimiser takes for granted.
                moments |= {key: torch.empty_like(parameter).copy_(moments[key]) for key in _MOMENTS}
                self.optimizer.state[parameter] = moments
        read = torch.tensor([float(state["step"])], device=self.device)
        self.processes.add_up([read])
        if read.item() != self.processes.count * state["step"]:
            raise CheckpointError(f"{path}: other processes have read another one; all need the same run folder")
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.best, self.history = state["step"], state["best"], state["history"]
        self._sums, self._summed = state["sums"], state["summed"]

    def _newest(self) -> tuple[Path, dict[str, torch.Tensor], dict]:
        if self.processes.rank == 0:
            remove_leftovers(self.folder, self.folder / "checkpoints")
        *older, newest = checkpoints(self.folder) or [self.folder / "checkpoints" / "step-*.safetensors"]
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


def _encode(encoder: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    return encoder(images)


@contextmanager
def _stop_requests():
    """A list that becomes true once SIGINT or SIGTERM has come. Ctrl-C under torchrun sends both, and the impatient
    press it
    twice: only a third SIGINT interrupts at once, without a checkpoint."""
    requests: list[int] = []

    def note(number, frame):
        requests.append(number)
        interrupts = requests.count(signal.SIGINT)
        if interrupts == 2:
            tqdm.write(
                "stopping after this step, with a checkpoint; once more, and it stops at once without one", sys.stderr
            )
        elif interrupts > 2:
            raise KeyboardInterrupt

    try:
        earlier = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread, where no signal arrives
        earlier = {}
    try:
        yield requests
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
