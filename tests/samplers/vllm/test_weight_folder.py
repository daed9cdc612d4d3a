from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from spanwise.models.lora import LoRA, add_adapter
from spanwise.samplers.base import EngineError
from spanwise.samplers.vllm.weight_folder import WeightFolder, plain_weights
from tests.tiny import tiny_model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_is_a_model_for_from_pretrained(tmp_path: Path, dtype: torch.dtype) -> None:
    model = tiny_model(dtype=dtype)
    weights = WeightFolder(model, tmp_path)
    first = weights.write(plain_weights(model))
    read = AutoModelForCausalLM.from_pretrained(first, dtype="auto")
    assert read.dtype == dtype
    for name, weight in model.state_dict().items():
        assert torch.equal(read.state_dict()[name], weight)
    with torch.no_grad():
        model.model.norm.weight.add_(1.0)
    second = weights.write(plain_weights(model))
    moved = load_file(second / "model.safetensors")["model.norm.weight"]
    assert torch.equal(moved, model.model.norm.weight)
    assert first.is_dir()  # an engine may be reading it
    weights.discard_older()
    assert not first.exists() and second.is_dir()
    weights.close()
    assert not list(tmp_path.iterdir())


def test_an_adapter_is_added_into_the_weights(tmp_path: Path) -> None:
    model = tiny_model()
    weights = WeightFolder(model, tmp_path)
    add_adapter(model, LoRA(rank=2))
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0, 0.3)
    tokens = torch.arange(3, 20)[None]
    later = WeightFolder(model, tmp_path)  # made when the adapter was there already
    for folder in (weights.write(plain_weights(model)), later.write(plain_weights(model))):
        read = AutoModelForCausalLM.from_pretrained(folder)
        with torch.inference_mode():
            expected, got = model(input_ids=tokens).logits, read(input_ids=tokens).logits
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)


def test_a_folder_that_cannot_be_written_is_an_engine_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    with pytest.raises(EngineError, match=r"No such file .*gone"):
        WeightFolder(model, tmp_path / "gone")
    weights = WeightFolder(model, tmp_path)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(model), "save_pretrained", full)
    with pytest.raises(EngineError, match=r"cannot be written to .*: .*No space left"):
        weights.write(plain_weights(model))
