import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from spanwise.envs.search.environment import MultiHopSearch
from spanwise.envs.search.world import SearchWorld
from spanwise.envs.search.xml_turns import result_text
from spanwise.models.loading import SHIPPED
from spanwise.toys.base_model import (
    BaseModelRecipe,
    FitProgress,
    demonstration_loss,
    demonstration_rows,
    demonstration_tokens,
    fit_base_model,
    save_base_model,
    word_tokenizer,
)
from spanwise.toys.search_demonstrations import Demonstrations

SEARCH_BASE = SHIPPED / "search_base"

TINY = BaseModelRecipe(
    num_steps=3,
    clean_steps=1,
    rows_per_step=4,
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    num_key_value_heads=1,
    head_size=8,
    intermediate_size=16,
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return word_tokenizer(Demonstrations().words())


def test_every_text_of_the_world_comes_back_as_it_was(tokenizer: Any):
    env = MultiHopSearch(world=SearchWorld(wordings=6))
    texts = [result_text([document]) for document in env.world.documents]
    texts += [task.question for split in ("train", "dev", "test") for task in env.tasks(split)]
    texts.append(result_text([]))
    rng = random.Random(0)
    for _ in range(300):
        demonstration = replace(Demonstrations(wordings=6), broken_format=0.2).draw(rng)
        texts += [demonstration.question, *(text for turn in demonstration.turns for text in turn)]
    for text, ids in zip(texts, tokenizer(texts, add_special_tokens=False).input_ids, strict=True):
        assert tokenizer.unk_token_id not in ids, text
        assert tokenizer.decode(ids) == text.strip()
        assert len(ids) == len(text.split())
    env.check(tokenizer)


def test_tags_are_plain_words_and_other_words_are_unknown(tokenizer: Any):
    special = {"<|pad|>", "<|eos|>", "<|unknown|>", "<|user|>", "<|assistant|>"}
    assert set(tokenizer.all_special_tokens) == special
    ids = tokenizer.encode("<think> Zanzibar </think>", add_special_tokens=False)
    assert ids[1] == tokenizer.unk_token_id and ids[0] != ids[2] != ids[1]


def test_the_chat_template_opens_the_models_turn(tokenizer: Any):
    def chat(*messages: tuple[str, str]) -> str:
        return tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in messages],
            add_generation_prompt=True,
            tokenize=False,
        )

    assert chat(("user", "who is Ada ?")) == "<|user|> who is Ada ? <|assistant|>"
    assert chat(("user", "who ?"), ("assistant", "Ada"), ("user", "who ?")) == (
        "<|user|> who ? <|assistant|> Ada <|eos|> <|user|> who ? <|assistant|>"
    )
    with pytest.raises(Exception, match="roles user and assistant"):
        chat(("system", "x"))


def test_the_mask_selects_what_the_model_writes_and_nothing_else(tokenizer: Any):
    rng = random.Random(1)
    demonstration = Demonstrations(min_hops=2, max_hops=2).right().draw(rng)
    tokens, mask = demonstration_tokens(demonstration, tokenizer)
    (first, found), (second, found_too), (last, nothing) = demonstration.turns
    assert nothing == ""
    wanted = [
        (f"<|user|> {demonstration.question} <|assistant|>", False),
        (first, True),
        (found, False),
        (second, True),
        (found_too, False),
        (f"{last} <|eos|>", True),
    ]
    assert tokenizer.decode(tokens).split() == " ".join(text for text, _ in wanted).split()
    assert mask == [sampled for text, sampled in wanted for _ in text.split()]


def test_loss_counts_masked_tokens_only_and_padding_changes_nothing(tokenizer: Any):
    torch.manual_seed(0)
    model = TINY.new_model(tokenizer).double()
    groups = demonstration_rows(Demonstrations(), 30, random.Random(2), tokenizer)
    assert [len(ids) for ids, _ in groups] == [12, 12, 6]
    ids, mask = groups[-1]
    # each row alone, without padding, token by token
    expected = 0.0
    for row, sampled in zip(ids, mask, strict=True):
        length = int((row != tokenizer.pad_token_id).sum())
        with torch.no_grad():
            logps = torch.log_softmax(model(row[None, :length]).logits[0], -1)
        expected -= sum(float(logps[t - 1, row[t]]) for t in range(1, length) if sampled[t])
    assert demonstration_loss(model, ids, mask).item() == pytest.approx(expected, rel=1e-10)


def test_a_fit_is_the_same_and_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    state = torch.get_rng_state()
    seen: list[FitProgress] = []
    first, _ = fit_base_model(TINY, seen.append)
    again, _ = fit_base_model(TINY)
    other, _ = fit_base_model(replace(TINY, seed=1))
    assert torch.equal(torch.get_rng_state(), state)
    assert [p.step for p in seen] == [1, 2, 3]
    # an untrained model spreads its bets over the 300-odd words: loss near log of their number
    assert seen[0].loss == pytest.approx(torch.tensor(first.config.vocab_size).log(), abs=0.5)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)
    )
    assert not all(
        torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True)
    )


def test_a_short_fit_learns_the_form_of_a_turn():
    losses: list[float] = []
    recipe = replace(TINY, num_steps=25, clean_steps=25, learning_rate=3e-2, warmup_steps=5)
    fit_base_model(recipe, lambda progress: losses.append(progress.loss))
    # tags and fixed words are 4 in 5 of the model's tokens, and predictable from one another
    assert losses[-1] < 0.6 * losses[0]


def test_saved_weights_come_back_in_bfloat16_precision(tmp_path: Path):
    model, tokenizer = fit_base_model(TINY)
    before = [p.clone() for p in model.parameters()]
    save_base_model(model, tokenizer, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for ours, read in zip(model.parameters(), loaded.parameters(), strict=True):
        assert read.dtype == torch.float32
        assert torch.equal(ours.to(torch.bfloat16).float(), read)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    assert reloaded.get_vocab() == tokenizer.get_vocab()
    assert reloaded.chat_template == tokenizer.chat_template
    text = "<think> found </think> <answer> \\boxed{ Ada Beck } </answer>"
    assert reloaded.decode(reloaded.encode(text)) == text


def test_a_fit_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one step of one row"):
        BaseModelRecipe(num_steps=0)


def test_the_shipped_model_is_small_and_speaks_todays_vocabulary(tokenizer: Any):
    files = [file for file in SEARCH_BASE.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 2_500_000
    shipped = AutoTokenizer.from_pretrained(SEARCH_BASE)
    assert shipped.get_vocab() == tokenizer.get_vocab()
    assert shipped.chat_template == tokenizer.chat_template
    MultiHopSearch().check(shipped)
