"""A sampler that plays scripted turns: for tests, and to try out an environment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from spanwise.errors import SpanwiseError
from spanwise.models.tokenizer import Tokenizer
from spanwise.samplers.base import Completion, Request, Sampler
from spanwise.samplers.stops import decoded

Script = Callable[[str, Request], str | tuple[str, Sequence[float]]]
"""Maps the prompt's text and the request to the turn's text, with or without log-probs.

It may raise ``EngineError`` to play an engine that fails.
"""


class ScriptedSampler(Sampler):
    """Answers every request with the text that a function gives.

    The text is cut where a real engine would have stopped: at the token that completes a
    stop string (``stop``) or at ``max_tokens`` (``length``); else the turn ends with ``eos``.

    Args:
      script: Function that gives the turn; called once for each request.
      tokenizer: Decodes the prompt for the script and encodes its text.
      logprob: Log-prob of every token for which the script gives none.

    Raises:
      ValueError: from ``sample``, if the script gives log-probs for another number of tokens.

    Example:
      >>> class Letters:
      ...     def encode(self, text, **options): return [ord(c) for c in text]
      ...     def decode(self, ids, **options): return "".join(map(chr, ids))
      >>> sampler = ScriptedSampler(lambda prompt, request: prompt.upper() + ";?", Letters())
      >>> request = Request(prompt=(97, 98), seed=0, max_tokens=9, stop=(";",))
      >>> asyncio.run(sampler.sample(request)).tokens
      (65, 66, 59)
    """

    def __init__(self, script: Script, tokenizer: Tokenizer, *, logprob: float = -1.0) -> None:
        self.requests: list[Request] = []
        """Every request so far."""
        self._script = script
        self._tokenizer = tokenizer
        self._logprob = logprob

    async def sample(self, request: Request) -> Completion:
        self.requests.append(request)
        await asyncio.sleep(0)  # as an engine would, let the others have their turn
        written = self._script(decoded(self._tokenizer, request.prompt), request)
        text, given = (written, None) if isinstance(written, str) else written
        tokens = self._tokenizer.encode(text, add_special_tokens=False)
        logprobs = [self._logprob] * len(tokens) if given is None else list(given)
        if len(logprobs) != len(tokens):
            raise SpanwiseError(
                f"the script gave {len(logprobs)} logprobs for the {len(tokens)} tokens of {text!r}"
            )
        length = self._stopped_length(tokens, request.stop)
        finish = "eos" if length is None else "stop"
        length = len(tokens) if length is None else length
        if length > request.max_tokens:
            length, finish = request.max_tokens, "length"
        kept = tuple(logprobs[:length])
        return Completion(
            tokens=tuple(tokens[:length]),
            engine_logprobs=kept,
            sampling_logprobs=kept,
            finish=finish,
        )

    def update_weights(self, model: Any) -> None:
        """Nothing to do: the script is the model."""

    def _stopped_length(self, tokens: Sequence[int], stop: tuple[str, ...]) -> int | None:
        if stop:
            for length in range(1, len(tokens) + 1):
                text = decoded(self._tokenizer, tokens[:length])
                if any(s in text for s in stop):
                    return length
        return None
