"""Conventions of PPO over turns and segments, computed: writes ``docs/conventions.md``.

Run ``python -m bench.conventions``. Every convention is a plain loop in float64, written from
its definition; ours is ``advantages.span_advantages``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

import torch

from spanwise import spans
from spanwise.advantages import span_advantages, span_returns

PAGE = Path(__file__).parent.parent / "docs" / "conventions.md"
LAM, THRESHOLD = 0.95, 0.2

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


def turn_as_step(
    mask: list[bool], rewards: list[float], values: list[float], gamma: float
) -> tuple[list[float], list[float]]:
    """Advantages and returns where a whole turn is one step, worth the value at its first token."""
    rows = list(zip(mask, rewards, values, strict=True))
    turns = [list(run) for sampled, run in groupby(rows, key=lambda row: row[0]) if sampled]
    advantages: list[float] = []
    returns: list[float] = []
    advantage, next_value = 0.0, 0.0
    for turn in reversed(turns):
        value, paid = turn[0][2], sum(reward for _, reward, _ in turn)
        advantage = paid + gamma * next_value - value + gamma * LAM * advantage
        advantages += [advantage] * len(turn)
        returns += [advantage + value] * len(turn)
        next_value = value
    return advantages[::-1], returns[::-1]


def over_turns(
    mask: list[bool], rewards: list[float], values: list[float], gamma: float
) -> tuple[list[float], list[float]]:
    """The same of ours: credit over turns, a step each token."""
    mask_1T = torch.tensor([mask])
    rewards_1T, values_1T = (torch.tensor([x], dtype=torch.float64) for x in (rewards, values))
    of_turns = rewards_1T, values_1T, spans.by_turn(mask_1T)
    found = (f(*of_turns, gamma=gamma, lam=LAM)[mask_1T] for f in (span_advantages, span_returns))
    advantages, returns = (x.tolist() for x in found)
    return advantages, returns


def equation_9(
    probabilities: Sequence[float], values: Sequence[float], outcome: float
) -> list[float]:
    """Eq. 9 and 10 in code: ``V_t`` is read before token t, and an unlikely t + 1 has it decay."""
    found: list[float] = []
    advantage, next_value, next_unlikely = 0.0, outcome, False
    for probability, value in reversed(list(zip(probabilities, values, strict=True))):
        decay = LAM if next_unlikely else 1.0
        advantage = next_value - value + decay * advantage
        found.append(advantage)
        next_value, next_unlikely = value, probability < THRESHOLD
    return found[::-1]


def equation_6(
    probabilities: Sequence[float], values: Sequence[float], outcome: float
) -> list[float]:
    """Eq. 5 and 6 to the letter: tokens 1 to T, states 0 to T, state t after token t."""
    states = [*values, outcome]
    last = len(probabilities)
    found: list[float] = []
    for t in range(last):
        unlikely = [k for k in range(t + 1, last) if probabilities[k - 1] < THRESHOLD]
        ahead = [*unlikely, last]
        weights = [(1 - LAM) * LAM**k for k in range(len(unlikely))] + [LAM ** len(unlikely)]
        found.append(sum(w * (states[k] - states[t]) for w, k in zip(weights, ahead, strict=True)))
    return found


def over_segments(
    probabilities: Sequence[float], values: Sequence[float], outcome: float, side: spans.Side
) -> list[float]:
    """The same of ours: credit over the segments of ``spans.by_probability``."""
    logprobs_1T = torch.tensor([probabilities], dtype=torch.float64).log()
    mask_1T = torch.ones_like(logprobs_1T, dtype=torch.bool)
    rewards_1T = torch.zeros_like(logprobs_1T)
    rewards_1T[0, -1] = outcome
    values_1T = torch.tensor([values], dtype=torch.float64)
    segments = spans.by_probability(logprobs_1T, mask_1T, threshold=THRESHOLD, side=side)
    return span_advantages(rewards_1T, values_1T, segments, lam=LAM)[0].tolist()


RULES: tuple[tuple[str, str, Rule], ...] = (
    ("**spanwise**", "masked tokens are stepped over", ours),
    ("verl, AReaL, NeMo-RL, miles", "the same, as a plain loop", carried_over),
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
2026; they may have changed since: miles steps over masked tokens since July 2026 (its pull request
1827). The numbers are those of the conventions.

## A turn as one step

AReaL can also take a whole turn for one step: one value, that at its first token, one advantage and
one return for all its tokens, one factor of gamma and lambda. Ours over turns (`Turn` as the spans
of credit) trusts the critic at the same places, but a token keeps a value and an advantage of its
own, and gamma counts tokens. Two turns of two tokens with values 0.5, 0.4 and 0.6, 0.9; reward 1 at
the end; lambda = 0.95:

{turns}

With gamma = 1 the two agree at the first token of every turn. Within a turn ours goes on: the
second token of the second turn, before which the critic already expected 0.9, is credited with 0.1
and not with 0.4. With a discount they are two questions: how far away a reward is in tokens, or in
turns.

## Where SAE's boundary lies

SAE ([2601.07320](https://arxiv.org/abs/2601.07320)) marks token t as unlikely, f(t) = 1, if its
probability is below p (Eq. 5), and lets the trace decay by lambda between t and t + 1 if
f(t + 1) = 1 (Eq. 9 and 10). Its indices are off by one: Eq. 1, 2 and 5 count tokens from 1 to T,
Eq. 3, 6 and 11 count states from 0 to T, with the outcome as the value of state T. So there are two
readings:

- `side="start"`, the default: Eq. 9 and 10 as one writes them in code, where the value at place t
  is read before token t. The boundary lies before the unlikely token, and the critic is
  asked what it expects before the choice is made.
- `side="end"`: the letter. State t comes after token t, so the boundary of Eq. 6 lies after the
  unlikely token, and the critic is asked once the choice is made. Only so do all the paper's
  equations hold together.

Four tokens of probability 0.9, 0.8, 0.1, 0.7; values before them 0.5, 0.4, 0.6, 0.9; a right
answer; p = 0.2, lambda = 0.95:

{sides}

The words fit `start`: an unlikely token opens what is new. The arithmetic fits `end`. So both
have a name, and `spanwise study correlation` always reports both, as *SAE start* and *SAE end*; the
recipes are `sae_chain` and `sae_end_chain`, [with results](results.md). The probability is the
model's own, at temperature 1, or the one that was drawn from: `--advantage.spans.logprobs`.
"""


