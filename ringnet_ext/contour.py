"""``python -m ringnet_ext.contour``: see :mod:`ringnet_ext.commands.contour`."""

import sys

from .commands.main import main

if __name__ == "__main__":
    sys.exit(main(["contour", *sys.argv[1:]]))
