"""How fast the page opens on a large run, and how smoothly it moves.

    python -m bench.viewer

Makes a run of 1,000 steps with 64 trees of 22 leaves each in a temporary folder (about
4 GB; ``--steps`` and ``--trees`` make it smaller) and opens it in a headless chromium, with
a cold server each time. Writes ``bench/results/viewer.json``.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.chromium import start_chromium
from bench.record import save
from spanwise.run.folder import RunFolder, tree_record
from spanwise.tree import Expansion, Node, Tree
from spanwise.viewer import Viewer, serve

WORDS = [
    *("who", "is", "the", "doctor", "of", "Marion", "Howe"),
    *("search", "next", "result", "answer", "found", "mentor"),
]
NUM_METRICS = 45
"""Metrics of a step, as in a run of today."""

CONFIG = {"seed": 0, "advantage": {"class": "TreeAdvantage"}, "objective": {}}


def made_turn(draw: random.Random, *path: int, leaf: bool, expanded: bool) -> Node:
    words = draw.choices(WORDS, k=10)
    return Node(
        path=path,
        tokens=tuple(draw.randrange(300) for _ in words),
        engine_logprobs=tuple(-draw.expovariate(10) for _ in words),
        observation=() if leaf else tuple(draw.randrange(300) for _ in range(14)),
        observation_text="" if leaf else " ".join(draw.choices(WORDS, k=14)),
        stop="end" if leaf else "continue",
        reward=float(draw.random() < 0.5) if leaf else draw.choice((None, 0.1)),
        success=draw.random() < 0.5 if leaf else None,
        expansion=Expansion(round=1, of=path[:-1], score=0.2) if expanded else None,
        text=" ".join(words),
        label="answer Diana Jordan" if leaf else f"search {words[0]}",
    )


def made_tree(draw: random.Random, num_leaves: int = 22, depth: int = 3) -> Tree:
    """A tree as search makes it: chains from the root, and fresh siblings beside their turns."""
    nodes = [Node(path=(), observation=tuple(range(15)), stop="prompt", observation_text="who")]
    children: dict[tuple[int, ...], int] = {(): 0}
    for number in range(num_leaves):
        inner = [path for path in children if 0 < len(path) < depth]
        at = draw.choice(inner) if number >= num_leaves // 2 and inner else ()
        expanded = at != ()
        while len(at) <= depth:
            leaf = len(at) == depth
            child = (*at, children[at])
            children[at] += 1
            nodes.append(made_turn(draw, *child, leaf=leaf, expanded=expanded))
            expanded = False
            if not leaf:
                children[child] = 0
            at = child
    return Tree(task_id="made", nodes=tuple(sorted(nodes, key=lambda n: n.path)))


def make_run(folder: Path, *, steps: int, trees: int) -> int:
    """A run folder of that size; gives the bytes of its trees."""
    draw = random.Random(0)
    log = RunFolder.create(folder, {"recipe": "made", "arguments": [], "config": CONFIG})
    records: list[dict[str, Any]] = []
    for _ in range(trees):
        tree = made_tree(draw)
        credit = [draw.gauss(0, 1) for _ in tree.nodes]
        task = {"question": " ".join(draw.choices(WORDS, k=9)), "answers": [], "info": {}}
        records.append(tree_record(tree, task, advantages=credit, values=credit))
    log.write_trees(1, records)
    text = log.trees_path(1).read_bytes()
    for step in range(2, steps + 1):
        log.trees_path(step).write_bytes(text)
    names = ["unforked/score", "score", "entropy", "loss"]
    names += [f"clip_frac/token_{side}" for side in ("low", "high")]
    names += [f"metric/{i}" for i in range(NUM_METRICS - len(names))]
    for step in range(1, steps + 1):
        line = {name: draw.random() for name in names}
        log.write_metrics({"step": step, **line, "total_sampled_tokens": 3000 * step})
    return steps * len(text)


@contextmanager
def served(*folders: Path) -> Iterator[str]:
    with serve(Viewer(folders), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.address
        server.shutdown()


READY = "return document.getElementById('main')?.dataset.ready === arguments[0]"


def opening(driver: Any, folder: Path, place: str) -> float:
    """Seconds from asking a server that has read nothing until the page is drawn."""
    driver.get("about:blank")
    page = place.split("/")[1]
    begun = time.perf_counter()
    with served(folder) as address:
        driver.get(address + place)
        while not driver.execute_script(READY, page):
            time.sleep(0.005)
        return time.perf_counter() - begun


def waited(driver: Any, address: str, page: str) -> None:
    """Open an address and wait until the page is drawn and at rest."""
    driver.get("about:blank")
    driver.get(address)
    while not driver.execute_script(READY, page):
        time.sleep(0.01)
    time.sleep(0.5)


def moving(driver: Any, go: Callable[[int], str], page: str) -> list[float]:
    """Seconds to go from one place to the next on an open page."""
    found: list[float] = []
    for number in range(8):
        begun = time.perf_counter()
        driver.execute_script(
            "delete document.getElementById('main').dataset.ready; location.hash = arguments[0]",
            go(number),
        )
        while not driver.execute_script(READY, page):
            time.sleep(0.002)
        found.append(time.perf_counter() - begun)
    return found


SCROLL = """
const [selector, done] = [arguments[0], arguments[arguments.length - 1]];
const box = document.querySelector(selector);
const frames = [];
let last = null;
function frame(now) {
  if (last !== null) frames.push((now - last) / 1000);
  last = now;
  box.scrollTop += 25;
  if (frames.length < 90) requestAnimationFrame(frame); else done(frames);
}
requestAnimationFrame(frame);
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast the page is on a large run.")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--trees", type=int, default=64)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []

    def add(case: str, seconds: list[float], note: str = "") -> None:
        rows.append(
            {
                "case": case,
                "ours_s": round(statistics.median(seconds), 4),
                "spread": [round(min(seconds), 4), round(max(seconds), 4)],
                "note": note,
            }
        )
        print(rows[-1])

    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        size = make_run(run, steps=arguments.steps, trees=arguments.trees)
        wide = Path(name) / "wide"
        log = RunFolder.create(wide, {"recipe": "made", "config": CONFIG})
        tree = made_tree(random.Random(1), num_leaves=500, depth=5)
        task = {"question": "who", "answers": [], "info": {}}
        record = tree_record(tree, task, advantages=[0.1] * len(tree.nodes))
        log.write_trees(1, [record])
        what = (
            f"{arguments.steps} steps x {arguments.trees} trees of 22 leaves, {size / 1e9:.1f} GB"
        )
        driver = start_chromium(Path(name) / "profile")
        try:
            opening(driver, run, "#/runs")  # the browser itself is warm from here on
            places = {
                "run page": "#/runs",
                "tree page": "#/tree/0/500",
                "token page": "#/tokens/0/500/3",
            }
            for case, place in places.items():
                place = place.replace("500", str(arguments.steps // 2))
                add(f"open the {case}", [opening(driver, run, place) for _ in range(7)], what)
            add(
                "open a tree of 500 leaves", [opening(driver, wide, "#/tree/0/1") for _ in range(5)]
            )
            with served(run) as address:
                waited(driver, address + "#/tree/0/1", "tree")
                seconds = moving(
                    driver, lambda n: f"#/tree/0/{1 + 7 * n % arguments.steps}", "tree"
                )
                add("go to another step", seconds)
                seconds = moving(driver, lambda n: f"#/tree/0/1/{n % arguments.trees}", "tree")
                add("go to another tree", seconds)
                add("a frame while the list scrolls", driver.execute_async_script(SCROLL, "#trees"))
                waited(driver, address + "#/runs", "runs")
                add(
                    "a frame while the run page scrolls",
                    driver.execute_async_script(SCROLL, "#main"),
                )
            with served(wide) as address:
                waited(driver, address + "#/tree/0/1", "tree")
                frames = driver.execute_async_script(SCROLL, "#picture")
                add("a frame while a tree of 500 leaves scrolls", frames)
        finally:
            driver.quit()
    save("viewer", rows)


if __name__ == "__main__":
    main()
