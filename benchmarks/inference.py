"""How many images a second ``ringnet infer`` does, beside its encoder alone and what the machine allows:
python benchmarks/inference.py [RUN].

Squares of 224 pixels, cut already: read, seen by the network, posed, and written as mesh and parameters. The command is
run as a user does it, with all images and with a quarter of them, and the difference counts: its start is left out. The
floor, of a light network, is the same way with nothing around it, a thread on each core: what is read, computed,
formatted and written, without names, errors, locks and results. RUN is a run folder of training; without it the
network has learnt nothing, which takes as long.

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
from pathlib import Path

import _ringnet_core as core
import cv2
import numpy as np
import torch
from report import markdown

from ringnet_ext import RingNet
from ringnet_ext.files.arrays import npz_bytes
from ringnet_ext.files.cores import available_cores
from ringnet_ext.files.images import write_image
from ringnet_ext.files.meshes import Mesh, obj_parts
from ringnet_ext.inference.pipeline import batch_of
from ringnet_ext.inference.shares import shared

MEMORY = Path("/dev/shm")
PARTS = "reading", "encoder", "regressor and decoder", "normals and numbers", "writing"
REPEATS = 3
#: Of the command: options, and the part of the images that is enough.
WAYS = {
    "parameters and mesh": (["--write", "parameters,mesh", "--no-score"], 1),
    "with score": (["--write", "parameters,mesh"], 1),
    "with score and panel": ([], 0.25),
}
LEAST = 64  # images for each core, from which on a light network gets a process on every one


@torch.inference_mode()
def encoder_alone(model: RingNet, threads: int) -> float:
    """Images a second, the best of several tries."""
    batch = batch_of(model)
    images = torch.randint(0, 256, (batch, 3, 224, 224), dtype=torch.uint8)
    encode = lambda: model.encoder(model.encoder.prepared(images))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    encode()
    rates = []
    for _ in range(REPEATS):
        start, done = time.perf_counter(), 0
        while (seconds := time.perf_counter() - start) < 0.5:
            encode()
            done += batch
        rates.append(done / seconds)
    torch.set_num_threads(before)
    return max(rates)


@torch.inference_mode()
def floor(model: RingNet, squares: list[Path], out: Path) -> np.ndarray:
    """Milliseconds of a core that each of PARTS takes for an image, in the best of several rounds over all images."""
    batch, faces = batch_of(model), model.head.faces
    about = np.array("a" * 900)  # what the arrays are, in as many letters
    *_, triangles = obj_parts(Mesh(np.eye(3), faces, normals=np.eye(3)))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    rounds = []
    for _ in range(REPEATS):
        seconds = np.zeros(len(PARTS))
        for number in range(-(-len(squares) // batch)):
            folder = out / str(number)
            folder.mkdir(parents=True)
            times = [time.perf_counter()]
            images = []
            for i in range(number * batch, (number + 1) * batch):
                with open(squares[i % len(squares)], "rb", buffering=0) as file:
                    images.append(cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_COLOR_RGB))
            times.append(time.perf_counter())
            planes = np.empty((batch, 3, *images[0].shape[:2]), np.uint8)
            for image, into in zip(images, planes, strict=True):
                cv2.split(image, list(into))
            features = model.encoder(model.encoder.prepared(torch.from_numpy(planes)))
            times.append(time.perf_counter())
            params = model.regress(features)
            heads = model.flame(params.shape, params.expression, params.global_pose, None, params.jaw_pose)
            times.append(time.perf_counter())
            arrays = {name: value.numpy() for name, value in (params._asdict() | {"points": heads.landmarks}).items()}
            contents = []
            for i, vertices in enumerate(heads.vertices.numpy()):
                normals = core.vertex_normals(vertices, faces)
                mesh = core.number_lines(b"v", vertices, 8), core.number_lines(b"vn", normals, 4), triangles
                parameters = npz_bytes({name: value[i] for name, value in arrays.items()} | {"about": about})
                contents.append((mesh, (parameters,)))
            times.append(time.perf_counter())
            for i, (mesh, parameters) in enumerate(contents):
                for name, parts in ((f"{folder}/{i}.obj", mesh), (f"{folder}/{i}.npz", parameters)):
                    with open(name + ".tmp", "wb") as file:
                        file.writelines(parts)
                    os.replace(name + ".tmp", name)
            times.append(time.perf_counter())
            seconds += np.diff(times)
        shutil.rmtree(out)
        rounds.append(seconds / (number + 1) / batch * 1e3)
    torch.set_num_threads(before)
    return min(rounds, key=np.sum)


def run(network: Path, out: Path, images: Path, more: list[str]) -> np.ndarray:
    """Seconds that the command takes, and seconds that cores work for it."""
    command = [sys.executable, "-m", "ringnet_ext", "infer", str(images), "--checkpoint", str(network)]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([*command, "--out", str(out), "--cropped", *more], check=True, capture_output=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    shutil.rmtree(out)
    return np.array([seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime])


def whole_way(network: Path, place: Path, count: int, few: int, more: list[str]) -> np.ndarray:
    """Seconds of an image, and of the cores for it, without the command's start; of the quickest of several tries."""
    least = []
    for number in few, count:
        some_squares(place / "images", number)
        least.append(np.min([run(network, place / "out", place / "images", more) for _ in range(REPEATS)], axis=0))
        shutil.rmtree(place / "images")
    return (least[1] - least[0]) / (count - few)


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
    parser.add_argument("--images", type=int, help="how many [4000, of a network that isn't light 80]")
    options = parser.parse_args()
    cores = available_cores()
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
        place = Path(name)
        model = RingNet(encoder=options.encoder) if options.run is None else RingNet.load(options.run)
        model.eval().save(place / "network.safetensors")
        light = model.encoder.light
        count = options.images or (4000 if light else 80)
        rows = [[f"encoder alone, {n} threads", f"{encoder_alone(model, n):.0f}", ""] for n in sorted({1, cores})]
        if light:
            squares = some_squares(place / "squares", count // cores)
            works = lambda items: (floor(model, squares, place / "floor" / str(item)) for item in items)
            parts = np.mean(list(shared(works, range(cores), cores)), axis=0)
            table = [[part, f"{value:.3f}"] for part, value in [*zip(PARTS, parts, strict=True), ("all", parts.sum())]]
            print(markdown(["the floor, on all cores at once", "ms of a core for an image"], table))
            rows.append([f"the floor, {cores} cores", f"{cores * 1e3 / parts.sum():.0f}", f"{parts.sum():.2f}"])
        for way, (more, part) in WAYS.items():
            most = round(count * part)
            few = max(most // 4, LEAST * cores if light else 1)
            seconds, work = whole_way(place / "network.safetensors", place, most, few, more)
            rows.append([f"ringnet infer, {way}", f"{1 / seconds:.0f}", f"{work * 1e3:.2f}"])
    print(markdown(["", "images a second", "ms of the cores for an image"], rows))


if __name__ == "__main__":
    main()
