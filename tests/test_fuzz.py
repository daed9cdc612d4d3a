"""The short form of ``bench.fuzz``, and that it sees what it looks for."""

import pytest

from bench import fuzz
from spanwise.envs.search.environment import SearchEnvironment
from spanwise.run.folder import RunError


def test_turns_of_any_kind_are_answered():
    found = fuzz.turns_found(range(3000))
    assert not found.crashes
    # By the rules, near them, and far off: all are there.
    assert min(found.outcomes[stop] for stop in ("continue", "end", "malformed")) > 100


def test_damaged_run_folders_are_read_or_refused():
    found = fuzz.files_found(range(1500))
    assert not found.crashes
    assert min(found.outcomes["read"], found.outcomes["refused"]) > 100


def test_damaged_checkpoints_are_refused():
    found = fuzz.checkpoints_found(range(300))
    assert not found.crashes
    assert found.outcomes["refused"] > 250


def test_other_errors_are_reported_with_their_input(monkeypatch):
    async def broken(self, task, turns):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(SearchEnvironment, "reply", broken)
    assert fuzz.turns_found([7]).crashes == {7: "ZeroDivisionError: by zero"}

    def refuses(folder):
        raise RunError("no")

    def breaks(folder):
        raise KeyError("id")

    monkeypatch.setattr(fuzz, "read_all", refuses)
    assert fuzz.files_found([1, 2]).outcomes["refused"] == 2
    monkeypatch.setattr(fuzz, "read_all", breaks)
    assert list(fuzz.files_found([3]).crashes) == [3]


@pytest.mark.parametrize("case", list(fuzz.CASES))
def test_an_input_is_made_from_its_number_alone(case):
    """In any batch, so that a number in the results is enough to see the fault again."""
    together, apart = fuzz.CASES[case](range(40)), fuzz.Found()
    for number in reversed(range(40)):
        apart.add(fuzz.CASES[case]([number]))
    assert together.outcomes == apart.outcomes
