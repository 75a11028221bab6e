"""What a code is asked to compute for one structure, and the reasons why one cannot be written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from atomsieve.structures.level_of_theory import Level

if TYPE_CHECKING:
    from pymatgen.core import Molecule, Structure

TASKS = ("relax", "static")


class NotWritten(Exception):  # noqa: N818 - a reason, not an error
    """A structure that a code cannot take; the text says why."""


@dataclass(frozen=True)
class Job:
    """One calculation.

    Attributes
    ----------
    structure : with a cell; a molecule without one. pbc : [3], periodic vectors of the structure as it was screened.
    level : of theory. task : of `TASKS`. charge, multiplicity : None where the structure states none.
    """

    structure: Structure | Molecule
    pbc: NDArray[np.bool_]
    level: Level
    task: str
    charge: float | None
    multiplicity: float | None

    @property
    def is_charged(self) -> bool:
        """Whether there is a total charge."""
        return self.charge is not None and abs(self.charge) > 1e-3

    @property
    def whole_charge(self) -> int:
        """The total charge as a whole number, 0 where none is stated."""
        return 0 if self.charge is None else round(self.charge)


Writer = Callable[[Job, Path], list[str]]
"""Writes the input of a job into an empty folder; returns remarks on what the files do not hold."""


@dataclass(frozen=True)
class Code:
    """A code.

    Attributes
    ----------
    title : for people. functionals : names of the functionals for which inputs are written. write : see `Writer`.
    name_set : returns the name of the input set of a level and task, for the table.
    """

    title: str
    functionals: tuple[str, ...]
    write: Writer
    name_set: Callable[[Level, str], str]


def count_k_points(cell: NDArray[np.float64], pbc: NDArray[np.bool_], spacing: float) -> tuple[int, int, int]:
    """Return the divisions of the reciprocal vectors whose points are at most `spacing` (1/Angstrom, with 2 pi) apart.

    One along vectors that are not periodic.
    """
    lengths = 2 * np.pi * np.linalg.norm(np.linalg.inv(cell).T, axis=1)
    divisions = np.where(pbc, np.maximum(np.ceil(lengths / spacing - 1e-9), 1), 1).astype(int)
    return int(divisions[0]), int(divisions[1]), int(divisions[2])
