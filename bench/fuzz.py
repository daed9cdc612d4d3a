"""Random model outputs through the turn parser, and damaged run folders through their readers.

``python -m bench.fuzz [--turns 1000000] [--files 100000] [--checkpoints 100000]`` writes
``bench/results/fuzz.json``: how often each outcome was seen, the slowest input, and the
inputs that raised anything but an error of spanwise's own. Every input is made from the
number it is reported under. The script ends with an error if there is such an input, or
one that took longer than a second of processor time. The tests run a few thousand of the same.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import multiprocessing
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from bench.random_run import random_run
from bench.record import save
from spanwise.envs.base import Turn
from spanwise.envs.search.environment import MultiHopSearch
from spanwise.envs.search.world import SearchWorld
from spanwise.envs.search.xml_turns import TAGS
from spanwise.run.folder import RunError, RunFolder, tree_of, tree_record
from spanwise.runtime.distributed import ALONE
from spanwise.train.checkpoint import read_checkpoint, write_checkpoint
from spanwise.train.config import to_json
from spanwise.train.resume import open_for_resume
from spanwise.train.start import new_learner
from spanwise.train.state import RunState
from spanwise.tree import Expansion, Failure, Node, Tree

LIMIT_S = 1.0
BATCH = 500
"""Inputs that a worker is handed at a time."""

PIECES = (
    *TAGS, "\\boxed{", "{", "}", "<", ">", "</", "<|im_end|>", "<result>x</result>", " ", "\n",
    "\t", "\0", "\ud800", "\u202e", "é", "e\u0301", "字", "🙂", "\u2028", "a", "mother of", "12",
)  # fmt: skip
TURNS = (
    "<think> {} </think> <search> {} </search>",
    "<think> {} </think> <answer> \\boxed{{ {} }} </answer>",
    "<think>{}</think><answer>so \\boxed{{{}}}</answer>",
)
NUMBERS = ("NaN", "-Infinity", "1e999", "-1", "9" * 30, "0.5", "null", "[]", "{}", '""', "true")


@dataclass
class Found:
    """What came of a number of inputs."""

    outcomes: Counter[str] = field(default_factory=Counter[str])
    slowest_s: float = 0.0
    slowest: int = -1
    crashes: dict[int, str] = field(default_factory=dict[int, str])
    """Error of each input that raised what is not spanwise's own."""

    def add(self, other: Found) -> None:
        self.outcomes += other.outcomes
        self.crashes |= other.crashes
        if other.slowest_s > self.slowest_s:
            self.slowest_s, self.slowest = other.slowest_s, other.slowest


def turn_text(number: int) -> str:
    """A turn by the rules, one with damage, loose pieces, or any characters at all."""
    draw = random.Random(number)
    kind = draw.random()
    length = draw.choice((3, 10, 40)) if draw.random() < 0.995 else 20_000
    loose = "".join(draw.choice(PIECES) for _ in range(draw.randint(0, length)))
    if kind < 0.25:
        return loose
    if kind < 0.4:
        points = (draw.choice((0x7F, 0x2FF, 0xFFFF, 0x10FFFF)) for _ in range(min(length, 2000)))
        return "".join(chr(draw.randint(0, point)) for point in points)
    words = "".join(draw.choice(PIECES[-9:]) for _ in range(draw.randint(0, length)))
    turn = draw.choice(TURNS).format(words, draw.choice((words, "Ada Beck", loose)))
    for _ in range(draw.choice((0, 0, 1, 2, 5))):
        start = draw.randrange(len(turn) + 1)
        stop = min(len(turn), start + draw.choice((0, 1, 3, 12)))
        turn = turn[:start] + draw.choice(("", *PIECES)) + turn[stop:]
    return turn


