import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from spanwise.envs.base import Turn
from spanwise.envs.search.retrieval_qa import INSTRUCTIONS, RetrievalQA
from spanwise.envs.search.xml_turns import Answer, Call, parsed_turn
from tests.envs import chat_templates
from tests.envs.chat_templates import byte_tokenizer


class PlainTokenizer:
    def encode(self, text: str, **_: Any) -> list[int]:
        return [ord(c) for c in text]

    def decode(self, token_ids: Any, **_: Any) -> str:
        return "".join(map(chr, token_ids))


def written(folder: Path, *rows: object, name: str = "train.jsonl") -> Path:
    file = folder / name
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def test_rows_with_any_of_the_answer_columns(tmp_path: Path):
    file = written(
        tmp_path,
        {"question": " who ?", "answers": ["Ada", "Beck"], "answer": "not this"},
        {"question": "when ?", "golden_answers": [1900], "id": 3},
        "",
        {"question": "where\u2028here ?", "answer": "York"},  # a line separator is no row end
    )
    tasks = RetrievalQA(train_file=file).tasks("train")
    assert [(t.id, t.question, t.answers) for t in tasks] == [
        ("train-1", "who ?", ("Ada", "Beck")),
        ("train-2", "when ?", ("1900",)),
        ("train-4", "where\u2028here ?", ("York",)),
    ]


def test_splits_come_from_their_own_files(tmp_path: Path):
    env = RetrievalQA(
        train_file=written(tmp_path, {"question": "a", "answer": "b"}),
        test_file=written(tmp_path, {"question": "c", "answer": "d"}, name="test.jsonl"),
    )
    assert [t.id for t in env.tasks("test")] == ["test-1"]
    env.check(PlainTokenizer())
    with pytest.raises(ValueError, match="no dev questions: set dev_file"):
        env.tasks("dev")


def test_an_answer_of_which_normalisation_leaves_nothing_is_no_answer(tmp_path: Path):
    file = written(tmp_path, {"question": "a band ?", "answer": "The The!"})
    with pytest.raises(ValueError, match="row 1: nothing is left of the answer 'The The!'"):
        RetrievalQA(train_file=file).tasks("train")
    answers = ["The The!", "The", "Matt Johnson"]
    file = written(tmp_path, {"question": "a band ?", "answers": answers})
    [task] = RetrievalQA(train_file=file).tasks("train")
    assert task.answers == ("Matt Johnson",)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "row 2: not JSON"),
        ({"prompt": "q", "answer": "a"}, "row 2: no column 'question'; there are prompt, answer"),
        ({"question": "q", "label": 1}, "row 2: none of the columns answers, golden"),
        ({"question": "q", "answers": [], "answer": "a"}, "row 2, column 'answers': must hold"),
        ({"question": "q", "answers": [float("nan")]}, "row 2, column 'answers': must hold"),
        (
            {"question": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}],
             "answer": "a"},
            "row 2: the question must be text, not a chat",
        ),
    ],
)  # fmt: skip
def test_the_first_wrong_row_is_named_before_a_model_is_loaded(
    tmp_path: Path, row: object, message: str
):
    file = written(tmp_path, {"question": "q", "answer": "a"}, row)
    with pytest.raises(ValueError, match=message) as raised:
        RetrievalQA(train_file=file).check(PlainTokenizer())
    assert str(file) in str(raised.value)


def test_files_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(ValueError, match=r"nowhere.jsonl cannot be read"):
        RetrievalQA(train_file=tmp_path / "nowhere.jsonl").check(PlainTokenizer())
    with pytest.raises(ValueError, match=r"no train questions: set train_file to a .jsonl or"):
        RetrievalQA().check(PlainTokenizer())
    good = written(tmp_path, {"question": "a", "answer": "b"})
    with pytest.raises(ValueError, match=r"nowhere.jsonl cannot be read"):
        RetrievalQA(train_file=good, dev_file=tmp_path / "nowhere.jsonl").check(PlainTokenizer())


def test_bad_options_are_refused_at_once():
    with pytest.raises(ValueError, match="must look like"):
        RetrievalQA(retriever_url="localhost:8000")
    with pytest.raises(ValueError, match="must be positive"):
        RetrievalQA(num_documents=0)


def test_the_prompt_explains_the_grammar_by_turns_that_are_well_formed(tmp_path: Path):
    env = RetrievalQA(
        train_file=written(tmp_path, {"question": "who ?", "answer": "b"}), max_calls=4
    )
    [message] = env.messages(env.tasks("train")[0])
    assert message["role"] == "user" and message["content"].endswith("\n\nQuestion: who ?")
    assert "at most 4 times" in message["content"]
    shown = [line for line in INSTRUCTIONS.splitlines() if line.startswith("<think>")]
    assert [type(parsed_turn(line)) for line in shown] == [Call, Answer]


def test_an_unreachable_retriever_is_a_failure_and_not_a_reward(tmp_path: Path):
    env = RetrievalQA(
        train_file=written(tmp_path, {"question": "who ?", "answer": "b"}),
        retriever_url="http://127.0.0.1:9/retrieve",
    )
    turn = Turn(text="<think> a </think> <search> q </search>")
    reply = asyncio.run(env.reply(env.tasks("train")[0], [turn]))
    assert reply.stop == "failure" and reply.reward is None and reply.failure is not None
    assert reply.failure.kind == "tool_error"
    assert "http://127.0.0.1:9/retrieve gives no answer" in reply.failure.message


def test_a_thought_that_the_prompt_opened_is_the_first_turns(tmp_path: Path):
    env = RetrievalQA(train_file=written(tmp_path, {"question": "who ?", "answer": "Ada"}))
    (task,) = env.tasks("train")
    closed = r"It was Ada. </think> <answer> \boxed{Ada} </answer>"
    whole = "<think>" + closed

    def reward(*texts: str) -> float | None:
        turns = [Turn(text=text) for text in texts]
        return asyncio.run(env.reply(task, turns)).reward

    env.prompt(task, byte_tokenizer(chat_templates.HERMES))
    assert (reward(closed), reward(whole)) == (-1.0, 1.0)
    env.prompt(task, byte_tokenizer(chat_templates.OPENS_THOUGHT))
    assert (reward(closed), reward(whole)) == (1.0, -1.0)
    assert (reward("", closed), reward("", whole)) == (-1.0, 1.0)  # it opens no later turn
