"""vLLM in process: continuous batching, paged attention and prefix caching on its own workers.

vLLM's engine runs in a process that it starts; this side hands it token ids and collects
token ids. After an update the weights go over as a safetensors file, in memory where there
is room, and the engine goes on without a restart.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import itertools
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, ClassVar

import torch
from anyio.from_thread import start_blocking_portal

from spanwise.errors import SpanwiseError, first_line
from spanwise.samplers.base import Completion, Engine, EngineError, Request, Sampler
from spanwise.samplers.vllm.codec import Answer, Turns
from spanwise.samplers.vllm.weight_folder import WeightFolder, plain_weights
from spanwise.samplers.vllm.worker import EXTENSION

_RESET_TRIES = 50


@dataclass(frozen=True, kw_only=True)
class VLLMEngine(Engine):
    """Samples with vLLM, started by the run itself on the run's machine."""

    reads_policy: ClassVar[bool] = False

    max_rows: int = 256
    """Largest number of requests in the batch; more wait their turn."""

    gpu_memory: float = 0.4
    """Share of each GPU's memory for vLLM, its weights included. A CPU gives 1 GiB to keys and
    values, or VLLM_CPU_KVCACHE_SPACE."""

    num_gpus: int = 1
    """Number of GPUs that the model is split over (tensor parallel)."""

    sleep: bool = False
    """Whether vLLM gives the GPU's memory back while the policy is updated."""

    compiled: bool = True
    """Whether the model is compiled and its graphs captured: faster turns, minutes to start."""

    def __post_init__(self) -> None:
        if self.max_rows < 1 or self.num_gpus < 1 or not 0 < self.gpu_memory <= 1:
            raise SpanwiseError(
                f"vLLM needs max_rows >= 1, num_gpus >= 1 and 0 < gpu_memory <= 1, got {self}"
            )

    def check(self) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise SpanwiseError(
                "the vLLM engine needs vLLM: pip install 'spanwise[vllm]', "
                "or for a CPU see docs/vllm.md"
            )
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise SpanwiseError(
                "vLLM in process cannot share GPUs with several training processes; use servers "
                "(--sampler servers)"
            )
        if self.sleep and not torch.cuda.is_available():
            raise SpanwiseError("sampler.sleep needs a CUDA GPU: vLLM cannot sleep on a CPU")

    def build(self, model: Any, tokenizer: Any) -> VLLMSampler:
        self.check()
        return VLLMSampler(self, model, tokenizer)


