"""Settings of the update, from a batch to optimizer steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spanwise.errors import SpanwiseError
from spanwise.learn.optimizer import check_betas


@dataclass(frozen=True, kw_only=True)
class Update:
    """The optimizer steps of AdamW on a batch of branches."""

    learning_rate: float = 1e-6
    """Learning rate of the policy, at its highest."""

    weight_decay: float = 0.0
    """Decoupled weight decay of the policy."""

    betas: tuple[float, float] = (0.9, 0.95)
    """Decay, from step to step, of the means that AdamW keeps of the gradient and its square."""

    epochs: int = 1
    """Passes over each batch."""

    prompts_per_minibatch: int = 8
    """Prompts of a minibatch, which is one optimizer step."""

    tokens_per_microbatch: int = 16384
    """Computed tokens of one forward and backward; changes memory and time, not the result."""

    packing: Literal["tree", "rows"] = "tree"
    """Layout of the rows; ``tree`` computes shared tokens once, where that is exact and faster."""

    max_gradient_norm: float = 1.0
    """Norm that a longer gradient is scaled down to; ``inf``: none is."""

    def __post_init__(self) -> None:
        if not self.learning_rate >= 0 or not self.weight_decay >= 0:
            raise SpanwiseError(
                "update.learning_rate and update.weight_decay must be at least 0, got "
                f"{self.learning_rate} and {self.weight_decay}"
            )
        check_betas(self.betas, "update.betas")
        for name in ("epochs", "prompts_per_minibatch", "tokens_per_microbatch"):
            if getattr(self, name) < 1:
                raise SpanwiseError(f"update.{name} must be at least 1, got {getattr(self, name)}")
        if not self.max_gradient_norm > 0:
            raise SpanwiseError(
                "update.max_gradient_norm must be above 0 (inf scales no gradient), got "
                f"{self.max_gradient_norm}"
            )
