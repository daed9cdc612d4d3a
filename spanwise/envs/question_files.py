"""Rows of questions and answers from files; an error names the file, the row and the column."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from pathlib import Path
from typing import Any, cast

from spanwise.envs.math.scoring import INSTALL_HINT
from spanwise.errors import SpanwiseError, one_line

NO_ANSWER = {"", "nan", "NaN", "NaT", "<NA>", "null"}
"""Texts that programs write where there is no value."""

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles in a chat. Some templates write the role into a marker: others could be any marker."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Columns in which a row may have its question and its answer; the first one found counts.

    A name may have dots, for what is nested.
    """

    question: tuple[str, ...] = ("question", "prompt", "problem")
    """Names of columns with the question."""

    answer: tuple[str, ...] = ("answer", "answers", "solution", "reward_model.ground_truth")
    """Names of columns with the answer."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One question."""

    number: int
    """Number of the row in its file, from 1."""

    question: str
    answers: tuple[str, ...]
    earlier_messages: tuple[Mapping[str, str], ...] = ()
    """Messages of a chat before the last one, which is the question."""


def file_rows(file: Path, columns: Columns) -> list[Row]:
    """The rows of a .jsonl or .parquet file; empty lines are skipped.

    Raises:
      ValueError: one line that names the file, the row and the column.
    """
    return _rows(raw_rows(file), str(file), columns)


def raw_rows(file: Path) -> list[tuple[int, Any]]:
    """The rows of a .jsonl or .parquet file as they are, each with its number from 1.

    Raises:
      ValueError: if the file cannot be read as one of these.
    """
    readers = {".jsonl": _jsonl, ".parquet": _parquet}
    if file.suffix not in readers:
        raise SpanwiseError(f"{file}: questions are read from .jsonl and .parquet files")
    try:
        return list(readers[file.suffix](file))
    except OSError as error:
        raise SpanwiseError(f"{file} cannot be read: {error}") from error


def dataset_rows(name: str, split: str, columns: Columns) -> list[Row]:
    """The rows of a data set on the Hugging Face hub, or in its local cache.

    Raises:
      ValueError: if it cannot be loaded, or as for ``file_rows``.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise SpanwiseError(
            f"data set {name!r} is read by the package datasets, which is not installed: "
            f"{INSTALL_HINT}"
        ) from error
    try:
        loaded: Any = datasets.load_dataset(name, split=split)
    except Exception as error:  # it raises of every kind: connection, name, access, format
        raise SpanwiseError(
            f"data set {name!r}, split {split!r}, cannot be loaded ({one_line(error)}); without "
            "the hub, download it elsewhere and set train_file to its .parquet file"
        ) from error
    return _rows(enumerate(loaded, start=1), f"data set {name}", columns)


def _jsonl(file: Path) -> Iterator[tuple[int, Any]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except ValueError as error:  # not UTF-8, or not JSON
                raise SpanwiseError(f"{file}, row {number}: not JSON: {error}") from error


def _parquet(file: Path) -> Iterator[tuple[int, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise SpanwiseError(
            f"{file} is read by pyarrow, which is not installed: {INSTALL_HINT}"
        ) from error
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as opened:
            for batch in opened.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pyarrow.ArrowException as error:
        raise SpanwiseError(f"{file}, row {number + 1} or later: not parquet: {error}") from error


def _rows(raw: Iterable[tuple[int, Any]], source: str, columns: Columns) -> list[Row]:
    rows = [_row(number, row, f"{source}, row {number}", columns) for number, row in raw]
    if not rows:
        raise SpanwiseError(f"{source} has no rows")
    return rows


def _row(number: int, row: Any, where: str, columns: Columns) -> Row:
    if not isinstance(row, dict):
        raise SpanwiseError(f"{where}: must be an object with columns, is {type(row).__name__}")
    fields = cast(dict[str, Any], row)
    column, value = _column(fields, columns.question, where)
    question, earlier = _question(value, f"{where}, column {column!r}")
    column, value = _column(fields, columns.answer, where)
    answers = _answers(value, f"{where}, column {column!r}")
    return Row(number=number, question=question, answers=answers, earlier_messages=earlier)


def _column(fields: dict[str, Any], names: Sequence[str], where: str) -> tuple[str, Any]:
    for name in names:
        value: Any = fields
        for part in name.split("."):
            value = cast(dict[str, Any], value).get(part) if isinstance(value, dict) else None
        if value is None and name in fields:  # a name that has a dot itself
            value = fields[name]
        value = _plain(value)
        if value is not None:
            return name, value
    several = f"none of the columns {', '.join(names)}"
    wanted = several if len(names) > 1 else f"no column {names[0]!r}"
    raise SpanwiseError(f"{where}: {wanted}; there are {', '.join(map(str, fields))}")


def _question(value: Any, where: str) -> tuple[str, tuple[Mapping[str, str], ...]]:
    if isinstance(value, str) and value.strip():
        return value.strip(), ()
    messages = cast(list[Any], value) if isinstance(value, list) else []
    for message in messages:
        parts = cast(dict[str, Any], message) if isinstance(message, dict) else {}
        role, content = parts.get("role"), parts.get("content")
        if not (role in ROLES and isinstance(content, str) and content.strip()):
            raise SpanwiseError(
                f"{where}: every message needs a role ({', '.join(ROLES)}) and a content, both text"
            )
    if not messages or messages[-1]["role"] != "user":
        raise SpanwiseError(
            f"{where}: must hold a question, or messages of which the last is a user's"
        )
    earlier = tuple({"role": m["role"], "content": m["content"]} for m in messages[:-1])
    return messages[-1]["content"].strip(), earlier


def _answers(value: Any, where: str) -> tuple[str, ...]:
    values = cast(list[Any], value) if isinstance(value, list) else [value]
    answers = tuple(map(_answer, values))
    if not answers or not all(answers):
        raise SpanwiseError(
            f"{where}: must hold an answer or a list of answers, none of them empty or NaN"
        )
    return answers


def _answer(value: Any) -> str:
    """The text of an answer; empty for what is none.

    Example:
      >>> [_answer(value) for value in (" 2 ", 2.0, 2.5, 10**20, float("nan"), "nan", True)]
      ['2', '2', '2.5', '100000000000000000000', '', '', '']
    """
    value = _plain(value)
    if isinstance(value, str):
        return "" if value.strip() in NO_ANSWER else value.strip()
    if isinstance(value, bool) or not isinstance(value, Real | Decimal) or not _is_finite(value):
        return ""
    # a column of whole numbers with one missing is of floats
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _plain(value: Any) -> Any:
    """What a cell means: a scalar of numpy as Python's own, a NaN as nothing."""
    if getattr(value, "ndim", None) is not None and hasattr(value, "tolist"):
        value = value.tolist()
    is_nan = isinstance(value, float | Decimal) and value != value
    return None if is_nan else value


def _is_finite(value: Real | Decimal) -> bool:
    return value not in (math.inf, -math.inf)
