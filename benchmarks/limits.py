"""What the machine can do at all, measured: multiply-adds and bytes per second; and how many of each a call needs."""

import ctypes
import functools
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Work:
    """What any implementation has to do: floating-point operations, bytes to read and to write."""

    flops: float
    read: float
    written: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.read + other.read, self.written + other.written)


def skinned_points(
    points: int, features: float, weights: float, K: int, J: int, B: int, backward: bool, outputs: int
) -> Work:
    """Work of blending and skinning `points` vertices, batched: on average `features` directions and `weights` skinning
    weights of a vertex aren't zero.

    A multiply-add is two operations. Counted: blending 2 * 3 * features a vertex, mixing transforms 24 a weight,
    applying them 18; backward as much for the features, 24 + 24 a weight for the transforms and their gradient, 15 + 9
    for the vertex. Read once per direction: directions, template, weights, inputs, gradients of the `outputs` points;
    written: the results.
    """
    inputs, constants = B * (K + 3 * J), points * (3 * features + 3 + weights)
    work = Work(B * points * (6 * features + 24 * weights + 18), 4 * (constants + inputs), 4 * B * 3 * outputs)
    if backward:
        flops = B * points * (6 * features + 48 * weights + 24)
        work += Work(flops, 4 * (constants + inputs + B * 3 * outputs), 4 * inputs)
    return work


def rotations(N: int, backward: bool) -> Work:
    """Work of N Rodrigues formulas; sine, cosine, root and division counted as one operation each."""
    return Work(40 * N, 12 * N, 36 * N) + (Work(90 * N, 48 * N, 12 * N) if backward else Work(0, 0, 0))


@functools.cache
def _compiled() -> ctypes.CDLL | None:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return None
    target = Path(tempfile.mkdtemp(prefix="limits-")) / "limits.so"
    flags = ["-O3", "-march=native", "-fopenmp", "-ffp-contract=fast", "-shared", "-fPIC", "-std=c++17"]
    done = subprocess.run(
        [compiler, *flags, str(Path(__file__).with_suffix(".cpp")), "-o", str(target)], capture_output=True
    )
    if done.returncode != 0:
        return None
    library = ctypes.CDLL(str(target))
    library.fma_seconds.restype = library.stream_seconds.restype = ctypes.c_double
    library.fma_seconds.argtypes = [ctypes.POINTER(ctypes.c_double), ctypes.c_int]
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    library.stream_seconds.argtypes = [pointer, size, pointer, size, ctypes.c_int]
    return library


class Limits:
    """The limits of a device, measured afresh at every call.

    On a CPU by a loop of multiply-adds in registers and by plain reads and memset (limits.cpp, where there is a
    compiler). Else by float32 matrix products and copies of PyTorch's, as a stand-in; ``method`` says which.
    """

    _largest = 256 << 20  # bytes streamed at most; longer transfers are measured on as much and scaled

    def __init__(self, device: torch.device):
        self.device = device
        self._core = _compiled() if device.type == "cpu" else None
        self.method = "multiply-adds in registers, reads and memset" if self._core else "torch.matmul and copies"
        self._memory = [torch.zeros(self._largest // 4, device=device) for _ in range(2)]
        if not self._core:
            self._square = torch.randn(3, 2048, 2048, device=device)

    def arithmetic(self, flops: float, threads: int | None = None, at_least: float = 2e8) -> float:
        """Seconds for so many multiply-adds (counted as two), extrapolated from at_least of them on a CPU."""
        if self._core:
            done = ctypes.c_double(max(flops if flops < 1e9 else 1e9, at_least))
            seconds = self._core.fma_seconds(ctypes.byref(done), threads or torch.get_num_threads())
            return seconds * flops / done.value
        a, b, out = self._square
        return self._timed(lambda: torch.mm(a, b, out=out)) * flops / (2 * 2048**3)

    def memory(self, read: float, written: float) -> float:
        """Seconds to move so many bytes, of a working set of this size: what fits a cache is served from there."""
        scale = max(1.0, read / self._largest, written / self._largest)
        read, written = int(read / scale), int(written / scale)
        source, target = self._memory
        if self._core:
            transfer = (source.data_ptr(), read, target.data_ptr(), written)
            return (
                min(self._core.stream_seconds(*transfer, n) for n in (1, torch.get_num_threads()) for _ in range(2))
                * scale
            )
        half = max(1, (read + written) // 8)  # a copy reads and writes
        return self._timed(lambda: target[:half].copy_(source[:half])) * scale

    def _timed(self, call) -> float:
        call()
        self._synchronise()
        start = time.perf_counter()
        for _ in range(3):
            call()
        self._synchronise()
        return (time.perf_counter() - start) / 3

    def _synchronise(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
