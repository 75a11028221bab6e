"""Chunks that may have killed a rank: retried last, in isolation from the ranks, and poisoned if they kill again.

A suspect is computed in a separate process (`sandbox`). Nearly all suspects are harmless: they get their results
there, the same bytes as anywhere else, and are forgotten. Where the process dies, the rank survives, starts another one
and counts. At the third death, counting the one that made the chunk a suspect, structures get the status POISONED: the
batch that the process had begun, after which the chunk is tried again without it; or the whole chunk, if no batch was
begun or too many batches were poisoned.

Where such a process cannot be had (a predictor given by the caller that cannot be sent to one, a GPU that allows one
process only), the rank itself computes a suspect, and the next start poisons it after its third death.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from atomsieve.predict.interface import AnyPredictor
from atomsieve.screen.engine.context import RankContext, StopNow
from atomsieve.screen.engine.in_flight import DeathRecord, collect_suspects
from atomsieve.screen.engine.tally import Tally
from atomsieve.screen.failures import translate_loss
from atomsieve.screen.quarantine.rows import blank_chunk_values, poisoned_chunk_rows
from atomsieve.screen.quarantine.sandbox import CannotStart, Recipe, Sandbox
from atomsieve.screen.results.files import ResultsFolder
from atomsieve.screen.results.npy_file import ChunkArrays
from atomsieve.structures.fields import CONDITIONS

log = logging.getLogger(__name__)

DEATHS = 3
"""Deaths at which structures are poisoned."""
INTERRUPTED = 4
"""Jobs that died during the isolated retry of a chunk, at which it is poisoned: each may have had another reason."""
MOST_BATCHES = 8
"""Batches of a chunk that are poisoned one by one."""


def find_suspects(context: RankContext, done: set[int], retried: set[int]) -> dict[int, DeathRecord]:
    """Return the suspects among the chunks that are not durable, the same on every rank.

    done : durable chunks. retried : chunks with POISONED rows that the user wants to retry; they are suspects too.
    """
    if context.runner.served:  # the death of a server is not that of a rank
        return {}
    found = context.comm.run_on_first(collect_suspects, context.files.folder, done)
    return found | {chunk: DeathRecord() for chunk in retried}


def retry_suspects(
    context: RankContext, suspects: Mapping[int, DeathRecord], load: Callable[[], AnyPredictor]
) -> Tally:
    """Compute the suspects together with the other ranks; poisoned structures get rows with that status.

    load : picklable; gives another process the predictor of this run.
    """
    comm, watch, tally = context.comm, context.watch, context.new_tally()
    comm.reset_claims()
    with ExitStack() as stack:
        retry = None
        for chunk in comm.claim(sorted(suspects)):
            if watch.stop.closing:
                break
            if retry is None:
                writer = stack.enter_context(context.files.open_writer(comm.rank, context.options))
                retry = IsolatedRetry(context, open_sandbox(stack, make_recipe(context, load)))
            since = time.perf_counter()
            try:
                with context.clock("suspects"):
                    arrays = retry(chunk, suspects[chunk])
            except StopNow:
                break
            tally.add(arrays.rows)
            writer.put(chunk, arrays, time.perf_counter() - since)
            writer.commit()
            context.report_chunk(chunk, arrays.rows)
        if watch.stop.closing:
            comm.stop_claims()
    return tally


def make_recipe(context: RankContext, load: Callable[[], AnyPredictor]) -> Recipe:
    """Return the recipe by which another process computes as this rank does."""
    reader = context.reader
    return Recipe(reader=reader, identity=reader.identity(), runner=context.runner.detach(), load=load)


def open_sandbox(stack: ExitStack, recipe: Recipe) -> Sandbox | None:
    """Return the process for the suspects of this rank, None where it cannot be had."""
    try:
        return stack.enter_context(Sandbox(recipe))
    except CannotStart as error:
        log_no_sandbox(error)
        return None


def log_no_sandbox(error: Exception) -> None:
    """Log that the rank itself computes its suspects."""
    log.info("suspects are computed by the rank itself: %s", error)


class IsolatedRetry:
    """Computes suspects one after another, in isolation where that is possible."""

    def __init__(self, context: RankContext, sandbox: Sandbox | None) -> None:
        self._context, self._sandbox, self._in_flight = context, sandbox, context.watch.in_flight

    def __call__(self, chunk: int, record: DeathRecord) -> ChunkArrays:
        """Return the arrays of a chunk, computed or poisoned."""
        try:
            found = self._retry(chunk, record)
        except BaseException as error:
            if translate_loss(error) is None:  # else the marker stays, for the next start to count
                self._in_flight.clear()
            raise
        self._in_flight.clear()
        return found

    def _retry(self, chunk: int, record: DeathRecord) -> ChunkArrays:
        if record.deaths >= DEATHS or record.interrupted >= INTERRUPTED:
            return self._poison(chunk, "it is set aside")
        if self._sandbox is not None:
            return self._compute_isolated(chunk, record.deaths)
        return self._compute_in_rank(chunk, record.deaths)

    def _compute_isolated(self, chunk: int, deaths: int) -> ChunkArrays:
        """Compute a chunk in the sandbox, again after each death until it is computed or poisoned."""
        assert self._sandbox is not None
        context = self._context
        without: frozenset[int] = frozenset()  # structures that are poisoned
        batches = 0  # that they come from
        ids, natoms = None, None
        while True:
            self._in_flight.begin(chunk, deaths, isolated=True)
            try:
                found = self._sandbox.compute(*context.chunks.span(chunk), without, context.between)
            except CannotStart as error:
                log_no_sandbox(error)
                self._sandbox = None
                return self._compute_in_rank(chunk, deaths)
            if isinstance(found, ChunkArrays):
                return found
            deaths += 1
            ids, natoms = (ids, natoms) if found.ids is None else (found.ids, found.natoms)
            text = f"chunk {chunk}: the process that computed it died ({found})"
            if deaths < DEATHS:
                log.warning("%s; death %d, at %d it is set aside", text, deaths, DEATHS)
            elif found.batch is not None and batches < MOST_BATCHES:
                without, deaths, batches = without | set(found.batch), 1, batches + 1
                log.warning("%s; a batch of it, %d structures, is set aside", text, len(found.batch))
            else:
                return self._poison(chunk, text, ids, natoms)

    def _compute_in_rank(self, chunk: int, deaths: int) -> ChunkArrays:
        """Compute a chunk in this process: the next start counts its death."""
        context = self._context
        self._in_flight.begin(chunk, deaths)
        first, end = context.chunks.span(chunk)
        return context.runner(context.reader.read(first, end, CONDITIONS), first, context.between)

    def _poison(
        self, chunk: int, why: str, ids: NDArray[np.int64] | None = None, natoms: NDArray[np.int64] | None = None
    ) -> ChunkArrays:
        """Return the arrays of a chunk that is not computed any more."""
        context = self._context
        first, end = context.chunks.span(chunk)
        log.warning("%s; chunk %d (positions %d to %d) is set aside as POISONED", why, chunk, first, end - 1)
        rows = poisoned_chunk_rows(first, end, len(context.runner.heads), ids, natoms)
        arrays = context.files.arrays
        return ChunkArrays(rows, *(blank_chunk_values(file, chunk) for file in (arrays.forces, arrays.members)))


def clear_retry_state(folder: ResultsFolder) -> None:
    """Remove the markers and the counted deaths, on rank 0 after all chunks are durable."""
    for path in (folder.at_hand, folder.deaths):
        path.unlink(missing_ok=True)
