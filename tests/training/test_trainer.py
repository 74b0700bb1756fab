"""The trainer, and the train and infer commands end to end on a small scale."""

import csv
import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from ringnet_ext import RingNet
from ringnet_ext.commands import infer, train
from ringnet_ext.data.synthetic import SyntheticFaces
from ringnet_ext.evaluation.synthetic import shape_errors
from ringnet_ext.files.checkpoint import CheckpointError, read_checkpoint
from ringnet_ext.files.images import read_image, write_image
from ringnet_ext.flame import builtin_head
from ringnet_ext.geometry.alignment import similarity_align
from ringnet_ext.ops import batch_rodrigues
from ringnet_ext.training.run_folder import checkpoints
from ringnet_ext.training.settings import Execution, TrainingSettings
from ringnet_ext.training.trainer import Trainer

SETTINGS = TrainingSettings(
    steps=12, rings_per_step=2, ring_size=4, shares=1, learning_rate=3e-3, checkpoint_steps=4, warmup_steps=2,
    readout_weight=0.0,
)  # fmt: skip
SHARED = dataclasses.replace(SETTINGS, shares=2, readout_weight=10.0, gradient_clip=None)
FACES = SyntheticFaces(identities=8, images_per_identity=4, size=64)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def faces(cache):
    return FACES.load(cache=cache)