def turns_found(numbers: Sequence[int]) -> Found:
    """Each turn is answered by a small search environment, its tool and its scoring included."""
    env = small_search()
    task = env.tasks("train")[0]

    async def answered() -> Found:
        async def outcome(number: int) -> str:
            text = turn_text(number)
            return (await env.reply(task, [Turn(text=text)])).stop

        found = Found()
        for number in numbers:
            start = time.process_time()
            try:
                found.outcomes[await outcome(number)] += 1
            except Exception as error:
                found.crashes[number] = f"{type(error).__name__}: {error}"[:300]
            _note_time(found, number, time.process_time() - start)
        return found

    return asyncio.run(answered())


@functools.cache
def small_search() -> MultiHopSearch:
    world = SearchWorld(train_people=50, dev_people=20, test_people=20)
    return MultiHopSearch(world=world, train_questions=4, dev_questions=4, test_questions=4)


def files_found(numbers: Sequence[int]) -> Found:
    """Each number damages one file of a run folder; everything in the folder is then read."""
    found = Found()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sound = run_folder(folder)
        for number in numbers:
            draw = random.Random(number)
            path = draw.choice(tuple(sound))
            path.write_bytes(damaged(sound[path], draw))
            _note_reading(found, number, path, lambda: read_all(folder))
            path.write_bytes(sound[path])
    return found


def run_folder(folder: Path) -> dict[Path, bytes]:
    """A small run with every kind of file; what stands in each."""
    nodes = (
        Node(path=(), observation=(5, 6), stop="prompt"),
        Node(
            path=(0,),
            tokens=(1, 2),
            engine_logprobs=(-0.1, -0.25),
            sampling_logprobs=(-0.1, -0.5),
            observation=(9,),
            stop="continue",
            text="a call",
            outcome={"query": "q", "documents": ["a"]},
        ),
        Node(path=(0, 0), stop="failure", failure=Failure(kind="engine_error", message="m")),
        Node(
            path=(0, 1),
            tokens=(3,),
            engine_logprobs=(-1.5,),
            stop="end",
            reward=1.0,
            expansion=Expansion(round=1, of=(0, 0), score=0.25),
        ),
    )
    log = RunFolder.create(folder, {"recipe": "r", "seed": 0, "config": {"steps": 3}})
    record = tree_record(Tree(task_id="t", nodes=nodes), {"question": "?"}, advantages=[0.0] * 4)
    log.write_trees(1, [record, record])
    for step in range(3):
        log.write_metrics({"step": step, "reward": 0.5, "kl": float("nan")})
    log.write_summary({"before": {"mean": 0.25}, "after": {"mean": 0.5}, "time_s": 12.5})
    return {path: path.read_bytes() for path in sorted(folder.rglob("*.json*"))}


