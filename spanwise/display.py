"""What a person sees in the terminal: progress, the result, one tree with its credit.

Text of the model is shown as text: markup and control characters in it do nothing.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from rich.tree import Tree as RichTree

from spanwise.run.folder import RunFolder


class Display:
    """Progress on a console; plain lines where it is no terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Say what is going on until it is done."""
        if self.console.is_terminal:
            with self.console.status(what):
                yield
        else:
            self.console.print(what, highlight=False)
            yield

    @contextmanager
    def steps(self, total: int, *, done: int = 0) -> Iterator[StepProgress]:
        """A bar over the training steps with the time left, from the first that is not done."""
        progress = Progress(
            TextColumn("training"),
            BarColumn(),
            TextColumn("step {task.completed}/{task.total}"),
            TextColumn("[green]{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        with progress:
            task = progress.add_task("training", total=total, completed=done, figures="")
            yield StepProgress(self.console, progress, task, total)

    @contextmanager
    def fitting(self, total: int) -> Iterator[Callable[[Any], None]]:
        """A bar over the steps of fitting a base model; gives what to call after each."""
        progress = Progress(
            TextColumn("fitting"),
            BarColumn(),
            TextColumn("step {task.completed}/{task.total}"),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        with progress:
            task = progress.add_task("fitting", total=total, loss=float("nan"))

            def after_step(state: Any) -> None:
                progress.update(task, completed=state.step, loss=state.loss)
                if not self.console.is_terminal and state.step % max(1, total // 20) == 0:
                    line = f"step {state.step}/{total}  loss {state.loss:.3f}"
                    self.console.print(line, highlight=False)

            yield after_step


class StepProgress:
    """Moves the bar; without a terminal, prints about twenty lines over the run."""

    def __init__(self, console: Console, progress: Progress, task: TaskID, total: int) -> None:
        self._console, self._progress, self._task, self._total = console, progress, task, total

    def step(self, metrics: Mapping[str, Any]) -> None:
        """One step is done."""
        figures = (
            f"exact match {metrics['unforked/exact_match']:.2f}  "
            f"tool calls {metrics['tool_calls']:.1f}  entropy {metrics['turn_entropy']:.2f}"
        )
        self._progress.update(self._task, advance=1, figures=figures)
        step = metrics["step"]
        every = max(1, self._total // 20)
        if not self._console.is_terminal and (step % every == 0 or step == self._total):
            line = f"step {step}/{self._total}  {figures}"
            self._console.print(line, highlight=False)


def show_results(log: RunFolder, console: Console, *, group_name: str) -> None:
    """What a finished run has learned, one of its trees, and what to look at next."""
    folder, summary = log.folder, log.read_summary()
    console.print(results_table(summary, group_name=group_name))
    if summary.get("row_tokens"):
        console.print(packing_line(summary), highlight=False)
    if steps := log.tree_steps():
        console.print(f"\nOne search tree of step {steps[0]}\n", style="bold", highlight=False)
        console.print(tree_view(tree_to_show(log.read_trees(steps[0]))))
        console.print(f"\nanother tree  spanwise show {folder} --step {steps[-1]}", highlight=False)
    console.print(f"more scores   spanwise eval {folder} --num-tasks 400", highlight=False)
    console.print(f"run folder    {folder}", highlight=False)


def results_table(summary: Mapping[str, Any], *, group_name: str = "hops") -> Table:
    """Held-out exact match before and after, in all and by group, with counts."""
    before, after = summary["before"], summary["after"]
    table = Table(title=f"Held-out exact match, {summary['recipe']}, seed {summary['seed']}")
    for name in (group_name, "questions", "sampled, before → after", "greedy, before → after"):
        table.add_column(name, justify="right")
    rows = [("all", before, after)]
    rows += [(k, before["by_group"][k], after["by_group"][k]) for k in before["by_group"]]
    for name, old, new in rows:
        cells = [_change(old[key], new[key]) for key in ("exact_match", "greedy")]
        table.add_row(name, str(old["n"]), *cells, style="bold" if name == "all" else "")
    table.caption = _failed(before["failed"] + after["failed"])
    return table


def packing_line(summary: Mapping[str, Any]) -> str:
    """How much of the rows that were trained on had to be computed.

    Example:
      >>> packing_line({"row_tokens": 20_000, "computed_tokens": 5_000})
      'trained on rows of 20,000 tokens by computing 5,000: 75% saved, shared tokens once'
      >>> packing_line({"row_tokens": 20_000, "computed_tokens": 21_000})
      'trained on rows of 20,000 tokens by computing 21,000 with padding'
    """
    total, computed = summary["row_tokens"], summary["computed_tokens"]
    saved = 1 - computed / max(total, 1)
    what = f": {100 * saved:.0f}% saved, shared tokens once" if saved > 0 else " with padding"
    return f"trained on rows of {total:,} tokens by computing {computed:,}{what}"


def _change(before: float, after: float) -> str:
    return f"{100 * before:.1f}% → {100 * after:.1f}%  {100 * (after - before):+6.1f}"


def scores_table(measured: Mapping[str, Any], *, title: str, group_name: str = "hops") -> Table:
    """Exact match of one measurement, in all and by group."""
    table = Table(title=f"Held-out exact match, {title}")
    for name in (group_name, "questions", "sampled", "greedy"):
        table.add_column(name, justify="right")
    for name, row in [("all", measured), *measured["by_group"].items()]:
        shares = [f"{100 * row[key]:.1f}%" for key in ("exact_match", "greedy")]
        table.add_row(name, str(row["n"]), *shares, style="bold" if name == "all" else "")
    table.caption = _failed(measured["failed"])
    return table


def _failed(count: int) -> str | None:
    """What a table of scores has to say of trajectories that were never scored."""
    return f"{count} trajectories failed and are counted as wrong" if count else None


def tree_view(record: Mapping[str, Any]) -> Group:
    """One tree of a run folder: each turn with its entropy, its credit and why it is there."""
    task, nodes = record["task"], record["nodes"]
    head = Text.assemble(
        ("question ", "dim"),
        printable(task["question"]),
        ("   answer ", "dim"),
        (printable(" / ".join(task["answers"])), "bold"),
    )
    root = RichTree(Text("prompt", style="dim"))
    branches = {(): root}
    for node in nodes[1:]:
        path = tuple(node["path"])
        branches[path] = branches[path[:-1]].add(_turn(node))
    legend = Text(
        "H entropy of the turn, nats a token; V value; A advantage. +r1: sampled in round 1, "
        "beside the turn that scored highest (its H, less the penalty for siblings).",
        style="dim",
    )
    return Group(head, root, legend)


def tree_to_show(records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The tree that shows most: right and wrong leaves as even as can be, then few nodes."""

    def interest(record: Mapping[str, Any]) -> tuple[float, int]:
        rewards = [n["reward"] for n in record["nodes"] if n["reward"] is not None]
        right = sum(r > 0 for r in rewards) / max(len(rewards), 1)
        return abs(right - 0.5), len(record["nodes"])

    return min(records, key=interest)


