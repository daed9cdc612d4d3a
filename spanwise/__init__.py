"""Reinforcement learning for language models, credit and ratio one span at a time.

The torch-only core is ``spanwise.spans``, ``spanwise.advantages`` and ``spanwise.losses``;
what drives it from a question to an optimizer step is in the modules below them.
"""

__version__ = "0.2.0"
