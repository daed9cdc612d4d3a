import asyncio
import json
import math
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from spanwise.envs.base import Reply, Turn
from spanwise.envs.math import scoring_process
from spanwise.envs.math.answer_forms import asked_forms, stated_answer
from spanwise.envs.math.questions import INSTRUCTIONS, WARM_UP, Questions
from spanwise.envs.math.scoring import last_boxed_answer, reference_answer, tagged_answer

DAPO_ROW = {
    "data_source": "math_dapo",
    "prompt": [{"role": "user", "content": "Solve: 30 + 4 ?"}],
    "reward_model": {"ground_truth": "34", "style": "rule"},
    "extra_info": {"index": "a1"},
}


def written(folder: Path, *rows: object, name: str = "train.jsonl") -> Path:
    file = folder / name
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def parquet(folder: Path, *rows: dict[str, Any], name: str = "train.parquet") -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    write_table(pyarrow.Table.from_pylist(list(rows)), folder / name)
    return folder / name


def numbered(*numbers: int) -> list[dict[str, object]]:
    return [{"question": f"what is {n} ?", "answer": n} for n in numbers]


def checked(file: Path, **options: Any) -> Questions:
    env = Questions(train_file=file, **({"num_held_out": 0} | options))
    env.check(None)  # type: ignore[arg-type]
    return env


def replied(env: Questions, text: str, truncated: bool = False) -> Reply:
    turn = Turn(text=text, truncated=truncated)
    return asyncio.run(env.reply(env.tasks("train")[0], [turn]))


def with_answer(folder: Path, answer: object, **options: Any) -> Questions:
    return checked(written(folder, {"question": "q ?", "answer": answer}), **options)


# Forms of an answer

LINE = (
    "Solve the following math problem step by step. The last line of your response should be of "
    "the form Answer: $Answer (without quotes) where $Answer is the answer to the problem."
)
REMINDER = 'Remember to put your answer on its own line after "Answer:".'


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        (f"{LINE}\n\n17 + 17 ?\n\n{REMINDER}", "so\n\nAnswer: 34"),
        (f"{LINE}\n\n17 + 17 ?", "Answer: 5? No.\n**Answer:** $34$.<|im_end|>"),
        (f"{LINE}\n\n17 + 17 ?", "Answer:\n34</s>"),
        (f"{LINE}\n\n17 + 17 ?", "Answer: \\(34\\)"),
        (f"{LINE}\n\n17 + 17 ?", r"Answer: 5, no, rather \boxed{34}"),
        (f"{LINE}\n\n17 + 17 ?", r"\boxed{5}, no. Answer: $\boxed{34}$"),
        ("17 + 17 ?\nEnd with 'ANSWER: X', as in a line like ANSWER: 3", "ANSWER: 34"),
        ('17 + 17 ? Output the final answer after "####".', "17 + 17 = 34\n#### 34"),
        ("17 + 17 ? Write it as <answer> number </answer>", "<answer>34</answer>"),
        (r"17 + 17 ? Put your final answer within \boxed{}.", r"it is \boxed{34}"),
    ],
)
def test_a_right_answer_in_the_form_that_the_row_asks_for_is_right(
    tmp_path: Path, row: str, answer: str
):
    env = checked(written(tmp_path, {"question": row, "answer": "34"}), deadline_s=30.0)
    assert env.messages(env.tasks("train")[0]) == [{"role": "user", "content": row}]
    assert (replied(env, answer).stop, replied(env, answer).reward) == ("end", 1.0)
    assert replied(env, answer.replace("34", "35")).reward == 0.0


@pytest.mark.parametrize("row", ["17 + 17 ? Answer:", r"17 + \boxed{?} = 51", "The answer: what?"])
def test_a_row_that_asks_for_no_form_is_told_of_the_box_and_scored_by_it(tmp_path: Path, row: str):
    env = checked(written(tmp_path, {"question": row, "answer": "34"}), deadline_s=30.0)
    assert env.messages(env.tasks("train")[0])[-1]["content"] == f"{row}\n\n{INSTRUCTIONS}"
    assert replied(env, "Answer: 34").stop == "malformed"
    assert replied(env, r"\boxed{34} Answer: 35").reward == 1.0


def test_long_text_is_searched_in_linear_time():
    forms = asked_forms(LINE)
    for text in ("<a>" * 30_000 + "x", "Answer: " * 30_000, "<answer>" * 30_000, "[A" * 50_000):
        begun = time.perf_counter()
        stated_answer(f"Answer: {text}", forms)
        assert time.perf_counter() - begun < 1.0, text[:9]


