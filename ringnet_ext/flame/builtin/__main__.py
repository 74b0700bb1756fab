"""``python -m ringnet_ext.flame.builtin``: compute the built-in head anew and store it. For whoever changes the
program, and then raises ``VERSION``."""

from typing import Any

import numpy as np

from ...files.whole import written_whole
from . import FILE, stored_arrays
from .program import compute

if __name__ == "__main__":
    arrays: dict[str, Any] = {**stored_arrays(compute())}
    with written_whole(FILE) as file:
        np.savez_compressed(file, **arrays)
    print(f"wrote {FILE}")
