"""The rounds of a cascade: which rows a rule takes, and one pass that recomputes them and lays them over their chunks.

A rule is a pure function of a row in the cheaper precision, so whoever applies it, and however often, takes the same
rows. Before a chunk gets its better rows, one line about them is durable in `cascade/NNNNN.notes`: how many, the
largest errors, the time. A chunk that was broken off in between is computed again in the cheaper precision, as any
chunk that does not fit its checksum, and then gets its better rows again.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.predict.status import Status
from atomsieve.screen.cascade.error_bounds import Bounds, Mask, OpenFilter, errors, rank_span
from atomsieve.screen.engine.runner import Runner
from atomsieve.screen.results.columns import MEASURED, ROW
from atomsieve.screen.results.disk_errors import disk_errors
from atomsieve.screen.results.files import partial_path
from atomsieve.screen.results.npy_file import HEADER, read_bytes
from atomsieve.screen.results.screened_input import read_at
from atomsieve.screen.results.writer import ResultWriter
from atomsieve.structures.batch import ragged_index

if TYPE_CHECKING:
    from atomsieve.screen.setup import Job

BETTER = 1
"""Value of the column `precision` of a recomputed row; 0 is the cheaper precision."""
DRAWS = 1 << 32
EXACT: dict[str, float] = dict.fromkeys(MEASURED, 0.0)
"""Bounds of rows that are taken for what they say."""
OF_EVALUATION = (int(Status.NAN_OUTPUT), int(Status.OUT_OF_MEMORY))
"""Reasons for having no result that may not hold in the better precision."""


class Leave(Exception):  # noqa: N818 - a request, not an error
    """Leaves a pass, raised by what it calls between batches."""


@dataclass(frozen=True)
class Rule:
    """What one round recomputes.

    Attributes
    ----------
    kind : "sample" takes a row with the probability share / 2^32 by its place, every row that fulfils the filter and
        ranks up to `threshold`, and those without result for a reason of the evaluation. "bound" takes every row that
        may fulfil the filter and rank up to `threshold`, and those of which the filter is undecided.
    bounds : error of each column in units of its scale; empty in a sample.
    """

    kind: str
    threshold: float
    share: int = 0
    bounds: dict[str, float] = field(default_factory=dict)

    @staticmethod
    def of(plain: dict[str, Any]) -> Rule:
        """Return a rule from plain data."""
        return Rule(**{**plain, "threshold": float(plain["threshold"])})

    def plain(self) -> dict[str, Any]:
        """Return the rule as plain data for JSON, which knows no infinity."""
        return {**asdict(self), "threshold": self.threshold if np.isfinite(self.threshold) else str(self.threshold)}


@dataclass(frozen=True)
class Choice:
    """How rows are chosen: `ScreenOptions.by` and `descending`, and the filter; `heads` rows per structure."""

    by: str
    descending: bool
    filter: OpenFilter
    heads: int

    def takes(self, rule: Rule, rows: NDArray[Any]) -> Mask:
        """Return which rows [n] of the cheaper precision a rule takes."""
        ok = rows["status"] == Status.OK
        if rule.kind == "sample":
            _, high = rank_span(self.by, self.descending, rows, EXACT)
            near, _ = self.filter(rows, EXACT)
            drawn = _draws(rows["position"].astype(np.uint64) * np.uint64(self.heads) + rows["head"]) < rule.share
            return (ok & (drawn | (near & (high <= rule.threshold)))) | np.isin(rows["status"], OF_EVALUATION)
        may, must = self.filter(rows, rule.bounds)
        low, _ = rank_span(self.by, self.descending, rows, rule.bounds)
        return ok & ((may & (low <= rule.threshold)) | (may & ~must))

    def upper(self, rows: NDArray[Any], bounds: Bounds) -> NDArray[np.float64]:
        """Return the largest key that each row may have, of the rows that certainly fulfil the filter."""
        _, must = self.filter(rows, bounds)
        _, high = rank_span(self.by, self.descending, rows, bounds)
        return high[must & (rows["status"] == Status.OK) & np.isfinite(high)]


def _draws(place: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return a number below 2^32 for each place [n], as good as drawn at random (SplitMix64)."""
    with np.errstate(over="ignore"):
        z = place + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (z ^ (z >> np.uint64(31))) >> np.uint64(32)


@dataclass(frozen=True)
class Note:
    """What a round did to a chunk: rows recomputed, rows with another status, largest errors, seconds."""

    chunk: int
    round: int
    rows: int
    changed: int
    errors: dict[str, float]
    seconds: float


