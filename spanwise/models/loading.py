"""Models and tokenizers from a folder, a hub name or what ships with spanwise.

What can be refused without the weights is refused before they are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
)
from transformers.utils import logging as transformers_logging

from spanwise.errors import SpanwiseError, first_line, one_line
from spanwise.models.execution import checkpoint_gradients, compile_layers
from spanwise.models.lora import (
    ADAPTER_CONFIG,
    LoRA,
    adapter_settings,
    add_adapter,
    load_adapter,
    require_peft,
)

SHIPPED = Path(__file__).parent.parent / "assets"
"""Small models that come with the package, by name."""


class ModelError(SpanwiseError):
    """A model or tokenizer cannot be used; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """Which causal language model to train, and how to hold it."""

    path: str = "search_base"
    """A folder, a Hugging Face name such as ``Qwen/Qwen3-4B``, or a shipped model's name. The
    folder may hold a LoRA adapter alone: its model is then loaded too."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of weights and computation; the optimizer accumulates in float32 either way."""

    lora: LoRA = LoRA()
    """Train a small adapter in place of all weights."""

    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, a third more time."""

    compile: bool = False
    """``torch.compile`` the layers for scoring and updates; needs a C++ compiler on a CPU."""

    device: str = "auto"
    """``cpu``, ``cuda``, ``cuda:1``, …; ``auto`` is a GPU if there is one."""

    def resolve(self) -> str:
        """The folder or hub name that is loaded.

        Raises:
          ModelError: if ``path`` is none of the three.
        """
        if (SHIPPED / self.path / "config.json").is_file():
            return str(SHIPPED / self.path)
        folder = Path(self.path).expanduser()
        if folder.is_dir():
            if not any((folder / file).is_file() for file in ("config.json", ADAPTER_CONFIG)):
                raise ModelError(f"model folder {self.path} has no config.json")
            return str(folder)
        looks_local = self.path.startswith((".", "/", "~")) or self.path.count("/") != 1
        looks_local |= folder.parent.is_dir()  # a mistyped outputs/model is no owner/name
        if looks_local:
            shipped = ", ".join(sorted(p.name for p in SHIPPED.iterdir() if p.is_dir()))
            raise ModelError(
                f"there is no model folder {self.path}; give a folder, a Hugging Face name "
                f"(owner/name) or a shipped model ({shipped})"
            )
        return self.path

    def load_tokenizer(self) -> Any:
        """The tokenizer, checked for a chat template.

        Raises:
          ModelError: if it cannot be found, or has no chat template that can be used.
        """
        tokenizer = self._tokenizer()
        if not tokenizer.chat_template:
            raise ModelError(
                f"the tokenizer of {self.path} has no chat template; choose an instruction-tuned "
                "model, or add chat_template.jinja to its folder"
            )
        try:
            chat = [{"role": "user", "content": "question"}]
            tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # a template may raise anything, jinja's own errors among them
            raise ModelError(
                f"the chat template of {self.path} cannot write a user's message: "
                f"{first_line(error)}"
            ) from error
        return tokenizer

    def check_vocabulary(self, tokenizer: Any) -> None:
        """Refuse a model that does not read the tokens of ``tokenizer`` as they are meant.

        Raises:
          ModelError: if a token has another number here, or the model has none for it.
        """
        wanted, found = tokenizer.get_vocab(), self._tokenizer().get_vocab()
        size = int(self.config().get_text_config().vocab_size)
        for token, number in sorted(wanted.items(), key=lambda item: item[1]):
            there = found.get(token)
            if there == number and number < size:
                continue
            fault = "not there" if there in (None, number) else f"number {there} there"
            raise ModelError(
                f"{self.path} has another vocabulary than the policy: {token!r}, number {number}, "
                f"is {fault}; choose a model with the policy's tokenizer"
            )

    def _tokenizer(self) -> Any:
        source = self.resolve()
        with _reading(f"no tokenizer at {self.path}"):
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            known = tokenizer.encode("text", add_special_tokens=False)
        if not known:  # transformers made up one
            raise ModelError(f"no tokenizer at {self.path}: tokenizer.json is missing or empty")
        return tokenizer

    def config(self) -> Any:
        """The configuration of the model, checked to be of a causal language model.

        Raises:
          ModelError: if it cannot be found or read, or is of another kind.
          ValueError: if it has an adapter and peft is missing.
        """
        base = self._base()
        if self.lora.rank or base != self.resolve():
            require_peft()
        with _reading(f"cannot load {self.path}"):
            config = AutoConfig.from_pretrained(base, trust_remote_code=False)
        if fault := _not_causal(config):
            raise ModelError(
                f"{self.path} is {fault}; spanwise trains causal language models, such as "
                "Qwen3ForCausalLM"
            )
        return config

    def num_parameters(self) -> int:
        """How many weights the model has, without reading them; an adapter is not counted."""
        config = self.config()
        with _reading(f"cannot load {self.path}"), torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        return sum(p.numel() for p in model.parameters())

    def load(self, *, head: bool = True) -> torch.nn.Module:
        """The model with its weights, in evaluation mode (no dropout), on its device.

        Args:
          head: Whether its output layer is needed. One that is not needed may be missing, as
            in a reward model, and is then random.

        Raises:
          ModelError: if weights cannot be found or read, or an option cannot be had.
        """
        base, config = self._base(), self.config()
        with _reading(f"cannot load {self.path}"):
            with _silent_transformers():
                model = self._with_weights(base, config, head=head)
                self._adapt(model)
            model = model.to(self.resolved_device()).eval()
            if self.gradient_checkpointing:
                checkpoint_gradients(model)
            if self.compile:
                compile_layers(model)
        return model

    def _with_weights(self, base: str, config: Any, *, head: bool) -> Any:
        """The model itself; refused if transformers would fill in some of it at random."""
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            base,
            config=config,
            trust_remote_code=False,
            dtype=getattr(torch, self.dtype),
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        model, report = loaded
        for name, found, wanted in sorted(report["mismatched_keys"]):
            raise SpanwiseError(
                f"{name} has the shape {list(found)} and its config.json asks for {list(wanted)}"
            )
        trunk = f"{model.base_model_prefix}."
        if missing := sorted(k for k in report["missing_keys"] if head or k.startswith(trunk)):
            more = f" and {len(missing) - 1} more" if missing[1:] else ""
            raise SpanwiseError(f"its weights lack {missing[0]}{more}")
        return model

    def _base(self) -> str:
        """Where the weights are: where ``path`` leads, or the model of the adapter there."""
        source = self.resolve()
        settings = adapter_settings(Path(source))
        return settings.get("base_model_name_or_path") or source if settings else source

    def _adapt(self, model: Any) -> None:
        source = Path(self.resolve())
        if settings := adapter_settings(source):
            if self.lora.rank not in (0, settings.get("r")):
                raise SpanwiseError(
                    f"its adapter has rank {settings.get('r')}, not {self.lora.rank}; leave out "
                    "lora.rank"
                )
            load_adapter(model, source)
        elif self.lora.rank:
            add_adapter(model, self.lora)

    def resolved_device(self) -> torch.device:
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except RuntimeError as error:
            raise ModelError(
                f"there is no device {self.device!r}; use auto, cpu, cuda or cuda:0"
            ) from error
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ModelError(f"device {self.device} is asked for and this torch finds no GPU")
        return device


@contextmanager
def _reading(refusal: str) -> Iterator[None]:
    """Have whatever is raised while a model's files are read be a refusal of one line.

    Files that are damaged, or of another time, make their readers raise anything.
    """
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{refusal}: it needs Python code of its own, which spanwise does not run; choose "
                "a model of a kind that transformers knows"
            ) from error
        plain = isinstance(error, OSError | ValueError)
        reason = first_line(error) if plain else one_line(error, limit=300)
        raise ModelError(f"{refusal}: {reason}") from error


@contextmanager
def _silent_transformers() -> Iterator[None]:
    """What transformers would report of weights is looked at here, and told in one line."""
    transformers_logging.disable_progress_bar()  # spanwise shows its own progress
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _not_causal(config: Any) -> str:
    """What the model is instead of a causal language model; nothing if it is one."""
    kind = type(config)
    if getattr(config, "is_encoder_decoder", False):
        return f"an encoder-decoder model ({config.model_type})"
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return f"a model of the kind {config.model_type}, of which there is no causal one"
    if kind in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        return f"a bidirectional model ({config.model_type})"
    return ""
