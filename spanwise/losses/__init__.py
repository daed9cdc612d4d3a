"""Log-probs, advantages and spans to losses: pure functions of torch tensors.

Losses come per token, 0 where masked; ``aggregate`` turns them into one number.
"""

from spanwise.losses.aggregate import mean_by_constant, mean_by_sample, mean_by_token
from spanwise.losses.importance import importance_ratio, importance_weights, within_bound
from spanwise.losses.kl import kl_k1, kl_k2, kl_k3
from spanwise.losses.ratio import Ratio, span_ratio, token_gradient_ratio
from spanwise.losses.surrogate import Clip, clip_fault, clipped_surrogate
from spanwise.losses.value import value_loss
from spanwise.losses.weights import weight_mean, weight_once, weight_per_leaf, weight_sqrt

__all__ = [
    "Clip",
    "Ratio",
    "clip_fault",
    "clipped_surrogate",
    "importance_ratio",
    "importance_weights",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "mean_by_constant",
    "mean_by_sample",
    "mean_by_token",
    "span_ratio",
    "token_gradient_ratio",
    "value_loss",
    "weight_mean",
    "weight_once",
    "weight_per_leaf",
    "weight_sqrt",
    "within_bound",
]
