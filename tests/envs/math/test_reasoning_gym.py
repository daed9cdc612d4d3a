import asyncio
import os
import subprocess
import sys
from typing import Any

import pytest

from spanwise.cli import main
from spanwise.cli.options import configured
from spanwise.envs.base import Reply, Task, Turn
from spanwise.envs.math.answer_grammar import (
    EXPRESSIONS,
    LITERALS,
    OWN_TEXT,
    evaluator,
    is_readable,
)
from spanwise.envs.math.reasoning_gym import ReasoningGym

TASKS = [
    "basic_arithmetic", "bitwise_arithmetic", "caesar_cipher", "chain_sum", "count_primes",
    "family_relationships", "fraction_simplification", "gcd", "knights_knaves", "leg_counting",
    "letter_counting", "number_sorting", "simple_equations", "spiral_matrix", "syllogism",
]  # fmt: skip


def small(task: str = "chain_sum", **options: Any) -> ReasoningGym:
    sizes = {"train_questions": 6, "dev_questions": 3, "test_questions": 4}
    return ReasoningGym(task=task, **(sizes | options))


def replied(env: ReasoningGym, task: Task, text: str, truncated: bool = False) -> Reply:
    return asyncio.run(env.reply(task, [Turn(text=text, truncated=truncated)]))


@pytest.mark.parametrize("name", TASKS)
def test_tasks_load_and_tell_their_own_answer_from_nonsense(name: str):
    env = small(name)
    env.check(None)  # type: ignore[arg-type]
    for split in ("train", "test"):
        task = env.tasks(split)[0]
        [message] = env.messages(task)
        assert message["role"] == "user" and message["content"].startswith(task.question)
        assert message["content"].endswith("</answer>.")
        right = replied(env, task, f"so <answer> {task.answers[0]} </answer><|im_end|>")
        assert (right.stop, right.reward) == ("end", 1.0)
        assert right.success and right.label == f"answer {task.answers[0].strip()}"
        wrong = replied(env, task, "so <answer> @@ nonsense </answer>")
        assert wrong.stop == ("malformed" if name == "number_sorting" else "end")
        assert wrong.reward is not None and wrong.reward < 0.1
        assert wrong.success is False


def test_the_last_tagged_answer_counts_and_else_the_last_box():
    env = small()
    task = env.tasks("test")[0]
    right = task.answers[0]
    for text, reward in [
        (f"<answer>0</answer> no, <answer>{right}</answer> \\boxed{{0}}", 1.0),
        (f"<answer>{right}</answer> no, <answer>x</answer>", 0.0),
        (f"\\boxed{{0}} no, \\boxed{{{right}}} <answer> open", 1.0),
    ]:
        assert replied(env, task, text).success is (reward == 1.0)
    for text in (f"it is {right}", "<answer> </answer>", f"<answer>{right}"):
        none = replied(env, task, text)
        assert (none.stop, none.reward, none.success) == ("malformed", 0.0, False)
    cut = replied(env, task, f"<answer>{right}</answer>", truncated=True)
    assert (cut.stop, cut.reward) == ("length", 0.0)


def test_partial_credit_is_the_reward_and_no_match():
    env = small("spell_backward", parameters='{"min_word_len": 5, "max_word_len": 5}')
    task = env.tasks("train")[0]
    nearly = replied(env, task, f"<answer>{task.answers[0][:-1]}</answer>")
    assert nearly.reward is not None and 0 < nearly.reward < 1
    assert nearly.success is False


def test_splits_are_disjoint_and_do_not_move_with_their_size():
    few, many = small(), small(train_questions=30)
    assert few.tasks("test") == many.tasks("test") and few.tasks("dev") == many.tasks("dev")
    assert few.tasks("train") == many.tasks("train")[:6]
    ids = [t.id for split in ("train", "dev", "test") for t in many.tasks(split)]
    assert len(set(ids)) == len(ids) == 37
    assert small(seed=1).tasks("test") != few.tasks("test")


def test_training_questions_that_are_held_out_are_left_out():
    # Sums of two digits from 1 to 2: few different questions, so that splits must collide.
    narrow = '{"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}'
    env = small(parameters=narrow, train_questions=300, dev_questions=30, test_questions=30)
    held_out = {t.question for split in ("dev", "test") for t in env.tasks(split)}
    train = {t.question for t in env.tasks("train")}
    assert train and not train & held_out
    assert len(env.tasks("train")) < 300


def test_an_answer_that_the_scorer_cannot_read_scores_nothing():
    env = small("prime_factorization")
    unread = replied(env, env.tasks("train")[0], "<answer>two</answer>")
    assert (unread.stop, unread.reward) == ("end", 0.0)


