"""Low-rank adapters (LoRA) through peft: few weights are trained, the model's own stay.

The adapter is put into the model itself, which stays a plain model of transformers:
scoring, the critic and the sampler need not know of it.

References:
  Hu et al., `LoRA <https://arxiv.org/abs/2106.09685>`_, 2021.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from spanwise.errors import SpanwiseError

M = TypeVar("M", bound=torch.nn.Module)

ADAPTER_CONFIG = "adapter_config.json"
"""Name of the file that a folder with an adapter has in place of ``config.json``."""


@dataclass(frozen=True, kw_only=True)
class LoRA:
    r"""An adapter of low rank on linear layers, in place of training all weights.

        y = W x + alpha / rank * B A x        A [rank, in], B [out, rank]

    ``A`` is drawn from a fixed seed and ``B`` is 0: the model starts as it was. Needs the
    extra ``lora``.
    """

    rank: int = 0
    """0: no adapter, all weights are trained."""

    alpha: int = 32
    """The adapter counts ``alpha / rank`` times."""

    targets: tuple[str, ...] = ()
    """Names of linear layers, such as ``q_proj``; none named: all below the output layer."""

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha < 1:
            raise SpanwiseError(
                f"lora needs rank >= 0 and alpha >= 1, got {self.rank} and {self.alpha}"
            )


def add_adapter(model: Any, lora: LoRA) -> None:
    """Put a new adapter into the model; from then on its weights alone are trained.

    They are float32, whatever the precision of the model.

    Raises:
      ValueError: if peft is missing, or ``targets`` names no linear layer of the model.
    """
    require_peft()
    from peft import LoraConfig

    linear = linear_layers(model)
    if unknown := sorted(set(lora.targets) - set(linear)):
        raise SpanwiseError(
            f"lora.targets names {', '.join(unknown)}; the linear layers of this model are "
            f"{', '.join(linear)}"
        )
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=list(lora.targets or linear),
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.add_adapter(settings)
    # peft keeps them as a set, whose order would differ from one saved file to the next
    settings.target_modules = sorted(lora.targets or linear)  # pyright: ignore[reportAttributeAccessIssue]
    _in_float32(model)


def load_adapter(model: Any, folder: Path) -> None:
    """Put a saved adapter into the model it was made for, to be trained further.

    Raises:
      ValueError: if peft is missing, or the adapter is of another kind or model.
    """
    require_peft()
    settings = adapter_settings(folder)
    kind = "DoRA" if settings.get("use_dora") else settings.get("peft_type")
    if kind != "LORA":
        raise SpanwiseError(f"{folder} holds an adapter of the kind {kind}; LoRA is supported")
    try:
        report = model.load_adapter(str(folder), is_trainable=True)
    except RuntimeError as error:  # it speaks of a report that it has logged
        raise SpanwiseError(f"the adapter in {folder} has weights of other shapes") from error
    if lacking := sorted(report.missing_keys):  # transformers would leave them as drawn
        raise SpanwiseError(f"the adapter in {folder} lacks {lacking[0]}")
    if left_over := sorted(report.unexpected_keys):
        raise SpanwiseError(f"the model has no place for {left_over[0]} of the adapter in {folder}")
    if more := _beyond_lora(model):
        raise SpanwiseError(
            f"the adapter in {folder} is more than LoRA on linear layers: it also has {more}"
        )
    _in_float32(model)


def adapter_settings(folder: Path) -> dict[str, Any]:
    """What the folder's ``adapter_config.json`` says; nothing if it has none."""
    file = folder / ADAPTER_CONFIG
    if not file.is_file():
        return {}
    try:
        settings: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SpanwiseError(f"{file} is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise SpanwiseError(f"{file} is no JSON object")
    if not isinstance(settings.get("base_model_name_or_path") or "", str):
        raise SpanwiseError(f"{file} does not name the model of its adapter")
    return cast("dict[str, Any]", settings)


def linear_layers(model: Any) -> list[str]:
    """The names that an adapter can be put on: linear layers, the output layer left out."""
    head = model.get_output_embeddings()
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not head
        }
    )


def trained_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters that an optimizer is to move: with an adapter, its own alone."""
    return [p for p in model.parameters() if p.requires_grad]


def saved_state(model: Any) -> dict[str, Tensor]:
    """The tensors of a saved model, by name: all of its state, or the adapter's weights alone."""
    state: dict[str, Tensor] = model.state_dict(keep_vars=True)
    if getattr(model, "peft_config", None):
        return {name: tensor for name, tensor in state.items() if tensor.requires_grad}
    return state


def copy_trainable(model: M) -> M:
    """A copy of a model with trained weights of its own; frozen weights are shared.

    Without an adapter that is a copy of all weights, with one a copy of the adapter.
    """
    frozen: dict[int, Any] = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, frozen)


def merged_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """The weights with the adapter merged into them, under their names without an adapter.

    The model is left as it is. Tied weights come once; those of a split model come split, too.
    """
    layers = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        if ".lora_" in f".{name}":
            continue
        if not owner.endswith(".base_layer"):
            yield name, parameter.detach()
            continue
        owner = owner.removesuffix(".base_layer")
        weight = parameter.detach()
        if leaf == "weight":
            for adapter in layers[owner].active_adapters:
                delta = layers[owner].get_delta_weight(adapter).detach()
                weight = (weight.to(delta.dtype) + delta).to(weight.dtype)
        yield f"{owner}.{leaf}", weight


def _beyond_lora(model: Any) -> str:
    """A weight that ``merged_weights`` could not add in, such as DoRA's; empty if none.

    An output layer tied to the embedding has no weight of its own to add to.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = getattr(head, "weight", None) is getattr(embedding, "weight", None)
    for name, parameter in model.named_parameters():
        layer, _, matrix = name.partition(".lora_")
        linear = matrix.startswith(("A.", "B.")) and not (
            tied and model.get_submodule(layer) is head
        )
        if parameter.requires_grad and not linear:
            return name
    return ""


def _in_float32(model: torch.nn.Module) -> None:
    for parameter in trained_parameters(model):
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))


def require_peft() -> None:
    """Raises ``ValueError`` if adapters cannot be had."""
    try:
        import peft  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        raise SpanwiseError('LoRA needs peft: pip install "spanwise[lora]"') from None
