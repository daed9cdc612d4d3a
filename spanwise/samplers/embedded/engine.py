"""The embedded engine: continuous batching over a causal language model of transformers.

Requests share one batch. A request joins at the next step and leaves when it is done;
none waits for the batch to drain. Prompts run only where no earlier sequence covers them.
On a CPU in float32 a request's tokens and log-probs are the same bits whatever else is
in flight and whatever the prefix cache holds; those of a mixture of experts are not, for the
grouped matrix products of transformers round by what else is in the batch.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from spanwise.errors import SpanwiseError
from spanwise.samplers.base import Completion, Engine, EngineError, Request, Sampler
from spanwise.samplers.embedded.drawing import draw_tokens, uniforms
from spanwise.samplers.embedded.kv_cache import (
    ROWS,
    Chunk,
    Slots,
    Step,
    kv_shape,
    rounded_up,
    with_slot_attention,
)
from spanwise.samplers.embedded.prefix_cache import PrefixCache
from spanwise.samplers.stops import StopFinder, TurnLimits

_STEP_PROMPT_TOKENS = 2048
"""Prompt tokens run in one step at most: bounds memory, and keeps other rows moving."""

_WORTH_WAITING = 16
"""A request waits for another in flight that computes this many tokens which it needs too."""


@dataclass(frozen=True, kw_only=True)
class TransformersEngine(Engine):
    """Samples in process, from the very weights that are trained."""

    max_rows: int = 128
    """Largest number of requests in the batch; more wait their turn."""

    max_slot_tokens: int = 262_144
    """Largest batch in tokens: rows (in sixteens) times the longest row's prompt and answer."""

    max_prefix_tokens: int = 131_072
    """Largest number of tokens kept of prompts and turns that may be continued; 0 keeps none."""

    def __post_init__(self) -> None:
        if self.max_rows < 1 or self.max_slot_tokens < 1 or self.max_prefix_tokens < 0:
            raise SpanwiseError(
                "the engine needs max_rows >= 1, max_slot_tokens >= 1 and max_prefix_tokens >= 0, "
                f"got {self}"
            )

    def build(self, model: Any, tokenizer: Any) -> TransformersSampler:
        return TransformersSampler(self, model, tokenizer)


@dataclass(eq=False, kw_only=True)
class _Row:
    """A request that is being answered."""

    request: Request
    future: asyncio.Future[Completion]
    limit: int
    """Largest number of tokens to sample."""

    finder: StopFinder
    uniforms: np.ndarray
    tokens: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    sampling_logprobs: list[float] = field(default_factory=list[float])
    slot: int = -1
    """Place in the batch."""

    fed: int = 0
    """Number of tokens, of prompt and answer, whose keys and values are in the slot."""

    computes: tuple[int, ...] = ()
    """The beginning of the prompt up to some tokens past what was cached."""

    @property
    def pending(self) -> int:
        """Tokens to feed before the next can be sampled."""
        return len(self.request.prompt) + len(self.tokens) - self.fed

    @property
    def newest(self) -> int:
        return self.tokens[-1] if self.tokens else self.request.prompt[-1]

    @property
    def capacity(self) -> int:
        return len(self.request.prompt) + self.limit

    @property
    def abandoned(self) -> bool:
        """Nobody awaits it: it was cancelled, or its event loop has ended."""
        return self.future.done() or self.future.get_loop().is_closed()


