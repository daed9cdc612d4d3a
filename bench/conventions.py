"""One trajectory under the conventions of multi-turn PPO: writes ``docs/conventions.md``.

Run ``python -m bench.conventions``. Every convention is a plain loop in float64, written from
its definition; ours is ``advantages.span_advantages``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from spanwise import spans
from spanwise.advantages import span_advantages

PAGE = Path(__file__).parent.parent / "docs" / "conventions.md"
LAM = 0.95

Rule = Callable[[list[bool], list[float], list[float]], list[float]]
"""Mask, rewards and values of one row to the advantages of its model tokens."""


def carried_over(mask: list[bool], rewards: list[float], values: list[float]) -> list[float]:
    """Masked tokens are stepped over: the recursion sees model tokens alone."""
    found, advantage, next_value = [], 0.0, 0.0
    for sampled, reward, value in reversed(list(zip(mask, rewards, values, strict=True))):
        if sampled:
            advantage = reward + next_value - value + LAM * advantage
            next_value = value
            found.append(advantage)
    return found[::-1]


def mask_ignored(mask: list[bool], rewards: list[float], values: list[float]) -> list[float]:
    """Every token takes part; the mask is applied to the result."""
    found, advantage, next_value = [], 0.0, 0.0
    for sampled, reward, value in reversed(list(zip(mask, rewards, values, strict=True))):
        advantage = reward + next_value - value + LAM * advantage
        next_value = value
        if sampled:
            found.append(advantage)
    return found[::-1]


def values_zeroed(mask: list[bool], rewards: list[float], values: list[float]) -> list[float]:
    """Values of masked tokens are 0, and the trace decays over them."""
    zeroed = [value if sampled else 0.0 for sampled, value in zip(mask, values, strict=True)]
    return mask_ignored(mask, rewards, zeroed)


def ours(mask: list[bool], rewards: list[float], values: list[float]) -> list[float]:
    mask_1T = torch.tensor([mask])
    rewards_1T, values_1T = (torch.tensor([x], dtype=torch.float64) for x in (rewards, values))
    credit = span_advantages(rewards_1T, values_1T, spans.by_token(mask_1T), lam=LAM)
    return credit[mask_1T].tolist()


RULES: tuple[tuple[str, str, Rule], ...] = (
    ("**spanwise**", "masked tokens are stepped over", ours),
    ("verl, AReaL, NeMo-RL", "the same, as a plain loop", carried_over),
    ("SkyRL, ROLL, slime", "the mask is ignored inside the recursion", mask_ignored),
    ("OpenRLHF", "values there are 0, and the trace decays over them", values_zeroed),
)

TEXT = """\
# Conventions of multi-turn PPO

<!-- Written by `python -m bench.conventions`; change that script, not this page. -->

An agent's trajectory has tokens that the model sampled and tokens that a tool put between them. A
critic predicts a value before every token. What becomes of the values at the tool's tokens, and of
the trace that runs over them, differs from framework to framework, and with it the credit of the
model's tokens. What follows is computed, not quoted.

## One trajectory

Two model tokens, three of a tool, two model tokens; reward 1 at the end; values 0.5 at the model's
tokens and 0.9 at the tool's; gamma = 1, lambda = 0.95; advantages of the four model tokens before
any whitening.

{example}

By hand, ours: the last token has 1 - 0.5 = 0.5. Every earlier one has the error 0.5 - 0.5 = 0, so
it has 0.95 times the advantage of the model token after it: 0.475, 0.45125, 0.4286875.

## The same decisions, other observations

The advantage of the first model token while only the tool's tokens change: how many there are, and
what the critic happens to say of them.

{changed}

## Why stepping over them is right

The policy makes no decision at a tool's token. What a state is worth at the moment of a decision
does not depend on how many tokens the tool took to say what it said, so neither may the advantage.

- With the mask ignored, the critic's values at tokens that no loss ever trained it on enter as if
  they were predictions of return; and the trace decays with the length of the observation, so a
  longer search result makes the query that asked for it less responsible for the answer.
- With values set to 0, the model token before the observation hands over to a state that is said
  to be worth nothing, and is charged its whole value for it. The tool's last token is paid that
  value back; what of the payment reaches the model decays with the length of the observation.
- Stepped over, both effects are gone: all columns above agree. The values at the tool's tokens may
  be anything, NaN included.

The property holds for every span: `spanwise.testing.check_advantage` runs it on an advantage of
your own.

How the three conventions are shared out among the frameworks is from a reading of their sources in
2026; they may have changed since. The numbers are those of the conventions.
"""


def example_row(num_tool: int, tool_value: float) -> tuple[list[bool], list[float], list[float]]:
    """Two model tokens, some of a tool, two model tokens; reward 1 at the end."""
    mask = [True, True, *[False] * num_tool, True, True]
    rewards = [0.0] * (len(mask) - 1) + [1.0]
    values = [0.5 if sampled else tool_value for sampled in mask]
    return mask, rewards, values


def page() -> str:
    """The whole page."""
    example = ["| in use at | convention | 1 | 2 | 6 | 7 |", "|---|---|---|---|---|---|"]
    for name, convention, rule in RULES:
        figures = " | ".join(f"{x:.4f}" for x in rule(*example_row(3, 0.9)))
        example.append(f"| {name} | {convention} | {figures} |")
    others = ((3, 0.9), (30, 0.9), (300, 0.9), (3, 0.1))
    heads = " | ".join(f"{n} tokens at {value}" for n, value in others)
    changed = [f"| in use at | {heads} |", "|---|" + "---|" * len(others)]
    for name, _, rule in RULES:
        figures = " | ".join(f"{rule(*example_row(*each))[0]:.4f}" for each in others)
        changed.append(f"| {name} | {figures} |")
    return TEXT.format(example="\n".join(example), changed="\n".join(changed))


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote docs/{PAGE.name}")


if __name__ == "__main__":
    main()
