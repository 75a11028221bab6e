"""Questions to a results folder, while a run is at work or after: how far, the best rows, the rows as other formats."""

from __future__ import annotations

import ast
import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError, DataError, UsageError, unknown
from atomsieve.runs.lock import holder
from atomsieve.screen.cascade.error_bounds import OF_SPREAD
from atomsieve.screen.results import ledger
from atomsieve.screen.results import run_record as manifest
from atomsieve.screen.results.chunks import Chunks
from atomsieve.screen.results.columns import ROW, describe, rankable
from atomsieve.screen.results.files import HEADER, Folder, part_of
from atomsieve.screen.results.integrity import FORCE, forces_path, require_rows, require_size, unreadable
from atomsieve.screen.results.integrity import damaged as chunks_damaged
from atomsieve.screen.results.screened_input import screened_input
from atomsieve.screen.results.tables import Labels, formulas
from atomsieve.screen.selection.top_k import OK, TopK, Where, row_filter

SHOWN = 10  # damaged chunks that are named
RECENT = 60.0  # seconds of the ledger that the current rate is taken from


@dataclass(frozen=True)
class RunStatus:
    """How far a run is.

    Attributes
    ----------
    chunks : number of chunks in all.
    structures, done : to screen, and durable so far, without what is damaged.
    status : rows per status name, of what is done.
    complete : every row is there under its final name, and nothing is known to be damaged.
    running : who is at work now (host, pid, since), or None.
    per_second : structures per second over the last minute of work, NaN if unknown.
    damaged : chunks whose bytes do not fit the ledger; None if not checked.
    broken : which file is gone or of a wrong size, and what to do, in a line, and nothing counts as done; else None.
    recomputing : all is screened in the first of these precisions, and a cascade recomputes a part in the second.
    """

    folder: Path
    structures: int
    chunks: int
    done: int
    status: dict[str, int]
    complete: bool
    running: dict[str, Any] | None
    per_second: float
    damaged: list[int] | None
    manifest: dict[str, Any]
    broken: str | None = None
    recomputing: tuple[str, str] | None = None

    @property
    def seconds_left(self) -> float:
        """Time left at the current rate; NaN if unknown."""
        return (self.structures - self.done) / self.per_second if self.per_second > 0 else float("nan")

    @property
    def wrong(self) -> str | None:
        """What is damaged and what to do, in a line for people; None if nothing is known to be."""
        if self.broken or not self.damaged:
            return self.broken
        some = ", ".join(map(str, self.damaged[:SHOWN])) + (", ..." if len(self.damaged) > SHOWN else "")
        lacks = f"{len(self.damaged):,} of {self.chunks:,} chunks do not fit their checksums ({some})"
        if self.running is not None:  # which may be about to enter better rows of a cascade that it has written
            return f"{self.folder}: {lacks}; a run is at work there, ask again when it has ended"
        return f"{self.folder}: {lacks}; run the screening again, which computes them again"


