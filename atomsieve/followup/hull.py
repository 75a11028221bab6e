"""Formation energies and energies above the convex hull of chosen rows, by phase diagrams of pymatgen.

There is one phase diagram for each chemical system among the rows, from all references within it. pymatgen builds it
(S. P. Ong et al., Chem. Mater. 20, 1798 (2008)); the energies of all rows of the system are then taken from its facets
at once.
"""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import require, unknown
from atomsieve.followup.hull_references import Entries, join
from atomsieve.runs.output_files import output_errors
from atomsieve.screen.results.formulas import hill_formula
from atomsieve.screen.results.record import Results
from atomsieve.screen.results.targets import check_target
from atomsieve.screen.selection.groups import composition_keys

ROOM = 1 << 22  # numbers held at once while facets are looked up
ROUNDING = 1e-6
"""eV/atom; so much an energy in single precision differs with the batch it was computed in: what lies on a hull by less
is on it, in the table as in the counts."""
TINY = 1e-7  # what a fraction of a phase may be below zero


@dataclass(frozen=True)
class Hull:
    """Energies of n rows, eV/atom; NaN where the hull is not known.

    Attributes
    ----------
    formation : [n] from the elements, each in its lowest reference.
    above : [n] above the hull of the references; negative below it, 0 within `ROUNDING` of it.
    above_all : [n] above the hull of references and rows together: 0 on it.
    phases : [n] what the row would decompose to on the hull of the references: (fraction of atoms, reference).
    missing : [n] atomic numbers of its elements without a reference; not empty where the hull is not known for that.
    systems : number of chemical systems of the rows whose hull is known.
    """

    formation: NDArray[np.float64]
    above: NDArray[np.float64]
    above_all: NDArray[np.float64]
    phases: list[list[tuple[float, int]]]
    missing: list[list[int]]
    systems: int


def lowest(entries: Entries) -> NDArray[np.int64]:
    """Return the usable entry of lowest energy of each reduced formula: others are never on the hull."""
    ptr = np.concatenate([[0], np.cumsum(np.bincount(entries.structure, entries.count, len(entries)))]).astype(np.int64)
    numbers = np.repeat(entries.element, entries.count).astype(np.uint8)
    keys = composition_keys(ptr, numbers, "reduced-formula")
    order = np.lexsort((np.arange(len(entries)), entries.energy, keys[:, 1], keys[:, 0], ~entries.usable))
    order = order[: np.count_nonzero(entries.usable)]
    first = np.ones(len(order), bool)
    first[1:] = (keys[order][1:] != keys[order][:-1]).any(axis=1)
    return np.sort(order[first])


def energies(rows: Entries, references: Entries) -> Hull:
    """Return the energies of `rows` relative to `references`, all of one head."""
    n = len(rows)
    hull = Hull(
        np.full(n, np.nan), np.full(n, np.nan), np.full(n, np.nan), [[] for _ in range(n)], [[] for _ in range(n)], 0
    )
    known, together = _Phases(references), _Phases(join([references, rows]))
    masks = rows.masks()
    systems, member = np.unique(masks[rows.usable], axis=0, return_inverse=True)
    usable, member = np.flatnonzero(rows.usable), member.reshape(-1)
    complete = 0
    for k, system in enumerate(systems):
        mine = usable[member == k]
        elements = _elements(system)
        own = known.within(system)
        lacking = [z for z in elements if z not in known.elements]
        if lacking:
            for row in mine:
                hull.missing[row].extend(lacking)
            continue
        complete += 1
        content = rows.content(mine, np.array(elements))
        fraction = content / content.sum(axis=1, keepdims=True)
        pure = np.array([known.elements[z] for z in elements])
        hull.formation[mine] = rows.energy[mine] - fraction @ pure
        at, phases = known.hull(own, elements, fraction)
        hull.above[mine] = _settled(rows.energy[mine] - at)
        for row, found in zip(mine, phases, strict=True):
            hull.phases[row] = found
        at, _ = together.hull(together.within(system), elements, fraction)
        hull.above_all[mine] = _settled(rows.energy[mine] - at)
    return Hull(hull.formation, hull.above, hull.above_all, hull.phases, hull.missing, complete)


