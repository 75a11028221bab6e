"""Which device each rank computes on: ranks on one GPU share its memory, and its energy is counted once."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from atomsieve.devices import device_kind
from atomsieve.predict.interface import AnyPredictor
from atomsieve.runs.mpi import Communicator

if TYPE_CHECKING:
    import torch


class Place(NamedTuple):
    """The machine of a rank, and the UUID of the GPU that it computes on, None on a CPU."""

    machine: str
    gpu: str | None


def gather_places(comm: Communicator, predictor: AnyPredictor) -> list[Place]:
    """Return the place of every rank, on every rank; ranks whose batches servers compute have no GPU."""
    return comm.all_gather(comm.run_on_all(find_place, predictor))


def find_place(predictor: AnyPredictor) -> Place:
    """Return the place of this process."""
    served = bool(predictor.capabilities.endpoints)
    return Place(platform.node(), None if served else read_gpu_uuid(predictor.device))


def ranks_per_device(places: Sequence[Place]) -> int:
    """Return the number of ranks on the device that most ranks share."""
    return max(Counter(places).values())


def gpus_of_machine(places: Sequence[Place], rank: int) -> list[str]:
    """Return the GPUs that ranks on the machine of one rank compute on."""
    return sorted({place.gpu for place in places if place.machine == places[rank].machine and place.gpu is not None})


def read_gpu_uuid(device: torch.device | str) -> str | None:
    """Return the UUID of a GPU of this process (its number where torch knows none), None for a CPU."""
    if device_kind(device) != "cuda":
        return None
    import torch

    own = torch.device(device).index
    index = torch.cuda.current_device() if own is None else own
    return str(getattr(torch.cuda.get_device_properties(index), "uuid", index))
