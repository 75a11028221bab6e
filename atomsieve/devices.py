"""The device to compute on: from the name that a user gives to a torch device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atomsieve.errors import AtomSieveError, unknown

if TYPE_CHECKING:
    import torch


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """Return the torch device of a name: `cpu`, `cuda`, `cuda:N`, or `auto` (CUDA where this machine has it).

    local_rank : number of this process among those of the machine. Where it is given and the name has no number, the
        processes are dealt to the GPUs of the machine in turn.

    Raises
    ------
    UsageError
        if the name is of no device.
    AtomSieveError
        if this machine does not have the device.
    """
    import torch

    kind, _, index = name.partition(":")
    if name != "auto" and (kind not in ("cpu", "cuda") or (index and not index.isdigit())):
        raise unknown("device", name, ("auto", "cpu", "cuda", "cuda:0"))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cpu" or (name == "auto" and not gpus):
        return torch.device("cpu")
    if int(index or 0) >= gpus:
        raise AtomSieveError(
            f"device {name!r} is not here ({gpus} CUDA devices); use the CPU (--device cpu, or device: cpu in a "
            "configuration)"
        )
    if index or local_rank is None:
        return torch.device("cuda" if name == "auto" else name)
    return torch.device("cuda", local_rank % gpus)


def device_kind(device: torch.device | str) -> str:
    """Return `cpu` or `cuda`, whichever GPU it is."""
    return str(device).partition(":")[0]