def _settled(difference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 0 where only rounding is left: what is on the hull is not a little above it."""
    return np.where(np.abs(difference) < ROUNDING, 0.0, difference)


def _elements(mask: NDArray[np.uint64]) -> list[int]:
    return [64 * word + bit for word in range(4) for bit in range(64) if int(mask[word]) >> bit & 1]


class _Phases:
    """Entries that may be on a hull, and the diagrams of systems of them."""

    def __init__(self, entries: Entries) -> None:
        self.entries = entries
        self.index = lowest(entries)
        self.masks = entries.masks()[self.index]
        single = np.bitwise_count(self.masks).sum(axis=1) == 1
        self.elements = {
            _elements(self.masks[k])[0]: float(entries.energy[self.index[k]]) for k in np.flatnonzero(single)
        }

    def within(self, system: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the entries that have no other elements than the system, sorted."""
        return self.index[((self.masks & ~system) == 0).all(axis=1)]

    def hull(
        self, chosen: NDArray[np.int64], elements: list[int], fraction: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], list[list[tuple[float, int]]]]:
        """Return the hull's energy [m] at compositions `fraction [m,d]`, eV/atom, and the phases there."""
        from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
        from pymatgen.core import Composition, Element

        symbols = [Element.from_Z(z) for z in elements]
        content = self.entries.content(chosen, np.array(elements))
        entries = [
            PDEntry(Composition(dict(zip(symbols, amount, strict=True))), energy * sum(amount), attribute=index)
            for amount, energy, index in zip(
                content.tolist(), self.entries.energy[chosen].tolist(), chosen.tolist(), strict=True
            )
        ]
        diagram = PhaseDiagram(entries, symbols)
        corners = np.array([np.atleast_1d(np.asarray(facet)) for facet in diagram.facets], np.int64)  # [f,d]
        points = diagram.qhull_entries
        made_of = np.array([[e.composition.get_atomic_fraction(s) for s in symbols] for e in points])
        energy = np.array([e.energy_per_atom for e in points])
        facet, share = _in_facets(made_of[corners], fraction)
        at = (share * energy[corners[facet]]).sum(axis=1)
        index = np.array([int(e.attribute) for e in points])[corners[facet]]
        phases = [
            [(float(x), int(i)) for x, i in sorted(zip(xs, ids, strict=True), key=lambda pair: -pair[0]) if x > TINY]
            for xs, ids in zip(share, index, strict=True)
        ]
        return at, phases


