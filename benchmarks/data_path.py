"""The data path alone: python benchmarks/data_path.py prints markdown tables.

Takes four minutes. Prepares sets of rendered faces (JPEG crops of 256 and of 128 pixels). Measures how many a second
`ringnet_ext.data.augment.crop` reads, decodes, varies and crops, where the time goes, and what the encoders ask for in
training. The files are in the system's cache: a disk has to deliver as much besides. Each figure is the best of
several. The columns:

- One core, all cores: processes of their own, pinned, in turns. "Cores at work" is processor time over time. It lies
  below the number of cores where threads wait for each other or other processes are busy.
- One process at most: reading, OpenCV and PyTorch run without the interpreter's lock. The rest of an image's time on
  one core counts as holding it, so one process makes at most 1 / that rest on any number of cores. The true limit is
  higher: NumPy's copies don't hold the lock either.
- Encoder trains on: the encoder alone, forward and backward: float32 on all cores of a CPU (12 and 192 images a batch),
  bfloat16 on a GPU (192). The last column compares the two, each alone; in training on a CPU they share the cores.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from report import markdown
from timing import wait_for_quiet

from ringnet_ext.data import prepare
from ringnet_ext.data.augment import crop
from ringnet_ext.data.photographs import load_photographs
from ringnet_ext.data.synthetic import SyntheticFaces
from ringnet_ext.files.images import write_image
from ringnet_ext.network.encoder import ENCODERS

PEOPLE, EACH, SIDE, BATCH = 24, 6, 384, 96
SIZES = {name: encoder().input_size for name, encoder in ENCODERS.items()}
CASES = (("resnet50", 256), ("compact", 256), ("compact", 128))  # an encoder, and the side of the set's crops
ENCODED_AT_ONCE = {"resnet50": 12, "compact": 192}  # on a CPU; a GPU gets a step's 192
#: What runs without Python's lock; the rest of the path is taken to hold it, though NumPy's copies don't either.
UNLOCKED = ("imdecode", "imencode", "resize", "warpAffine", "GaussianBlur", "LUT", "fillConvexPoly")


def make_sets(folder: Path) -> dict[int, float]:
    """Prepared sets, in folders of their crops' sides, and the images a second that preparing them took."""
    faces = SyntheticFaces(identities=PEOPLE, images_per_identity=EACH, size=SIDE, color=True)
    faces = faces.load(cache=folder / "cache")
    for index, (image, landmarks) in enumerate(zip(faces.images, faces.landmarks, strict=True)):
        path = folder / "source" / f"n{faces.identity[index]:06d}" / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, image)
        np.save(path.with_suffix(".npy"), (landmarks + 1) * SIDE / 2 - 0.5)
    rates = {}
    for side in sorted({side for _, side in CASES}):
        start = time.perf_counter()
        prepare.prepare(folder / "source", folder / str(side), prepare.PrepareSettings(side))
        rates[side] = len(faces) / (time.perf_counter() - start)
    return rates


