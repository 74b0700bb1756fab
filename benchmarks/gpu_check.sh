#!/usr/bin/env bash
# Everything that wants a GPU, in one call of at most eight minutes: builds for the card at hand, compares every kernel with the reference,
# times, profiles, tests, sanitizes, measures beside the peers and, in what time is left, trains the paper's network for some steps.
# Continues after a failure, prints a summary, exits with 1 if anything failed.
#
#     benchmarks/gpu_check.sh [--cpu] [FOLDER]        (default: runs/gpu_check)
#
# FOLDER gets at most 8 files of at most 16 MiB, in no folders, written anew after every step, so that a run that is stopped leaves what it
# has: summary.txt, logs.tar.gz and the figures. --cpu runs what can be run without a GPU, on small sizes, to try the script itself.
#
# Needs nvcc and a Python (PYTHON=...) with torch (CUDA), numpy, pytest, scikit-build-core, pybind11 and ninja. Needs no network: what else
# is missing can be given as wheels, WHEELS=FOLDER, which are installed for this run only. Steps that lack something are left out, and say so.
# GPU_CHECK_SECONDS=N takes N seconds at most instead of 470.
set -uo pipefail
cd "$(dirname "$0")/.."
device=cuda
if [ "${1:-}" = --cpu ]; then
    device=cpu
    shift
fi
out=$(realpath -m "${1:-runs/gpu_check}")
budget=${GPU_CHECK_SECONDS:-470}  # what is not begun or not done by then is left
python=${PYTHON:-python3}
work=$(mktemp -d)
mkdir -p "$out" "$work"/{logs,figures}
touch "$work/results"
export PYTHONPATH="$PWD:$PWD/.site${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 RINGNET_CACHE="$work/cache"
export TORCHINDUCTOR_CACHE_DIR="$work/inductor" TRITON_CACHE_DIR="$work/triton"
published=(logs.tar.gz gpu_kernels.json mesh_products.json benchmark.json history.csv kernels.ncu-rep summary.txt)
for name in "${published[@]}"; do rm -f "$out/$name"; done  # of a run before

# What there is so far goes to FOLDER. A file that is too big is left out, and the summary says so.
publish() {
    (
        flock 9
        cat "$work/about" "$work/results" "$work/tables" >"$work/figures/summary.txt" 2>/dev/null
        cp "$work/train/history.csv" "$work/figures" 2>/dev/null
        rm -rf "$work/ends" && mkdir "$work/ends"
        for log in "$work"/logs/*; do [ ! -e "$log" ] || tail -c 4M "$log" >"$work/ends/${log##*/}"; done
        tar -czf "$work/figures/logs.tar.gz" -C "$work/ends" .
        for name in "${published[@]}"; do
            local file=$work/figures/$name
            [ -s "$file" ] || continue
            if [ "$(stat -c %s "$file")" -gt $((16 << 20)) ]; then
                echo "$name is left out: larger than 16 MiB" >>"$work/figures/summary.txt"
            else
                cp "$file" "$out/.new" && mv "$out/.new" "$out/$name"
            fi
        done
    ) 9>"$work/lock"
}

result() {  # a line of the summary, now and at the end
    printf '%s\n' "$*" | tee -a "$work/results"
}

stop() {
    trap - TERM INT EXIT
    result "FAILED: stopped after $SECONDS s"
    publish
    kill $(jobs -p) 2>/dev/null
    rm -rf "$work"
    exit 143
}
trap stop TERM INT
trap 'rm -rf "$work"' EXIT
if [ $device = cuda ] && ! nvidia-smi >/dev/null; then
    echo "gpu_check.sh: no GPU here (nvidia-smi); --cpu tries the script without one" >&2
    exit 1
fi

