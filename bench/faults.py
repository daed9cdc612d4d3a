"""What faults cost: a run with faulty tools, rewards and engine; calls that hang for ever.

    python -m bench.faults
    python -m bench.faults --hangs-only

Trains ``at2po_search`` twice from the same seed, clean and with faults by a plan: 20% of the
tool calls, 5% of the rewards, and an engine that is dead for two attempts at every turn of
one step. Compares the held-out scores, and counts the faults of the plans against those of
the metrics. Then one tool call that hangs for ever in a step, and 200 at once. Writes
``bench/results/faults.json``; the runs are kept under ``runs/faults``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import threading
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.record import RESULTS, save
from spanwise.display import Display
from spanwise.envs.search.environment import MultiHopSearch
from spanwise.recipes.search import at2po_search
from spanwise.rollout import Chains, RolloutContext, run_async
from spanwise.rollout.failures import failures_in
from spanwise.run.folder import RunFolder
from spanwise.runtime.provenance import commit
from spanwise.samplers.scripted import ScriptedSampler
from spanwise.testing import FaultPlan, FaultyEngine, FaultyReward, FaultyTool
from spanwise.tools.base import Tool, ToolError, abandoned_threads
from spanwise.train import TrainConfig, train

ALWAYS = (1, 10**9)
"""All training steps; held-out questions, in step 0, are answered without faults."""

TOOL = FaultPlan(
    rates={"raise": 0.149, "crash": 0.03, "bytes": 0.01, "huge": 0.01, "hang": 0.001}, steps=ALWAYS
)
REWARD = FaultPlan(rates={"raise": 0.05}, seed=1, steps=ALWAYS)


@dataclass(frozen=True, kw_only=True)
class FaultySearch(MultiHopSearch):
    """The embedded search task with faulty searches."""

    plan: FaultPlan

    @property
    def search_tool(self) -> Tool:  # type: ignore[override]
        return FaultyTool(tool=super().search_tool, plan=self.plan, hang_s=60.0)


def clean_config(seed: int, steps: int) -> TrainConfig:
    recipe = at2po_search()
    return replace(recipe, seed=seed, steps=steps, keep_trees_every=0)


def faulty_config(seed: int, steps: int, engine: FaultPlan) -> TrainConfig:
    clean = clean_config(seed, steps)
    env = FaultySearch(plan=TOOL, deadline_s=5.0)
    return replace(
        clean,
        env=FaultyReward(env=env, plan=REWARD),
        sampler=FaultyEngine(engine=clean.sampler, plan=engine),
    )


def comparison(seed: int, steps: int, folder: Path) -> dict[str, Any]:
    """Both runs, their held-out scores, and every fault beside the metrics' count of it."""
    engine = FaultPlan(rates={"raise": 1.0}, steps=(steps // 2, steps // 2), attempts=2)
    configs = {
        "clean": clean_config(seed, steps),
        "faulty": faulty_config(seed, steps, engine),
    }
    scores: dict[str, Any] = {}
    for name, config in configs.items():
        log = train(config, recipe=name, folder=folder / name, display=Display())
        scores[name] = outcome(log)
    counted = Counter(scores["faulty"]["failures"])
    injected = {
        # The search environment takes bytes and text in place of documents for a tool's error.
        "tool_error": sum(TOOL.struck[kind] for kind in ("raise", "bytes", "huge")),
        "tool_crash": TOOL.struck["crash"],
        "tool_timeout": TOOL.struck["hang"],
        "reward_error": REWARD.struck["raise"],
        "engine_error": engine.struck["raise"],
    }
    counted.pop("retries")
    return {
        "case": f"at2po_search, {steps} steps, seed {seed}",
        **scores,
        "injected": injected,
        "counted": dict(counted),
        "all_accounted_for": counted == Counter(injected),
        "difference_points": {
            key: round(100 * (scores["faulty"]["after"][key] - scores["clean"]["after"][key]), 2)
            for key in ("success", "greedy_success")
        },
    }


def outcome(log: RunFolder) -> dict[str, Any]:
    summary, metrics = log.read_summary(), log.read_metrics()
    kept = ("success", "greedy_success", "n", "failed")
    return {
        "before": {key: summary["before"][key] for key in kept},
        "after": {key: summary["after"][key] for key in kept},
        "train_seconds": summary["train_seconds"],
        "sampled_tokens": summary["sampled_tokens"],
        "failures": summary["failures"],
        "branches": sum(line["branches"] for line in metrics),
        "excluded": sum(line["excluded"] for line in metrics),
    }


def delay_of_one_hanging_call(deadline_s: float) -> dict[str, Any]:
    """How much longer a step of eight trajectories takes if one's search hangs for ever."""
    clean_s = step_s(FaultPlan(rates={}), deadline_s, [])
    hanging_s = step_s(FaultPlan(rates={"hang": 1.0}), deadline_s, ["tool_timeout"])
    return {
        "case": f"one search hangs for ever, deadline {deadline_s:g} s",
        "clean_s": round(clean_s, 3),
        "hanging_s": round(hanging_s, 3),
        "delay_s": round(hanging_s - clean_s, 3),
        "within_deadline_and_a_second": hanging_s - clean_s <= deadline_s + 1,
    }


def step_s(plan: FaultPlan, deadline_s: float, failures: list[str]) -> float:
    """Seconds of a step in which the plan strikes the first of eight trajectories."""
    tokenizer = at2po_search().model.load_tokenizer()
    sampler = ScriptedSampler(one_search, tokenizer)
    struck = FaultySearch(plan=plan, deadline_s=deadline_s)
    fine = replace(struck, plan=FaultPlan(rates={}))
    sites = [
        RolloutContext(env=env, sampler=sampler, tokenizer=tokenizer, seed=0)
        for env in (struck, *[fine] * 7)
    ]
    for env in (struck, fine):
        env.tasks("train")
        _ = env.search_tool  # the index is made now

    async def step() -> list[Any]:
        chain = Chains(num_chains=1, max_turn_tokens=48, max_response_tokens=320)
        pairs = zip(sites, fine.tasks("train"), strict=False)
        return await asyncio.gather(*(chain(context, task, step=1) for context, task in pairs))

    began = time.perf_counter()
    trees = run_async(step())
    seconds = time.perf_counter() - began
    kinds = [failure.kind for failure in failures_in(trees)]
    if kinds != failures or sum(len(tree.nodes) for tree in trees) != 24:
        raise RuntimeError(f"the step went another way than planned: {kinds}")
    return seconds


def one_search(prompt: str, request: Any) -> str:
    if "<result>" in prompt:
        return "<think> found </think> <answer> \\boxed{ Ada Beck } </answer>"
    return "<think> look </think> <search> mother of Ada Beck </search>"


def many_hanging_calls(number: int, deadline_s: float) -> dict[str, Any]:
    """Threads, memory and time of calls that all hang, made at once."""
    plan = FaultPlan(rates={"hang": 1.0})
    tool = FaultyTool(tool=Nothing(deadline_s=deadline_s), plan=plan, hang_s=3 * deadline_s)
    before_mb, before = peak_mb(), threading.active_count()
    most = 0

    async def call() -> str:
        try:
            await tool("anything")
        except ToolError as error:
            return error.kind
        return "answered"

    async def main() -> list[str]:
        nonlocal most
        calls = asyncio.gather(*(call() for _ in range(number)))
        while not calls.done():
            most = max(most, threading.active_count() - before)
            await asyncio.sleep(0.01)
        return await calls

    began = time.perf_counter()
    kinds = run_async(main())
    seconds = time.perf_counter() - began
    while abandoned_threads():
        time.sleep(0.1)  # what comes next is to find its threads free
    return {
        "case": f"{number} calls hang at once, deadline {deadline_s:g} s",
        "seconds": round(seconds, 3),
        "most_threads": most,
        "more_memory_mb": round(peak_mb() - before_mb, 1),
        "outcomes": dict(Counter(kinds)),
    }


@dataclass(frozen=True, kw_only=True)
class Nothing(Tool):
    """Answers nothing, at once."""

    deadline_s: float

    def call(self, query: str) -> str:
        return "nothing"


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description="What faults cost.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--hangs-only", action="store_true", help="keep the runs of the file")
    arguments = parser.parse_args()
    rows = [delay_of_one_hanging_call(2.0), many_hanging_calls(200, 2.0)]
    for row in rows:
        print(json.dumps(row), flush=True)
    if arguments.hangs_only:
        runs = json.loads((RESULTS / "faults.json").read_text(encoding="utf-8"))["rows"][-1]
    else:
        folder = Path("runs/faults") / f"{commit()}-{arguments.seed}"
        runs = comparison(arguments.seed, arguments.steps, folder)
        print(json.dumps(runs, indent=1), flush=True)
    save("faults", [*rows, runs])


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
