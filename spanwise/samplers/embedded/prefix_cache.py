"""Keys and values of sequences that may be continued, shared by what they have in common.

Like the tree of turns, the cache is a tree of segments: an entry holds only the tokens that it
adds to its parent. A sibling finds the prompt there, a next turn finds everything before
its observation, and two questions find the instructions that they share.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(eq=False)
class _Segment:
    tokens: tuple[int, ...]
    kv: Tensor | None
    """``[layers, 2, kv_heads, len(tokens), head_dim]``; None at the root alone."""

    parent: _Segment | None
    children: dict[int, _Segment] = field(default_factory=dict)
    """Children by their first token."""

    used: int = 0


@dataclass(frozen=True, kw_only=True)
class Match:
    """The longest known prefix of a sequence."""

    length: int
    """Number of tokens."""

    parts: tuple[Tensor, ...]
    """Keys and values, ``[layers, 2, kv_heads, n, head_dim]``; the ``n`` sum to ``length``."""


class PrefixCache:
    """A tree of segments, looked up by token ids and bounded by ``max_tokens``, which may be 0.

    Tokens are compared one by one, so a hit is never a mere collision of hashes. Past the
    bound the ends that were not used for longest go first, down to 7/8 of the bound.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._root = _Segment(tokens=(), kv=None, parent=None)
        self._clock = 0
        self.num_tokens = 0

    def match(self, tokens: Sequence[int]) -> Match:
        """Find the longest known prefix of ``tokens``."""
        path, _ = self._walk(tuple(tokens))
        parts = tuple(segment.kv[..., :n, :] for segment, n in path if segment.kv is not None)
        return Match(length=sum(n for _, n in path), parts=parts)

    def insert(self, tokens: Sequence[int], take: Callable[[int, int], Tensor]) -> None:
        """Keep a sequence; of what is new, ``take(start, stop)`` gives keys and values.

        They are a tensor of its own, ``[layers, 2, kv_heads, stop - start, head_dim]``.
        """
        tokens = tuple(tokens)
        if len(tokens) > self._max_tokens:
            return
        path, node = self._walk(tokens)
        start = sum(n for _, n in path)
        if start == len(tokens):
            return
        if path and path[-1][1] < len(node.tokens):
            node = self._split(node, path[-1][1])
        new = _Segment(
            tokens=tokens[start:], kv=take(start, len(tokens)), parent=node, used=self._clock
        )
        node.children[tokens[start]] = new
        self.num_tokens += len(new.tokens)
        if self.num_tokens > self._max_tokens:
            self._evict()

    def _walk(self, tokens: tuple[int, ...]) -> tuple[list[tuple[_Segment, int]], _Segment]:
        """The segments along ``tokens`` with the number of tokens shared, and the last one."""
        self._clock += 1
        path: list[tuple[_Segment, int]] = []
        node, position = self._root, 0
        while position < len(tokens) and (child := node.children.get(tokens[position])):
            n = _common(child.tokens, tokens[position : position + len(child.tokens)])
            child.used = self._clock
            path.append((child, n))
            node, position = child, position + n
            if n < len(child.tokens):
                break
        return path, node

    def _split(self, node: _Segment, n: int) -> _Segment:
        """Cut a segment after ``n`` tokens; returns the new upper half."""
        assert node.parent is not None and node.kv is not None
        upper = _Segment(
            tokens=node.tokens[:n],
            # Copies, so that evicting one half gives its memory back.
            kv=node.kv[..., :n, :].clone(),
            parent=node.parent,
            children={node.tokens[n]: node},
            used=node.used,
        )
        node.parent.children[node.tokens[0]] = upper
        node.tokens, node.kv, node.parent = node.tokens[n:], node.kv[..., n:, :].clone(), upper
        return upper

    def _evict(self) -> None:
        segments, stack = [], [self._root]
        while stack:
            children = stack.pop().children.values()
            segments.extend(children)
            stack.extend(children)
        # The id breaks ties: segments themselves have no order.
        leaves = [(s.used, id(s), s) for s in segments if not s.children]
        heapq.heapify(leaves)
        while leaves and self.num_tokens > self._max_tokens * 7 // 8:
            _, _, leaf = heapq.heappop(leaves)
            parent = leaf.parent
            assert parent is not None
            del parent.children[leaf.tokens[0]]
            self.num_tokens -= len(leaf.tokens)
            if not parent.children and parent.parent is not None:
                heapq.heappush(leaves, (parent.used, id(parent), parent))


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """How many tokens two sequences begin with in common."""
    if a == b:
        return len(a)
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
