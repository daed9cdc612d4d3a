"""The run folder: everything a run leaves behind, in plain files.

    config.json             the resolved configuration, and where it came from
    metrics.jsonl           one line for each step
    trees/step_00001.jsonl  one line for each tree of the step, with its credit
    checkpoints/NAME/       the model in Hugging Face format: step_N to go on from, final
    journal/                finished turns that no checkpoint has seen the end of
    lock                    held by the process that trains here
    summary.json            before, after, time and tokens; written last

``schema`` in ``config.json`` counts the layout. Whole files are replaced atomically;
lines are appended whole. Nothing here is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import spanwise
from spanwise.errors import SpanwiseError
from spanwise.tree import Expansion, Failure, Node, Tree

SCHEMA = 2
"""Number of the layout and its names; version 0.1 wrote schema 1."""

LOCK = "lock"
NAMES = ("config.json", "metrics.jsonl", "trees", "checkpoints", "journal", "summary.json")
"""What a run writes, besides its lock."""


class RunError(SpanwiseError):
    """A run folder cannot be used; the message says why and what to do."""


class RunFolder:
    """Writes and reads one run folder.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     log = RunFolder.create(Path(folder) / "run", {"recipe": "demo"})
      ...     _ = log.write_metrics({"step": 1, "score": 0.5})
      ...     log.read_metrics()
      [{'step': 1, 'score': 0.5}]
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, folder: Path, config: Mapping[str, Any]) -> RunFolder:
        """Start a new run folder.

        Raises:
          RunError: if the folder holds a run already, or files of another program by the names
            of a run's, or cannot be written.
        """
        log = cls(folder)
        refuse_foreign(folder)
        if log.config_path.exists():
            raise RunError(
                f"{folder} holds a run already; go on with it: spanwise train --resume {folder}, "
                "or give another --folder"
            )
        try:
            (folder / "trees").mkdir(parents=True, exist_ok=True)
            (folder / "checkpoints").mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot write the run folder {folder}: {error.strerror}") from error
        try:
            version = spanwise.__version__
            _write_json(log.config_path, {"schema": SCHEMA, "version": version, **config})
        except (TypeError, RunError) as error:
            log.discard()
            raise RunError(f"the configuration cannot be written down: {error}") from error
        return log

    def discard(self) -> None:
        """Take back ``create``; what was written since, or was there before, stays."""
        for file in (self.config_path, self.folder / LOCK):
            file.unlink(missing_ok=True)
        for folder in (self.folder / "trees", self.folder / "checkpoints", self.folder):
            with suppress(OSError):
                folder.rmdir()

    @classmethod
    def open(cls, folder: Path) -> RunFolder:
        """Open an existing run folder.

        Raises:
          RunError: if there is none, or a version with another schema wrote it.
        """
        log = cls(folder)
        if not log.config_path.is_file():
            raise RunError(f"{folder} is no run folder: it has no config.json")
        if refusal := other_schema(log.read_config()):
            raise RunError(f"{folder} {refusal}")
        return log

    @property
    def config_path(self) -> Path:
        return self.folder / "config.json"

    @property
    def summary_path(self) -> Path:
        return self.folder / "summary.json"

    def checkpoint_path(self, name: str) -> Path:
        return self.folder / "checkpoints" / name

    def trees_path(self, step: int) -> Path:
        return self.folder / "trees" / f"step_{step:05d}.jsonl"

    def read_config(self) -> dict[str, Any]:
        return _read_json(self.config_path)

    @property
    def metrics_path(self) -> Path:
        return self.folder / "metrics.jsonl"

    def write_metrics(self, metrics: Mapping[str, Any]) -> int:
        """Append one step; figures that are not finite become null.

        Returns:
          The length of the file, in bytes.
        """
        finite = {name: _finite(value) for name, value in metrics.items()}
        with writing(self.metrics_path), self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(_dumps(finite) + "\n")
            file.flush()
            return file.tell()

    def read_metrics(self) -> list[dict[str, Any]]:
        return list(_read_lines(self.metrics_path)) if self.metrics_path.exists() else []

    def restore(self, step: int, metrics_bytes: int) -> None:
        """Forget what came after a checkpoint.

        Raises:
          RunError: if the metrics are shorter than that.
        """
        size = self.metrics_path.stat().st_size if self.metrics_path.exists() else 0
        if size < metrics_bytes:
            raise RunError(
                f"{self.metrics_path} has {size} bytes of the {metrics_bytes} that it had at the "
                "checkpoint; put the file back, or train the run again in another folder"
            )
        with writing(self.metrics_path):
            if size > metrics_bytes:
                os.truncate(self.metrics_path, metrics_bytes)
            for later in self.tree_steps():
                if later > step:
                    self.trees_path(later).unlink()

    def write_trees(self, step: int, records: Iterable[Mapping[str, Any]]) -> None:
        """Write the trees of one step (see ``tree_record``)."""
        text = "".join(_dumps(record) + "\n" for record in records)
        _write_text(self.trees_path(step), text)

    def read_trees(self, step: int) -> list[dict[str, Any]]:
        return list(_read_lines(self.trees_path(step)))

    def tree_steps(self) -> list[int]:
        """The steps whose trees are there, in order."""
        files = self.folder.glob("trees/step_*.jsonl")  # a run that was killed leaves .partial
        return sorted(int(path.stem.removeprefix("step_")) for path in files)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        _write_json(self.summary_path, summary)

    def read_summary(self) -> dict[str, Any]:
        return _read_json(self.summary_path)


