"""What a turn is to vLLM: the settings of a request, and a completion from its answer.

The engine in process and the servers have this in common.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from spanwise.samplers.base import Completion, EngineError, Request, Sampling
from spanwise.samplers.stops import TurnLimits


@dataclass(frozen=True, kw_only=True)
class Answer:
    """vLLM's answer to a request."""

    tokens: Sequence[int]
    logprobs: Sequence[Mapping[int, float]]
    """Of each position: the sampled token's at temperature 1, and as many of the most
    likely ones as were asked for."""

    finish_reason: str
    """``stop`` or ``length``; others are faults."""


class Turns:
    """Requests to vLLM's settings, and its answers to completions, for one model."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._limits = TurnLimits(model, tokenizer)

    def settings(self, request: Request) -> dict[str, Any]:
        """Arguments of vLLM's ``SamplingParams``, which are also fields of its HTTP requests."""
        how, vocab_size = request.sampling, self._limits.vocab_size
        return {
            "temperature": how.temperature,
            "top_p": how.top_p,
            "top_k": min(how.top_k, vocab_size),
            "seed": request.seed % (1 << 63),
            "max_tokens": self._limits.room(request),
            "stop": list(request.stop),
            "stop_token_ids": sorted(self._limits.end_tokens),
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
            "logprobs": num_logprobs(how, vocab_size),
        }

    def completion(self, request: Request, answer: Answer) -> Completion:
        """The turn up to the token that ends it."""
        tokens, finish = list(answer.tokens), answer.finish_reason
        if finish not in ("stop", "length") or not tokens:
            raise EngineError(f"vLLM ended a turn of {len(tokens)} tokens with {finish!r}")
        length, finish = self._ended(tokens, request, finish)
        tables = answer.logprobs[:length]
        logprobs = [table[t] for t, table in zip(tokens[:length], tables, strict=True)]
        drawn = [
            sampling_logprob(t, table, request.sampling)
            for t, table in zip(tokens[:length], tables, strict=True)
        ]
        if not all(map(math.isfinite, (*logprobs, *drawn))):
            raise EngineError("the model's logits are not finite")
        return Completion(
            tokens=tuple(tokens[:length]),
            engine_logprobs=tuple(logprobs),
            sampling_logprobs=tuple(drawn),
            finish=finish,
        )

    def _ended(
        self, tokens: Sequence[int], request: Request, reason: str
    ) -> tuple[int, Literal["stop", "eos", "length"]]:
        """How many tokens the turn has, and what ended it.

        vLLM hands over text as soon as its characters are whole, which may be a token late.
        """
        finder = self._limits.stops.finder(request.stop)
        for length in range(1, len(tokens) + 1):
            if tokens[length - 1] in self._limits.end_tokens:
                return length, "eos"
            if finder.completed(tokens[:length]):
                return length, "stop"
        return len(tokens), "stop" if reason == "stop" else "length"


def num_logprobs(sampling: Sampling, vocab_size: int) -> int:
    """How many log-probs a position needs for both kinds to be known; -1 is all.

    vLLM reports those of the model at temperature 1. Where nothing is cut off or tempered
    they are also those of the draw; else these follow from all that ``top_k`` keeps.

    Example:
      >>> num_logprobs(Sampling(), 100), num_logprobs(Sampling(temperature=0.7), 100)
      (0, -1)
      >>> num_logprobs(Sampling(temperature=0.7, top_k=20), 100)
      20
    """
    if sampling.temperature == 0 or _is_plain(sampling):
        return 0
    return sampling.top_k if 0 < sampling.top_k < vocab_size else -1


def sampling_logprob(token: int, logprobs: Mapping[int, float], sampling: Sampling) -> float:
    """Log-prob of a token under the distribution it was drawn from.

    With ``p`` the model's probabilities, this is ``p**(1/temperature)`` among the tokens
    that ``top_k`` and then ``top_p`` keep. The sampled token counts as kept: where rounding
    decides on the last one, vLLM has decided.
    ``logprobs`` are those at temperature 1 of the tokens that ``num_logprobs`` asks for. At
    temperature 0 the result is 0.

    Example:
      >>> import math
      >>> half = {3: math.log(0.5), 1: math.log(0.25), 2: math.log(0.25)}
      >>> round(math.exp(sampling_logprob(1, half, Sampling(temperature=0.5))), 4)
      0.1667
      >>> round(math.exp(sampling_logprob(3, half, Sampling(top_p=0.7))), 4)
      0.6667
    """
    if sampling.temperature == 0:
        return 0.0
    if _is_plain(sampling):
        return logprobs[token]
    ordered = sorted(logprobs.items(), key=lambda item: -item[1])[: sampling.top_k or None]
    largest = ordered[0][1]
    weights = {t: math.exp((x - largest) / sampling.temperature) for t, x in ordered}
    own = math.exp((logprobs[token] - largest) / sampling.temperature)
    enough, mass, kept = sampling.top_p * sum(weights.values()), 0.0, False
    for t, weight in weights.items():
        if mass >= enough:
            break
        mass += weight
        kept |= t == token
    return math.log(own / (mass if kept else mass + own))


def _is_plain(sampling: Sampling) -> bool:
    return sampling.temperature == 1 and sampling.top_p == 1 and sampling.top_k == 0
