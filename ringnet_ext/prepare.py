"""``python -m ringnet_ext.prepare``: see :mod:`ringnet_ext.commands.prepare`."""

import sys

from .commands.prepare import main

if __name__ == "__main__":
    sys.exit(main())