def printable(text: str) -> str:
    r"""Text without control characters, line breaks as spaces.

    Example:
      >>> printable("a\x1b[31mred\n\u202eb")
      'a[31mred b'
    """
    text = " ".join(text.split())
    return "".join(c for c in text if unicodedata.category(c)[0] != "C")


def _turn(node: Mapping[str, Any]) -> Text:
    """One line for one turn."""
    expansion = node["expansion"]
    label = Text().append(".".join(map(str, node["path"])) + " ", style="dim")
    if expansion:
        label.append(f"+r{expansion['round']} ", style="bold magenta")
    colour = {True: "green", False: "red"}.get(node["success"], "cyan")
    label.append(printable(node["label"] or node["text"])[:80], style=colour)
    if node["stop"] not in ("continue", "end"):
        label.append(f"  {node['stop']}", style="bold red")
    if node["failure"]:
        label.append(f" ({printable(node['failure']['message'])})", style="red")
    label.append(f"   H {node['entropy']:.2f}", style="dim")
    if node["reward"] is not None:
        label.append(f"  reward {node['reward']:g}")
    if node["value"] is not None:
        label.append(f"  V {node['value']:+.2f}", style="dim")
    advantage = node["advantage"]
    colour = "green" if advantage > 0 else "red" if advantage < 0 else "dim"
    label.append(f"  A {advantage:+.2f}", style=colour)
    if expansion:
        of = ".".join(map(str, expansion["of"])) or "prompt"
        label.append(f"  beside {of} ({expansion['score']:.2f})", style="magenta")
    return label
