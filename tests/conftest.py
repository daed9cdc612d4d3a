"""Settings for the whole suite."""

import torch
from hypothesis import settings

# No deadline for one example: the first call of a kernel compiles it.
settings.register_profile("spanwise", deadline=None)
settings.load_profile("spanwise")

# Workers that run side by side would fight over the cores, and the models are tiny.
torch.set_num_threads(1)
