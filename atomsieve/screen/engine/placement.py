"""Which device each rank computes on: ranks that share one share its memory, and its energy is counted once."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from atomsieve.runs.mpi import Communicator


class Place(NamedTuple):
    """The machine of a rank, and the UUID of the GPU that it computes on, None on a CPU."""

    machine: str
    gpu: str | None


def places(comm: Communicator, predictor: Any) -> list[Place]:
    """Return the place of every rank, on every rank; of servers, which compute elsewhere, no GPU is told."""
    device = "cpu" if hasattr(predictor, "endpoints") else getattr(predictor, "device", "cpu")
    return comm.all_gather(comm.run_on_all(lambda: Place(platform.node(), gpu_of(device))))


def sharing(found: Sequence[Place]) -> int:
    """Return how many ranks share a device, where most do."""
    return max(Counter(found).values())


def gpus_beside(found: Sequence[Place], rank: int) -> list[str]:
    """Return the GPUs that ranks on the machine of one rank compute on."""
    return sorted({place.gpu for place in found if place.machine == found[rank].machine and place.gpu is not None})


def gpu_of(device: Any) -> str | None:
    """Return the UUID of a GPU of this process (its number where torch tells none), None of a CPU."""
    if not str(device).startswith("cuda"):
        return None
    import torch

    own = torch.device(device).index
    index = torch.cuda.current_device() if own is None else own
    return str(getattr(torch.cuda.get_device_properties(index), "uuid", index))