def test_instructions_of_ones_own_are_always_given_and_may_ask_for_a_form(tmp_path: Path):
    file = written(tmp_path, {"question": LINE, "answer": "34"}, {"question": "q", "answer": "3"})
    own = "Give it in the form Answer: X"
    env = checked(file, instructions=own, deadline_s=30.0)
    assert all(env.messages(t)[-1]["content"].endswith(f"\n\n{own}") for t in env.tasks("train"))
    turn = [Turn(text="Answer: 3")]
    assert asyncio.run(env.reply(env.tasks("train")[1], turn)).reward == 1.0


# Rows


def test_the_usual_columns_are_found(tmp_path: Path):
    file = written(
        tmp_path,
        {"question": " one ?", "answer": "1"},
        {"prompt": "two ?", "answers": ["2", "two"]},
        "",
        {"problem": "three ?", "solution": r"so \boxed{1}, no, \boxed{\frac{6}{2}}."},
        {"question": "four ?", "answer": "2 + 2 = 4\n#### 4"},
        {"question": "five\u2028?", "answer": 5, "solution": "not this"},
        DAPO_ROW,
    )
    tasks = checked(file).tasks("train")
    assert [(t.id, t.question, t.answers) for t in tasks] == [
        ("train-1", "one ?", ("1",)),
        ("train-2", "two ?", ("2", "two")),
        ("train-4", "three ?", (r"\frac{6}{2}",)),
        ("train-5", "four ?", ("4",)),
        ("train-6", "five\u2028?", ("5",)),
        ("train-7", "Solve: 30 + 4 ?", ("34",)),
    ]


def test_parquet_gives_what_jsonl_gives(tmp_path: Path):
    rows = [DAPO_ROW, {**DAPO_ROW, "prompt": [{"role": "user", "content": "another ?"}]}]
    expected = checked(written(tmp_path, *rows)).tasks("train")
    assert checked(parquet(tmp_path, *rows)).tasks("train") == expected


def test_named_columns_may_be_nested(tmp_path: Path):
    row = {"question": "not this", "data": {"text": {"q": "deep ?"}}, "a.b": "7", "answer": "8"}
    env = checked(written(tmp_path, row), question_column="data.text.q", answer_column="a.b")
    assert [(t.question, t.answers) for t in env.tasks("train")] == [("deep ?", ("7",))]


def test_the_chat_is_kept_and_the_instructions_go_behind_the_last_message(tmp_path: Path):
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one ?"},
    ]
    env = checked(written(tmp_path, {"prompt": chat, "answer": 1}))
    assert env.messages(env.tasks("train")[0]) == [
        chat[0],
        {"role": "user", "content": f"one ?\n\n{INSTRUCTIONS}"},
    ]
    bare = checked(written(tmp_path, {"prompt": chat, "answer": 1}), instructions="")
    assert bare.messages(bare.tasks("train")[0]) == chat


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "row 2: not JSON"),
        ([1], "row 2: must be an object with columns, is list"),
        ({"answer": "a"}, "row 2: none of the columns question, prompt, problem; there are answer"),
        ({"question": "q"}, "row 2: none of the columns answer, answers, solution, reward_model"),
        ({"question": "q", "answer": None}, "row 2: none of the columns answer"),
        ({"question": "  ", "answer": "a"}, "row 2, column 'question': must hold a question"),
        ({"question": "q", "answer": " "}, "row 2, column 'answer': must hold an answer"),
        ({"question": "q", "answers": []}, "row 2, column 'answers': must hold an answer"),
        ({"question": "q", "answers": ["a", ""]}, "row 2, column 'answers'"),
        ({"question": "q", "answer": True}, "row 2, column 'answer'"),
        ({"question": "q", "answer": math.nan}, "row 2: none of the columns answer"),
        ({"question": "q", "answer": math.inf}, "row 2, column 'answer': must hold an answer"),
        ({"question": "q", "answer": "NaN"}, "row 2, column 'answer': .* empty or NaN"),
        ({"question": "q", "answers": ["1", math.nan]}, "row 2, column 'answers'"),
        ({"question": "q", "answers": ["1", None]}, "row 2, column 'answers'"),
        ({"question": math.nan, "answer": "1"}, "row 2: none of the columns question"),
        ({"question": "q", "answer": "?"}, "row 2: no answer can be compared with '\\?'"),
        ({"question": "q", "answer": "#### "}, "row 2: no answer can be compared with ''"),
        ({"question": "q", "answer": "}{"}, "row 2: no answer can be compared with '}{'"),
        ({"prompt": [{"role": "user"}], "answer": "a"}, "row 2, column 'prompt': every message"),
        (
            {"prompt": [{"role": "endoftext", "content": "x"}], "answer": "a"},
            "row 2, column 'prompt': every message needs a role .system, developer",
        ),
        ({"prompt": [], "answer": "a"}, "row 2, column 'prompt': must hold a question"),
        (
            {"prompt": [{"role": "assistant", "content": "x"}], "answer": "a"},
            "row 2, column 'prompt': must hold a question, or messages of which the last",
        ),
        (
            {"prompt": "q", "reward_model": {"ground_truth": ""}},
            "row 2, column 'reward_model.ground_truth': must hold an answer",
        ),
    ],
)
def test_the_first_wrong_row_is_named_before_a_model_is_loaded(
    tmp_path: Path, row: object, message: str
):
    file = written(tmp_path, {"question": "fine ?", "answer": "1"}, row)
    with pytest.raises(ValueError, match=message) as raised:
        checked(file)
    assert str(file) in str(raised.value) and "\n" not in str(raised.value)


