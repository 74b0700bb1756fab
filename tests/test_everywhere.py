"""What is trained on the built-in head loads wherever it is taken: the head is the same bits on every machine."""

import os
import subprocess
import sys

import pytest

from ringnet_ext import RingNet

_CPU = str(min(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ""
#: What used to change the head's last bits: numbers of threads and cores, and which instructions NumPy's linear
# algebra, its : functions, and our core choose by the processor.
MACHINES = {
    "an old processor, one core": {
        "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OPENBLAS_CORETYPE": "Nehalem", "RINGNET_SIMD": "baseline",
        "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512_SKX AVX2 FMA3",
    },
    "a new processor, several threads": {
        "OMP_NUM_THREADS": "4", "OPENBLAS_NUM_THREADS": "4", "OPENBLAS_CORETYPE": "SkylakeX",
    },
}  # fmt: skip
_PROGRAM = """
import hashlib, os, sys
if len(sys.argv) > 2:
    os.sched_setaffinity(0, {int(sys.argv[2])})
import numpy as np
from ringnet_ext import RingNet
head = RingNet.load(sys.argv[1]).head
digest = hashlib.sha256()
for arrays in (vars(head), head.landmarks.arrays(), head.regions):
    for name, array in sorted(arrays.items()):
        if isinstance(array, np.ndarray):
            digest.update(array.tobytes())
print(digest.hexdigest())
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What the program prints on each of the machines, from a checkpoint of this one."""
    path = tmp_path_factory.mktemp("everywhere") / "model.safetensors"
    RingNet().save(path)
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _PROGRAM, str(path), *[_CPU] * bool("one core" in name and _CPU)],
            env=os.environ | settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for name, settings in MACHINES.items()
    ]  # fmt: skip
    return [(*process.communicate(timeout=120), process.returncode) for process in processes]


def test_a_checkpoint_loads_on_other_processors_and_has_the_same_head_to_the_bit(printed):
    for _, errors, code in printed:
        assert code == 0, errors
    assert len({output for output, _, _ in printed}) == 1
