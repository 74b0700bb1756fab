"""The trainer, and the train and infer commands end to end on a small scale."""

import csv
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from ringnet_ext import infer, train
from ringnet_ext.checkpoint import CheckpointError, read_checkpoint
from ringnet_ext.data.synthetic import SyntheticFaces
from ringnet_ext.evaluation import shape_errors, similarity_align
from ringnet_ext.images import read_image, write_image
from ringnet_ext.model import RingNet
from ringnet_ext.ops import batch_rodrigues
from ringnet_ext.trainer import Trainer, TrainingSettings

SETTINGS = TrainingSettings(steps=12, rings_per_step=2, ring_size=4, checkpoint_steps=4, warmup_steps=2)
SHARED = dataclasses.replace(SETTINGS, workers=2, readout_weight=10.0, gradient_clip=None)
FACES = SyntheticFaces(identities=8, images_per_identity=4, size=64)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def faces(cache):
    return FACES.load(cache=cache)


def trainer(faces, folder, settings=SETTINGS, dropout=0.3):
    torch.manual_seed(0)
    model = RingNet(dropout=dropout, readout=settings.readout_weight > 0)
    return Trainer(model, faces, faces, settings, folder)


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.checkpoint_tensors().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_training_lowers_the_losses_and_writes_the_run(faces, tmp_path):
    run = trainer(faces, tmp_path, TrainingSettings(steps=60, rings_per_step=4, ring_size=4, checkpoint_steps=20))
    assert run.train()
    assert run.history[-1]["loss"] < 0.97 * run.history[0]["loss"]
    assert {path.name for path in tmp_path.iterdir()} == {
        "last.safetensors", "previous.safetensors", "best.safetensors", "history.csv",
    }  # fmt: skip
    with open(tmp_path / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [20, 40, 60]
    assert float(rows[-1]["validation_loss"]) == pytest.approx(run.history[-1]["validation_loss"], rel=1e-4)
    assert same(RingNet.load(tmp_path).checkpoint_tensors(), weights(run)) == (
        run.history[-1]["validation_loss"] == run.best
    )


@pytest.mark.parametrize("settings, dropout", [(SETTINGS, 0.3), (SHARED, 0.0)], ids=["dropout", "two workers"])
def test_resumed_is_uninterrupted_bit_for_bit(faces, tmp_path, settings, dropout):
    whole = trainer(faces, tmp_path / "whole", settings, dropout)
    whole.train()
    for stop in (1, 5, 8):
        folder = tmp_path / str(stop)
        part = trainer(faces, folder, settings, dropout)
        update = part._update

        def stopping(*arguments, part=part, update=update, stop=stop):
            if part.step + 1 == stop:
                os.kill(os.getpid(), signal.SIGINT)
            return update(*arguments)

        part._update = stopping
        assert not part.train() and part.step == stop
        rest = trainer(faces, folder, settings, dropout)
        rest.resume()
        assert rest.step == stop and rest.train()
        assert same(weights(rest), weights(whole))
        assert [row["step"] for row in rest.history] == [row["step"] for row in whole.history]


def test_workers_share_parameters_and_a_step_uses_the_mean_of_their_gradients(faces, tmp_path):
    run = trainer(faces, tmp_path, SHARED, dropout=0.0)
    first, second = run.replicas
    assert first is run.model
    assert all(a is b for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.flame is second.flame and first.encoder.stages[1].running_mean is not second.encoder.stages[1].running_mean
    batch = run._batch(0)
    parts = [run._gradients(model, *(tensor.chunk(2)[index] for tensor in batch))[1]
             for index, model in enumerate(run.replicas)]  # fmt: skip
    seen = {}
    run.optimizer.step = lambda: seen.update({name: value.grad.clone() for name, value in run.parameters.items()})
    with ThreadPoolExecutor(2) as pool:
        run._update(pool, *batch)
    for gradient, one, other in zip(seen.values(), *parts, strict=True):
        assert torch.equal(gradient, one + other)


def test_settings_that_do_not_go_together_are_refused(faces, tmp_path):
    with pytest.raises(ValueError, match="workers.*divisor of the 2 rings"):
        TrainingSettings(steps=1, rings_per_step=2, workers=3)
    with pytest.raises(ValueError, match="dropout 0"):
        trainer(faces, tmp_path, SHARED, dropout=0.5)


def test_a_damaged_checkpoint_is_refused_and_the_one_before_used(faces, tmp_path):
    trainer(faces, tmp_path).train()
    last = tmp_path / "last.safetensors"
    data = bytearray(last.read_bytes())
    data[-1000] ^= 1
    last.write_bytes(data)
    run = trainer(faces, tmp_path)
    run.resume()
    assert run.step == 8
    (tmp_path / "previous.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError):
        trainer(faces, tmp_path).resume()


def test_resuming_with_other_settings_is_refused(faces, tmp_path):
    trainer(faces, tmp_path).train()
    with pytest.raises(CheckpointError, match="learning_rate 0.003 -> 0.1"):
        trainer(faces, tmp_path, dataclasses.replace(SETTINGS, learning_rate=0.1)).resume()


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
    assert {"best.safetensors", "last.safetensors", "history.csv", "curves.png", "config.json", "report.json",
            "reconstructions.png", "examples"} <= names  # fmt: skip
    assert not [name for name in names if name.endswith(".tmp")]
    report = json.loads((run_folder / "report.json").read_text())
    assert report["identities"] == 4 and report["map_fit"]["head"] < report["mean_shape"]["head"]
    assert read_image(run_folder / "reconstructions.png").shape[1] == 5 * 224


def test_train_command_does_not_overwrite_by_accident(run_folder, cache, capsys):
    with pytest.raises(SystemExit):
        train.main(small(run_folder, cache))
    assert "--resume continues it" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train.main(["--out", str(run_folder / "nothing"), "--resume"])
    assert "holds no run" in capsys.readouterr().err


def test_sigkill_at_any_moment_loses_no_more_than_since_the_last_checkpoint(tmp_path, cache):
    command = [sys.executable, "-m", "ringnet_ext.train", *small(tmp_path / "run", cache, steps=4000)]
    last = tmp_path / "run" / "last.safetensors"
    random = np.random.default_rng(os.getpid())
    reached = 0
    for attempt in range(2):
        process = subprocess.Popen(command + ["--resume"] * (attempt > 0), stdout=subprocess.DEVNULL)
        began = time.monotonic()
        while not last.exists() or read_checkpoint(last)[1]["trainer"]["step"] < reached + 4:
            assert process.poll() is None and time.monotonic() - began < 90
            time.sleep(0.05)
        time.sleep(float(random.uniform(0, 0.5)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        step = read_checkpoint(last)[1]["trainer"]["step"]  # whole, whenever the signal came
        assert step >= reached + 4
        RingNet.load(tmp_path / "run")
        reached = step


def test_infer_command(run_folder, tmp_path, capsys):
    images = sorted((run_folder / "examples").glob("*.png"))[:2]
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, path in enumerate(images):
        write_image(folder / f"{index}.jpg", read_image(path))
    (folder / "notes.txt").write_text("not an image, and not named like one")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    out = tmp_path / "out"
    arguments = [str(folder), str(images[0]), str(tmp_path / "missing.png"), "--checkpoint", str(run_folder), "--out", str(out)]
    assert infer.main(arguments) == 1
    captured = capsys.readouterr()
    assert "broken.jpg" in captured.err and "missing.png" in captured.err and "notes.txt" not in captured.err
    assert "3 of 5 images" in captured.out
    names = {"0", "1", "0-2"}
    for kind, suffix in (("images", "png"), ("mesh", "obj"), ("neutral_mesh", "obj"), ("params", "npz")):
        assert {path.name for path in (out / kind).iterdir()} == {f"{name}.{suffix}" for name in names}
    params = np.load(out / "params" / "0.npz", allow_pickle=False)
    assert {name: params[name].shape for name in params.files} == {
        "cam": (3,), "pose": (6,), "shape": (100,), "expression": (50,), "landmarks": (68, 2),
    }  # fmt: skip
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
