"""A tokenizer of single bytes, and chat templates that treat a conversation in various ways."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

HERMES = (
    "{% if tools %}<|im_start|>system\nCall a tool by "
    '<tool_call>{"name": its name, "arguments": {...}}</tool_call>. '
    "Tools: {% for tool in tools %}{{ tool | tojson }}"
    "{% endfor %}<|im_end|>\n{% endif %}"
    "{% for message in messages %}"
    "{% if message.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ message.content }}\n"
    "</tool_response><|im_end|>\n"
    "{% else %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Keeps all that was said."""

NO_TOOLS = HERMES[HERMES.index("{% for message") :]
"""Never mentions a tool."""

NO_TOOL_ROLE = HERMES.replace(
    "{% for message in messages %}",
    "{% for message in messages %}{% if message.role == 'tool' %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}",
)

DROPS_THOUGHTS = HERMES.replace(
    "{{ message.role }}\n{{ message.content }}",
    "{{ message.role }}\n{{ message.content.split('</think>')[-1].lstrip('\n') }}",
)
"""Of every turn but the newest, as some reasoning models' templates do."""

KEEPS_NEWEST_THOUGHT = HERMES.replace(
    "{{ message.role }}\n{{ message.content }}",
    "{{ message.role }}\n{% if loop.index0 >= messages | length - 2 %}{{ message.content }}"
    "{% else %}{{ message.content.split('</think>')[-1].lstrip('\n') }}{% endif %}",
)
"""Drops a thought two turns later: what was there before is then rewritten."""

TRIMS_CONTENT = HERMES.replace("message.content }}", "message.content | trim }}")
"""White space around what was said is lost; turns go into the tokens as sampled all the same."""

TRIMS_OPENING = HERMES.replace("{{ message.role }}\n", "{{ message.role }}").replace(
    "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n\n{% endif %}"
)
"""The model's turn is opened by white space that its history does not have."""

OPENS_THOUGHT = HERMES.replace(
    "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}"
)
"""The generation prompt begins the thought; the history does not."""

HIDES_ANSWERS = HERMES.replace("<tool_response>\n{{ message.content }}\n", "<tool_response>\n")

COUNTS = HERMES.replace("<tool_response>", "<tool_response n={{ loop.index }}>")
"""What stands behind a turn depends on how many went before."""


def byte_tokenizer(template: str) -> Any:
    """Every byte a token; markers of chat and tools are tokens of their own."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


TEACHES_PARAMETERS = HERMES.replace('"arguments"', '"parameters"').replace("tool_call>", "call>")
"""Bare JSON of another form, as Llama 3.1 writes it."""

TEACHES_PYTHON = HERMES.replace(
    '<tool_call>{"name": its name, "arguments": {...}}</tool_call>', "<|call|>[name(...)]<|/call|>"
)
"""Python calls between markers of their own, as LFM2 writes them."""

TEACHES_TAGS = HERMES.replace(
    '{"name": its name, "arguments": {...}}', "<function=name><parameter=...></function>"
)
"""Tags in tags, as Qwen3-Coder and GLM 4.5 write them."""
