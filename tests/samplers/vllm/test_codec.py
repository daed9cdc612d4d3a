"""What vLLM is asked and what is made of its answers, without vLLM."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spanwise.samplers.base import EngineError, Request, Sampling
from spanwise.samplers.vllm.codec import Answer, Turns, sampling_logprob
from spanwise.samplers.vllm.local import VLLMEngine


@pytest.fixture
def turns(make_model: Callable[..., Any], tokenizer: Any) -> Turns:
    return Turns(make_model(), tokenizer)


def answer(tokens: list[int], reason: str = "stop") -> Answer:
    return Answer(tokens=tokens, logprobs=[{t: -0.5} for t in tokens], finish_reason=reason)


def test_a_turn_ends_at_the_token_that_completes_a_stop_string(turns: Turns, tokenizer: Any):
    request = Request(prompt=(5,), seed=0, max_tokens=9, stop=("</s>",))
    tokens = tokenizer.encode("a</s>x", add_special_tokens=False)
    completion = turns.completion(request, answer([*tokens, 7, 8]))  # vLLM was two tokens late
    text = tokenizer.decode(completion.tokens)
    assert completion.finish == "stop" and "</s>" in text
    assert "</s>" not in tokenizer.decode(completion.tokens[:-1])
    assert len(completion.engine_logprobs) == len(completion.tokens)


def test_an_end_token_is_part_of_the_turn(turns: Turns):
    request = Request(prompt=(5,), seed=0, max_tokens=9)
    completion = turns.completion(request, answer([9, 0]))
    assert completion.tokens == (9, 0) and completion.finish == "eos"
    assert turns.completion(request, answer([9, 9], "length")).finish == "length"


def test_answers_that_are_no_turns_are_engine_errors(turns: Turns):
    request = Request(prompt=(5,), seed=0, max_tokens=9)
    broken = Answer(tokens=[9], logprobs=[{9: math.nan}], finish_reason="stop")
    for bad in (answer([9], "abort"), answer([]), broken):
        with pytest.raises(EngineError):
            turns.completion(request, bad)


def test_settings_say_all_of_the_request(turns: Turns):
    how = Sampling(temperature=0.5, top_k=1000)
    asked = Request(prompt=(5,) * 510, seed=-1, max_tokens=9, stop=("x",), sampling=how)
    settings = turns.settings(asked)
    assert settings["max_tokens"] == 2  # of 512 positions
    assert settings["seed"] == 2**63 - 1 and settings["stop_token_ids"] == [0]
    assert settings["top_k"] == 261 and settings["logprobs"] == -1  # all of the vocabulary
    for prompt in ((), (5,) * 512, (261,), (-1,)):
        with pytest.raises(EngineError):
            turns.settings(Request(prompt=prompt, seed=0, max_tokens=9))


@given(
    logits=st.lists(st.integers(-16, 16), min_size=3, max_size=9, unique=True),
    temperature=st.floats(0.3, 3),
    top_p=st.floats(0.05, 1),
    top_k=st.integers(0, 9),
)
def test_sampling_logprobs_are_a_distribution_over_what_is_kept(
    logits: list[int], temperature: float, top_p: float, top_k: int
) -> None:
    """Renormalised by brute force; a token that is cut off is not asked for."""
    how = Sampling(temperature=temperature, top_p=top_p, top_k=top_k)
    logprobs = (torch.tensor(logits, dtype=torch.float64) / 2).log_softmax(-1).tolist()
    table = dict(enumerate(logprobs))
    weights = sorted(((math.exp(x / temperature), t) for t, x in table.items()), reverse=True)
    weights = weights[: top_k or None]
    total, kept = sum(w for w, _ in weights), []
    for weight, token in weights:
        if sum(w for w, _ in kept) >= top_p * total * (1 + 1e-12):
            break
        kept.append((weight, token))
    probabilities = [math.exp(sampling_logprob(t, table, how)) for _, t in kept]
    if sum(w for w, _ in kept[:-1]) < top_p * total * (1 - 1e-9):  # else rounding decides
        assert sum(probabilities) == pytest.approx(1.0)
        assert probabilities[0] == pytest.approx(kept[0][0] / sum(w for w, _ in kept))


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_one_line_says_what_to_install() -> None:
    with pytest.raises(ValueError, match=r"pip install 'spanwise\[vllm\]'"):
        VLLMEngine().check()


def test_impossible_settings_are_refused() -> None:
    for bad in ({"max_rows": 0}, {"gpu_memory": 1.5}, {"num_gpus": 0}):
        with pytest.raises(ValueError, match="vLLM needs"):
            VLLMEngine(**bad)
