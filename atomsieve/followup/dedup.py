"""Duplicates among selected structures: pymatgen's StructureMatcher behind cheap filters.

Rows are compared best first; a row is dropped if it matches one that was kept. So no two kept rows match, and each
dropped row matches a better one. Two structures match if

- they have the same reduced formula, and are periodic along the same axes,
- their energies per atom and their volumes per atom differ by no more than the windows,
- their primitive cells have equally many atoms, and `StructureMatcher` maps one on the other at equal volume
  (pymatgen: S. P. Ong et al., Comput. Mater. Sci. 68, 314 (2013)).

Where a cell has empty space (slabs, molecules), energies per atom hide the contribution of one adsorbate, and a
tolerance of sites relative to the volume per atom grows with the empty space. There the energies of whole cells must
agree too, and no site may differ by more than a fixed length.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError, UsageError
from atomsieve.runs.output_files import atomic_draft, output_errors
from atomsieve.screen.results.caveats import describe_mixed_precisions
from atomsieve.screen.results.export import check_format, export
from atomsieve.screen.results.record import Results
from atomsieve.screen.results.screened_input import open_screened_input, read_at
from atomsieve.screen.results.targets import check_target
from atomsieve.screen.selection.groups import make_composition_keys
from atomsieve.screen.selection.select import Selection, select_one_head
from atomsieve.structures import StructureBatch
from atomsieve.text import pluralize

VACUUM = 5.0
"""Angstrom; a structure with so much empty space along an axis is a slab, a wire or a molecule. With less along an axis
that is not periodic, it cannot be compared as a crystal."""
FLAT = 1e-6  # Angstrom^3; a smaller volume counts as no cell
Step = Callable[[int, int], None]


@dataclass(frozen=True)
class Tolerances:
    """Limits within which two structures count as duplicates.

    Attributes
    ----------
    length, site, angle : of StructureMatcher: fraction of the cell's lengths, fraction of the mean free length per atom
        by which sites may differ, and degrees.
    volume : largest difference of the volumes per atom, as a fraction of the smaller one.
    energy : largest difference of the energies per atom, eV. Both may be infinite.
    cell_energy, shift : further limits where a cell has empty space: largest difference of the energies of whole cells,
        eV (per atom, times the atoms of the larger cell), and of sites, Angstrom. Both may be infinite.
    """

    length: float = 0.2
    site: float = 0.3
    angle: float = 5.0
    volume: float = 0.1
    energy: float = 0.05
    cell_energy: float = 0.05
    shift: float = 0.3

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if not getattr(self, name) > 0:
                raise UsageError(f"--{name.replace('_', '-')} must be above 0, got {getattr(self, name):g}")


@dataclass(frozen=True)
class Deduplication:
    """Result of a comparison.

    Attributes
    ----------
    twin : [n] for each given row, the index of the kept row that it matches: its own if it was kept.
    compared : pairs of structures that reached the matcher.
    alone : structures that were kept because they cannot be compared as crystals.
    empty : structures that were compared with the tolerances for cells with empty space.
    """

    twin: NDArray[np.int64]
    compared: int
    alone: int
    empty: int = 0

    @property
    def kept(self) -> NDArray[np.int64]:
        """Indices of the rows that were kept, best first."""
        return np.flatnonzero(self.twin == np.arange(len(self.twin)))


def dedup(
    results: Results, rows: NDArray[Any], tolerances: Tolerances | None = None, step: Step = lambda done, total: None
) -> Deduplication:
    """Find the different structures among `rows`, which come best first and are of one head.

    Raises
    ------
    AtomSieveError
        if the input is missing; DataError if it changed.
    """
    with open_screened_input(results) as reader:
        batch = read_at(reader, rows["position"], ())
    return find_different(batch, rows["energy_per_atom"].astype(np.float64), tolerances or Tolerances(), step)


@dataclass(frozen=True)
class DedupReport:
    """Outcome of `drop_duplicates`: the compared rows, the comparison, and the two files.

    Attributes
    ----------
    rows : [n] the compared rows, best first. found : which of them were kept. written : rows in `out`.
    out, duplicates : the file of the different rows, and the table of the dropped ones.
    mixed : a line about precisions that were compared with each other; None if they are the same.
    """

    rows: NDArray[Any]
    found: Deduplication
    tolerances: Tolerances
    written: int
    out: Path
    duplicates: Path
    mixed: str | None


def drop_duplicates(
    results: Results,
    selection: Selection,
    out: Path,
    tolerances: Tolerances | None = None,
    *,
    overwrite: bool = False,
    step: Step = lambda done, total: None,
) -> DedupReport:
    """Find the duplicates among the selected rows, of one head, and write the others to `out`.

    A table of the dropped rows, `<out>.duplicates.csv`, names the kept row that each matches.

    Raises
    ------
    UsageError
        if the ending of `out` names no format; AtomSieveError if a file is there already, the run is not complete, or
        the input is missing.
    """
    check_format(out)
    duplicates = out.with_name(f"{out.stem}.duplicates.csv")
    check_target(out, overwrite, results)
    if duplicates.exists() and not overwrite:
        raise AtomSieveError(
            f"{duplicates}, the table of duplicates beside {out.name}, is already there; choose another name with "
            "--out, or give --overwrite"
        )
    check_target(duplicates, overwrite, results)
    _, rows = select_one_head(results, selection)
    tolerances = tolerances or Tolerances()
    found = dedup(results, rows, tolerances, step)
    written = export(results, out, [rows[found.kept]], overwrite=overwrite)
    write_duplicates(results, rows, found, duplicates, overwrite=overwrite)
    mixed = describe_mixed_precisions(results, [rows])
    return DedupReport(rows, found, tolerances, written, out, duplicates, mixed)


def format_dedup_lines(report: DedupReport) -> list[str]:
    """Return lines for people: how many rows were kept, and how they were compared."""
    found, tolerances, n = report.found, report.tolerances, len(report.rows)
    lines = [
        f"{pluralize(report.written, 'different structure')} among the best {pluralize(n, 'row')}, "
        f"{pluralize(n - report.written, 'duplicate')}; pairs compared: {found.compared:,}",
        f"{report.out}, {report.duplicates}",
    ]
    if report.mixed is not None:
        lines.append(f"{report.mixed}; energies of both are compared with --energy {tolerances.energy:g}")
    if found.empty:
        lines.append(
            f"{found.empty:,} of the {n:,} have empty space in the cell (slabs, molecules): duplicates of them are "
            f"also within --cell-energy {tolerances.cell_energy:g} eV per cell and --shift {tolerances.shift:g} Å"
        )
    if found.alone:
        lines.append(
            f"{found.alone:,} of them are not crystals (no cell, or little empty space along an axis that is not "
            "periodic); they are kept without comparing"
        )
    return lines


def find_different(
    batch: StructureBatch,
    energy: NDArray[np.float64],
    tolerances: Tolerances,
    step: Step = lambda done, total: None,
) -> Deduplication:
    """Find the different structures of `batch`, best first; `energy [S]` is per atom. `step` receives the progress."""
    matcher = _Matcher(batch, tolerances)
    volume = np.abs(np.linalg.det(batch.cell)) / np.maximum(batch.counts, 1)
    able, empty = _is_comparable(batch), _has_empty_space(batch)
    twin = np.arange(len(batch))
    kept: dict[bytes, list[int]] = defaultdict(list)
    formulas = make_composition_keys(batch.ptr, batch.numbers, "reduced-formula")
    for k in range(len(batch)):
        step(k, len(batch))
        if not able[k]:
            continue
        rivals = kept[formulas[k].tobytes() + batch.pbc[k].tobytes()]
        for other in rivals:
            apart = abs(volume[k] - volume[other]) / min(volume[k], volume[other])
            window, between = tolerances.energy, bool(empty[k] or empty[other])
            if between:
                window = min(window, tolerances.cell_energy / max(batch.counts[k], batch.counts[other]))
            near = abs(energy[k] - energy[other]) <= window and apart <= tolerances.volume
            if near and matcher(other, k, tolerances.shift if between else np.inf):
                twin[k] = other
                break
        else:
            rivals.append(k)
    step(len(batch), len(batch))
    return Deduplication(twin, matcher.compared, int(np.count_nonzero(~able)), int(np.count_nonzero(able & empty)))


def _is_comparable(batch: StructureBatch) -> NDArray[np.bool_]:
    """Return which structures [S] are crystals, or have enough empty space along the axes that are not periodic."""
    solid = (np.abs(np.linalg.det(batch.cell)) > FLAT) & (batch.counts > 0)
    cell = np.where(solid[:, None, None], batch.cell, np.eye(3))
    inverse = np.linalg.inv(cell)
    fractional = np.einsum("ni,nij->nj", batch.positions.astype(np.float64), inverse[batch.structure_of_atom])
    heights = 1.0 / np.linalg.norm(inverse, axis=1)  # between opposite faces of the cell
    extent = np.zeros((len(batch), 3))
    filled = np.flatnonzero(batch.counts)
    if len(filled):
        starts = batch.ptr[filled]
        extent[filled] = np.maximum.reduceat(fractional, starts) - np.minimum.reduceat(fractional, starts)
    empty = (1.0 - extent) * heights
    return solid & (batch.pbc | (empty >= VACUUM)).all(axis=1)


def _has_empty_space(batch: StructureBatch) -> NDArray[np.bool_]:
    """Return which structures [S] have no atom in a layer of `VACUUM` along an axis of their cell."""
    solid = np.abs(np.linalg.det(batch.cell)) > FLAT
    filled = np.flatnonzero(batch.counts > 0)  # with a cell or not: segments of `reduceat` end where the next begins
    found = np.zeros(len(batch), bool)
    if not len(filled):
        return found
    cell = np.where(solid[:, None, None], batch.cell, np.eye(3))
    inverse = np.linalg.inv(cell)
    owner = batch.structure_of_atom
    fractional = np.einsum("ni,nij->nj", batch.positions.astype(np.float64), inverse[owner]) % 1.0
    heights = 1.0 / np.linalg.norm(inverse, axis=1)
    starts, stops = batch.ptr[:-1][filled], batch.ptr[1:][filled]
    for axis in range(3):
        at = fractional[np.lexsort((fractional[:, axis], owner)), axis]  # sorted within each structure
        gap = np.diff(at, append=0.0)
        gap[stops - 1] = at[starts] + 1.0 - at[stops - 1]  # over the face of the cell
        found[filled] |= np.maximum.reduceat(gap, starts) * heights[filled, axis] >= VACUUM
    return found & solid


class _Matcher:
    """Compares two structures of a batch; each is reduced to its primitive cell once, when first needed."""

    def __init__(self, batch: StructureBatch, tolerances: Tolerances) -> None:
        from pymatgen.analysis.structure_matcher import StructureMatcher

        self._batch, self.compared = batch, 0
        self._make = partial(StructureMatcher, ltol=tolerances.length, angle_tol=tolerances.angle)
        self._site = tolerances.site
        self._reduced: dict[int, Any] = {}

    def __call__(self, first: int, second: int, shift: float) -> bool:
        """Return whether two structures match, with no site shifted by more than `shift`, Angstrom."""
        one, other = self._primitive(first), self._primitive(second)
        if len(one) != len(other):
            return False
        self.compared += 1
        length = (min(one.volume, other.volume) / len(one)) ** (1 / 3)  # the matcher's unit of distances
        return bool(self._make(stol=min(self._site, shift / length)).fit(one, other, skip_structure_reduction=True))

    def _primitive(self, k: int) -> Any:
        if k not in self._reduced:
            self._reduced[k] = to_pymatgen(self._batch, k).get_reduced_structure(reduction_algo="niggli")
            self._reduced[k] = self._reduced[k].get_primitive_structure()
        return self._reduced[k]


def to_pymatgen(batch: StructureBatch, k: int) -> Any:
    """Return structure `k` as a pymatgen Structure."""
    from pymatgen.core import Structure

    own = slice(int(batch.ptr[k]), int(batch.ptr[k + 1]))
    return Structure(batch.cell[k], batch.numbers[own].tolist(), batch.positions[own], coords_are_cartesian=True)


def write_duplicates(
    results: Results, rows: NDArray[Any], found: Deduplication, out: Path, *, overwrite: bool = False
) -> None:
    """Write each dropped row with the kept row that it matches, as CSV: position, id, precision, energy per atom."""
    check_target(out, overwrite, results)
    with output_errors(out), atomic_draft(out, durable=False) as draft, open(draft, "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        own = ["position", "id", "precision", "energy_per_atom [eV/atom]"]
        table.writerow([*own, *(f"kept_{name}" for name in own)])
        for k in np.flatnonzero(found.twin != np.arange(len(rows))).tolist():
            pair = (rows[k], rows[found.twin[k]])
            names = ("position", "id", "precision", "energy_per_atom")
            table.writerow([results.labels.text(name, row[name]) for row in pair for name in names])
