"""``python -m ringnet_ext.prepare``: see :mod:`ringnet_ext.commands.prepare`."""

import sys

from .commands.main import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
