"""How much recipes learn: held-out scores before, during and after, over seeds.

    python -m bench.learning at2po_search grpo_search --seeds 0 1 2 3 4 --every 10

Each run starts from the same model and is measured on the same held-out questions.
Recipes are compared at the same number of *sampled tokens*: see the curve of each run.
With ``--workers 2`` two runs go side by side, each with its share of the threads.
Writes ``bench/results/learning_RECIPES.json`` and prints a table; the run folders are
kept under ``runs/learning``.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import statistics
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from bench.record import save
from spanwise import recipes
from spanwise.display import Display
from spanwise.run.folder import RunFolder
from spanwise.runtime.provenance import commit
from spanwise.train import train

KEYS = ("success", "greedy_success")
"""The held-out scores that are compared."""


def one_run(recipe: str, seed: int, every: int, folder: Path) -> dict[str, Any]:
    """Train once, or read the run if it is there, and give its scores and curve."""
    if not (folder / "summary.json").exists():
        config = recipes.find(recipe)()
        evaluation = dataclasses.replace(config.evaluation, every=every)
        config = dataclasses.replace(
            config, seed=seed, evaluation=evaluation, keep_trees_every=config.steps
        )
        train(config, recipe=recipe, folder=folder, display=Display())
    log = RunFolder.open(folder)
    summary = log.read_summary()
    curve = [
        {
            "step": m["step"],
            "sampled_tokens": m["total_sampled_tokens"],
            **{key: round(m[f"eval/{key}"], 4) for key in KEYS},
        }
        for m in log.read_metrics()
        if "eval/success" in m
    ]
    evaluation_s = sum(m.get("seconds/evaluation", 0.0) for m in log.read_metrics())
    return {
        "case": f"{recipe}, seed {seed}",
        "recipe": recipe,
        "before": summary["before"],
        "after": summary["after"],
        "train_seconds": round(summary["train_seconds"] - evaluation_s, 1),
        "sampled_tokens": summary["sampled_tokens"],
        "trained_tokens": summary["trained_tokens"],
        "peak_memory_mb": summary["peak_memory_mb"],
        "explained_variance": summary.get("explained_variance"),
        "curve": curve,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="How much recipes learn, over seeds.")
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--every", type=int, default=10, help="steps between measurements")
    parser.add_argument("--name", default=None, help="of the results file")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, a process each")
    arguments = parser.parse_args()
    torch.set_num_threads(max(1, torch.get_num_threads() // arguments.workers))
    rows = all_runs(arguments.recipes, arguments.seeds, arguments.every, arguments.workers)
    for recipe in arguments.recipes:
        mine = [row for row in rows if row["recipe"] == recipe]
        for key in KEYS:
            gains = [100 * (row["after"][key] - row["before"][key]) for row in mine]
            spread = f"median {statistics.median(gains):+.1f}, least {min(gains):+.1f}"
            print(f"{recipe}: gain in {key} {spread}")
    name = arguments.name or "learning_" + "_".join(arguments.recipes)
    save(name, rows, workers=arguments.workers, at_the_same_sampled_tokens=same_budget(rows))


def all_runs(
    names: Sequence[str], seeds: Sequence[int], every: int, workers: int
) -> list[dict[str, Any]]:
    """Every recipe on every seed, in that order; each run in a process of its own.

    So a run's peak memory is its own. All have the threads that this process has.
    """
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(torch.get_num_threads(),),
        max_tasks_per_child=1,
    )
    with pool:
        found: dict[tuple[str, int], Future[dict[str, Any]]] = {}
        for seed in seeds:  # seed by seed: what is stopped early has something of every recipe
            for recipe in names:
                folder = Path("runs/learning") / f"{recipe}-{seed}-{commit()}"
                found[recipe, seed] = pool.submit(one_run, recipe, seed, every, folder)
        for done in as_completed(found.values()):
            show(done.result())
        return [found[recipe, seed].result() for recipe in names for seed in seeds]


def same_budget(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Median held-out scores of each recipe at equal shares of the smallest token budget."""
    smallest = min(row["sampled_tokens"] for row in rows)
    budgets: list[dict[str, Any]] = []
    for share in (0.25, 0.5, 0.75, 1.0):
        tokens = share * smallest
        for recipe in dict.fromkeys(row["recipe"] for row in rows):
            mine = [row for row in rows if row["recipe"] == recipe]
            point = {"sampled_tokens": round(tokens), "recipe": recipe}
            for key in KEYS:
                point[key] = round(statistics.median(at(row, key, tokens) for row in mine), 4)
            budgets.append(point)
            print(point)
    return budgets


def at(row: dict[str, Any], key: str, tokens: float) -> float:
    """A run's score at a number of sampled tokens, on straight lines between measurements."""
    points = [(0, row["before"][key]), *((p["sampled_tokens"], p[key]) for p in row["curve"])]
    points.append((row["sampled_tokens"], row["after"][key]))
    for (x0, y0), (x1, y1) in pairwise(points):
        if tokens <= x1:
            return y0 + (y1 - y0) * (tokens - x0) / max(x1 - x0, 1)
    return points[-1][1]


def show(row: dict[str, Any]) -> None:
    before, after = row["before"], row["after"]
    print(
        f"{row['case']}: sampled {before['success']:.3f} -> {after['success']:.3f}, "
        f"greedy {before['greedy_success']:.3f} -> {after['greedy_success']:.3f}, n {after['n']}, "
        f"{row['train_seconds']} s, {row['sampled_tokens']} tokens sampled, "
        f"{row['peak_memory_mb']} MiB",
        flush=True,
    )
    for point in row["curve"]:
        print(f"    {point}")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
