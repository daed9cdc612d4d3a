"""How often a turn counts that stands in several branches of a tree.

A shared turn is trained once for every leaf below it by the official AT²PO objective.
That is one choice of four, and they are different objectives. With ``c`` branches
``i = 1..c`` through a turn, its tokens are weighted in the sum over samples by

    per leaf    1/|y_1| + ... + 1/|y_c|
    sqrt        (1/sqrt(c)) (1/|y_1| + ... + 1/|y_c|)
    mean        (1/c) (1/|y_1| + ... + 1/|y_c|)
    once        1/|y_1|, the first branch alone

TreeRL (arXiv 2506.11902) divides the advantage of a step by the square root of the number of
leaves below it, which is ``sqrt``: between a turn that counts as often as it is shared, and
one that counts once. (Its code divides the values, before it takes their differences.)
"""

from __future__ import annotations

import torch
from torch import Tensor


def weight_per_leaf(nodes: Tensor) -> Tensor:
    """A shared turn counts once for every branch through it.

    Args:
      nodes: ``[N, T]`` int64, the node of each token; -1 where the model sampled none.

    Returns:
      ``[N, T]`` float32, 1 on model tokens and 0 elsewhere.
    """
    return (nodes >= 0).float()


def weight_mean(nodes: Tensor) -> Tensor:
    """A shared turn counts once in all, shared equally among its branches.

    Args:
      nodes: ``[N, T]`` int64, the node of each token; -1 where the model sampled none.

    Returns:
      ``[N, T]`` float32, one over the number of branches through the token's turn.

    Example:
      >>> weight_mean(torch.tensor([[-1, 1, 2], [-1, 1, 3]])).tolist()
      [[0.0, 0.5, 1.0], [0.0, 0.5, 1.0]]
    """
    return torch.where(nodes >= 0, 1.0 / _num_branches(nodes), 0.0)


def weight_sqrt(nodes: Tensor) -> Tensor:
    """A shared turn counts the square root of the number of its branches, shared equally.

    Args:
      nodes: ``[N, T]`` int64, the node of each token; -1 where the model sampled none.

    Returns:
      ``[N, T]`` float32, one over the root of the number of branches through the token's turn.

    Example:
      >>> weight_sqrt(torch.tensor([[-1, 1, 2], [-1, 1, 3], [-1, 1, 4], [-1, 1, 5]]))[0].tolist()
      [0.0, 0.5, 1.0]

    References:
      Hou et al., TreeRL, arXiv:2506.11902.
    """
    return torch.where(nodes >= 0, _num_branches(nodes).rsqrt(), 0.0)


def weight_once(nodes: Tensor) -> Tensor:
    """A shared turn is trained in the first branch through it, and in no other.

    Args:
      nodes: ``[N, T]`` int64, the node of each token; -1 where the model sampled none.

    Returns:
      ``[N, T]`` float32, 1 in the first row that holds the token's turn, else 0.

    Example:
      >>> weight_once(torch.tensor([[-1, 1, 2], [-1, 1, 3]])).tolist()
      [[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]
    """
    rows, present = _rows_and_nodes(nodes)
    num_nodes = 1 + int(present.max()) if len(present) else 1
    first = torch.full((num_nodes,), len(nodes), device=nodes.device)
    first.scatter_reduce_(0, present, rows, "amin")
    here = torch.arange(len(nodes), device=nodes.device)[:, None]
    return ((nodes >= 0) & (first[nodes.clamp(min=0)] == here)).float()


def _num_branches(nodes: Tensor) -> Tensor:
    """``[N, T]`` float32, the number of rows that hold the token's turn; at least 1."""
    _, present = _rows_and_nodes(nodes)
    return torch.bincount(present, minlength=1)[nodes.clamp(min=0)].clamp(min=1).float()


def _rows_and_nodes(nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Each (row, node) that occurs, once: a turn is one run of tokens in its row."""
    before = torch.nn.functional.pad(nodes[:, :-1], (1, 0), value=-1)
    opens = (nodes >= 0) & (nodes != before)
    rows = torch.arange(len(nodes), device=nodes.device)[:, None].expand_as(nodes)
    return rows[opens], nodes[opens]
