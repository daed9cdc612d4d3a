"""Settings for the whole suite."""

import pytest
import torch
from hypothesis import settings

# No deadline for one example: the first call of a kernel compiles it.
settings.register_profile("spanwise", deadline=None)
settings.load_profile("spanwise")

# Workers that run side by side would fight over the cores, and the models are tiny.
torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that start processes run one after the other, on one worker of pytest-xdist."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            if item.get_closest_marker("processes"):
                item.add_marker(pytest.mark.xdist_group("processes"))
