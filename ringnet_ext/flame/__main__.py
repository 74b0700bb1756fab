"""``python -m ringnet_ext.flame``: see :mod:`ringnet_ext.commands.pose`."""

import sys

from ..commands.pose import main

if __name__ == "__main__":
    sys.exit(main())