class TransformersSampler(Sampler):
    """Continuous batching in the event loop of the caller, between its other tasks.

    The model's weights are shared and left alone; call ``update_weights`` after changing them.
    Besides stop strings, a turn ends with the end-of-sequence tokens of tokenizer and model.

    Raises:
      ValueError: if the model has layers of another kind than full attention.
    """

    def __init__(self, engine: TransformersEngine, model: Any, tokenizer: Any) -> None:
        self.prefilled_tokens = 0
        """Prompt tokens that ran through the model."""
        self.cached_tokens = 0
        """Prompt tokens that the prefix cache saved."""
        self.sampled_tokens = 0
        self.num_steps = 0
        self._engine = engine
        self._rows: list[_Row] = []
        self._waiting: deque[_Row] = deque()
        self._task: asyncio.Task[None] | None = None
        self._prefixes = PrefixCache(engine.max_prefix_tokens)
        self._limits = TurnLimits(model, tokenizer)
        self._model = with_slot_attention(model)
        self._slots = Slots(kv_shape(model), engine.max_slot_tokens)

    def update_weights(self, model: Any) -> None:
        """Sample from ``model`` as it is now, an architecture like the one before.

        Raises:
          RuntimeError: if requests are under way.
        """
        self._drop([row for row in self._rows if row.abandoned])
        self._waiting = deque(row for row in self._waiting if not row.abandoned)
        if self._rows or self._waiting:
            raise RuntimeError(
                f"{len(self._rows) + len(self._waiting)} requests are under way; "
                "update the weights once they are done"
            )
        self._prefixes.clear()
        self._model = with_slot_attention(model)
        if (shape := kv_shape(model)) != self._slots.shape:
            self._slots = Slots(shape, self._engine.max_slot_tokens)

    def close(self) -> None:
        for row in (*self._rows, *self._waiting):
            if not row.abandoned:
                row.future.set_exception(EngineError("the sampler was closed"))
        self._rows.clear()
        self._waiting.clear()
        self._prefixes.clear()
        self._slots = Slots(self._slots.shape, self._engine.max_slot_tokens)

    async def sample(self, request: Request) -> Completion:
        row = self._row(request)
        self._waiting.append(row)
        self._wake()
        return await row.future

    def _row(self, request: Request) -> _Row:
        """A row for the request, or the error that says why there can be none."""
        prompt, room = len(request.prompt), self._limits.room(request)
        if not self._slots.fits(1, prompt + room):
            raise EngineError(
                f"a prompt of {prompt} tokens and up to {room} sampled ones is too long for "
                f"max_slot_tokens={self._engine.max_slot_tokens}, which must hold {ROWS} such "
                "rows; raise it or lower max_tokens"
            )
        return _Row(
            request=request,
            future=asyncio.get_running_loop().create_future(),
            limit=room,
            finder=self._limits.stops.finder(request.stop),
            uniforms=uniforms(request.seed, room),
        )

    def _wake(self) -> None:
        """Have the batch run in the caller's event loop."""
        loop = asyncio.get_running_loop()
        if self._task is not None and not self._task.done():
            if self._task.get_loop() is loop:
                return
            if self._task.get_loop().is_running():
                raise RuntimeError("a sampler serves one event loop at a time")
        self._task = loop.create_task(self._run())

    async def _run(self) -> None:
        while self._waiting or self._rows:
            try:
                with torch.inference_mode():
                    self._step()
            except Exception as error:
                self._fail(error)
            await asyncio.sleep(0)  # arrivals join, and those who got a turn go on

    def _step(self) -> None:
        """Run every row's pending tokens, prompts in chunks, and draw where none is left."""
        self._drop([row for row in self._rows if row.abandoned])
        self._admit()
        if not self._rows:
            return
        logits, ready = self._forward()
        self.num_steps += 1
        if not ready:
            return
        draws = draw_tokens(
            logits,
            [row.uniforms[len(row.tokens)] for row in ready],
            [row.request.sampling for row in ready],
        )
        drawn = zip(ready, draws.tokens, draws.logprobs, draws.sampling_logprobs, strict=True)
        self._drop([row for row, t, lp, drawn_lp in drawn if self._is_done(row, t, lp, drawn_lp)])

    def _admit(self) -> None:
        """Move requests into free slots, with the keys of the longest prefix that is known.

        Of several that would compute the same tokens, siblings above all, the first goes
        ahead; the others wait for it and find its keys in the cache.
        """
        computing = {row.computes for row in self._rows if row.pending > 1}
        longest = max((row.capacity for row in self._rows), default=0)
        held: list[_Row] = []
        while self._waiting and len(self._rows) < self._engine.max_rows:
            row = self._waiting[0]
            prompt = row.request.prompt
            if not self._slots.fits(len(self._rows) + 1, max(longest, row.capacity)):
                break
            self._waiting.popleft()
            if row.abandoned:
                continue
            match = self._prefixes.match(prompt[:-1])  # one token must run, to draw from
            row.computes = prompt[: match.length + _WORTH_WAITING]
            if len(prompt) - match.length > 1:
                if row.computes in computing and len(prompt) <= self._engine.max_prefix_tokens:
                    held.append(row)
                    continue
                computing.add(row.computes)
            longest = max(longest, row.capacity)
            row.slot = len(self._rows)
            self._rows.append(row)
            self._slots.reserve(len(self._rows), longest)
            for part in match.parts:
                self._slots.put(row.slot, row.fed, part)
                row.fed += part.shape[3]
            self.cached_tokens += match.length
        self._waiting.extendleft(reversed(held))

    def _forward(self) -> tuple[Tensor, list[_Row]]:
        """Feed pending tokens; returns the logits of the rows that can draw, and those rows."""
        ready = [row for row in self._rows if row.pending == 1]
        fed = [(row, 1) for row in ready]
        entries = [row.slot for row in ready]  # of the tokens whose logits are needed
        tokens: list[int] = []
        positions: list[int | None] = []
        if ready:
            tokens = [row.newest if row.pending == 1 else 0 for row in self._rows]
            tokens = _padded(tokens, rounded_up(len(tokens), ROWS))
            positions = [row.fed if row.pending == 1 else None for row in self._rows]

        chunks: list[Chunk] = []
        budget = _STEP_PROMPT_TOKENS
        for row in self._rows:
            if row.pending > 1 and budget:
                n = min(row.pending, budget)
                budget -= n
                start = len(tokens)
                chunks.append(Chunk(start=start, stop=start + n, slot=row.slot, first=row.fed))
                tokens += row.request.prompt[row.fed : row.fed + n]
                fed.append((row, n))
                if n == row.pending:
                    ready.append(row)
                    entries.append(len(tokens) - 1)

        step = Step(self._slots, positions, chunks)
        entries = _padded(entries, rounded_up(max(len(entries), 1), ROWS))
        logits = self._logits(step, _padded(tokens, step.num_entries), entries)
        for row, n in fed:
            row.fed += n
            if not row.tokens:
                self.prefilled_tokens += n
        return logits[: len(ready)], ready

    def _logits(self, step: Step, tokens: list[int], entries: list[int]) -> Tensor:
        device = self._slots.shape.device
        return self._model(
            input_ids=torch.tensor([tokens], device=device),
            position_ids=step.positions[None],
            # A mask of four dimensions is passed on as it is; the step has the real one.
            attention_mask=torch.zeros(1, 1, 1, 1, device=device),
            logits_to_keep=torch.tensor(entries, device=device),
            use_cache=False,
            step=step,
        ).logits[0]

    def _is_done(self, row: _Row, token: int, logprob: float, sampling_logprob: float) -> bool:
        """Add a drawn token to its row, and answer the request if that was the last."""
        if not (math.isfinite(logprob) and math.isfinite(sampling_logprob)):
            self._slots.wipe(row.slot)
            row.future.set_exception(EngineError("the model's logits are not finite"))
            return True
        if not row.tokens:
            self._keep(row, row.request.prompt)
        row.tokens.append(token)
        row.logprobs.append(logprob)
        row.sampling_logprobs.append(sampling_logprob)
        self.sampled_tokens += 1
        finish: Literal["stop", "eos", "length"]
        if token in self._limits.end_tokens:
            finish = "eos"
        elif row.finder.completed(row.tokens):
            finish = "stop"
        elif len(row.tokens) == row.limit:
            finish = "length"
        else:
            return False
        self._keep(row, (*row.request.prompt, *row.tokens[:-1]))  # the last was never fed
        row.future.set_result(
            Completion(
                tokens=tuple(row.tokens),
                engine_logprobs=tuple(row.logprobs),
                sampling_logprobs=tuple(row.sampling_logprobs),
                finish=finish,
            )
        )
        return True

    def _keep(self, row: _Row, tokens: tuple[int, ...]) -> None:
        self._prefixes.insert(tokens, lambda a, b: self._slots.take(row.slot, a, b))

    def _drop(self, rows: Sequence[_Row]) -> None:
        """Free the slots of rows; the last rows move into the gaps."""
        for row in sorted(rows, key=lambda row: row.slot, reverse=True):
            last = self._rows.pop()
            if last is not row:
                self._slots.move(last.slot, row.slot, last.fed)
                self._rows[row.slot] = last
                last.slot = row.slot

    def _fail(self, error: Exception) -> None:
        """Answer every row in flight with the error."""
        for row in self._rows:
            if not row.abandoned:
                failure = EngineError(f"the model failed on a batch with this request: {error!r}")
                failure.__cause__ = error
                row.future.set_exception(failure)
        self._rows.clear()
        # The slots may hold what a broken step left there.
        self._slots = Slots(self._slots.shape, self._engine.max_slot_tokens)


def _padded(values: list[int], length: int) -> list[int]:
    return values + [0] * (length - len(values))
