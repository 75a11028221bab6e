"""Refinement passes of a cascade: which rows a rule takes, and one pass that recomputes them in their chunks.

A rule is a pure function of a row in the cheaper precision: any rank takes the same rows, however often it applies
the rule. Before a chunk gets its better rows, one line about them is durable in `cascade/NNNNN.notes`: their number,
the largest errors, the time. A chunk that was interrupted in between does not match its checksum. It is computed
again in the cheaper precision, as any such chunk, and then gets its better rows again.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.predict.status import Status
from atomsieve.runs.output_files import disk_errors
from atomsieve.screen.cascade.error_bounds import Bounds, Mask, OpenFilter, measure_errors, rank_span
from atomsieve.screen.engine.context import RankContext, StopNow
from atomsieve.screen.engine.result_files import ChunkReader
from atomsieve.screen.engine.rows import Rows
from atomsieve.screen.results.columns import MEASURED
from atomsieve.screen.results.npy_file import ChunkArrays
from atomsieve.screen.results.screened_input import read_at
from atomsieve.screen.results.writer import ResultWriter
from atomsieve.structures.batch import ragged_index

BETTER = 1
"""Value of the column `precision` of a recomputed row; 0 is the cheaper precision."""
DRAWS = 1 << 32
EXACT: dict[str, float] = dict.fromkeys(MEASURED, 0.0)
"""Bounds of rows whose values are taken as they are."""
OF_EVALUATION = (int(Status.NAN_OUTPUT), int(Status.OUT_OF_MEMORY))
"""Reasons for having no result that may not hold in the better precision."""


@dataclass(frozen=True)
class Rule:
    """Which rows one pass recomputes.

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
    def from_plain(plain: dict[str, Any]) -> Rule:
        """Return a rule from plain data."""
        return Rule(**{**plain, "threshold": float(plain["threshold"])})

    def to_plain(self) -> dict[str, Any]:
        """Return the rule as plain data for JSON, which knows no infinity."""
        return {**asdict(self), "threshold": self.threshold if np.isfinite(self.threshold) else str(self.threshold)}


@dataclass(frozen=True)
class Choice:
    """How rows are chosen: `ScreenOptions.by` and `descending`, and the filter; `heads` rows per structure."""

    by: str
    descending: bool
    filter: OpenFilter
    heads: int

    def takes(self, rule: Rule, rows: Rows) -> Mask:
        """Return which rows [n] of the cheaper precision a rule takes."""
        ok = rows["status"] == Status.OK
        if rule.kind == "sample":
            _, high = rank_span(self.by, self.descending, rows, EXACT)
            near, _ = self.filter(rows, EXACT)
            place = rows["position"].astype(np.uint64) * np.uint64(self.heads) + rows["head"]
            drawn = draw_numbers(place) < rule.share
            return (ok & (drawn | (near & (high <= rule.threshold)))) | np.isin(rows["status"], OF_EVALUATION)
        may, must = self.filter(rows, rule.bounds)
        low, _ = rank_span(self.by, self.descending, rows, rule.bounds)
        return ok & ((may & (low <= rule.threshold)) | (may & ~must))

    def upper_keys(self, rows: Rows, bounds: Bounds) -> NDArray[np.float64]:
        """Return the largest key that each row may have, of the rows that certainly fulfil the filter."""
        _, must = self.filter(rows, bounds)
        _, high = rank_span(self.by, self.descending, rows, bounds)
        return high[must & (rows["status"] == Status.OK) & np.isfinite(high)]


