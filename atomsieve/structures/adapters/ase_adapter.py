"""Arrays of a batch from ASE `Atoms` and back, for scripts and converters (a Python loop, not a hot path)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError
from atomsieve.structures.adapters.conditions import charge_and_spin
from atomsieve.structures.fields import FIELDS, LABELS, to_numbers

if TYPE_CHECKING:
    from ase import Atoms


UNUSED = {"initial_charges", "initial_magmoms"}
"""Properties of atoms that no model takes into account."""


class BatchArrays(Protocol):
    """The arrays of a batch that become ASE atoms; a `StructureBatch` has them."""

    @property
    def ptr(self) -> NDArray[np.int64]:
        """Atoms of structure s are `ptr[s]:ptr[s+1]`."""

    def present(self) -> dict[str, NDArray[Any]]:
        """Return the fields that the batch has, by name."""


def _labels(atoms: Atoms) -> dict[str, Any] | None:
    """Return energy (eV), forces (eV/Angstrom) and stress [3,3] (eV/Angstrom^3) that the atoms already carry.

    None if they are those of other atoms: a calculator keeps its results when its atoms move.
    """
    from ase.calculators.calculator import compare_atoms

    computed = getattr(atoms.calc, "atoms", None)
    if computed is not None and compare_atoms(computed, atoms, tol=1e-15, excluded_properties=UNUSED):
        return None
    results: dict[str, Any] = {}
    stored = getattr(atoms.calc, "results", {}) if atoms.calc is not None else {}
    if stored.get("energy") is not None:
        results["energy"] = float(stored["energy"])
    if stored.get("forces") is not None:
        results["forces"] = np.asarray(stored["forces"], np.float64)
    if stored.get("stress") is not None:
        stress = np.asarray(stored["stress"], np.float64)
        if stress.shape == (6,):
            xx, yy, zz, yz, xz, xy = stress
            stress = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
        results["stress"] = stress
    return results


FULL = 1e-3
"""An occupancy nearer than this to 1 is 1."""


def check_occupancies(atoms: Atoms) -> None:
    """Raise for atoms that stand for partly occupied sites: of a CIF file, ASE keeps the majority species of each.

    Raises
    ------
    DataError
        naming the first such site.
    """
    sites, kinds = atoms.info.get("occupancy"), atoms.arrays.get("spacegroup_kinds")
    if not isinstance(sites, Mapping) or kinds is None:
        return
    for place, kind in enumerate(kinds.tolist()):
        found = sites.get(str(kind), sites.get(kind))
        if isinstance(found, Mapping) and (len(found) > 1 or abs(sum(found.values()) - 1) > FULL):
            shares = ", ".join(f"{symbol} {share:g}" for symbol, share in found.items())
            raise DataError(
                f"atom {place} stands for a partly occupied site ({shares}), which has no energy; order the structure, "
                "and remove atoms.info['occupancy']"
            )


def _conditions(images: Sequence[Atoms]) -> dict[str, NDArray[np.float32]]:
    """Return total charges and multiplicities `[S]`, those of them that any of the atoms state; check their sites."""
    stated = np.full((len(images), 2), np.nan, np.float32)
    for k, atoms in enumerate(images):
        try:
            check_occupancies(atoms)
            stated[k] = charge_and_spin(atoms)
        except DataError as error:
            raise DataError(f"structure {k} of {len(images)}: {error}") from error
    found = zip(("charge", "spin"), stated.T, strict=True)
    return {name: np.ascontiguousarray(values) for name, values in found if not np.isnan(values).all()}


def arrays_from_ase(atoms_list: Iterable[Atoms] | Atoms, ids: Sequence[int] | None = None) -> dict[str, NDArray[Any]]:
    """Return the arrays of a batch by field name; none for no atoms. See `StructureBatch.from_ase`."""
    from ase import Atoms as AseAtoms

    images = [atoms_list] if isinstance(atoms_list, AseAtoms) else list(atoms_list)
    if not images:
        return {}
    if ids is not None and len(ids) != len(images):
        raise DataError(f"{len(ids)} ids for {len(images)} structures")
    counts = np.array([len(a) for a in images], np.int64)
    out: dict[str, Any] = {
        "ptr": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        "numbers": to_numbers(np.concatenate([a.numbers for a in images])),
        "positions": np.concatenate([a.positions for a in images]).astype(np.float64),
        "cell": np.stack([np.asarray(a.cell, np.float64) for a in images]),
        "pbc": np.stack([np.asarray(a.pbc, bool) for a in images]),
        "id": np.arange(len(images), dtype=np.int64) if ids is None else np.asarray(ids, np.int64),
    }
    out |= _conditions(images)
    held = [_labels(a) for a in images]
    if moved := [k for k, found in enumerate(held) if found is None]:
        warnings.warn(
            f"structure {moved[0]} of {len(images)} changed after its calculator's results were computed: they are not "
            f"its labels and are left out ({len(moved)} such structures)",
            stacklevel=3,
        )
    labels = [found or {} for found in held]
    for name in LABELS:
        has = np.array([name in found for found in labels])
        if not has.any():
            continue
        field = FIELDS[name]
        values = []
        for found, count in zip(labels, counts, strict=True):
            wanted = field.shape(1, int(count))
            values.append(np.asarray(found.get(name, np.full(wanted, field.missing)), np.float64).reshape(wanted))
        out[name] = np.concatenate(values)
        out[f"has_{name}"] = has
    return out


def arrays_to_ase(batch: BatchArrays) -> list[Atoms]:
    """See `StructureBatch.to_ase`."""
    from ase import Atoms as AseAtoms
    from ase.calculators.singlepoint import SinglePointCalculator

    held, images = batch.present(), []
    for s in range(len(batch.ptr) - 1):
        own = slice(int(batch.ptr[s]), int(batch.ptr[s + 1]))
        atoms = AseAtoms(held["numbers"][own], held["positions"][own], cell=held["cell"][s], pbc=held["pbc"][s])
        atoms.info["id"] = int(held["id"][s])
        for name in ("charge", "spin"):
            if name in held and not np.isnan(held[name][s]):
                atoms.info[name] = float(held[name][s])
        labelled = {name for name in LABELS if name in held and held[f"has_{name}"][s]}
        results: dict[str, Any] = {}
        if "energy" in labelled:
            results["energy"] = float(held["energy"][s])
        if "forces" in labelled:
            results["forces"] = held["forces"][own].copy()
        if "stress" in labelled:
            t = held["stress"][s]
            results["stress"] = np.array([t[0, 0], t[1, 1], t[2, 2], t[1, 2], t[0, 2], t[0, 1]])
        if results:
            atoms.calc = SinglePointCalculator(atoms, **results)
        images.append(atoms)
    return images