class VLLMSampler(Sampler):
    """Requests to vLLM's asynchronous engine, from any event loop.

    Seeds: a request's draws come from a generator of its own, so that they do not depend on
    the batch. The log-probs may differ in their last bits with the batch's size, as vLLM's
    kernels do; a draw that falls between two such values may then differ too.

    Raises:
      EngineError: if vLLM cannot start with this model.
    """

    def __init__(self, engine: VLLMEngine, model: Any, tokenizer: Any) -> None:
        self._turns = Turns(model, tokenizer)
        self._sleeps = engine.sleep
        self._asleep = False
        self._under_way = 0
        self._names = itertools.count()
        self._weights = WeightFolder(model, None)
        self._ending = ExitStack()
        self._ending.callback(self._weights.close)
        self._loop = self._ending.enter_context(start_blocking_portal(name="vllm"))
        self._ending.callback(self._loop.call, self._loop.stop, True)  # cancels what still runs
        try:
            folder = self._weights.write(plain_weights(model), tokenizer)
            self._llm = self._loop.call(_started, engine, str(folder), model)
        except Exception as error:
            self._ending.close()
            raise EngineError(f"vLLM did not start: {first_line(error)}") from error

    async def sample(self, request: Request) -> Completion:
        settings = self._turns.settings(request)
        self._under_way += 1
        try:
            asked = self._loop.start_task_soon(self._answer, request.prompt, settings)
            answer = await asyncio.wrap_future(asked)
        except Exception as error:
            raise EngineError(f"vLLM failed on a request: {first_line(error)}") from error
        finally:
            self._under_way -= 1
        return self._turns.completion(request, answer)

    def pause(self) -> None:
        if self._sleeps and not self._asleep and not self._under_way:
            self._loop.call(partial(self._llm.sleep, level=1))
            self._asleep = True

    def update_weights(self, model: Any) -> None:
        """Sample from ``model`` as it is now, an architecture like the one before.

        Raises:
          RuntimeError: if requests are under way.
          EngineError: if vLLM does not take the weights.
        """
        if self._under_way:
            raise RuntimeError(
                f"{self._under_way} requests are under way; update the weights once they are done"
            )
        folder = self._weights.write(plain_weights(model))
        try:
            self._loop.call(self._reload, str(folder))
        except Exception as error:
            raise EngineError(f"vLLM did not take the weights: {first_line(error)}") from error
        self._weights.discard_older()

    def close(self) -> None:
        self._llm.shutdown()
        self._ending.close()

    async def _answer(self, prompt: tuple[int, ...], settings: dict[str, Any]) -> Answer:
        """Called in vLLM's loop, as everything below."""
        await self._wake()
        vllm: Any = importlib.import_module("vllm")
        kinds: Any = importlib.import_module("vllm.sampling_params").RequestOutputKind
        params = vllm.SamplingParams(**settings, output_kind=kinds.FINAL_ONLY)
        prompted = {"prompt_token_ids": list(prompt)}
        outputs = self._llm.generate(prompted, params, str(next(self._names)))
        final = [output async for output in outputs][-1]
        turn = final.outputs[0]
        return Answer(
            tokens=list(turn.token_ids),
            logprobs=[{t: entry.logprob for t, entry in at.items()} for at in turn.logprobs],
            finish_reason=str(turn.finish_reason),
        )

    async def _reload(self, folder: str) -> None:
        await self._wake()
        await self._llm.collective_rpc("take_weights", args=(folder,))
        # A turn that a stop string has ended gives its blocks back a moment later.
        for _ in range(_RESET_TRIES):
            if await self._llm.reset_prefix_cache():
                return
            await asyncio.sleep(0.1)
        raise RuntimeError("its prefix cache could not be emptied")

    async def _wake(self) -> None:
        if self._asleep:
            self._asleep = False
            await self._llm.wake_up()


async def _started(engine: VLLMEngine, folder: str, model: Any) -> Any:
    # A forked child of a process that has used threads or CUDA may hang.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if not torch.cuda.is_available():
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    positions: int = model.config.get_text_config().max_position_embeddings
    arguments: Any = importlib.import_module("vllm.engine.arg_utils").AsyncEngineArgs
    engines: Any = importlib.import_module("vllm.v1.engine.async_llm").AsyncLLM
    device: dict[str, Any] = (
        {"gpu_memory_utilization": engine.gpu_memory, "enable_sleep_mode": engine.sleep}
        if torch.cuda.is_available()
        # vLLM 0.32 on a CPU fails where a request with a seed is prefilled in chunks.
        else {"enable_chunked_prefill": False, "max_num_batched_tokens": max(positions, 4096)}
    )
    chosen = arguments(
        model=folder,
        dtype=str(model.dtype).removeprefix("torch."),
        max_num_seqs=engine.max_rows,
        tensor_parallel_size=engine.num_gpus,
        enforce_eager=not engine.compiled,
        worker_extension_cls=EXTENSION,
        enable_prefix_caching=True,
        max_logprobs=-1,
        logprobs_mode="raw_logprobs",
        generation_config="vllm",
        disable_log_stats=True,
        **device,
    )
    with _main_module_hidden(), _working_folder_hidden():
        return engines.from_engine_args(chosen)


@contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Processes spawned meanwhile do not import the program's main module.

    vLLM's need nothing of it, its workers fail to start beside some imports (llvmlite, and
    so numba), and a script that has no ``if __name__`` would start itself again.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _working_folder_hidden() -> Iterator[None]:
    """Processes started meanwhile, and those that they start, are started as by ``python -P``.

    Else a ``pickle.py`` in the current folder would be run in place of Python's own.
    """
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        del os.environ["PYTHONSAFEPATH"]
        if before is not None:
            os.environ["PYTHONSAFEPATH"] = before
