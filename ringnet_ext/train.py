"""``python -m ringnet_ext.train``: see :mod:`ringnet_ext.commands.train`."""

import sys

from .commands.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
