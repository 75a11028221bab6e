"""StructureBatch: many structures as flat ragged arrays, with no object per structure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError, UsageError
from atomsieve.structures.adapters.ase_adapter import arrays_from_ase, arrays_to_ase
from atomsieve.structures.adapters.pymatgen_adapter import arrays_from_pymatgen
from atomsieve.structures.fields import FIELDS, LABELS

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import IMolecule, IStructure


def ragged_index(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the concatenation of `arange(starts[k], starts[k]+counts[k])` over k, without a Python loop."""
    total = int(counts.sum())
    if total == 0:
        return np.zeros(0, np.int64)
    first = np.cumsum(counts) - counts
    return np.arange(total, dtype=np.int64) + np.repeat(starts - first, counts)


@dataclass(frozen=True)
class StructureBatch:
    """S structures with N atoms in all. Shapes, dtypes and units: `atomsieve.structures.fields.FIELDS`.

    Optional fields are None in a batch in which no structure has them. `charge` and `spin` are NaN, and `head` is -1,
    for a structure without them; labels carry masks `has_energy`, `has_forces`, `has_stress`.
    """

    ptr: NDArray[np.int64]
    numbers: NDArray[np.uint8]
    positions: NDArray[Any]
    cell: NDArray[np.float64]
    pbc: NDArray[np.bool_]
    id: NDArray[np.int64]
    charge: NDArray[np.float32] | None = None
    spin: NDArray[np.float32] | None = None
    head: NDArray[np.int32] | None = None
    energy: NDArray[np.float64] | None = None
    forces: NDArray[np.float64] | None = None
    stress: NDArray[np.float64] | None = None
    has_energy: NDArray[np.bool_] | None = None
    has_forces: NDArray[np.bool_] | None = None
    has_stress: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        for label in LABELS:
            if getattr(self, label) is not None and getattr(self, f"has_{label}") is None:
                object.__setattr__(self, f"has_{label}", np.ones(self.n_structures, bool))

    # -- sizes ---------------------------------------------------------------------------------------------------

    @property
    def n_structures(self) -> int:
        """Number of structures S."""
        return len(self.ptr) - 1

    @property
    def n_atoms(self) -> int:
        """Number of atoms N of all structures together."""
        return len(self.numbers)

    def __len__(self) -> int:
        return self.n_structures

    @property
    def counts(self) -> NDArray[np.int64]:
        """Atoms per structure [S]."""
        return np.diff(self.ptr)

    @property
    def structure_of_atom(self) -> NDArray[np.int64]:
        """Index of the structure of each atom [N]."""
        return np.repeat(np.arange(self.n_structures, dtype=np.int64), self.counts)

    def present(self) -> dict[str, NDArray[Any]]:
        """Return the fields that this batch has, in registry order."""
        found = {name: getattr(self, name) for name in FIELDS}
        return {name: array for name, array in found.items() if array is not None}

    # -- checks --------------------------------------------------------------------------------------------------

    def validate(self) -> StructureBatch:
        """Check shapes, dtypes and the pointer; return self.

        Values are not checked (a NaN position is a property of one structure, not a broken batch).

        Raises
        ------
        DataError
            naming the field, its shape or dtype, and the required one.
        """
        if self.ptr.ndim != 1 or len(self.ptr) == 0 or self.ptr[0] != 0:
            raise DataError(f"ptr must be [S+1] and start at 0, got shape {self.ptr.shape}")
        if np.any(np.diff(self.ptr) < 0):
            raise DataError("ptr must not decrease")
        if self.ptr[-1] != len(self.numbers):
            raise DataError(f"ptr ends at {self.ptr[-1]} but there are {len(self.numbers)} atoms")
        for name, array in self.present().items():
            field = FIELDS[name]
            wanted = field.shape(self.n_structures, self.n_atoms)
            if array.shape != wanted:
                raise DataError(f"{name} must have shape {field.symbol} = {wanted}, got {array.shape}")
            float32_positions = name == "positions" and array.dtype == np.float32
            if array.dtype != field.dtype and not float32_positions:
                raise DataError(f"{name} must be {field.dtype}, got {array.dtype}")
        return self

    # -- selection -----------------------------------------------------------------------------------------------

    def slice(self, start: int, stop: int) -> StructureBatch:
        """Return structures `start:stop` as views of this batch (only `ptr` is new)."""
        if not 0 <= start <= stop <= self.n_structures:
            raise IndexError(f"structures {start}:{stop} of {self.n_structures}")
        first, last = int(self.ptr[start]), int(self.ptr[stop])
        out: dict[str, NDArray[Any]] = {"ptr": self.ptr[start : stop + 1] - first}
        for name, array in self.present().items():
            if FIELDS[name].axis == "structure":
                out[name] = array[start:stop]
            elif FIELDS[name].axis == "atom":
                out[name] = array[first:last]
        return StructureBatch(**out)

    def take(self, index: NDArray[np.int64] | Sequence[int]) -> StructureBatch:
        """Return the structures `index` in that order, copied. A boolean mask [S] is accepted too."""
        chosen = np.asarray(index)
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        counts = self.counts[chosen]
        atoms = ragged_index(self.ptr[:-1][chosen], counts)
        out: dict[str, NDArray[Any]] = {"ptr": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)}
        for name, array in self.present().items():
            if FIELDS[name].axis == "structure":
                out[name] = array[chosen]
            elif FIELDS[name].axis == "atom":
                out[name] = array[atoms]
        return StructureBatch(**out)

    def replace(self, **changes: Any) -> StructureBatch:
        """Return a copy with some fields exchanged."""
        return replace(self, **changes)

    @staticmethod
    def concatenate(batches: Sequence[StructureBatch]) -> StructureBatch:
        """Join batches in order. A field that only some have is filled with its missing value in the others."""
        if not batches:
            return StructureBatch.empty()
        if len(batches) == 1:
            return batches[0]
        out: dict[str, NDArray[Any]] = {}
        offsets = np.cumsum([0] + [b.n_atoms for b in batches])
        pointers = [b.ptr[:-1] + offset for b, offset in zip(batches, offsets, strict=False)]
        out["ptr"] = np.concatenate([*pointers, offsets[-1:]]).astype(np.int64)
        for name, field in FIELDS.items():
            arrays = [getattr(b, name) for b in batches]
            if field.axis == "pointer" or all(a is None for a in arrays):
                continue
            filled = []
            for b, a in zip(batches, arrays, strict=True):
                if a is None:
                    a = np.full(field.shape(b.n_structures, b.n_atoms), field.missing, field.dtype)
                filled.append(a)
            out[name] = np.concatenate(filled)
        return StructureBatch(**out)

    @staticmethod
    def empty() -> StructureBatch:
        """Return a batch of no structures."""
        required = {n: np.zeros(f.shape(0, 0), f.dtype) for n, f in FIELDS.items() if f.required}
        return StructureBatch(**required)

    # -- scripts -------------------------------------------------------------------------------------------------

    @staticmethod
    def from_ase(atoms_list: Iterable[Atoms] | Atoms, ids: Sequence[int] | None = None) -> StructureBatch:
        """Build a batch from ASE atoms, labels included where a calculator holds them.

        `charge` and `spin` are those that the atoms state (`atomsieve.structures.adapters.conditions.charge_and_spin`),
        and NaN otherwise. For scripts and converters: it loops in Python.
        """
        arrays = arrays_from_ase(atoms_list, ids)
        return StructureBatch(**arrays) if arrays else StructureBatch.empty()

    @staticmethod
    def from_pymatgen(
        structures: Iterable[IStructure | IMolecule] | IStructure | IMolecule, ids: Sequence[int] | None = None
    ) -> StructureBatch:
        """Build a batch from pymatgen's `Structure` and `Molecule` objects, without labels.

        `charge` and `spin` are those that an object was given, by argument or in its `properties`; NaN otherwise. A sum
        of oxidation states is not a total charge (with a warning where it may have been meant), and properties of sites
        (charge, magmom) state neither. `pbc` is that of the lattice; a molecule has no cell. Deuterium is hydrogen. For
        scripts: it loops in Python.

        Raises
        ------
        DataError
            for a site that is shared, partly empty or a dummy, two values of a charge that differ, or another object.
        """
        arrays = arrays_from_pymatgen(structures, ids)
        return StructureBatch(**arrays) if arrays else StructureBatch.empty()

    def to_ase(self) -> list[Atoms]:
        """Return one ASE `Atoms` per structure, labels in a `SinglePointCalculator`, charge and spin in `info`."""
        return arrays_to_ase(self)


def check_batch(given: object) -> None:
    """Raise a UsageError for anything but a `StructureBatch`; its text names the way to make one."""
    if not isinstance(given, StructureBatch):
        raise UsageError(
            f"structures are given as a StructureBatch, got {type(given).__name__}; make one with "
            "StructureBatch.from_ase(atoms_list) or StructureBatch.from_pymatgen(structures)"
        )
