"""Rewards, values and spans to credit: pure functions of torch tensors.

``recurrence`` bootstraps from a critic at span boundaries, ``group`` compares the rows
of one prompt, ``tree`` gives every turn of a search tree its own credit.
"""

from spanwise.advantages.explained_variance import explained_variance
from spanwise.advantages.group import (
    batch_scaled_advantages,
    centred_advantages,
    global_advantages,
    group_advantages,
    leave_one_out_advantages,
    length_weighted_advantages,
    to_tokens,
    whiten,
)
from spanwise.advantages.recurrence import length_adaptive_lambda, span_advantages, span_returns
from spanwise.advantages.tree import (
    child_entropy_values,
    child_mean_values,
    child_softmax_values,
    gather_nodes,
    leaf_mean_values,
    node_value,
    normalised_returns,
    over_both,
    over_parent,
    over_root,
)
from spanwise.advantages.tree_arrays import leaf_counts, paid_before

__all__ = [
    "batch_scaled_advantages",
    "centred_advantages",
    "child_entropy_values",
    "child_mean_values",
    "child_softmax_values",
    "explained_variance",
    "gather_nodes",
    "global_advantages",
    "group_advantages",
    "leaf_counts",
    "leaf_mean_values",
    "leave_one_out_advantages",
    "length_adaptive_lambda",
    "length_weighted_advantages",
    "node_value",
    "normalised_returns",
    "over_both",
    "over_parent",
    "over_root",
    "paid_before",
    "span_advantages",
    "span_returns",
    "to_tokens",
    "whiten",
]
