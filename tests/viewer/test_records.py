from __future__ import annotations

import json
from typing import Any

import pytest

from spanwise.run.folder import RunError
from spanwise.viewer.records import PER_TOKEN, as_json, overview, parsed, shown_record
from spanwise.viewer.vocabulary import add_pieces, vocabulary_of, with_spaces
from tests.viewer.made_runs import game_tree, record, small_tree


def written(*arguments: Any, **per_token: Any) -> dict[str, Any]:
    return parsed(json.dumps(record(*arguments, **per_token)).encode())


def test_a_record_is_kept_whole_and_has_every_array() -> None:
    line = written(small_tree(), values=lambda t: t / 10)
    shown = shown_record(line)
    assert shown["task"] == line["task"]
    for before, after in zip(line["nodes"], shown["nodes"], strict=True):
        assert {name: after[name] for name in before} == before
        assert set(PER_TOKEN) <= set(after) and after["ratio"] is None


def test_an_overview_tells_what_became_of_each_leaf() -> None:
    # Leaves in order: right, wrong, failed, wrong. Credit runs from -1.0 to 1.5.
    found = overview(written(small_tree()))
    assert found["returns"] == [1.0, 0.0, None, 0.0]
    assert found["successes"] == [True, False, None, False]
    assert found["largest_advantage"] == 1.5


def test_an_overview_adds_up_what_was_paid_on_the_way() -> None:
    # 0.5 + 1, 0.5 - 0.25 + 0, 0.
    found = overview(written(game_tree()))
    assert found["returns"] == [1.5, 0.25, 0.0]
    assert found["successes"] == [None, None, None]


def test_numbers_that_json_has_no_word_for_become_none() -> None:
    assert parsed(b'{"value": NaN, "reward": -Infinity}') == {"value": None, "reward": None}


def test_numbers_that_a_browser_cannot_hold_become_none() -> None:
    line = b'{"a": 1e999, "b": [-1E+400, 1e308, 1' + b"0" * 400 + b'], "c": "1e999", "d": 1e-999}'
    assert parsed(line) == {"a": None, "b": [None, 1e308, None], "c": "1e999", "d": 0.0}
    tree = written(small_tree())
    for node in tree["nodes"]:
        node["reward"] = 1e308
    assert None in overview(tree)["returns"] and as_json(overview(tree))


@pytest.mark.parametrize(
    "line",
    [b'{"nodes": [', b"[1]", b"\xff{}", b'{"a":' * 100_000, b'{"a": ' + b"1" * 5000 + b"0" * 9],
    ids=["cut", "list", "not UTF-8", "deep", "unclosed"],
)
def test_a_line_that_is_damaged_is_told(line: bytes) -> None:
    with pytest.raises(RunError, match="cannot be read"):
        parsed(line)


@pytest.mark.parametrize(
    ("name", "value"),
    [("nodes", []), ("nodes", {}), ("nodes", [1]), ("nodes", [{}]), ("task", None), ("task", [])],
)
def test_a_record_that_is_none_is_told(name: str, value: Any) -> None:
    with pytest.raises(RunError, match="cannot be read"):
        overview({**written(small_tree()), name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("path", 3), ("reward", "1"), ("advantage", []), ("stop", None)]
)
def test_a_node_with_what_does_not_belong_there_is_told(name: str, value: Any) -> None:
    tree = written(small_tree())
    tree["nodes"][2][name] = value
    if name == "stop":
        del tree["nodes"][2][name]
    elif name == "advantage":
        tree["nodes"][2][name] = ["x"]
    with pytest.raises(RunError, match="cannot be read"):
        overview(tree)


def test_what_has_no_json_is_told() -> None:
    deep: Any = 0
    for _ in range(100_000):
        deep = [deep]
    for value in (float("inf"), float("nan"), deep):
        with pytest.raises(RunError, match="cannot be shown"):
            as_json(value)


def test_pieces_come_from_the_vocabulary_or_from_the_words() -> None:
    def pieces(tokens: list[int], text: str, vocabulary: dict[int, str] | None) -> Any:
        node: dict[str, Any] = {"tokens": tokens, "text": text}
        add_pieces(node, vocabulary)
        return node["pieces"]

    assert pieces([1, 2], "who is", {1: "who", 2: "is"}) == ["who", " is"]
    assert pieces([1, 9], "who  is", {1: "who"}) == ["who", "  is"]
    assert pieces([1, 2], "who is", None) == ["who", " is"]
    assert pieces([1, 9, 9], "who is", {1: "who"}) is None


def test_pieces_stay_as_they_are_where_the_text_does_not_hold_them() -> None:
    assert with_spaces(["a", "c"], "a b c") == ["a", "c"]


def test_byte_level_pieces_are_text_and_parts_of_letters_are_bytes() -> None:
    # "é" is the bytes c3 a9, written Ã ©; "Ġ" is a space; Ã alone is half a letter.
    vocabulary = {"Ġwho": 0, "Ã©": 1, "Ã": 2}
    tokenizer = {
        "model": {"vocab": vocabulary},
        "pre_tokenizer": {"type": "ByteLevel"},
        "added_tokens": [{"id": 3, "content": "<end>"}],
    }
    assert vocabulary_of(json.dumps(tokenizer).encode()) == {
        0: " who",
        1: "é",
        2: "\\xc3",
        3: "<end>",
    }
    for other in (b'{"model": {"type": "SentencePiece"}}', b"[]", b"\xff", b"[" * 100_000):
        assert vocabulary_of(other) is None
