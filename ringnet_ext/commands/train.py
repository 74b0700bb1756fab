"""``ringnet train``: train RingNet; without arguments, on the built-in head and synthetic faces."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import math
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

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
from ..files.whole import output_folder
from ..flame import FlameModel, builtin_head
from ..flame.sources import require_landmarks
from ..inference.framing import calibrated
from ..inference.panels import reconstructions
from ..inference.reconstruction import Reconstruction
from ..inference.ringnet import RingNet
from ..network.encoder import ENCODERS, PRETRAINED, ResNet50
from ..training.duration import days_of_training
from ..training.history import write_curves
from ..training.processes import Processes, joined_processes, restarted
from ..training.run_folder import (
    alone_in,
    begin_run,
    checkpoints,
    configuration_path,
    described,
    shares_of_run,
    write_json,
)
from ..training.settings import PRECISIONS, PRESETS, Execution, Preset, TrainingSettings
from ..training.trainer import Trainer
from .option_files import file_arguments
from .options import (
    STOPPED,
    OptionError,
    Parser,
    add_device,
    add_head,
    add_out,
    add_seed,
    add_threads,
    called,
    command,
    path,
    real,
    use_threads,
    whole,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

EXAMPLES = 8
#: Options that have another name than the setting that they decide.
_OPTIONS = {"rings_per_step": "rings", "size": "image_size"}
Settings = TypeVar("Settings", bound="DataclassInstance")


def _by_option(preset: Preset) -> dict[str, Any]:
    """The settings that a preset stands for, by the names of the options that decide them."""
    parts = (preset.network, preset.training, preset.faces, Execution())
    return {_OPTIONS.get(name, name): value for part in parts for name, value in vars(part).items()}


def _chosen(settings: Settings, options: argparse.Namespace) -> Settings:
    """The settings as the options have them; those that no option decides as they are."""
    given = {name: _OPTIONS.get(name, name) for name in vars(settings)}
    return dataclasses.replace(settings, **{
        name: getattr(options, option) for name, option in given.items() if option in options
    })  # fmt: skip


_DEFAULTS = {name: _by_option(preset) for name, preset in PRESETS.items()}


# The command line.


def make_parser() -> Parser:
    parser = Parser(
        prog=called("train"),
        description="Train RingNet without 3D supervision, from rings of images with identities and 68 landmarks. "
        "Without arguments: the compact encoder on the built-in head and rendered synthetic faces, in a few minutes on "
        "a CPU. Ctrl-C ends the run with a checkpoint; --resume continues it. Under torchrun the same command trains "
        "on several processes, devices or machines.",
    )
    _add_run(parser.add_argument_group("run"))
    _add_speed(parser.add_argument_group("speed (none of these changes what is learnt, but for rounding)"))
    _add_photographs(parser.add_argument_group("photographs"))
    _add_faces(parser.add_argument_group("synthetic faces"))
    _add_network(parser.add_argument_group("network"))
    _add_training(parser.add_argument_group("training"))
    return parser


def _add(group, flag: str, text: str, unit: str = "", **kwargs) -> None:
    """An option that decides a setting. Not given, it is None, and the preset decides."""
    values = {name: defaults[flag[2:].replace("-", "_")] for name, defaults in _DEFAULTS.items()}
    shown = {name: "none" if value is None else str(value) for name, value in values.items()}
    if len(set(shown.values())) == 1:
        shown = {"": shown["compact"]}
    default = ", ".join(f"{name}: {value}".removeprefix(": ") for name, value in shown.items())
    group.add_argument(flag, help=f"{text}{f', {unit}' if unit else ''} [{default}]", **kwargs)


def _add_run(group) -> None:
    group.add_argument("--preset", choices=PRESETS, default="compact", help="compact: minutes on a CPU; paper: "
                       "ResNet-50 and the paper's schedule, for a GPU [compact]")  # fmt: skip
    group.add_argument("--config", type=path, metavar="FILE", help="options from a .toml, .yaml or .json file, by "
                       "their long names; or the config.json of another run. The command line goes before it "
                       "[none]")  # fmt: skip
    add_out(group, "run folder [runs/PRESET]")
    group.add_argument("--resume", action="store_true", help="continue the run in --out; the other flags must be as "
                       "before")  # fmt: skip
    group.add_argument("--overwrite", action="store_true", help="start anew although --out holds a run")
    add_seed(group, TrainingSettings.seed)
    _add(group, "--checkpoint-steps", "time between checkpoints (and validations)", "steps", type=whole(1))
    _add(group, "--keep", "checkpoints to keep, the newest", type=whole(1))
    group.add_argument("--tensorboard", action="store_true", help="write TensorBoard events too, to OUT/tensorboard")


def _add_speed(group) -> None:
    add_device(group, "; under torchrun, cuda is one for each process")
    _add(group, "--workers", "threads of a process that take its shares of a step; 0 for as many as there are shares "
         "and cores, and for one on a GPU, which takes them one after the other", type=whole(0, 1024))  # fmt: skip
    add_threads(group)
    _add(group, "--prefetch", "images made ready ahead", "steps", type=whole(1, 1000))
    group.add_argument("--compile", action="store_true", help="the encoder with torch.compile")


def _add_photographs(group) -> None:
    group.add_argument("--data", type=path, metavar="DIR", help="train on this set, made by ringnet prepare, instead "
                       "of on synthetic faces [none]")  # fmt: skip
    group.add_argument("--validation-share", type=real(above=0, below=1), default=0.05, help="part of its people that "
                       "are held out for validation [0.05]")  # fmt: skip


def _add_faces(group) -> None:
    _add(group, "--identities", "people to train on", type=whole(2))
    _add(group, "--images-per-identity", "images of each of them", type=whole(1))
    _add(group, "--image-size", "side of the rendered images, which are then cropped", "pixels", type=whole(16, 4096))
    _add(group, "--yaw-limit", "largest turn of the head, at most 60", "degrees", type=real(0, 60))
    group.add_argument("--test-identities", type=whole(0), default=240, help="people held out for the table at the "
                       "end, 6 images each; 0 for no table [240]")  # fmt: skip
    group.add_argument("--cache", type=path, metavar="DIR", help="folder that rendered faces are kept in "
                       "[$RINGNET_CACHE, else ~/.cache/ringnet_ext]")  # fmt: skip


def _add_network(group) -> None:
    add_head(group, "head model file with landmarks [the built-in head]")
    _add(group, "--encoder", "features of the image", choices=list(ENCODERS))
    group.add_argument("--pretrained", metavar="FILE|NAME", help="torchvision's weights for --encoder resnet50: a .pth "
                       f"or .safetensors file, or to download: {', '.join(PRETRAINED)} [none: random]")  # fmt: skip
    _add(group, "--dropout", "of the regressor, a probability", type=real(0, below=1))
    _add(group, "--leak", "slope below zero of the activations of the regressor and of the compact encoder's features; "
         "0 is ReLU, of which most may stop learning at a high learning rate", type=real(0, 1))  # fmt: skip


def _add_training(group) -> None:
    _add(group, "--steps", "optimiser steps", type=whole(1))
    _add(group, "--rings", "rings in a step, over all processes", type=whole(1))
    _add(group, "--shares", "equal parts of a step, each with batch statistics of its own. Processes, and in them "
         "--workers, divide them among themselves; more shares than those are gradient accumulation. Where not "
         "given, as the run had that is resumed, else so many of these as divide --rings, and a multiple of the "
         "processes", type=whole(1))  # fmt: skip
    _add(group, "--ring-size", "images in a ring, R: R - 1 of one person, one of another", type=whole(3))
    _add(group, "--learning-rate", "peak learning rate of AdamW", type=real(above=0))
    _add(group, "--final-learning-rate", "what a cosine brings it down to, as a fraction of the peak", type=real(0, 1))
    _add(group, "--warmup-steps", "over which the learning rate rises to its peak", "steps", type=whole(0))
    _add(group, "--beta2", "decay of AdamW's average of squared gradients", type=real(0, below=1))
    _add(group, "--weight-decay", "of AdamW", type=real(0))
    _add(group, "--gradient-clip", "largest norm of the whole gradient; a longer one is shortened", type=real(above=0))
    _add(group, "--landmark-weight", "weight of the landmarks' L1 distance, in half image sides", type=real(0))
    _add(group, "--readout-weight", "weight of the landmarks that a linear layer reads off the features, a help in "
         "training that the paper does without", "in half image sides", type=real(0))  # fmt: skip
    _add(
        group,
        "--precision",
        "of the encoder; the decoder and the losses are in float32 always",
        choices=list(PRECISIONS),
    )
    _add(group, "--ema", "decay of an average of the weights, to be validated and kept in their place; 0 for none",
         type=real(0, below=1))  # fmt: skip
    _add(group, "--ring-weight", "weight of the shape consistency around the ring", type=real(0))
    _add(group, "--shape-weight", "weight of the squared norm of the shape coefficients", type=real(0))
    _add(group, "--expression-weight", "weight of the squared norm of the expression coefficients", type=real(0))
    _add(group, "--margin", "margin of the ring loss, in squared coefficients", type=real(0))


def _options(arguments: list[str]) -> argparse.Namespace:
    """The options of the command line, of --config and of the preset, in this order, checked against each other.
    Shares that nobody gave are None."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.config is not None:
        try:
            options = parser.parse_args([*file_arguments(options.config, parser), *arguments])
        except (OSError, ValueError) as error:
            parser.error(f"--config: {explained(error)}")
    for name, value in _DEFAULTS[options.preset].items():
        if name in options and getattr(options, name) is None and name != "shares":
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
    return options


