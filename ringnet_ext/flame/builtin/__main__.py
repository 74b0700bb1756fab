"""``python -m ringnet_ext.flame.builtin``: compute the built-in head anew and store it. For whoever changes the
program, and then raises ``VERSION``."""

import numpy as np

from ...files.whole import written_whole
from . import FILE, stored_arrays
from .program import compute

if __name__ == "__main__":
    with written_whole(FILE) as file:
        np.savez_compressed(file, **stored_arrays(compute()))
    print(f"wrote {FILE}")
