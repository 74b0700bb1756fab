#!/usr/bin/env bash
# The core for aarch64, on any Linux: compiled without a warning, its product loops without a spill, its operators run by an
# emulator. Needs cmake and Debian's g++-aarch64-linux-gnu and qemu-user; with --install, apt-get is asked for what is missing.
# Without them it says so and succeeds.
set -euo pipefail
cd "$(dirname "$0")/core"

missing() {
    for command in cmake make aarch64-linux-gnu-g++ qemu-aarch64; do
        command -v "$command" >/dev/null || echo "$command"
    done
}
if [ -n "$(missing)" ] && [ "${1:-}" = --install ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    install="timeout 120 apt-get install -y -qq --no-install-recommends cmake make g++-aarch64-linux-gnu qemu-user"
    { $install || { timeout 60 apt-get update -qq && $install; }; } >/dev/null 2>&1 || true
fi
if [ -n "$(missing)" ]; then
    echo "aarch64: skipped, there is no $(missing | paste -sd ' ')"
    exit 0
fi

began=$SECONDS
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
cmake -S . -B "$build" -G "Unix Makefiles" -DRINGNET_WERROR=ON -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ >"$build/log" || { cat "$build/log"; exit 1; }
cmake --build "$build" --parallel "$(nproc)" >"$build/log" 2>&1 || { cat "$build/log"; exit 1; }
python3 loops.py "$(find "$build" -name 'kernels.cpp.o')" >"$build/log" || { echo "aarch64: FAILED, a product loop spills"; cat "$build/log"; exit 1; }
qemu-aarch64 -L /usr/aarch64-linux-gnu "$build/operators"
echo "aarch64: compiled without a warning, no spill in $(grep -c '<' "$build/log") loops: $((SECONDS - began)) s"
