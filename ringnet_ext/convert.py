"""``python -m ringnet_ext.convert``: see :mod:`ringnet_ext.commands.convert`."""

import sys

from .commands.main import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
