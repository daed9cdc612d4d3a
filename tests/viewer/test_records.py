from __future__ import annotations

import json
from typing import Any

import pytest

from spanwise.run.folder import RunError
from spanwise.viewer.records import PER_TOKEN, overview, parsed, shown_record
from spanwise.viewer.vocabulary import add_pieces, read_vocabulary, with_spaces
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


def test_a_line_that_was_cut_is_told() -> None:
    with pytest.raises(RunError, match="cannot be read"):
        parsed(b'{"nodes": [')


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


def test_byte_level_pieces_are_text_and_parts_of_letters_are_bytes(tmp_path: Any) -> None:
    # "é" is the bytes c3 a9, written Ã ©; "Ġ" is a space; Ã alone is half a letter.
    path = tmp_path / "tokenizer.json"
    vocabulary = {"Ġwho": 0, "Ã©": 1, "Ã": 2}
    tokenizer = {
        "model": {"vocab": vocabulary},
        "pre_tokenizer": {"type": "ByteLevel"},
        "added_tokens": [{"id": 3, "content": "<end>"}],
    }
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    assert read_vocabulary(path) == {0: " who", 1: "é", 2: "\\xc3", 3: "<end>"}
    other = tmp_path / "other.json"
    other.write_text('{"model": {"type": "SentencePiece"}}', encoding="utf-8")
    assert read_vocabulary(other) is None
