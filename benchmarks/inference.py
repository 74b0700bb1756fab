"""How many images a second ``ringnet infer`` does, beside its encoder alone and what the machine allows:
python benchmarks/inference.py [RUN].

Squares of 224 pixels, cut already: read, seen by the network, posed, and written as mesh and parameters. The command is
run as a user does it. Its start, which is what one image takes, is left out. The floor is the same way in one thread
with nothing around it: what is decoded, computed, formatted and written, without names, errors and results. RUN is a
run folder of training; without it the network has learnt nothing, which takes as long.

All is written to memory where the system has files there: on a disk, ext4 takes up to a millisecond to make a file, for
minutes after thousands of others were removed.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import _ringnet_core as core
import cv2
import numpy as np
import torch
from report import markdown

from ringnet_ext import RingNet
from ringnet_ext.files.cores import available_cores
from ringnet_ext.files.images import write_image
from ringnet_ext.files.meshes import Mesh, obj_parts
from ringnet_ext.inference.pipeline import batch_of
from ringnet_ext.inference.shares import shared
from ringnet_ext.network.encoder import to_input

MEMORY = Path("/dev/shm")
PARTS = "decoding", "encoder", "regressor and decoder", "normals and numbers", "writing"
REPEATS = 3
#: Of the command: which images, and options.
WAYS = {
    "parameters and mesh": ("many", ["--write", "parameters,mesh", "--no-score"]),
    "with score": ("many", ["--write", "parameters,mesh"]),
    "with score and panel": ("some", []),
}


@torch.inference_mode()
def encoder_alone(model: RingNet, threads: int) -> float:
    """Images a second, the best of several tries."""
    batch = batch_of(model)
    images = to_input(torch.randint(0, 256, (batch, 3, 224, 224), dtype=torch.uint8))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    model.encoder(images)
    rates = []
    for _ in range(REPEATS):
        start, done = time.perf_counter(), 0
        while (seconds := time.perf_counter() - start) < 0.5:
            model.encoder(images)
            done += batch
        rates.append(done / seconds)
    torch.set_num_threads(before)
    return max(rates)


@torch.inference_mode()
def floor(model: RingNet, squares: list[Path], out: Path) -> np.ndarray:
    """Milliseconds of a core that each of PARTS takes for an image, the least of several tries."""
    batch, faces, parameters = batch_of(model), model.head.faces, bytes(8000)
    files = [squares[i % len(squares)].read_bytes() for i in range(batch)]
    triangles = obj_parts(Mesh(np.eye(3), faces, normals=np.eye(3)))[-1]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    tries = []
    for attempt in range(10 * REPEATS if model.encoder.light else REPEATS):
        folder = out / str(attempt)
        folder.mkdir(parents=True)
        times = [time.perf_counter()]
        images = [cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR_RGB) for file in files]
        times.append(time.perf_counter())
        planes = np.empty((batch, 3, *images[0].shape[:2]), np.uint8)
        for image, into in zip(images, planes, strict=True):
            cv2.split(image, list(into))
        features = model.encoder(to_input(torch.from_numpy(planes)))
        times.append(time.perf_counter())
        params = model.regress(features)
        heads = model.flame(params.shape, params.expression, params.global_pose, None, params.jaw_pose)
        times.append(time.perf_counter())
        contents = []
        for vertices in heads.vertices.numpy():
            normals = core.vertex_normals(vertices, faces)
            contents.append((core.number_lines(b"v", vertices, 8), core.number_lines(b"vn", normals, 4), triangles))
        times.append(time.perf_counter())
        for i, content in enumerate(contents):
            for name, parts in ((f"{folder}/{i}.obj", content), (f"{folder}/{i}.npz", (parameters,))):
                with open(name + ".tmp", "wb") as file:
                    file.writelines(parts)
                os.replace(name + ".tmp", name)
        times.append(time.perf_counter())
        tries.append([after - start for start, after in pairwise(times)])
    torch.set_num_threads(before)
    return np.min(tries, axis=0) / batch * 1e3


def run(network: Path, out: Path, images: Path, more: list[str]) -> np.ndarray:
    """Seconds that the command takes, and seconds that cores work for it."""
    command = [sys.executable, "-m", "ringnet_ext", "infer", str(images), "--checkpoint", str(network)]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([*command, "--out", str(out), "--cropped", *more], check=True, capture_output=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    shutil.rmtree(out)
    return np.array([seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime])


def whole_way(network: Path, folder: Path, more: list[str]) -> np.ndarray:
    """Seconds of an image, and of the cores for it; the least of several tries, without the command's start."""
    images = sorted(folder.iterdir())
    one, every = (
        np.min([run(network, folder.parent / "out", each, more) for _ in range(REPEATS)], axis=0)
        for each in (images[0], folder)
    )
    return (every - one) / (len(images) - 1)


def some_squares(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    random = np.random.default_rng(0)
    squares = [folder / f"{i:06}.jpg" for i in range(count)]
    for i, square in enumerate(squares):
        if i < 16:
            write_image(square, random.integers(0, 256, (14, 14, 3), np.uint8).repeat(16, 0).repeat(16, 1))
        else:
            os.link(squares[i % 16], square)
    return squares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?")
    parser.add_argument("--encoder", default="compact", help="of a network that has learnt nothing")
    parser.add_argument("--images", type=int, default=1000)
    options = parser.parse_args()
    cores = available_cores()
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
        place = Path(name)
        model = RingNet(encoder=options.encoder) if options.run is None else RingNet.load(options.run)
        model.eval().save(place / "network.safetensors")
        squares = some_squares(place / "many", options.images)
        some_squares(place / "some", max(2, options.images // 5))
        (place / "floor").mkdir()
        works = lambda items: (floor(model, squares, place / "floor" / str(item)) for item in items)
        parts = np.mean(list(shared(works, range(cores), cores)), axis=0)
        table = [[part, f"{value:.3f}"] for part, value in [*zip(PARTS, parts, strict=True), ("all", parts.sum())]]
        print(markdown(["the floor, on all cores at once", "ms of a core for an image"], table))
        rows = [[f"encoder alone, {n} threads", f"{encoder_alone(model, n):.0f}", ""] for n in sorted({1, cores})]
        rows.append([f"the floor, {cores} cores", f"{cores * 1e3 / parts.sum():.0f}", f"{parts.sum():.2f}"])
        for way, (images, more) in WAYS.items():
            seconds, work = whole_way(place / "network.safetensors", place / images, more)
            rows.append([f"ringnet infer, {way}", f"{1 / seconds:.0f}", f"{work * 1e3:.2f}"])
    print(markdown(["", "images a second", "ms of the cores for an image"], rows))


if __name__ == "__main__":
    main()
