import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanwise.envs.search.exact_match import exact_match, f1, normalised_answer


@pytest.mark.parametrize(
    ("prediction", "answer", "match"),
    [
        ("Alan Grove", "alan  grove.", 1.0),
        ("The Hague", "Hague", 1.0),
        ("an apple a day", "apple day", 1.0),
        ("Theodore", "odore", 0.0),  # an article is a whole word
        ("U.S.A.", "USA", 1.0),
        ("Grove Alan", "Alan Grove", 0.0),
        ("1,000", "1000", 1.0),
        ("", "Alan", 0.0),
    ],
)
def test_exact_match_after_normalisation(prediction: str, answer: str, match: float):
    assert exact_match(prediction, [answer]) == match


def test_any_answer_will_do():
    assert exact_match("b", ["x", "B."]) == 1.0
    assert exact_match("b", []) == 0.0
    assert f1("b", []) == 0.0


@pytest.mark.parametrize(
    ("prediction", "answer", "score"),
    [
        ("x y", "x y", 1.0),
        ("x y z", "x", 0.5),  # P 1/3, R 1: 2 * (1/3) / (4/3)
        ("x x y", "x z", 0.4),  # one x shared: P 1/3, R 1/2: 2 * (1/6) / (5/6)
        ("x", "y", 0.0),
        ("the", "a", 1.0),  # nothing is left of either
        ("the", "x", 0.0),
    ],
)
def test_f1_by_hand(prediction: str, answer: str, score: float):
    assert f1(prediction, [answer]) == pytest.approx(score)


def test_f1_takes_the_best_answer():
    assert f1("x y z", ["q", "x", "x y"]) == pytest.approx(0.8)  # P 2/3, R 1


words = st.text(alphabet="ab the,.", max_size=20)


@given(words, words)
def test_f1_and_match_agree(prediction: str, answer: str):
    assert f1(prediction, [answer]) == pytest.approx(f1(answer, [prediction]))
    if exact_match(prediction, [answer]):
        assert f1(prediction, [answer]) == 1.0
    once = normalised_answer(prediction)
    assert once == once.strip().lower() and "," not in once and "the" not in once.split()


@pytest.mark.parametrize("closed", ["yes", "No!", "noanswer"])
def test_a_closed_answer_shares_words_with_itself_alone(closed: str):
    """HotpotQA's script: 0 whenever exactly one side is yes, no or noanswer."""
    longer = f"{closed} way home"
    assert f1(longer, [closed]) == f1(closed, [longer]) == f1(closed, ["maybe"]) == 0.0
    assert f1("yes", ["no"]) == f1("noanswer", ["no"]) == 0.0
    assert f1(closed, ["other", f"the {closed}"]) == 1.0
    assert f1(longer, [closed, "way home"]) == pytest.approx(0.8)  # P 2/3, R 1
    assert f1(longer, [f"{closed} way"]) > 0  # the word among others is a word like others
