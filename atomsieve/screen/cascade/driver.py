"""A precision cascade: all candidates in a cheaper precision, then in a better one the rows that could matter.

    screen run candidates.bp -e gfm --cascade bf16:fp32

1. The ordinary loop screens everything in the cheaper precision.
2. Round 0 recomputes a sample: rows all over the input, and the best rows with some beyond them.
3. The error bound is settled from the sample and the ensemble's test vector, times a safety factor, and stored.
4. The next round recomputes every row that could enter the best `top`, or of which `where` is undecided.
5. If a row is found further off than the bound says, or the threshold moved, the bound is raised and 4 repeated.

`cascade.json` holds the rules of all rounds; each is there before a row of its round is computed, so a run that was
broken off goes on to the same bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from atomsieve.errors import AtomSieveError, DataError, Interrupted
from atomsieve.predict.status import Status
from atomsieve.runs.signals import StopRequest
from atomsieve.screen.cascade.error_bounds import FLOOR, Bounds, OpenFilter, Tables, check_rank, largest, rank_span
from atomsieve.screen.cascade.passes import (
    BETTER,
    DRAWS,
    EXACT,
    Choice,
    Leave,
    Note,
    Rule,
    best_keys,
    one_pass,
    read_notes,
    reading,
    smallest,
)
from atomsieve.screen.cascade.predictors import Cascaded, tested
from atomsieve.screen.engine.runner import Runner
from atomsieve.screen.results.columns import MEASURED
from atomsieve.screen.results.files import write_whole
from atomsieve.screen.selection.top_k import TopK
from atomsieve.text import format_duration

if TYPE_CHECKING:
    from atomsieve.screen.options import ScreenOptions
    from atomsieve.screen.setup import Job

FORMAT = 1
SAMPLE = (100, 1000)
"""Rows of round 0 drawn from all over the input, about: one in `PART`, within these numbers."""
BEYOND = (25, 250)
"""Rows of round 0 beyond the best `top`: a quarter of them, within these numbers."""
PART = 20
MOST_ROUNDS = 50
T = TypeVar("T")


@dataclass
class State:
    """What `cascade.json` holds.

    rules : of the rounds so far. tested : errors on the ensemble's test vector. settled : every row that could matter
    is recomputed. first : core seconds and structures of the cheaper pass, as far as they were measured.
    """

    rules: list[Rule]
    tested: dict[str, float]
    settled: bool = False
    first: dict[str, float] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Return it as plain data."""
        rules = [rule.plain() for rule in self.rules]
        return {
            "format": FORMAT,
            "settled": self.settled,
            "rules": rules,
            "tested": self.tested,
            "first": self.first,
            **({"report": self.report} if self.report else {}),
        }


def refine(job: Job, stop: StopRequest, computed: int) -> Job:
    """Recompute what could matter in the better precision; return the job with what all rows say in the end.

    Every chunk must be durable. `computed` structures were screened in this run in the cheaper precision.

    Raises
    ------
    Interrupted
        on every rank, after a signal to any.
    """
    work = _Refining(job, stop)
    state = work.open(computed)
    while True:
        work.recompute(state.rules)
        if state.settled:
            break
        state = work.next(state)
    final = work.counted(state)
    job.comm.run_on_first(lambda: work.report(state))
    return final


