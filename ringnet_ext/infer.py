"""``python -m ringnet_ext.infer``: see :mod:`ringnet_ext.commands.infer`."""

import sys

from .commands.main import main

if __name__ == "__main__":
    sys.exit(main(["infer", *sys.argv[1:]]))
