"""The field registry: name, shape, dtype and unit of every array of a batch of structures, stated once.

Readers, writers, models, documentation and servers derive from this table; nothing else repeats it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Axis = Literal["structure", "atom", "pointer"]


@dataclass(frozen=True)
class Field:
    """One array of a `StructureBatch`.

    Attributes
    ----------
    name : the attribute and the variable name on disk.
    axis : meaning of the first axis: structures [S], atoms [N], or structure boundaries [S+1].
    trailing : shape after the first axis, e.g. `(3,)` for `[N,3]`.
    dtype : dtype in memory; `disk` is the dtype in files where it differs (ADIOS2 has no bool).
    unit : unit, empty where none applies.
    required : True if every batch has it; an optional field is None in a batch that lacks it altogether.
    missing : value that fills structures without this field where others in the same batch have it.
    doc : one line for people.
    """

    name: str
    axis: Axis
    trailing: tuple[int, ...]
    dtype: np.dtype
    disk: np.dtype
    unit: str
    required: bool
    missing: float | int | None
    doc: str

    def shape(self, n_structures: int, n_atoms: int) -> tuple[int, ...]:
        """Return the full shape for a batch of `n_structures` structures and `n_atoms` atoms."""
        first = {"structure": n_structures, "atom": n_atoms, "pointer": n_structures + 1}[self.axis]
        return (first, *self.trailing)

    @property
    def symbol(self) -> str:
        """Return the shape as documented, e.g. `[N,3]`."""
        first = {"structure": "S", "atom": "N", "pointer": "S+1"}[self.axis]
        return "[" + ",".join([first, *(str(k) for k in self.trailing)]) + "]"


def _field(
    name: str,
    axis: Axis,
    trailing: tuple[int, ...],
    dtype: str,
    unit: str,
    doc: str,
    *,
    disk: str | None = None,
    required: bool = False,
    missing: float | int | None = None,
) -> Field:
    return Field(name, axis, trailing, np.dtype(dtype), np.dtype(disk or dtype), unit, required, missing, doc)


FIELDS: dict[str, Field] = {
    f.name: f
    for f in (
        _field("ptr", "pointer", (), "int64", "", "atoms of structure s are ptr[s]:ptr[s+1]", required=True),
        _field("numbers", "atom", (), "uint8", "", "atomic numbers", required=True),
        _field("positions", "atom", (3,), "float64", "Angstrom", "never wrapped, never modified", required=True),
        _field(
            "cell",
            "structure",
            (3, 3),
            "float64",
            "Angstrom",
            "rows are lattice vectors; zero where none",
            required=True,
        ),
        _field("pbc", "structure", (3,), "bool", "", "periodic along each lattice vector", disk="uint8", required=True),
        _field("id", "structure", (), "int64", "", "given, or the global position in the input", required=True),
        _field("charge", "structure", (), "float32", "e", "total charge; NaN where not given", missing=np.nan),
        _field("spin", "structure", (), "float32", "", "multiplicity 2S+1; NaN where not given", missing=np.nan),
        _field(
            "head",
            "structure",
            (),
            "int32",
            "",
            "index of the source in the file's list of sources; -1 if none",
            missing=-1,
        ),
        _field("energy", "structure", (), "float64", "eV", "total energy", missing=np.nan),
        _field("forces", "atom", (3,), "float64", "eV/Angstrom", "minus the gradient of the energy", missing=np.nan),
        _field("stress", "structure", (3, 3), "float64", "eV/Angstrom^3", "ASE sign", missing=np.nan),
        _field("has_energy", "structure", (), "bool", "", "energy is given", disk="uint8", missing=0),
        _field("has_forces", "structure", (), "bool", "", "forces are given for every atom", disk="uint8", missing=0),
        _field("has_stress", "structure", (), "bool", "", "stress is given", disk="uint8", missing=0),
    )
}
"""Every field by name, in the order in which files and documentation list them."""

LABELS: tuple[str, ...] = ("energy", "forces", "stress")
"""Fields with a presence mask `has_<name>`."""

CONDITIONS = ("charge", "spin")
"""Optional fields on which an energy depends in addition to atoms and cell; a model may need them."""


def to_numbers(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return atomic numbers as a batch has them; those outside of 0..255 become 0 or 255, which no head knows."""
    return np.clip(np.asarray(values), 0, 255).astype(np.uint8)
