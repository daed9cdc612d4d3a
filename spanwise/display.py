"""The output of a terminal: progress, the result, one tree with its credit.

All text is shown as text, wherever it comes from: markup and control characters in it do
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import pvariance
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text
from rich.tree import Tree as RichTree

from spanwise.errors import printable, visible
from spanwise.run.folder import RunFolder, tree_of


class TextConsole(Console):
    """A console to which every text is text: no markup, and no control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, markup=False, emoji=False, highlight=False)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


class Display:
    """Progress on a console; plain lines where it is no terminal."""

    def __init__(self, console: TextConsole | None = None) -> None:
        self.console = console or TextConsole()

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Say what is going on until it is done."""
        if self.console.is_terminal:
            with self.console.status(Text(printable(what)), spinner="line"):
                yield
        else:
            self.console.print(printable(what))
            yield

    @contextmanager
    def bar(self, name: str, total: int, *, done: int = 0) -> Iterator[Callable[[int, str], None]]:
        """A bar with the time left; without a terminal, about twenty lines over the whole.

        Gives a function to call after each step, with its number and its figures.
        """
        progress = Progress(
            TextColumn(name, markup=False),
            BarColumn(),
            TextColumn("step {task.completed}/{task.total}"),
            TextColumn("{task.fields[figures]}", style="green", markup=False),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        with progress:
            task = progress.add_task(name, total=total, completed=done, figures="")

            def after_step(step: int, figures: str) -> None:
                progress.update(task, completed=step, figures=figures)
                due = step % max(1, total // 20) == 0 or step == total
                if due and not self.console.is_terminal:
                    self.console.print(f"step {step}/{total}  {figures}")

            yield after_step


def step_figures(metrics: Mapping[str, Any]) -> str:
    """The figures of a training step beside the bar."""
    shown = {
        "success": metrics.get("unforked/success"),
        "score": metrics.get("unforked/score"),
        "turns": metrics["turns"],
        "entropy": metrics["turn_entropy"],
    }
    return "  ".join(f"{name} {x:.2f}" for name, x in shown.items() if x is not None)


def show_results(log: RunFolder, console: TextConsole, *, group_by: str) -> None:
    """Print the scores of a finished run, one of its trees, and the commands to go on with."""
    folder, summary = printable(log.folder), log.read_summary()
    console.print(results_table(summary, group_by=group_by))
    if line := signal_line(log.read_metrics()):
        console.print(line, highlight=False, markup=False)
    if summary.get("row_tokens"):
        console.print(packing_line(summary))
    if steps := log.tree_steps():
        console.print(f"\nOne tree of step {steps[0]}\n", style="bold")
        console.print(tree_view(tree_to_show(log.read_trees(steps[0]))))
        console.print(f"\nanother tree  spanwise show {folder} --step {steps[-1]}")
    console.print(f"more scores   spanwise eval {folder} --num-tasks 400")
    console.print(f"run folder    {folder}")


def results_table(summary: Mapping[str, Any], *, group_by: str = "") -> Table:
    """Held-out success, or else score, before and after, in all and by group, with counts."""
    before, after = summary["before"], summary["after"]
    title = printable(f"{summary['recipe']}, seed {summary['seed']}")
    columns = ("sampled, before → after", "greedy, before → after")

    def cell(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
        if name not in old or name not in new:
            return "–"
        change = shown_score(name, new[name] - old[name], "+").rstrip("%")
        ends = [shown_score(name, row[name]) for row in (old, new)]
        return f"{' → '.join(ends)}  {change:>6}"

    return _scores_table(title, group_by, columns, [before, after], cell)


def signal_line(metrics: Sequence[Mapping[str, Any]]) -> str:
    """What to say of a run in which no step moved the policy; empty of any other.

    Example:
      >>> signal_line([{"step": 1, "success": 1.0, "no_signal": 1.0}])
      'nothing was trained in any of 1 steps: every branch succeeded; take harder tasks'
      >>> signal_line([{"step": 1, "no_signal": 1.0}, {"step": 2}])
      ''
    """
    steps = [line for line in metrics if line["step"] > 0]
    if not steps or not all(line.get("no_signal") for line in steps):
        return ""
    successes = {line["success"] for line in steps if "success" in line}
    if not any("score" in line for line in steps) and not successes:
        why = "no branch had a reward; the failures say why"
    elif successes == {1.0}:
        why = "every branch succeeded; take harder tasks"
    elif successes == {0.0}:
        why = "no branch succeeded; take easier tasks, or a model that can do some"
    else:
        why = "the branches of each prompt were paid alike; take more of them, or other tasks"
    return f"nothing was trained in any of {len(steps)} steps: {why}"


def packing_line(summary: Mapping[str, Any]) -> str:
    """The share of the trained rows' tokens that had to be computed.

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


