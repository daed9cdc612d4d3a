"""Commands over finished runs: ``show``, ``view``, ``compare`` and ``study``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from spanwise.cli.options import configured, parsed
from spanwise.cli.recorded import recorded_start, split_allowed
from spanwise.cli.words import UsageError, asks_for_help, split_target, split_targets
from spanwise.errors import printable


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Print one search tree of a run with its credit."""

    step: int | None = None
    """Step whose trees to look at; by default the first that was kept."""

    tree: int | None = None
    """Number of the tree within the step, from 0; by default that with the most even outcomes."""


def show_command(arguments: list[str]) -> None:
    """Print one search tree of a run."""
    target, rest = split_target(arguments, "show RUN")
    options = parsed(ShowOptions(), rest, "spanwise show RUN")

    from spanwise.display import Display, tree_to_show, tree_view
    from spanwise.run.folder import RunFolder

    log = RunFolder.open(Path(target))
    steps = log.tree_steps()
    if not steps:
        raise UsageError(f"{target} has no trees: none were kept, or no step is done yet")
    step = steps[0] if options.step is None else options.step
    if step not in steps:
        kept = ", ".join(map(str, steps)) if len(steps) <= 10 else f"{steps[0]} to {steps[-1]}"
        raise UsageError(f"{target} has no trees of step {step}; kept are those of {kept}")
    records: list[Mapping[str, Any]] = list(log.read_trees(step))
    if options.tree is not None and not 0 <= options.tree < len(records):
        raise UsageError(f"step {step} has trees 0 to {len(records) - 1}, not {options.tree}")
    record = tree_to_show(records) if options.tree is None else records[options.tree]
    console = Display().console
    console.print(f"step {step}, tree {records.index(record)}\n", style="bold")
    console.print(tree_view(record))


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """See runs, trees and tokens in the browser, on this machine alone."""

    port: int | None = None
    """Port of the page; 0: any free one. By default 8077, or a free one if that is taken."""

    browser: bool = True
    """Open the page, where there is a desktop."""

    export: Path | None = None
    """File to write the page with its data into, instead of serving it."""


def view_command(arguments: list[str]) -> None:
    """Serve the page over some runs, or write it as one file."""
    folders, rest = split_targets(arguments, "view RUN [RUN ...]")
    options = parsed(ViewOptions(), rest, "spanwise view RUN")

    from spanwise.viewer import Viewer, export, open_page, serve

    viewer = Viewer(folders)
    if options.export is not None:
        export(viewer, options.export)
        print(f"page  {printable(options.export)} ({options.export.stat().st_size / 1e6:.1f} MB)")
        return
    with serve(viewer, options.port) as server:
        print(f"page  {server.address}   (Ctrl-C ends it)", flush=True)
        if options.browser:
            open_page(server.address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Held-out scores of runs over their seeds, and how often one method beats another."""

    score: str = ""
    """Name of the compared score in summary.json, such as score, success, greedy_success or
    env/KEY; by default success if all runs have it, else score."""


def compare_command(arguments: list[str]) -> None:
    """Print the scores of runs over their seeds."""
    folders, rest = split_targets(arguments, "compare RUN RUN [RUN ...]")
    options = parsed(CompareOptions(), rest, "spanwise compare RUN RUN")

    from spanwise.display import Display
    from spanwise.study.compare import comparison, read_run, run_groups, score_of_all

    runs = [read_run(folder) for folder in folders]
    score = score_of_all(runs, options.score)
    Display().console.print(comparison(run_groups(runs), score))


def study_command(arguments: list[str]) -> None:
    """Run a study of a finished run."""
    if asks_for_help(arguments):  # of the one study there is
        arguments = ["correlation", *arguments]
    if arguments[:1] != ["correlation"]:
        raise UsageError("use spanwise study correlation RUN [--option value ...]")
    target, rest = split_target(arguments[1:], "study correlation RUN")
    allowed, rest = split_allowed(rest)

    from spanwise.study.command import CorrelationOptions, run_correlation

    options = parsed(CorrelationOptions(), rest, "spanwise study correlation RUN")
    start_of = partial(recorded_start, allowed=allowed)
    run_correlation(Path(target), options, start_of, configured)
