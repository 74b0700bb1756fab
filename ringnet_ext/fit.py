"""``python -m ringnet_ext.fit``: fit heads to landmarks. (``ringnet_ext.fit`` in Python is the function.)"""

import sys

if __name__ == "__main__":
    from ringnet_ext.commands.fit import main

    sys.exit(main())
