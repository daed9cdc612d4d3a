"""Reinforcement learning for language models, credited and updated one span at a time.

spanwise train RECIPE [--option value ...]     train, and show what was learned
spanwise train --resume RUN                    go on with a run that was stopped or killed
spanwise eval RUN_OR_MODEL [--option value]    answer held-out questions
spanwise show RUN [--step N] [--tree N]        one search tree with its credit
spanwise view RUN [RUN ...]                    see runs, trees and tokens in the browser
spanwise compare RUN RUN [RUN ...]             scores of runs over their seeds
spanwise study correlation RUN [--option …]    which advantages agree with Monte Carlo values
spanwise build-base MODEL [--option value ...] fit a small model that ships with spanwise

RECIPE is the name of a recipe or your own file's, FILE.py:FUNCTION; spanwise train lists them. With
--sampler NAME turns are drawn by another engine than the recipe's: transformers, vllm or servers.
Put --help behind any of these to see its options.
"""

# The only file that imports tyro.

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from spanwise.envs.base import Split
from spanwise.errors import SpanwiseError
from spanwise.samplers.base import EngineError

if TYPE_CHECKING:
    from spanwise.samplers.base import Engine
    from spanwise.train.config import TrainConfig

C = TypeVar("C")

BASE_MODELS = ("search_base", "chain_base")
"""The models that ship with spanwise: functions of ``spanwise.toys.base_model``."""


