from __future__ import annotations

import pytest

from spanwise.samplers.stops import StopStrings, end_tokens
from tests.envs import chat_templates
from tests.envs.chat_templates import byte_tokenizer


class Words:
    """Each id is a text; decoding joins them."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.calls = texts, 0

    def encode(self, text, **options):
        raise NotImplementedError

    def decode(self, ids, **options):
        self.calls += 1
        return "".join(self.texts[i] for i in ids)


def stopped_at(tokenizer, stop, tokens) -> int | None:
    """How many tokens had come when the finder said stop."""
    finder = StopStrings(
        tokenizer, 500 if not isinstance(tokenizer, Words) else len(tokenizer.texts)
    ).finder(stop)
    return next((n for n in range(1, len(tokens) + 1) if finder.completed(tokens[:n])), None)


@pytest.mark.parametrize(
    "texts, stop, at",
    [
        (["a", "</s>", "b"], ("</s>",), 2),  # one token
        (["a", "<", "/s", ">", "b"], ("</s>",), 4),  # split over three
        (["a", "</", "s>x", "b"], ("</s>",), 3),  # characters beyond it
        (["x</s>y"], ("</s>",), 1),  # inside one token
        (["<", "/", "s"], ("</s>",), None),  # never completed
        (["a", "b", "c"], ("bc", "ab"), 2),  # the first of several
        (["a", "bb", "b"], ("abbb",), 3),  # overlaps of itself
        ([">", ">", "<s", ">"], ("<s>",), 4),  # its last character alone is not it
        (["a", "\n", "\n"], ("\n\n",), 3),
    ],
)
def test_ends_with_the_token_that_completes_a_stop_string(texts, stop, at):
    assert stopped_at(Words(*texts), stop, list(range(len(texts)))) == at


def test_without_stop_strings_nothing_is_decoded():
    tokenizer = Words("a", "b")
    assert stopped_at(tokenizer, (), [0, 1, 0]) is None
    assert tokenizer.calls == 0


def test_only_tokens_that_may_complete_a_string_are_decoded():
    tokenizer = Words("a", ">")
    finder = StopStrings(tokenizer, 2).finder(("</s>",))
    after_table = tokenizer.calls
    assert not any(finder.completed([0] * n) for n in range(1, 50))
    assert tokenizer.calls == after_table
    assert not finder.completed([0, 1])
    assert tokenizer.calls == after_table + 1


def test_a_long_turn_is_decoded_at_its_end_only():
    tokenizer = Words("a", "</s>")
    finder = StopStrings(tokenizer, 2).finder(("</s>",))
    seen: list[int] = []
    original = tokenizer.decode
    tokenizer.decode = lambda ids, **options: seen.append(len(ids)) or original(ids)  # type: ignore
    assert finder.completed([0] * 5000 + [1])
    assert max(seen) < 50


def test_a_character_of_several_tokens(tokenizer):
    tokens = tokenizer.encode("né…x")  # é is two bytes, … is three: one token each
    assert len(tokens) == 7
    assert stopped_at(tokenizer, ("…",), tokens) == 6
    assert stopped_at(tokenizer, ("é",), tokens) == 3
    assert stopped_at(tokenizer, ("x",), tokens[:5] + tokens[6:]) == 6  # after half a character


def test_a_stop_string_across_merged_tokens(tokenizer):
    tokens = tokenizer.encode("a</s>x")
    assert stopped_at(tokenizer, ("</s>",), tokens) is not None
    split = [tokenizer.convert_tokens_to_ids(t) for t in ("</", "s", ">x")]
    assert stopped_at(tokenizer, ("</s>",), split) == 3


def test_special_tokens_are_text(tokenizer):
    assert stopped_at(tokenizer, ("<eos>",), [tokenizer.eos_token_id]) == 1


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ValueError, match="must not be empty"):
        StopStrings(Words("a"), 1).finder(("",))


class Named:
    """A model, or a part of one, that names end tokens."""

    def __init__(self, end: int | list[int] | None, **parts: object) -> None:
        self.eos_token_id = end
        vars(self).update(parts)


MODEL = Named(None, config=Named(7), generation_config=Named([8, 9]))


def test_the_end_of_a_message_ends_a_turn_of_a_base_model():
    tokenizer = byte_tokenizer(chat_templates.HERMES)
    marker = tokenizer.eos_token_id
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.eos_token = "<|im_start|>"  # stands for another, the end of a text
    assert end_tokens(MODEL, tokenizer) == {7, 8, 9, tokenizer.eos_token_id, marker}


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{% for m in messages %}{{ m.content }}\n{% endfor %}",  # ends with no marker
        "{{ raise_exception('no') }}",
        "<|im_start|>{{ messages | length }}",  # shows nothing that was said
        "{% for m in messages %}<|im_start|>{{ m.content | upper }}{% endfor %}",
    ],
)
def test_other_templates_end_nothing(template: str | None):
    tokenizer = byte_tokenizer(chat_templates.HERMES)
    tokenizer.chat_template = template
    assert end_tokens(MODEL, tokenizer) == {7, 8, 9, tokenizer.eos_token_id}
