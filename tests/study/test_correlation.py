from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from spanwise.cli import main
from spanwise.envs.base import Task
from spanwise.models.critic import SeparateCritic
from spanwise.partitions import Token
from spanwise.rollout import Chains, RolloutContext
from spanwise.samplers.base import Request
from spanwise.study.continuations import Place, continuation_returns
from spanwise.study.correlation import CorrelationStudy, correlation_study
from spanwise.study.report import correlation_record, write_correlation
from spanwise.tree import Branch, Node
from tests.train.letters import LetterModel, LetterTokenizer, letters
from tests.trees import turn
from tests.word_game import CharTokenizer, PathSampler, WordGame

TASK = Task(id="t", question="Q:", answers=("win",))


def node(*path: int, text: str, observation: str = "", **rest: Any) -> Node:
    given = {"observation": tuple(map(ord, observation)), "text": text, **rest}
    return turn(*path, tokens=tuple(map(ord, text)), **given)


BRANCH = Branch(
    (
        node(text="", stop="prompt", observation="Q:"),
        node(3, text="go;", stop="continue", observation="[1]"),
        node(3, 1, text="lose;", stop="end", reward=0.0),
    )
)


def continued(
    place: Place, write, count: int = 4, *, branch: Branch = BRANCH, env: WordGame | None = None
) -> tuple[list[float], list[Request]]:
    sampler = PathSampler(write)
    env = env or WordGame()
    context = RolloutContext(env=env, sampler=sampler, tokenizer=CharTokenizer(), seed=0)
    found = continuation_returns(context, Chains(), TASK, branch, place, count, 5)
    return asyncio.run(found), sampler.requests


def test_continuations_keep_all_that_stands_before_the_place() -> None:
    returns, requests = continued(Place(turn=1, offset=2), lambda prompt, request: "se;")
    assert returns == [0.0] * 4
    texts = {"".join(map(chr, r.prompt)) for r in requests}
    assert texts == {"Q:go;[1]lo"}
    assert len({r.seed for r in requests}) == 4
    # what is sampled is added to what stands there: "lo" and "se;" is an answer
    returns, _ = continued(Place(turn=1, offset=0), lambda prompt, request: "win;")
    assert returns == [1.0] * 4


def test_continuations_have_what_was_paid_before_the_place_and_after_it() -> None:
    def write(prompt: str, request: Request) -> str:
        return "go;" if prompt == "Q:go;[1]" else "win;"

    paid = Branch((BRANCH.nodes[0], replace(BRANCH.nodes[1], reward=0.5), BRANCH.nodes[2]))
    returns, _ = continued(Place(turn=1, offset=0), write, branch=paid, env=WordGame(wage=0.25))
    assert returns == [0.5 + 0.25 + 1.0] * 4  # of the first turn, the second and the last

    # from within the first turn on, it is paid by the environment, as the second is
    def from_the_first(prompt: str, request: Request) -> str:
        return "o;" if prompt == "Q:g" else write(prompt, request)

    place = Place(turn=0, offset=1)
    returns, _ = continued(place, from_the_first, branch=paid, env=WordGame(wage=0.25))
    assert returns == [0.25 + 0.25 + 1.0] * 4


def test_continuations_go_on_through_later_turns() -> None:
    def write(prompt: str, request: Request) -> str:
        if prompt == "Q:g":
            return "o;"
        return "win;" if prompt == "Q:go;[1]" else "lose;"

    returns, requests = continued(Place(turn=0, offset=1), write)
    assert returns == [1.0] * 4 and len(requests) == 8
    assert requests[0].max_tokens == Chains().max_turn_tokens - 1


def test_continuations_without_a_reward_are_left_out() -> None:
    def write(prompt: str, request: Request) -> str:
        return "nan;" if request.seed % 2 else "win;"

    returns, requests = continued(Place(turn=1, offset=0), write, 20)
    assert returns == [1.0] * sum(r.seed % 2 == 0 for r in requests) and 0 < len(returns) < 20