@pytest.mark.processes
def test_questions_that_follow_from_hashes_are_the_same_in_every_process():
    # This generator iterates over a set of strings: another hash seed, other questions.
    task = "isomorphic_strings"
    script = (
        "from spanwise.envs.math.reasoning_gym import ReasoningGym as Gym\n"
        f"env = Gym(task={task!r}, train_questions=6, dev_questions=3, test_questions=4)\n"
        "print([(t.question, t.answers) for t in env.tasks('train')])\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", script]
    made = subprocess.run(command, check=True, capture_output=True, env=environment).stdout
    env = small(task)
    assert str([(t.question, t.answers) for t in env.tasks("train")]) == made.decode().strip()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "chain_sums"}, "no task 'chain_sums'; did you mean chain_sum"),
        ({"task": "qqqqqqq"}, r"no task 'qqqqqqq', of 1\d\d tasks"),
        ({"parameters": '{"terms": 3}'}, "chain_sum has no parameter 'terms'; it has min_terms"),
        ({"parameters": '{"min_terms": 9, "max_terms": 2}'}, "chain_sum refuses its parameters"),
        ({"task": "composite"}, "composite refuses its parameters"),
        ({"task": "game_of_life_halting"}, "the scorer of game_of_life_halting pays in full"),
    ],
)
def test_what_the_package_does_not_have_is_refused_by_check(options: Any, message: str):
    with pytest.raises(ValueError, match=message):
        small(**options).check(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parameters": "{"}, "is not JSON"),
        ({"parameters": "[1]"}, "must be a JSON object"),
        ({"parameters": '{"seed": 1}'}, "must not hold seed"),
        ({"test_questions": 0}, "at least one question"),
        ({"deadline_s": 0.0}, "deadline_s must be positive"),
    ],
)
def test_bad_options_are_refused_at_once(options: Any, message: str):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_a_missing_package_is_one_clear_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ValueError, match=r"pip install 'spanwise\[reasoning\]'"):
        small().check(None)  # type: ignore[arg-type]


@pytest.mark.processes
def test_the_package_is_loaded_when_it_is_needed_and_not_before():
    script = (
        "import sys, spanwise.envs.math.reasoning_gym as m, spanwise.envs.math.questions as q\n"
        "m.ReasoningGym(); q.Questions()\n"
        "assert not {'reasoning_gym', 'math_verify', 'pyarrow', 'sympy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_every_scorer_that_evaluates_text_is_known():
    from reasoning_gym.factory import DATASETS

    known = EXPRESSIONS.keys() | LITERALS | OWN_TEXT
    found = {name for name, (scorer, _) in DATASETS.items() if evaluator(scorer)}
    assert found <= known
    assert EXPRESSIONS.keys() | LITERALS <= found


@pytest.mark.processes
def test_a_scorer_that_evaluates_and_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch):
    from spanwise.envs.math import reasoning_gym as module

    monkeypatch.setattr(module, "EXPRESSIONS", {})
    with pytest.raises(ValueError, match=r"scorer of countdown may evaluate .* \(parse_expr\)"):
        module._dataset("countdown", {})  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(
    ("task", "answer", "reference", "readable"),
    [
        ("countdown", "6*(98 - 54) - 34/2", "1", True),
        ("countdown", "2**3", "1", False),
        ("countdown", "7//2", "1", False),
        ("countdown", "7/ /2", "1", False),
        ("countdown", "1.5", "1", False),
        ("countdown", "x", "1", False),
        ("countdown", "1\n+1", "1", False),
        ("puzzle24", "1*3*5 + 9", "1", True),
        ("polynomial_multiplication", "-6*y**8 + 2*y", "3*y", True),
        ("polynomial_multiplication", "6*x**8", "3*y", False),
        ("polynomial_multiplication", "y**9**9", "3*y", False),
        ("polynomial_multiplication", "y**99999", "3*y", False),
        ("simple_integration", "-5*X**9 - 2.5*X**6/3 + C", "X", True),
        ("intermediate_integration", "exp(x)*sin(2*x) + sqrt(x)**(3/2) + C", "x", True),
        ("intermediate_integration", "Integral(x, x)", "x", False),
        ("intermediate_integration", "Integral(exp(x), x) + C", "Integral(exp(-x), x) + C", True),
        ("complex_arithmetic", "-1.5e3 + 2i", "1", True),
        ("complex_arithmetic", "nan", "1", False),
        ("number_sorting", "['-1.5', \"2\", 3e1]", "1", True),
        ("number_sorting", "[NaN, NaN]", "1", False),
        ("caesar_cipher", "__import__('os') is plain text here", "1", True),
    ],
)
def test_what_may_reach_a_scorer(task: str, answer: str, reference: str, readable: bool):
    assert is_readable(task, answer, reference) is readable


def test_a_task_is_chosen_by_name_on_the_command_line(capsys, tmp_path):
    model = ["--model.path", "search_base", "--folder", str(tmp_path / "run")]
    assert main(["train", "sae_gym", "--env.task", "chain_summ", *model]) == 2
    said = capsys.readouterr().err
    assert "chain_sum" in said and said.count("\n") == 1
    sizes = ["--env.train-questions", "6", "--env.dev-questions", "3", "--env.test-questions", "4"]
    env = configured("sae_gym", ["--env.task", "countdown", *sizes]).env
    assert env == small("countdown") and len(env.tasks("train")) == 6