step() {  # NAME SECONDS COMMAND...; interrupted at its limit, so that programs can still say what they know
    local name=$1 limit=$2 start=$SECONDS status
    shift 2
    if ((limit > budget - SECONDS)); then limit=$((budget - SECONDS)); fi
    if ((limit < 5)); then
        result "$name: FAILED, no time left"
        return 1
    fi
    timeout --signal=INT --kill-after=5 "$limit" env --default-signal=INT "$@" >"$work/logs/$name.log" 2>&1 &
    [ $BASHPID = $$ ] || trap "kill $!" TERM  # a step beside others
    wait $!
    status=$?
    if ((status == 0)); then
        result "$name: ok, $((SECONDS - start)) s"
    else
        ((status != 124 && status != 137)) || status="$status (its limit)"
        result "$name: FAILED with status $status, $((SECONDS - start)) s"
        tail -n 15 "$work/logs/$name.log" | cut -c -200
    fi
    publish
    return $status
}

skip() { result "$1: left out, $2"; }

imports() { "$python" -c "import ${1// /, }" 2>/dev/null; }

table() {  # NAME LINES: the end of a step's log, for the summary
    tail -n "$2" "$work/logs/$1.log" | cut -c -200 | tee -a "$work/tables"
    echo >>"$work/tables"
}

kernels() { step "$1" "$2" "$python" benchmarks/gpu_kernels.py "${@:3}"; }

# ---- What is here ----
if [ -n "${WHEELS:-}" ]; then
    for wheel in "$WHEELS"/*.whl; do
        "$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$work/wheels" "$wheel" \
            >>"$work/logs/wheels.log" 2>&1 || result "${wheel##*/}: not installed"
    done
    PYTHONPATH="$PYTHONPATH:$work/wheels"
fi
{
    date -u +%Y-%m-%d
    if [ $device = cuda ]; then nvidia-smi --query-gpu=name,driver_version,clocks.sm,compute_cap --format=csv,noheader; else echo "--cpu"; fi
    command -v nvcc >/dev/null && nvcc --version | tail -n 1
    "$python" -c '
import importlib.metadata, importlib.util, sys
def missing(module):
    try:
        return importlib.util.find_spec(module) is None
    except ImportError:
        return True
wanted = "torch numpy pytest hypothesis pytest_benchmark cv2 safetensors trimesh tqdm matplotlib yaml scipy smplx".split()
print("Python", sys.version.split()[0], "torch", importlib.metadata.version("torch"))
print("missing Python packages:", ", ".join(filter(missing, wanted)) or "none")'
} 2>&1 | tee "$work/about"
publish

# ---- Build; meanwhile Python reads torch from the disk for the first time ----
if [ $device = cuda ]; then
    export RINGNET_REQUIRE_CUDA=1
    capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1)
    export CUDAARCHS=${CUDAARCHS:-${capability/./}}
    step build 100 "$python" -m pip install --no-build-isolation --no-deps --upgrade --target .site \
        --config-settings=build-dir="build/gpu_check_$CUDAARCHS" --config-settings=cmake.define.RINGNET_CUDA=ON . &
    step first_import 100 "$python" -c "import torch; torch.ones(8, device='cuda').sum().item()" &
    wait
elif imports "_ringnet_core"; then
    skip build "the core is installed"
else
    step build 100 "$python" -m pip install --no-build-isolation --no-deps --upgrade --target .site \
        --config-settings=cmake.define.RINGNET_CUDA=OFF .
fi

# ---- Right, then how fast; nothing runs beside ----
if [ $device = cuda ]; then
    kernels check 80 check
else
    kernels check 80 check --quick --device cpu
fi
kernels time 40 time --device $device --json "$work/figures/gpu_kernels.json" && table time 8
if command -v nvcc >/dev/null; then
    kernels products 40 products --device $device --json "$work/figures/mesh_products.json" && table products 9
else
    skip products "no nvcc"
fi
if [ $device = cpu ]; then
    kernels profile 40 profile --device cpu
elif command -v ncu >/dev/null; then  # as it finds the clocks
    step ncu 40 ncu --profile-from-start off --clock-control none --set full --kernel-name 'regex:^(small|mesh)_(forward|backward)' \
        --force-overwrite --export "$work/figures/kernels.ncu-rep" "$python" benchmarks/gpu_kernels.py profile
    [ ! -e "$work/figures/kernels.ncu-rep" ] || ncu --import "$work/figures/kernels.ncu-rep" --page details >"$work/logs/ncu_details.log" 2>&1
