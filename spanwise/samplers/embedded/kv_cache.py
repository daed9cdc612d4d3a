"""Keys and values of the rows in flight, and attention over them, the same bits in any batch.

One step of the engine runs a flat list of tokens ("entries"), whatever rows they belong to:

    [ one entry for each slot 0 .. decode_rows-1 | chunk of a prompt | chunk | ... | padding ]

Row ``i`` lives in slot ``i``; its keys stand at positions 0, 1, ... from the left. Shape
letters: R slots, H query heads, K key-value heads, G = H / K, L positions, D head size, N entries.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel

_ATTENTION = "spanwise_slots"

ROWS = 16
"""Matrix products are run on multiples of this many rows: their sums then have the same
order whatever the batch. 1, 2, 3, 5, 7 and 9 rows were seen to differ in the last bits."""

_POSITIONS = 64
"""Slots grow by multiples of this many positions."""

_KEYS = 32
"""Attention looks at multiples of this many keys; those past a row's end are masked and add 0."""


def rounded_up(n: int, multiple: int) -> int:
    """``n`` or the next multiple above it."""
    return -(-n // multiple) * multiple


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Shape of a model's keys and values."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device


class Slots:
    """Preallocated keys and values, one slot for each row in flight.

    ``kv`` is ``[layers, 2, R, K, L, D]``. It holds zeros where nothing was written: a
    masked key has weight 0, and 0 times an uninitialised number may be NaN. R * L is at most
    ``max_tokens``.
    """

    def __init__(self, shape: Shape, max_tokens: int) -> None:
        self.shape = shape
        self.max_tokens = max_tokens
        self.kv = self._zeros(0, 0)

    def fits(self, num_rows: int, length: int) -> bool:
        """Whether this many rows of this many positions stay within the bound."""
        return rounded_up(num_rows, ROWS) * rounded_up(length, _POSITIONS) <= self.max_tokens

    def reserve(self, num_rows: int, length: int) -> None:
        """Make room; what is stored stays."""
        rows, length = rounded_up(num_rows, ROWS), rounded_up(length, _POSITIONS)
        old_rows, old_length = self.kv.shape[2], self.kv.shape[4]
        if rows <= old_rows and length <= old_length:
            return
        if rows > old_rows and 2 * old_rows * max(length, old_length) <= self.max_tokens:
            rows = max(
                rows, 2 * old_rows
            )  # rows come one at a time; copying each time would not do
        if max(rows, old_rows) * max(length, old_length) <= self.max_tokens:
            rows, length = max(rows, old_rows), max(length, old_length)
        grown = self._zeros(rows, length)
        r, n = min(rows, old_rows), min(length, old_length)
        grown[:, :, :r, :, :n] = self.kv[:, :, :r, :, :n]
        self.kv = grown

    def put(self, slot: int, start: int, segment: Tensor) -> None:
        """Write ``[layers, 2, K, n, D]`` at positions ``start`` to ``start + n``."""
        self.kv[:, :, slot, :, start : start + segment.shape[3]] = segment

    def take(self, slot: int, start: int, stop: int) -> Tensor:
        """A copy of positions ``[start, stop)``, ``[layers, 2, K, stop - start, D]``."""
        return self.kv[:, :, slot, :, start:stop].clone()

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` positions from slot to slot."""
        self.kv[:, :, target, :, :length] = self.kv[:, :, source, :, :length]

    def wipe(self, slot: int) -> None:
        """Zero a slot that may hold NaN."""
        self.kv[:, :, slot].zero_()

    def _zeros(self, rows: int, length: int) -> Tensor:
        s = self.shape
        size = (s.layers, 2, rows, s.kv_heads, length, s.head_dim)
        return torch.zeros(size, dtype=s.dtype, device=s.device)


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Entries ``[start, stop)`` are positions ``first, first + 1, ...`` of one slot."""

    start: int
    stop: int
    slot: int
    first: int


class Step:
    """Where the entries of one step write their keys, and which keys they see.

    Args:
      slots: Holds the keys and values.
      positions: Of the token that each of the first slots feeds; None for a slot that feeds
        none here. Its length is the number of rows in flight, or 0 if none feeds one token.
      chunks: Of prompts, in the order of their entries.
    """

    def __init__(
        self, slots: Slots, positions: Sequence[int | None], chunks: Sequence[Chunk]
    ) -> None:
        self.slots = slots
        self.decode_rows = rounded_up(len(positions), ROWS)
        self.num_entries = rounded_up(chunks[-1].stop if chunks else self.decode_rows, ROWS)
        device = slots.shape.device
        fed = [(slot, p) for slot, p in enumerate(positions) if p is not None]
        where = torch.tensor(fed, dtype=torch.long, device=device).reshape(-1, 2)
        self._slots, self._positions = where.unbind(1)
        # A slot that feeds nothing sees one key: its output is not used, but must not be NaN.
        ends = [1 if p is None else p + 1 for p in positions]
        ends += [1] * (self.decode_rows - len(ends))
        self._mask = _mask(torch.tensor(ends, device=device), max(ends, default=1), slots.shape)
        self._chunks: list[tuple[Chunk, Tensor]] = []
        self.positions = torch.zeros(self.num_entries, dtype=torch.long, device=device)
        """Position of every entry; 0 for padding and idle slots."""
        self.positions[self._slots] = self._positions
        for chunk in chunks:
            last = chunk.first + chunk.stop - chunk.start
            at = torch.arange(chunk.first, last, device=device)
            self.positions[chunk.start : chunk.stop] = at
            self._chunks.append((chunk, _mask(at + 1, last, slots.shape)))

    def attention(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float
    ) -> Tensor:
        """Write the entries' keys and values, then let every entry look at its row.

        ``query`` is ``[N, K, G, D]``, ``key`` and ``value`` are ``[N, K, D]``.

        Returns:
          ``[N, K, G, D]``; padding entries are finite and mean nothing.
        """
        keys, values = self.slots.kv[layer]
        parts: list[Tensor] = []
        if self.decode_rows:
            at = (self._slots, slice(None), self._positions)
            keys[at], values[at] = key[self._slots], value[self._slots]
            rows, n = slice(self.decode_rows), self._mask.shape[-1]
            parts.append(
                _attend(query[rows], keys[rows, :, :n], values[rows, :, :n], self._mask, scale)
            )
        for chunk, mask in self._chunks:
            entries, n = slice(chunk.start, chunk.stop), mask.shape[-1]
            positions = slice(chunk.first, chunk.first + chunk.stop - chunk.start)
            keys[chunk.slot, :, positions] = key[entries].transpose(0, 1)
            values[chunk.slot, :, positions] = value[entries].transpose(0, 1)
            row = slice(chunk.slot, chunk.slot + 1)
            attend = _attend_by_token if query.device.type == "cpu" else _attend_by_block
            parts.append(attend(query[entries], keys[row, :, :n], values[row, :, :n], mask, scale))
        padding = self.num_entries - sum(map(len, parts))
        if padding:
            parts.append(query.new_zeros(padding, *query.shape[1:]))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def slot_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    step: Step,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_options: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it, over the slots instead of ``key`` and ``value``.

    ``query`` is ``[1, H, N, D]``; ``key`` and ``value`` are ``[1, K, N, D]``, those of this step's
    entries. The mask is not used: ``step`` has its own.

    Returns:
      ``[1, N, H, D]``, and None for the weights.

    Raises:
      NotImplementedError: if the model's attention is not plain causal attention.
    """
    if sliding_window is not None or softcap is not None or s_aux is not None:
        raise NotImplementedError(
            "the transformers engine samples from models with plain causal attention; this one "
            "uses a sliding window, capped scores or attention sinks"
        )
    _, heads, entries, dim = query.shape
    kv_heads = key.shape[1]
    grouped = query[0].transpose(0, 1).reshape(entries, kv_heads, heads // kv_heads, dim)
    layer: Any = module.layer_idx
    scale = dim**-0.5 if scaling is None else scaling
    out = step.attention(layer, grouped, key[0].transpose(0, 1), value[0].transpose(0, 1), scale)
    return out.reshape(1, entries, heads, dim), None


AttentionInterface.register(_ATTENTION, slot_attention)


def with_slot_attention(model: Any) -> Any:
    """A copy of the model that shares all its tensors and attends over slots.

    A copy, so that the attention and the training mode of the model itself stay as they are.

    Raises:
      ValueError: if the model has layers of another kind than full attention.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ValueError(
            "the transformers engine samples from models with full attention in every layer; this "
            f"one has {', '.join(sorted(kinds))}"
        )
    shared: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared).eval()
    for module in twin.modules():
        if isinstance(module, PreTrainedModel):
            module.config._attn_implementation = _ATTENTION
    return twin


def kv_shape(model: Any) -> Shape:
    """The shape of the model's keys and values."""
    config = model.config.get_text_config()
    heads: int = config.num_attention_heads
    weight = model.get_input_embeddings().weight
    return Shape(
        layers=config.num_hidden_layers,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        dtype=weight.dtype,
        device=weight.device,
    )


def _mask(seen: Tensor, most: int, shape: Shape) -> Tensor:
    """``[N, 1, 1, L]``: 0 on the first ``seen[i]`` keys of entry ``i``, minus infinity after."""
    hidden = torch.arange(rounded_up(most, _KEYS), device=shape.device) >= seen[:, None]
    mask = torch.zeros(hidden.shape, dtype=shape.dtype, device=shape.device)
    return mask.masked_fill_(hidden, -torch.inf)[:, None, None]


def _attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Attention of ``[N, K, G, D]`` queries over ``[N, K, L, D]`` keys, one row each.

    The G query heads that share keys stand where a sequence usually does, so no key is
    repeated. On a CPU they go two at a time: only then were the sums found to be the same bits
    for every L, number of rows and number of threads (with one, the kernel's scratch memory
    is aligned differently in each thread; with four or more, the sum over keys is split
    by L).
    """
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, keys, values, mask, scale=scale)
    groups = query.shape[2]
    if groups % 2:
        query = F.pad(query, (0, 0, 0, 1))
    parts = [
        F.scaled_dot_product_attention(query[:, :, g : g + 2], keys, values, mask, scale=scale)
        for g in range(0, groups, 2)
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, 2))[:, :, :groups]


def _attend_by_token(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float
) -> Tensor:
    """A chunk as rows of one token over the same keys: the bits of decoding it step by step."""
    n = len(query)
    return _attend(query, keys.expand(n, -1, -1, -1), values.expand(n, -1, -1, -1), mask, scale)


def _attend_by_block(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float
) -> Tensor:
    """A chunk as one block of queries: fast where there are many cores, other last bits."""
    n, kv_heads, groups, dim = query.shape
    block = query.permute(1, 0, 2, 3).reshape(1, kv_heads, n * groups, dim)
    block_mask = mask[:, 0].expand(n, groups, -1).reshape(1, 1, n * groups, -1)
    out = F.scaled_dot_product_attention(block, keys, values, block_mask, scale=scale)
    return out.reshape(kv_heads, n, groups, dim).transpose(0, 1)
