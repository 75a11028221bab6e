"""One process, torchrun or mpirun: who this rank is, and the few exchanges training needs."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from atomsieve.devices import choose_device
from atomsieve.errors import AtomSieveError

T = TypeVar("T")

PATIENCE = timedelta(hours=24)
"""How long a rank waits for another: what one does alone (writing, fitting) may take longer than the library's minutes.

A rank that dies is noticed by its launcher, which ends the others.
"""
WORLD_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "PMIX_SIZE", "MPI_LOCALNRANKS")
TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched_by(environ: Mapping[str, str]) -> str:
    """Return "torchrun", "mpi" or "alone" from what the launchers leave in the environment."""
    if all(name in environ for name in TORCHRUN):
        return "torchrun"
    if any(int(environ.get(name, "1") or 1) > 1 for name in WORLD_SIZES):
        return "mpi"
    return "alone"


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
        except Exception as caught:  # every kind: the other ranks are waiting to be told
            error = caught
        said = self.all_gather((value, None if error is None else f"{type(error).__name__}: {error}"))
        if error is not None:
            raise error
        for rank, (_, line) in enumerate(said):
            if line is not None:
                raise AtomSieveError(f"rank {rank} failed: {line}")
        return [own for own, _ in said]  # type: ignore[misc]

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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _address() -> str:
    """Return an address under which other ranks reach this one."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"


def join_process_group(device: str = "auto") -> ProcessGroup:
    """Find the other ranks, connect to them, and return this rank's place.

    Raises
    ------
    AtomSieveError
        if a launcher started several processes but each believes to be alone (its MPI is not ours).
    """
    launcher = launched_by(os.environ)
    rank, size, local, host, port = 0, 1, 0, "", 0
    if launcher == "torchrun":
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local = int(os.environ.get("LOCAL_RANK", rank))
    elif launcher == "mpi":
        from mpi4py import MPI

        comm = MPI.COMM_WORLD
        rank, size = comm.Get_rank(), comm.Get_size()
        if size == 1:
            raise AtomSieveError(
                "the launcher started several processes, but each is rank 0 of 1: mpirun belongs to another MPI than "
                f"the library in use ({MPI.Get_library_version().splitlines()[0].strip()}); use the mpirun of that one"
            )
        local = comm.Split_type(MPI.COMM_TYPE_SHARED).Get_rank()
        hosts = comm.allgather(socket.gethostname())
        host = "127.0.0.1" if len(set(hosts)) == 1 else _address()
        host, port = comm.bcast((host, _free_port()) if rank == 0 else None)
    where = choose_device(device, local)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if size > 1 and not torch.distributed.is_initialized():
        backend = "nccl" if where.type == "cuda" else "gloo"
        options: dict[str, Any] = {"rank": rank, "world_size": size, "timeout": PATIENCE}
        if launcher == "mpi":
            options["init_method"] = f"tcp://{host}:{port}"
        torch.distributed.init_process_group(backend, **options)
    return ProcessGroup(rank, size, where)


def leave_process_group() -> None:
    """Disconnect from the other ranks."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def single_rank_group(group: ProcessGroup) -> ProcessGroup:
    """Return a group of this rank only, on the same device (for members that are dealt to ranks)."""
    return ProcessGroup(0, 1, group.device)
