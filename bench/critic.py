"""How much of the outcomes' variance a critic explains on the chain task, beside what can be known.

    python -m bench.critic --seeds 0 1 --workers 2

Trains ``sae_chain`` with a critic on a trunk of its own and with one that shares the
policy's. Both are read from the run folders: the explained variance of every batch, each
predicted before it is trained on, and over every four steps that of an oracle. The oracle
knows of every token whether the work so far is right, whether it was given up and how
many steps are to come; its value is the mean outcome in that state, taken from the other half
of the prompts. Writes ``bench/results/critic_chain.json``; the runs are kept under
``runs/critic``.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from bench.record import save
from spanwise.advantages import explained_variance
from spanwise.display import Display
from spanwise.envs.chain import LETTERS, OPEN, applied
from spanwise.learn.critic import ValueHead
from spanwise.recipes.chain import sae_chain
from spanwise.run.folder import RunFolder
from spanwise.runtime.provenance import commit
from spanwise.train import train

WINDOW = 4
"""Steps that are taken together for the oracle."""

TRUNKS: tuple[Literal["own", "policy"], ...] = ("own", "policy")
"""All else is as in the recipe."""


class State(NamedTuple):
    """What the oracle knows when a token is chosen."""

    to_come: int
    """Steps of the question whose result is not written yet."""

    given_up: bool
    """A step was left open."""

    right: bool
    """The last result is that of the steps up to there."""


class Token(NamedTuple):
    """One model token of a recorded tree."""

    state: State
    value: float
    outcome: float
    fold: int
    """Half of the prompts that it belongs to."""


def states(question: str, words: Sequence[str]) -> Iterator[State]:
    """The state before each word of a turn.

    Example:
      >>> given_up = "a 3 + 4 = 7 ; b - # - .".split()
      >>> [state.to_come for state in states("3 a + 4 b - 8 =", given_up)]
      [2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1]
      >>> [state.given_up for state in states("3 a + 4 b - 8 =", given_up)].index(True)
      9
    """
    first, *rest = question.split()
    results = [int(first)]
    for operator, digit in zip(rest[1:-1:3], rest[2:-1:3], strict=True):
        results.append(applied(results[-1], (operator, int(digit))))
    done, given_up, right = 0, False, True
    step: list[str] = []
    for word in words:
        yield State(len(results) - 1 - done, given_up, right)
        step = [] if word in (";", "#") else [*step, word]
        given_up = given_up or (word == OPEN and len(step) == 2)
        if step[-2:-1] == ["="] and step[0] in LETTERS[: len(results) - 1]:
            done = LETTERS.index(step[0]) + 1
            right = word == str(results[done])


def tokens(log: RunFolder, steps: Iterable[int]) -> Iterator[Token]:
    """The model tokens of some steps."""
    for step in steps:
        for prompt, record in enumerate(log.read_trees(step)):
            _root, *turns = record["nodes"]
            for turn in turns:
                known = states(record["task"]["question"], turn["text"].split())
                for state, value in zip(known, turn["values"], strict=True):
                    yield Token(state, value, turn["reward"] or 0.0, prompt % 2)


def explained(found: Sequence[Token]) -> dict[str, float]:
    """The share of the variance that the critic and the oracle explain."""
    sums: dict[tuple[int, State], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for token in found:
        of_other_half = sums[1 - token.fold, token.state]
        of_other_half[0] += token.outcome
        of_other_half[1] += 1
    known = [s / n if n else 0.0 for s, n in (sums[t.fold, t.state] for t in found)]
    outcomes = torch.tensor([token.outcome for token in found])
    every = torch.ones_like(outcomes, dtype=torch.bool)
    critic = torch.tensor([token.value for token in found])
    return {
        "accuracy": round(float(outcomes.mean()), 3),
        "critic": round(explained_variance(critic, outcomes, every), 3),
        "oracle": round(explained_variance(torch.tensor(known), outcomes, every), 3),
    }


def one_run(trunk: Literal["own", "policy"], seed: int, folder: Path) -> dict[str, Any]:
    """Train, or read the run if it is there, and give the curves of its critic."""
    if not (folder / "summary.json").exists():
        config = sae_chain()
        assert isinstance(config.critic, ValueHead)
        critic = dataclasses.replace(config.critic, trunk=trunk)
        config = dataclasses.replace(config, seed=seed, critic=critic)
        train(config, recipe="sae_chain", folder=folder, display=Display())
    log = RunFolder.open(folder)
    summary, metrics = log.read_summary(), log.read_metrics()
    training = [line for line in metrics if "critic_batch" not in line]
    steps = log.tree_steps()
    windows = [steps[i : i + WINDOW] for i in range(0, len(steps), WINDOW)]
    return {
        "trunk": trunk,
        "seed": seed,
        "before": summary["before"],
        "after": summary["after"],
        "pretraining": [round(x, 3) for x in summary["pretraining_explained_variance"]],
        "training": [round(line["explained_variance"], 3) for line in training],
        "success": [round(line["success"], 3) for line in training],
        "windows": [
            {"steps": [window[0], window[-1]], **explained(list(tokens(log, window)))}
            for window in windows
        ],
    }


def show(row: dict[str, Any]) -> None:
    print(f"trunk {row['trunk']}, seed {row['seed']}: pretraining {row['pretraining']}")
    print(f"  training {row['training']}")
    for window in row["windows"]:
        print(f"  {window}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="What critics explain, and what can be known.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, a process each")
    arguments = parser.parse_args()
    threads = max(1, torch.get_num_threads() // arguments.workers)
    runs = [(trunk, seed) for seed in arguments.seeds for trunk in TRUNKS]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.workers, context, torch.set_num_threads, (threads,)) as pool:
        folders = [Path("runs/critic") / f"{trunk}-{seed}-{commit()}" for trunk, seed in runs]
        rows = list(pool.map(one_run, *zip(*runs, strict=True), folders))
    for row in rows:
        show(row)
    save("critic_chain", rows, recipe="sae_chain", workers=arguments.workers)


if __name__ == "__main__":
    main()