def refuse_foreign(folder: Path) -> None:
    """Refuse a new run where it would write over, or remove, what is no run's.

    Raises:
      RunError: for the current folder itself, which an empty name means too; and for a folder
        that has a name of ours in it and no ``config.json`` of a run.
    """
    if folder == Path():
        raise RunError("--folder is empty or the current folder; name a folder of the run's own")
    lock, config = folder / LOCK, folder / "config.json"
    with suppress(RunError):
        if config.is_file() and "schema" in _read_json(config):
            return
    found = [name for name in NAMES if os.path.lexists(folder / name)]
    if os.path.lexists(lock) and (lock.is_symlink() or not lock.is_file() or lock.stat().st_size):
        found.append(LOCK)
    if found:
        raise RunError(
            f"{folder} holds {', '.join(found)} of another program; give another --folder"
        )


def refuse_links_out(folder: Path) -> None:
    """Refuse a run folder with links that lead out of it: what is written would land there.

    Raises:
      RunError: naming the first link.
    """
    root = folder.resolve()
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, name) for name in (*folders, *files)):
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                raise RunError(
                    f"{path} is a link that leads out of the run folder; put there what it "
                    "leads to, or remove it"
                )


def new_folder(path: Path) -> Path:
    """Make a folder of that name, or of the first ``NAME-2``, ``NAME-3``, … that is free.

    Raises:
      RunError: if it cannot be made.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            made = path if number == 1 else path.with_name(f"{path.name}-{number}")
            with suppress(FileExistsError):
                made.mkdir()
                return made
    raise AssertionError


def other_schema(config: Mapping[str, Any]) -> str | None:
    """The refusal of a run of another schema; None for one that this version reads.

    Example:
      >>> other_schema({"schema": 1})  # doctest: +NORMALIZE_WHITESPACE
      'was written by spanwise 0.1 (schema 1); this version reads schema 2. Look at it with
       spanwise 0.1'
    """
    if (schema := config.get("schema")) == SCHEMA:
        return None
    version = "0.1" if schema == 1 else config.get("version", "of another version")
    return (
        f"was written by spanwise {version} (schema {schema}); this version reads schema "
        f"{SCHEMA}. Look at it with spanwise {version}"
    )


def tree_record(
    tree: Tree,
    task: Mapping[str, Any],
    *,
    advantages: Sequence[float],
    values: Sequence[float] | None = None,
    tokens: Sequence[Mapping[str, Sequence[float]]] | None = None,
) -> dict[str, Any]:
    """One tree with its credit, for a line of ``trees/``.
    ``advantages`` and ``values`` have a number for each of ``tree.nodes``, ``tokens`` the
    numbers of its tokens by name.
    """
    nodes: list[dict[str, Any]] = []
    for index, node in enumerate(tree.nodes):
        record = node_record(node)
        record["entropy"] = node.entropy
        record["advantage"] = advantages[index]
        record["value"] = None if values is None else values[index]
        record |= {} if tokens is None else tokens[index]
        nodes.append(record)
    return {"task": {"id": tree.task_id, **task}, "nodes": nodes}


def tree_of(record: Mapping[str, Any]) -> Tree:
    """The tree that ``tree_record`` was made from.

    Raises:
      RunError: if the record is damaged.

    Example:
      >>> tree = Tree(task_id="t", nodes=(Node(path=(), observation=(1,), stop="prompt"),))
      >>> tree_of(tree_record(tree, {"question": "?"}, advantages=[0.0])) == tree
      True
    """
    try:
        nodes = tuple(node_of(entry) for entry in record["nodes"])
        return Tree(task_id=record["task"]["id"], nodes=nodes)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise RunError(f"a tree cannot be read: {reason}") from error


def node_record(node: Node) -> dict[str, Any]:
    """One node as plain values, without its credit."""
    return dataclasses.asdict(node)


def node_of(record: Mapping[str, Any]) -> Node:
    """The node that ``node_record`` was made from; what else the record has is passed over.

    Example:
      >>> node = Node(path=(0,), observation=(1,), stop="end", reward=1.0)
      >>> node_of(json.loads(json.dumps(node_record(node)))) == node
      True
    """
    names = {f.name for f in dataclasses.fields(Node)}
    fields = {name: record[name] for name in names - {"faults", "truncated"}}
    fields["truncated"] = record.get("truncated", False)
    for name in ("path", "tokens", "engine_logprobs", "sampling_logprobs", "observation"):
        fields[name] = tuple(fields[name])
    if fields["failure"] is not None:
        fields["failure"] = Failure(**fields["failure"])
    fields["faults"] = tuple(Failure(**fault) for fault in record.get("faults", ()))
    if fields["expansion"] is not None:
        expansion: dict[str, Any] = fields["expansion"]
        fields["expansion"] = Expansion(
            round=expansion["round"], of=tuple(expansion["of"]), score=expansion["score"]
        )
    return Node(**fields)


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Have what goes wrong with writing name the file.

    Raises:
      RunError: for a full disk, a folder that may not be written, and the like.
    """
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_plain)


def _finite(value: Any) -> Any:
    """None for NaN and infinity, which JSON has no word for."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} does not belong in a run folder: {value!r}")


def _write_json(path: Path, value: Any) -> None:
    _write_text(path, json.dumps(value, ensure_ascii=False, indent=2, default=_plain) + "\n")


def _write_text(path: Path, text: str) -> None:
    """Replace a file in one step: a reader sees the old one or the new one."""
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)  # a full disk has better use for the room
            raise


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return _object(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path}: {error}") from error


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield _object(line)
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path}: {error}") from error


def _object(text: str) -> dict[str, Any]:
    value: Any = json.loads(text)
    if not isinstance(value, dict):
        raise SpanwiseError(f"an object is expected, not {type(value).__name__}")
    return cast("dict[str, Any]", value)
