"""Failures that end a job but not the run: a GPU that no longer answers, another rank that cannot be reached."""

from __future__ import annotations

import sys

from atomsieve.errors import AtomSieveError
from atomsieve.predict.packing import is_out_of_memory


class DeviceLost(AtomSieveError):  # noqa: N818 - what happened, in two words
    """The GPU no longer answers this process. Only another process can continue, so it counts as a death."""

    exit_code = 70


class PeerLost(AtomSieveError):  # noqa: N818 - what happened, in two words
    """Another rank can no longer be reached: the job is ending, and a new one can continue the run."""

    exit_code = 70


def is_device_lost(error: BaseException | None) -> bool:
    """Return whether every later call to the GPU will fail too, as after an illegal memory access."""
    if not isinstance(error, RuntimeError) or "CUDA error: " not in str(error):
        return False
    return "out of memory" not in str(error) and not is_out_of_memory(error)


def is_peer_lost(error: BaseException | None) -> bool:
    """Return whether an error comes from MPI: the rank called the others and one of them was dead."""
    mpi = sys.modules.get("mpi4py.MPI")
    return mpi is not None and isinstance(error, mpi.Exception)


def translate_loss(error: BaseException | None) -> AtomSieveError | None:
    """Return the error to raise instead of one that means the death of the job; None for any other error."""
    for is_lost, kind, part in ((is_device_lost, DeviceLost, "the GPU"), (is_peer_lost, PeerLost, "MPI")):
        if is_lost(error):
            first_line = str(error).splitlines()[0]
            return kind(f"{part} failed ({first_line}); run the same command again to continue")
    return None
