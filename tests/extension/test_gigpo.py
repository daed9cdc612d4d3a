"""GiGPO and a game with rewards on the way, in one file outside the repository."""

from __future__ import annotations

import importlib.util
import shutil
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from types import ModuleType
from typing import Any

import pytest

from spanwise.batch import Batch
from spanwise.cli import main
from spanwise.run.folder import RunFolder, tree_of
from spanwise.testing import check_advantage, check_environment
from spanwise.tree import Tree
from tests.trees import grown, root, turn

FILE = Path(__file__).parent / "gigpo_corridor.py"


@pytest.fixture(scope="module")
def users_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copy(FILE, tmp_path_factory.mktemp("user")))


@pytest.fixture(scope="module")
def mine(users_file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gigpo_corridor", users_file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_checks_pass(mine: ModuleType) -> None:
    check_environment(mine.Corridor(), texts=("7", "a 2 ;"), solve=lambda task, turns: "8")
    check_advantage(mine.GiGPO())
    check_advantage(mine.GiGPO(step_weight=3.0, gamma=1.0))


def walks(*rooms: tuple[int, ...]) -> Tree:
    """Chains from room 2: a turn of one token for each step, paid 0.25 up and -0.25 down."""
    nodes = [root(8, observation_text="2")]
    for number, chain in enumerate(rooms):
        for depth, (before, room) in enumerate(pairwise((2, *chain))):
            onward: dict[str, Any] = {"observation": (9,), "observation_text": str(room)}
            ends, path = depth + 1 == len(chain), (number, *(0,) * depth)
            nodes.append(turn(*path, reward=0.25 * (room - before), **({} if ends else onward)))
    return grown(*nodes)


# Rooms 2 -> 3 -> 2 -> 3 and 2 -> 1 -> 2 -> 1. Returns 0.25 and -0.25: +-0.7071 deviations.
# Discounted by 0.5, to go: 0.1875 -0.125 0.25 and the same with other signs. Four turns left
# room 2: 0.1875 0.25 -0.1875 -0.25, mean 0, deviation sqrt((2 * 0.0352 + 2 * 0.0625) / 3) =
# 0.2552; one each left rooms 3 and 1, with nothing to be compared with.
TURNS = [0.1875 / 0.2552, 0.0, 0.25 / 0.2552]


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.0])
def test_a_batch_by_hand(mine: ModuleType, weight: float) -> None:
    batch = Batch.from_trees([walks((3, 2, 3), (1, 2, 1))])
    assert batch.returns.tolist() == [0.25, -0.25]
    gigpo = mine.GiGPO(step_weight=weight, gamma=0.5)
    to_go = gigpo.returns_to_go(batch)[1:]
    assert to_go.tolist() == [0.1875, -0.125, 0.25, -0.1875, 0.125, -0.25]
    expected = [0.7071 + weight * turn for turn in TURNS]
    found = gigpo(batch)
    assert found[0, batch.mask[0]].tolist() == pytest.approx(expected, abs=1e-3)
    assert found[1, batch.mask[1]].tolist() == pytest.approx([-a for a in expected], abs=1e-3)


def normalised(value: float, group: list[float]) -> float:
    return (value - fmean(group)) / (stdev(group) + 1e-6) if len(group) > 1 else 0.0


def test_it_trains_from_a_users_file(users_file: Path, tmp_path: Path) -> None:
    options = ["--steps", "2", "--prompts-per-step", "4", "--evaluation.num-tasks", "2"]
    options += ["--advantage.step-weight", "0.5", "--folder", str(tmp_path / "run")]
    assert main(["train", f"{users_file}:corridor", *options]) == 0
    log = RunFolder.open(tmp_path / "run")
    advantage = log.read_config()["config"]["advantage"]
    assert advantage == {"class": "GiGPO", "step_weight": 0.5, "gamma": 0.95}
    assert [m["step"] for m in log.read_metrics()] == [1, 2]
    compared = 0
    for record in [*log.read_trees(1), *log.read_trees(2)]:
        tree = tree_of(record)
        credit = {tuple(node["path"]): node["advantage"] for node in record["nodes"]}
        returns = [tree.returns(leaf) or 0.0 for leaf in tree.leaves()]
        to_go: dict[tuple[int, ...], float] = {}
        states: dict[str, list[float]] = defaultdict(list)
        for node in reversed(tree.nodes[1:]):
            to_go[node.path] = (node.reward or 0.0) + 0.95 * to_go.get((*node.path, 0), 0.0)
            states[tree.node(node.path[:-1]).observation_text].append(to_go[node.path])
        for branch in tree.branches():
            trajectory = normalised(tree.returns(branch.leaf) or 0.0, returns)
            for before, node in zip(branch.nodes, branch.turns, strict=False):
                group = states[before.observation_text]
                expected = trajectory + 0.5 * normalised(to_go[node.path], group)
                assert credit[node.path] == pytest.approx(expected, abs=1e-3)
                compared += len(group) > 1 and before.path != ()
    assert compared > 50  # turns with others from the same room, beyond the first ones
