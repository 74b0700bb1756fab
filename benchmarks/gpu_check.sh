#!/usr/bin/env bash
# Everything that wants a GPU, in under ten minutes: builds for the card at hand, compares every kernel with the reference, tests,
# sanitizes, times, and trains the paper's network for some steps. Continues after a failure, prints a summary, exits with 1 if anything failed. The benchmark
# suite beside the peers is a command of its own: pytest benchmarks --benchmark-only --device cuda --quick
#
#     benchmarks/gpu_check.sh [FOLDER]        (default: runs/gpu_check; gets the logs and the figures as JSON)
#
# Needs nvcc, compute-sanitizer, and a Python with torch (CUDA), pytest, scikit-build-core, pybind11, ninja and the
# package's dependencies. Needs no network: nothing is fetched.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-runs/gpu_check}")
mkdir -p "$out"
export PYTHONPATH="$PWD:$PWD/.site" RINGNET_REQUIRE_CUDA=1 CUDAARCHS=${CUDAARCHS:-native}
python=${PYTHON:-python3}
failed=()

step() {  # NAME SECONDS COMMAND...
    local name=$1 limit=$2 start=$SECONDS
    shift 2
    echo "== $name (at most $limit s)"
    if timeout "$limit" "$@" >"$out/$name.log" 2>&1; then
        echo "   ok, $((SECONDS - start)) s"
    else
        echo "   FAILED with status $?, $((SECONDS - start)) s; the end of $out/$name.log:"
        tail -n 25 "$out/$name.log"
        failed+=("$name")
    fi
}

nvidia-smi --query-gpu=name,driver_version,clocks.sm --format=csv | tee "$out/device.csv"
step build 150 $python -m pip install --no-build-isolation --no-deps --upgrade --target .site \
    --config-settings=cmake.define.RINGNET_CUDA=ON --config-settings=cmake.define.RINGNET_WERROR=ON .
# A wrong kernel makes everything after it meaningless, so this comes first.
step check 60 $python benchmarks/gpu_kernels.py check
step time 90 $python benchmarks/gpu_kernels.py time --json "$out/gpu_kernels.json"
tail -n 17 "$out/time.log"
step tests 150 $python -m pytest -q -x tests/test_ops*.py tests/test_landmarks.py tests/test_flame_layer.py
# Without torch's caching allocator every tensor is an allocation of its own, and memcheck sees every overrun.
step memcheck 60 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    compute-sanitizer --tool memcheck --error-exitcode 9 $python benchmarks/gpu_kernels.py check
step racecheck 60 compute-sanitizer --tool racecheck --error-exitcode 9 $python benchmarks/gpu_kernels.py check
# The whole trainer: 32 rings of 6 a step, ResNet-50; history.csv has the images per second, the last row without the compilation.
step train 100 $python -m ringnet_ext.train --preset paper --precision bfloat16 --compile --steps 60 --checkpoint-steps 20 \
    --identities 64 --image-size 256 --test-identities 0 --device cuda --out "$out/train" --cache "$out/cache" --overwrite
tail -n 1 "$out/train/history.csv"

if ((${#failed[@]})); then
    echo "failed: ${failed[*]}"
    exit 1
fi
echo "all passed in $SECONDS s"
