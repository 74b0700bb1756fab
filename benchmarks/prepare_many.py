"""Time and memory of prepare for many images: python benchmarks/prepare_many.py [--images N N ...] prints a table.

Folders of 40 names each for one small image and its landmarks, prepared whole, in a process of its own for each N; then
once more, when there is nothing left to do. All of it on the disk that the temporary folder is on.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from report import duration, markdown

from ringnet_ext.data import prepare
from ringnet_ext.flame import FLAME

EACH, SIDE, SETTINGS = 40, 64, prepare.PrepareSettings(size=32)


def make_source(folder: Path, count: int) -> None:
    """So many images of as many people as it takes, hard links to the same two files for each person."""
    points = FLAME().landmarks()[0].numpy()[:, :2] * [1, -1]
    points = (points - points.mean(0)) * (0.7 * SIDE / np.ptp(points, axis=0).max()) + SIDE / 2
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    _, encoded = cv2.imencode(".jpg", cv2.resize(image, (SIDE, SIDE)))
    for person in range(count // EACH):
        home = folder / f"n{person:06d}"
        home.mkdir(parents=True)
        (home / "0.jpg").write_bytes(encoded.tobytes())
        np.save(home / "0.npy", points)
        for index in range(1, EACH):
            for suffix in (".jpg", ".npy"):
                os.link(home / f"0{suffix}", home / f"{index}{suffix}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[12_500, 50_000, 200_000], help="[12500 50000 200000]")
    parser.add_argument("--one", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        start = time.perf_counter()
        prepare.prepare(*options.one, SETTINGS)
        print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    rows = []
    for count in options.images:
        with tempfile.TemporaryDirectory() as folder:
            make_source(Path(folder) / "source", count)
            command = [sys.executable, __file__, "--one", f"{folder}/source", f"{folder}/set"]
            outputs = [subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout for _ in range(2)]
            kept = len(np.load(f"{folder}/set/manifest.npy", mmap_mode="r"))
            if kept != count // EACH * EACH:
                raise SystemExit(f"expected {count} images, got {kept}")
        (first, peak), (again, peak_again) = (map(float, output.split()) for output in outputs)
        cells = duration(first), f"{count / first:.0f}", f"{peak:.0f} MB", duration(again), f"{peak_again:.0f} MB"
        rows.append([f"{count:,d}", *cells])
        print(f"{count:,d} images: {first:.0f} s", file=sys.stderr)
    print(markdown(["images", "time", "images/s", "peak memory", "again, nothing to do", "peak memory"], rows))


if __name__ == "__main__":
    main()