def scores_table(measured: Mapping[str, Any], *, title: str, group_by: str = "") -> Table:
    """Held-out success, or else score, of one measurement, in all and by group."""

    def cell(name: str, row: Mapping[str, Any]) -> str:
        return shown_score(name, row[name]) if name in row else "–"

    return _scores_table(title, group_by, ("sampled", "greedy"), [measured], cell)


def shown_score(name: str, value: float, sign: str = "") -> str:
    """A held-out score as people read it: success in percent, all else as a number.

    Example:
      >>> shown_score("greedy_success", 0.5), shown_score("score", 0.25, "+")
      ('50.0%', '+0.250')
    """
    return f"{100 * value:{sign}.1f}%" if name.endswith("success") else f"{value:{sign}.3f}"


def _scores_table(
    title: str,
    group_by: str,
    columns: Sequence[str],
    measured: Sequence[Mapping[str, Any]],
    cell: Callable[..., str],
) -> Table:
    """Sampled and greedy scores, in all and by group; ``cell`` takes a name and the rows."""
    name = "success" if all("success" in whole for whole in measured) else "score"
    table = Table(title=f"Held-out {name}, {printable(title)}")
    for column in (group_by, "tasks", *columns):
        table.add_column(column, justify="right")
    rows = [("all", measured)]
    rows += [(k, [whole["by_group"][k] for whole in measured]) for k in measured[0]["by_group"]]
    for group, row in rows:
        cells = [cell(prefix + name, *row) for prefix in ("", "greedy_")]
        table.add_row(
            printable(group), str(row[0]["n"]), *cells, style="bold" if group == "all" else ""
        )
    if failed := sum(whole["failed"] for whole in measured):
        counted = "count as no success" if name == "success" else "are in no score"
        table.caption = f"{failed} trajectories failed and {counted}"
    return table


def tree_view(record: Mapping[str, Any]) -> Group:
    """One tree of a run folder: each turn with its entropy, its credit and why it is there."""
    task, nodes = record["task"], record["nodes"]
    head = Text.assemble(("task ", "dim"), printable(task["question"]))
    if task["answers"]:
        head.append("   answer ", "dim").append(printable(" / ".join(task["answers"])), "bold")
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
    """The tree that shows most: its branches end as differently as can be, and then few nodes.

    They differ in success, where the environment says it, else in return.
    """

    def interest(record: Mapping[str, Any]) -> tuple[float, int]:
        tree = tree_of(record)
        ends = [
            paid if leaf.success is None else float(leaf.success)
            for leaf in tree.leaves()
            if (paid := tree.returns(leaf)) is not None
        ]
        return -pvariance(ends or [0.0]), len(tree.nodes)

    return min(records, key=interest)


def _turn(node: Mapping[str, Any]) -> Text:
    """One line for one turn."""
    expansion = node["expansion"]
    label = Text().append(".".join(map(str, node["path"])) + " ", style="dim")
    if expansion:
        label.append(f"+r{expansion['round']} ", style="bold magenta")
    colour = {True: "green", False: "red"}.get(node["success"], "cyan")
    label.append(printable(node["label"] or node["text"])[:80], style=colour)
    if node["stop"] not in ("continue", "end"):
        label.append(f"  {printable(node['stop'])}", style="bold red")
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
