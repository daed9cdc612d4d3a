"""A model of transformers run over packed rows: each token attends to its own path.

The model's classes and weights stay as they are. Its attention is replaced by one that does
what the model's own would do until it is handed a tree.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Embedding
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from spanwise.models.packing import Block, TokenTree

_PREFIX = "spanwise_tree_"


def hidden_states(trunk: Any, tokens: Tensor, lengths: Tensor, tree: TokenTree | None) -> Tensor:
    """The last hidden state of each token, rows or packed, flat.

    Args:
      trunk: A transformers model without its output layer.
      tokens: ``[N, T]`` int64, right-padded.
      lengths: ``[N]`` int64, tokens before the padding.
      tree: The same rows packed; None computes each row by itself.

    Returns:
      ``[N * T, D]``, or ``[P, D]`` with a tree.

    Raises:
      ValueError: if the model cannot attend along a tree (``why_not_packed``).
    """
    if tree is None:
        attention = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        output = trunk(input_ids=tokens, attention_mask=attention.long(), use_cache=False)
        return output.last_hidden_state.flatten(0, 1)
    _attend_along_trees(trunk)
    output = trunk(
        input_ids=tree.tokens[None],
        position_ids=tree.positions[None],
        # A mask of four axes is taken as ready made: no other is built.
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=tokens.device),
        use_cache=False,
        token_tree=tree,
    )
    return output.last_hidden_state[0]


def why_not_packed(model: Any) -> str | None:
    """Why a model cannot be trained on packed rows; None if nothing speaks against it.

    A model may still ignore the tree it is handed, which only its figures show.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    name = type(model).__name__
    if kinds != {"full_attention"}:
        return f"{name} has layers of another kind than full attention: {', '.join(sorted(kinds))}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return f"{name} attends within a sliding window"
    if "position_ids" not in inspect.signature(type(model.base_model).forward).parameters:
        return f"{name} cannot be told where in its row a token stands"
    if not getattr(model, "_supports_attention_backend", False):
        return f"{name} takes no other attention than its own"
    return None


@dataclass(frozen=True, kw_only=True)
class TrunkCost:
    """Cost of a forward and backward pass, to compare ways of laying out rows; no unit."""

    per_token: float
    per_pair: float
    """Cost of a token and one that it attends to."""

    @staticmethod
    def of(model: Any) -> TrunkCost:
        """The cost by a model's shape: a multiplication for each weight that is not looked up."""
        config = model.config.get_text_config()
        computing = [m for m in model.base_model.modules() if not isinstance(m, Embedding)]
        per_token = sum(p.numel() for m in computing for p in m.parameters(recurse=False))
        heads = getattr(config, "num_attention_heads", None)
        if not heads:  # a model of another kind, where no token looks at another
            return TrunkCost(per_token=per_token, per_pair=0.0)
        width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
        return TrunkCost(per_token=per_token, per_pair=2 * config.num_hidden_layers * width)

    def __call__(self, num_tokens: int, num_pairs: int) -> float:
        return self.per_token * num_tokens + self.per_pair * num_pairs


def tree_attention(
    query: Tensor, key: Tensor, value: Tensor, tree: TokenTree, *, scale: float, dropout: float
) -> Tensor:
    """Attention of each token of a forest to its path.

    ``query`` is ``[1, H, P, d]``; ``key`` and ``value`` are ``[1, G, P, d]``, where G divides H.

    Returns:
      ``[1, P, H, d]``.
    """
    if query.is_cuda and not dropout:
        return _flex_attention(query, key, value, tree, scale)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    parts = [_block_attention(q, k, v, block, scale, dropout) for block in tree.blocks]
    return torch.cat(parts).index_select(0, tree.order)[None]


def _block_attention(
    query: Tensor, key: Tensor, value: Tensor, block: Block, scale: float, dropout: float
) -> Tensor:
    """``[n * S, H, d]`` of the queries of one block; inputs are ``[P, heads, d]``."""
    queries = query.index_select(0, block.queries.flatten())
    keys = key.index_select(0, block.keys.flatten())
    values = value.index_select(0, block.keys.flatten())
    out = F.scaled_dot_product_attention(
        queries.unflatten(0, block.queries.shape).transpose(1, 2),
        keys.unflatten(0, block.keys.shape).transpose(1, 2),
        values.unflatten(0, block.keys.shape).transpose(1, 2),
        block.mask.to(query.dtype),
        dropout_p=dropout,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2).flatten(0, 1)


def _flex_attention(
    query: Tensor, key: Tensor, value: Tensor, tree: TokenTree, scale: float
) -> Tensor:
    """The same by PyTorch's block-sparse kernel."""
    grouped = query.shape[1] != key.shape[1]
    kernel = _compiled_flex_attention() if query.is_cuda else _flex_attention_function()
    out = kernel(query, key, value, block_mask=tree.block_mask, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2)


def _flex_attention_function() -> Callable[..., Tensor]:
    """Imported when it is used: it brings the compiler along."""
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention  # pyright: ignore[reportReturnType]


@cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    return torch.compile(_flex_attention_function(), dynamic=True)


def _attend_along_trees(trunk: Any) -> None:
    """Put the attention in place, once; without a tree it is the model's own.

    It stays: with gradient checkpointing, layers are run again in the backward pass.
    """
    own: str = trunk.config._attn_implementation
    if own.startswith(_PREFIX):
        return
    if (reason := why_not_packed(trunk)) is not None:
        raise ValueError(f"rows cannot be packed: {reason}")
    _register(own)
    for module in trunk.modules():
        if hasattr(module, "config") and hasattr(module.config, "_attn_implementation"):
            module.config._attn_implementation = _PREFIX + own


@cache
def _register(own: str) -> None:
    # The blocks differ from tree to tree: a compiled layer stops here and goes on after it.
    along_tree: Any = torch.compiler.disable(tree_attention)

    def attention(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        token_tree: TokenTree | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Any]:
        if token_tree is None:
            fallback = ALL_ATTENTION_FUNCTIONS.get_interface(own, _eager(module))
            return fallback(module, query, key, value, attention_mask, **kwargs)
        scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
        dropout = kwargs.get("dropout", 0.0)
        return along_tree(query, key, value, token_tree, scale=scale, dropout=dropout), None

    AttentionInterface.register(_PREFIX + own, attention)
    AttentionMaskInterface.register(_PREFIX + own, ALL_MASK_ATTENTION_FUNCTIONS[own])


def _eager(module: torch.nn.Module) -> Any:
    """The model's own attention, for where none is registered by name."""
    return getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
