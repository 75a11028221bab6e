"""The catalogue: one light row per labelled structure, from which cleaning, references and split decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError, UsageError, unknown
from atomsieve.structures import StructureBatch, StructureReader
from atomsieve.structures.conversion.references import decode_references
from atomsieve.train.config import DataItem
from atomsieve.train.data.references import count_elements

SCAN_STRUCTURES = 5000
MIN_CELL_VOLUME = 1e-3
"""A fully periodic cell below this volume (Angstrom^3) is flat: a structure that is not finite in any useful sense."""
USES = ("auto", "train", "val", "test", "calibration")


@dataclass
class Catalog:
    """One row per structure; arrays [S] unless stated.

    Attributes
    ----------
    file, row : which file, and which structure of it.
    head : index into `sources`.
    use : index into `USES`, from the configuration of the file.
    n_atoms : atoms; `composition` [S,119] uint16 atoms of each element.
    energy : eV, NaN where not given.
    has_energy, has_forces, has_stress : labels that are present.
    max_force : largest force norm eV/Angstrom, NaN where not given.
    volume : Angstrom^3 per atom of fully periodic cells, NaN for others.
    finite : positions, cell and the labels that are present are all finite, and the cell is not flat.
    shortest : Angstrom, distance of the two closest atoms; infinity where none are within 3 Angstrom.
    charge, spin : total charge (e) and multiplicity, NaN where not given.
    sources : names of all heads; `levels` their levels of theory; `weights` their weights in drawing.
    free_atoms : energies of free atoms, eV, by source and atomic number, of sources that take them as references.
    together : names of sources whose element references are fitted together, a list for each such fit.
    """

    file: NDArray[np.int32]
    row: NDArray[np.int64]
    head: NDArray[np.int32]
    use: NDArray[np.int8]
    n_atoms: NDArray[np.int64]
    composition: NDArray[np.uint16]
    energy: NDArray[np.float64]
    has_energy: NDArray[np.bool_]
    has_forces: NDArray[np.bool_]
    has_stress: NDArray[np.bool_]
    max_force: NDArray[np.float64]
    volume: NDArray[np.float64]
    finite: NDArray[np.bool_]
    shortest: NDArray[np.float64]
    charge: NDArray[np.float64]
    spin: NDArray[np.float64]
    sources: list[str] = field(default_factory=list)
    levels: list[str] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    free_atoms: dict[str, dict[int, float]] = field(default_factory=dict)
    together: list[list[str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.row)

    def take(self, chosen: NDArray[Any]) -> Catalog:
        """Return the rows `chosen` (indices or mask), sources unchanged."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Catalog(**{k: v[chosen] if isinstance(v, np.ndarray) else v for k, v in values.items()})


def _per_structure_max(values: NDArray[np.float64], batch: StructureBatch) -> NDArray[np.float64]:
    out = np.full(batch.n_structures, 0.0)
    filled = batch.counts > 0
    if filled.any():
        out[filled] = np.maximum.reduceat(values, batch.ptr[:-1][filled])
    return out


def _flag(values: NDArray[np.bool_] | None, n: int) -> NDArray[np.bool_]:
    return np.zeros(n, bool) if values is None else values


def _rows(batch: StructureBatch) -> dict[str, NDArray[Any]]:
    """Return the columns of the catalogue that follow from the structures themselves."""
    n = batch.n_structures
    has_energy, has_forces = _flag(batch.has_energy, n), _flag(batch.has_forces, n)
    has_stress = _flag(batch.has_stress, n)
    energy = np.where(has_energy, np.full(n, np.nan) if batch.energy is None else batch.energy, np.nan)
    bad_atom = ~np.isfinite(batch.positions).all(1)
    max_force = np.full(n, np.nan)
    if batch.forces is not None:
        norm = np.linalg.norm(batch.forces, axis=1)
        bad_atom |= ~np.isfinite(norm) & has_forces[batch.structure_of_atom]
        max_force = np.where(has_forces, _per_structure_max(norm, batch), np.nan)
    finite = ~_per_structure_max(bad_atom.astype(float), batch).astype(bool)
    finite &= np.isfinite(batch.cell).all((1, 2)) & (np.isfinite(energy) | ~has_energy)
    if batch.stress is not None:
        finite &= np.isfinite(batch.stress).all((1, 2)) | ~has_stress
    counts = batch.counts
    with np.errstate(all="ignore"):
        volume = np.where(batch.pbc.all(1), np.abs(np.linalg.det(batch.cell)) / np.maximum(counts, 1), np.nan)
    finite &= ~(volume * counts < MIN_CELL_VOLUME)
    return {
        "n_atoms": counts,
        "composition": count_elements(batch).astype(np.uint16),
        "energy": energy,
        "has_energy": has_energy,
        "has_forces": has_forces,
        "has_stress": has_stress,
        "max_force": max_force,
        "volume": volume,
        "finite": finite,
        "shortest": _shortest(batch, finite & (counts > 0)),
        "charge": np.full(n, np.nan) if batch.charge is None else batch.charge.astype(np.float64),
        "spin": np.full(n, np.nan) if batch.spin is None else batch.spin.astype(np.float64),
    }


