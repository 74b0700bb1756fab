"""``python -m ringnet_ext.flame``: what ``ringnet pose`` was called, see :mod:`ringnet_ext.commands.pose`."""

import sys

from ..commands.main import main

if __name__ == "__main__":
    sys.exit(main(["pose", *sys.argv[1:]]))
