"""``python -m ringnet_ext.evaluate``: see :mod:`ringnet_ext.commands.evaluate`."""

import sys

from .commands.main import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
