"""``python -m spanwise`` is ``spanwise``."""

import os
import sys

# -m puts the working folder first, where a user's random.py would be imported as that of Python.
if sys.path[0] == os.getcwd():
    sys.path.append(sys.path.pop(0))

from spanwise.cli import main

sys.exit(main())
