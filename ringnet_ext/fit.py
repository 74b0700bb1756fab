"""``python -m ringnet_ext.fit``: fit heads to landmarks."""

import sys

if __name__ == "__main__":
    from .commands.fit import main

    sys.exit(main())

# Whoever imports this module gets the function of its name, which would otherwise be hidden behind it.
from .fitting import fit

sys.modules[__name__] = fit
