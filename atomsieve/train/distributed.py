"""One process, torchrun or mpirun: who this rank is, and the few exchanges training needs."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from atomsieve.devices import choose_device
from atomsieve.errors import AtomSieveError
from atomsieve.runs.launcher import detect_launcher
from atomsieve.runs.mpi import open_mpi_world

T = TypeVar("T")

PATIENCE = timedelta(hours=24)
"""How long a rank waits for another: what one does alone (writing, fitting) may take longer than the library's minutes.

A rank that dies is noticed by its launcher, which ends the others.
"""


@dataclass(frozen=True)
class ProcessGroup:
    """The ranks of a run (or a part of them).

    Attributes
    ----------
    rank, size : position among all ranks, and their number.
    device : this rank's device.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """True on the rank that prints and writes."""
        return self.rank == 0

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over the ranks, in place, and return it."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def broadcast(self, value: Any) -> Any:
        """Return the first rank's value on every rank (a JSON-able object)."""
        if self.size == 1:
            return value
        import json

        text = json.dumps(value).encode() if self.is_first else b""
        length = torch.tensor([len(text)], dtype=torch.int64, device=self.device)
        self.all_reduce_sum(length)
        data = torch.zeros(int(length), dtype=torch.uint8, device=self.device)
        if self.is_first:
            data.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        torch.distributed.broadcast(data, 0)
        return json.loads(bytes(data.cpu().numpy()))

    def all_gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in their order, on every rank (any object that pickles)."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, value)
        return found

    def run_and_gather(self, work: Callable[[], T]) -> list[T]:
        """Run `work` on every rank and return all values; where it fails on any, all ranks raise, none waits."""
        value: T | None = None
        error: Exception | None = None
        try:
            value = work()
        except Exception as caught:  # every kind: the other ranks wait for the outcome
            error = caught
        said = self.all_gather((value, None if error is None else f"{type(error).__name__}: {error}"))
        if error is not None:
            raise error
        for rank, (_, line) in enumerate(said):
            if line is not None:
                raise AtomSieveError(f"rank {rank} failed: {line}")
        return [own for own, _ in said]

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.all_reduce_sum(torch.zeros(1, device=self.device))

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter], extra: Tensor) -> Tensor:
        """Sum the gradients, and a float64 vector `extra` that rides along, over the ranks in one exchange.

        The losses are sums divided by global counts, so the sum of gradients is the gradient of the global batch.
        Return the summed `extra`. A parameter without a gradient anywhere keeps none only if no rank has one.
        """
        own = list(parameters)
        if self.size == 1:
            return extra
        dtype = own[0].dtype
        pieces = [(p.grad if p.grad is not None else torch.zeros_like(p)).reshape(-1) for p in own]
        # The few scalars need float64 (times, counts); parameters travel in their own precision.
        flat = torch.cat(pieces)
        if dtype == torch.float64:
            flat = torch.cat([flat, extra.to(flat)])
            self.all_reduce_sum(flat)
            extra = flat[len(flat) - len(extra) :]
        else:
            self.all_reduce_sum(flat)
            extra = self.all_reduce_sum(extra.to(self.device).clone())
        offset = 0
        for p in own:
            p.grad = flat[offset : offset + p.numel()].view_as(p)
            offset += p.numel()
        return extra


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _find_address() -> str:
    """Return an address under which other ranks reach this one."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"


def join_process_group(device: str = "auto") -> ProcessGroup:
    """Connect to the other ranks that torchrun or an MPI launcher started, and return this rank's place among them.

    device : see `choose_device`.

    Raises
    ------
    AtomSieveError
        if a launcher started several processes that do not see each other: each would do all the work.
    """
    launch = detect_launcher(os.environ)
    if launch.launcher == "torchrun":
        rank, size, local_rank = launch.rank or 0, launch.size or 1, launch.local_rank or 0
        return _join(rank, size, choose_device(device, local_rank), "env://")
    world = open_mpi_world(launch)
    if world is None:
        return _join(0, 1, choose_device(device, 0), "")
    node = world.Split_type(_shared_memory())
    where = choose_device(device, node.rank)
    node.Free()
    hosts = world.allgather(socket.gethostname())
    own = ("127.0.0.1" if len(set(hosts)) == 1 else _find_address(), _find_free_port()) if world.rank == 0 else None
    host, port = world.bcast(own)
    return _join(world.rank, world.size, where, f"tcp://{host}:{port}")


def _shared_memory() -> int:
    from mpi4py import MPI

    return int(MPI.COMM_TYPE_SHARED)


def _join(rank: int, size: int, device: torch.device, meeting_point: str) -> ProcessGroup:
    """Set up torch.distributed for several ranks."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size > 1 and not torch.distributed.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        try:
            torch.distributed.init_process_group(
                backend, init_method=meeting_point, rank=rank, world_size=size, timeout=PATIENCE
            )
        except (RuntimeError, ValueError) as error:  # torch raises no narrower kind for a meeting that fails
            raise AtomSieveError(
                f"rank {rank} of {size} cannot connect to the others by torch.distributed ({backend}, "
                f"{meeting_point}): {str(error).splitlines()[0]}; rank 0 must be reachable from every node"
            ) from error
    return ProcessGroup(rank, size, device)


def leave_process_group() -> None:
    """Disconnect from the other ranks."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def single_rank_group(group: ProcessGroup) -> ProcessGroup:
    """Return a group of this rank only, on the same device (for members that are dealt to ranks)."""
    return ProcessGroup(0, 1, group.device)
