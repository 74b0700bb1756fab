"""``python -m ringnet_ext.sheet``: see :mod:`ringnet_ext.commands.sheet`."""

import sys

from .commands.main import main

if __name__ == "__main__":
    sys.exit(main(["sheet", *sys.argv[1:]]))
