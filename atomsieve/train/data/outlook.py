"""What can be said of labelled structures before any training: errors of predictors without a network, what is missing.

The sentences are of the same kind as those of the verdict after a training (`atomsieve.evaluation.verdict`), and the
numbers carry the same names.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from atomsieve.evaluation.baselines import WIDTH, count_elements, hash_compositions
from atomsieve.evaluation.limits import MILLI, RELAXED, limit
from atomsieve.evaluation.verdict import Remark
from atomsieve.structures import StructureBatch
from atomsieve.text import pluralize
from atomsieve.train.data.references import fit_references

MOST = 200_000
"""Structures of a source that are looked at; of more, the first of the file."""
RARE = 10
"""Structures that hold an element, below which it is called rare."""
SHOWN = 12
SPEED = 2300.0
"""Atoms per second and core of the recipe of `atomsieve train init` on 16 sources (13,457 structures)."""
EPOCHS = 30
NAMELESS = "(none)"


class _Source:
    """Columns of the structures of one source, as they come."""

    def __init__(self) -> None:
        self.columns: dict[str, list[NDArray[Any]]] = {}
        self.structures = self.atoms = 0

    def add(self, batch: StructureBatch) -> None:
        """Take in structures, up to MOST."""
        self.structures += len(batch)
        self.atoms += batch.n_atoms
        held = sum(len(part) for part in self.columns.get("energy", []))
        if held >= MOST or not len(batch):
            return
        for name, values in _describe_batch(batch.slice(0, min(len(batch), MOST - held))).items():
            self.columns.setdefault(name, []).append(values)

    def result(self) -> dict[str, Any]:
        """Return the numbers of the source."""
        columns = {name: np.concatenate(parts) for name, parts in self.columns.items()}
        return {"atoms": self.atoms, **_count(columns), "structures": self.structures} if columns else {}


class Outlook:
    """Collects batches of a file by source; `result` gives numbers, `judge_sources` words."""

    def __init__(self, sources: list[str]) -> None:
        self._names = sources
        self._sources: dict[str, _Source] = {}

    def add(self, batch: StructureBatch) -> None:
        """Take in structures."""
        head = np.full(len(batch), -1) if batch.head is None else batch.head
        for k in np.unique(head):
            name = self._names[k] if 0 <= k < len(self._names) else NAMELESS
            self._sources.setdefault(name, _Source()).add(batch.take(np.flatnonzero(head == k)))

    def result(self) -> dict[str, dict[str, Any]]:
        """Return per source: structures, energies, compositions, duplicates, rare_elements, and baselines.

        energy_baseline : meV/atom, mean |error| of element references fitted to these structures. force_baseline :
            meV/Angstrom, of zero forces. relaxed : structures without a force above 0.1 eV/Angstrom, of `with_forces`.
        """
        order = [name for name in (*self._names, NAMELESS) if name in self._sources]
        return {name: found for name in order if (found := self._sources[name].result())}


def _describe_batch(batch: StructureBatch) -> dict[str, NDArray[Any]]:
    """Return columns [S] of structures: element counts, energy, size of forces, and what duplicates have in common."""
    n, home = len(batch), batch.structure_of_atom
    none = np.zeros(n, bool)
    has_energy = none if batch.energy is None or batch.has_energy is None else batch.has_energy
    has_forces = none if batch.forces is None or batch.has_forces is None else batch.has_forces
    forces = np.zeros((batch.n_atoms, 3)) if batch.forces is None else np.where(has_forces[home, None], batch.forces, 0)
    largest = np.zeros(n)
    np.maximum.at(largest, home, np.linalg.norm(forces, axis=1))
    with np.errstate(all="ignore"):
        # Weighted by element and by order, so that another arrangement of the same atoms has another value.
        weights = 1 + batch.numbers.astype(np.float64) + 0.1 * (np.arange(batch.n_atoms) - batch.ptr[:-1][home])
        shape = np.bincount(home, weights * np.nan_to_num(batch.positions @ [1.0, 1.7, 2.3]), n)
        volume = np.nan_to_num(np.abs(np.linalg.det(batch.cell)))
    return {
        "counts": count_elements(batch.numbers, home, n).astype(np.uint16),
        "energy": np.where(has_energy, 0.0 if batch.energy is None else batch.energy, np.nan),
        "has_forces": has_forces,
        "force_sum": np.bincount(home, np.abs(forces).sum(1), n),
        "largest": largest,
        "shape": np.round(shape, 3),
        "volume": np.round(volume, 3),
    }


def _count(columns: dict[str, NDArray[Any]]) -> dict[str, Any]:
    counts, energy, forced = columns["counts"].astype(np.int64), columns["energy"], columns["has_forces"]
    known = np.isfinite(energy) & (counts.sum(1) > 0)
    formulas = hash_compositions(counts)
    same = np.stack(
        [formulas.astype(np.float64), np.nan_to_num(np.round(energy, 5)), columns["shape"], columns["volume"]]
    )
    held = (counts > 0).sum(0)
    out: dict[str, Any] = {
        "energies": int(known.sum()),
        "compositions": len(np.unique(formulas)),
        "duplicates": len(energy) - len(np.unique(same, axis=1).T),
        "elements": int((held > 0).sum()),
        "rare_elements": {chemical_symbols[z]: int(held[z]) for z in range(1, WIDTH) if 0 < held[z] < RARE},
        "with_forces": int(forced.sum()),
    }
    if known.any():
        fitted = fit_references(counts[known], energy[known])
        error = (energy[known] - counts[known] @ fitted.table()) / counts[known].sum(1)
        out["energy_baseline"] = MILLI * float(np.abs(error).mean())
    if forced.any():
        components = 3 * counts[forced].sum()
        out["force_baseline"] = MILLI * float(columns["force_sum"][forced].sum() / max(components, 1))
        out["relaxed"] = int((columns["largest"][forced] < RELAXED).sum())
    return out


def judge_sources(found: dict[str, dict[str, Any]]) -> dict[str, list[Remark]]:
    """Return the sentences about each source, and under an empty name those about all of them."""
    out = {name: _judge_source(row) for name, row in found.items()}
    usable = {name: row for name, row in found.items() if row["energies"]}
    if not usable:
        return out
    atoms = sum(row["atoms"] for row in usable.values())
    minutes = EPOCHS * atoms / SPEED / 60
    words = (
        f"To train on these {atoms:,} atoms for {EPOCHS} epochs takes about {max(minutes, 1):,.0f} core-minutes "
        "(budget.core_minutes), at the speed of the recipe of atomsieve train init on one core."
    )
    return {"": [Remark("training", "unknown", words)], **out}


def _judge_source(row: dict[str, Any]) -> list[Remark]:
    number, kinds = row["structures"], row["compositions"]
    words = f"{pluralize(number, 'structure')} of {pluralize(kinds, 'composition')}"
    words += f", {pluralize(row['elements'], 'element')}"
    out = [Remark("data", "poor" if number < limit("few_taught") else "good", f"{words}.")]
    if number < limit("few_taught"):
        words = f"Small: a head of fewer than {limit('few_taught'):g} structures is good near them at best."
        out = [Remark("data", "poor", f"{out[0].text} {words}")]
    if rare := row["rare_elements"]:
        shown = ", ".join(f"{symbol} {count}" for symbol, count in list(rare.items())[:SHOWN])
        more = f" and {len(rare) - SHOWN} more" if len(rare) > SHOWN else ""
        out.append(
            Remark("data", "fair", f"Elements in fewer than {RARE} structures: {shown}{more}; expect little there.")
        )
    if row["duplicates"]:
        words = (
            f"{pluralize(row['duplicates'], 'structure')} ({100 * row['duplicates'] / number:.0f} %) repeat another; "
            "remove them, or split by formula (split.by), so that none stands in training and test."
        )
        out.append(Remark("data", "fair", words))
    return out + _judge_energies(row) + _judge_forces(row)


def _judge_energies(row: dict[str, Any]) -> list[Remark]:
    if not row["energies"]:
        return [Remark("energies", "poor", "No energies: nothing can be trained on these.")]
    words = f"Energies: element references alone have an error of {row['energy_baseline']:,.1f} meV/atom; "
    if row["compositions"] < limit("few_compositions"):
        return [
            Remark("energies", "good", f"{words}a model can learn to compare structures of these compositions alone.")
        ]
    target = limit("energy_good") * row["energy_baseline"]
    return [
        Remark("energies", "good", f"{words}a model that ranks well stays below {min(target, limit('coarse')):,.1f}.")
    ]


def _judge_forces(row: dict[str, Any]) -> list[Remark]:
    if not row["with_forces"]:
        return [Remark("forces", "poor", "No forces: relaxations by a head of these labels alone are a guess.")]
    zero, relaxed = row["force_baseline"], row["relaxed"] / row["with_forces"]
    words = f"Forces: {zero:,.1f} meV/Å per component (the error of zero forces)"
    if zero < limit("force_small"):
        words += (
            "; these are relaxed structures, from which no forces are learnt: for relaxations, train on structures off "
            "their minimum too, or beside a source that has them"
        )
        return [Remark("forces", "poor", f"{words}.")]
    words += f", {100 * relaxed:.0f} % of the structures are relaxed"
    return [Remark("forces", "good", f"{words}.")]