else
    skip ncu "not installed"
fi

# ---- The benchmark suite beside the peers ----
if imports "pytest pytest_benchmark"; then
    cases="lbs and K150 and (B1- or B64- or B1024-)" seconds=0.2
    [ $device = cuda ] || { cases="lbs-forward and K150 and B1-" seconds=0.05; }
    step benchmark 130 "$python" -m pytest benchmarks -q -p no:cacheprovider --benchmark-only --device $device -k "$cases" --seconds $seconds \
        --benchmark-columns=median,iqr,rounds --benchmark-json "$work/figures/benchmark.json"
    [ ! -s "$work/figures/benchmark.json" ] ||
        "$python" benchmarks/report.py "$work/figures/benchmark.json" 2>&1 | tail -n 12 | tee -a "$work/tables"
else
    skip benchmark "no pytest or pytest-benchmark"
fi

# ---- Tests and sanitizers, side by side; the sanitizers look at our kernels only ----
run_tests() { step tests 140 "$python" -m pytest -q -p no:cacheprovider --continue-on-collection-errors --durations=5 "$@"; }
if ! imports "pytest hypothesis"; then
    skip tests "no pytest or hypothesis"
elif [ $device = cpu ]; then
    run_tests tests/ops/test_points.py tests/ops/test_landmarks.py -k cpu
else
    several=()
    ! imports xdist || several=(-n 6)
    run_tests tests/ops tests/flame tests/test_cuda.py -k "cuda and not emulation" "${several[@]}" &
fi
if [ $device = cuda ] && command -v compute-sanitizer >/dev/null; then
    check=("$python" benchmarks/gpu_kernels.py check --quick)
    ours=(--kernel-regex kns=ringnet --error-exitcode 9)
    # Without torch's caching allocator every tensor is an allocation of its own, and memcheck sees every overrun.
    memcheck=(env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck "${ours[@]}")
    step memcheck 100 "${memcheck[@]}" "${check[@]}" &
    step racecheck 100 compute-sanitizer --tool racecheck "${ours[@]}" "${check[@]}" &
    # What must be found is found: an overrun of ours.
    step planted_overrun 100 bash -c '"$@" 2>&1 | tee -a /dev/stderr | grep "Invalid __global__"' _ \
        "${memcheck[@]}" "$python" benchmarks/gpu_kernels.py overrun &
else
    skip "memcheck, racecheck" "no GPU or no compute-sanitizer"
fi
wait

# ---- Optional: the whole trainer, 32 rings of 6 a step, ResNet-50; the last row of history.csv is without the compilation ----
if ! imports "ringnet_ext.commands.train"; then
    skip train "$("$python" -c 'import ringnet_ext.commands.train' 2>&1 | tail -n 1)"
elif [ $device = cuda ] && ((budget - SECONDS < 60)); then
    skip train "less than a minute left"
else
    train=(--preset paper --precision bfloat16 --compile --steps 60 --checkpoint-steps 20 --identities 64 --image-size 256)
    [ $device = cuda ] || train=(--steps 2 --checkpoint-steps 1 --identities 4 --image-size 64 --rings 2)
    step train $((budget - SECONDS)) "$python" -m ringnet_ext.train "${train[@]}" --test-identities 0 --device $device \
        --out "$work/train" --cache "$work/cache" --overwrite
fi

publish
find "$out" -type f -printf '%P %s bytes\n' | sort
if (($(find "$out" -type f | wc -l) > 8)) || [ -n "$(find "$out" -mindepth 1 \( -type d -o -size +16M \))" ]; then
    result "folder: FAILED, more than 8 files, a folder, or one of more than 16 MiB"
fi
echo
cat "$work/about" "$work/results"
echo "$SECONDS s"
! grep -q FAILED "$work/results"
