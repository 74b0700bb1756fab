"""``python -m ringnet_ext.contact_sheet``: see :mod:`ringnet_ext.commands.sheet`."""

import sys

from .commands.sheet import main

if __name__ == "__main__":
    sys.exit(main())
