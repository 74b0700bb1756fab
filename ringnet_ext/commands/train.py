"""``python -m ringnet_ext.train``: train RingNet; without arguments, on the built-in head and synthetic faces."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import math
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch

from ..data.augment import crop
from ..data.face_set import FaceSet
from ..data.photographs import hold_out, load_photographs
from ..data.synthetic import SyntheticFaces
from ..detection.squares import INPUT_SIZE, fit_square
from ..evaluation.photographs import PhotographReport, evaluate_photographs
from ..evaluation.synthetic import Report, evaluate
from ..files.errors import explained
from ..files.images import write_image
from ..files.whole import output_folder, written_whole
from ..flame import FlameModel, builtin_head
from ..flame.sources import require_landmarks
from ..inference.framing import calibrated
from ..inference.panels import reconstructions
from ..inference.reconstruction import RingNet
from ..network.encoder import ENCODERS, PRETRAINED
from ..training.history import write_curves
from ..training.processes import Processes, joined_processes, restarted
from ..training.run_folder import checkpoints, described
from ..training.settings import COMPACT_SCALE, PRESETS, Execution, TrainingSettings
from ..training.trainer import Trainer
from .option_files import file_arguments
from .options import STOPPED, OptionError, Parser, command, path, real, whole

EXAMPLES = 8


def _parser() -> Parser:
    parser = Parser(
        prog="python -m ringnet_ext.train",
        description="Train RingNet without 3D supervision, from rings of images with identities and 68 landmarks. "
        "Without arguments: the compact encoder on the built-in head and rendered synthetic faces, in a few minutes on "
        "a CPU. Ctrl-C ends the run with a checkpoint; --resume continues it. Under torchrun the same command trains on "
        "several processes, devices or machines.",
    )

    def add(group, flag, default, text, unit="", **kwargs):
        name = flag[2:].replace("-", "_")
        shown = default if default is not None else ", ".join(f"{p}: {PRESETS[p][name]}" for p in PRESETS)
        group.add_argument(flag, default=default, help=f"{text}{f', {unit}' if unit else ''} [{shown}]", **kwargs)

    run = parser.add_argument_group("run")
    run.add_argument("--preset", choices=PRESETS, default="compact", help="compact: minutes on a CPU; paper: ResNet-50 "
                     "and the paper's schedule, for a GPU [compact]")  # fmt: skip
    run.add_argument("--config", type=path, metavar="FILE", help="options from a .toml, .yaml or .json file, by their long "
                     "names; or the config.json of another run. The command line goes before it [none]")  # fmt: skip
    run.add_argument("--out", type=path, help="run folder [runs/PRESET]")
    run.add_argument(
        "--resume", action="store_true", help="continue the run in --out; the other flags must be as before"
    )
    run.add_argument("--overwrite", action="store_true", help="start anew although --out holds a run")
    add(run, "--seed", 0, "seed of everything random", type=whole(0))
    add(run, "--checkpoint-steps", 250, "time between checkpoints (and validations)", "steps", type=whole(1))
    add(run, "--keep", 2, "checkpoints to keep, the newest", type=whole(1))
    run.add_argument("--tensorboard", action="store_true", help="write TensorBoard events too, to OUT/tensorboard")

    speed = parser.add_argument_group("speed (none of these changes what is learnt, but for rounding)")
    speed.add_argument("--device", help="device to train on; under torchrun, cuda is one for each process [cuda if there is "
                       "one, else cpu]")  # fmt: skip
    add(
        speed,
        "--workers",
        0,
        "threads of a process that take its shares of a step; 0 for as many as there are shares and "
        "cores, and for one on a GPU, which takes them one after the other",
        type=whole(0, 1024),
    )
    add(speed, "--threads", 0, "CPU threads of each worker; 0 for as many as there are cores for", type=whole(0, 1024))
    add(speed, "--prefetch", 2, "images made ready ahead", "steps", type=whole(1, 1000))
    speed.add_argument("--compile", action="store_true", help="the encoder with torch.compile")

    photographs = parser.add_argument_group("photographs")
    photographs.add_argument("--data", type=path, metavar="DIR", help="train on this set, made by python -m "
                             "ringnet_ext.prepare, instead of on synthetic faces [none]")  # fmt: skip
    add(
        photographs,
        "--validation-share",
        0.05,
        "part of its people that are held out for validation",
        type=real(above=0, below=1),
    )

    data = parser.add_argument_group("synthetic faces")
    data.add_argument("--head", type=path, help="head model file with landmarks [the built-in head]")
    add(data, "--identities", None, "people to train on", type=whole(2))
    add(data, "--images-per-identity", 6, "images of each of them", type=whole(1))
    add(
        data,
        "--image-size",
        None,
        "side of the rendered images, which are then cropped",
        "pixels",
        type=whole(16, 4096),
    )
    add(data, "--yaw-limit", 39.0, "largest turn of the head, at most 60", "degrees", type=real(0, 60))
    add(
        data,
        "--test-identities",
        240,
        "people held out for the table at the end, 6 images each; 0 for no table",
        type=whole(0),
    )
    data.add_argument("--cache", type=path, help="folder that rendered faces are kept in "
                      "[$RINGNET_CACHE, else ~/.cache/ringnet_ext]")  # fmt: skip

    network = parser.add_argument_group("network")
    add(network, "--encoder", None, "features of the image", choices=list(ENCODERS))
    network.add_argument("--pretrained", metavar="FILE|NAME", help="torchvision's weights for --encoder resnet50: a .pth or "
                         f".safetensors file, or to download: {', '.join(PRETRAINED)} [none: random]")  # fmt: skip
    add(network, "--dropout", None, "of the regressor, a probability", type=real(0, below=1))
    add(network, "--leak", None, "slope below zero of the activations of the regressor and of the compact encoder's features; 0 is "
        "ReLU, of which most may stop learning at a high learning rate", type=real(0, 1))  # fmt: skip

    training = parser.add_argument_group("training")
    add(training, "--steps", None, "optimiser steps", type=whole(1))
    add(training, "--rings", None, "rings in a step, over all processes", type=whole(1))
    add(
        training,
        "--shares",
        None,
        "equal parts of a step, each with batch statistics of its own. Processes, and in them "
        "--workers, divide them among themselves; more shares than those are gradient accumulation. Where not "
        "given, as the run had that is resumed, else so many of these as divide --rings, and a multiple of the processes",
        type=whole(1),
    )
    add(training, "--ring-size", 6, "images in a ring, R: R - 1 of one person, one of another", type=whole(3))
    add(training, "--learning-rate", None, "peak learning rate of AdamW", type=real(above=0))
    add(
        training,
        "--final-learning-rate",
        None,
        "what a cosine brings it down to, as a fraction of the peak",
        type=real(0, 1),
    )
    add(training, "--warmup-steps", None, "over which the learning rate rises to its peak", "steps", type=whole(0))
    add(training, "--beta2", None, "decay of AdamW's average of squared gradients", type=real(0, below=1))
    add(training, "--weight-decay", None, "of AdamW", type=real(0))
    add(
        training,
        "--gradient-clip",
        None,
        "largest norm of the whole gradient; a longer one is shortened",
        type=real(above=0),
    )
    add(training, "--landmark-weight", 60.0, "weight of the landmarks' L1 distance, in half image sides", type=real(0))
    add(
        training,
        "--readout-weight",
        None,
        "weight of the landmarks that a linear layer reads off the features, a help in "
        "training that the paper does without",
        "in half image sides",
        type=real(0),
    )
    training.add_argument("--precision", choices=["float32", "bfloat16", "float16"], default="float32", help="of the encoder; "
                          "the decoder and the losses are in float32 always [float32]")  # fmt: skip
    add(
        training,
        "--ema",
        0.0,
        "decay of an average of the weights, to be validated and kept in their place; 0 for none",
        type=real(0, below=1),
    )
    add(training, "--ring-weight", 1.0, "weight of the shape consistency around the ring", type=real(0))
    add(training, "--shape-weight", 1e-4, "weight of the squared norm of the shape coefficients", type=real(0))
    add(
        training, "--expression-weight", 1e-4, "weight of the squared norm of the expression coefficients", type=real(0)
    )
    add(training, "--margin", 0.5, "margin of the ring loss, in squared coefficients", type=real(0))
    return parser


@command
def main(arguments: list[str]) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.config is not None:
        try:
            options = parser.parse_args([*file_arguments(options.config, parser), *arguments])
        except (OSError, ValueError) as error:
            parser.error(f"--config: {explained(error)}")
    shares_given = options.shares is not None
    for name, value in PRESETS[options.preset].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.out is None:
        options.out = Path("runs") / options.preset
    if options.pretrained is not None and options.encoder != "resnet50":
        parser.error("--pretrained: only --encoder resnet50 takes it")
    if options.test_identities == 1:
        parser.error("--test-identities: expected 0, or at least 2 people to tell apart, got 1")
    if options.tensorboard and importlib.util.find_spec("tensorboard") is None:
        parser.error("--tensorboard: the package is not installed; pip install tensorboard")
    if options.resume and options.overwrite:
        parser.error("--resume and --overwrite: only one of them")
    exists = bool(checkpoints(options.out))
    if restarted():  # what a failed process leaves behind is continued, whatever the flags said at first
        options.resume, options.overwrite = exists, not exists
    if exists and not (options.resume or options.overwrite):
        parser.error(f"--out: {options.out} holds a run already; --resume continues it, --overwrite starts anew")
    if options.resume and not exists:
        parser.error(f"--resume: {options.out} holds no run to continue")
    try:
        with joined_processes(options.device) as processes:
            options.device = str(processes.device)
            if not shares_given and options.resume:  # so that another number of processes may continue
                options.shares = _shares_before(options.out / "config.json")
            elif not shares_given:
                options.shares = math.lcm(math.gcd(options.shares, options.rings), processes.count)
            return _run(options, processes)
    except KeyboardInterrupt:
        kept = checkpoints(options.out)
        how = (
            f"--resume --out {options.out} continues from {kept[-1].name}"
            if kept
            else "no checkpoint had been written yet"
        )
        raise KeyboardInterrupt(f"interrupted; {how}") from None


def _shares_before(configuration: Path) -> int:
    """The shares of the run whose configuration this is."""
    try:
        return whole(1)(str(json.loads(configuration.read_text())["options"]["shares"]))
    except (OSError, KeyError, TypeError, ValueError, argparse.ArgumentTypeError):
        raise ValueError(
            f"{configuration}: doesn't say in how many shares the run divides its steps; give --shares"
        ) from None


def _run(options: argparse.Namespace, processes: Processes) -> int:
    began = time.perf_counter()
    leads = processes.rank == 0
    # What may be wrong is found out before anything is rendered: options, files, folders.
    settings, execution = _settings(options), _execution(options)
    head = builtin_head() if options.head is None else FlameModel.load(options.head)
    require_landmarks(head, f"--head: {options.head}")
    torch.manual_seed(options.seed)
    model = RingNet(
        options.head,
        options.encoder,
        dropout=options.dropout,
        leak=options.leak,
        scale=COMPACT_SCALE if options.preset == "compact" else None,
        readout=options.readout_weight > 0,
    )
    if options.pretrained is not None:
        with processes.one_first():
            model.encoder.load_pretrained(options.pretrained)
    photographs = None if options.data is None else _photographs(options)
    if leads:
        output_folder(options.out, ("checkpoints", "examples"))
        if options.data is None and options.cache is not None:
            output_folder(options.cache, option="--cache")
        if processes.device.type == "cpu":
            _warn_of_days(model, options, processes.count)

    color = ENCODERS[options.encoder].channels == 3
    synthetic = SyntheticFaces(
        identities=options.identities, images_per_identity=options.images_per_identity, size=options.image_size,
        color=color, seed=options.seed, yaw_limit=options.yaw_limit,
    )  # fmt: skip
    held_out = dataclasses.replace(synthetic, split="validation", identities=64, images_per_identity=6)
    if photographs is None:
        with processes.one_first():
            faces, validation = (configuration.load(head, options.cache) for configuration in (synthetic, held_out))
        description = dataclasses.asdict(synthetic)
    else:
        faces, validation = photographs
        description = {"images": len(faces), "held_out": len(validation)} | dataclasses.asdict(faces.augmentation)
    rendered = time.perf_counter()

    trainer = Trainer(model.to(processes.device), faces, validation, settings, options.out, execution, processes)
    torch.set_num_threads(options.threads or max(1, torch.get_num_threads() // trainer.workers))
    if options.resume:
        trainer.resume()
        if leads:
            print(f"resumed at step {trainer.step}")
    elif leads:
        for earlier in ("checkpoints", "tensorboard"):  # of the run that is overwritten
            shutil.rmtree(options.out / earlier, ignore_errors=True)
        (options.out / "best.safetensors").unlink(missing_ok=True)
        more = {"faces": description, "processes": processes.count}
        _write_json(options.out / "config.json", described(options, **more))
    complete = trainer.train()
    if not leads:
        return 0 if complete else STOPPED
    if trainer.history:
        write_curves(options.out / "curves.png", trainer.history)
    if not complete:
        print(f"stopped at step {trainer.step} of {settings.steps}; continue with --resume --out {options.out}")
        return STOPPED
    trained = time.perf_counter()

    best = RingNet.load(options.out, head=options.head).to(processes.device)
    best.limit = calibrated(best, validation)  # of what infer takes for a face
    best.save(options.out / "best.safetensors")
    if options.data is not None:
        _tabulate(options, evaluate_photographs(best, validation))
        _, people = np.unique(validation.identity, return_index=True)
        _show(options, best, validation, people[:EXAMPLES])
    elif options.test_identities:
        test = dataclasses.replace(held_out, split="test", identities=options.test_identities)
        _tabulate(options, evaluate(best, test.load(head, options.cache)))
        people = dataclasses.replace(test, identities=EXAMPLES, images_per_identity=1, size=320, color=True)
        _show(options, best, people.load(head, options.cache), np.arange(EXAMPLES))
    speed, waiting = (
        np.mean([row[name] for row in trainer.history]) for name in ("images_per_second", "waiting_for_data")
    )
    print(
        f"faces {rendered - began:.0f} s, training {trained - rendered:.0f} s ({speed:.0f} images/s, {waiting:.1%} of the "
        f"time waiting for data), table and pictures {time.perf_counter() - trained:.0f} s, in all "
        f"{time.perf_counter() - began:.0f} s; everything is in {options.out}"
    )
    return 0


def _settings(options: argparse.Namespace) -> TrainingSettings:
    if options.rings % options.shares:
        raise OptionError(f"--rings: expected a multiple of the {options.shares} shares of a step, got {options.rings}")
    return TrainingSettings(
        steps=options.steps, rings_per_step=options.rings, ring_size=options.ring_size, shares=options.shares,
        learning_rate=options.learning_rate, final_learning_rate=options.final_learning_rate,
        warmup_steps=options.warmup_steps, beta2=options.beta2, weight_decay=options.weight_decay,
        gradient_clip=options.gradient_clip, readout_weight=options.readout_weight,
        ring_weight=options.ring_weight, landmark_weight=options.landmark_weight, shape_weight=options.shape_weight,
        expression_weight=options.expression_weight, margin=options.margin, precision=options.precision, ema=options.ema,
        checkpoint_steps=options.checkpoint_steps, seed=options.seed,
    )  # fmt: skip


def _execution(options: argparse.Namespace) -> Execution:
    return Execution(
        workers=options.workers, prefetch=options.prefetch, keep=options.keep, compile=options.compile,
        tensorboard=options.tensorboard,
    )  # fmt: skip


def _photographs(options: argparse.Namespace) -> tuple[FaceSet, FaceSet]:
    """To train on, and held out."""
    try:
        return hold_out(load_photographs(options.data), options.validation_share)
    except ValueError as error:
        raise ValueError(f"--data: {options.data}: {error}") from error


def _warn_of_days(model: RingNet, options: argparse.Namespace, processes: int) -> None:
    """Says how long the run will take where that is days, by the time that the encoder takes for one ring."""
    images = torch.zeros(options.ring_size, model.encoder.channels, model.encoder.input_size, model.encoder.input_size)
    model.encoder.eval()  # leaves its statistics and the random numbers as they are
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        torch.autograd.grad(model.encoder(images).sum(), list(model.encoder.parameters()))
        seconds.append(time.perf_counter() - began)
    model.encoder.train()
    days = min(seconds) * options.rings * options.steps / processes / 86400
    if days > 1:
        print(
            f"warning: {options.steps:,} steps of {options.rings} rings with --encoder {options.encoder} take about {days:.0f} "
            "days on this CPU; it is a job for a GPU (--device cuda). --preset compact takes minutes here",
            file=sys.stderr,
        )


def _tabulate(options: argparse.Namespace, report: Report | PhotographReport) -> None:
    """The held-out table."""
    print("\n".join(report.lines()))
    _write_json(options.out / "report.json", dataclasses.asdict(report) | {"intra_inter": report.intra_inter})


def _show(options: argparse.Namespace, model: RingNet, faces: FaceSet, indices: np.ndarray) -> None:
    """Pictures of held-out people, and of their reconstructions."""
    images, _, _ = crop(faces, indices[:, None], INPUT_SIZE)
    pixels = images.permute(0, 2, 3, 1).numpy()
    (options.out / "examples").mkdir(exist_ok=True)
    for index, image in enumerate(pixels):
        write_image(options.out / "examples" / f"{index}.png", image)
    write_image(
        options.out / "reconstructions.png", reconstructions([model.reconstruct(fit_square(image)) for image in pixels])
    )


def _write_json(file_path: Path, value: dict) -> None:
    with written_whole(file_path) as file:
        file.write(json.dumps(value, indent=2).encode() + b"\n")
