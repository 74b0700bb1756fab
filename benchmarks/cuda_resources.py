"""Writes docs/cuda_resources.md: what each CUDA kernel takes of a multiprocessor, by architecture, as ptxas reports it.

    python benchmarks/cuda_resources.py

Needs nvcc and no GPU. Fails where a kernel doesn't compile without warnings or spills registers at sm_80 or above, or
keeps an array in memory.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = ["75", "80", "86", "89", "90", "100", "120"]
LARGEST_STACK = 40  # bytes that sine and cosine take; more is an array that is indexed at run time
FLAGS = ["-std=c++17", "-O3", "-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra,-Werror", "-Xptxas", "-v"]

HEADER = """\
# Resources of the CUDA kernels

**Not run on a GPU.** This is the compiler's report (`ptxas -v`, {nvcc}), written by
`python benchmarks/cuda_resources.py`.

The table at the end has registers per thread, by architecture; `+ n` are bytes spilled, where there are any. Static
shared memory is in bytes per block. Dynamic shared memory comes on top; `csrc/cuda/layout.h` computes it from the
sizes. For V = 5023, K = 150, J = 5 in float32 it is

| kernel | dynamic shared memory, bytes per block |
|---|---|
| small_forward, 4 elements (1 element), of 384 threads that share the features | 32,064 (8,016) |
| mesh_backward in float32, 8 (4) elements per thread; on tensor cores | 79,360 (58,880); 76,288 |
| pose_forward | 2,880 |
| pose_backward, 4 parts (1 part) | 4,896 (1,944) |
"""


@dataclass(frozen=True)
class Usage:
    registers: int
    spilled: int  # bytes stored
    stack: int  # bytes
    shared: int  # bytes, static


def compile_source(source: Path, architecture: str, folder: Path) -> dict[str, Usage]:
    """Compiles one source for one architecture; returns its kernels' usage by name."""
    command = [
        "nvcc",
        *FLAGS,
        f"-arch=sm_{architecture}",
        "-cubin",
        "-o",
        folder / f"{source.stem}_{architecture}.cubin",
        source,
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{source.name} for sm_{architecture}:\n{result.stderr}")
    report = subprocess.run(["c++filt"], input=result.stderr, capture_output=True, text=True, check=True).stdout
    usage = {}
    # A kernel's report runs from its "Compiling entry function" to the next; the functions it calls report inside,
    # after its own.
    for entry in report.split("Compiling entry function '")[1:]:
        name = re.sub(r"\(anonymous namespace\)::|ringnet::|cuda::|^void ", "", entry[: entry.index("' for")])
        patterns = r"Used (\d+) registers", r"(\d+) bytes spill stores", r"(\d+) bytes stack frame", r"(\d+) bytes smem"
        found = (re.search(pattern, entry) for pattern in patterns)
        usage[re.sub(r"\(.*", "", name)] = Usage(*(int(match[1]) if match else 0 for match in found))
    return usage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--architectures", nargs="+", default=ARCHITECTURES, help="compute capabilities without the dot (%(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time (%(default)s)")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs" / "cuda_resources.md", help="the page to write (%(default)s)"
    )
    arguments = parser.parse_args()
    if not (shutil.which("nvcc") and shutil.which("c++filt")):
        sys.exit("nvcc and c++filt are needed")

    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    kernels: dict[str, dict[str, Usage]] = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.jobs) as pool:
        tasks = list(product(sources, arguments.architectures))
        usages = pool.map(lambda task: compile_source(*task, Path(folder)), tasks)
        for (_, architecture), usage in zip(tasks, usages, strict=True):
            for name, used in usage.items():
                kernels.setdefault(name, {})[architecture] = used

    says = subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout
    version = re.search(r"release ([\d.]+)", says)
    lines = [HEADER.format(nvcc=f"nvcc {version[1]}")]
    columns = [f"sm_{a}" for a in arguments.architectures]
    lines.append(f"| kernel | {' | '.join(columns)} | static shared | stack |")
    lines.append("|---|" + "---:|" * (len(columns) + 2))
    spills = []
    for name, by_architecture in sorted(kernels.items()):
        cells = []
        for architecture in arguments.architectures:
            used = by_architecture[architecture]
            cells.append(f"{used.registers}" + (f" + {used.spilled}" if used.spilled else ""))
            if used.spilled and int(architecture) >= 80:
                spills.append(f"{name} at sm_{architecture}: {used.spilled} bytes")
            if used.stack > LARGEST_STACK and not used.spilled:
                spills.append(f"{name} at sm_{architecture}: an array of {used.stack} bytes in memory")
        shared, stack = (max(getattr(u, what) for u in by_architecture.values()) for what in ("shared", "stack"))
        lines.append(f"| `{name}` | {' | '.join(cells)} | {shared} | {stack} |")
    lines.append(
        "\nA stack without spills is that of sine and cosine for large arguments.\n"
        if not spills
        else "\nNot in registers: " + "; ".join(spills) + ".\n"
    )
    temporary = arguments.out.with_suffix(".tmp")
    temporary.write_text("\n".join(lines))
    temporary.replace(arguments.out)
    print(f"{arguments.out}: {len(kernels)} kernels, {len(columns)} architectures")
    if spills:
        sys.exit("spilled registers: " + "; ".join(spills))


if __name__ == "__main__":
    main()