class Results:
    """A results folder, opened for reading.

    Attributes
    ----------
    manifest : run.json.
    labels : names of heads and statuses.
    chunks : how the input was cut.
    complete : False while rows are missing; only durable chunks are read then.
    path : of the rows.

    Raises
    ------
    AtomSieveError
        if the folder holds no results; DataError if they are damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.folder = Folder(Path(path))
        self.manifest, self.labels, self.chunks = _described(self.folder)
        self.ledger = ledger.read(self.folder.ledger)
        self.complete = self.folder.rows.exists()
        part = part_of(self.folder.rows)
        gone = len(self.ledger) == self.chunks.count and not part.exists()  # of a complete run
        self.path = self.folder.rows if self.complete or gone else part

    @property
    def heads(self) -> int:
        """Rows per structure."""
        return len(self.labels.heads)

    def durable(self) -> list[int]:
        """Return the chunks that can be read."""
        return list(range(self.chunks.count)) if self.complete else sorted(self.ledger)

    def rows(self) -> NDArray[Any]:
        """Return all rows, mapped from the file; those of chunks that are not durable yet mean nothing."""
        if not self.ledger and not self.path.exists():
            raise AtomSieveError(f"{self.folder.path} has no rows yet; start or continue its run first")
        require_rows(self)
        return np.memmap(self.path, ROW, "r", HEADER, (self.chunks.n * self.heads,))

    def forces(self, atoms: int) -> NDArray[Any] | None:
        """Return the forces `[atoms, H, 3] eV/Angstrom`, mapped from the file; None if the run kept none.

        `atoms` are those of all screened structures.

        Raises
        ------
        DataError
            if the file is gone, or has another size than these atoms need.
        """
        path, shape = forces_path(self), (atoms, self.heads, 3)
        if path is None:
            return None
        require_size(path, HEADER + math.prod(shape) * FORCE.itemsize, "the structures that were screened need")
        if not atoms:
            return np.zeros(shape, FORCE)  # an empty file cannot be mapped
        return np.memmap(path, FORCE, "r", HEADER, shape)

    def iter_rows(self) -> Iterator[NDArray[Any]]:
        """Yield the rows of each durable chunk, in input order."""
        rows = self.rows()
        for chunk in self.durable():
            first, stop = self.chunks.span(chunk)
            yield rows[first * self.heads : stop * self.heads]

    def filter(self, text: str | None) -> Where | None:
        """Compile a row filter for these results."""
        known = self.labels
        where = row_filter(text, known.heads, known.statuses, known.reasons, known.precisions)
        self.check_columns(_names(text), text)
        return where

    def of_head(self, where: str | None, head: str | None) -> str | None:
        """Return the filter `where`, checked alone, for the rows of one head only; the same if that is None."""
        if head is None:
            return where
        if head not in self.labels.heads:
            raise unknown("head", head, self.labels.heads)
        own = f"head == {head!r}"
        if where is None:
            return own
        self.filter(where)  # alone, or brackets that do not close would be completed by ours
        return f"({where}\n) and {own}"  # on a line of its own: no comment takes the bracket in

    def check_columns(self, names: Iterable[str], where: str | None) -> None:
        """Refuse columns that only some rows have: those of the spread, where fewer members screened first.

        A filter `where` that asks for the precision says itself which rows are meant.
        """
        made, asked = self.manifest.get("cascade"), sorted(set(names).intersection(OF_SPREAD))
        if asked and made is not None and "/" in made["first"] and "precision" not in _names(where):
            raise UsageError(
                f"only the rows that the cascade recomputed have {asked[0]!r}, the others are by fewer members "
                f"({made['first']}); choose among the recomputed ones with --where \"precision == '{made['then']}'\", "
                "or screen without --cascade-members"
            )

    def mixed(self, chosen: Iterable[NDArray[Any]]) -> str | None:
        """Return a line for people if some of the rows are in the cheaper precision of a cascade."""
        made = self.manifest.get("cascade")
        if made is None:
            return None
        counts = np.zeros(2, np.int64)
        for rows in chosen:
            counts += np.bincount(rows["precision"][rows["status"] == OK], minlength=2)
        order = ", largest first" if made["descending"] else ""
        kept = "" if made["where"] is None else f", --where {made['where']!r}"
        return (
            None
            if not counts[0]
            else (
                f"{counts[0]:,} of {counts.sum():,} rows are in {made['first']}, not in {made['then']}; the run was "
                f"asked for the best {made['top']:,} by {made['by']}{order}{kept}"
            )
        )

    def top(self, k: int, by: str, *, descending: bool = False, where: str | None = None) -> NDArray[Any]:
        """Return the exact best `k` rows among those that are OK and fulfil `where`, best first."""
        rankable(by)
        keep = self.filter(where)  # first: it says what is wrong with a text that cannot be read
        self.check_columns([by], where)
        best = TopK(k, by, descending=descending, where=keep)
        for rows in self.iter_rows():
            best.add(np.asarray(rows))
        return best.rows()

    def without_result(self, where: str) -> int:
        """Return how many rows fulfil `where` and have no result, so that none of them can be among the best."""
        keep = self.filter(where)
        assert keep is not None
        return sum(int((keep(np.asarray(rows)) & (rows["status"] != OK)).sum()) for rows in self.iter_rows())

    def formulas(self, rows: NDArray[Any]) -> dict[int, str]:
        """Return the formula of each structure of `rows` by position; empty if the input is no longer there."""
        with ExitStack() as stack:
            try:
                reader = stack.enter_context(screened_input(self))
            except AtomSieveError:
                return {}
            return formulas(rows["position"], reader)

    def status(self, *, verify: bool = False) -> RunStatus:
        """Return how far the run is, by its ledger and the sizes of its files; `verify` compares all checksums too."""
        # A chunk may be in the ledgers of several ranks; of equal times the later line counts.
        broken = unreadable(self)
        damaged = chunks_damaged(self) if verify and broken is None else None
        good = set() if broken else self.ledger.keys() - set(damaged or ())
        latest = {chunk: max(reversed(self.ledger[chunk]), key=lambda e: e.time) for chunk in good}
        counts: Counter[int] = Counter()
        for entry in latest.values():
            counts.update(entry.status)
        done = sum(entry.structures for entry in latest.values())
        return RunStatus(
            folder=self.folder.path,
            structures=self.chunks.n,
            chunks=self.chunks.count,
            done=done,
            status={self.labels.status(code): n for code, n in sorted(counts.items())},
            complete=self.complete and not damaged and not broken,
            running=holder(self.folder.lock),
            # the second pass of a cascade enters a chunk again, of which it computed little
            per_second=_rate([min(self.ledger[chunk], key=lambda e: e.time) for chunk in good]),
            damaged=damaged,
            broken=broken,
            manifest=self.manifest,
            recomputing=self._recomputing() if done == self.chunks.n and not self.complete else None,
        )

    def _recomputing(self) -> tuple[str, str] | None:
        made = self.manifest.get("cascade")
        try:
            settled = json.loads(self.folder.bounds.read_text())["settled"]
        except (FileNotFoundError, ValueError, KeyError):  # not there yet; the run itself says what is wrong with it
            settled = False
        return None if made is None or settled else (made["first"], made["then"])


def _described(folder: Folder) -> tuple[dict[str, Any], Labels, Chunks]:
    """Return run.json and what is made of it; errors name the command that starts afresh, for here it is another one.

    Raises
    ------
    AtomSieveError
        if the folder holds no results; DataError if run.json is damaged, or of another version.
    """
    remedy = "start afresh with `screen run ... --overwrite`"
    try:
        found = manifest.read(folder)
        if manifest.record(found) != manifest.record({"columns": describe()}):
            raise DataError(f"{folder.run}: columns of another version of atomsieve; {remedy}")
        return found, Labels.of(found), Chunks.of(found)
    except DataError as error:
        if error.__cause__ is not None:
            raise DataError(f"{folder.run} is damaged: no valid JSON ({error.__cause__}); {remedy}") from error
        plain = json.loads(folder.run.read_text())
        known = plain.get("format") if isinstance(plain, dict) else None
        if known == manifest.FORMAT:
            raise
        if known is None:
            raise DataError(f"{folder.run} is damaged: it does not say its format; {remedy}") from error
        version = f"another version of atomsieve (format {known}, this one reads {manifest.FORMAT})"
        raise DataError(f"{folder.run} is of {version}; {remedy}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{folder.run} is damaged: it lacks what a run writes ({error}); {remedy}") from error


def _names(where: str | None) -> set[str]:
    """Return the names in a row filter that was compiled before."""
    tree = ast.parse((where or "True").strip(), mode="eval")
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _rate(entries: list[ledger.Entry]) -> float:
    """Return structures per second over the last `RECENT` seconds that the ledger tells of."""
    if not entries:
        return float("nan")
    last = max(e.time for e in entries)
    recent = [e for e in entries if e.time > last - RECENT]
    span = last - min(e.time - e.seconds for e in recent)
    return sum(e.structures for e in recent) / span if span > 0 else float("nan")


def said(status: RunStatus, now: float | None = None) -> list[str]:
    """Return a status as lines for people, without what is wrong."""
    from atomsieve.screen.engine.progress import duration

    share = 100.0 * status.done / status.structures
    lines = [f"{status.folder}: {status.done:,} of {status.structures:,} structures ({share:.1f} %)"]
    if status.broken is not None:
        lines = [f"{status.folder}: {status.structures:,} structures"]
    if status.recomputing is not None:
        lines[0] += " screened in {}, recomputing in {} is not finished".format(*status.recomputing)
    if status.running is not None:
        who = status.running
        lines.append(f"running: host {who.get('host')}, process {who.get('pid')}, since {who.get('since')}")
        if status.recomputing is None and np.isfinite(status.seconds_left):
            end = time.strftime("%H:%M:%S", time.localtime((now or time.time()) + status.seconds_left))
            lines.append(f"{status.per_second:,.0f} structures/s, {duration(status.seconds_left)} left (until {end})")
    elif status.broken is None:
        lines.append("complete" if status.complete else "not running; run the same command again to continue")
        if np.isfinite(status.per_second):
            lines.append(f"{status.per_second:,.0f} structures/s in its last minute of work")
    if not status.complete and Folder(status.folder).local.exists():
        lines.append("with --local: what lies on nodes counts once it is brought here, by the run or `screen collect`")
    if status.damaged is not None and not status.damaged:
        lines.append("every durable chunk fits its checksums")
    return lines