class UsageError(SpanwiseError):
    """The command line asks for something that is not there."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; what the user got wrong is one line, not a traceback."""
    warnings.formatwarning = _warning_line
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands: dict[str, Callable[[list[str]], None]] = {
        "train": _train,
        "eval": _eval,
        "show": _show,
        "view": _view,
        "compare": _compare,
        "study": _study,
        "build-base": _build_base,
    }
    if not arguments or _asks_for_help(arguments):
        print(__doc__)
        return 0
    try:
        if arguments[0] not in commands:
            raise UsageError(f"no command {arguments[0]!r}; there are {', '.join(commands)}")
        commands[arguments[0]](arguments[1:])
    except (ValueError, EngineError) as error:  # also ModelError, RunError and refused settings
        print(f"{_speaker()}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("spanwise: interrupted", file=sys.stderr)
        return 130
    return 0


_usual_warning = warnings.formatwarning


def _warning_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """A warning of spanwise's own as one line without the place in its code."""
    if Path(filename).is_relative_to(Path(__file__).parent):
        return f"{_speaker()}: warning: {message}\n"
    return _usual_warning(message, category, filename, lineno, line)


def _speaker() -> str:
    """Who reports something: of several processes, which."""
    return f"spanwise, process {os.environ['RANK']}" if "RANK" in os.environ else "spanwise"


def _asks_for_help(arguments: Sequence[str]) -> bool:
    return bool(arguments) and arguments[0] in ("-h", "--help")


def _train(arguments: list[str]) -> None:
    resume = arguments[:1] == ["--resume"]
    if resume:
        folder, spec, rest, config = _to_resume(arguments[1:])
    else:
        spec, rest = _named(arguments, "train RECIPE", _recipes())
        config = _configured(spec, rest)
        folder = config.folder or _new_folder(spec)

    from spanwise.display import Display, show_results
    from spanwise.runtime.distributed import leave_group
    from spanwise.train import Stopped, train

    display = Display()
    display.console.quiet = not (leads := os.environ.get("RANK", "0") == "0")
    try:
        log = train(
            config, recipe=spec, arguments=rest, folder=folder, display=display, resume=resume
        )
    except Stopped as stopped:
        if leads:
            print(f"spanwise: stopped by {stopped}\ngo on with     {_resume_command(folder)}")
        leave_group()
        raise SystemExit(128 + stopped.number) from stopped
    leave_group()
    if leads:  # one of several processes shows the results of all
        show_results(log, display.console, group_by=config.evaluation.group_by)


def _to_resume(arguments: list[str]) -> tuple[Path, str, list[str], TrainConfig]:
    """The folder of a run, and the recipe, options and configuration it was started with."""
    target, rest = _target(arguments, "train --resume RUN", options=False)
    if rest:
        raise UsageError(f"a run is resumed as it was started; leave out {' '.join(rest)}")

    from spanwise.run.folder import RunFolder

    record = RunFolder.open(Path(target)).read_config()
    recipe, words = record.get("recipe"), record.get("arguments")
    if not isinstance(recipe, str) or not isinstance(words, list):
        raise UsageError(f"{target}/config.json does not say which recipe it came from")
    words = [str(word) for word in cast("list[Any]", words)]
    return Path(target), recipe, words, _configured(recipe, words)


def _resume_command(folder: Path) -> str:
    return f"spanwise train --resume {shlex.quote(str(folder))}"


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Answer held-out questions, sampled and greedily."""

    recipe: str | None = None
    """Whose tasks and limits a model is measured with, by default those of at2po_search; a run
    folder brings its own."""

    num_tasks: int = 300
    """The first so many of the split."""

    split: Split = "test"
    """Which tasks."""

    seed: int = 0
    """Of the sampled answers."""


def _eval(arguments: list[str]) -> None:
    target, rest = _target(arguments, "eval RUN_OR_MODEL")
    options = _parsed(EvalOptions(), rest, "spanwise eval RUN_OR_MODEL")

    from spanwise.display import Display, scores_table
    from spanwise.rollout.context import RolloutContext
    from spanwise.train.evaluate import measure

    config = _to_measure(target, options.recipe)
    config.sampler.check()
    tokenizer = config.model.load_tokenizer()
    try:
        config.env.check(tokenizer)
    except ValueError as error:
        if config.model.path != target:
            raise
        raise UsageError(f"{error}; --recipe names the recipe that {target} is for") from error
    sampler = config.sampler.build(config.model.load(), tokenizer)
    context = RolloutContext(
        env=config.env,
        sampler=sampler,
        tokenizer=tokenizer,
        seed=options.seed,
        failures=config.failures,
    )
    evaluation = dataclasses.replace(
        config.evaluation, num_tasks=options.num_tasks, split=options.split
    )
    display = Display()
    with display.waiting(f"measuring on {options.num_tasks} tasks, sampled and greedily"):
        measured = measure(context, config.rollout, evaluation)
    sampler.close()
    table = scores_table(measured, title=target, group_by=evaluation.group_by)
    display.console.print(table)


def _to_measure(target: str, recipe: str | None) -> TrainConfig:
    """The configuration of a run with its finished model, or of a recipe with another model."""
    from spanwise.run.folder import RunFolder

    folder = Path(target)
    if not ((folder / "config.json").is_file() and (folder / "checkpoints").is_dir()):
        config, path = _configured(recipe or "at2po_search", []), target
    elif recipe is not None:
        raise UsageError(f"{target} is a run and has a recipe already; leave out --recipe {recipe}")
    else:
        log = RunFolder.open(folder)
        record, path = log.read_config(), str(log.checkpoint_path("final"))
        if not Path(path).is_dir():
            raise UsageError(f"{target} has no finished checkpoint yet ({path} is missing)")
        config = _configured(record["recipe"], record["arguments"])
    return dataclasses.replace(config, model=dataclasses.replace(config.model, path=path))


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Print one search tree of a run with its credit."""

    step: int | None = None
    """The step whose trees to look at; by default the first that was kept."""

    tree: int | None = None
    """Which of its trees, from 0; by default the one with the most even outcomes."""


def _show(arguments: list[str]) -> None:
    target, rest = _target(arguments, "show RUN")
    options = _parsed(ShowOptions(), rest, "spanwise show RUN")

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
    console.print(f"step {step}, tree {records.index(record)}\n", style="bold", highlight=False)
    console.print(tree_view(record))


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """See runs, trees and tokens in the browser, on this machine alone."""

    port: int | None = None
    """Where the page is served; 0: any free port. By default 8077, or a free one if that
    is taken."""

    browser: bool = True
    """Open the page, where there is a desktop."""

    export: Path | None = None
    """Write the page with its data as this one file instead."""


def _view(arguments: list[str]) -> None:
    folders, rest = _targets(arguments, "view RUN [RUN ...]")
    options = _parsed(ViewOptions(), rest, "spanwise view RUN")

    from spanwise.viewer import Viewer, export, open_page, serve

    viewer = Viewer(folders)
    if options.export is not None:
        export(viewer, options.export)
        print(f"page  {options.export} ({options.export.stat().st_size / 1e6:.1f} MB)")
        return
    with serve(viewer, options.port) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        print(f"page  {address}   (Ctrl-C ends it)", flush=True)
        if options.browser:
            open_page(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Held-out scores of runs over their seeds, and how often one method beats another."""

    score: str = ""
    """What to compare by, a name in summary.json, such as score, success, greedy_success or
    env/KEY; by default success if all runs have it, else score."""


def _compare(arguments: list[str]) -> None:
    folders, rest = _targets(arguments, "compare RUN RUN [RUN ...]")
    options = _parsed(CompareOptions(), rest, "spanwise compare RUN RUN")

    from spanwise.display import Display
    from spanwise.study.compare import comparison, read_run, run_groups, score_of_all

    runs = [read_run(folder) for folder in folders]
    score = score_of_all(runs, options.score)
    Display().console.print(comparison(run_groups(runs), score))


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Fit a small model from nothing, on demonstrations that spanwise makes up."""

    folder: Path
    """Where the model goes, in Hugging Face format."""

    fit: Any
    """Its shape, its demonstrations and the schedule."""


def _study(arguments: list[str]) -> None:
    if _asks_for_help(arguments):  # of the one study there is
        arguments = ["correlation", *arguments]
    if arguments[:1] != ["correlation"]:
        raise UsageError("use spanwise study correlation RUN [--option value ...]")
    target, rest = _target(arguments[1:], "study correlation RUN")

    from spanwise.study.command import CorrelationOptions, run_correlation

    options = _parsed(CorrelationOptions(), rest, "spanwise study correlation RUN")
    run_correlation(Path(target), options, _configured)


def _build_base(arguments: list[str]) -> None:
    there_are = f"there are {', '.join(BASE_MODELS)}"
    name, rest = _named(arguments, "build-base MODEL", there_are)
    if name not in BASE_MODELS:
        raise UsageError(f"no base model {name!r}; {there_are}")

    from spanwise.toys import base_model

    default = BuildOptions(folder=Path(name), fit=getattr(base_model, name)())
    options = _parsed(default, rest, f"spanwise build-base {name}")
    if options.folder.exists():
        raise UsageError(f"{options.folder} exists already; give another --folder")

    from spanwise.display import Display

    display = Display()
    with display.fitting(options.fit.num_steps) as progress:
        model, tokenizer = base_model.fit_base_model(options.fit, progress)
    base_model.save_base_model(model, tokenizer, options.folder)
    display.console.print(f"model folder  {options.folder}", highlight=False)


def _target(arguments: list[str], usage: str, *, options: bool = True) -> tuple[str, list[str]]:
    """The word after the command, and the options after it; without a word, help is one."""
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    if options and _asks_for_help(arguments):
        return "", arguments
    raise UsageError(f"use spanwise {usage}{' [--option value ...]' if options else ''}")


def _named(arguments: list[str], usage: str, names: str) -> tuple[str, list[str]]:
    """As ``_target``, of a command whose options depend on the word."""
    if _asks_for_help(arguments):
        print(f"usage: spanwise {usage} [--option value ...]\n\n{names}")
        raise SystemExit(0)
    if not arguments or arguments[0].startswith("-"):
        raise UsageError(f"use spanwise {usage} [--option value ...]; {names}")
    return arguments[0], arguments[1:]


def _recipes() -> str:
    """What may stand for RECIPE."""
    from spanwise import recipes

    return (
        f"the recipes are {', '.join(recipes.names())}, or FILE.py:FUNCTION; "
        "RECIPE --help lists the options"
    )


def _targets(arguments: list[str], usage: str) -> tuple[list[Path], list[str]]:
    """The folders after the command, and the options after them."""
    count = next((i for i, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    if not count and not _asks_for_help(arguments):
        raise UsageError(f"use spanwise {usage} [--option value ...]")
    return [Path(word) for word in arguments[:count]], arguments[count:]


def _configured(spec: str, arguments: Sequence[str]) -> TrainConfig:
    """The recipe's configuration with the options of the command line."""
    from spanwise import recipes

    made: object = recipes.find(spec)()

    from spanwise.train import config

    if not isinstance(made, config.TrainConfig):
        raise UsageError(f"{spec} returns {type(made).__name__}, a recipe returns a TrainConfig")
    name, rest = _sampler_name(arguments)
    if name is not None:
        made = dataclasses.replace(made, sampler=_engine(name, made.sampler))
    return _parsed(made, rest, f"spanwise train {spec}")


def _sampler_name(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of ``--sampler``, and the other arguments: its options depend on it."""
    rest, name = list(arguments), None
    for at in reversed([i for i, word in enumerate(rest) if word == "--sampler"]):
        if at + 1 == len(rest) or name is not None:
            raise UsageError("give --sampler once, with the name of an engine")
        name = rest[at + 1]
        del rest[at : at + 2]
    return name, rest


def _engine(name: str, current: Engine) -> Engine:
    """The engine of that name: the recipe's own, or another with its usual settings."""
    from spanwise.samplers.embedded.engine import TransformersEngine
    from spanwise.samplers.vllm.local import VLLMEngine
    from spanwise.samplers.vllm.servers import VLLMServers

    engines: dict[str, type[Engine]] = {
        "transformers": TransformersEngine,
        "vllm": VLLMEngine,
        "servers": VLLMServers,
    }
    if name not in engines:
        raise UsageError(f"no sampler {name!r}; there are {', '.join(engines)}")
    return current if isinstance(current, engines[name]) else engines[name]()


def _parsed(default: C, arguments: Sequence[str], prog: str) -> C:
    import tyro

    kind: Any = type(default)
    args = list(arguments)
    return tyro.cli(kind, default=default, args=args, prog=prog, registry=_tracker_names())


def _tracker_names() -> Any:
    """Tyro's rules, with trackers by the name of their package."""
    from tyro.constructors import (
        ConstructorRegistry,
        PrimitiveConstructorSpec,
        PrimitiveTypeInfo,
    )

    from spanwise.run.trackers import TRACKERS, Tracker

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        if info.type != type[Tracker]:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar=f"{{{','.join(TRACKERS)}}}",
            instance_from_str=lambda words: TRACKERS[words[0]],
            is_instance=lambda value: isinstance(value, type),
            str_from_instance=lambda kind: [kind.__name__],
            choices=tuple(TRACKERS),
        )

    return registry


def _new_folder(spec: str) -> Path:
    name = spec.rpartition(":")[2]
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
