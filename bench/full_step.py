"""Time and memory of whole training steps: AT²PO, and SAE with a critic of its own.

A model of Qwen3's architecture with random weights is trained by the real loop under the
published recipes, made small. Such a model writes neither searches nor answers, so the
environment takes whatever it writes for one, and rewards by a coin. The tokenizer is that of
the shipped search model, with more words up to the wanted vocabulary. Every case is a process
of its own; what is told is its last step, so that what is done once does not count.

    python -m bench.full_step --size 30m --dtype float32
    python -m bench.full_step --size 0.6b --vocabulary 151936 --prompts 8
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from bench.record import save
from spanwise.display import Display
from spanwise.envs.base import Reply, Task, Turn
from spanwise.envs.search.environment import MultiHopSearch
from spanwise.learn.critic import ValueHead
from spanwise.models.loading import Model
from spanwise.recipes.math import sae_math
from spanwise.recipes.search import at2po_search_paper
from spanwise.toys.base_model import word_tokenizer
from spanwise.toys.search_demonstrations import Demonstrations
from spanwise.train import TrainConfig, train
from spanwise.train.evaluate import Evaluation

# hidden, MLP, layers, heads, key-value heads, head size
SIZES: dict[str, tuple[int, int, int, int, int, int]] = {
    "tiny": (32, 64, 2, 2, 1, 16),
    "30m": (512, 1536, 8, 8, 4, 64),
    "0.6b": (1024, 3072, 28, 16, 8, 128),
    "1.7b": (2048, 6144, 28, 16, 8, 128),
}
METHODS = ("at2po", "sae")
TURNS = 4
OBSERVATION = " <result> " + "nothing found . " * 8 + "</result> "


@dataclass(frozen=True, kw_only=True)
class AnyTurns(MultiHopSearch):
    """Every turn but the last is answered as a search, whatever it says; the reward is a coin."""

    num_turns: int = 1

    async def reply(self, task: Task, turns: Sequence[Turn]) -> Reply:
        if len(turns) < self.num_turns:
            return Reply(stop="continue", observation=OBSERVATION)
        coin = hashlib.sha256("".join(turn.text for turn in turns).encode()).digest()[0] % 2
        return Reply(stop="end", reward=float(coin), success=bool(coin))


def write_model(folder: Path, size: str, vocabulary: int) -> None:
    """A model with random weights, in bfloat16 as they are published, and its tokenizer."""
    words = Demonstrations().words()
    more = (f"word{i}" for i in range(vocabulary))
    tokenizer: Any = word_tokenizer([*words, *more][: vocabulary - 5])  # five are special
    hidden, intermediate, layers, heads, key_value_heads, head_size = SIZES[size]
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=head_size,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    model: Any = Qwen3ForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def settings(method: str, model: Model, *, prompts: int, turn_tokens: int) -> TrainConfig:
    """The published recipe, with a random model, fewer prompts and shorter turns."""
    turns = TURNS if method == "at2po" else 1
    config = at2po_search_paper() if method == "at2po" else sae_math()
    response = turns * (turn_tokens + len(OBSERVATION.split()))
    if isinstance(config.critic, ValueHead):
        config = replace(config, critic=replace(config.critic, pretraining_steps=0))
    return replace(
        config,
        env=AnyTurns(num_turns=turns),
        model=model,
        rollout=replace(config.rollout, max_turn_tokens=turn_tokens, max_response_tokens=response),
        update=replace(config.update, prompts_per_minibatch=prompts),
        evaluation=Evaluation(num_tasks=1),
        steps=2,
        prompts_per_step=prompts,
        keep_trees_every=0,
    )


def measured(config: TrainConfig, case: str) -> dict[str, Any]:
    """The last step of a run: seconds by phase, tokens a second, peak memory."""
    gpu = config.model.resolved_device().type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        log = train(config, recipe=case, folder=Path(folder) / "run", display=Display())
        step = log.read_metrics()[-1]
    if "loss" not in step:
        raise SystemExit(f"{case}: the step trained nothing")
    seconds = {k.removeprefix("seconds/"): v for k, v in step.items() if k.startswith("seconds/")}
    seconds = {k: float(f"{v:.4g}") for k, v in seconds.items() if k != "evaluation"}
    sampled, trained = int(step["sampled_tokens"]), int(step["trained_tokens"])
    # not getrusage: what it tells includes the process that started this one
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return {
        "case": case,
        "parameters": config.model.num_parameters(),
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "dtype": config.model.dtype,
        "prompts": config.prompts_per_step,
        "branches": int(step["branches"]),
        "sampled_tokens": sampled,
        "trained_tokens": trained,
        "seconds": seconds,
        "step_s": float(f"{sum(seconds.values()):.4g}"),
        "sampled_tokens_per_s": float(f"{sampled / seconds['rollout']:.4g}"),
        "trained_tokens_per_s": float(f"{trained / (seconds['scoring'] + seconds['update']):.4g}"),
        "peak_mib": int(status.split("VmHWM:")[1].split()[0]) // 1024,
        "peak_gpu_mib": torch.cuda.max_memory_allocated() // 2**20 if gpu else None,
    }


def row_of(method: str, arguments: Sequence[str]) -> dict[str, Any]:
    """A case measured in a process of its own."""
    command = [sys.executable, "-m", "bench.full_step", *arguments, "--method", method]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="30m")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--turn-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--method", choices=METHODS, help="used by the script")
    options = parser.parse_args()
    if options.method is None:
        rows = [row_of(method, sys.argv[1:]) for method in METHODS]
        save("full_step_gpu" if rows[0]["peak_gpu_mib"] else "full_step", rows)
        return
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), options.size, options.vocabulary)
        config = settings(
            options.method,
            Model(path=folder, dtype=options.dtype),
            prompts=options.prompts,
            turn_tokens=options.turn_tokens,
        )
        case = f"{options.method}, {options.size}, vocabulary {options.vocabulary}"
        print(json.dumps(measured(config, case), ensure_ascii=False))


if __name__ == "__main__":
    main()
