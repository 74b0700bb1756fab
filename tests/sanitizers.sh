#!/usr/bin/env bash
# The operators on a core built with AddressSanitizer and UndefinedBehaviorSanitizer, at every instruction set that this processor
# has, and on the CUDA kernels as tests/cuda_emulation runs them. Fails on any finding. Needs gcc, its sanitizer libraries, and an
# environment that has the test packages (README's test command). PYTHON=... chooses the interpreter.
#
# At every level: tests/core, and all tests that call the operators. As many at a time as there are cores.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
work=$(mktemp -d)
trap 'kill $(jobs -rp) 2>/dev/null || true; rm -rf "$work"' EXIT

export CXX=${CXX:-g++}
flags="-fsanitize=address,undefined -fno-sanitize-recover=all"
libasan=$("$CXX" -print-file-name=libasan.so 2>/dev/null || true)
if ! echo 'int main() {}' | "$CXX" $flags -x c++ - -o "$work/probe" 2>/dev/null || [ ! -e "$libasan" ]; then
    echo "sanitizers: skipped, $CXX has no AddressSanitizer and UndefinedBehaviorSanitizer here"
    exit 0
fi

began=$SECONDS
CXXFLAGS="$flags -fno-omit-frame-pointer -g1" LDFLAGS="$flags" "$python" -m pip install --quiet --no-deps \
    --target "$work/site" --config-settings=build-dir="$work/build" --config-settings=cmake.build-type=None \
    --config-settings=cmake.define.RINGNET_CUDA=OFF --config-settings=cmake.define.RINGNET_OPTIMIZATION=-O1 .
link() { "$CXX" -std=c++17 -O1 -g1 $flags -Icsrc tests/core/operators.cpp "$@" "$work/build/libringnet_core.a"; }
link -fopenmp -o "$work/operators"
link csrc/cpu/threads.cpp -o "$work/operators_without_openmp"
echo "sanitizers: built in $((SECONDS - began)) s"

# Only the core from there: the package is the checkout's. Python itself leaks by design. libstdc++ is named because
# AddressSanitizer looks for its throw before Python has loaded any C++.
mkdir "$work/core"
mv "$work/site"/_ringnet_core* "$work/core"
run() {
    PYTHONPATH="$work/core" LD_PRELOAD="$libasan $("$CXX" -print-file-name=libstdc++.so.6)" OMP_WAIT_POLICY=passive \
        ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=1 UBSAN_OPTIONS=print_stacktrace=1 "$@"
}

# What must be found is found: the core trusts its caller, so a lie about a size or an address is an error inside it.
notices() {  # WHAT N OFFSET: rodrigues of N vectors, OFFSET bytes into a buffer, with room for the matrices of a hundred
    if run "$python" -c "
import torch, _ringnet_core as core
rot_vecs = torch.frombuffer(bytearray(4 * 3 * $2 + 8), dtype=torch.float32, offset=$3, count=3 * $2).view(-1, 3)
core.rodrigues_forward_f32(is_cuda=False, rot_vecs=rot_vecs, matrices=torch.empty(100, 3, 3))" >"$work/report" 2>&1 || ! grep -q "$1" "$work/report"; then
        echo "sanitizers: FAILED, a planted error went unnoticed: $1" >&2
        exit 1
    fi
}
notices "heap-buffer-overflow" 101 0
notices "misaligned address" 1 1

# start NAME COMMAND...: in the background, as soon as a core is free for it. What it prints is shown if it fails.
started=0
start() {
    local name=$1
    shift
    while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do wait -n || true; done
    [ ! -e "$work/failed" ] || exit 1
    started=$((started + 1))
    (
        began=$SECONDS
        if "$@" >"$work/$name.log" 2>&1; then
            echo "sanitizers: $name clean, $((SECONDS - began)) s: $(tail -n 1 "$work/$name.log")" | tee -a "$work/clean"
        else
            touch "$work/failed"
            cat "$work/$name.log"
            echo "sanitizers: FAILED in $name" >&2
        fi
    ) &
}
# A finding ends the process, hence -s. Left out: the compiler's tests, which call the same code at no new size, other levels'
# subprocesses, the comparison of rounding errors, and what needs a process short of memory or of time (test_threads).
tests() {
    run "$python" -m pytest -q -x -s -rfE -p no:cacheprovider \
        -k "not compile and not opcheck and not every_simd_level and not as_close_as" "$@"
}
operators() {
    "$work/operators" 100
    tests "$@"
}
# All that calls the operators, and what the core does of meshes.
callers() {
    ls tests/ops/test_*.py tests/flame/test_layer.py tests/geometry/test_surface.py tests/files/test_meshes.py | grep -v -e architectures -e cuda_emulation -e threads
}

# The CUDA kernels on the host: every address that they use. A fiber's switch costs much here, so a few sizes only: of each tiling one.
emulated() {
    CXXFLAGS="$flags -fno-omit-frame-pointer -g1 -O1" run "$python" -m pytest -q -x -s -rfE -p no:cacheprovider \
        tests/ops/test_cuda_emulation.py -k "every_operator and dtype0 and (B3- or B12- or B20- or B33-)"
}
start "the CUDA kernels on the host" emulated
start "without OpenMP" "$work/operators_without_openmp" 20

for level in baseline avx2 avx512; do
    if RINGNET_SIMD=$level run "$python" -c 'import _ringnet_core; _ringnet_core.simd_level()' 2>/dev/null; then
        RINGNET_SIMD=$level start "$level" operators $(callers)
    else
        echo "sanitizers: this processor has no $level"
    fi
done
wait
[ "$(wc -l <"$work/clean")" = "$started" ] || exit 1