def _shortest(batch: StructureBatch, usable: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the distance of the two closest atoms of each usable structure, Angstrom."""
    from atomsieve.graphs import shortest_distances

    out = np.full(batch.n_structures, np.inf)
    for rows in np.array_split(np.flatnonzero(usable), max(1, len(batch) // 1000)):
        out[rows] = shortest_distances(batch.take(rows))
    return out


def scan(
    items: Sequence[DataItem],
    readers: Sequence[StructureReader],
    progress: Callable[[int, int], None] | None = None,
) -> Catalog:
    """Read every file once and return the catalogue; sources of one name in several files become one head.

    Raises
    ------
    UsageError
        a source that a file does not have, one source with two levels of theory, or energies of free atoms that a
        file does not have.
    DataError
        a file without sources or labels.
    """
    sources: list[str] = []
    levels: list[str] = []
    weights: list[float] = []
    free_atoms: dict[str, dict[int, float]] = {}
    together: list[list[str]] = []
    parts: dict[str, list[NDArray[Any]]] = {}
    total, done = sum(map(len, readers)), 0
    for k, (item, reader) in enumerate(zip(items, readers, strict=True)):
        names = [s.name for s in reader.sources]
        if not names:
            raise DataError(f"{item.path} names no sources; convert it with `atomsieve data convert --source NAME`")
        for wanted in item.sources or []:
            if wanted not in names:
                raise unknown(f"source of {item.path}", wanted, names)
        to_head = _merge_sources(item, reader.sources, sources, levels, weights)
        if item.references == "free_atoms":
            _add_free_atoms(item, reader, free_atoms)
        if item.references == "together":
            together.append([name for name in names if item.sources is None or name in item.sources])
        for start in range(0, len(reader), SCAN_STRUCTURES):
            batch = reader.read(start, min(start + SCAN_STRUCTURES, len(reader)))
            head = np.full(len(batch), 0 if len(names) == 1 else -1, np.int32) if batch.head is None else batch.head
            if (head < 0).any() or (head >= len(names)).any():
                raise DataError(f"{item.path}: structures {start}.. name sources outside 0..{len(names) - 1}")
            own = to_head[head]
            columns = _rows(batch) | {
                "file": np.full(len(batch), k, np.int32),
                "row": np.arange(start, start + len(batch)),
                "head": own,
                "use": np.full(len(batch), USES.index(item.use), np.int8),
            }
            for name, values in columns.items():
                parts.setdefault(name, []).append(values[own >= 0])
            done += len(batch)
            if progress is not None:
                progress(done, total)
    if not parts:
        raise DataError(f"there are no structures in {', '.join(str(i.path) for i in items)}")
    arrays: dict[str, Any] = {name: np.concatenate(values) for name, values in parts.items()}
    return Catalog(**arrays, sources=sources, levels=levels, weights=weights, free_atoms=free_atoms, together=together)


def _add_free_atoms(item: DataItem, reader: StructureReader, free_atoms: dict[str, dict[int, float]]) -> None:
    """Add the energies of free atoms that a file holds for its sources."""
    stated = decode_references(reader.notes, str(item.path))
    for name in item.sources or [source.name for source in reader.sources]:
        if not stated.get(name):
            raise UsageError(
                f"{item.path} holds no energies of free atoms of {name!r} for references: free_atoms; convert it with "
                "--element-references, or leave references out to fit them"
            )
        free_atoms.setdefault(name, {}).update(stated[name])


def _merge_sources(
    item: DataItem, infos: Sequence[Any], sources: list[str], levels: list[str], weights: list[float]
) -> NDArray[np.int32]:
    """Enter the sources of one file into the lists of heads; return the head of each source (-1: left out)."""
    to_head = np.full(len(infos), -1, np.int32)
    for k, info in enumerate(infos):
        if item.sources is not None and info.name not in item.sources:
            continue
        if info.name not in sources:
            sources.append(info.name)
            levels.append(info.level_of_theory)
            weights.append(item.weight)
        head = sources.index(info.name)
        if levels[head] != info.level_of_theory:
            raise UsageError(
                f"source {info.name!r} is {levels[head]!r} in one file and {info.level_of_theory!r} in {item.path}; "
                "one source has one level of theory: rename one of them when converting"
            )
        to_head[k] = head
    return to_head
