"""Columns about stability beside the rows: from the reference sets of the heads that screened.

The sets stand in the results folder, as they were when the run ended: `references/<head>.safetensors`. A run that is
under way has them in memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.gfm.manifest import same_weights
from atomsieve.screen.results.columns import AUTOMATIC, PLAIN
from atomsieve.screen.results.record import Results
from atomsieve.screen.results.screened_input import open_screened_input, read_numbers_at
from atomsieve.stability.columns import COLUMNS, compute_columns
from atomsieve.stability.hull import HullFinder
from atomsieve.stability.phases import FOLDER, ReferenceSet, count_compositions, read_references
from atomsieve.structures import StructureReader

References = Mapping[str, ReferenceSet]
"""Reference sets by head."""


def load_references(ensemble: str | Path | None, heads: list[str]) -> tuple[dict[str, ReferenceSet], list[str]]:
    """Return the reference sets of heads that an ensemble folder holds, and lines on those that do not count.

    ensemble : the folder, None where servers hold the ensemble and none was named.
    """
    found: dict[str, ReferenceSet] = {}
    notes = []
    for head in heads if ensemble is not None else ():
        assert ensemble is not None
        own = read_references(ensemble, head)
        if own is None:
            continue
        if same_weights(ensemble, own.weights):
            found[head] = own
        else:
            notes.append(
                f"the references of head {head} in {ensemble} are of another ensemble and are not used; make them anew "
                f"with: atomsieve references make {ensemble} --head {head}"
            )
    return found, notes


def find_references(results: Results) -> dict[str, ReferenceSet]:
    """Return the reference sets of the heads of results, those of the run itself where it is under way."""
    if results.references is not None:
        return dict(results.references)
    sets = {head: read_references(results.folder.path, head) for head in results.labels.heads}
    return {head: found for head, found in sets.items() if found is not None}


def has_references(results: Results) -> bool:
    """Return whether there are reference sets; no file is opened."""
    if results.references is not None:
        return bool(results.references)
    return (results.folder.path / FOLDER).is_dir()


def choose_ranking(results: Results, by: str) -> str:
    """Return the name of the column that ranks: `by`, or in place of "auto" the one that says most about stability.

    The energy above the hull if every head has references with compounds, the formation energy if they have elements
    alone, else the energy per atom.
    """
    if by != AUTOMATIC:
        return by
    sets = find_references(results) if has_references(results) else {}
    if not sets or any(head not in sets for head in results.labels.heads):
        return PLAIN
    return "energy_above_hull" if all(found.has_compounds for found in sets.values()) else "formation_energy"


def describe_ranking(results: Results, by: str) -> str | None:
    """Return a line for people on what a ranking is; None where its name says it."""
    if by == PLAIN:
        head = results.labels.heads[0]
        return (
            "ranked by energy per atom: it compares structures of one composition; across compositions it follows the "
            f"elements, not stability (atomsieve references make ENSEMBLE --head {head} gives energies above a hull)"
        )
    if by in COLUMNS:
        sets = find_references(results)
        known = [
            f"{head}: {len(s.elements)} elements, {len(s):,} phases, set {s.digest[:12]}" for head, s in sets.items()
        ]
        return f"ranked by {by} from references of {'; '.join(known)}"
    return None


def list_companions(by: str) -> set[str]:
    """Return the columns that a table shows beside the column that ranks: errors and chances belong to a distance."""
    if by not in COLUMNS:
        return set()
    return {"formation_energy", "energy_above_hull", "sigma_energy_above_hull", "p_stable"} - {by}


class StabilityReader:
    """Values of the columns about stability; the input is opened when they are first asked for."""

    def __init__(self, results: Results) -> None:
        self._results = results
        self._finders: dict[str, HullFinder] | None = None
        self._reader: StructureReader | None = None
        self._last: tuple[NDArray[Any], NDArray[Any], dict[str, NDArray[np.float64]]] | None = None

    def read(self, rows: NDArray[Any], name: str) -> NDArray[np.float64]:
        """Return the values [n] of one column for rows [n], in any order; NaN for heads without references.

        Raises
        ------
        AtomSieveError
            if the input is missing; DataError if it changed.
        """
        if not len(rows):
            return np.zeros(0)
        places, heads = rows["position"].copy(), rows["head"].copy()
        if self._last is None or not (np.array_equal(self._last[0], places) and np.array_equal(self._last[1], heads)):
            self._last = (places, heads, self._compute(rows))
        return self._last[2][name].copy()

    def _compute(self, rows: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
        if self._finders is None:
            self._finders = {head: HullFinder(found) for head, found in find_references(self._results).items()}
        out = {name: np.full(len(rows), np.nan) for name in COLUMNS}
        members = self._results.members()
        for code in np.unique(rows["head"]).tolist():
            head = self._results.labels.heads[code]
            if head not in self._finders:
                continue
            own = np.flatnonzero((rows["head"] == code) & np.isfinite(rows["energy_per_atom"]))
            if not len(own):
                continue
            some = rows[own]
            positions, place = np.unique(some["position"], return_inverse=True)
            compositions = count_compositions(*read_numbers_at(self._open(), positions)).take(place.reshape(-1))
            apart = None
            if members is not None:
                apart = np.asarray(members[some["position"] * self._results.heads + code])
            with np.errstate(divide="ignore", invalid="ignore"):
                factor = some["sigma_energy"].astype(np.float64) / some["energy_std"]
            found = compute_columns(
                self._finders[head], compositions, some["energy_per_atom"].astype(np.float64), apart, factor
            )
            for name, values in found.items():
                out[name][own] = values
        return out

    def _open(self) -> StructureReader:
        if self._reader is None:
            stack = ExitStack()
            self._reader = stack.enter_context(open_screened_input(self._results))
            weakref.finalize(self, stack.close)
        return self._reader
