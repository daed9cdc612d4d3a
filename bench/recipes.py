"""What every recipe sets, read from the recipe, and where it is from: writes ``docs/recipes.md``.

Run ``python -m bench.recipes``. A recipe that is new needs one line in ``recipe_sources.txt``.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from spanwise import recipes
from spanwise.credit import Advantage, GroupAdvantage, SpanAdvantage, TreeAdvantage
from spanwise.errors import SpanwiseError
from spanwise.learn.critic import ValueHead
from spanwise.partitions import Partition
from spanwise.rollout.chains import Chains
from spanwise.rollout.tree_search import TreeSearch
from spanwise.train.config import TrainConfig

PAGE = Path(__file__).parent.parent / "docs" / "recipes.md"
SOURCES = Path(__file__).with_name("recipe_sources.txt")
COLUMNS = ("credit", "ratio", "average", "clip", "rates", "batch", "temperature")

TEXT = """\
# Recipes and where their settings are from

<!-- Written by `python -m bench.recipes`; change that script or its recipe_sources.txt. -->

Every recipe that ships. The values are read from the recipes; what stands in italics below a value
is its source: an equation, section or table of the paper, a line of its published code, or *ours*
where nobody states it for the task, or where we depart from the paper; *ours (DAPO)* is a value of
DAPO's in a method that is not DAPO. A recipe without a source for each value fails a test.

- **credit**: the spans at whose boundaries credit is bootstrapped, or over which returns are
  compared.
- **ratio**: the spans over which the policy ratio is averaged.
- **average**: over tokens, over samples, or each sample's sum over a constant number of tokens.
- **clip**: how far below and above 1 the ratio is clipped; *detached* and *soft* where that bounds
  the weight of a gradient or lets it fade instead of cutting it.
- **rates**: learning rate of the policy and of the critic.
- **batch**: prompts a step × trajectories of each, and where a tree of them forks; prompts of a
  minibatch; passes over the batch.
- **temperature**: of the rollouts.

{table}

The recipes on the embedded tasks (`_chain`, `_search`) take a method's credit and ratio and share
as much of the rest as they can, so that they can be compared; batch and learning rates fit a model
of 1 M parameters and two cores. `sae_math` and `at2po_search_paper` follow their papers, and their
docstrings say what stays open.

## Beside verl and TRL

`python -m bench.peers` runs every recipe's credit, loss and gradient on random batches in float64
against verl 0.9.1 and TRL 1.16.0, with a row for each in `bench/results/peers_verl.json` and
`peers_trl.json`, or the reason why there is no counterpart. Where there is one, all agree to 1e-15
of their size but for these:

- **eps**: TRL adds 1e-4 to a group's or the batch's deviation, we add 1e-6, as verl does: up to
  7e-4 of the advantages. verl's whitening has 1e-8 under the root, ours 1e-6 beside it: 4e-6.
- **mean over samples**: verl adds 1e-8 to a row's length: 1e-8.
- **SAPO**: TRL keeps the two temperatures in float32: 5e-8.
- **REINFORCE++-baseline**: verl takes mean and deviation over tokens, so that a long row counts
  more; ours, over rows, up to 22% of the largest advantage elsewhere.
- **GPG**: verl's α counts rewards other than 0, not prompts with a signal. Compared without
  it, which is float32: 5e-8.
- **caps**: verl cuts a log-ratio at 20, for GSPO at 10, and its gradient with it; TRL has no cap.
  Ours is cut at 20 and keeps the gradient it has there. No batch above comes near.
- **k3**: the same cap. verl and OpenRLHF also bound the estimate at 10, and cut its gradient.
- **CISPO**: TRL's `epsilon_high` is the bound of the weight itself, `clip_high` that less 1.

## Not here, and why

A method is here if it is a rule of credit, two spans and a clip. These, which verl or TRL offer,
need something besides:

