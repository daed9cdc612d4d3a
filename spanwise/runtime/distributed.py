"""Several processes on one job: who does what, and how the results are put together.

Every process (rank) knows all of the work and does its share of it. Gradients are *summed*,
so whoever weighs a loss divides by what all processes count together; one process and many
then give the same gradient up to rounding.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from spanwise.errors import SpanwiseError
from spanwise.runtime.waits import waiting

S = TypeVar("S")
T = TypeVar("T")

Sharding = Literal["fsdp", "replicate"]

TIMEOUT = timedelta(days=1)
"""Longest wait of a process for another; the watchdog, which says who waits, ends it sooner."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """How the processes that ``torchrun`` started share the work; one process needs none of it."""

    sharding: Sharding = "fsdp"
    """Whether weights, gradients and optimizer state are split over the processes (FSDP2) or
    replicated in each, which is faster where the model is small."""

    def join(self, device: str) -> Ranks:
        """This process's place among those of ``torchrun``, or ``ALONE`` without it.

        Raises:
          ValueError: if the processes cannot have a device each.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return ALONE
        kind = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
        if ":" in device:
            raise SpanwiseError(
                f"model.device={device} names one device for {size} processes; leave it auto, "
                "and each takes the one of its own"
            )
        if kind == "cuda":
            number, found = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
            if number >= found:
                raise SpanwiseError(f"process {number} of this machine has no GPU: it has {found}")
            torch.cuda.set_device(number)
        if not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=TIMEOUT)
        mesh = init_device_mesh(kind, (size,)) if self.sharding == "fsdp" else None
        local = int(os.environ.get("LOCAL_WORLD_SIZE", size))
        return Ranks(rank=dist.get_rank(), size=size, mesh=mesh, on_this_machine=local)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """One process among ``size``. Every method is called by all of them, in the same order."""

    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None
    """Processes that models are split over; None: each process has whole models."""

    on_this_machine: int = 1
    """Number of the processes on this machine, this one included."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder and the screen."""
        return self.rank == 0

    def gather(self, own: T) -> list[T]:
        """The values that the ranks have, in the order of the ranks."""
        if self.size == 1:
            return [own]
        found: list[Any] = [None] * self.size
        with waiting("the other processes"):
            dist.all_gather_object(found, own)
        return found

    async def map(self, work: Callable[[S], Awaitable[T]], items: Sequence[S]) -> list[T]:
        """The results of ``work`` on items that all ranks know; each rank does its share.

        Returns:
          Results in the order of the items, the same in every rank.

        Raises:
          CancelledError: in all ranks, if one of them was cancelled.
        """
        own: list[T] | None = None
        try:
            own = await asyncio.gather(*(work(item) for item in items[self.rank :: self.size]))
        except asyncio.CancelledError:
            if self.size == 1:
                raise
        shares = [share for share in self.gather(own) if share is not None]
        if len(shares) < self.size:
            raise asyncio.CancelledError
        longest = max(map(len, shares), default=0)
        return [share[i] for i in range(longest) for share in shares if i < len(share)]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sum the gradients of weights that every rank has; FSDP has summed those of split ones."""
        if self.size == 1:
            return
        mine = [p for p in parameters if p.requires_grad and not isinstance(p, DTensor)]
        for parameter in mine:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)

    def assign(self, costs: Sequence[float]) -> list[tuple[int, bool]]:
        """The pieces of work that this rank does, as many as any other rank.

        Every rank must take part in gathering a split model's weights as often as the
        others. A rank with fewer pieces does the cheapest one again, which does not count.

        Args:
          costs: Cost of each piece; at least one piece.

        Returns:
          Numbers of the pieces, and whether each counts.

        Example:
          >>> ALONE.assign([5, 3]), Ranks(rank=1, size=2).assign([9, 2, 4])
          ([(0, True), (1, True)], [(2, True), (1, True)])
          >>> Ranks(rank=0, size=2).assign([9, 2, 4])
          [(0, True), (1, False)]
        """
        if self.size == 1:
            return [(number, True) for number in range(len(costs))]
        shares = balanced(costs, self.size)
        most, cheapest = max(map(len, shares)), min(range(len(costs)), key=lambda i: costs[i])
        own = [(number, True) for number in shares[self.rank]]
        return own + [(cheapest, False)] * (most - len(own))


ALONE = Ranks()
"""The one process of a run without ``torchrun``."""


def leave_group() -> None:
    """Wait for the other processes, if there are any, at the end of a program."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def balanced(costs: Sequence[float], size: int) -> list[list[int]]:
    """Numbers of pieces of work, shared out evenly: the costliest first, to the least loaded.

    At most a third worse than the best split (Graham 1969, longest processing time first).

    Example:
      >>> balanced([9, 2, 4, 4], 2)
      [[0], [2, 3, 1]]
    """
    loads = [0.0] * size
    shares: list[list[int]] = [[] for _ in range(size)]
    for number in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        least = loads.index(min(loads))
        shares[least].append(number)
        loads[least] += costs[number]
    return shares
