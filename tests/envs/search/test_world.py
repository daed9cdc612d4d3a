from collections import Counter

import pytest

from spanwise.envs.search.names import FIRST_NAMES, SURNAMES
from spanwise.envs.search.world import RELATIONS, WORDINGS, Fact, SearchWorld, question_text

SMALL = {"train_people": 40, "dev_people": 25, "test_people": 30}


def questions(world: SearchWorld, count: int = 60):
    return {split: world.questions(split, count, 1, 4) for split in ("train", "dev", "test")}


def test_splits_share_nobody_on_an_answer_path():
    on_paths = {
        split: {person for task in tasks for person in task.info["path"]}
        for split, tasks in questions(SearchWorld(), count=400).items()
    }
    assert not on_paths["train"] & on_paths["dev"]
    assert not on_paths["train"] & on_paths["test"]
    assert not on_paths["dev"] & on_paths["test"]


def test_facts_never_leave_a_split():
    world = SearchWorld(**SMALL, lookalikes=1)
    group_of = {person: name for name, group in world.people.items() for person in group}
    assert len(group_of) == 2 * (40 + 25 + 30)  # all names differ
    assert all(group_of[fact.subject] == group_of[fact.value] for fact in world.facts.values())


def test_same_seed_same_world_other_seed_another():
    assert SearchWorld(**SMALL).documents == SearchWorld(**SMALL).documents
    assert questions(SearchWorld(**SMALL)) == questions(SearchWorld(**SMALL))
    assert SearchWorld(**SMALL).documents != SearchWorld(**SMALL, seed=1).documents


def test_questions_are_balanced_different_and_answered_by_their_chain():
    world = SearchWorld(**SMALL)
    for tasks in questions(world).values():
        assert Counter(task.info["hops"] for task in tasks) == {1: 15, 2: 15, 3: 15, 4: 15}
        assert len({task.question for task in tasks}) == len(tasks)
        for task in tasks:
            person = task.info["subject"]
            for relation in task.info["relations"]:
                person = world.facts[relation, person].value
            assert task.answers == (person,)
            assert len(set(task.info["path"])) == task.info["hops"] + 1


def test_everyone_has_every_relation_told_in_one_document():
    world = SearchWorld(**SMALL)
    assert len(world.documents) == (40 + 25 + 30) * len(RELATIONS)
    titles = Counter(document.title for document in world.documents)
    assert set(titles.values()) == {len(RELATIONS)}


def test_lookalikes_share_the_surname_and_stand_on_no_path():
    world = SearchWorld(**SMALL, lookalikes=2)
    people = [p for split in ("train", "dev", "test") for p in world.people[split]]
    assert len(world.people["lookalike"]) == 2 * len(people)
    wanted = [p.split()[1] for p in people for _ in range(2)]
    assert [p.split()[1] for p in world.people["lookalike"]] == wanted
    asked = {p for tasks in questions(world).values() for t in tasks for p in t.info["path"]}
    assert not asked & set(world.people["lookalike"])


def test_wordings_use_as_many_ways_as_asked():
    used = {n: {f.wording for f in SearchWorld(**SMALL, wordings=n).facts.values()} for n in (1, 4)}
    assert used == {1: {0}, 4: {0, 1, 2, 3}}


@pytest.mark.parametrize("wording", range(len(WORDINGS)))
def test_every_wording_names_subject_relation_and_value(wording: int):
    fact = Fact(subject="Ada Beck", relation="rival", value="Leo Dale", wording=wording)
    assert fact.document.title == "Ada Beck"
    for part in ("Ada Beck", "rival", "Leo Dale"):
        assert fact.document.text.count(part) == 1


def test_names_are_whole_words_in_one_role():
    assert len(set(FIRST_NAMES)) == len(FIRST_NAMES) and len(set(SURNAMES)) == len(SURNAMES)
    lowered = [{word.lower() for word in words} for words in (FIRST_NAMES, SURNAMES)]
    fixed = {word for wording in WORDINGS for word in wording.split()} | set(RELATIONS)
    assert not lowered[0] & lowered[1]
    assert not (lowered[0] | lowered[1]) & fixed


def test_four_hops_name_the_chain_in_order():
    assert (
        question_text("Ada Beck", ("rival", "mother", "doctor", "lawyer"))
        == "who is Ada Beck 's rival 's mother 's doctor 's lawyer ?"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_people": 3}, "at least 20 people"),
        ({"wordings": 99}, "wordings must be 1 to"),
        ({"train_people": 9000}, "look-alikes are more than"),
        ({"lookalikes": -1}, "look-alikes"),
    ],
)
def test_impossible_worlds_are_refused(options: dict[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        SearchWorld(**options)


def test_more_questions_than_there_are_is_refused():
    # 25 people x 10 relations: 250 one-hop questions exist
    world = SearchWorld(**SMALL)
    assert len(world.questions("dev", 200, 1, 1)) == 200
    with pytest.raises(ValueError, match="ask for fewer, or for more people"):
        world.questions("dev", 251, 1, 1)
