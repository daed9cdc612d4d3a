from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanwise.viewer.records import (
    PER_TOKEN,
    DamagedLine,
    overview,
    parsed_line,
    readable_record,
)
from spanwise.viewer.vocabulary import add_pieces, read_vocabulary, with_spaces
from tests.viewer.made_runs import record, small_tree, without_schema_fields


def test_a_whole_record_is_kept_whole() -> None:
    written = record(small_tree(), values=lambda t: t / 10, ratio=lambda t: 1.0)
    read = readable_record(written)
    assert read["notes"] == []
    for before, after in zip(written["nodes"], read["nodes"], strict=True):
        assert {name: after[name] for name in before} == before


def test_an_overview_counts_leaves_failures_and_credit() -> None:
    # Leaves in order: right, wrong, failed, wrong. Credit runs from -1.0 to 1.5.
    found = overview(readable_record(record(small_tree())))
    assert found["rewards"] == [1.0, 0.0, None, 0.0]
    assert (found["turns"], found["failures"], found["expansions"]) == (5, 1, 1)
    assert found["largest_advantage"] == 1.5


def test_arrays_that_do_not_match_the_tokens_are_left_out_and_said() -> None:
    written = record(small_tree(), values=lambda t: 0.5)
    written["nodes"][1]["values"].pop()
    read = readable_record(written)
    assert read["nodes"][1]["values"] is None
    assert read["nodes"][2]["values"] == [0.5, 0.5, 0.5]
    assert read["notes"] == ["turn 0: values do not match its tokens"]


def test_a_record_of_another_schema_shows_what_it_has() -> None:
    tree = small_tree()
    nodes = [without_schema_fields(node) | {"novelty": {"deep": [1]}} for node in tree.nodes]
    read = readable_record({"nodes": nodes, "layout": "v9"})
    assert [tuple(n["path"]) for n in read["nodes"]] == [n.path for n in tree.nodes]
    assert read["nodes"][1]["advantage"] is None and read["nodes"][1]["text"] == tree.nodes[1].text
    assert read["task"] == {"id": "", "question": "", "answers": []}


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 100_000])
def test_lines_that_are_no_objects_are_damaged(line: bytes) -> None:
    with pytest.raises(DamagedLine):
        parsed_line(line)


@pytest.mark.parametrize("nodes", [None, {}, [], [{"path": [0]}], [{"path": "root"}], [None]])
def test_a_record_without_a_root_is_damaged(nodes: Any) -> None:
    with pytest.raises(DamagedLine):
        readable_record({"nodes": nodes})


def test_numbers_that_json_has_no_word_for_become_none() -> None:
    line = b'{"nodes": [{"path": [], "advantage": NaN, "value": -Infinity, "reward": 1e999}]}'
    node = readable_record(parsed_line(line))["nodes"][0]
    assert (node["advantage"], node["value"], node["reward"]) == (None, None, None)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
FIELDS = [
    "path",
    "tokens",
    "stop",
    "failure",
    "faults",
    "expansion",
    "outcome",
    "label",
    "success",
    "reward",
    *PER_TOKEN,
]
NODES = st.lists(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6), max_size=5)


@given(NODES, st.dictionaries(st.sampled_from(["question", "answers", "id"]), JSON))
def test_whatever_a_line_holds_the_page_gets_what_it_may_rely_on(nodes: Any, task: Any) -> None:
    read = readable_record({"task": task, "nodes": [{"path": []}, *nodes]})
    json.dumps(read, allow_nan=False)
    overview(read)
    paths = [tuple(node["path"]) for node in read["nodes"]]
    assert len(set(paths)) == len(paths)
    for node in read["nodes"]:
        path = tuple(node["path"])
        assert not path or path[:-1] in paths
        for name in PER_TOKEN:
            assert node[name] is None or len(node[name]) == len(node["tokens"])


def test_pieces_come_from_the_record_then_the_vocabulary_then_the_words() -> None:
    base = {"observation": [], "observation_pieces": None, "observation_text": ""}
    own = {**base, "tokens": [1], "pieces": ["own"], "text": "own"}
    add_pieces(own, {1: "other"})
    assert own["pieces"] == ["own"]
    known = {**base, "tokens": [1, 2], "pieces": None, "text": "who is"}
    add_pieces(known, {1: "who", 2: "is"})
    assert known["pieces"] == ["who", " is"]
    words = {**base, "tokens": [1, 9], "pieces": None, "text": "who  is"}
    add_pieces(words, {1: "who"})
    assert words["pieces"] == ["who", "  is"]
    unknown = {**base, "tokens": [1, 9, 9], "pieces": None, "text": "who is"}
    add_pieces(unknown, {1: "who"})
    assert unknown["pieces"] is None


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
    path.write_text('{"model": []}', encoding="utf-8")
    assert read_vocabulary(path) is None