def write_note(path: Path, note: Note) -> None:
    """Append a note and make it durable."""
    text = json.dumps(asdict(note), separators=(",", ":")).encode()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        data = b"\n%08x %s\n" % (zlib.crc32(text), text)  # the first newline ends a torn line before it
        while data:  # a full disk takes a part, and gives its reason at the next write
            data = data[os.write(handle, data) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def read_notes(folder: Path) -> list[Note]:
    """Return the notes of all ranks, one of each chunk and round."""
    found: dict[tuple[int, int], Note] = {}
    for path in sorted(folder.glob("*.notes")):
        for line in path.read_bytes().splitlines():
            checksum, _, text = line.partition(b" ")
            if checksum == b"%08x" % zlib.crc32(text):
                note = Note(**json.loads(text))
                found[note.chunk, note.round] = note
    return list(found.values())


@contextmanager
def reading(job: Job) -> Iterator[Callable[[int], NDArray[Any]]]:
    """Give a function that returns the rows of a chunk."""
    handle = os.open(partial_path(job.rows.path), os.O_RDONLY)

    def read(chunk: int) -> NDArray[Any]:
        start, stop = job.rows.bounds(chunk), job.rows.bounds(chunk + 1)
        return np.frombuffer(read_bytes(handle, HEADER + start, HEADER + stop), ROW)

    try:
        yield read
    finally:
        os.close(handle)


def one_pass(
    job: Job, runner: Runner, choice: Choice, rules: list[Rule], claims: Iterator[int], between: Callable[[], None]
) -> None:
    """Recompute what the rules take and is not recomputed yet, in the chunks `claims`.

    between : called before each batch; it may raise `Leave`, as may `claims`.
    """
    writer = ResultWriter(job.folder, job.rows, job.forces, job.comm.rank, job.options.commit_seconds)
    with reading(job) as read, writer:
        try:
            for chunk in claims:
                before = read(chunk)
                since = time.perf_counter()
                rows, forces = _better(job, runner, choice, rules, chunk, before, between)
                if not np.array_equal(rows["precision"], before["precision"]):
                    writer.put(chunk, rows, forces, time.perf_counter() - since)
        except Leave:
            job.comm.stop_claims()  # the other ranks end with the chunk at hand, too
            writer.commit()
            raise


def _better(
    job: Job,
    runner: Runner,
    choice: Choice,
    rules: list[Rule],
    chunk: int,
    before: NDArray[Any],
    between: Callable[[], None],
) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """Return the rows and forces of a chunk with those recomputed that the rules take; a note of each is durable."""
    notes = job.folder.cascade / f"{job.comm.rank:05d}.notes"
    rows, forces, taken = before.copy(), None, before["precision"] == BETTER
    for number, rule in enumerate(rules):
        fresh = choice.takes(rule, before) & ~taken
        if not fresh.any():
            continue
        taken |= fresh
        forces = _forces_of(job, chunk) if forces is None else forces
        start = time.perf_counter()
        _recompute(job, runner, chunk, rows, forces, fresh, between)
        old, new = before[fresh], rows[fresh]
        changed = int((old["status"] != new["status"]).sum())
        note = Note(chunk, number, len(old), changed, errors(old, new), round(time.perf_counter() - start, 6))
        with disk_errors(job.folder.path):
            write_note(notes, note)
    return rows, forces


def _forces_of(job: Job, chunk: int) -> NDArray[np.float32] | None:
    """Return a copy of the forces of a chunk as they are stored, None where none are."""
    if job.forces is None:
        return None
    handle = os.open(partial_path(job.forces.path), os.O_RDONLY)
    try:
        start, stop = job.forces.bounds(chunk), job.forces.bounds(chunk + 1)
        data = read_bytes(handle, HEADER + start, HEADER + stop)
    finally:
        os.close(handle)
    return np.frombuffer(data, "<f4").reshape(-1, *job.forces.shape[1:]).copy()


def _recompute(
    job: Job,
    runner: Runner,
    chunk: int,
    rows: NDArray[Any],
    forces: NDArray[np.float32] | None,
    wanted: Mask,
    between: Callable[[], None],
) -> None:
    """Replace the rows `wanted` of a chunk, and the forces of their structures, by better ones.

    Batches are formed of the wanted structures of the chunk, head by head, so they do not depend on who computes.
    """
    heads, (first, _) = len(runner.heads), job.chunks.span(chunk)
    table = wanted.reshape(-1, heads)
    natoms = rows["natoms"].reshape(-1, heads)[:, 0].astype(np.int64)
    starts = np.cumsum(natoms) - natoms
    for head, name in enumerate(runner.heads):
        local = np.flatnonzero(table[:, head])
        if not len(local):
            continue
        positions = local.astype(np.int64) + first
        batch = read_at(job.reader, positions)
        found, vectors = replace(runner, heads=[name], forces=forces is not None)(batch, 0, between)
        found["position"], found["head"], found["precision"] = positions, head, BETTER
        rows[local * heads + head] = found
        if forces is not None and vectors is not None:
            atoms = ragged_index(starts[local], natoms[local])
            forces.reshape(-1, heads, 3)[atoms, head] = vectors


def best_keys(job: Job, choice: Choice, bounds: Bounds, k: int, between: Callable[[], None]) -> NDArray[np.float64]:
    """Return the k smallest of the largest keys that rows may have, among this rank's share of the chunks."""
    best = np.zeros(0)
    with reading(job) as read:
        for chunk in range(job.comm.rank, job.chunks.count, job.comm.size):
            between()
            best = smallest(np.concatenate([best, choice.upper(read(chunk), bounds)]), k)
    return best


def smallest(values: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Return the k smallest values, in any order."""
    return values if len(values) <= k else np.partition(values, k - 1)[:k]
