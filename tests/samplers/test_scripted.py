from __future__ import annotations

import asyncio

import pytest

from spanwise.samplers.base import EngineError, Request
from spanwise.samplers.scripted import ScriptedSampler


class Letters:
    def encode(self, text, **options):
        return [ord(c) for c in text]

    def decode(self, ids, **options):
        return "".join(map(chr, ids))


def play(script, *, prompt="Q", max_tokens=9, stop=(";",)):
    sampler = ScriptedSampler(script, Letters(), logprob=-0.5)
    request = Request(prompt=tuple(map(ord, prompt)), seed=4, max_tokens=max_tokens, stop=stop)
    completion = asyncio.run(sampler.sample(request))
    assert sampler.requests == [request]
    return "".join(map(chr, completion.tokens)), completion


@pytest.mark.parametrize(
    "written, text, finish",
    [
        ("ab", "ab", "eos"),
        ("ab;cd", "ab;", "stop"),
        ("abcdefghijk", "abcdefghi", "length"),
        ("abcdefgh;", "abcdefgh;", "stop"),
        ("abcdefghi;", "abcdefghi", "length"),
    ],
)
def test_ends_where_an_engine_would(written, text, finish):
    got, completion = play(lambda prompt, request: written)
    assert (got, completion.finish) == (text, finish)
    assert completion.engine_logprobs == completion.sampling_logprobs == (-0.5,) * len(text)


def test_the_script_sees_the_prompt_and_the_request():
    got, _ = play(lambda prompt, request: f"{prompt}{request.seed}", prompt="why")
    assert got == "why4"


def test_log_probs_of_the_script():
    _, completion = play(lambda prompt, request: ("ab;d", [-1.0, -2.0, -3.0, -4.0]))
    assert completion.engine_logprobs == (-1.0, -2.0, -3.0)
    with pytest.raises(ValueError, match="1 logprobs for the 2 tokens"):
        play(lambda prompt, request: ("ab", [-1.0]))


def test_the_script_may_play_a_broken_engine():
    def broken(prompt, request):
        raise EngineError("lost")

    with pytest.raises(EngineError, match="lost"):
        play(broken)
