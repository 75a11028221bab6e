"""Converts files of every format into dataset folders: streaming, in one process or many, and again after a stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from atomsieve.errors import AtomSieveError, DataError, Interrupted, UsageError
from atomsieve.runs.environment import count_cores
from atomsieve.runs.mpi import Communicator
from atomsieve.runs.output_files import sibling_path
from atomsieve.runs.signals import StopRequest
from atomsieve.structures.conversion import finish
from atomsieve.structures.conversion.finish import ConvertReport, format_skipped
from atomsieve.structures.conversion.options import STDIN, ConvertOptions, Input
from atomsieve.structures.conversion.piece import Job, convert_piece
from atomsieve.structures.conversion.plan import Piece, Plan, make_plan, output_paths
from atomsieve.structures.conversion.progress import ProgressBar, show_progress
from atomsieve.structures.conversion.records import Records, write_record
from atomsieve.structures.conversion.workers import convert_in_processes
from atomsieve.structures.dataset.part_writer import DiskError
from atomsieve.structures.formats import find_files, read_blocks

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["STDIN", "ConvertOptions", "ConvertReport", "Input", "convert", "format_skipped", "output_paths"]

LARGE = 128 << 20
"""Bytes of input from which on several processes are worth their start (about 0.7 s of CPU each)."""
FAST = 8
"""How many times faster than other files those are read that are divided into spans."""
MANY = 4000
"""Files of input from which on they are."""


def convert(
    inputs: Sequence[Input],
    out: Path,
    options: ConvertOptions,
    console: Console | None = None,
    *,
    workers: int | None = None,
    comm: Communicator | None = None,
) -> ConvertReport:
    """Convert files into one dataset folder, or one per set of a split.

    The bytes that are written do not depend on the number of processes. A conversion of several pieces that was
    stopped goes on when it is called again with the same inputs and options.

    Parameters
    ----------
    inputs, out, options
        what is converted, to which folder, and how.
    console
        where a progress bar is drawn.
    workers
        processes that share the work; None: one per core if the input is large.
    comm
        the ranks of an MPI job that share the work instead.

    Raises
    ------
    UsageError
        if labelled structures have no source, or a key that was named is nowhere.
    DataError
        if a file cannot be read at all, no structure is left, or ids are given twice.
    Interrupted
        after Ctrl-C or SIGTERM.
    """
    start = time.monotonic()
    comm = comm or Communicator()
    if comm.size > 1 and workers is not None:
        raise UsageError("--workers is for a command started once; under a launcher its processes share the work")
    if comm.size > 1 and any(given.path == STDIN for given in inputs):
        raise UsageError("standard input reaches one process alone: write it to a file, or start without a launcher")
    options = comm.run_on_first(resolve_ids, inputs, options)
    plan = comm.run_on_first(make_plan, inputs, out, options)
    records = Records(plan, overwrite=options.overwrite)
    job = Job.of(plan, options)
    with StopRequest() as stop:

        def check() -> None:
            if stop.requested:
                raise Interrupted("the conversion was stopped; run the same command again to go on")

        todo = comm.run_on_first(records.begin)
        try:
            with show_progress(console if comm.rank == 0 else None, plan, todo) as bar:
                if comm.size > 1:
                    _convert_on_ranks(comm, job, plan, records, todo, bar, check)
                else:
                    _convert_here(job, plan, records, todo, bar, check, workers)
            report = comm.run_on_first(_finish, job, plan, records, out, check, start)
        except BaseException as error:
            if comm.rank == 0:
                records.leave(error)
            raise
    return report


def resolve_ids(inputs: Sequence[Input], options: ConvertOptions) -> ConvertOptions:
    """Return the options with the key of ids under `text_id` if the first structures of the first file state texts."""
    key = options.keys.id
    if key is None or not inputs or inputs[0].path == STDIN:
        return options
    block = None
    with suppress(AtomSieveError, OSError):  # whatever is wrong is said by the conversion
        for file, kind in find_files(inputs[0].path, options.format)[:1]:
            block = next(read_blocks(options.ask(file, lambda fraction: None), kind), None)
    if block is None:
        return options
    if block.carried is not None and key in block.carried.column_names:
        texts = True
    else:
        column = block.info.get(key)
        texts = column is not None and any(_is_text(value) for value in column.values[:1000].tolist())
    return replace(options, keys=replace(options.keys, id=None), text_id=key) if texts else options


def _is_text(value: object) -> bool:
    """Return whether a value is a text that is no integer."""
    try:
        return isinstance(value, str) and int(value) is None
    except ValueError:
        return True


def _convert_here(
    job: Job,
    plan: Plan,
    records: Records,
    todo: list[int],
    bar: ProgressBar,
    check: Callable[[], None],
    workers: int | None,
) -> None:
    """Convert pieces in this process, or in several started by it."""
    if workers is None:
        files = sum(piece.n_files for piece in plan.pieces)
        work = sum(piece.weight // (1 if piece.stop is None else FAST) for piece in plan.pieces)
        workers = count_cores() if work >= LARGE or files >= MANY else 1
    if min(workers, len(todo)) > 1:
        pieces = [(plan.pieces[number], records.path(number)) for number in todo]
        convert_in_processes(job, pieces, workers, bar, check)
        return
    for number in todo:
        _convert_one(job, plan.pieces[number], records, bar, check)


def _convert_one(
    job: Job, piece: Piece, records: Records, show: Callable[[int, float, int, int], None], check: Callable[[], None]
) -> None:
    """Convert a piece in this process, and record it."""

    def watch(fraction: float, read: int, skipped: int) -> None:
        check()
        show(piece.number, min(fraction, 0.999), read, skipped)

    record = convert_piece(job, piece, watch)
    write_record(records.path(piece.number), record)
    show(piece.number, 1.0, record.counts.read, sum(record.counts.skipped.values()))


def _convert_on_ranks(
    comm: Communicator,
    job: Job,
    plan: Plan,
    records: Records,
    todo: list[int],
    bar: ProgressBar,
    check: Callable[[], None],
) -> None:
    """Convert the pieces that this rank claims; an error on one rank makes all leave after their piece."""
    counted = [0, 0]

    def show(number: int, fraction: float, read: int, skipped: int) -> None:
        comm.count_done(read - counted[0], skipped - counted[1])
        counted[:] = (0, 0) if fraction >= 1.0 else (read, skipped)
        comm.drive_progress()
        if comm.rank == 0:
            bar.show_ranks(number, fraction, *comm.read_counts())

    def claim() -> None:
        for number in comm.claim(todo):
            _convert_one(job, plan.pieces[number], records, show, check)

    error: BaseException | None = None
    try:
        claim()
    except Exception as caught:  # of any kind: it is raised below, on all ranks
        comm.stop_claims()
        error = caught
    wrong = isinstance(error, DataError | UsageError) and not isinstance(error, DiskError)
    if any(comm.all_gather(wrong)):
        records.void = True
    comm.run_on_all(_raise, error)


def _raise(error: BaseException | None) -> None:
    if error is not None:
        raise error


def _finish(
    job: Job, plan: Plan, records: Records, out: Path, check: Callable[[], None], start: float
) -> ConvertReport:
    """Put the pieces together and publish the datasets."""

    def convert_again(piece: Piece, begins: int) -> None:
        write_record(records.path(piece.number), convert_piece(job, piece, lambda *_: check(), begins))

    finish.require_spans_meet(plan, records, convert_again)
    whole = finish.put_together(plan, records, job.options)
    remark = finish.check_ids(whole, records, job.options)
    listed = sibling_path(out, ".skipped.csv") if job.options.list_skipped else None
    listed = finish.publish(records, whole, listed)
    return ConvertReport(
        {path: sum(part.structures for part in whole.parts[name]) for name, path in plan.outputs.items()},
        sum(part.atoms for parts in whole.parts.values() for part in parts),
        whole.sources,
        whole.counts,
        time.monotonic() - start,
        listed,
        len(plan.pieces),
        records.continued,
        (remark,) if remark else (),
    )