class _Refining:
    """The steps of `refine` on one rank."""

    def __init__(self, job: Job, stop: StopRequest) -> None:
        self.job, self.stop, self.options = job, stop, job.options
        model: Any = job.runner.predictor
        self.model: Cascaded = model
        statuses = {int(code): status["name"] for code, status in job.manifest["statuses"].items()}
        reasons = {int(bit): reason["name"] for bit, reason in job.manifest["reasons"].items()}
        self.choice = chosen(job.options, Tables(job.runner.heads, statuses, reasons))
        self.runner: Runner = replace(job.runner, predictor=self.model.better)
        self.path = job.folder.bounds

    # -- agreement -----------------------------------------------------------------------------------------------

    def between(self) -> None:
        """Called every moment: leave if asked to, keep the lock, let MPI work."""
        if self.stop.requested:
            raise Leave
        self.job.look()
        self.job.comm.drive_progress()
        if self.job.lock is not None:
            self.job.lock.check()

    def together(self, step: Callable[[], T]) -> T:
        """Run a step on every rank; if any was asked to stop, all leave."""
        result: T | None = None
        try:
            result = step()
            stopped = False
        except Leave:
            stopped = True
        if any(self.job.comm.all_gather(stopped)):

            def leave() -> None:
                raise Interrupted(
                    f"all structures are screened in {self.model.names[0]}, and a part is recomputed in "
                    f"{self.model.names[1]}; it is safe in {self.job.folder.path}; run the same command again to "
                    "continue"
                )

            self.job.comm.run_on_all(leave)
        return result  # type: ignore[return-value]

    # -- steps ---------------------------------------------------------------------------------------------------

    def open(self, computed: int) -> State:
        """Return the state that an earlier run left, or a new one."""
        seconds = sum(self.job.comm.all_gather(self.job.clock.seconds.get("predict", 0.0)))

        def found() -> State:
            self.job.folder.cascade.mkdir(exist_ok=True)
            if self.path.exists():
                state = read_state(self.path.read_text(), str(self.path))
                return replace(state, settled=state.settled and not computed)  # what was computed anew is looked at
            first = {"structures": computed, "seconds": round(seconds, 3)} if computed else {}
            return State([], tested(self.model, self.job.runner), first=first)

        return self.job.comm.run_on_first(found)

    def recompute(self, rules: list[Rule]) -> None:
        """Recompute what the rules take and is not recomputed yet; afterwards it is durable."""
        if rules:
            self.job.comm.reset_claims()
            with self.job.clock("recompute"):
                self.together(lambda: one_pass(self.job, self.runner, self.choice, rules, self._claims(), self.between))

    def _claims(self) -> Iterator[int]:
        comm = self.job.comm
        for chunk in comm.claim(range(self.job.chunks.count)):
            if self.stop.closing:
                comm.stop_claims()
                raise Leave
            self.between()
            yield chunk

    def threshold(self, bounds: Bounds, k: int) -> float:
        """Return a key that the k best rows in the better precision do not exceed, as far as `bounds` hold."""
        if k == 0:
            return -np.inf
        mine = self.together(lambda: best_keys(self.job, self.choice, bounds, k, self.between))
        parts = self.job.comm.gather_on_first(mine)

        def merged() -> float:
            values = smallest(np.concatenate(parts or []), k)
            return float(values.max()) if len(values) == k else np.inf

        return self.job.comm.run_on_first(merged)

    def next(self, state: State) -> State:
        """Return the state with one more rule, or settled; it is stored."""
        comm, top = self.job.comm, self.options.top
        if not state.rules:
            counts = sum(comm.all_gather(self.job.status), Counter())
            sample = min(max(counts[Status.OK] // PART, SAMPLE[0]), SAMPLE[1])
            share = min(DRAWS, -(-sample * DRAWS // max(counts[Status.OK], 1)))
            beyond = min(max(top // 4, BEYOND[0]), BEYOND[1])
            rule = Rule("sample", self.threshold(EXACT, top + beyond if top else 0), share)
            return self._store(replace_state(state, rule))
        seen = comm.run_on_first(lambda: self._seen(state))
        last = state.rules[-1]
        held = last.kind == "bound" and all(e <= last.bounds.get(name, np.inf) for name, e in seen.items())
        bounds = (
            last.bounds if held else {name: self.options.cascade_safety * max(e, FLOOR) for name, e in seen.items()}
        )
        threshold = self.threshold(bounds, top)
        if held and threshold <= last.threshold:
            state.settled = True
            return self._store(state)
        if len(state.rules) >= MOST_ROUNDS:
            raise AtomSieveError(f"the cascade did not settle in {MOST_ROUNDS} rounds; screen in the better precision")
        return self._store(replace_state(state, Rule("bound", threshold, bounds=bounds)))

    def _seen(self, state: State) -> dict[str, float]:
        """Return the largest errors so far, and say how far the cascade is."""
        notes, by = self.notes(), self.options.by
        seen = largest([state.tested, *(note.errors for note in notes)])
        if self.job.console is not None:
            self.job.console.print(
                f"cascade: {sum(note.rows for note in notes):,} rows recomputed in {self.model.names[1]} after round "
                f"{len(state.rules)}, largest error of {by} {seen.get(by, 0.0):.3g}",
                highlight=False,
                soft_wrap=True,
            )
        return seen

    def notes(self) -> list[Note]:
        """Return the notes of all ranks."""
        return read_notes(self.job.folder.cascade)

    def _store(self, state: State) -> State:
        def write() -> None:
            write_whole(self.path, (json.dumps(state.plain(), indent=1) + "\n").encode())

        self.job.comm.run_on_first(write)
        return state

    def counted(self, state: State) -> Job:
        """Return the job with the best rows and the counts of the final rows, and the better predictor."""
        job, options = self.job, self.options
        final = replace(
            job,
            runner=self.runner,
            status=Counter(),
            poisoned=[],
            top=TopK(options.top, options.by, descending=options.descending, where=job.top.where),
        )

        def scan() -> None:
            with reading(job) as read:
                for chunk in range(job.comm.rank, job.chunks.count, job.comm.size):
                    self.between()
                    final.take(read(chunk))

        with job.clock("reduce"):
            self.together(scan)
        best = final.top.rows()  # of this rank
        low, _ = rank_span(options.by, options.descending, best, EXACT)
        if (best["precision"][low <= state.rules[-1].threshold] != BETTER).any():  # cannot be
            raise AtomSieveError("a row of the best is not recomputed; report this, and screen without --cascade")
        return final

    # -- what it came to -----------------------------------------------------------------------------------------

    def report(self, state: State) -> None:
        """Store what the cascade did, and say it."""
        notes, job = self.notes(), self.job
        rows, seconds = sum(note.rows for note in notes), sum(note.seconds for note in notes)
        bounds = state.rules[-1].bounds
        seen = largest([note.errors for note in notes])
        used = [name for name in MEASURED if name in {self.options.by, *self.choice.filter.used}]
        share = rows / job.rows.shape[0]
        state.report = {
            "rows": job.rows.shape[0],
            "recomputed": rows,
            "rounds": len(state.rules),
            "status_changed": sum(note.changed for note in notes),
            "safety": self.options.cascade_safety,
            "bounds": {name: bounds.get(name) for name in used},
            "largest_errors": {n: seen.get(n) for n in used},
            "recompute_seconds": round(seconds, 3),
            **_saved(state.first, job.chunks.n, rows, seconds, job.rows.shape[0]),
        }
        self._write_report(state)
        cheap, better = self.model.names
        lines = [
            f"cascade {cheap} -> {better}: {rows:,} of {job.rows.shape[0]:,} rows recomputed ({share:.1%}) in "
            f"{len(state.rules)} rounds"
        ]
        for name in used:
            if name in bounds:
                lines.append(
                    f"{name}: bound {bounds[name]:.3g}, largest error seen {seen.get(name, 0.0):.3g}, both in "
                    f"units of the column's scale; safety factor {self.options.cascade_safety:g}"
                )
        if "saved" in state.report:
            lines.append(said_saved(state.report, better))
        if job.console is not None:
            for line in lines:
                job.console.print(line, highlight=False, soft_wrap=True)
        if job.log is not None:
            job.log("cascade", **state.report)

    def _write_report(self, state: State) -> None:
        write_whole(self.path, (json.dumps(state.plain(), indent=1) + "\n").encode())


def chosen(options: ScreenOptions, tables: Tables) -> Choice:
    """Return how rows are chosen.

    Raises
    ------
    UsageError
        if the rows are ranked or filtered by what has no error bound.
    """
    whole = options.cascade_members is None
    check_rank(options.by, members=whole)
    found = OpenFilter(options.where, tables, members=whole)
    return Choice(options.by, options.descending, found, len(tables.heads))


def check(options: ScreenOptions, heads: list[str], statuses: Mapping[int, str], reasons: Mapping[int, str]) -> None:
    """Refuse a choice of rows that a cascade cannot answer, before anything is computed."""
    if options.cascade is not None:
        chosen(options, Tables(heads, statuses, reasons))


def replace_state(state: State, rule: Rule) -> State:
    """Return the state with one more rule."""
    return replace(state, rules=[*state.rules, rule])


def read_state(text: str, path: str) -> State:
    """Return the state in the text of a cascade.json."""
    try:
        plain = json.loads(text)
        if plain["format"] != FORMAT:
            raise DataError(f"{path} has format {plain['format']!r}, this version reads {FORMAT}; use --overwrite")
        rules = [Rule.of(rule) for rule in plain["rules"]]
        return State(rules, plain["tested"], plain["settled"], plain["first"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not readable ({error}); start afresh with --overwrite") from error


def _saved(first: dict[str, float], structures: int, rows: int, seconds: float, all_rows: int) -> dict[str, float]:
    """Return the share of computing time saved, estimated by the time of the recomputed rows."""
    if not first or not rows:
        return {}
    alone = seconds / rows * all_rows
    cheap = first["seconds"] / first["structures"] * structures
    return {
        "first_seconds": round(cheap, 3),
        "alone_seconds": round(alone, 3),
        "saved": round(1 - (cheap + seconds) / alone, 4),
    }


def said_saved(report: dict[str, Any], better: str) -> str:
    """Return the time saved as a line for people."""
    spent = report["first_seconds"] + report["recompute_seconds"]
    word = "less" if report["saved"] >= 0 else "MORE"
    return (
        f"computing took {format_duration(spent)}, summed over the ranks: an estimated "
        f"{abs(report['saved']):.0%} {word} than "
        f"everything in {better} ({format_duration(report['alone_seconds'])}, by the time of the recomputed rows)"
    )
