"""The innermost loops of the matrix products on aarch64, as compiled: fails where one keeps an accumulator in memory.

    python tests/core/loops.py KERNELS.o

Needs objdump for aarch64. The kernels count on filling the 32 vector registers exactly; a compiler that spills still
computes the right thing, at half the speed.
"""

import argparse
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass

PRODUCTS = re.compile(r"ringnet::\(anonymous namespace\)::((?:blend_tiles|project_features|blend_corners)<[^>]*>)\(")


@dataclass(frozen=True)
class Loop:
    function: str
    instructions: int
    products: int
    spills: int  # vector registers stored on the stack or loaded from it, of all in the loop


def objdump() -> str:
    for name in ("aarch64-linux-gnu-objdump", "objdump"):
        if path := shutil.which(name):
            return path
    sys.exit("loops.py needs objdump for aarch64: install binutils-aarch64-linux-gnu")


def product_loops(disassembly: str) -> list[Loop]:
    """The loops that multiply and hold no other loop that does."""
    found = []
    for block in re.split(r"\n(?=[0-9a-f]{16} <)", disassembly):
        if not (name := PRODUCTS.search(block.split("\n", 1)[0])):
            continue
        lines = re.findall(r"^\s*([0-9a-f]+):\s+(\S+)[ \t]*(.*)$", block, re.MULTILINE)
        code = [(int(address, 16), operation, operands) for address, operation, operands in lines]
        loops = set()
        for address, operation, operands in code:
            target = re.search(r"\b([0-9a-f]+) <", operands)
            if target and re.match(r"b(\.|$)|cbn?z|tbn?z", operation) and code[0][0] <= int(target[1], 16) <= address:
                loops.add((int(target[1], 16), address))
        multiplying = {}
        for first, last in loops:
            body = [(operation, operands) for address, operation, operands in code if first <= address <= last]
            if products := sum(operation == "fmla" for operation, _ in body):
                spills = sum(bool(re.match(r"[qdsv]\d+.*\[(sp|x29)\b", operands)) for _, operands in body)
                multiplying[first, last] = Loop(name[1], len(body), products, spills)
        for (first, last), loop in sorted(multiplying.items()):
            if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in multiplying):
                found.append(loop)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("object", metavar="KERNELS.o", help="csrc/cpu/kernels.cpp, compiled for aarch64")
    path = parser.parse_args().object
    command = [objdump(), "-d", "-C", "--no-show-raw-insn", path]
    loops = product_loops(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    if not any(loop.function == "blend_tiles<float, 8, 1>" for loop in loops):
        sys.exit(f"{path}: expected the kernels compiled for aarch64, found no loop of blend_tiles<float, 8, 1>")
    print(f"{'loop of':32} instructions  products  spills")
    for loop in sorted(loops, key=lambda loop: loop.function):
        print(f"{loop.function:32} {loop.instructions:12} {loop.products:9} {loop.spills:7}")
    return 1 if any(loop.spills for loop in loops) else 0


if __name__ == "__main__":
    sys.exit(main())