def study_of_letters(critic_knows: float, **changes: object):
    """A study of the random model, with a critic that knows some of the outcome."""
    policy = LetterModel().load()
    config = letters()
    context = RolloutContext(
        env=config.env,
        sampler=config.sampler.build(policy, LetterTokenizer()),
        tokenizer=LetterTokenizer(),
        seed=0,
    )

    class Knowing(SeparateCritic):
        """0.5 before the first letter, then the outcome to come, in part."""

        def forward(self, tokens, mask, lengths, logprobs, tree=None):
            found = super().forward(tokens, mask, lengths, logprobs, tree)
            first = tokens.gather(1, mask.int().argmax(1, keepdim=True))
            outcome = (first < 8).float()
            known = 0.5 + critic_knows * (outcome - 0.5)
            started = mask.cumsum(1) > 1
            values = torch.where(started, known, 0.5) * mask
            return found._replace(values=values)

    study = CorrelationStudy(
        num_prompts=24,
        num_continuations=16,
        truth=Token(),
        delimiter="a",
        num_resamples=100,
    )
    study = replace(study, **changes)
    return study, correlation_study(study, config, context, policy, Knowing(policy))


def test_a_critic_that_knows_makes_the_token_level_estimator_true() -> None:
    """All is decided by the first letter: the truth is known without a measurement."""
    _, result = study_of_letters(1.0)
    assert (result.num_prompts, result.failed) == (24, 0)
    assert result.num_spans == result.num_tokens  # the truth was asked for token by token
    assert result.critic_explained_variance > 0.4
    found = {a.estimator: a for a in result.agreements}
    assert len(found) == 10
    # R - V with the critic's 0.5 is the truth at the first letter, and 0 after it
    assert found["GAE(1)"].pearson > 0.9 and found["GAE(0.95)"].pearson > 0.9
    assert result.truth_reliability > 0.9
    for a in result.agreements:
        assert a.pearson_interval[0] <= a.pearson <= a.pearson_interval[1]
        assert a.over_reference == pytest.approx(a.pearson - found["SAE start"].pearson)
    assert found["SAE start"].over_reference_interval == (0, 0)


def test_a_critic_that_knows_nothing_makes_the_outcome_blame_every_token() -> None:
    _, knowing = study_of_letters(1.0)
    _, ignorant = study_of_letters(0.0)
    assert ignorant.critic_explained_variance == pytest.approx(0, abs=1e-6)
    for before, after in zip(knowing.agreements, ignorant.agreements, strict=True):
        assert after.pearson < before.pearson - 0.3


def test_the_file_of_a_study(tmp_path: Path) -> None:
    study, result = study_of_letters(1.0, num_prompts=6, num_continuations=4)
    record = correlation_record(
        result, study, recipe="letters", arguments=["--steps", "2"], checkpoint="final"
    )
    write_correlation(tmp_path / "made", record)
    read = json.loads((tmp_path / "made" / "correlation.json").read_text())
    assert read["machine"]["torch"] == torch.__version__ and len(read["date"]) == 10
    assert read["commit"]
    assert read["recipe"] == "letters" and read["study"]["num_continuations"] == 4
    rows = {row["estimator"]: row for row in read["rows"]}
    assert len(rows["SAE end"]["spearman_interval"]) == 2
    assert str(tmp_path) not in json.dumps(read)


def test_a_study_that_cannot_be_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="has 256 prompts, not 300"):
        study_of_letters(1.0, num_prompts=300)
    with pytest.raises(ValueError, match="at least 2 prompts"):
        CorrelationStudy(num_prompts=1)
    assert main(["study", "correlation", str(tmp_path)]) == 2
    assert "no run folder" in capsys.readouterr().err
    assert main(["study", "causation"]) == 2
    assert "use spanwise study correlation" in capsys.readouterr().err