def checkpoints_found(numbers: Sequence[int]) -> Found:
    """Each number damages a file that a run is resumed from. It is refused, or what is read is
    what was written.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    found, config = Found(), random_run()
    learner = new_learner(config.bind(config.model.load_tokenizer()), config.model.load(), ALONE)
    assert learner.critic is not None
    for part in (learner, learner.critic):
        for parameter in part.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        part.optimizer.step()
    written = {n: p.detach().clone() for n, p in learner.model.named_parameters()}
    settings = to_json(config)
    with tempfile.TemporaryDirectory() as name:
        log = RunFolder.create(Path(name), {"recipe": "r", "arguments": [], "config": settings})
        folder = log.checkpoint_path("step_00002")
        state = RunState(step=2, before={"success": 0.5}, critic_history=[0.25])
        write_checkpoint(folder, learner, config.model.load_tokenizer(), state, settings)
        files = (log.config_path, *sorted(folder.iterdir()))
        sound = {path: path.read_bytes() for path in files}

        def resumed() -> None:
            open_for_resume(log.folder, settings)
            assert read_checkpoint(folder, learner, settings) == state, "another state"
            for name, parameter in learner.model.named_parameters():
                assert torch.equal(parameter, written[name]), f"another {name}"

        for number in numbers:
            draw = random.Random(number)
            path = draw.choice(files)
            kinds = 6 if path == log.config_path else 3
            path.write_bytes(damaged(sound[path], draw, kinds=kinds))
            _note_reading(found, number, path, resumed)
            path.write_bytes(sound[path])
    return found


def read_all(folder: Path) -> None:
    log = RunFolder.open(folder)
    log.read_config()
    log.read_metrics()
    log.read_summary()
    for step in log.tree_steps():
        for record in log.read_trees(step):
            tree_of(record)


def damaged(content: bytes, draw: random.Random, *, kinds: int = 6) -> bytes:
    """The file cut short, with bytes changed, with some of it twice, with something else in its
    place; of the 6 kinds, the last two exchange values or keys of its JSON.
    """
    kind = draw.randrange(kinds)
    if kind == 0:
        return content[: draw.randrange(len(content))]
    if kind == 1:
        changed = bytearray(content)
        for _ in range(draw.choice((1, 1, 4, 30))):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        return bytes(changed)
    if kind == 2:
        start, length = draw.randrange(len(content)), draw.randrange(1, 200)
        return content[:start] + content[start : start + length] + content[start:]
    if kind == 3:
        return draw.choice((b"", b"\0" * 100, b"\xff\xfe", b"[1]\n", b"3", b"null"))
    lines = content.decode().splitlines() if content.count(b"\n}") == 0 else [content.decode()]
    line = draw.randrange(len(lines))
    value = json.loads(lines[line])
    _exchange(value, draw)
    lines[line] = json.dumps(value)
    return "\n".join(lines).replace('"!"', draw.choice(NUMBERS)).encode() + b"\n"


def _exchange(value: Any, draw: random.Random) -> None:
    """Somewhere inside, a value becomes another (``"!"`` stands for one), or is left out."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = draw.choice(keys)
        inside = value[key]
        if isinstance(inside, (dict, list)) and inside and draw.random() < 0.8:
            value = inside
        elif draw.random() < 0.3:
            del value[key]
            return
        else:
            value[key] = draw.choice(("!", "!", "text", [inside], {"a": inside}))
            return


def _note_reading(found: Found, number: int, path: Path, read: Callable[[], None]) -> None:
    """What became of reading files of which the one at ``path`` is damaged."""
    start = time.process_time()
    try:
        read()
        found.outcomes["read"] += 1
    except RunError:
        found.outcomes["refused"] += 1
    except Exception as error:
        found.crashes[number] = f"{path.name}: {type(error).__name__}: {error}"[:300]
    _note_time(found, number, time.process_time() - start)


def _note_time(found: Found, number: int, seconds: float) -> None:
    if seconds > found.slowest_s:
        found.slowest_s, found.slowest = seconds, number


CASES: dict[str, Callable[[Sequence[int]], Found]] = {
    "turns of a search agent": turns_found,
    "files of a run folder": files_found,
    "files that a run is resumed from": checkpoints_found,
}


def fuzzed(case: str, count: int, workers: int) -> dict[str, Any]:
    """One case over the numbers below ``count``, as a row of the results."""
    batches = [range(at, min(count, at + BATCH)) for at in range(0, count, BATCH)]
    total, start = Found(), time.perf_counter()
    # Threads of the parent do not survive a fork, so every worker starts afresh.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
        for found in pool.map(CASES[case], batches):
            total.add(found)
    row = {
        "case": case,
        "inputs": count,
        "outcomes": dict(sorted(total.outcomes.items())),
        "crashes": len(total.crashes),
        "first_crashes": dict(sorted(total.crashes.items())[:20]),
        "slowest_s": round(total.slowest_s, 4),
        "slowest_input": total.slowest,
        "wall_s": round(time.perf_counter() - start, 1),
    }
    print(json.dumps(row, indent=1), flush=True)
    return row


def _one_thread() -> None:
    torch.set_num_threads(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--checkpoints", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    counts = (options.turns, options.files, options.checkpoints)
    rows = [fuzzed(case, count, options.workers) for case, count in zip(CASES, counts, strict=True)]
    save("fuzz", rows)
    if any(row["crashes"] or row["slowest_s"] > LIMIT_S for row in rows):
        raise SystemExit("an input raised an error that is not ours, or took too long")


if __name__ == "__main__":
    main()
