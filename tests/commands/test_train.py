"""What happens to a training run that is interrupted, repeated or fails, and what a run says of its results."""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest
import torch

from ringnet_ext import RingNet
from ringnet_ext.commands import train
from ringnet_ext.data.synthetic import SyntheticFaces
from ringnet_ext.evaluation import photographs
from ringnet_ext.evaluation.photographs import evaluate_photographs
from ringnet_ext.files.checkpoint import read_checkpoint
from ringnet_ext.flame.parameters import HeadParams
from ringnet_ext.training.duration import days_of_training
from ringnet_ext.training.run_folder import alone_in, checkpoints
from ringnet_ext.training.settings import TrainingSettings
from ringnet_ext.training.trainer import Trainer

FACES = SyntheticFaces(identities=8, images_per_identity=4, size=64)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def faces(cache):
    return FACES.load(cache=cache)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return RingNet().eval()


def options(folder, cache, *more):
    return (
        f"--out {folder} --cache {cache} --identities 8 --rings 3 --steps 3 --checkpoint-steps 2 --test-identities 0 "
        "--image-size 64 --device cpu"
    ).split() + list(more)


def test_the_configuration_of_a_run_repeats_it(cache, tmp_path):
    """With --config RUN/config.json, whatever of it was the preset's. Three rings don't divide by the preset's two
    shares: who didn't ask for shares isn't told of them."""
    assert train.main(options(tmp_path / "one", cache, "--weight-decay", "0.02")) == 0
    assert train.main(["--config", str(tmp_path / "one" / "config.json"), "--out", str(tmp_path / "two")]) == 0
    one, two = (json.loads((tmp_path / name / "config.json").read_text())["options"] for name in ("one", "two"))
    for name in one.keys() - {"out", "config"}:
        assert one[name] == two[name], name
    assert two["weight_decay"] == 0.02 and two["shares"] == 1
    (one, _), (two, _) = (read_checkpoint(checkpoints(tmp_path / name)[-1]) for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def interrupting(run, times):
    update = run._update

    def pressed(*arguments):
        for _ in range(times if run.step == 0 else 0):
            os.kill(os.getpid(), signal.SIGINT)
        return update(*arguments)

    run._update = pressed
    return run


def test_two_interrupts_still_end_with_a_checkpoint_and_the_third_at_once(faces, model, tmp_path, capfd):
    """Ctrl-C under torchrun arrives twice: from the terminal, and from torchrun."""
    settings = TrainingSettings(steps=8, rings_per_step=2, ring_size=4, readout_weight=0.0)
    run = interrupting(Trainer(model, faces, faces, settings, tmp_path / "twice"), 2)
    assert run.train() is False and checkpoints(tmp_path / "twice")
    assert "with a checkpoint; once more" in capfd.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        interrupting(Trainer(model, faces, faces, settings, tmp_path / "thrice"), 3).train()
    model.eval()


def test_a_run_that_was_stopped_says_how_it_is_continued(cache, tmp_path, monkeypatch, capsys):
    update = Trainer._update

    def pressed(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return update(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", pressed)
        assert train.main(options(tmp_path / "run", cache, "--rings", "2", "--learning-rate", "0.001")) == 130
    advice = capsys.readouterr().out.splitlines()[-1].partition("continue with ")[2]
    assert train.main(["--out", str(tmp_path / "run"), "--resume"]) == 1
    assert advice.removeprefix("--resume ") in capsys.readouterr().err
    assert train.main(advice.split()) == 0
    assert checkpoints(tmp_path / "run")[-1].name == "step-00000003.safetensors"


def test_two_runs_at_once_in_a_folder_are_refused(cache, tmp_path, capsys):
    """Each would remove the other's checkpoints, and both would say that all went well."""
    (tmp_path / "run").mkdir()
    with alone_in(tmp_path / "run"):
        assert train.main(options(tmp_path / "run", cache, "--overwrite")) == 1
        assert "another run is at work" in capsys.readouterr().err and not os.listdir(tmp_path / "run")
    with alone_in(tmp_path / "run"):
        pass


def test_an_interrupt_before_the_first_step_is_one_line(cache, tmp_path, monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(SyntheticFaces, "load", interrupted)
    assert train.main(options(tmp_path / "run", cache)) == 130
    assert capsys.readouterr().err == "error: interrupted; no checkpoint had been written yet\n"


def test_a_loss_that_is_no_number_comes_with_advice_that_can_be_followed(faces, tmp_path):
    torch.manual_seed(0)
    settings = TrainingSettings(
        steps=8, rings_per_step=2, ring_size=4, readout_weight=0.0, learning_rate=1e30, warmup_steps=0
    )
    with pytest.raises(
        FloatingPointError, match=r"the loss is (nan|inf); start anew with a learning rate lower than 1e[+]30"
    ):
        Trainer(RingNet(), faces, faces, settings, tmp_path).train()


def test_a_run_of_days_is_announced(model, capsys):
    short, long = TrainingSettings(steps=1), TrainingSettings(steps=10**9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    train._warn_of_days(model, short, 1)
    assert capsys.readouterr().err == ""
    train._warn_of_days(model, long, 1)
    warning = capsys.readouterr().err
    assert warning.startswith("warning: 1,000,000,000 steps of 8 rings with --encoder compact take about ")
    days = days_of_training(model, long)
    assert days > 100 and days_of_training(model, long, processes=100) < days / 20
    # It changes nothing about the run.
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("threads, workers, each", [(4, 2, 2), (1, 1, 1), (3, 2, 1)])
def test_threads_are_those_of_all_workers_together(threads, workers, each, cache, tmp_path, monkeypatch):
    seen, before = [], torch.get_num_threads()
    monkeypatch.setattr(Trainer, "train", lambda trainer: seen.append((trainer.workers, torch.get_num_threads())))
    try:
        more = ("--rings", "2", "--shares", "2", "--threads", str(threads))
        train.main(options(tmp_path / "run", cache, *more))
    finally:
        torch.set_num_threads(before)
    assert seen == [(workers, each)]


class TestPhotographs:
    """The table of a model that says what it is told to."""

    def told(self, monkeypatch, faces, params, target, confidence):
        def predict(model, faces, images):
            return HeadParams(*(value[images] for value in params)), target[images], confidence[images]

        monkeypatch.setattr(photographs, "predict", predict)

    def test_what_the_numbers_are(self, monkeypatch, faces, model):
        truth = {name: torch.from_numpy(value) for name, value in faces.truth.items()}
        params = HeadParams(*(truth[name] for name in ("camera", "global_pose", "jaw_pose", "shape", "expression")))
        with torch.no_grad():
            target = model.landmarks(params)
        confidence = torch.ones(target.shape[:2])
        self.told(monkeypatch, faces, params, target, confidence)
        report = evaluate_photographs(model, faces)
        assert (report.people, report.images) == (8, 32)
        assert report.nme == pytest.approx(0, abs=1e-6) and report.intra_mm == pytest.approx(0, abs=1e-4)
        assert 2 < report.inter_mm < 10 and report.intra_inter == pytest.approx(0, abs=1e-4)
        assert report.yaw_correlation > 0.95 and report.yaw_degrees < 6
        # A tenth of the eyes' distance to the side; what isn't known doesn't count.
        eyes = (target[:, 36] - target[:, 45]).norm(dim=-1)
        moved = target.clone()
        moved[..., 0] += 0.1 * eyes[:, None]
        moved[:, :17], confidence[:, :17] = torch.nan, 0
        self.told(monkeypatch, faces, params, moved, confidence)
        assert evaluate_photographs(model, faces).nme == pytest.approx(0.1, rel=1e-3)
        assert evaluate_photographs(model, faces, people=3, images=2).images == 6
        assert "\n".join(evaluate_photographs(model, faces).lines()).count("0.1000") == 1

    def test_what_cannot_be_known_is_said_to_be(self, monkeypatch, faces, model):
        one = dataclasses.replace(faces, identity=np.where(np.arange(32) % 4 == 0, faces.identity, -1), recipe=None)
        params = HeadParams(*(torch.zeros(32, n) for n in (3, 3, 3, 100, 50)))
        self.told(monkeypatch, one, params, torch.zeros(32, 68, 2), torch.zeros(32, 68))
        report = evaluate_photographs(model, one)
        assert (
            report.nme is report.yaw_correlation is report.yaw_degrees is report.intra_mm is report.intra_inter is None
        )
        assert "\n".join(report.lines()).count("not known") == 5
        json.dumps(dataclasses.asdict(report), allow_nan=False)
