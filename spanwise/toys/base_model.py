"""The small models that learn the embedded tasks, made from nothing.

Qwen3-architecture models with a tokenizer whose tokens are whole words, fitted on imperfect
demonstrations and saved in Hugging Face format. Two ship with spanwise, named after the
functions that describe them: ``search_base`` and ``chain_base``.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as WordTokenizer
from tokenizers import models as token_models
from tokenizers import pre_tokenizers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from spanwise.errors import SpanwiseError
from spanwise.toys.chain_demonstrations import ChainDemonstrations
from spanwise.toys.demonstration import Demonstration, DemonstrationSource
from spanwise.toys.search_demonstrations import Demonstrations

ROWS_PER_GROUP = 12
"""Demonstrations that share a width while fitting."""

PAD, EOS, UNKNOWN = "<|pad|>", "<|eos|>", "<|unknown|>"
USER, ASSISTANT = "<|user|>", "<|assistant|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ('user', 'assistant') %}"
    "{{ raise_exception('this tokenizer has the roles user and assistant') }}{% endif %}"
    "{{ '<|' + message['role'] + '|> ' + message['content'] + ' ' }}"
    "{% if message['role'] == 'assistant' %}{{ '<|eos|> ' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with one token a word; text is split at white space and nowhere else.

    Decoding joins words by single spaces, so any text of known words so spaced comes
    back as it was.

    Example:
      >>> tokenizer = word_tokenizer(["Ada", "Beck", "<think>"])
      >>> tokenizer.decode(tokenizer.encode(" <think>  Ada Beck "))
      '<think> Ada Beck'
    """
    special = [PAD, EOS, UNKNOWN, USER, ASSISTANT]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*special, *words]))}
    tokenizer = WordTokenizer(token_models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


@dataclass(frozen=True, kw_only=True)
class BaseModelRecipe:
    """How the base model is shaped and fitted."""

    demonstrations: DemonstrationSource = Demonstrations()
    """Source of the demonstrations."""

    seed: int = 0
    """Seed of weights and demonstrations."""

    num_steps: int = 1500
    """Optimizer steps of the fit."""

    clean_steps: int = 600
    """Number of first steps on demonstrations without faults: copying a name, which is learned
    last, is learned sooner when nothing contradicts it."""

    rows_per_step: int = 24
    """Demonstrations in each step."""

    learning_rate: float = 2e-3
    """Peak of a cosine schedule that ends at a tenth of it."""

    warmup_steps: int = 50
    """Steps over which the learning rate rises to its peak."""

    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW."""

    hidden_size: int = 128
    """Width of the hidden states."""

    num_layers: int = 4
    """Number of layers."""

    num_heads: int = 4
    """Attention heads of each layer."""

    num_key_value_heads: int = 2
    """Heads of keys and values that the attention heads share."""

    head_size: int = 32
    """Width of an attention head."""

    intermediate_size: int = 384
    """Width of the feed-forward layers."""

    max_tokens: int = 512
    """Longest row the rotary positions are laid out for."""

    def __post_init__(self) -> None:
        if self.num_steps < 1 or self.rows_per_step < 1:
            raise SpanwiseError(
                f"fitting needs at least one step of one row, got {self.num_steps} steps of "
                f"{self.rows_per_step} rows"
            )

    def new_model(self, tokenizer: Any) -> Qwen3ForCausalLM:
        """The model before fitting; draws its weights from torch's global generator."""
        config = Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_size,
            max_position_embeddings=self.max_tokens,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
        return Qwen3ForCausalLM(config)


def search_base() -> BaseModelRecipe:
    """The recipe of the model that ships for ``MultiHopSearch``."""
    return BaseModelRecipe()


def chain_base() -> BaseModelRecipe:
    """The recipe of the model that ships for ``ChainSums``."""
    return BaseModelRecipe(
        demonstrations=ChainDemonstrations(),
        num_steps=1000,
        clean_steps=800,
        rows_per_step=64,
        num_layers=3,
        intermediate_size=256,
        max_tokens=256,
    )


@dataclass(frozen=True, kw_only=True)
class FitProgress:
    """Where a fit stands after a step."""

    step: int
    num_steps: int
    loss: float
    """Mean negative log-prob of the model's tokens in this step's rows, in nats."""


def demonstration_tokens(
    demonstration: Demonstration, tokenizer: Any
) -> tuple[list[int], list[bool]]:
    """A demonstration as a rollout would have recorded it.

    Returns:
      Token ids, and a mask that is True on the model's tokens (the closing end-of-text
      token among them) and False on the prompt and on observations.
    """
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": demonstration.question}],
        add_generation_prompt=True,
        tokenize=False,
    )
    tokens: list[int] = tokenizer.encode(prompt, add_special_tokens=False)
    mask = [False] * len(tokens)
    for text, observation in demonstration.turns:
        for part, sampled in ((text, True), (observation, False)):
            ids: list[int] = tokenizer.encode(part, add_special_tokens=False)
            tokens += ids
            mask += [sampled] * len(ids)
    return [*tokens, tokenizer.eos_token_id], [*mask, True]