def workloads(folder: Path) -> list:
    """Functions that make a batch of 96 images, one for each case."""

    def workload(encoder, side):
        faces, random = load_photographs(folder / str(side)), np.random.default_rng(0)
        rings = random.integers(len(faces), size=(BATCH // 6, 6))
        return lambda: crop(faces, rings, SIZES[encoder], random)

    return [workload(*case) for case in CASES]


def images_per_second(folder: Path, seconds: float) -> list[tuple[float, float]]:
    """Of each case, and how many of the cores that this process may use were at work for it."""
    calls = workloads(folder)
    found = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while len(found[0]) < 3 or time.perf_counter() < end:
        for call, samples in zip(calls, found, strict=True):
            start, busy = time.perf_counter(), time.process_time()
            call()
            taken = time.perf_counter() - start
            samples.append((BATCH / taken, (time.process_time() - busy) / taken))
    return [tuple(np.median(samples[1:], axis=0).tolist()) for samples in found]


def stages(folder: Path, rounds: int = 30) -> list[dict[str, float]]:
    """Seconds an image of each case on one core, by what is at work."""
    spent = {}

    def timed(name, function):
        def call(*arguments, **options):
            start = time.perf_counter()
            result = function(*arguments, **options)
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - start
            return result

        return call

    calls, found = workloads(folder), []
    for name in UNLOCKED:
        setattr(cv2, name, timed(name, getattr(cv2, name)))
    Path.read_bytes = timed("read", Path.read_bytes)
    for call in calls:
        samples = []
        for _ in range(rounds):
            spent.clear()
            start = time.perf_counter()
            call()
            total = time.perf_counter() - start
            read, decode = (spent.pop(name, 0.0) for name in ("read", "imdecode"))
            images = sum(spent.values())
            samples.append([read, decode, images, total - read - decode - images])
        best = np.array(min(samples, key=sum)) / BATCH
        found.append(dict(zip(("read", "decode", "vary and crop", "Python"), best.tolist(), strict=True)))
    return found


def demand(name: str, device: torch.device, seconds: float) -> float:
    """Images a second that the encoder trains on, forward and backward: float32 on a CPU, bfloat16 on a GPU."""
    wait_for_quiet(30)
    batch = 192 if device.type == "cuda" else ENCODED_AT_ONCE[name]
    encoder = ENCODERS[name]().train().to(device, memory_format=torch.channels_last)
    x = torch.randn(batch, 3, SIZES[name], SIZES[name], device=device).contiguous(memory_format=torch.channels_last)
    times = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = encoder(x).square().mean()
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return batch / min(times[1:])


def elsewhere(task: str, folder: Path, cores: list[int], seconds: float) -> list:
    """The result of a task in a process of its own that may use these cores."""
    command = [sys.executable, __file__, "--task", task, "--set", str(folder), "--seconds", str(seconds)]
    wait_for_quiet(5)
    pin = (lambda: os.sched_setaffinity(0, cores)) if hasattr(os, "sched_setaffinity") else None
    result = subprocess.run(command, preexec_fn=pin, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout)


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="for each measurement [6]")
    parser.add_argument("--task", choices=("rate", "stages"), help=argparse.SUPPRESS)
    parser.add_argument("--set", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        rate = options.task == "rate"
        print(json.dumps(images_per_second(options.set, options.seconds) if rate else stages(options.set)))
        return
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        prepared = make_sets(folder)
        kilobytes = {
            side: statistics.mean(path.stat().st_size for path in (folder / str(side)).rglob("*.jpg")) / 1000
            for side in prepared
        }
        split = elsewhere("stages", folder, cores[:1], options.seconds)
        rounds = [[elsewhere("rate", folder, some, options.seconds) for some in (cores[:1], cores)] for _ in range(5)]
    one, every = ([max(cases) for cases in zip(*results, strict=True)] for results in zip(*rounds, strict=True))
    devices = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]
    wanted = {name: [demand(name, device, options.seconds) for device in devices] for name in SIZES}
    machine = [f"{len(cores)} cores of {processor()}", *(torch.cuda.get_device_name(device) for device in devices[1:])]

    print(f"# The data path\n\npython benchmarks/data_path.py on {', '.join(machine)}, PyTorch {torch.__version__}.")
    speeds = (
        f"{prepared[side]:.0f} images/s to crops of {side} x {side}, {kilobytes[side]:.0f} kB each" for side in prepared
    )
    print(f"prepare, of JPEGs of {SIDE} x {SIDE}: {'; '.join(speeds)}.\n")
    labels = [f"{SIZES[name]} x {SIZES[name]} of {side} x {side}, {name}" for name, side in CASES]
    rows = []
    for (name, _), label, (alone, _), (rate, used), parts in zip(CASES, labels, one, every, split, strict=True):
        rows.append([label, f"{alone:.0f}", f"{rate:.0f}", f"{used:.2f}", f"{1 / parts['Python']:.0f}"])
        for demanded in wanted[name]:
            rows[-1] += [f"{demanded:.4g}", f"{rate / demanded:.{1 if rate < 10 * demanded else 0}f}"]
    heads = ["crops, encoder", "images/s, one core", f"{len(cores)} cores", "cores at work", "one process at most"]
    for device in devices:
        heads += [f"encoder trains on, {device.type}", "path / encoder"]
    print(markdown(heads, rows))
    rows = [[f"{1e6 * seconds:.0f}" for seconds in parts.values()] for parts in split]
    rows = [[label, *row] for label, row in zip(labels, rows, strict=True)]
    print(markdown(["us an image on one core", *split[0]], rows))


if __name__ == "__main__":
    main()
