"""Checks of the files of a results folder against run.json and the ledger: sizes, headers, checksums."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from atomsieve.errors import DataError
from atomsieve.runs.hashing import compute_crc
from atomsieve.screen.results.columns import ROW
from atomsieve.screen.results.npy_file import FORCE, HEADER, MEMBER, REMEDY, npy_header, require_size
from atomsieve.screen.results.record import Results


def require_forces(results: Results) -> None:
    """Refuse a forces file that is too small for the chunks of the ledger."""
    path = results.forces_path
    if path is not None and results.ledger:
        ends = [entry.forces_at[1] for own in results.ledger.values() for entry in own if entry.forces_at is not None]
        every = len(results.ledger) == results.chunks.count
        require_size(path, HEADER + max(ends, default=0), "the ledger says", least=not every)


def describe_unreadable(results: Results) -> str | None:
    """Return a line with the file that is missing or of a wrong size, and the remedy; None if all are right.

    Compares sizes alone. Early in a run the files may not exist yet.
    """
    known, wanted = len(results.ledger), results.chunks.count
    if not known and not results.complete:
        return None
    try:
        results.require_rows()
        require_forces(results)
        results.members()
    except DataError as error:
        return str(error)
    if known < wanted and results.complete:
        where = f"the ledger of the results, {results.folder.ledger},"
        lacks = f"{where} tells of {known:,} of {wanted:,} chunks" if known else f"{where} is gone"
        return f"{lacks}, though {results.path.name} is complete; {REMEDY}, which computes again what it lacks"
    return None


def require_headers(results: Results) -> None:
    """Refuse files whose headers state another shape or dtype; their sizes were checked before."""
    shapes: dict[Path, tuple[tuple[int, ...], Any]] = {results.path: ((results.chunks.n * results.heads,), ROW)}
    if (path := results.forces_path) is not None:
        atoms = (path.stat().st_size - HEADER) // (results.heads * 3 * FORCE.itemsize)
        shapes[path] = ((atoms, 3) if results.heads == 1 else (atoms, results.heads, 3), FORCE)
    if (path := results.members_path) is not None:
        shapes[path] = ((results.chunks.n * results.heads, results.members_count), MEMBER)
    for path, (shape, dtype) in shapes.items():
        with open(path, "rb") as file:
            if file.read(HEADER) != npy_header(shape, dtype):
                raise DataError(f"{path} does not begin with the header of {shape} values; {REMEDY}")


def find_damaged_chunks(results: Results) -> list[int]:
    """Return the chunks of the ledger whose rows, forces or members do not match their checksums.

    Raises
    ------
    DataError
        if a file is gone, of another size or with another header, so that no chunk can be compared.
    """
    if not results.ledger:  # of a run that has just begun, whose files may not be there yet
        return []
    results.rows()
    require_forces(results)
    results.members()
    require_headers(results)
    places = {"rows": results.path, "forces": results.forces_path, "members": results.members_path}
    paths = {name: path for name, path in places.items() if path is not None}
    widths = {"rows": results.heads * ROW.itemsize, "members": results.heads * results.members_count * MEMBER.itemsize}
    bad = []
    with ExitStack() as stack:
        handles = {name: stack.enter_context(open(path, "rb")).fileno() for name, path in paths.items()}
        for chunk, entries in sorted(results.ledger.items()):
            first, stop = results.chunks.span(chunk)
            spans = {name: (first * width, stop * width) for name, width in widths.items()}
            spans["forces"] = entries[-1].forces_at or (0, 0)
            found = {
                name: compute_crc(handle, HEADER + spans[name][0], HEADER + spans[name][1])
                for name, handle in handles.items()
            }
            if all(any(getattr(entry, name) != crc for name, crc in found.items()) for entry in entries):
                bad.append(chunk)
    return bad