def test_wrong_rows_of_parquet_are_named_too(tmp_path: Path):
    rows = [{"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": None}]
    with pytest.raises(ValueError, match=r"train.parquet, row 2: none of the columns answer"):
        checked(parquet(tmp_path, *rows))
    with pytest.raises(ValueError, match="row 1: no column 'label'; there are prompt, answer"):
        checked(parquet(tmp_path, *rows), answer_column="label")
    (tmp_path / "no.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(ValueError, match=r"no.parquet, row 1 or later: not parquet"):
        checked(tmp_path / "no.parquet")


def test_numbers_are_read_as_what_they_mean(tmp_path: Path):
    values = [2.0, 2.5, 10**20, Decimal("1.50"), np.int64(3), np.float32(0.5), [np.float64(4.0)]]
    rows = [{"question": f"{n} ?", "answer": v, "solution": "9"} for n, v in enumerate(values)]
    rows.append({"question": "the next column ?", "answer": math.nan, "solution": "9"})
    fake = SimpleNamespace(load_dataset=lambda name, split: rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "datasets", fake)
        tasks = Questions(dataset="OWNER/math", num_held_out=0).tasks("train")
    found = [task.answers for task in tasks]
    texts = ["2", "2.5", "100000000000000000000", "1.50", "3", "0.5", "4", "9"]
    assert found == [(text,) for text in texts]
    floats = parquet(tmp_path, *numbered(2), {"question": "3 ?", "answer": math.nan})
    with pytest.raises(ValueError, match="row 2: none of the columns answer"):
        checked(floats)


def test_answers_that_are_sentences_are_reported_with_their_number(tmp_path: Path):
    rows = [*numbered(1), {"question": "which ?", "answer": "all of the even numbers"}]
    with pytest.warns(RuntimeWarning, match=r"1 of 2 train answers .* train-2: 'all of the even"):
        checked(written(tmp_path, *rows))


def test_a_row_that_is_not_utf_8_is_named(tmp_path: Path):
    file = tmp_path / "latin.jsonl"
    file.write_bytes(b'{"question": "a", "answer": "1"}\n{"question": "\xe9", "answer": "1"}\n')
    with pytest.raises(ValueError, match=r"latin.jsonl, row 2: not JSON: 'utf-8' codec"):
        checked(file)


def test_files_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(ValueError, match=r"nowhere.jsonl cannot be read"):
        checked(tmp_path / "nowhere.jsonl")
    with pytest.raises(ValueError, match=r"nowhere.parquet cannot be read"):
        checked(tmp_path / "nowhere.parquet")
    with pytest.raises(ValueError, match="has no rows"):
        checked(written(tmp_path, ""))
    with pytest.raises(ValueError, match=r"a.csv: questions are read from .jsonl and .parquet"):
        checked(tmp_path / "a.csv")
    with pytest.raises(ValueError, match="no train questions: set train_file"):
        Questions().check(None)  # type: ignore[arg-type]


# Splits


def test_held_out_rows_come_from_the_end_and_are_disjoint(tmp_path: Path):
    file = written(tmp_path, *numbered(*range(10)))
    env = checked(file, num_held_out=3)
    numbers = {s: [int(t.answers[0]) for t in env.tasks(s)] for s in ("train", "dev", "test")}
    assert numbers == {"train": [0, 1, 2, 3], "dev": [4, 5, 6], "test": [7, 8, 9]}
    with pytest.raises(ValueError, match=r"too few different questions to hold out 5 for dev"):
        checked(file, num_held_out=5)
    with pytest.raises(ValueError, match="no test questions: set test_file, or num_held_out"):
        checked(file).tasks("test")


def test_a_question_that_was_there_before_is_left_out(tmp_path: Path):
    """DAPO-Math-17k repeats its rows many times: the last rows are then among the first."""
    env = checked(written(tmp_path, *numbered(0, 1, 2, 3, 0, 1, 2, 3)), num_held_out=1)
    assert [t.id for t in env.tasks("train")] == ["train-1", "train-2"]
    assert [t.id for t in env.tasks("test")] == ["test-4"]


def test_a_file_of_its_own_takes_nothing_from_training_but_what_it_shares(tmp_path: Path):
    test_file = written(tmp_path, *numbered(3, 9), name="test.jsonl")
    env = checked(written(tmp_path, *numbered(0, 1, 2, 3)), test_file=test_file, num_held_out=1)
    assert [t.id for t in env.tasks("test")] == ["test-1", "test-2"]
    assert [t.answers for t in env.tasks("train")] == [("0",), ("1",)]
    assert [t.answers for t in env.tasks("dev")] == [("2",)]


# Scores


@pytest.mark.parametrize(
    ("reference", "answer", "reward"),
    [
        (r"\frac{1}{2}", "0.5", 1.0),
        ("1/2", r"\frac{2}{4}", 1.0),
        ("34", "34.", 1.0),
        ("34", "35", 0.0),
        ("1000", "1,000", 1.0),
        ("x+1", "1+x", 1.0),
        (r"\{1,2\}", r"\{2,1\}", 1.0),
        (["3", "4"], "4", 1.0),
        ("(0,1)", "7", 0.0),  # an interval and a number
        (r"\begin{pmatrix}1\\2\end{pmatrix}", "3", 0.0),
        ("3", r"\frac{1}{0}", 0.0),
        (7, "7", 1.0),
    ],
)
def test_answers_are_compared_as_mathematics(
    tmp_path: Path, reference: object, answer: str, reward: float
):
    env = with_answer(tmp_path, reference, deadline_s=30.0)
    reply = replied(env, rf"I think \boxed{{0}}, or rather \boxed{{{answer}}}.<|im_end|>")
    assert (reply.stop, reply.reward) == ("end", reward)
    assert (reply.label, reply.success) == (f"answer {answer}", reward == 1.0)


def test_no_readable_answer_is_malformed_and_a_cut_turn_is_too_long(tmp_path: Path):
    env = with_answer(tmp_path, "34", deadline_s=30.0)
    for text in ("it is 34", r"\boxed{}", r"\boxed{34", r"\boxed{@@##}", r"\boxed{34} \boxed{"):
        reply = replied(env, text)
        assert (reply.stop, reply.reward, reply.success) == ("malformed", 0.0, False)
    cut = replied(env, r"\boxed{34}", truncated=True)
    assert (cut.stop, cut.reward) == ("length", 0.0)


def test_a_comparison_without_end_is_malformed_and_the_next_one_works(tmp_path: Path):
    """A power tower is computed with the interpreter lock held: no thread could stop it."""
    env = with_answer(tmp_path, "34", deadline_s=1.0)
    reply = replied(env, r"\boxed{9^{9^{9}}}")
    assert (reply.stop, reply.reward, reply.success) == ("malformed", 0.0, False)
    patient = with_answer(tmp_path, "34", deadline_s=30.0)
    assert replied(patient, r"\boxed{34}").reward == 1.0


def test_what_the_comparison_raises_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    env = with_answer(tmp_path, "34")
    for fake, message in [
        (raising, "ZeroDivisionError: on purpose"),  # while it is preloaded
        (raising_later, "ZeroDivisionError: on purpose"),
        (dying, "exit status 3"),
        (dying_later, "exit status 3"),
    ]:
        monkeypatch.setattr("spanwise.envs.math.questions.math_verdict", fake)
        reply = replied(env, r"\boxed{34}")
        assert reply.reward is None and reply.failure is not None
        assert reply.failure.kind == "reward_error" and message in reply.failure.message


def test_what_the_comparison_raises_for_one_answer_alone_is_malformed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    env = with_answer(tmp_path, "34")
    for fake in (raising_but_for_34, dying_but_for_34):
        monkeypatch.setattr("spanwise.envs.math.questions.math_verdict", fake)
        reply = replied(env, r"\boxed{35}")
        assert (reply.stop, reply.reward, reply.failure) == ("malformed", 0.0, None)
        assert replied(env, r"\boxed{34}").reward == 1.0


def raising(*_: object) -> bool:
    raise ZeroDivisionError("on\npurpose")


def raising_but_for_34(answer: str, references: object) -> bool:
    return answer in ("34", WARM_UP[0]) or raising()


def dying_but_for_34(answer: str, references: object) -> bool:
    return answer in ("34", WARM_UP[0]) or dying()


def dying(*_: object) -> bool:
    os._exit(3)


def raising_later(answer: str, references: object) -> bool:
    return answer == WARM_UP[0] or raising()


def dying_later(answer: str, references: object) -> bool:
    return answer == WARM_UP[0] or dying()


def shouting(text: str) -> str:
    print(text)
    return text.upper()


def writes_a_cache(file: Path) -> None:
    file.touch()


def leaving() -> None:
    sys.exit(4)


def verbose() -> str:
    return "x" * scoring_process.MAX_ANSWER_BYTES


def no_json() -> bytes:
    return b"score"


@pytest.mark.processes
def test_many_scores_at_once_come_back_to_who_asked():
    async def all_scores() -> list[str]:
        asked = (
            scoring_process.scored(shouting, f"t{n}", preload=(len, ""), deadline_s=30.0)
            for n in range(40)
        )
        return await asyncio.gather(*asked)

    assert asyncio.run(all_scores()) == [f"T{n}" for n in range(40)]


def computed(function: Callable[..., Any], *arguments: Any, deadline_s: float = 30.0) -> Any:
    scored = scoring_process.scored(function, *arguments, preload=(len, ""), deadline_s=deadline_s)
    return asyncio.run(scored)


@pytest.mark.processes
def test_what_is_preloaded_may_write_after_another_packages_answer_was_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cache = tmp_path / "cache"
    monkeypatch.setattr(scoring_process, "_threads", ThreadPoolExecutor(1))
    assert computed(shouting, "first") == "FIRST"
    preload = (writes_a_cache, cache)
    scored = scoring_process.scored(shouting, "q", preload=preload, deadline_s=30.0)
    assert asyncio.run(scored) == "Q" and cache.exists()


@pytest.mark.processes
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (leaving, "SystemExit: 4"),
        (dying, "the scoring process died with exit status 3"),
        (verbose, "the answer is no JSON of at most 10000 bytes"),
        (no_json, "bytes is not JSON serializable"),
    ],
)
def test_what_goes_wrong_in_a_process_is_a_typed_failure(
    function: Callable[..., Any], message: str
):
    with pytest.raises(scoring_process.ScoringError, match=message) as raised:
        computed(function)
    assert raised.value.failure().kind == "reward_error"
    assert computed(shouting, "next") == "NEXT"


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (r"\boxed{a} \boxed{ \text{b}^{c} } d", r"\text{b}^{c}"),
        (r"\boxed {\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{\}", None),
        (r"boxed{1}", None),
    ],
)
def test_the_last_box(text: str, boxed: str | None):
    assert last_boxed_answer(text) == boxed