- [GMPO](https://arxiv.org/abs/2507.20673): a clip of every token's log-ratio inside the mean over
  the answer, one clip in the other. Without the inner one its ratio is that of `gspo_chain`.
- [Clip-Cov, KL-Cov](https://arxiv.org/abs/2505.22617): a draw, or a ranking, of the batch's tokens
  by the covariance of log-prob and advantage, before the loss.
- DPPO: a second measure of distance, that of probabilities, which masks tokens.
- DRO, VESPO: no clip, but a penalty or a weight with constants of its own.
- GPG's α: one factor on the loss of a step, rows / rows with a signal. It is 1 where prompts
  without a signal are replaced by others, as `gpg_chain` does.
- ReMax: a greedy rollout of each prompt.
- The optimal token baseline: the norm of each token's gradient.
- GDPO, TRL's `normalize_then_sum`: rewards in several columns, normalised one by one.
"""


def sources() -> dict[str, list[str]]:
    """Of each recipe the paper and the source of every column.

    Raises:
      SpanwiseError: if a line has not one cell for each, or a recipe is listed twice.
    """
    found: dict[str, list[str]] = {}
    for line in SOURCES.read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, *cells = (cell.strip() for cell in line.split("|"))
        if len(cells) != 1 + len(COLUMNS) or not all(cells) or name in found:
            raise SpanwiseError(
                f"{SOURCES.name}: {name} needs one line, and in it a paper and a source for each "
                f"of {', '.join(COLUMNS)}"
            )
        found[name] = cells
    return found


def spans_text(partition: Partition) -> str:
    """A kind of span with its settings.

    Example:
      >>> from spanwise.partitions import LowProbability, Token
      >>> spans_text(Token()), spans_text(LowProbability())
      ('Token', 'LowProbability (side start, logprobs engine, threshold 0.2)')
    """
    settings = [f"{field.name} {getattr(partition, field.name)}" for field in fields(partition)]
    return type(partition).__name__ + (f" ({', '.join(settings)})" if settings else "")


def credit_text(advantage: Advantage) -> str:
    """Spans and rule of the credit."""
    if isinstance(advantage, SpanAdvantage):
        alpha = advantage.length_alpha
        lam = f"{advantage.lam:g}" if alpha is None else f"1 − 1/({alpha:g} · length)"
        return f"{spans_text(advantage.spans)}, λ {lam}"
    kinds = {GroupAdvantage: "Trajectory", TreeAdvantage: "Turn, over a tree"}
    settings = [str(getattr(advantage, field.name)) for field in fields(advantage)]
    return ", ".join([kinds.get(type(advantage), type(advantage).__name__), *settings])


def batch_text(config: TrainConfig) -> str:
    """Prompts and trajectories of a step, prompts of a minibatch, passes."""
    rollout, update = config.rollout, config.update
    assert isinstance(rollout, Chains | TreeSearch)
    leaves, forks = rollout.num_chains, ""
    if isinstance(rollout, TreeSearch):
        leaves += rollout.num_rounds * rollout.num_expansions
        forks = {"entropy": ", forked by entropy", "random": ", forked at random"}[rollout.choose]
    return (
        f"{config.prompts_per_step} × {leaves}{forks}; minibatch {update.prompts_per_minibatch}; "
        f"{update.epochs} pass{'es' if update.epochs > 1 else ''}"
    )


def settings(config: TrainConfig) -> dict[str, str]:
    """What a configuration has in every column."""
    objective, critic = config.objective, config.critic
    averages: dict[Any, str] = {"token": "tokens", "sample": "samples"}
    constant = f"constant {objective.loss_aggregation}"
    rates = f"{config.update.learning_rate:g}"
    if isinstance(critic, ValueHead):
        rates += f", critic {critic.learning_rate:g}"
    return {
        "credit": credit_text(config.advantage),
        "ratio": spans_text(objective.ratio_spans),
        "average": averages.get(objective.loss_aggregation, constant),
        "clip": " ".join(
            [
                *([objective.clip] if objective.clip != "hard" else []),
                f"{objective.clip_low:g} / {objective.clip_high:g}",
            ]
        ),
        "rates": rates,
        "batch": batch_text(config),
        "temperature": f"{config.rollout.sampling.temperature:g}",
    }


def page() -> str:
    """The whole page.

    Raises:
      SpanwiseError: if a recipe that ships has no sources, or there are sources of no recipe.
    """
    known = sources()
    if odd := sorted(set(recipes.names()) ^ set(known)):
        raise SpanwiseError(f"{SOURCES.name} and the recipes that ship differ in {', '.join(odd)}")
    lines = [f"| recipe | paper | {' | '.join(COLUMNS)} |", "|---" * (2 + len(COLUMNS)) + "|"]
    for name in recipes.names():
        paper, *of_columns = known[name]
        values = settings(recipes.find(name)())
        cells = [f"{values[c]}<br>*{s}*" for c, s in zip(COLUMNS, of_columns, strict=True)]
        lines.append(f"| `{name}` | {paper} | {' | '.join(cells)} |")
    return TEXT.format(table="\n".join(lines))


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote docs/{PAGE.name}")


if __name__ == "__main__":
    main()
