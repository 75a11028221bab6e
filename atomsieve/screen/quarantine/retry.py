"""Chunks that may have killed a rank: computed last, apart from the ranks, and set aside if they do it again.

A suspect is computed in a process of its own (`isolated`). Nearly all are innocent, get their results there, the same
bytes as everywhere, and are forgotten. Where the process dies, the rank lives, starts another one and counts. With the
third death, that which made the chunk a suspect included, what was at hand is set aside: the batch, where the process
had begun one, and the chunk is tried once more without it; else, or after too many batches, the whole chunk.

Where such a process cannot be had (a predictor given by the caller that cannot be sent to one, a GPU that allows one
process only), a suspect is computed by the rank itself, and at its third death set aside by the next start.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from atomsieve.predict.status import Status
from atomsieve.runs.signals import StopRequest
from atomsieve.screen.engine import in_flight as journal
from atomsieve.screen.engine.in_flight import Record
from atomsieve.screen.failures import translate_loss
from atomsieve.screen.quarantine.rows import blank_chunk_forces, poisoned_chunk_rows
from atomsieve.screen.quarantine.sandbox import CannotStart, Child, Computed, Recipe
from atomsieve.structures.fields import CONDITIONS
from atomsieve.text import pluralize

if TYPE_CHECKING:
    from atomsieve.screen.setup import Job

log = logging.getLogger(__name__)

DEATHS = 3
"""Deaths at which something is set aside."""
INTERRUPTED = 4
"""Jobs that died while the chunk was computed apart, at which it is set aside: each may have had another reason."""
MOST_BATCHES = 8
"""Batches of a chunk that are set aside one by one."""


class _Leave(Exception):  # noqa: N818 - a request, not an error
    """Leaves the chunk at hand."""


def find(job: Job, done: set[int]) -> dict[int, Record]:
    """Return the suspects among the chunks that are not durable, the same on every rank."""
    if job.runner.served:  # the death of a server is not that of a rank
        return {}
    found = job.comm.run_on_first(lambda: journal.suspects(job.folder, done))
    if job.retried:
        found |= {chunk: Record() for chunk in job.retried}
        if job.console is not None:
            job.console.print(
                f"computed once more: {pluralize(len(job.retried), 'chunk')} with POISONED rows", highlight=False
            )
    elif found and job.console is not None:
        job.console.print(
            f"at hand when an earlier run died: {pluralize(len(found), 'chunk')}; computed last, in processes apart",
            highlight=False,
            soft_wrap=True,
        )
    if found and job.log is not None:
        job.log("suspects", chunks={chunk: record.deaths for chunk, record in found.items()})
    return found


def recipe(job: Job, ensemble: str | Path | None, given: Any) -> Recipe:
    """Return what a process needs to compute as this rank does; `given` is a predictor that the caller brought."""
    model = job.runner.predictor
    return Recipe(
        reader=job.reader,
        identity=job.reader.identity(),
        runner=replace(job.runner, predictor=None),  # type: ignore[arg-type]
        predictor=given,
        ensemble=None if ensemble is None else Path(ensemble).absolute(),
        options=job.options,
        backend=model.backend,
        device=str(model.device),
    )


def screen_suspects(
    job: Job, suspects: dict[int, Record], stop: StopRequest, ensemble: str | Path | None, given: Any
) -> None:
    """Compute the suspects together with the other ranks; what is set aside gets rows that say so.

    ensemble, given : as `run_screen` was told: the folder to load, or a predictor that takes its place.
    """

    def between() -> None:
        if stop.closing:
            job.journal.told()
        if stop.requested:
            raise _Leave
        job.look()
        job.comm.drive_progress()
        if job.lock is not None:
            job.lock.check()

    job.comm.reset_claims()
    with ExitStack() as stack:
        court = None
        for chunk in job.comm.claim(sorted(suspects)):
            if stop.closing:
                break
            if court is None:
                writer = stack.enter_context(job.writer())
                court = _Court(job, between, _child(stack, recipe(job, ensemble, given)))
            since = time.perf_counter()
            try:
                with job.clock("suspects"):
                    rows, forces = court.judge(chunk, suspects[chunk])
            except _Leave:
                break
            job.take(rows)
            writer.put(chunk, rows, forces, time.perf_counter() - since)
            writer.commit()
            first, end = job.chunks.span(chunk)
            job.comm.count_done(end - first, int(np.count_nonzero(rows["status"] != Status.OK)))
        if stop.closing:
            job.comm.stop_claims()


def _child(stack: ExitStack, what: Recipe) -> Child | None:
    try:
        return stack.enter_context(Child(what))
    except CannotStart as error:
        _no_process(error)
        return None


def _no_process(error: Exception) -> None:
    log.info("suspects are computed by the rank itself: %s", error)


class _Court:
    """Gives the rows of suspects, one after another."""

    def __init__(self, job: Job, between: Callable[[], None], child: Child | None) -> None:
        self._job, self._between, self._child = job, between, child

    def judge(self, chunk: int, record: Record) -> Computed:
        """Return the rows and forces of a chunk, computed or set aside."""
        try:
            found = self._judge(chunk, record)
        except BaseException as error:
            if translate_loss(error) is None:  # else what is at hand stays there, for the next start to count
                self._job.journal.clear()
            raise
        self._job.journal.clear()
        return found

    def _judge(self, chunk: int, record: Record) -> Computed:
        if record.deaths >= DEATHS or record.interrupted >= INTERRUPTED:
            return self._aside(chunk, "it is set aside")
        if self._child is not None:
            return self._apart(chunk, record.deaths)
        return self._here(chunk, record.deaths)

    def _apart(self, chunk: int, deaths: int) -> Computed:
        """Compute a chunk in the process of its own, as often as it takes."""
        assert self._child is not None
        job = self._job
        without: frozenset[int] = frozenset()  # structures
        batches = 0  # that they are
        ids, natoms = None, None
        while True:
            job.journal.begin(chunk, deaths, apart=True)
            try:
                found = self._child.compute(*job.chunks.span(chunk), without, self._between)
            except CannotStart as error:
                _no_process(error)
                self._child = None
                return self._here(chunk, deaths)
            if isinstance(found, tuple):
                return found
            deaths += 1
            ids, natoms = (ids, natoms) if found.ids is None else (found.ids, found.natoms)
            said = f"chunk {chunk}: the process that computed it died ({found})"
            if deaths < DEATHS:
                log.warning("%s; death %d, at %d it is set aside", said, deaths, DEATHS)
            elif found.batch is not None and batches < MOST_BATCHES:
                without, deaths, batches = without | set(found.batch), 1, batches + 1
                log.warning("%s; a batch of it, %d structures, is set aside", said, len(found.batch))
            else:
                return self._aside(chunk, said, ids, natoms)

    def _here(self, chunk: int, deaths: int) -> Computed:
        """Compute a chunk in this process: its death will be seen by the next start."""
        job = self._job
        job.journal.begin(chunk, deaths)
        first, end = job.chunks.span(chunk)
        return job.runner(job.reader.read(first, end, CONDITIONS), first, self._between)

    def _aside(self, chunk: int, why: str, ids: Any = None, natoms: Any = None) -> Computed:
        job = self._job
        first, end = job.chunks.span(chunk)
        log.warning("%s; chunk %d (positions %d to %d) is set aside as POISONED", why, chunk, first, end - 1)
        rows = poisoned_chunk_rows(first, end, len(job.runner.heads), ids, natoms)
        return rows, blank_chunk_forces(job.forces, chunk)


def settled(job: Job) -> None:
    """Forget what was held against chunks, on rank 0 after all are durable."""
    if not job.runner.served:
        for path in (job.folder.at_hand, job.folder.deaths):
            path.unlink(missing_ok=True)
