"""How many images a second ``infer`` does, beside its encoder alone: python benchmarks/inference.py [RUN].

Squares of 224 pixels, cut already: read, seen by the network, posed, and written as mesh and parameters, by one process
and by one for each core, as torchrun starts them. RUN is a run folder of training; without it the network has learnt
nothing, which takes as long.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from report import markdown

from ringnet_ext import RingNet
from ringnet_ext.files.cores import available_cores
from ringnet_ext.files.images import write_image
from ringnet_ext.inference import outputs
from ringnet_ext.inference.finders import whole
from ringnet_ext.inference.inputs import Picture
from ringnet_ext.inference.pipeline import BATCH, reconstruct_all
from ringnet_ext.network.encoder import to_input


def network(run: str | None, encoder: str) -> RingNet:
    return (RingNet(encoder=encoder) if run is None else RingNet.load(run)).eval()


@torch.inference_mode()
def encoder_alone(model: RingNet, count: int) -> float:
    images = to_input(torch.randint(0, 256, (BATCH, 3, 224, 224), dtype=torch.uint8))
    images = images.contiguous(memory_format=torch.channels_last)
    model.encoder(images)
    start = time.perf_counter()
    for _ in range(-(-count // BATCH)):
        model.encoder(images)
    return count / (time.perf_counter() - start)


def whole_way(model: RingNet, folder: Path, count: int, trust: bool) -> float:
    squares = sorted(folder.glob("*.jpg"))
    pictures = [Picture(str(i), str(i), squares[i % len(squares)]) for i in range(count)]
    with tempfile.TemporaryDirectory(dir=folder) as out:

        def written(outcome):
            for face in outcome.faces:
                outputs.write(Path(out), outcome.picture.name, face.reconstruction, ("mesh", "parameters"))
            return outcome

        start = time.perf_counter()
        for outcome in reconstruct_all(model, pictures, whole, written, trust=trust):
            assert not outcome.errors, outcome.errors
        return count / (time.perf_counter() - start)


def alone(run, encoder, folder, count, ready, rates) -> None:
    torch.set_num_threads(1)
    model = network(run, encoder)
    whole_way(model, folder, BATCH, False)
    ready.wait()
    rates.put(whole_way(model, folder, count, False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?")
    parser.add_argument("--encoder", default="compact", help="of a network that has learnt nothing")
    parser.add_argument("--images", type=int, default=500)
    options = parser.parse_args()
    model = network(options.run, options.encoder)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        random = np.random.default_rng(0)
        for i in range(16):
            write_image(folder / f"{i}.jpg", random.integers(0, 256, (14, 14, 3), np.uint8).repeat(16, 0).repeat(16, 1))
        rows = [["encoder alone", f"{encoder_alone(model, options.images):.0f}"]]
        for name, trust in (("one process, without score", False), ("one process, with score", True)):
            whole_way(model, folder, BATCH, trust)
            rows.append([name, f"{whole_way(model, folder, options.images, trust):.0f}"])
        cores, spawn = available_cores(), multiprocessing.get_context("spawn")
        ready, rates = spawn.Barrier(cores), spawn.Queue()
        os.environ["OMP_NUM_THREADS"] = "1"
        arguments = options.run, options.encoder, folder, options.images, ready, rates
        processes = [spawn.Process(target=alone, args=arguments) for _ in range(cores)]
        for process in processes:
            process.start()
        rows.append([f"{cores} processes, without score", f"{sum(rates.get() for _ in processes):.0f}"])
        for process in processes:
            process.join()
    print(markdown(["images of 224 pixels a second", ""], rows))


if __name__ == "__main__":
    main()
