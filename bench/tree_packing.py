"""Time and memory of an update, shared tokens computed once against every row by itself.

One optimizer step with its forward and backward passes, both ways by turns in one run, once
the gradients were found to be the same; peak memory in a process of its own. Then random
inputs of many shapes, on which the default, which packs where that is estimated to be
faster, is held against rows: it should never be slower by more than 5%. About ten minutes
on two cores; what is measured is saved as it comes.

    python -m bench.tree_packing --threads 2
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from bench.packing_inputs import flat_groups, random_rows
from bench.record import save
from bench.timing import alternated_s
from spanwise.batch import Batch
from spanwise.credit import GroupAdvantage
from spanwise.learn.learner import Learner
from spanwise.learn.objective import Objective
from spanwise.learn.update import Update
from spanwise.models.loading import Model
from spanwise.partitions import Token
from spanwise.recipes.search import at2po_search
from spanwise.rollout.context import RolloutContext
from spanwise.rollout.tree_search import TreeSearch
from spanwise.train.task_sampling import draw_tasks, rollouts

OBJECTIVE = Objective(ratio_spans=Token(), clip_low=0.2, clip_high=0.28)
UPDATE = Update(learning_rate=0.0, prompts_per_minibatch=64)


def recorded_trees(num_trees: int) -> Batch:
    """Trees of 22 leaves as AT²PO grows them, on the embedded search task."""
    config = at2po_search()
    rollout = config.rollout
    assert isinstance(rollout, TreeSearch)
    rollout = replace(rollout, num_chains=10, num_expansions=6, num_rounds=2)
    config = replace(config, rollout=rollout)
    model, tokenizer = config.model.load(), config.model.load_tokenizer()
    sampler = config.sampler.build(model, tokenizer)
    context = RolloutContext(env=config.env, sampler=sampler, tokenizer=tokenizer, seed=0)
    tasks = draw_tasks(config.env.tasks("train"), num_trees, 0, 1)
    trees = asyncio.run(rollouts(context, config, tasks, 1))
    sampler.close()
    return Batch.from_trees(trees)


def small() -> Any:
    return Model(path="search_base").load()


def large() -> Any:
    """64 million weights at random."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=8192,
        hidden_size=768,
        intermediate_size=2304,
        num_hidden_layers=8,
        num_attention_heads=12,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config).eval()


CASES: dict[str, tuple[Callable[[], Any], Callable[[], Batch]]] = {
    "small model, 4 AT²PO trees": (small, lambda: recorded_trees(4)),
    "small model, 4 groups, prompts of 300": (
        small, lambda: flat_groups(4, prompt=300, answer=80)),
    "small model, 4 groups, prompts of 12": (
        small, lambda: flat_groups(4, prompt=12, answer=80)),
    "large model, 1 AT²PO tree": (large, lambda: recorded_trees(1)),
    "large model, 1 group, prompt of 300": (
        large, lambda: flat_groups(1, prompt=300, answer=80)),
    "large model, 1 group, prompt of 12": (
        large, lambda: flat_groups(1, prompt=12, answer=80)),
}  # fmt: skip


RANDOM_INPUTS: dict[str, tuple[Callable[[], Any], int, int]] = {
    "small model": (small, 70, 4000),
    "large model": (large, 14, 700),
}
"""The model, how many inputs, and how many tokens one may have."""

SLOWER = 1.05


class Step:
    """One optimizer step on a case, with its rows laid out in one way."""

    def __init__(self, model: Any, batch: Batch, packing: Any) -> None:
        self.model = model
        self.learner = Learner(
            model,
            advantage=GroupAdvantage(),
            objective=OBJECTIVE,
            update=replace(UPDATE, packing=packing),
        )
        draw = torch.Generator().manual_seed(0)
        self.batch = replace(
            self.learner.rescore(batch),
            advantages=torch.randn(batch.tokens.shape, generator=draw),
            ratio_spans=OBJECTIVE.ratio_spans(batch),
            loss_weights=OBJECTIVE.weights(batch),
        )

    def __call__(self) -> dict[str, float]:
        return self.learner.update(self.batch, step=1)

    def gradients(self) -> list[torch.Tensor]:
        self()
        return [p.grad.clone() for p in self.model.parameters() if p.grad is not None]


def made(case: str) -> tuple[Any, Batch]:
    build, rows = CASES[case]
    model, batch = build(), rows()
    return model, batch


def compared(case: str, *, rounds: int, threads: int) -> dict[str, Any]:
    model, batch = made(case)
    steps = {packing: Step(model, batch, packing) for packing in ("tree", "rows")}
    pairs = zip(steps["tree"].gradients(), steps["rows"].gradients(), strict=True)
    error = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    if error > 1e-4:
        raise SystemExit(f"{case}: the gradients differ by {error:.2g} of their size")
    figures = steps["tree"]()
    times = alternated_s(steps, rounds=rounds)
    tree_s, rows_s = (statistics.median(times[name]) for name in ("tree", "rows"))
    total, computed = int(batch.lengths.sum()), figures["computed_to_total"]
    row = {
        "case": case,
        "rows": batch.num_rows,
        "total_tokens": total,
        "total_to_computed": round(1 / computed, 3),
        "packed": bool(figures["packed"]),
        "tree_s": float(f"{tree_s:.4g}"),
        "rows_s": float(f"{rows_s:.4g}"),
        "time_ratio": round(rows_s / tree_s, 3),
        "gradient_error": float(f"{error:.2g}"),
        "peak_mib": {p: peak_mib(case, batch, p, threads) for p in ("tree", "rows", "none")},
    }
    print(row, flush=True)
    return row


