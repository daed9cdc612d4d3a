"""The properties this library's own parts are tested for, to run on parts of your own.

    from spanwise.testing import check_advantage

    def test_mine():
        check_advantage(MyAdvantage())

Each check raises ``AssertionError`` with one line that says what does not hold; it returns
None if all is well. Nothing but torch is needed.

What a run makes of tools, rewards and engines that fail can be tried with those that fail by
a ``FaultPlan``: ``FaultyTool``, ``FaultyReward``, ``FaultySampler`` and ``FaultyEngine``.
"""

from spanwise.testing.advantages import check_advantage
from spanwise.testing.environments import check_environment
from spanwise.testing.faults import (
    Fault,
    FaultPlan,
    FaultyEngine,
    FaultyReward,
    FaultySampler,
    FaultyTool,
)
from spanwise.testing.losses import check_loss
from spanwise.testing.samplers import check_sampler

__all__ = [
    "Fault",
    "FaultPlan",
    "FaultyEngine",
    "FaultyReward",
    "FaultySampler",
    "FaultyTool",
    "check_advantage",
    "check_environment",
    "check_loss",
    "check_sampler",
]
