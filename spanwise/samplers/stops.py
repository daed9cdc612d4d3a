"""The ends of turns: stop strings, matched on tokens as they come, end tokens and limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spanwise.errors import SpanwiseError
from spanwise.models.tokenizer import Tokenizer
from spanwise.samplers.base import EngineError, Request

_REPLACEMENT = "\ufffd"


class StopStrings:
    """Makes the finders of one tokenizer, each set of stop strings once."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._texts: list[str] | None = None
        self._finders: dict[tuple[str, ...], StopFinder] = {}

    def finder(self, stop: tuple[str, ...]) -> StopFinder:
        """The finder of these stop strings."""
        if stop not in self._finders:
            if stop and self._texts is None:
                self._texts = [decoded(self._tokenizer, [i]) for i in range(self._vocab_size)]
            self._finders[stop] = StopFinder(self._tokenizer, stop, self._texts or [])
        return self._finders[stop]


class TurnLimits:
    """The positions, end tokens and stop strings that end a turn of one model."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        config = model.config.get_text_config()
        self.vocab_size: int = config.vocab_size
        self._max_positions: int | None = getattr(config, "max_position_embeddings", None)
        self.end_tokens = end_tokens(model, tokenizer)
        self.stops = StopStrings(tokenizer, self.vocab_size)

    def room(self, request: Request) -> int:
        """Largest number of tokens to sample; an ``EngineError`` if there can be no such turn."""
        prompt, room = len(request.prompt), request.max_tokens
        if self._max_positions is not None:
            room = min(room, self._max_positions - prompt)
        if prompt == 0 or room < 1:
            raise EngineError(
                "a request needs a prompt and room for a token; "
                f"a prompt of {prompt} tokens leaves no room for max_tokens={request.max_tokens} "
                f"in a model of {self._max_positions} positions"
            )
        # One bad id would make the embedding fail for a whole batch.
        if not 0 <= min(request.prompt) <= max(request.prompt) < self.vocab_size:
            raise EngineError(f"the prompt has token ids outside [0, {self.vocab_size})")
        return room


class StopFinder:
    """Says whether the newest token of a turn completed a stop string.

    Decoding at every token would cost more than sampling it, so a table says which
    tokens can complete a string at all: those with its last character in their text, and
    those that end in the middle of a character. Only then is the end of the turn decoded.
    ``texts`` holds the text of every token id by itself.

    Example:
      >>> class Letters:
      ...     def encode(self, text, **options): return [ord(c) - 97 for c in text]
      ...     def decode(self, ids, **options): return "".join(chr(97 + i) for i in ids)
      >>> finder = StopStrings(Letters(), 26).finder(("bc",))
      >>> finder.completed([0, 1]), finder.completed([0, 1, 2]), finder.completed([2])
      (False, True, False)
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...], texts: Sequence[str]) -> None:
        if not all(stop):
            raise SpanwiseError(f"a stop string must not be empty, got {stop!r}")
        self._tokenizer = tokenizer
        self._stop = stop
        ends = {s[-1] for s in stop}
        # Tokenizers add and strip spaces between tokens: no table can tell where one appears.
        anywhere = any(c.isspace() for c in ends)
        self._may_complete = [
            anywhere or _REPLACEMENT in text or not ends.isdisjoint(text) for text in texts
        ]
        # A character is at most four tokens of one byte; the rest is slack for tokens without text.
        self._window = 4 * max(map(len, stop), default=0) + 8

    def completed(self, tokens: Sequence[int]) -> bool:
        """Whether ``tokens[-1]`` completed a stop string; earlier tokens did not."""
        if not self._stop or not self._may_complete[tokens[-1]]:
            return False
        text = decoded(self._tokenizer, tokens[-self._window :])
        return any(s in text for s in self._stop)


def decoded(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """The text of the tokens as they are: special tokens shown, spaces left alone."""
    return tokenizer.decode(
        list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """All tokens that end a turn: those that the model or its tokenizer names, and the template's.

    A base model with a chat template often names the end of a text alone, while its template
    ends a message with another token.
    """
    ends: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config, tokenizer):
        ids = getattr(source, "eos_token_id", None)
        ends |= {ids} if isinstance(ids, int) else set(ids or ())
    return frozenset(ends | _template_end(tokenizer))


def _template_end(tokenizer: Any) -> set[int]:
    """The special token that the chat template puts behind what an assistant says, if any."""
    if not getattr(tokenizer, "chat_template", None):
        return set()
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _SAID}]
    try:
        _, said, behind = tokenizer.apply_chat_template(chat, tokenize=False).rpartition(_SAID)
    except Exception:  # a template may raise anything; whoever needs it says so
        return set()
    first = tokenizer.encode(behind.lstrip(), add_special_tokens=False)[:1] if said else []
    return set(first) & set(getattr(tokenizer, "all_special_ids", ()))


_SAID = "It is so."