def demonstration_rows(
    demonstrations: DemonstrationSource, num_rows: int, rng: random.Random, tokenizer: Any
) -> list[tuple[Tensor, Tensor]]:
    """Draw demonstrations as right-padded rows, in groups of like length.

    Lengths differ threefold with the number of hops: one width for all would waste two
    fifths of the work.

    Returns:
      Groups of ``[n, T]`` int64 token ids and a bool mask, True on the model's tokens;
      the ``n`` sum to ``num_rows``.
    """
    rows = [demonstration_tokens(demonstrations.draw(rng), tokenizer) for _ in range(num_rows)]
    rows.sort(key=lambda row: len(row[0]))
    return [
        _padded(rows[i : i + ROWS_PER_GROUP], tokenizer.pad_token_id)
        for i in range(0, num_rows, ROWS_PER_GROUP)
    ]


def _padded(rows: list[tuple[list[int], list[bool]]], pad: int) -> tuple[Tensor, Tensor]:
    tokens, sampled = ([torch.tensor(row[i]) for row in rows] for i in (0, 1))
    ids = pad_sequence(tokens, batch_first=True, padding_value=pad)
    return ids, pad_sequence(sampled, batch_first=True, padding_value=False)


def demonstration_loss(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Summed negative log-prob of the tokens ``[N, T]`` that ``mask`` selects, in nats.

    Rows are right-padded, so causal attention alone keeps padding out of every token
    that counts.
    """
    targets = mask[:, 1:]
    hidden = model.model(ids[:, :-1]).last_hidden_state[targets]
    logits = model.lm_head(hidden)
    return torch.nn.functional.cross_entropy(logits, ids[:, 1:][targets], reduction="sum")


def fit_base_model(
    recipe: BaseModelRecipe, on_step: Callable[[FitProgress], None] | None = None
) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """Make the base model: build it, and fit it on fresh demonstrations at every step.

    The same ``recipe`` on the same machine with the same number of torch threads gives
    the same weights.

    Returns:
      The model in float32 evaluation mode, and its tokenizer.
    """
    tokenizer = word_tokenizer(recipe.demonstrations.words())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = recipe.new_model(tokenizer)
    rate, decay = recipe.learning_rate, recipe.weight_decay
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=decay
    )

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, recipe.warmup_steps))
        done = step / recipe.num_steps
        return warm * (0.1 + 0.9 * 0.5 * (1.0 + math.cos(math.pi * done)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    rng = random.Random(f"demonstrations {recipe.seed}")
    clean = recipe.demonstrations.right()
    model.train()
    for step in range(recipe.num_steps):
        demonstrations = clean if step < recipe.clean_steps else recipe.demonstrations
        groups = demonstration_rows(demonstrations, recipe.rows_per_step, rng, tokenizer)
        num_tokens = sum(int(mask.sum()) for _, mask in groups)
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for ids, mask in groups:
            loss = demonstration_loss(model, ids, mask) / num_tokens
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if on_step is not None:
            on_step(FitProgress(step=step + 1, num_steps=recipe.num_steps, loss=total))
    return model.eval(), tokenizer


def save_base_model(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    """Write the model in bfloat16, and its tokenizer, in Hugging Face format.

    The model given is left as it is. The weights read back are the written ones: load
    with ``dtype=torch.float32`` to train.
    """
    halved: Any = copy.deepcopy(model)
    halved.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