def draw_numbers(place: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return a pseudo-random number below 2^32 for each place [n] (SplitMix64 of the place)."""
    with np.errstate(over="ignore"):
        z = place + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (z ^ (z >> np.uint64(31))) >> np.uint64(32)


@dataclass(frozen=True)
class Note:
    """The outcome of a pass in a chunk: rows recomputed, rows with another status, largest errors, seconds."""

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
    """Return the notes of all ranks, one of each chunk and pass."""
    found: dict[tuple[int, int], Note] = {}
    for path in sorted(folder.glob("*.notes")):
        for line in path.read_bytes().splitlines():
            checksum, _, text = line.partition(b" ")
            if checksum == b"%08x" % zlib.crc32(text):
                note = Note(**json.loads(text))
                found[note.chunk, note.round] = note
    return list(found.values())


def recompute_chunks(context: RankContext, choice: Choice, rules: list[Rule], claims: Iterator[int]) -> None:
    """Recompute the rows that the rules take and that are not recomputed yet, in the chunks `claims`.

    context : with a runner in the better precision.

    Raises
    ------
    StopNow
        if a signal asks to stop, between batches or by `claims`; what is recomputed by then is durable.
    """
    files = context.files
    writer = ResultWriter(files.folder, files.arrays, context.comm.rank, context.options.commit_seconds)
    with files.open_chunks() as stored, writer:
        try:
            for chunk in claims:
                before = stored.read_rows(chunk)
                since = time.perf_counter()
                arrays = _recompute_chunk(context, choice, rules, chunk, before, stored)
                if not np.array_equal(arrays.rows["precision"], before["precision"]):
                    writer.put(chunk, arrays, time.perf_counter() - since)
        except StopNow:
            context.comm.stop_claims()  # the other ranks end with their current chunk, too
            writer.commit()
            raise


def _recompute_chunk(
    context: RankContext, choice: Choice, rules: list[Rule], chunk: int, before: Rows, stored: ChunkReader
) -> ChunkArrays:
    """Return the arrays of a chunk with the rows recomputed that the rules take; a note of each is durable."""
    folder = context.files.folder
    notes = folder.cascade / f"{context.comm.rank:05d}.notes"
    arrays, taken = ChunkArrays(before.copy()), before["precision"] == BETTER
    for number, rule in enumerate(rules):
        fresh = choice.takes(rule, before) & ~taken
        if not fresh.any():
            continue
        taken |= fresh
        if arrays.forces is None and arrays.members is None:
            arrays = ChunkArrays(arrays.rows, stored.read_forces(chunk), stored.read_members(chunk))
        start = time.perf_counter()
        _replace_rows(context, chunk, arrays, fresh)
        old, new = before[fresh], arrays.rows[fresh]
        changed = int((old["status"] != new["status"]).sum())
        seconds = round(time.perf_counter() - start, 6)
        note = Note(chunk, number, len(old), changed, measure_errors(old, new), seconds)
        with disk_errors(folder.path):
            write_note(notes, note)
    return arrays


def _replace_rows(context: RankContext, chunk: int, arrays: ChunkArrays, wanted: Mask) -> None:
    """Replace the rows `wanted` of a chunk, their members, and the forces of their structures, by better ones.

    Batches are formed of the wanted structures of the chunk, head by head, so they do not depend on which rank computes
    them.
    """
    runner, (rows, forces, members) = context.runner, arrays
    heads, (first, _) = len(runner.heads), context.chunks.span(chunk)
    table = wanted.reshape(-1, heads)
    natoms = rows["natoms"].reshape(-1, heads)[:, 0].astype(np.int64)
    starts = np.cumsum(natoms) - natoms
    for head, name in enumerate(runner.heads):
        local = np.flatnonzero(table[:, head])
        if not len(local):
            continue
        positions = local.astype(np.int64) + first
        batch = read_at(context.reader, positions)
        computed = replace(runner, heads=[name], forces=forces is not None)(batch, 0, context.between)
        found, vectors = computed.rows, computed.forces
        found["position"], found["head"], found["precision"] = positions, head, BETTER
        rows[local * heads + head] = found
        if members is not None and computed.members is not None:
            members[local * heads + head] = computed.members
        if forces is not None and vectors is not None:
            atoms = ragged_index(starts[local], natoms[local])
            forces.reshape(-1, heads, 3)[atoms, head] = vectors


def find_best_keys(context: RankContext, choice: Choice, bounds: Bounds, k: int) -> NDArray[np.float64]:
    """Return the k smallest of the largest keys that rows may have, among this rank's share of the chunks."""
    best = np.zeros(0)
    with context.files.open_chunks() as stored:
        for chunk in range(context.comm.rank, context.chunks.count, context.comm.size):
            context.between()
            best = smallest(np.concatenate([best, choice.upper_keys(stored.read_rows(chunk), bounds)]), k)
    return best


def smallest(values: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Return the k smallest values, in any order."""
    return values if len(values) <= k else np.partition(values, k - 1)[:k]
