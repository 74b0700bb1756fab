"""Training in several processes under torchrun."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ringnet_ext import RingNet
from ringnet_ext.commands import train
from ringnet_ext.files.checkpoint import read_checkpoint
from ringnet_ext.training.processes import Processes, joined_processes
from ringnet_ext.training.run_folder import checkpoints

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="a PyTorch without torch.distributed")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def options(folder, cache, steps, *more):
    return (
        f"--out {folder} --cache {cache} --identities 8 --image-size 64 --steps {steps} --rings 4 --test-identities 0"
    ).split() + list(more)


def torchrun(processes, arguments, *, restarts=0):
    """Started, in a group of its own; gloo on the CPU."""
    launch = (
        f"--nnodes 1 --nproc-per-node {processes} --max-restarts {restarts} "
        "--rdzv-backend c10d --rdzv-endpoint localhost:0"
    )
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *launch.split(), "-m", "ringnet_ext.train", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip


def finished(process):
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    return output


def losses(folder):
    with open(Path(folder) / "history.csv") as file:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]


def test_two_processes_learn_what_one_does(tmp_path, cache):
    more = ("--checkpoint-steps", "1", "--device", "cpu")
    assert train.main(options(tmp_path / "one", cache, 20, *more)) == 0
    output = finished(torchrun(2, options(tmp_path / "two", cache, 20, *more)))
    assert output.count("everything is in") == 1  # one of them speaks
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 20
    for (step, loss), (other_step, other) in zip(one, two, strict=True):
        assert step == other_step and loss == pytest.approx(other, rel=1e-4)
    (whole, _), (shared, _) = (read_checkpoint(checkpoints(tmp_path / name)[-1]) for name in ("one", "two"))
    assert all(torch.allclose(whole[name], shared[name], rtol=1e-3, atol=1e-5) for name in whole)
    # torchrun gives each process one thread; what they have trained is for any.
    assert RingNet.load(tmp_path / "two").configuration == RingNet.load(tmp_path / "one").configuration
    assert train.main(options(tmp_path / "two", cache, 20, *more, "--resume")) == 0


def test_a_killed_process_is_replaced_and_the_run_finishes(tmp_path, cache):
    # Dropout: each share of a step needs the same random numbers wherever and whenever it is computed.
    arguments = options(tmp_path / "run", cache, 200, "--checkpoint-steps", "10", "--dropout", "0.3", "--keep", "1")
    process = torchrun(2, arguments, restarts=1)
    began = time.monotonic()
    while not checkpoints(tmp_path / "run"):
        assert process.poll() is None and time.monotonic() - began < 90, process.communicate()[0]
        time.sleep(0.05)
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    ranks = [pid for pid in children if b"ringnet_ext.train" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    output = finished(process)
    assert "resumed at step" in output
    assert checkpoints(tmp_path / "run")[-1].name == "step-00000200.safetensors"
    assert [step for step, _ in losses(tmp_path / "run")] == list(range(10, 201, 10))


def test_shares_go_with_the_processes(tmp_path, cache):
    process = torchrun(2, options(tmp_path / "run", cache, 2, "--shares", "1"))
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and "shares: expected a multiple of the 2 processes, got 1" in output


def test_without_torchrun_a_process_is_alone(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with joined_processes("cpu") as processes:
        assert processes == Processes(torch.device("cpu"))
        value = torch.ones(3)
        processes.add_up([value])
        assert torch.equal(value, torch.ones(3))
        with processes.one_first():
            pass
