"""Progress of a run, by its ledger and the sizes of its files, as a value and as lines for people."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atomsieve.runs.lock import read_holder
from atomsieve.screen.results.files import ResultsFolder
from atomsieve.screen.results.integrity import describe_unreadable, find_damaged_chunks
from atomsieve.screen.results.ledger import Entry
from atomsieve.screen.results.record import Results
from atomsieve.text import format_duration

SHOWN = 10  # damaged chunks that are named
RECENT = 60.0  # seconds of the ledger that give the current rate


@dataclass(frozen=True)
class RunStatus:
    """Progress of a run.

    Attributes
    ----------
    chunks : number of chunks in all.
    structures, done : to screen, and durable so far without damaged chunks.
    status : rows per status name, of the durable chunks.
    complete : every row is there under its final name, and no damage is known.
    running : the active run (host, pid, since), or None.
    per_second : structures per second over the last minute of work, NaN if unknown.
    damaged : chunks whose bytes do not match the ledger; None if not checked.
    broken : a line with the file that is missing or of a wrong size, and the remedy; nothing counts as done then.
        Else None.
    recomputing : everything is screened in the first of these precisions, and a cascade recomputes a part in the
        second.
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
        """A line with the damage and its remedy; None if no damage is known."""
        if self.broken or not self.damaged:
            return self.broken
        some = ", ".join(map(str, self.damaged[:SHOWN])) + (", ..." if len(self.damaged) > SHOWN else "")
        lacks = f"{len(self.damaged):,} of {self.chunks:,} chunks do not fit their checksums ({some})"
        if self.running is not None:  # which may be about to enter better rows of a cascade that it has written
            return f"{self.folder}: {lacks}; a run is at work there, ask again when it has ended"
        return f"{self.folder}: {lacks}; run the screening again, which computes them again"


def read_status(results: Results, *, verify: bool = False) -> RunStatus:
    """Return how far the run is, by its ledger and the sizes of its files; `verify` compares all checksums too."""
    # A chunk may be in the ledgers of several ranks; of equal times the later line counts.
    broken = describe_unreadable(results)
    damaged = find_damaged_chunks(results) if verify and broken is None else None
    good = set() if broken else results.ledger.keys() - set(damaged or ())
    latest = {chunk: max(reversed(results.ledger[chunk]), key=lambda e: e.time) for chunk in good}
    counts: Counter[int] = Counter()
    for entry in latest.values():
        counts.update(entry.status)
    done = sum(entry.structures for entry in latest.values())
    recomputing = _recomputing(results) if done == results.chunks.n and not results.complete else None
    return RunStatus(
        folder=results.folder.path,
        structures=results.chunks.n,
        chunks=results.chunks.count,
        done=done,
        status={results.labels.status(code): n for code, n in sorted(counts.items())},
        complete=results.complete and not damaged and not broken,
        running=read_holder(results.folder.lock),
        # the second pass of a cascade records a chunk again, though it computed only a part of it
        per_second=_rate([min(results.ledger[chunk], key=lambda e: e.time) for chunk in good]),
        damaged=damaged,
        broken=broken,
        manifest=results.manifest,
        recomputing=recomputing,
    )


def _recomputing(results: Results) -> tuple[str, str] | None:
    """Return the two precisions of a cascade whose second pass is not finished, else None."""
    made = results.manifest.get("cascade")
    try:
        settled = json.loads(results.folder.bounds.read_text())["settled"]
    except (FileNotFoundError, ValueError, KeyError):  # not there yet; the run itself reports the error
        settled = False
    return None if made is None or settled else (made["first"], made["then"])


def _rate(entries: list[Entry]) -> float:
    """Return structures per second over the last `RECENT` seconds of the ledger."""
    if not entries:
        return float("nan")
    last = max(e.time for e in entries)
    recent = [e for e in entries if e.time > last - RECENT]
    span = last - min(e.time - e.seconds for e in recent)
    return sum(e.structures for e in recent) / span if span > 0 else float("nan")


def format_status_lines(status: RunStatus) -> list[str]:
    """Return a status as lines for people, without damage (see `RunStatus.wrong`)."""
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
            end = time.strftime("%H:%M:%S", time.localtime(time.time() + status.seconds_left))
            lines.append(
                f"{status.per_second:,.0f} structures/s, {format_duration(status.seconds_left)} left (until {end})"
            )
    elif status.broken is None:
        lines.append("complete" if status.complete else "not running; run the same command again to continue")
        if np.isfinite(status.per_second):
            lines.append(f"{status.per_second:,.0f} structures/s in its last minute of work")
    if not status.complete and ResultsFolder(status.folder).local.exists():
        lines.append("with --local: what lies on nodes counts once it is brought here, by the run or `screen collect`")
    if status.damaged is not None and not status.damaged:
        lines.append("every durable chunk fits its checksums")
    return lines
