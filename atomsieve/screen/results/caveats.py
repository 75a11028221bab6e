"""Lines that warn about rows which cannot be compared with each other as they stand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.predict.status import Status
from atomsieve.screen.results.code_names import CodeNames
from atomsieve.screen.results.record import Results
from atomsieve.screen.results.table import ResultColumn

SAME = 1e-9  # eV/atom; two energies that differ by less are one


def describe_mixed_precisions(results: Results, chosen: Iterable[NDArray[Any]]) -> str | None:
    """Return a line for people if some of the rows are in the cheaper precision of a cascade."""
    cascade = results.manifest.get("cascade")
    if cascade is None:
        return None
    counts = np.zeros(2, np.int64)
    for rows in chosen:
        counts += np.bincount(rows["precision"][rows["status"] == Status.OK], minlength=2)
    if not counts[0]:
        return None
    order = ", largest first" if cascade["descending"] else ""
    kept = "" if cascade["where"] is None else f", --where {cascade['where']!r}"
    return (
        f"{counts[0]:,} of {counts.sum():,} rows are in {cascade['first']}, not in {cascade['then']}; the run was "
        f"asked for the best {cascade['top']:,} by {cascade['by']}{order}{kept}"
    )


def describe_mixed_heads(names: CodeNames, by: str, where: str | None) -> str | None:
    """Return a line for people if energies of several heads were ranked together.

    by, where : the column that ranked the rows, and their filter.
    """
    if by not in ("energy", "energy_per_atom") or len(names.heads) == 1 or "head" in (where or ""):
        return None
    return (
        f"{len(names.heads)} heads are ranked together, and energies of different heads have different zeros; --head "
        f"chooses one: {', '.join(names.heads)}"
    )


def describe_bare_hulls(rows: NDArray[Any], beside: Sequence[ResultColumn]) -> str | None:
    """Return a line for people on rows [n] whose hull is made of elements alone: no competing phase is known there.

    beside : columns of the rows; without both energies there is no line.
    """
    found = {column.name: column for column in beside if column.name in ("formation_energy", "energy_above_hull")}
    if len(found) < 2 or not len(rows):
        return None
    formation, above = (found[name].values(rows) for name in ("formation_energy", "energy_above_hull"))
    bare = int(np.count_nonzero(np.abs(formation - above) < SAME))
    if not bare:
        return None
    return (
        f"for {bare:,} of these {len(rows):,} rows the references know no compound that competes: their distance above "
        "the hull is their formation energy, and a negative one does not say that they are stable"
    )
