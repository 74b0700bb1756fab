"""``python -m ringnet_ext.doctor``: see :mod:`ringnet_ext.commands.doctor`."""

import sys

from .commands.main import main

if __name__ == "__main__":
    sys.exit(main(["doctor", *sys.argv[1:]]))
