"""The compiler that torch.compile is tried with."""

from __future__ import annotations

import pytest
import torch


def on_backend(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **how: compiled(self, backend=backend, **how)
    )