def test_the_last_tag_and_a_reference():
    assert tagged_answer("<answer>1</answer><answer>\n2 < 3\n</answer> x </answer>") == "2 < 3"
    assert tagged_answer("<answer>1</answer> <answer> </answer>") is None
    assert reference_answer(r"#### is no answer of \boxed{3}") == "3"
    assert reference_answer(" 3 ") == "3"


# What is missing


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch):
    rows = {("OWNER/math", "train"): [DAPO_ROW]}
    fake = SimpleNamespace(load_dataset=lambda name, split: rows[name, split])
    monkeypatch.setitem(sys.modules, "datasets", fake)
    env = Questions(dataset="OWNER/math", num_held_out=0)
    assert [t.answers for t in env.tasks("train")] == [("34",)]
    away = Questions(dataset="OWNER/math", dataset_split="validation", num_held_out=0)
    with pytest.raises(ValueError, match=r"'OWNER/math', split 'validation', cannot be loaded"):
        away.tasks("train")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"datasets, which is not .* 'spanwise\[reasoning\]'"):
        Questions(dataset="OWNER/math").tasks("train")


def test_missing_packages_are_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = parquet(tmp_path, DAPO_ROW)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"pip install 'spanwise\[reasoning\]'"):
        checked(file)
    monkeypatch.setattr("spanwise.envs.math.questions.math_verify_is_installed", lambda: False)
    with pytest.raises(ValueError, match=r"math-verify: pip install 'spanwise\[reasoning\]'"):
        checked(file)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_file": Path("a.jsonl"), "dataset": "b"}, "not both"),
        ({"num_held_out": -1}, "num_held_out must be 0 or more"),
        ({"deadline_s": 0.0}, "positive"),
    ],
)
def test_bad_options_are_refused_at_once(options: Any, message: str):
    with pytest.raises(ValueError, match=message):
        Questions(**options)
