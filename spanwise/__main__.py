"""``python -m spanwise`` is ``spanwise``."""

import sys

from spanwise.cli import main

sys.exit(main())