def _in_facets(
    corners: NDArray[np.float64], points: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return for each of `points [m,d]` the facet [m] it lies in, and the shares [m,d] of its corners.

    corners : [f,d,d] compositions of the corners of each facet. Where facets meet, the one in which the point lies
    deepest is taken: a facet that has almost no volume would give rounding errors.
    """
    inverse = np.linalg.inv(corners.transpose(0, 2, 1))  # shares = inverse @ composition
    facet, share = np.zeros(len(points), np.int64), np.zeros(points.shape)
    step = max(ROOM // corners[..., 0].size, 1)
    for start in range(0, len(points), step):
        some = points[start : start + step]
        shares = np.einsum("fij,mj->mfi", inverse, some)
        best = shares.min(axis=2).argmax(axis=1)
        facet[start : start + step] = best
        share[start : start + step] = shares[np.arange(len(some)), best]
    return facet, share


# -- the table -----------------------------------------------------------------------------------------------------

COLUMNS: dict[str, str] = {
    "position": "",
    "id": "",
    "formula": "",
    "natoms": "",
    "head": "",
    "precision": "",
    "energy_per_atom": "eV/atom",
    "formation_energy": "eV/atom",
    "energy_above_hull": "eV/atom",
    "energy_above_all": "eV/atom",
    "energy_std_per_atom": "eV/atom",
    "in_domain": "",
    "decomposes_to": "",
    "missing": "",
}
"""Columns of the table of a hull, with their units."""


def symbol(number: int) -> str:
    """Return the symbol of an element."""
    return hill_formula(np.array([number], np.uint8))


def columns(
    rows: NDArray[Any], names: list[str], head: str, precisions: list[str], hull: Hull, references: Entries
) -> dict[str, list[Any]]:
    """Return the table, lowest above the hull first, rows without a hull last; `names` are the rows' formulas.

    precisions : names behind the column `precision` of the rows.
    """
    order = np.lexsort((rows["position"], np.nan_to_num(hull.above, nan=np.inf)))
    labels = {i: _reduced(references, i) for k in order for _, i in hull.phases[k]}
    with np.errstate(invalid="ignore"):
        spread = rows["energy_std"] / rows["natoms"]
    found: dict[str, list[Any]] = {
        "position": rows["position"][order].tolist(),
        "id": rows["id"][order].tolist(),
        "formula": [names[k] for k in order],
        "natoms": rows["natoms"][order].tolist(),
        "head": [head] * len(order),
        "precision": [precisions[code] for code in rows["precision"][order].tolist()],
        "energy_per_atom": rows["energy_per_atom"][order].tolist(),
        "formation_energy": hull.formation[order].tolist(),
        "energy_above_hull": hull.above[order].tolist(),
        "energy_above_all": hull.above_all[order].tolist(),
        "energy_std_per_atom": spread[order].tolist(),
        "in_domain": rows["in_domain"][order].tolist(),
        "decomposes_to": [" + ".join(f"{x:.3g} {labels[i]}" for x, i in hull.phases[k]) for k in order],
        "missing": [" ".join(symbol(z) for z in hull.missing[k]) for k in order],
    }
    return found


def _reduced(entries: Entries, k: int) -> str:
    own = slice(*np.searchsorted(entries.structure, [k, k + 1]))
    counts = entries.count[own]
    return hill_formula(np.repeat(entries.element[own], counts // np.gcd.reduce(counts)).astype(np.uint8))


def write(table: dict[str, list[Any]], results: Results, out: Path, *, overwrite: bool = False) -> None:
    """Write the table of rows of `results` as .csv or .parquet.

    Raises
    ------
    UsageError
        for another ending; AtomSieveError if the file is there already.
    """
    check_output(out, overwrite, results)
    draft = out.with_name(f".{out.stem}.{os.getpid()}{out.suffix}")
    with output_errors(out):
        try:
            _write(table, draft)
            os.replace(draft, out)
        finally:
            draft.unlink(missing_ok=True)


def _write(table: dict[str, list[Any]], path: Path) -> None:
    if path.suffix == ".csv":
        with open(path, "w", newline="") as file:
            lines = csv.writer(file, lineterminator="\n")
            lines.writerow([f"{name} [{unit}]" if unit else name for name, unit in COLUMNS.items()])
            lines.writerows(zip(*([_text(v) for v in column] for column in table.values()), strict=True))
        return
    pa = require("pyarrow", "data", "writing Parquet")
    parquet = require("pyarrow.parquet", "data", "writing Parquet")
    made = pa.table(table)
    fields = [field.with_metadata({"unit": COLUMNS[field.name]}) for field in made.schema]
    parquet.write_table(made.cast(pa.schema(fields)), path)


def check_output(out: Path, overwrite: bool, results: Results) -> None:
    """Refuse a table that cannot be written, before anything is computed."""
    if out.suffix not in (".csv", ".parquet"):
        raise unknown("format of the table", out.suffix.lstrip("."), ("csv", "parquet"))
    check_target(out, overwrite, results)


def _text(value: Any) -> Any:
    return ("" if np.isnan(value) else repr(value)) if isinstance(value, float) else value
