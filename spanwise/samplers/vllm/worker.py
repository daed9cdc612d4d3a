"""The extension of vLLM's workers, which vLLM imports by name in its own processes."""

from __future__ import annotations

from typing import Any

EXTENSION = "spanwise.samplers.vllm.worker.WeightReload"
"""Value of vLLM's ``--worker-extension-cls``."""


class WeightReload:
    """Mixed into vLLM's worker class: takes the weights of a folder."""

    model_runner: Any
    reload_weights: Any

    _taken = ""

    def take_weights(self, folder: str) -> None:
        """Load the safetensors files of a folder in place of the weights there are.

        Once: several training processes may ask for the same.

        vLLM keeps a packed copy of an output head on a CPU, and does not renew it where the
        head is tied to the embedding: its reload sees no weights for it. That is done here;
        on a GPU there is nothing to pack.
        """
        if folder == self._taken:
            return
        self.reload_weights(weights_path=folder)
        for module in self.model_runner.get_model().modules():
            if hasattr(module, "cpu_linear") and hasattr(module, "num_embeddings"):
                module.quant_method.process_weights_after_loading(module)
        self._taken = folder
