"""What a status means for one structure: the elements never seen, the atoms that touch, the charge, by name.

Only rows without result are looked up, in the structures that were screened.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError
from atomsieve.gfm.manifest import read_manifest
from atomsieve.predict.status import SHORTEST_DISTANCE, Status
from atomsieve.screen.results.record import Results
from atomsieve.screen.results.screened_input import open_screened_input, read_batches_at
from atomsieve.structures import StructureBatch

NAMED = 8  # elements, or pairs of them, that are named
COUNTED = (
    Status.UNSEEN_ELEMENT,
    Status.OVERLAPPING_ATOMS,
    Status.CHARGE_NOT_MODELLED,
    Status.BAD_CHARGE_OR_SPIN,
    Status.MISSING_CHARGE_OR_SPIN,
)
"""Statuses whose causes are alike in many structures."""
_NUMBERED = re.compile(r"^([A-Z][a-z]?)\d+-([A-Z][a-z]?)\d+ .*$")
"""A pair of atoms with their numbers and their distance."""
LOOKED_UP = 10_000
"""Rows without result whose structures `count_causes` reads, the first ones."""
MANY_ATOMS = 5000
"""Atoms of a structure in which no touching pair is looked for: one by one, it would take too long."""


def explain_rows(results: Results, rows: NDArray[Any]) -> NDArray[Any]:
    """Return for each row [n] why it has no result, for this structure (object of type str); empty for the others.

    Raises
    ------
    AtomSieveError
        if structures are needed and the input is gone; DataError if it changed.
    """
    out = np.full(len(rows), "", object)
    failed = np.flatnonzero(rows["status"] != Status.OK)
    if len(failed):
        for k, causes in _find_causes(results, rows[failed], convert=True):
            out[failed[k]] = format_causes(Status(int(rows["status"][failed[k]])), causes)
    return out


def count_causes(results: Results) -> tuple[dict[str, Counter[str]], int]:
    """Return how many structures without result have each cause, by the name of their status, and the rows looked up.

    They are the first `LOOKED_UP` of the chunks that are durable. Nothing is counted where the input, or its
    copy, is gone.
    """
    found: dict[str, Counter[str]] = {}
    looked_up = 0
    for rows in _iter_failed(results):
        rows = rows[: LOOKED_UP - looked_up]
        try:
            for k, causes in _find_causes(results, rows, convert=False):
                status = Status(int(rows["status"][k]))
                if status in COUNTED:
                    kinds = dict.fromkeys(_NUMBERED.sub(r"\1-\2", cause) for cause in causes)
                    found.setdefault(results.labels.status(status), Counter()).update(kinds.keys())
        except AtomSieveError:
            return {}, 0
        looked_up += len(rows)
        if looked_up >= LOOKED_UP:
            break
    return found, looked_up


def _iter_failed(results: Results) -> Iterator[NDArray[Any]]:
    """Yield the rows without result of each chunk whose ledger entry counts some."""
    stored = results.rows()
    for chunk in results.durable():
        entries = results.ledger.get(chunk)
        if entries and not any(code != Status.OK for entry in entries for code in entry.status):
            continue
        first, stop = results.chunks.span(chunk)
        rows = np.asarray(stored[first * results.heads : stop * results.heads])
        if (failed := rows["status"] != Status.OK).any():
            yield rows[failed]


def has_failed_rows(results: Results) -> bool:
    """Return whether any durable row has no result, by the ledger alone."""
    return any(code != Status.OK for own in results.ledger.values() for entry in own for code in entry.status)


def format_causes(status: Status, causes: list[str]) -> str:
    """Return what is wrong with one structure in a few words."""
    if not causes:
        return status.meaning
    some = ", ".join(causes[:NAMED]) + (f", and {len(causes) - NAMED} more" if len(causes) > NAMED else "")
    before = {Status.UNSEEN_ELEMENT: "unseen: ", Status.OVERLAPPING_ATOMS: "touching: "}.get(status, "")
    return f"{before}{some}"


def _find_causes(results: Results, rows: NDArray[Any], *, convert: bool) -> Iterator[tuple[int, list[str]]]:
    """Yield each of the failed rows [n] with its causes, in words that are alike for alike structures.

    convert : convert the screened file again if its copy was removed.
    """
    known = _list_elements(results)
    heads = results.labels.heads
    positions, place = np.unique(rows["position"], return_inverse=True)
    with ExitStack() as stack:
        reader = stack.enter_context(open_screened_input(results, convert=convert))
        of_position: dict[int, list[int]] = {}
        for k, at in enumerate(place.reshape(-1).tolist()):
            of_position.setdefault(at, []).append(k)
        for inside, batch in read_batches_at(reader, positions):
            for own, at in enumerate(range(inside.start, inside.stop)):
                structure = batch.slice(own, own + 1)
                for k in of_position[at]:
                    seen = known.get(heads[int(rows["head"][k])])
                    yield k, find_causes(structure, Status(int(rows["status"][k])), seen)


def _list_elements(results: Results) -> dict[str, set[int]]:
    """Return the elements of each head: those that run.json states, else those of the ensemble, if it is there."""
    stated = results.manifest.get("elements")
    if stated is not None:
        return {head: set(elements) for head, elements in stated.items()}
    folder = results.manifest.get("ensemble_path")
    with suppress(AtomSieveError, OSError):
        return {} if folder is None else {head.name: set(head.references) for head in read_manifest(Path(folder)).heads}
    return {}


def find_causes(structure: StructureBatch, status: Status, seen: set[int] | None) -> list[str]:
    """Return the causes of a status in one structure.

    seen : atomic numbers of the elements that the head was trained on; None where they are not known.
    """
    if status == Status.UNSEEN_ELEMENT:
        found = np.unique(structure.numbers).tolist()
        return [_symbol(z) for z in found if z not in seen] if seen is not None else []
    if status == Status.OVERLAPPING_ATOMS:
        return find_touching_pairs(structure)
    if status in (Status.CHARGE_NOT_MODELLED, Status.BAD_CHARGE_OR_SPIN, Status.MISSING_CHARGE_OR_SPIN):
        return _name_conditions(structure)
    if status == Status.NAN_INPUT:
        return _name_not_finite(structure)
    if status == Status.BAD_CELL:
        lengths = np.linalg.norm(structure.cell[0], axis=1)
        axes = "".join(axis for axis, on in zip("abc", structure.pbc[0], strict=True) if on)
        volume = abs(float(np.linalg.det(structure.cell[0])))
        return [f"periodic along {axes}, vectors of {', '.join(f'{x:.4g}' for x in lengths)} Å, volume {volume:.3g} Å³"]
    if status in (Status.TOO_LARGE, Status.OUT_OF_MEMORY):
        return [f"{len(structure.numbers):,} atoms"]
    return []


def find_touching_pairs(structure: StructureBatch) -> list[str]:
    """Return pairs of atoms closer than `SHORTEST_DISTANCE` as `H3-O7 0.02 Å` (numbers from 0), the closest first."""
    from ase.neighborlist import neighbor_list

    if len(structure.numbers) > MANY_ATOMS:
        return []
    atoms = structure.to_ase()[0]
    first, second, distance = neighbor_list("ijd", atoms, SHORTEST_DISTANCE)
    pairs: dict[tuple[int, int], float] = {}
    for i, j, d in sorted(zip(first.tolist(), second.tolist(), distance.tolist(), strict=True), key=lambda p: p[2]):
        if i <= j:
            pairs.setdefault((i, j), d)
    name = structure.numbers.tolist()
    return [f"{_symbol(name[i])}{i}-{_symbol(name[j])}{j} {d:.3g} Å" for (i, j), d in pairs.items()]


def _symbol(number: int) -> str:
    from ase.data import chemical_symbols

    return chemical_symbols[number] if number < len(chemical_symbols) else f"[{number}]"


def _name_conditions(structure: StructureBatch) -> list[str]:
    out = []
    for name, values in (("charge", structure.charge), ("spin", structure.spin)):
        stated = values is not None and not np.isnan(values[0])
        out.append(f"{name} {values[0]:g}" if stated and values is not None else f"no {name}")
    return [" and ".join(out)]


def _name_not_finite(structure: StructureBatch) -> list[str]:
    bad = np.flatnonzero(~np.isfinite(structure.positions).all(axis=1))
    if not len(bad):
        return ["the cell is not finite"]
    more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
    return [f"position of {_symbol(int(structure.numbers[bad[0]]))}{bad[0]}{more} not finite"]
