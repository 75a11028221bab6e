"""The result of a relaxation, and the reasons why one ends."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from atomsieve.structures import StructureBatch

Array = NDArray[np.float64]


class Stop(IntEnum):
    """Why the relaxation of a structure ended."""

    CONVERGED = 0
    STEPS = 1
    GUARD = 2
    FAILED = 3
    NOT_PERIODIC = 4
    EXPLODED = 5
    COLLAPSED = 6
    LEFT_DOMAIN = 7
    DRIFTED = 8

    @property
    def meaning(self) -> str:
        """One line for people."""
        return {
            Stop.CONVERGED: "forces (and stress) are below the limit",
            Stop.STEPS: "the number of steps was used up",
            Stop.GUARD: "the guard found a limit passed",
            Stop.FAILED: "the structure has no result; `status` says why",
            Stop.NOT_PERIODIC: "as it was given: it is not periodic along all three vectors, so its cell cannot relax",
            Stop.EXPLODED: "its volume grew beyond the limit, an empty layer opened, or it fell apart",
            Stop.COLLAPSED: "its volume shrank beyond the limit, or atoms came too close",
            Stop.LEFT_DOMAIN: "it was in the domain of the head and ended outside of it",
            Stop.DRIFTED: "atoms, shape of the cell or bonds changed so much that it is another structure",
        }[self]

    @property
    def is_change(self) -> bool:
        """Whether a limit on the change of the structure ended it (`atomsieve.calculators.ChangeLimits`)."""
        return self >= Stop.EXPLODED


@dataclass(frozen=True)
class RelaxResult:
    """Result of a relaxation of S structures with N atoms, in input order.

    Attributes
    ----------
    batch : the relaxed structures. A structure that failed has the geometry of its last result; one with reason
        NOT_PERIODIC has its input geometry, with the energy and forces there.
    energy : [S] eV. forces : [N,3] eV/Angstrom. stress : [S,3,3] eV/Angstrom^3, with cell=True. NaN for a structure
        that never had a result.
    max_force : [S] eV/Angstrom, the value compared with fmax: of forces and, with cell=True, of rows of the virial.
    converged : [S] bool. steps : [S], steps taken. reason : [S] uint8, `Stop`. status : [S] uint8, `Status`.
    """

    batch: StructureBatch
    energy: Array
    forces: Array
    stress: Array | None
    max_force: Array
    converged: NDArray[np.bool_]
    steps: NDArray[np.int64]
    reason: NDArray[np.uint8]
    status: NDArray[np.uint8]
