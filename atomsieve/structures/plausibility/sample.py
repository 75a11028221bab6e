"""Samples of structures for the checks: runs of neighbours, spread over a dataset, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.dataset.open import open_structures
from atomsieve.structures.dataset.reader import FileReader
from atomsieve.structures.plausibility.check import Finding, check_source, compare_source, describe_comparison
from atomsieve.structures.units import Units

RUN = 250
"""Structures of one run: neighbours in a file are often near each other, as frames of one trajectory."""
RUNS = 120
RUN_ATOMS = 100_000
STRUCTURES, ATOMS, TOTAL_ATOMS = 4000, 500_000, 2_000_000
"""Limits of what is kept of one source, and of the atoms of all of them."""
FIELDS = ("energy", "forces", "stress", "head", "has_energy", "has_forces", "has_stress")


class SourceSample:
    """Collects structures with energies by source, up to a limit of structures and atoms for each."""

    def __init__(self, structures: int = STRUCTURES, atoms: int = ATOMS) -> None:
        self.structures, self.atoms = structures, atoms
        self.parts: dict[str, list[StructureBatch]] = {}
        self.held: dict[str, tuple[int, int]] = {}

    def add(self, source: str, batch: StructureBatch) -> None:
        """Take structures of one source, as long as there is room."""
        if batch.energy is None or not len(batch):
            return
        n, atoms = self.held.get(source, (0, 0))
        left = min(self.atoms - atoms, TOTAL_ATOMS - sum(held for _, held in self.held.values()))
        room = int(np.searchsorted(batch.ptr[1:], left, side="right"))
        taken = batch.slice(0, min(len(batch), self.structures - n, room))
        if len(taken):
            self.parts.setdefault(source, []).append(taken)
            self.held[source] = n + len(taken), atoms + taken.n_atoms

    def describe(self, source: str) -> list[str]:
        """Return in words what could be compared for a source: nothing is said about the rest."""
        if source not in self.parts:
            return []
        batch = StructureBatch.concatenate(self.parts[source])
        forces = batch.has_forces is not None and bool(batch.has_forces.any())
        return describe_comparison(compare_source(batch), forces=forces)

    def check(self, applied: Units | None = None) -> list[Finding]:
        """Return what does not fit in any of the sources. `applied` are the units with which all were read."""
        found = []
        for source, parts in self.parts.items():
            found += check_source(source, StructureBatch.concatenate(parts), applied)
        return found


def check_datasets(paths: Sequence[Path], applied: Units | None = None) -> list[Finding]:
    """Return what does not fit in datasets, in a sample of 120 runs of 250 structures over all of them, at most 4,000
    of one source.

    Raises
    ------
    DataError
        if a dataset cannot be read.
    """
    sample = SourceSample()
    for path in paths:
        with open_structures(path, verify="size") as reader:
            if "energy" in reader.fields:
                _add_runs(reader, sample, max(1, RUNS // len(paths)))
    return sample.check(applied)


def _add_runs(reader: FileReader, sample: SourceSample, runs: int) -> None:
    names = [source.name for source in reader.sources]
    fields = [name for name in FIELDS if name in reader.fields]
    first = np.concatenate([[0], np.cumsum(reader.step_structures)])
    starts = np.unique(np.linspace(0, max(len(reader) - 1, 0), runs).astype(int) // RUN * RUN)
    for start in starts.tolist():
        step = int(np.searchsorted(first, start, side="right")) - 1
        atoms = int(reader.step_atoms[step]) / max(int(reader.step_structures[step]), 1)
        length = min(RUN, int(RUN_ATOMS / max(atoms, 1)), len(reader) - start)
        if length < 1:
            continue
        batch = reader.read(start, start + length, fields)
        heads = np.full(len(batch), -1) if batch.head is None else batch.head
        for head in np.unique(heads).tolist():
            sample.add(names[head] if head >= 0 else "", batch.take(np.flatnonzero(heads == head)))
