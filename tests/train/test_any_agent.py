"""An agent that searches nothing goes the whole way, from files of its user's alone.

A game with rewards on the way and without success, in which what is known is in its own words.
"""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from statistics import fmean

import pytest

from spanwise.cli import main
from spanwise.run.folder import RunFolder, tree_of

GAME = '''
import json
from dataclasses import dataclass, replace

from spanwise.credit import TreeAdvantage
from spanwise.envs.base import Environment, Reply, Task
from spanwise.learn.critic import NoCritic
from spanwise.rollout import TreeSearch
from spanwise.run.trackers import Tracker
from spanwise.train.evaluate import Evaluation
from tests.train.letters import SYMBOLS, letters


@dataclass(frozen=True, kw_only=True)
class Ladder(Environment):
    """A letter of the first half of the alphabet is a rung up, any other a fall."""

    rungs: int = 3
    stop_strings = tuple("mnop;")

    def tasks(self, split):
        return [Task(id=f"{split}-{a}", question=f"{a}:") for a in SYMBOLS[:16]]

    def messages(self, task):
        return [{"role": "user", "content": task.question}]

    async def reply(self, task, turns):
        up = turns[-1].text[0] in "abcdefgh"
        outcome = {"height": len(turns) - (not up), "fell": not up, "letter": turns[-1].text[0]}
        if not up or turns[-1].truncated:
            return Reply(stop="end", reward=-0.5, label="a fall", outcome=outcome)
        if len(turns) == self.rungs:
            return Reply(stop="end", reward=1.0, label="the top", outcome=outcome)
        label = f"rung {len(turns)}"
        return Reply(stop="continue", observation="b:", reward=0.25, label=label, outcome=outcome)


class Diary(Tracker):
    def write(self, metrics):
        with (self.folder / "diary.txt").open("a") as file:
            file.write(json.dumps([self.config["seed"], metrics["step"]]) + "\\n")

    def close(self):
        (self.folder / "diary.txt").open("a").write('"closed"\\n')


def longest(trees, batch):
    lengths = [len(node.tokens) for tree in trees for node in tree.nodes]
    return {"longest": max(lengths), "rows": len(batch.mask)}


def broken(trees, batch):
    return {"none": 1 / 0}


def ladder():
    return replace(
        letters(critic=NoCritic(), advantage=TreeAdvantage()),
        env=Ladder(),
        rollout=TreeSearch(num_chains=2, num_rounds=1, num_expansions=2, max_turn_tokens=12,
                           max_response_tokens=60),
        evaluation=Evaluation(num_tasks=8, every=1),
        prompts_per_step=4,
        metrics=(longest,),
        trackers=(Diary,),
    )


def not_right():
    return replace(ladder(), metrics=(broken,))
'''

UNTRUE = ("tool", "hops", "exact match", "exact_match", "search", "question", "success")
"""Words that are not of this game."""


@pytest.fixture(scope="module")
def game(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("mine") / "climbing.py"
    file.write_text(GAME)
    return file


def output(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a command says, in which nothing is untrue of the game."""
    assert main([str(word) for word in words]) == 0
    said = capsys.readouterr().out
    assert not [word for word in UNTRUE if word in said.lower()], said
    return said


def test_a_game_goes_the_whole_way_in_its_own_words(
    game: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for seed, folder in enumerate(folders):
        recipe = f"{game}:ladder"
        said = output(capsys, "train", recipe, "--seed", seed, "--folder", folder)
        assert "Held-out score" in said and "step 2/2  score " in said and "  turns " in said
        assert "rung 1" in said and "reward 0.25" in said  # paid on the way
    log = RunFolder.open(folders[0])
    for line in log.read_metrics():
        trees = [tree_of(record) for record in log.read_trees(line["step"])]
        returns = [tree.returns(leaf) for tree in trees for leaf in tree.leaves()]
        assert line["score"] == pytest.approx(fmean(returns)) and line["score"] not in (1.0, -0.5)
        nodes = [node for tree in trees for node in tree.nodes[1:]]
        assert line["env/height"] == fmean(node.outcome["height"] for node in nodes)
        assert line["env/fell"] == fmean(node.outcome["fell"] for node in nodes)
        assert line["own/longest"] == max(len(node.tokens) for node in nodes)
        assert line["own/rows"] == line["branches"] and line["turns"] > 1
        measured = {"eval/score", "eval/greedy_score", "eval/env/height", "eval/greedy_env/fell"}
        assert measured <= line.keys() and "env/letter" not in line
        assert not [name for name in line if any(word in name for word in UNTRUE)]
    summary = log.read_summary()
    assert {"score", "greedy_score", "env/height"} <= summary["after"].keys()
    assert "success" not in summary["before"]
    diary = (folders[0] / "diary.txt").read_text().splitlines()
    assert [json.loads(entry) for entry in diary] == [[0, 1], [0, 2], "closed"]
    config = log.read_config()["config"]
    assert config["metrics"][0].endswith(":longest") and config["trackers"][0].endswith(":Diary")

    said = output(capsys, "show", folders[0], "--step", 2)
    assert "task " in said and "answer" not in said and ("a fall" in said or "the top" in said)
    assert "Held-out score (95%" in output(capsys, "compare", *folders)
    assert "env/height" in output(capsys, "compare", *folders, "--score", "env/height")
    assert "Held-out score" in output(
        capsys, "eval", folders[0], "--num-tasks", 4, "--allow", recipe
    )


def test_what_is_wrong_in_a_metric_of_ones_own_is_shown_where_it_is(
    game: Path, tmp_path: Path
) -> None:
    with pytest.raises(ZeroDivisionError) as error:
        main(["train", f"{game}:not_right", "--folder", str(tmp_path / "run")])
    last = traceback.extract_tb(error.value.__traceback__)[-1]
    assert (Path(last.filename), last.name) == (game, "broken")
