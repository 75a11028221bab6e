"""Predictions of labelled structures together with their labels: the input of calibration and of metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from atomsieve.evaluation.baselines import HeadCompositions, count_elements, hash_compositions
from atomsieve.evaluation.labelled import source_heads
from atomsieve.predict.intervals import atom_spread
from atomsieve.predict.predictor import Predictor
from atomsieve.predict.status import Status
from atomsieve.structures import StructureBatch
from atomsieve.structures.interface import StructureReader
from atomsieve.uncertainty.calibration import Residuals
from atomsieve.uncertainty.strata import find_element_group

MOST_COMPONENTS = 200_000
"""Force components of a head that are kept; of more, every k-th atom is."""
BATCH = 1000
"""Structures that are read and predicted at once."""


@dataclass(frozen=True)
class HeadRows:
    """S structures of one head with results and labels, and M of their atoms with force labels.

    Attributes
    ----------
    position : [S] in the file; natoms [S]; elements [S], `atomsieve.uncertainty.strata`; status, outside [S].
    energy, predicted : [S] eV, label (NaN without one) and prediction; energy_std, sigma_energy, interval_energy : [S].
    reference : [S] eV, sum of the head's element references. composition : [S] eV, prediction of the
        nearest-composition predictor, NaN without one. formula : [S] a number for each reduced formula.
    atom_structure : [M] index into S. force, predicted_force : [M,3] eV/Angstrom; force_spread, sigma_force,
        interval_force : [M], of a component.
    """

    position: NDArray[np.int64]
    natoms: NDArray[np.int64]
    elements: NDArray[np.int64]
    status: NDArray[np.uint8]
    outside: NDArray[np.uint8]
    energy: NDArray[np.float64]
    predicted: NDArray[np.float64]
    energy_std: NDArray[np.float64]
    sigma_energy: NDArray[np.float64]
    interval_energy: NDArray[np.float64]
    reference: NDArray[np.float64]
    composition: NDArray[np.float64]
    formula: NDArray[np.uint64]
    atom_structure: NDArray[np.int64]
    force: NDArray[np.float64]
    predicted_force: NDArray[np.float64]
    force_spread: NDArray[np.float64]
    sigma_force: NDArray[np.float64]
    interval_force: NDArray[np.float64]

    def residuals(self) -> Residuals:
        """Return errors and spreads, as calibration takes them."""
        n = np.maximum(self.natoms, 1)
        return Residuals(
            energy_error=(self.predicted - self.energy) / n,
            energy_spread=self.energy_std / n,
            natoms=self.natoms,
            elements=self.elements,
            force_error=self.predicted_force - self.force,
            force_spread=self.force_spread,
            structure=self.atom_structure,
        )


def predict_rows(
    predictor: Predictor,
    batch: StructureBatch,
    head: str,
    position: NDArray[np.int64],
    every: int = 1,
    compositions: HeadCompositions | None = None,
) -> HeadRows:
    """Predict a labelled batch with one head; return predictions and labels.

    position : [S] in the file. every : force labels are kept of every so many atoms of each structure.
    compositions : of the head's training, where they are at hand.
    """
    n = len(batch)
    has_energy = np.zeros(n, bool) if batch.has_energy is None or batch.energy is None else batch.has_energy
    has_forces = np.zeros(n, bool) if batch.has_forces is None or batch.forces is None else batch.has_forces
    want = {"energy", "spread"} | ({"forces", "force_spread"} if has_forces.any() else set())
    out = predictor(batch, want, head)
    energy = np.full(n, np.nan) if batch.energy is None else np.where(has_energy, batch.energy, np.nan)
    use = np.flatnonzero((has_forces & (out.status == Status.OK))[batch.structure_of_atom])
    # The offset goes round with the position, so that no atom of many alike structures is always the one left out.
    within = use - batch.ptr[:-1][batch.structure_of_atom[use]]
    use = use[(within + position[batch.structure_of_atom[use]]) % every == 0]
    none: NDArray[np.float64] = np.full(batch.n_atoms, np.nan)
    forces = out.forces is not None and batch.forces is not None
    spread = none if out.forces_std is None else atom_spread(out.forces_std)
    assert out.energy_std is not None and out.sigma_energy is not None and out.interval_energy is not None
    counts = count_elements(batch.numbers, batch.structure_of_atom, n)
    reference = np.bincount(batch.structure_of_atom, predictor.references(head)[batch.numbers], n).astype(float)
    return HeadRows(
        position=position,
        natoms=batch.counts,
        elements=find_element_group(batch),
        status=out.status,
        outside=out.outside,
        energy=energy,
        predicted=out.energy,
        energy_std=out.energy_std,
        sigma_energy=out.sigma_energy,
        interval_energy=out.interval_energy,
        reference=reference,
        composition=np.full(n, np.nan)
        if compositions is None
        else reference + compositions.predict(counts) * batch.counts,
        formula=hash_compositions(counts),
        atom_structure=batch.structure_of_atom[use],
        force=batch.forces[use] if forces and batch.forces is not None else np.zeros((0, 3)),
        predicted_force=np.asarray(out.forces[use], np.float64) if out.forces is not None else np.zeros((0, 3)),
        force_spread=spread[use],
        sigma_force=(none if out.sigma_forces is None else out.sigma_forces)[use],
        interval_force=(none if out.interval_forces is None else out.interval_forces)[use],
    )


def join_rows(parts: list[HeadRows]) -> HeadRows:
    """Return the rows of several batches as one."""
    start = np.cumsum([0, *(len(p.position) for p in parts)])
    joined = {f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(HeadRows)}
    joined["atom_structure"] = np.concatenate([p.atom_structure + s for p, s in zip(parts, start, strict=False)])
    return HeadRows(**joined)


def choose_atom_stride(atoms: int) -> int:
    """Return of how many atoms one is kept, so that at most MOST_COMPONENTS force components are."""
    return max(1, -(-3 * atoms // MOST_COMPONENTS))


def predict_file(
    predictor: Predictor,
    reader: StructureReader,
    head: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    compositions: Mapping[str, HeadCompositions] | None = None,
) -> dict[str, HeadRows]:
    """Predict all structures of a file with the heads that their sources name, and return the rows by head.

    head : the head for every structure, whatever its source. progress : called with structures done and in all.
    compositions : of the training of each head, where they are at hand.
    """
    source, names = source_heads(reader, predictor.heads, head)
    every = {
        name: choose_atom_stride(
            int(reader.counts()[np.isin(source, [k for k, n in names.items() if n == name])].sum())
        )
        for name in set(names.values())
    }
    known = compositions or {}
    parts: dict[str, list[HeadRows]] = {}
    for start in range(0, len(reader), BATCH):
        stop = min(start + BATCH, len(reader))
        batch = reader.read(start, stop)
        for name, rows in _by_head(source[start:stop], names):
            own = batch.take(rows)
            parts.setdefault(name, []).append(
                predict_rows(predictor, own, name, start + rows, every[name], known.get(name))
            )
        if progress is not None:
            progress(stop, len(reader))
    return {name: join_rows(parts[name]) for name in predictor.heads if name in parts}


def _by_head(source: NDArray[np.int64], names: dict[int, str]) -> Iterator[tuple[str, NDArray[np.int64]]]:
    for name in dict.fromkeys(names.values()):
        rows = np.flatnonzero(np.isin(source, [k for k, n in names.items() if n == name]))
        if len(rows):
            yield name, rows