# The run.


@command
def main(arguments: list[str]) -> int:
    options = _options(arguments)
    use_threads(options)
    try:
        with joined_processes(options.device) as processes, ExitStack() as until_done:
            options.device = str(processes.device)
            if options.shares is None and options.resume:  # so that another number of processes may continue
                options.shares = shares_of_run(options.out)
            elif options.shares is None:
                shares = PRESETS[options.preset].training.shares
                options.shares = math.lcm(math.gcd(shares, options.rings), processes.count)
            return _run(options, processes, until_done)
    except KeyboardInterrupt:
        kept = checkpoints(options.out)
        how = f"{_continuing(options)} continues from {kept[-1].name}" if kept else "no checkpoint had been written yet"
        raise KeyboardInterrupt(f"interrupted; {how}") from None


def _run(options: argparse.Namespace, processes: Processes, until_done: ExitStack) -> int:
    began = time.perf_counter()
    leads = processes.rank == 0
    # What may be wrong is found out before anything is rendered: options, files, folders.
    settings, execution = _training_settings(options), _chosen(Execution(), options)
    head = builtin_head() if options.head is None else FlameModel.load(options.head)
    require_landmarks(head, f"--head: {options.head}")
    model = _model(options, processes)
    photographs = None if options.data is None else _photographs(options)
    if leads:
        output_folder(options.out, ("checkpoints", "examples"))
        until_done.enter_context(alone_in(options.out))
        if options.data is None and options.cache is not None:
            output_folder(options.cache, option="--cache")
        if processes.device.type == "cpu":
            _warn_of_days(model, settings, processes.count)
    synthetic = _chosen(SyntheticFaces(color=model.encoder.channels == 3), options)
    if photographs is not None:
        faces, validation = photographs
        description = {"images": len(faces), "held_out": len(validation)} | dataclasses.asdict(faces.augmentation)
    else:
        with processes.one_first():
            faces, validation = (which.load(head, options.cache) for which in (synthetic, _held_out(synthetic)))
        description = dataclasses.asdict(synthetic)
    rendered = time.perf_counter()

    trainer = Trainer(model.to(processes.device), faces, validation, settings, options.out, execution, processes)
    torch.set_num_threads(max(1, torch.get_num_threads() // trainer.workers))
    if options.resume:
        trainer.resume()
        if leads:
            print(f"resumed at step {trainer.step}")
    elif leads:
        begin_run(options.out, described(options, faces=description, processes=processes.count))
    complete = trainer.train()
    if not leads:
        return 0 if complete else STOPPED
    if trainer.history:
        write_curves(options.out / "curves.png", trainer.history)
    if not complete:
        print(f"stopped at step {trainer.step} of {settings.steps}; continue with {_continuing(options)}")
        return STOPPED
    trained = time.perf_counter()

    best = RingNet.load(options.out, head=options.head).to(processes.device)
    best.limit = calibrated(best, validation)  # of what infer takes for a face
    best.save(options.out / "best.safetensors")
    if photographs is not None:
        _test_on_photographs(options, best, validation)
    elif options.test_identities:
        _test_on_synthetic(options, best, head, synthetic)
    speed, waiting = (
        np.mean([row[name] for row in trainer.history]) for name in ("images_per_second", "waiting_for_data")
    )
    print(
        f"faces {rendered - began:.0f} s, training {trained - rendered:.0f} s ({speed:.0f} images/s, {waiting:.1%} of "
        f"the time waiting for data), table and pictures {time.perf_counter() - trained:.0f} s, in all "
        f"{time.perf_counter() - began:.0f} s; everything is in {options.out}"
    )
    return 0


def _continuing(options: argparse.Namespace) -> str:
    """The options that continue a run, which must be all that it began with."""
    return f"--resume --config {configuration_path(options.out)}"


def _training_settings(options: argparse.Namespace) -> TrainingSettings:
    if options.rings % options.shares:
        raise OptionError(f"--rings: expected a multiple of the {options.shares} shares of a step, got {options.rings}")
    return _chosen(PRESETS[options.preset].training, options)


def _model(options: argparse.Namespace, processes: Processes) -> RingNet:
    """The network to train, as it begins."""
    network = _chosen(PRESETS[options.preset].network, options)
    torch.manual_seed(options.seed)
    model = RingNet(options.head, readout=options.readout_weight > 0, **vars(network))
    if options.pretrained is not None:
        assert isinstance(model.encoder, ResNet50)  # the options have been checked
        with processes.one_first():
            model.encoder.load_pretrained(options.pretrained)
    return model


def _photographs(options: argparse.Namespace) -> tuple[FaceSet, FaceSet]:
    """To train on, and held out."""
    try:
        return hold_out(load_photographs(options.data), options.validation_share)
    except ValueError as error:
        raise ValueError(f"--data: {options.data}: {error}") from error


def _held_out(synthetic: SyntheticFaces, split: str = "validation", identities: int = 64) -> SyntheticFaces:
    return dataclasses.replace(synthetic, split=split, identities=identities, images_per_identity=6)


def _warn_of_days(model: RingNet, settings: TrainingSettings, processes: int) -> None:
    days = days_of_training(model, settings, processes)
    if days > 1:
        print(
            f"warning: {settings.steps:,} steps of {settings.rings_per_step} rings with --encoder "
            f"{model.configuration['encoder']} take about {days:.0f} days on this CPU; it is a job for a GPU (--device "
            "cuda). --preset compact takes minutes here",
            file=sys.stderr,
        )


# The table and the pictures at the end.


def _test_on_photographs(options: argparse.Namespace, model: RingNet, validation: FaceSet) -> None:
    _tabulate(options, evaluate_photographs(model, validation))
    _, people = np.unique(validation.identity, return_index=True)
    _show(options, model, validation, people[:EXAMPLES])


def _test_on_synthetic(
    options: argparse.Namespace, model: RingNet, head: FlameModel, synthetic: SyntheticFaces
) -> None:
    test = _held_out(synthetic, "test", options.test_identities)
    _tabulate(options, evaluate(model, test.load(head, options.cache)))
    people = dataclasses.replace(test, identities=EXAMPLES, images_per_identity=1, size=320, color=True)
    _show(options, model, people.load(head, options.cache), np.arange(EXAMPLES))


def _tabulate(options: argparse.Namespace, report: Report | PhotographReport) -> None:
    """The held-out table."""
    print("\n".join(report.lines()))
    write_json(options.out / "report.json", dataclasses.asdict(report) | {"intra_inter": report.intra_inter})


def _show(options: argparse.Namespace, model: RingNet, faces: FaceSet, indices: np.ndarray) -> None:
    """Pictures of held-out people, and of their reconstructions."""
    images, _, _ = crop(faces, indices[:, None], INPUT_SIZE)
    pixels = images.permute(0, 2, 3, 1).numpy()
    (options.out / "examples").mkdir(exist_ok=True)
    for index, image in enumerate(pixels):
        write_image(options.out / "examples" / f"{index}.png", image)
    heads = cast(list[Reconstruction], model.reconstruct([fit_square(image) for image in pixels]))
    write_image(options.out / "reconstructions.png", reconstructions(heads))
