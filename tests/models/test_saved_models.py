"""What a run leaves is a model folder as others make and read them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from spanwise.models.loading import SHIPPED, Model
from spanwise.models.lora import LoRA, trained_parameters
from spanwise.models.scoring import token_scores
from spanwise.recipes.search import at2po_search
from spanwise.runtime.distributed import ALONE
from spanwise.train.checkpoint import save_weights
from spanwise.train.start import new_learner

CHAT = [{"role": "user", "content": "who is the mother of the father of Ada Beck ?"}]


def saved(model: Model, folder: Path) -> tuple[Any, Any]:
    """The policy of a learner, moved as training would, and the tokenizer it was saved with."""
    config, tokenizer = replace(at2po_search(), model=model), model.load_tokenizer()
    learner = new_learner(config.bind(tokenizer), model.load(), ALONE)
    learner.model.generation_config.max_new_tokens = 7
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trained_parameters(learner.model):
            noise = torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype)
            parameter.add_(noise, alpha=0.02)
    save_weights(folder, learner, tokenizer)
    return learner.model, tokenizer


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transformers_alone_reads_the_same_model(dtype: Any, tmp_path: Path) -> None:
    folder = tmp_path / "final"
    ours, tokenizer = saved(Model(path="search_base", dtype=dtype), folder)
    other = AutoTokenizer.from_pretrained(folder)
    assert other.get_vocab() == tokenizer.get_vocab()
    prompt = other.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    assert prompt == tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    tokens = torch.tensor([other.encode(prompt, add_special_tokens=False)])
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert theirs.dtype == getattr(torch, dtype)
    with torch.no_grad():
        assert torch.equal(theirs(tokens).logits, ours(tokens).logits)
    written = theirs.generate(tokens, do_sample=False)  # by the generation settings saved
    assert tokens.shape[1] < written.shape[1] <= tokens.shape[1] + 7
    assert theirs.generation_config.eos_token_id == tokenizer.eos_token_id


def test_peft_alone_reads_the_same_adapter(tmp_path: Path) -> None:
    folder = tmp_path / "final"
    ours, tokenizer = saved(Model(path="search_base", lora=LoRA(rank=2)), folder)
    assert not (folder / "model.safetensors").exists()
    base = AutoModelForCausalLM.from_pretrained(SHIPPED / "search_base", dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, folder)
    tokens = torch.tensor([tokenizer.encode("Ada Beck", add_special_tokens=False)])
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens).logits, rtol=1e-6, atol=1e-6)


def test_another_run_starts_from_it(tmp_path: Path) -> None:
    folder = tmp_path / "final"
    ours, _ = saved(Model(path="search_base"), folder)
    again = Model(path=str(folder)).load()
    tokens = torch.randint(5, 99, (2, 6), generator=torch.Generator().manual_seed(0))
    mask, lengths = torch.arange(6).expand(2, 6) > 1, torch.tensor([6, 6])
    with torch.no_grad():
        found, wanted = (token_scores(m, tokens, mask, lengths).logprobs for m in (again, ours))
    assert torch.equal(found, wanted)
