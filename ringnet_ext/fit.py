"""``python -m ringnet_ext.fit``: see :mod:`ringnet_ext.commands.fit`."""

import sys
from typing import Any

if __name__ == "__main__":
    from .commands.main import main

    sys.exit(main(["fit", *sys.argv[1:]]))

# Whoever imports this module gets the function of its name, which would otherwise be hidden behind it.
from .fitting import fit

function: Any = fit
sys.modules[__name__] = function
