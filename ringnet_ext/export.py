"""``python -m ringnet_ext.export``: see :mod:`ringnet_ext.commands.export`."""

import sys

from .commands.main import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
