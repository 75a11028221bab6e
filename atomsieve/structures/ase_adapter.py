"""Between ASE `Atoms` and `StructureBatch`: the door for scripts and converters (a Python loop, not a hot path)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from atomsieve.errors import DataError
from atomsieve.structures.fields import FIELDS, LABELS

if TYPE_CHECKING:
    from ase import Atoms

    from atomsieve.structures.batch import StructureBatch


def _labels(atoms: Atoms) -> dict[str, Any]:
    """Return energy (eV), forces (eV/Angstrom) and stress [3,3] (eV/Angstrom^3) that the atoms already carry."""
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


def _info_number(atoms: Atoms, *names: str) -> float:
    for name in names:
        if name in atoms.info:
            try:
                return float(atoms.info[name])
            except (TypeError, ValueError) as error:
                raise DataError(f"info[{name!r}] must be a number, got {atoms.info[name]!r}") from error
    return np.nan


def charge_and_spin(atoms: Atoms) -> tuple[float, float]:
    """Return total charge (e) and multiplicity that `atoms.info` states, NaN where it does not.

    Raises
    ------
    DataError
        for a value that is no number.
    """
    return _info_number(atoms, "charge"), _info_number(atoms, "spin", "multiplicity")


def batch_from_ase(atoms_list: Iterable[Atoms] | Atoms, ids: Sequence[int] | None = None) -> StructureBatch:
    """See `StructureBatch.from_ase`."""
    from ase import Atoms as AseAtoms

    from atomsieve.structures.batch import StructureBatch

    images = [atoms_list] if isinstance(atoms_list, AseAtoms) else list(atoms_list)
    if not images:
        return StructureBatch.empty()
    if ids is not None and len(ids) != len(images):
        raise DataError(f"{len(ids)} ids for {len(images)} structures")
    counts = np.array([len(a) for a in images], np.int64)
    out: dict[str, Any] = {
        "ptr": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        "numbers": np.concatenate([a.numbers for a in images]).astype(np.uint8),
        "positions": np.concatenate([a.positions for a in images]).astype(np.float64),
        "cell": np.stack([np.asarray(a.cell, np.float64) for a in images]),
        "pbc": np.stack([np.asarray(a.pbc, bool) for a in images]),
        "id": np.arange(len(images), dtype=np.int64) if ids is None else np.asarray(ids, np.int64),
    }
    charge, spin = np.array([charge_and_spin(a) for a in images], np.float32).T.copy()
    if not np.isnan(charge).all():
        out["charge"] = charge
    if not np.isnan(spin).all():
        out["spin"] = spin
    labels = [_labels(a) for a in images]
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
    return StructureBatch(**out)


def batch_to_ase(batch: StructureBatch) -> list[Atoms]:
    """See `StructureBatch.to_ase`."""
    from ase import Atoms as AseAtoms
    from ase.calculators.singlepoint import SinglePointCalculator

    images = []
    for s in range(batch.n_structures):
        own = slice(int(batch.ptr[s]), int(batch.ptr[s + 1]))
        atoms = AseAtoms(batch.numbers[own], batch.positions[own], cell=batch.cell[s], pbc=batch.pbc[s])
        atoms.info["id"] = int(batch.id[s])
        for name in ("charge", "spin"):
            values = getattr(batch, name)
            if values is not None and not np.isnan(values[s]):
                atoms.info[name] = float(values[s])
        results: dict[str, Any] = {}
        if batch.energy is not None and batch.has_energy is not None and batch.has_energy[s]:
            results["energy"] = float(batch.energy[s])
        if batch.forces is not None and batch.has_forces is not None and batch.has_forces[s]:
            results["forces"] = batch.forces[own].copy()
        if batch.stress is not None and batch.has_stress is not None and batch.has_stress[s]:
            t = batch.stress[s]
            results["stress"] = np.array([t[0, 0], t[1, 1], t[2, 2], t[1, 2], t[0, 2], t[0, 1]])
        if results:
            atoms.calc = SinglePointCalculator(atoms, **results)
        images.append(atoms)
    return images
