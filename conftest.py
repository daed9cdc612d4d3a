"""What is not collected where an optional package is missing."""

from __future__ import annotations

import importlib.util

collect_ignore = [] if importlib.util.find_spec("triton") else ["spanwise/kernels/cuda.py"]