def peak_mib(case: str, batch: Batch, packing: str, threads: int) -> int:
    """Peak memory of a process that takes two steps; ``none`` takes none, for comparison."""
    tensors = {k: v.contiguous() for k, v in vars(batch).items() if isinstance(v, torch.Tensor)}
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "rows.safetensors")
        save_file(tensors, file)
        command = [sys.executable, "-m", "bench.tree_packing", "--threads", str(threads)]
        command += ["--case", case, "--peak", packing, "--rows", file]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(run.stdout.split()[-1])


def print_peak(case: str, packing: str, file: str) -> None:
    tensors: dict[str, Any] = load_file(file)
    none: dict[str, Any] = dict.fromkeys(("texts", "observations", "outcomes", "task_ids"), ())
    batch = Batch(**tensors, **none, num_excluded=0)
    step = Step(CASES[case][0](), batch, packing)
    if packing != "none":
        step()
        step()
    # Not getrusage: what it tells includes the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    print(int(status.split("VmHWM:")[1].split()[0]) // 1024)


def on_random_inputs(which: str, *, first: int, seconds: float) -> Iterator[dict[str, Any]]:
    """The default against rows on each input: the median of the rounds' ratios of times.

    An input on which the default seems slower than it may be is timed again, four times as
    long, and that figure counts: both ways are often the same, and a busy moment is enough.
    """
    build, count, most_tokens = RANDOM_INPUTS[which]
    model = build()
    inputs = (
        (seed, *random_rows(seed, most_tokens=most_tokens)) for seed in itertools.count(first)
    )
    fitting = (found for found in inputs if found[2].lengths.sum() <= most_tokens)
    for seed, kind, rows in itertools.islice(fitting, count):
        steps = {packing: Step(model, rows, packing) for packing in ("tree", "rows")}
        figures = steps["tree"]()
        ratios, rows_s = time_ratios(steps, seconds)
        again = statistics.median(ratios) > SLOWER
        if again:
            ratios, rows_s = time_ratios(steps, 4 * seconds)
        yield {
            "case": f"{which}, random input {seed}: {kind}",
            "rows": rows.num_rows,
            "total_tokens": int(rows.lengths.sum()),
            "total_to_computed": round(1 / figures["computed_to_total"], 3),
            "packed": figures["packed"],
            "rows_s": float(f"{rows_s:.4g}"),
            "tree_to_rows_time": round(statistics.median(ratios), 3),
            "rounds": len(ratios),
            "timed_again": again,
        }


def time_ratios(steps: Mapping[str, Step], seconds: float) -> tuple[list[float], float]:
    """Time of ``tree`` over that of ``rows`` in each round, and the median time of rows.

    The two take turns in going first. At least five rounds, and as many as the time allows.
    """
    ratios: list[float] = []
    of_rows: list[float] = []
    end = time.perf_counter() + seconds
    while len(ratios) < 5 or time.perf_counter() < end:
        names = ("tree", "rows") if len(ratios) % 2 else ("rows", "tree")
        found = {name: timed_s(steps[name]) for name in names}
        ratios.append(found["tree"] / found["rows"])
        of_rows.append(found["rows"])
    return ratios, statistics.median(of_rows)


def timed_s(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def verdict(inputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The default on all random inputs so far."""
    ratios = [row["tree_to_rows_time"] for row in inputs]
    return {
        "inputs": len(ratios),
        "packed": sum(row["packed"] > 0 for row in inputs),
        "slower_by_more_than_5_percent": sum(ratio > SLOWER for ratio in ratios),
        "largest_tree_to_rows_time": max(ratios),
        "median_tree_to_rows_time": round(statistics.median(ratios), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="for each random input")
    parser.add_argument("--seed", type=int, default=0, help="of the first random input")
    parser.add_argument("--inputs-only", choices=RANDOM_INPUTS, help="nothing is saved")
    parser.add_argument("--case", choices=CASES, help="one case alone; nothing is saved")
    parser.add_argument("--peak", choices=("tree", "rows", "none"), help="used by the script")
    parser.add_argument("--rows", help="used by the script")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        print_peak(options.case, options.peak, options.rows)
        return
    alone = options.case or options.inputs_only
    rows: list[dict[str, Any]] = []
    inputs: list[dict[str, Any]] = []
    for case in [options.case] if options.case else [] if alone else CASES:
        rows.append(compared(case, rounds=options.rounds, threads=options.threads))
        if not alone:
            save("tree_packing", rows)
    for which in [options.inputs_only] if options.inputs_only else [] if alone else RANDOM_INPUTS:
        for row in on_random_inputs(which, first=options.seed, seconds=options.seconds):
            print(row, flush=True)
            inputs.append(row)
            if not alone:
                save("tree_packing", rows, random_inputs=inputs, verdict=verdict(inputs))
    if inputs:
        print(verdict(inputs))


if __name__ == "__main__":
    main()
