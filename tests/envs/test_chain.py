import asyncio
import random
from dataclasses import replace

import pytest

from spanwise.envs.base import Reply, Turn
from spanwise.envs.chain import ChainSums, Sum, applied
from spanwise.toys.chain_demonstrations import ChainDemonstrations

ENV = ChainSums(train_questions=300, dev_questions=50, test_questions=50)
TASK = ENV.tasks("test")[0]


def reply(text: str, *, truncated: bool = False) -> Reply:
    return asyncio.run(ENV.reply(TASK, [Turn(text=text, truncated=truncated)]))


def test_sums_by_hand():
    # 3 + 4 = 7, 7 - 8 = -1 = 9 mod 10, 9 + 5 = 14 = 4 mod 10
    assert Sum(3, (("+", 4), ("-", 8), ("+", 5))).value == 4
    assert applied(0, ("-", 9)) == 1


def test_splits_share_no_question_and_follow_from_the_seed():
    questions = [[t.question for t in ENV.tasks(s)] for s in ("train", "dev", "test")]
    assert [len(q) for q in questions] == [300, 50, 50]
    assert len(set().union(*questions)) == 400
    again = ChainSums(train_questions=300, dev_questions=50, test_questions=50)
    assert again.tasks("test") == ENV.tasks("test")
    assert replace(again, seed=1).tasks("test") != ENV.tasks("test")
    lengths = {t.info["length"] for t in ENV.tasks("train")}
    assert lengths == set(range(3, 13))


def test_right_and_wrong_answers():
    right = int(TASK.answers[0])
    scored = reply(f"1 + 1 = 2 # {right} .")
    assert (scored.stop, scored.reward, scored.success) == ("end", 1.0, True)
    wrong = reply(f"1 + 1 = 2 # {(right + 1) % 10} .")
    assert (wrong.stop, wrong.reward) == ("end", 0.0)


@pytest.mark.parametrize("text", ["", "# 5", "5 .", "# 5 . .", "# 1 . # 2 .", "# 12 .", "# x ."])
def test_what_is_no_answer_is_malformed(text: str):
    scored = reply(text)
    assert (scored.stop, scored.reward) == ("malformed", 0.0)


def test_a_turn_that_was_cut_scores_nothing():
    assert reply(f"# {TASK.answers[0]} .", truncated=True).stop == "length"


@pytest.mark.parametrize(
    "options",
    [
        {"min_numbers": 1},
        {"min_numbers": 9, "max_numbers": 8},
        {"train_questions": 0},
        {"min_numbers": 2, "max_numbers": 2, "train_questions": 200},
    ],
)
def test_refused_options(options: dict[str, int]):
    with pytest.raises(ValueError, match=r"question|min_numbers"):
        replace(ENV, **options)


def test_right_demonstrations_are_what_the_environment_rewards():
    source, rng = ChainDemonstrations().right(), random.Random(0)
    for _ in range(200):
        demonstration = source.draw(rng)
        assert demonstration.faults == ()
        text = demonstration.turns[0][0]
        assert text.endswith(f" # {demonstration.answer} .")
        task = replace(TASK, answers=(demonstration.answer,))
        assert asyncio.run(ENV.reply(task, [Turn(text=text)])).reward == 1.0
        assert set(f"{demonstration.question} {text}".split()) <= set(source.words())


def test_fault_rates():
    source = ChainDemonstrations(min_numbers=9, max_numbers=9).right()
    rng = random.Random(1)
    trials = 8 * 1500  # eight steps a chain

    def count(**odds: float) -> int:
        return sum(len(replace(source, **odds).draw(rng).faults) for _ in range(1500))

    for fault in ("wrong_result", "skipped_step", "wrong_digit"):
        # 12,000 chances at 0.1: 1,200 expected, standard deviation 33
        assert abs(count(**{fault: 0.1}) - 0.1 * trials) < 5 * 33
    # three of eight steps have six or more to come: not given up in any of them, 0.4 ** 3 = 0.064
    # of 1,500; 1,404 expected, deviation below 10
    assert abs(count(gives_up=0.6) - 1404) < 5 * 10
    with pytest.raises(ValueError, match="gives_up is a probability"):
        ChainDemonstrations(gives_up=1.5)


def test_what_is_given_up_stays_open_to_its_end():
    source = ChainDemonstrations(min_numbers=8, max_numbers=8).right()
    rng = random.Random(2)
    drawn = [replace(source, gives_up=0.5).draw(rng) for _ in range(400)]
    worked = set[int]()
    for demonstration in drawn:
        text = demonstration.turns[0][0]
        worked.add(text.count("="))
        if demonstration.faults:
            assert demonstration.faults == ("gives_up",)
            assert text.endswith(
                " ".join(f"{c} -" for c in "abcdefg"[text.count("=") :]) + " # - ."
            )
            assert reply(text).stop == "malformed"
        else:
            assert text.endswith(f"# {demonstration.answer} .")
    assert worked == {0, 1, 7}  # only the first two of seven steps have six to come


def test_short_chains_are_not_given_up():
    short = ChainDemonstrations(min_numbers=3, max_numbers=6).right()
    rng = random.Random(3)
    assert not any(replace(short, gives_up=1.0).draw(rng).faults for _ in range(200))
