"""Models that cannot be trained, through the command line: one line each, and no run folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import BartConfig, BertConfig, ViTConfig

from spanwise.cli import main
from spanwise.errors import SpanwiseError
from spanwise.models.loading import SHIPPED, Model, ModelError
from tests.envs.chat_templates import KEEPS_NEWEST_THOUGHT, NO_TOOLS, byte_tokenizer

WEIGHTS = "model.safetensors"


def encoder_decoder(folder: Path) -> None:
    BartConfig(d_model=16).save_pretrained(folder)


def bidirectional(folder: Path) -> None:
    BertConfig(hidden_size=16).save_pretrained(folder)


def vision(folder: Path) -> None:
    ViTConfig(hidden_size=16).save_pretrained(folder)


def no_chat_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def broken_chat_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for m in messages %}")


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0"')


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def unknown_kind(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "of_another_time"}')


def no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def cut_weights(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:5000])


def weights_of_another_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))


def missing_weights(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    for name in ("gate", "up"):
        del weights[f"model.layers.0.mlp.{name}_proj.weight"]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (encoder_decoder, "is an encoder-decoder model (bart); spanwise trains causal"),
        (bidirectional, "is a bidirectional model (bert)"),
        (vision, "is a model of the kind vit, of which there is no causal one"),
        (no_chat_template, "has no chat template; choose an instruction-tuned model, or add"),
        (broken_chat_template, "cannot write a user's message: Unexpected end of template"),
        (no_tokenizer, "no tokenizer at"),
        (broken_tokenizer, "no tokenizer at"),
        (no_config, "has no config.json"),
        (broken_config, "config.json"),
        (unknown_kind, "of_another_time"),
    ],
)
def test_one_line_says_what_is_wrong(
    spoil: Callable[[Path], None], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal(spoil, tmp_path, capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_weights, "no file named model.safetensors"),
        (cut_weights, "incomplete metadata, file not fully covered"),
        (weights_of_another_shape, "mlp.down_proj.weight has the shape [128, 384] and its config"),
        (missing_weights, "its weights lack model.layers.0.mlp.gate_proj.weight and 1 more"),
    ],
)
def test_weights_that_cannot_be_used(
    spoil: Callable[[Path], None], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal(spoil, tmp_path, capsys)


SHIPPED_FILES = {
    name: json.loads((SHIPPED / "search_base" / name).read_text())
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
}

REGEX = {"type": "Split", "behavior": "Isolated", "invert": False}


def with_field(file: str, name: str, value: Any) -> bytes:
    return json.dumps({**SHIPPED_FILES[file], name: value}).encode()


ODD = [
    *(("config.json", text) for text in (b"[]", b"null", b'"x"', b"\xff\xfe{}", b'{"a":' * 50_000)),
    *(
        ("config.json", with_field("config.json", name, value))
        for name in ("hidden_size", "vocab_size", "head_dim", "dtype", "eos_token_id", "hidden_act")
        for value in ("x", -7, [], {}, float("inf"), 10**30)
        if name != "eos_token_id" or value in ("x", {}, float("inf"))
    ),
    *(
        ("config.json", with_field("config.json", "quantization_config", value))
        for value in ([], "x", {"quant_method": "gptq"}, {"quant_method": ["x"]},
                      {"quant_method": "gptq", "bits": 4}, {"quant_method": "compressed-tensors"})
    ),
    *(("tokenizer.json", text) for text in (b"[]", b"null", b"\xff", b'{"a":' * 50_000)),
    *(
        ("tokenizer.json", with_field("tokenizer.json", "pre_tokenizer", {**REGEX, "pattern": p}))
        for p in ({"Regex": "("}, {"Regex": "["}, {"Regex": "a{99999999}"}, {"Regex": 3}, "x", None)
    ),
    ("tokenizer.json", with_field("tokenizer.json", "added_tokens", [{"id": -1, "content": 3}])),
    *(("tokenizer_config.json", text) for text in (b"[]", b"null", b"\xff", b'{"a":' * 50_000)),
    ("tokenizer_config.json", with_field("tokenizer_config.json", "eos_token", 3)),
    ("tokenizer_config.json", with_field("tokenizer_config.json", "tokenizer_class", 3)),
    *(("generation_config.json", text) for text in (b"[]", b"null")),
]  # fmt: skip


@pytest.mark.parametrize(("file", "text"), ODD, ids=lambda part: str(part)[-40:])
def test_files_that_say_odd_things_are_refused_in_one_line(
    file: str, text: bytes, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(SHIPPED / "search_base", folder)
    (folder / file).write_bytes(text)
    model = Model(path=str(folder), device="cpu")
    with pytest.raises(ModelError, match=str(folder)) as raised:
        model.load_tokenizer()
        model.num_parameters()
        model.load()
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"a":' * 50_000, '{"base_model_name_or_path": 3}', '{"peft_type": "LORA"}']
)
def test_an_adapter_that_says_odd_things_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    folder = tmp_path / "model"
    shutil.copytree(SHIPPED / "search_base", folder)
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(SpanwiseError, match=str(folder)) as raised:
        Model(path=str(folder), device="cpu").load()
    assert "\n" not in str(raised.value)


def refusal(
    spoil: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> str:
    """The one line on a model that was spoilt."""
    folder = tmp_path / "model"
    shutil.copytree(SHIPPED / "search_base", folder)
    spoil(folder)
    options = ["--model.path", str(folder), "--folder", str(tmp_path / "run"), "--steps", "1"]
    assert main(["train", "at2po_search", *options]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("spanwise: ") and len(error.splitlines()) == 1
    assert str(folder) in error
    return error


@pytest.mark.parametrize(
    ("template", "message"),
    [(KEEPS_NEWEST_THOUGHT, "rewrites what came before"), (NO_TOOLS, "does not tell the model of")],
)
def test_a_template_that_does_not_fit_tool_calls(
    template: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run, questions = tmp_path / "model", tmp_path / "run", tmp_path / "train.jsonl"
    byte_tokenizer(template).save_pretrained(folder)
    shutil.copy(SHIPPED / "search_base" / "config.json", folder)
    questions.write_text('{"question": "who ?", "answer": "Ada"}\n', encoding="utf-8")
    options = ["--model.path", str(folder), "--env.turns", "tool_call", "--folder", str(run)]
    others = tmp_path / "test.jsonl"
    others.write_text('{"question": "where ?", "answer": "Rome"}\n', encoding="utf-8")
    files = ["--env.train-file", str(questions), "--env.test-file", str(others)]
    files += ["--prompts-per-step", "1"]
    assert main(["train", "at2po_search_paper", *options, *files]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "use --env.turns xml" in error
    assert len(error.splitlines()) == 1 and not run.exists()


def test_code_in_a_model_folder_is_neither_run_nor_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = {"model_type": "foreign", "auto_map": {"AutoConfig": "own.Foreign"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "own.py").write_text("raise SystemExit('the code was run')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on stdin"))
    with pytest.raises(ModelError, match="needs Python code of its own"):
        Model(path=str(tmp_path)).config()
