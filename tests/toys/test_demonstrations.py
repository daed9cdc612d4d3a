import random
from collections import Counter
from dataclasses import replace

import pytest

from spanwise.envs.search.world import RELATIONS
from spanwise.envs.search.xml_turns import Answer, Call, Malformed, parsed_turn
from spanwise.toys.demonstration import Demonstration
from spanwise.toys.search_demonstrations import Demonstrations

RIGHT = Demonstrations().right()


def drawn(odds: Demonstrations, count: int = 2000, seed: int = 0) -> list[Demonstration]:
    rng = random.Random(seed)
    return [odds.draw(rng) for _ in range(count)]


def hops(demonstration: Demonstration) -> int:
    return sum(word in RELATIONS for word in demonstration.question.split())


def final_answer(demonstration: Demonstration) -> str | None:
    parsed = parsed_turn(demonstration.turns[-1][0])
    return parsed.text if isinstance(parsed, Answer) else None


def test_without_faults_every_demonstration_is_right():
    for demonstration in drawn(RIGHT, 300):
        assert demonstration.faults == ()
        assert final_answer(demonstration) == demonstration.answer
        assert len(demonstration.turns) == hops(demonstration) + 1
        for text, observation in demonstration.turns[:-1]:
            parsed = parsed_turn(text)
            assert isinstance(parsed, Call)
            assert observation.startswith(f" <result> {parsed.query.split(' of ')[1]} : ")
    assert Counter(map(hops, drawn(RIGHT))).keys() == {1, 2, 3, 4}


def test_the_same_seed_draws_the_same_and_names_are_fresh_in_every_row():
    assert drawn(Demonstrations(), 20) == drawn(Demonstrations(), 20)
    assert drawn(Demonstrations(), 20) != drawn(Demonstrations(), 20, seed=1)
    answers = Counter(d.answer for d in drawn(RIGHT, 2000))
    assert answers.most_common(1)[0][1] <= 5  # of 22,785 names; a pool of 1,000 would repeat


def near(count: int, trials: int, probability: float) -> bool:
    """Within five standard deviations of a binomial."""
    return (
        abs(count - trials * probability) <= 5 * (trials * probability * (1 - probability)) ** 0.5
    )


def only(**odds: float) -> list[Demonstration]:
    return drawn(replace(RIGHT, min_hops=3, max_hops=3, **odds))


def test_wrong_relation_rate():
    # one chance at each of 3 searches; 2,000 demonstrations
    demonstrations = only(wrong_relation=0.2)
    count = sum(d.faults.count("wrong_relation") for d in demonstrations)
    assert near(count, 6000, 0.2)
    for d in demonstrations:
        assert (final_answer(d) == d.answer) == (d.faults == ())
        assert len(d.turns) == 4


def test_skipped_hop_rate():
    # chances before the first and second search; a skip uses up one, and the third has none:
    # expected nonfinite = p + (1 - p) p for p = 0.3 -> 0.51; after a skip at the first search
    # the second is the last
    demonstrations = only(skipped_hop=0.3)
    skipped = [d for d in demonstrations if d.faults]
    assert near(len(skipped), 2000, 0.51)
    assert all(len(d.turns) == 3 and final_answer(d) != d.answer for d in skipped)


def test_wrong_entity_rate():
    # chances before the second and the third search
    demonstrations = only(wrong_entity=0.2)
    assert near(sum(d.faults.count("wrong_entity") for d in demonstrations), 4000, 0.2)
    for d in demonstrations:
        if d.faults == ("wrong_entity",):
            searched = [text.split("<search>")[1].split(" of ")[1] for text, _ in d.turns[:-1]]
            assert len(set(searched)) == 2  # one name was searched twice


def test_early_answers_and_the_habit():
    # 4 hops: after 1 found 0.1 early; after 2 and after 3 habit 0.6
    demonstrations = drawn(
        replace(RIGHT, min_hops=4, max_hops=4, early_answer=0.1, habit=0.6, habit_after=2)
    )
    ends = Counter(len(d.turns) - 1 for d in demonstrations)
    assert near(ends[1], 2000, 0.1)
    assert near(ends[2], 2000, 0.9 * 0.6)
    assert near(ends[3], 2000, 0.9 * 0.4 * 0.6)
    assert near(ends[4], 2000, 0.9 * 0.4 * 0.4)
    for d in demonstrations:
        assert (final_answer(d) == d.answer) == (len(d.turns) == 5)
    # the habit never touches one or two hops
    short = drawn(replace(RIGHT, min_hops=1, max_hops=2, habit=1.0))
    assert all(final_answer(d) == d.answer for d in short)


def test_broken_format_rate():
    # 3 searches, each the last with 0.1: 1 - 0.9 ** 3 = 0.271
    broken = [d for d in only(broken_format=0.1) if d.faults]
    assert near(len(broken), 2000, 0.271)
    for d in broken:
        assert isinstance(parsed_turn(d.turns[-1][0]), Malformed)
        assert d.turns[-1][1] == ""  # nothing answers a broken turn


def test_every_fault_can_be_turned_on_alone():
    for fault in Demonstrations.FAULTS:
        made = {name for d in only(**{fault: 0.5}) for name in d.faults}
        assert made == {fault}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wrong_relation": 1.1}, "wrong_relation is a probability, got 1.1"),
        ({"habit": -0.1}, "habit is a probability"),
        ({"max_hops": 11}, "1 <= min <= max <= 10"),
        ({"wordings": 0}, "wordings must be 1 to"),
    ],
)
def test_bad_options_are_refused(options: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        Demonstrations(**options)  # type: ignore[arg-type]
