"""Summary of a dataset: counts, sizes, elements, and statistics of the labels per source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.dataset.reader import FileReader

BATCH = 20_000
UNKNOWN = "(none)"


@dataclass
class RunningStatistics:
    """Count, mean, deviation and extremes of numbers that come in pieces (Chan's update, stable far from zero)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float = np.inf
    high: float = -np.inf

    def add(self, values: NDArray[np.float64]) -> None:
        """Take in more numbers."""
        if not len(values):
            return
        n, mean = len(values), float(values.mean())
        step, total = mean - self.mean, self.count + n
        self.squares += float(((values - mean) ** 2).sum()) + step**2 * self.count * n / total
        self.mean += step * n / total
        self.count = total
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    def result(self) -> dict[str, float]:
        """Return mean, std (over n), min and max."""
        if not self.count:
            return {}
        std = float(np.sqrt(self.squares / self.count))
        return {"mean": self.mean, "std": std, "min": self.low, "max": self.high}


@dataclass
class SourceSummary:
    """Counts and label statistics of one source. Energies in eV/atom, forces in eV/Angstrom."""

    name: str
    level_of_theory: str
    structures: int = 0
    atoms: int = 0
    energies: int = 0
    with_forces: int = 0
    with_stress: int = 0
    energy_per_atom: RunningStatistics = field(default_factory=RunningStatistics)
    force_squares: float = 0.0
    force_components: int = 0
    force_max: float = 0.0

    def add(self, batch: StructureBatch) -> None:
        """Take in structures that all belong to this source."""
        self.structures += batch.n_structures
        self.atoms += batch.n_atoms
        if batch.energy is not None and batch.has_energy is not None:
            chosen = batch.has_energy & (batch.counts > 0)
            self.energies += int(chosen.sum())
            self.energy_per_atom.add(batch.energy[chosen] / batch.counts[chosen])
        if batch.forces is not None and batch.has_forces is not None:
            self.with_forces += int(batch.has_forces.sum())
            forces = batch.forces[batch.has_forces[batch.structure_of_atom]]
            self.force_squares += float((forces**2).sum())
            self.force_components += forces.size
            if len(forces):
                self.force_max = max(self.force_max, float(np.sqrt((forces**2).sum(axis=1)).max()))
        if batch.has_stress is not None:
            self.with_stress += int(batch.has_stress.sum())

    def result(self) -> dict[str, Any]:
        """Return plain numbers."""
        out: dict[str, Any] = {
            "name": self.name,
            "level_of_theory": self.level_of_theory,
            "structures": self.structures,
            "atoms": self.atoms,
            "with_energy": self.energies,
            "with_forces": self.with_forces,
            "with_stress": self.with_stress,
        }
        if self.energies:
            out["energy_per_atom"] = self.energy_per_atom.result()
        if self.force_components:
            out["force_rms"] = float(np.sqrt(self.force_squares / self.force_components))
            out["force_max"] = self.force_max
        return out


def summarise(
    reader: FileReader,
    progress: Callable[[int], None] | None = None,
    observe: Callable[[StructureBatch], None] | None = None,
) -> dict[str, Any]:
    """Read a dataset through and return its summary as plain numbers, ready for JSON.

    Every byte is verified on the way (our own folders). `progress` is called with the number of structures done,
    `observe` with every batch.

    Raises
    ------
    DataError
        if the files are damaged.
    """
    heads = [SourceSummary(s.name, s.level_of_theory) for s in reader.sources]
    nameless = SourceSummary(UNKNOWN, "")
    atoms_of, structures_of = np.zeros(256, np.int64), np.zeros(256, np.int64)
    periodic, unusable, charged = np.zeros(4, np.int64), 0, 0
    for batch in reader.iter_batches(BATCH):
        atoms_of += np.bincount(batch.numbers, minlength=256)
        pairs = np.unique(batch.structure_of_atom * 256 + batch.numbers)
        structures_of += np.bincount(pairs % 256, minlength=256)
        periodic += np.bincount(batch.pbc.sum(axis=1), minlength=4)
        unusable += _unusable(batch)
        if batch.charge is not None:
            charged += int(np.isfinite(batch.charge).sum())
        head = np.full(len(batch), -1) if batch.head is None else batch.head
        for k in np.unique(head):
            (heads[k] if k >= 0 else nameless).add(batch.take(np.flatnonzero(head == k)))
        if observe is not None:
            observe(batch)
        if progress is not None:
            progress(len(batch))
    counts = reader.counts()
    sources = [s.result() for s in (*heads, nameless) if s is not nameless or s.structures]
    return {
        "path": str(reader.path),
        "structures": len(reader),
        "atoms": reader.n_atoms,
        "atoms_per_structure": _sizes(counts),
        "periodic_axes": {str(k): int(n) for k, n in enumerate(periodic) if n},
        "elements": _elements(atoms_of, structures_of),
        "sources": sources,
        "fields": list(reader.fields),
        "with_charge": charged,
        "not_finite_or_empty": unusable,
        "steps": len(reader.step_structures),
        "notes": reader.notes,
        "identity": reader.identity(),
        "verified": reader.verification,
    }


def _unusable(batch: StructureBatch) -> int:
    finite = np.isfinite(batch.positions).all(axis=1)
    bad = np.zeros(len(batch), bool)
    bad[batch.structure_of_atom[~finite]] = True
    return int((bad | ~np.isfinite(batch.cell).all(axis=(1, 2)) | (batch.counts == 0)).sum())


def _sizes(counts: NDArray[np.int64]) -> dict[str, float]:
    if not len(counts):
        return {}
    low, median, high = np.percentile(counts, [0, 50, 100])
    return {"min": float(low), "median": float(median), "mean": float(counts.mean()), "max": float(high)}


def _elements(atoms: NDArray[np.int64], structures: NDArray[np.int64]) -> dict[str, dict[str, int]]:
    from ase.data import chemical_symbols

    out = {}
    for z in np.flatnonzero(atoms):
        symbol = chemical_symbols[z] if z < len(chemical_symbols) else f"Z={z}"
        out[symbol] = {"structures": int(structures[z]), "atoms": int(atoms[z])}
    return out