def turns_table() -> str:
    """Both conventions of turn-level GAE, with and without a discount."""
    rows = ([True, True, False, True, True], [0.0, 0, 0, 0, 1], [0.5, 0.4, 0.9, 0.6, 0.9])
    places = "1 | 2 | 4 | 5"
    lines = [
        f"| gamma | convention | advantage {places} | return {places} |",
        "|---|---|" + "---|" * 8,
    ]
    for gamma in (1.0, 0.9):
        for name, rule in (
            ("**spanwise**, `Turn`", over_turns),
            ("AReaL, a turn a step", turn_as_step),
        ):
            figures = " | ".join(f"{x:.4f}" for found in rule(*rows, gamma) for x in found)
            lines.append(f"| {gamma:g} | {name} | {figures} |")
    return "\n".join(lines)


def sides_table() -> str:
    """Both readings of SAE's boundary, from the equations and by ours."""
    example = ((0.9, 0.8, 0.1, 0.7), (0.5, 0.4, 0.6, 0.9), 1.0)
    rows = (
        ("Eq. 9 and 10, in code", equation_9(*example)),
        ('**spanwise**, `side="start"`', over_segments(*example, "start")),
        ("Eq. 5 and 6, to the letter", equation_6(*example)),
        ('**spanwise**, `side="end"`', over_segments(*example, "end")),
    )
    lines = ["| reading | 1 | 2 | 3 | 4 |", "|---|---|---|---|---|"]
    lines += [f"| {name} | {' | '.join(f'{x:.4f}' for x in found)} |" for name, found in rows]
    return "\n".join(lines)


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
    return TEXT.format(
        example="\n".join(example),
        changed="\n".join(changed),
        turns=turns_table(),
        sides=sides_table(),
    )


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote docs/{PAGE.name}")


if __name__ == "__main__":
    main()
