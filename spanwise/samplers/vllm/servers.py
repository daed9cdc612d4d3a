"""vLLM servers that already run, here or on other machines, as one sampler."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import httpx2
import torch.distributed as dist
from anyio.from_thread import start_blocking_portal

from spanwise.errors import SpanwiseError
from spanwise.samplers.base import Completion, Engine, EngineError, Request, Sampler
from spanwise.samplers.vllm.codec import Answer, Turns
from spanwise.samplers.vllm.server_pool import Server, ServerPool
from spanwise.samplers.vllm.weight_folder import WeightFolder, plain_weights

_GENERATE = "/inference/v1/generate"
_RPC = "/collective_rpc"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class VLLMServers(Engine):
    """Samples with vLLM servers; docs/vllm.md says how they are started."""

    reads_policy: ClassVar[bool] = False

    urls: tuple[str, ...] = ()
    """Addresses of the servers, each http://HOST:PORT."""

    weights: Path | None = None
    """Folder for new weights that the run and all servers can reach; by default one on the
    run's machine."""

    patience_s: float = 300.0
    """Seconds that a turn waits for a server while all are down."""

    def __post_init__(self) -> None:
        if self.patience_s < 0:
            raise SpanwiseError(f"sampler.patience_s must be at least 0, got {self.patience_s}")
        for url in self.urls:
            if not url.startswith(("http://", "https://")) or len(set(self.urls)) < len(self.urls):
                raise SpanwiseError(
                    f"sampler.urls are http://HOST:PORT, each once; got {' '.join(self.urls)}"
                )

    def check(self) -> None:
        if not self.urls:
            raise SpanwiseError("name the vLLM servers: --sampler.urls http://HOST:PORT …")
        if self.weights is not None and not self.weights.is_dir():
            raise SpanwiseError(f"sampler.weights is no folder: {self.weights}")
        for url in self._roots():
            _check_server(url)

    def build(self, model: Any, tokenizer: Any) -> VLLMServersSampler:
        self.check()
        return VLLMServersSampler(self, model, tokenizer)

    def _roots(self) -> list[str]:
        return [url.rstrip("/") for url in self.urls]


class VLLMServersSampler(Sampler):
    """Requests to a pool of servers, from any event loop.

    The servers get the model's weights at once, whatever they were started with. Seeds work as
    with vLLM in process; a draw does not depend on the server that makes it.

    Raises:
      EngineError: if no server takes the weights.
    """

    def __init__(self, engine: VLLMServers, model: Any, tokenizer: Any) -> None:
        self._turns = Turns(model, tokenizer)
        self._under_way = 0
        self._newest = ""
        self._weights = WeightFolder(model, engine.weights)
        # Training opens a loop for every batch; connections live in this one for the whole run.
        self._ending = ExitStack()
        self._ending.callback(self._weights.close)
        self._loop = self._ending.enter_context(start_blocking_portal(name="vllm-servers"))
        self._ending.callback(self._loop.call, self._loop.stop, True)  # cancels what still runs
        self._pool = self._loop.call(_opened, engine)
        self._ending.callback(self._loop.call, self._pool.close)
        try:
            self.update_weights(model)
        except EngineError:
            self.close()
            raise

    async def sample(self, request: Request) -> Completion:
        body = {
            "token_ids": request.prompt,
            "sampling_params": self._turns.settings(request),
            # Nothing that older weights have cached is used. vLLM takes no path here.
            "cache_salt": "-".join(Path(self._newest).parts[-2:]),
        }
        self._under_way += 1
        try:
            asked = self._loop.start_task_soon(self._pool.ask, _GENERATE, body, request.tree)
            said = await asyncio.wrap_future(asked)
        finally:
            self._under_way -= 1
        return self._turns.completion(request, _answer(said))

    def update_weights(self, model: Any) -> None:
        """Sample from ``model`` as it is now, an architecture like the one before.

        A server that does not take the weights is out until it does. Of several training
        processes the first writes the weights and hands them over; all call this together,
        and gather the weights of a split model for it one at a time.

        Raises:
          RuntimeError: if requests are under way.
          EngineError: if no server takes the weights.
        """
        if self._under_way:
            raise RuntimeError(
                f"{self._under_way} requests are under way; update the weights once they are done"
            )
        leads = _rank() == 0
        weights = plain_weights(model, keep=leads)
        newest = fault = ""
        if leads:
            try:
                newest = str(self._weights.write(weights))
                self._hand_over(newest)
            except EngineError as error:
                fault = str(error)
        self._newest, fault = _of_the_first((newest, fault))
        if fault:
            raise EngineError(fault)
        if leads:
            self._weights.discard_older()
        else:
            self._hand_over(self._newest)  # the servers know these weights already

    def _hand_over(self, folder: str) -> None:
        message = {"method": "take_weights", "args": [folder]}

        async def take(server: Server) -> None:
            await self._pool.post(server, _RPC, message)

        self._loop.call(self._pool.update, take)

    def close(self) -> None:
        self._ending.close()


async def _opened(engine: VLLMServers) -> ServerPool:
    return ServerPool(engine._roots(), patience_s=engine.patience_s)


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _of_the_first(own: T) -> T:
    """The value that the first of several training processes has."""
    if not (dist.is_available() and dist.is_initialized()):
        return own
    said = [own]
    dist.broadcast_object_list(said, src=0)
    return said[0]


def _answer(said: Any) -> Answer:
    try:
        turn = said["choices"][0]
        places = turn["logprobs"]["content"]
        return Answer(
            tokens=turn["token_ids"],
            logprobs=[
                {at["token_id"]: at["logprob"] for at in (*place["top_logprobs"], place)}
                for place in places
            ],
            finish_reason=turn["finish_reason"],
        )
    except (KeyError, IndexError, TypeError) as error:
        raise EngineError(f"a vLLM server's answer has no {error}") from error


def _check_server(url: str) -> None:
    """Refuse a server that is down or lacks an endpoint."""
    # What is posted asks for nothing: where the path exists, the server says what is missing.
    needs = {_GENERATE: "--enable-scale-out", _RPC: "VLLM_SERVER_DEV_MODE=1"}
    try:
        with httpx2.Client(timeout=10.0, trust_env=False) as client:
            health = client.get(url + "/health").status_code
            missing = [
                need
                for path, need in needs.items()
                if client.post(url + path, json={}).status_code == 404
            ]
    except (httpx2.TransportError, httpx2.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        raise SpanwiseError(f"vLLM server {url} does not answer: {reason}") from None
    if health != 200:
        raise SpanwiseError(f"vLLM server {url} is not well: GET /health answers {health}")
    if missing:
        raise SpanwiseError(f"start vLLM server {url} with {' and '.join(missing)} (docs/vllm.md)")