def trainer(faces, folder, settings=SETTINGS, dropout=0.3, execution=Execution()):
    torch.manual_seed(0)
    model = RingNet(dropout=dropout, readout=settings.readout_weight > 0)
    return Trainer(model, faces, faces, settings, folder, execution)


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.checkpoint_tensors().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_training_lowers_the_losses_and_writes_the_run(faces, tmp_path):
    # A rate at which the course doesn't depend on the last bits: over seeds the loss falls to 0.80 to 0.87.
    settings = dataclasses.replace(SETTINGS, steps=60, rings_per_step=4, checkpoint_steps=20, learning_rate=1e-3)
    run = trainer(faces, tmp_path, settings, dropout=0.0)
    assert run.train()
    assert run.history[-1]["loss"] < 0.93 * run.history[0]["loss"]
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "best.safetensors", "history.csv"}
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000040.safetensors", "step-00000060.safetensors"]
    with open(tmp_path / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [20, 40, 60]
    assert float(rows[-1]["validation_loss"]) == pytest.approx(run.history[-1]["validation_loss"], rel=1e-4)
    assert same(RingNet.load(tmp_path).checkpoint_tensors(), weights(run)) == (
        run.history[-1]["validation_loss"] == run.best
    )


VARIANTS = {
    "dropout": (SETTINGS, 0.3),
    "two shares": (SHARED, 0.0),
    "average, bfloat16": (dataclasses.replace(SETTINGS, ema=0.9, precision="bfloat16"), 0.3),
    "float16": (dataclasses.replace(SETTINGS, precision="float16"), 0.0),
}


@pytest.mark.parametrize("settings, dropout", VARIANTS.values(), ids=VARIANTS)
def test_resumed_is_uninterrupted_bit_for_bit(faces, tmp_path, settings, dropout):
    whole = trainer(faces, tmp_path / "whole", settings, dropout)
    whole.train()
    for stop in (1, 3, 6):  # 4 is the step of a checkpoint
        folder = tmp_path / str(stop)
        part = trainer(faces, folder, settings, dropout)
        update = part._update

        def stopping(*arguments, part=part, update=update, stop=stop):
            result = update(*arguments)
            if part.step + 1 == stop:
                os.kill(os.getpid(), signal.SIGINT)
            return result

        part._update = stopping
        assert not part.train() and part.step == stop + 1  # the request is noticed in the step after it
        rest = trainer(faces, folder, settings, dropout)
        rest.resume()
        assert rest.step == stop + 1 and rest.train()
        assert same(weights(rest), weights(whole))
        assert [learnt(row) for row in rest.history] == [learnt(row) for row in whole.history]
        assert rest.best == whole.best and rest.scaler.state_dict() == whole.scaler.state_dict()


def learnt(row):
    """A row of the history without what the machine's speed decides."""
    return {name: value for name, value in row.items() if name not in ("images_per_second", "waiting_for_data")}


def test_each_share_has_its_own_statistics_and_a_step_uses_the_mean_of_their_gradients(faces, tmp_path):
    run = trainer(faces, tmp_path, SHARED, dropout=0.0)
    first, second = run.replicas
    assert first is run.model
    assert all(a is b for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert (
        first.flame is second.flame
        and first.encoder.stages[1].running_mean is not second.encoder.stages[1].running_mean
    )
    batch = run._batch(0)
    parts = [run._gradients(model, index, *(tensor.chunk(2)[index] for tensor in batch))[1]
             for index, model in enumerate(run.replicas)]  # fmt: skip
    seen = {}
    run.optimizer.step = lambda: seen.update({name: value.grad.clone() for name, value in run.parameters.items()})
    with ThreadPoolExecutor(2) as pool:
        run._update(pool, batch)
    for gradient, one, other in zip(seen.values(), *parts, strict=True):
        assert torch.equal(gradient, one + other)


def test_who_computes_a_share_does_not_matter(faces, tmp_path):
    settings = dataclasses.replace(SHARED, rings_per_step=4, shares=4)
    runs = [trainer(faces, tmp_path / str(workers), settings, 0.0, Execution(workers=workers)) for workers in (1, 2, 4)]
    for run in runs:
        assert run.train()
    assert all(same(weights(run), weights(runs[0])) for run in runs)
    assert all(learnt(run.history[-1]) == learnt(runs[0].history[-1]) for run in runs)


def test_the_average_of_the_weights_is_validated_and_kept(faces, tmp_path):
    run = trainer(faces, tmp_path, dataclasses.replace(SETTINGS, ema=0.5), dropout=0.0)
    name = "regressor.from_features.weight"
    value, average = run.parameters[name], run.parameters[name].detach().clone()
    update = run._update

    def following(*arguments):
        nonlocal average
        result = update(*arguments)
        decay = min(0.5, (1 + run.step) / (10 + run.step))
        average = decay * average + (1 - decay) * value.detach()
        return result

    run._update = following
    run.train()
    kept = RingNet.load(tmp_path).checkpoint_tensors()
    assert torch.allclose(run.average.checkpoint_tensors()[name], average, atol=1e-6)
    assert not torch.equal(average, value) and run.best == run.history[-1]["validation_loss"]
    assert same(kept, run.average.checkpoint_tensors())


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_has_nearly_the_same_gradients(faces, tmp_path, precision):
    full = trainer(faces, tmp_path / "full", dropout=0.0)
    low = trainer(faces, tmp_path / "low", dataclasses.replace(SETTINGS, precision=precision), dropout=0.0)
    scale = 1.0
    if precision == "float16":
        scale = 256.0  # a new scaler starts at 65536, which overflows, and halves it until nothing does
        low.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    (terms, gradients), (low_terms, low_gradients) = (
        run._gradients(run.model, 0, *run._batch(0)) for run in (full, low)
    )
    assert terms["loss"] != low_terms["loss"]
    assert low_terms["loss"].item() == pytest.approx(terms["loss"].item(), rel=0.01)
    assert all(gradient.dtype == torch.float32 for gradient in low_gradients)
    gradient, low_gradient = (torch.cat([part.flatten() for part in parts]) for parts in (gradients, low_gradients))
    assert (low_gradient / scale - gradient).norm() < 0.05 * gradient.norm()


def test_a_compiled_encoder_learns_the_same_and_is_compiled_once_for_all_shares(faces, tmp_path, monkeypatch):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile_(function, backend=backend))
    settings = dataclasses.replace(SETTINGS, steps=4, shares=2)
    compiled = trainer(faces, tmp_path / "compiled", settings, 0.0, Execution(compile=True))
    plain = trainer(faces, tmp_path / "plain", settings, 0.0)
    assert compiled.train() and plain.train()
    assert len(graphs) == 2  # to train with, and to validate with
    assert compiled.history[-1]["loss"] == pytest.approx(plain.history[-1]["loss"], rel=1e-5)


def test_settings_that_do_not_go_together_are_refused(faces, tmp_path):
    with pytest.raises(ValueError, match=r"shares.*divisor of the 2 rings"):
        TrainingSettings(steps=1, rings_per_step=2, shares=3)
    with pytest.raises(ValueError, match="dropout 0"):
        trainer(faces, tmp_path, SHARED, dropout=0.5, execution=Execution(workers=2))
    with pytest.raises(ValueError, match=r"precision.*float8"):
        TrainingSettings(steps=1, precision="float8")
    with pytest.raises(ValueError, match=r"ema.*1.5"):
        TrainingSettings(steps=1, ema=1.5)
    with pytest.raises(ValueError, match="keep: expected at least 1"):
        Execution(keep=0)


def test_a_damaged_checkpoint_is_refused_and_the_one_before_used(faces, tmp_path, capsys):
    trainer(faces, tmp_path, execution=Execution(keep=3)).train()
    files = checkpoints(tmp_path)
    assert len(files) == 3
    for damaged, step in ((files[2], 8), (files[1], 4)):
        data = bytearray(damaged.read_bytes())
        data[-1000] ^= 1
        damaged.write_bytes(data)
        run = trainer(faces, tmp_path)
        run.resume()
        assert run.step == step
    assert f"{files[2]}: the checksum is wrong" in capsys.readouterr().out
    files[0].write_bytes(b"")
    with pytest.raises(CheckpointError, match="step-00000012"):
        trainer(faces, tmp_path).resume()
    with pytest.raises(FileNotFoundError, match="checkpoints"):
        trainer(faces, tmp_path / "empty").resume()


def test_resuming_with_other_settings_model_or_faces_is_refused(faces, cache, tmp_path):
    trainer(faces, tmp_path).train()
    with pytest.raises(CheckpointError, match=r"learning_rate 0.003 -> 0.1"):
        trainer(faces, tmp_path, dataclasses.replace(SETTINGS, learning_rate=0.1)).resume()
    with pytest.raises(CheckpointError, match=r"dropout 0.3 -> 0.1"):
        trainer(faces, tmp_path, dropout=0.1).resume()
    landmarks = np.array(faces.landmarks)
    landmarks[3, 5] += 0.01
    people = dataclasses.replace(FACES, seed=1).load(cache=cache)
    for others in (people, dataclasses.replace(faces, landmarks=landmarks, recipe=None)):
        with pytest.raises(CheckpointError, match="these are others"):
            trainer(others, tmp_path).resume()


def test_resuming_on_another_head_is_refused(faces, tmp_path):
    """As of a run on photographs, whose set is the same on any head, without the --head that it began with."""
    photographs = dataclasses.replace(faces, recipe=None, truth=None)
    trainer(photographs, tmp_path).train()
    own = builtin_head()
    other = dataclasses.replace(own, v_template=own.v_template * 1.01)
    model = RingNet(other, dropout=0.3)
    with pytest.raises(CheckpointError, match=r"the head it began with, version 1 .* --head"):
        Trainer(model, photographs, faces, SETTINGS, tmp_path).resume()
    trainer(photographs, tmp_path).resume()


def test_the_same_rendered_faces_from_another_processor_are_not_others(faces, tmp_path):
    """Their landmarks differ in the last bits."""
    trainer(faces, tmp_path).train()
    run = trainer(dataclasses.replace(faces, landmarks=faces.landmarks * np.float32(1 + 1e-7)), tmp_path)
    run.resume()
    assert run.step == SETTINGS.steps


def test_tensorboard_events_are_the_history(faces, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = trainer(faces, tmp_path, execution=Execution(tensorboard=True))
    run.train()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    seen = [(event.step, event.value) for event in events.Scalars("validation/loss")]
    assert seen == [(row["step"], pytest.approx(row["validation_loss"])) for row in run.history]


def test_schedule_warms_up_and_ends_low():
    settings = TrainingSettings(steps=100, warmup_steps=10, learning_rate=1.0, final_learning_rate=0.01)
    rates = [settings.learning_rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == 1.0 and np.argmax(rates) in (9, 10)
    assert rates[-1] == pytest.approx(0.01, abs=2e-3) and (np.diff(rates[10:]) < 0).all()


def test_similarity_align_undoes_any_similarity():
    points = torch.randn(3, 50, 3, dtype=torch.float64)
    rotation = batch_rodrigues(torch.randn(3, 3, dtype=torch.float64))
    moved = 1.7 * points @ rotation.transpose(1, 2) + torch.randn(3, 1, 3, dtype=torch.float64)
    assert torch.allclose(similarity_align(points, moved), moved)
    mirrored = points * torch.tensor([-1.0, 1, 1], dtype=torch.float64)
    assert (similarity_align(points, mirrored) - mirrored).norm() > 1  # no reflections


def test_shape_error_of_the_truth_is_zero_and_of_the_mean_is_not(faces):
    model = RingNet()
    shape = torch.from_numpy(faces.truth["shape"][:3])
    assert shape_errors(model, shape, shape).head < 1e-3
    assert shape_errors(model, torch.zeros_like(shape), shape).head > 0.5


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("run") / "small"
    assert train.main(small(folder, cache)) == 0
    return folder


def small(folder, cache, steps=6):
    return (
        f"--out {folder} --cache {cache} --identities 8 --steps {steps} --rings 2 --checkpoint-steps 2 "
        f"--test-identities 4 --image-size 64"
    ).split()


def test_train_command(run_folder):
    names = {path.name for path in run_folder.iterdir()}
    assert names == {"best.safetensors", "checkpoints", "history.csv", "curves.png", "config.json", "report.json",
                     "reconstructions.png", "examples"}  # fmt: skip
    configuration = json.loads((run_folder / "config.json").read_text())
    assert configuration["options"]["steps"] == 6 and configuration["versions"]["torch"] == torch.__version__
    report = json.loads((run_folder / "report.json").read_text())
    assert report["identities"] == 4 and report["map_fit"]["head"] < report["mean_shape"]["head"]
    assert read_image(run_folder / "reconstructions.png").shape[1] == 5 * 224
    best = RingNet.load(run_folder)  # which infer asks
    assert best.trained_on == "synthetic faces" and 0 < best.limit <= 0.9


def test_train_command_does_not_overwrite_by_accident(run_folder, cache, capsys):
    with pytest.raises(SystemExit):
        train.main(small(run_folder, cache))
    assert "--resume continues it" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train.main(["--out", str(run_folder / "nothing"), "--resume"])
    assert "holds no run" in capsys.readouterr().err


def test_a_run_is_resumed_with_the_shares_it_had(cache, tmp_path):
    options = small(tmp_path / "run", cache, steps=4)
    assert train.main([*options, "--rings", "4", "--shares", "4", "--test-identities", "0"]) == 0
    checkpoints(tmp_path / "run")[-1].unlink()
    assert train.main([*options, "--rings", "4", "--resume", "--test-identities", "0"]) == 0


def test_overwriting_starts_anew(run_folder, cache, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(run_folder, folder)
    (folder / "examples" / "9.png").write_bytes(b"of a run that showed more faces")
    assert train.main([*small(folder, cache, steps=4), "--overwrite", "--test-identities", "0"]) == 0
    assert checkpoints(folder)[-1].name == "step-00000004.safetensors"
    assert not list(folder.glob("examples/*")), "an earlier run's pictures would pass for this one's"
    assert not (folder / "report.json").exists() and not (folder / "reconstructions.png").exists()


def test_a_run_removes_nothing_that_is_not_a_runs(cache, tmp_path):
    """As of another project, in whose folder somebody trains."""
    for name in ("checkpoints/mine.ckpt", "tensorboard/events.out.tfevents.1.mine", "examples/mine.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"mine")
    assert train.main([*small(tmp_path, cache, steps=2), "--test-identities", "0"]) == 0
    assert sum(path.read_bytes() == b"mine" for path in tmp_path.rglob("*.*") if path.is_file()) == 3


def test_killed_at_five_random_moments_and_resumed_is_uninterrupted_bit_for_bit(tmp_path, cache):
    options = [*small(tmp_path / "whole", cache, steps=60), "--test-identities", "0"]
    assert train.main(options) == 0
    folder = tmp_path / "killed"
    options[1] = str(folder)
    seed = int.from_bytes(os.urandom(4), "little")
    random = np.random.default_rng(seed)
    targets = np.sort(random.choice(np.arange(1, 60), 5, replace=False))
    killed = 0
    for target in targets:
        resume = ["--resume"] * bool(checkpoints(folder))
        process = subprocess.Popen([sys.executable, "-c", _DIES_IN_STEP, str(target), *options, *resume])
        killed += process.wait() == -signal.SIGKILL
    assert killed == 5, f"seed {seed}"
    assert train.main([*options, *["--resume"] * bool(checkpoints(folder))]) == 0
    (whole, _), (rest, _) = (read_checkpoint(checkpoints(tmp_path / name)[-1]) for name in ("whole", "killed"))
    assert same(whole, rest), f"seed {seed}, killed in steps {targets}"
    assert not list(folder.rglob("*.tmp"))


#: The train command, in which a thread sends SIGKILL at a random moment of the given step.
_DIES_IN_STEP = """
import os, random, signal, sys, threading, time
from ringnet_ext.commands import train
from ringnet_ext.training import trainer
update = trainer.Trainer._update
def dying(self, *arguments):
    if self.step == int(sys.argv[1]):
        threading.Timer(random.uniform(0, 0.02), os.kill, (os.getpid(), signal.SIGKILL)).start()
    elif self.step > int(sys.argv[1]) + 1:
        time.sleep(60)  # the timer is late
    return update(self, *arguments)
trainer.Trainer._update = dying
sys.exit(train.main(sys.argv[2:]))
"""


def test_infer_command(run_folder, tmp_path, capsys):
    images = sorted((run_folder / "examples").glob("*.png"))[:2]
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, path in enumerate(images):
        write_image(folder / f"{index}.jpg", read_image(path))
    (folder / "notes.txt").write_text("not an image, and not named like one")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    out = tmp_path / "out"
    arguments = [
        str(folder),
        str(images[0]),
        str(tmp_path / "missing.png"),
        "--cropped",
        "--checkpoint",
        str(run_folder),
        "--out",
        str(out),
    ]
    assert infer.main(arguments) == 1
    captured = capsys.readouterr()
    assert "broken.jpg" in captured.err and "missing.png" in captured.err and "notes.txt" not in captured.err
    assert "3 of 5 images" in captured.out
    names = {"0", "1", "0-2"}
    for kind, suffix in (("images", "png"), ("mesh", "obj"), ("params", "npz")):
        assert {path.name for path in (out / kind).iterdir()} == {f"{name}.{suffix}" for name in names}
    params = np.load(out / "params" / "0.npz", allow_pickle=False)
    shapes = {"cam": (3,), "pose": (6,), "shape": (100,), "expression": (50,), "landmarks": (68, 2)}
    assert {name: params[name].shape for name in shapes} == shapes
    lines = (out / "mesh" / "0.obj").read_text().splitlines()
    assert sum(line.startswith("v ") for line in lines) == 5023 and sum(line.startswith("f ") for line in lines) == 9976


def test_infer_command_names_a_missing_checkpoint(tmp_path, capsys):
    assert infer.main(["x.png", "--checkpoint", str(tmp_path), "--out", str(tmp_path)]) == 1
    assert "best.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "infer"])
def test_help_explains_every_flag(command, capsys):
    with pytest.raises(SystemExit) as stop:
        {"train": train, "infer": infer}[command].main(["--help"])
    assert stop.value.code == 0 and "--checkpoint" in capsys.readouterr().out


def test_history_is_finite(run_folder):
    with open(run_folder / "history.csv") as file:
        assert all(math.isfinite(float(value)) for row in csv.DictReader(file) for value in row.values())
