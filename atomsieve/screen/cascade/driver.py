"""A precision cascade: all candidates in a cheaper precision, then in a better one the rows that could matter.

    screen run candidates.bp -e gfm --cascade bf16:fp32

1. The main loop screens everything in the cheaper precision.
2. Pass 0 recomputes a sample: rows all over the input, and the best rows with some beyond them.
3. The error bound is computed from the sample and the ensemble's test vector, times a safety factor, and stored.
4. The next pass recomputes every row that could enter the best `top`, or of which `where` is undecided.
5. If a row is further off than the bound, or the threshold moved, the bound is raised and step 4 repeated.

`cascade.json` holds the rules of all passes. Each rule is stored before a row of its pass is computed, so an
interrupted run continues to the same bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ParamSpec, TypeVar

import numpy as np

from atomsieve.errors import AtomSieveError, DataError, Interrupted
from atomsieve.predict.status import Status
from atomsieve.runs.output_folder import write_output
from atomsieve.screen.cascade.error_bounds import (
    FLOOR,
    Bounds,
    OpenFilter,
    Tables,
    check_rankable,
    merge_largest,
    rank_span,
)
from atomsieve.screen.cascade.passes import (
    BETTER,
    DRAWS,
    EXACT,
    Choice,
    Note,
    Rule,
    find_best_keys,
    read_notes,
    recompute_chunks,
    smallest,
)
from atomsieve.screen.cascade.predictors import CascadePredictor, measure_vector_errors
from atomsieve.screen.engine.context import RankContext, StopNow
from atomsieve.screen.engine.tally import Tally
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.results.columns import MEASURED
from atomsieve.text import format_duration

FORMAT = 1
SAMPLE = (100, 1000)
"""Rows of pass 0 drawn from all over the input, about: one in `PART`, within these numbers."""
BEYOND = (25, 250)
"""Rows of pass 0 beyond the best `top`: a quarter of them, within these numbers."""
PART = 20
MOST_PASSES = 50
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class CascadeState:
    """The content of `cascade.json`.

    Attributes
    ----------
    rules : of the passes so far. vector_errors : largest errors on the ensemble's test vector.
    settled : every row that could matter is recomputed.
    first : core seconds and structures of the cheaper pass, as far as they were measured.
    report : the outcome, once settled.
    """

    rules: list[Rule]
    vector_errors: dict[str, float]
    settled: bool = False
    first: dict[str, float] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """Return the state as plain data."""
        return {
            "format": FORMAT,
            "settled": self.settled,
            "rules": [rule.to_plain() for rule in self.rules],
            "tested": self.vector_errors,
            "first": self.first,
            **({"report": self.report} if self.report else {}),
        }


def refine(context: RankContext, chunks: Iterable[int], seen: Tally, pair: CascadePredictor) -> Tally:
    """Recompute the rows that could matter in the better precision; return the tally of the final rows.

    Every chunk must be durable.

    context : with a runner in the better precision, see `use_better`.
    chunks : those that this run computed in the cheaper precision. seen : all rows in the cheaper precision.

    Raises
    ------
    Interrupted
        on every rank, after a signal to any.
    """
    refinement = _Refinement(context, pair)
    state = refinement.open_state(context.count_structures(chunks))
    while True:
        refinement.recompute(state.rules)
        if state.settled:
            break
        state = refinement.next_state(state, seen)
    final = refinement.tally_final_rows(state)
    context.comm.run_on_first(refinement.report, state)
    return final


def use_better(context: RankContext, pair: CascadePredictor) -> RankContext:
    """Return the context with a runner in the better precision."""
    return replace(context, runner=replace(context.runner, predictor=pair.better))


class _Refinement:
    """The steps of `refine` on one rank."""

    def __init__(self, context: RankContext, pair: CascadePredictor) -> None:
        self.context, self.pair, self.options = context, pair, context.options
        self.choice = choose_rows(context.options, row_tables(context))
        self.path = context.files.folder.bounds

    # -- agreement -----------------------------------------------------------------------------------------------

    def _run_or_leave(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Call a step on every rank; if any was asked to stop, all leave."""
        result: T | None = None
        try:
            result = step(*args, **kwargs)
            stopped = False
        except StopNow:
            stopped = True
        if any(self.context.comm.all_gather(stopped)):
            self.context.comm.run_on_all(self._leave)
        return result

    def _leave(self) -> None:
        cheap, better = self.pair.names
        raise Interrupted(
            f"all structures are screened in {cheap}, and a part is recomputed in {better}; it is safe in "
            f"{self.context.files.folder.path}; run the same command again to continue"
        )

    # -- steps ---------------------------------------------------------------------------------------------------

    def open_state(self, computed: int) -> CascadeState:
        """Return the state that an earlier run left, or a new one; `computed` structures are new."""
        seconds = sum(self.context.comm.all_gather(self.context.clock.seconds.get("predict", 0.0)))
        return self.context.comm.run_on_first(self._read_or_begin, computed, seconds)

    def _read_or_begin(self, computed: int, seconds: float) -> CascadeState:
        self.context.files.folder.cascade.mkdir(exist_ok=True)
        if self.path.exists():
            state = read_state(self.path.read_text(), str(self.path))
            return replace(state, settled=state.settled and not computed)  # rows that were computed again are checked
        first = {"structures": computed, "seconds": round(seconds, 3)} if computed else {}
        return CascadeState([], measure_vector_errors(self.pair, self.context.runner), first=first)

    def recompute(self, rules: list[Rule]) -> None:
        """Recompute the rows that the rules take and that are not recomputed yet; afterwards they are durable."""
        if rules:
            self.context.comm.reset_claims()
            with self.context.clock("recompute"):
                self._run_or_leave(recompute_chunks, self.context, self.choice, rules, self._claim_chunks())

    def _claim_chunks(self) -> Iterator[int]:
        comm = self.context.comm
        for chunk in comm.claim(range(self.context.chunks.count)):
            if self.context.watch.stop.closing:
                comm.stop_claims()
                raise StopNow
            self.context.between()
            yield chunk

    def find_threshold(self, bounds: Bounds, k: int) -> float:
        """Return a key that the k best rows in the better precision do not exceed, as far as `bounds` hold."""
        if k == 0:
            return -np.inf
        own = self._run_or_leave(find_best_keys, self.context, self.choice, bounds, k)
        parts = self.context.comm.gather_on_first(own)

        def merge() -> float:
            values = smallest(np.concatenate([part for part in parts or [] if part is not None]), k)
            return float(values.max()) if len(values) == k else np.inf

        return self.context.comm.run_on_first(merge)

    def next_state(self, state: CascadeState, seen: Tally) -> CascadeState:
        """Return and store the state with one more rule, or settled. `seen` counts the rows of the cheaper pass."""
        comm, top = self.context.comm, self.options.top
        if not state.rules:
            counts: Counter[int] = sum(comm.all_gather(seen.status), Counter())
            ok = counts[Status.OK]
            sample = min(max(ok // PART, SAMPLE[0]), SAMPLE[1])
            share = min(DRAWS, -(-sample * DRAWS // max(ok, 1)))
            beyond = min(max(top // 4, BEYOND[0]), BEYOND[1])
            rule = Rule("sample", self.find_threshold(EXACT, top + beyond if top else 0), share)
            return self._store(add_rule(state, rule))
        errors = comm.run_on_first(self._report_errors, state)
        last = state.rules[-1]
        held = last.kind == "bound" and all(e <= last.bounds.get(name, np.inf) for name, e in errors.items())
        safety = self.options.cascade_safety
        bounds = last.bounds if held else {name: safety * max(e, FLOOR) for name, e in errors.items()}
        threshold = self.find_threshold(bounds, top)
        if held and threshold <= last.threshold:
            return self._store(replace(state, settled=True))
        if len(state.rules) >= MOST_PASSES:
            raise AtomSieveError(f"the cascade did not settle in {MOST_PASSES} rounds; screen in the better precision")
        return self._store(add_rule(state, Rule("bound", threshold, bounds=bounds)))

    def _report_errors(self, state: CascadeState) -> dict[str, float]:
        """Return the largest errors so far, and print how far the cascade is."""
        notes, by = self.read_notes(), self.options.by
        errors = merge_largest([state.vector_errors, *(note.errors for note in notes)])
        self.context.reporter.show(
            f"cascade: {sum(note.rows for note in notes):,} rows recomputed in {self.pair.names[1]} after round "
            f"{len(state.rules)}, largest error of {by} {errors.get(by, 0.0):.3g}"
        )
        return errors

    def read_notes(self) -> list[Note]:
        """Return the notes of all ranks."""
        return read_notes(self.context.files.folder.cascade)

    def _store(self, state: CascadeState) -> CascadeState:
        self.context.comm.run_on_first(self._write, state)
        return state

    def _write(self, state: CascadeState) -> None:
        write_output(self.path, (json.dumps(state.to_plain(), indent=1) + "\n").encode())

    def tally_final_rows(self, state: CascadeState) -> Tally:
        """Return the tally of this rank's share of the final rows."""
        final = self.context.new_tally()
        with self.context.clock("reduce"):
            self._run_or_leave(self._tally_chunks, final)
        best = final.best.rows()
        low, _ = rank_span(self.options.by, self.options.descending, best, EXACT)
        if (best["precision"][low <= state.rules[-1].threshold] != BETTER).any():  # cannot be
            raise AtomSieveError("a row of the best is not recomputed; report this, and screen without --cascade")
        return final

    def _tally_chunks(self, tally: Tally) -> None:
        comm = self.context.comm
        with self.context.files.open_chunks() as stored:
            for chunk in range(comm.rank, self.context.chunks.count, comm.size):
                self.context.between()
                tally.add(stored.read_rows(chunk))

    # -- outcome -------------------------------------------------------------------------------------------------

    def report(self, state: CascadeState) -> None:
        """Store the outcome of the cascade, and print it."""
        notes, context = self.read_notes(), self.context
        bounds, errors = state.rules[-1].bounds, merge_largest([note.errors for note in notes])
        used = [name for name in MEASURED if name in {self.options.by, *self.choice.filter.used}]
        rows, seconds = sum(note.rows for note in notes), sum(note.seconds for note in notes)
        n_rows = context.files.arrays.rows.shape[0]
        report = {
            "rows": n_rows,
            "recomputed": rows,
            "rounds": len(state.rules),
            "status_changed": sum(note.changed for note in notes),
            "safety": self.options.cascade_safety,
            "bounds": {name: bounds.get(name) for name in used},
            "largest_errors": {name: errors.get(name) for name in used},
            "recompute_seconds": round(seconds, 3),
            **estimate_saving(state.first, context.chunks.n, rows, seconds, n_rows),
        }
        self._write(replace(state, report=report))
        context.reporter.show(*format_report_lines(report, self.pair.names))
        context.reporter.record("cascade", **report)


def format_report_lines(report: Mapping[str, Any], names: tuple[str, str]) -> list[str]:
    """Return the outcome of a cascade as lines for people; `names` are the cheaper and the better precision."""
    share = report["recomputed"] / report["rows"]
    lines = [
        f"cascade {names[0]} -> {names[1]}: {report['recomputed']:,} of {report['rows']:,} rows recomputed "
        f"({share:.1%}) in {report['rounds']} rounds"
    ]
    for name, bound in report["bounds"].items():
        if bound is not None:
            error = report["largest_errors"][name] or 0.0
            lines.append(
                f"{name}: bound {bound:.3g}, largest error seen {error:.3g}, both in units of the column's scale; "
                f"safety factor {report['safety']:g}"
            )
    if "saved" in report:
        lines.append(format_saving(report, names[1]))
    return lines


def row_tables(context: RankContext) -> Tables:
    """Return the names behind the codes in the rows of a run."""
    from atomsieve.predict.domain_flags import Outside

    statuses = {int(status): status.name for status in Status}
    return Tables(context.runner.heads, statuses, {int(reason): reason.name or "" for reason in Outside})


def choose_rows(options: ScreenOptions, tables: Tables) -> Choice:
    """Return how rows are chosen.

    Raises
    ------
    UsageError
        if the rows are ranked or filtered by a column without error bound.
    """
    all_members = options.cascade_members is None
    check_rankable(options.by, members=all_members)
    found = OpenFilter(options.where, tables, members=all_members)
    return Choice(options.by, options.descending, found, len(tables.heads))


def check_choice(options: ScreenOptions, tables: Tables) -> None:
    """Raise UsageError for a choice of rows that a cascade cannot make, before anything is computed."""
    if options.cascade is not None:
        choose_rows(options, tables)


def add_rule(state: CascadeState, rule: Rule) -> CascadeState:
    """Return the state with one more rule."""
    return replace(state, rules=[*state.rules, rule])


def read_state(text: str, path: str) -> CascadeState:
    """Return the state in the text of a cascade.json."""
    try:
        plain = json.loads(text)
        if plain["format"] != FORMAT:
            raise DataError(f"{path} has format {plain['format']!r}, this version reads {FORMAT}; use --overwrite")
        rules = [Rule.from_plain(rule) for rule in plain["rules"]]
        return CascadeState(rules, plain["tested"], plain["settled"], plain["first"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not readable ({error}); start afresh with --overwrite") from error


def estimate_saving(
    first: Mapping[str, float], structures: int, rows: int, seconds: float, all_rows: int
) -> dict[str, float]:
    """Return the share of computing time saved, estimated from the time of the recomputed rows."""
    if not first or not rows:
        return {}
    alone = seconds / rows * all_rows
    cheap = first["seconds"] / first["structures"] * structures
    return {
        "first_seconds": round(cheap, 3),
        "alone_seconds": round(alone, 3),
        "saved": round(1 - (cheap + seconds) / alone, 4),
    }


def format_saving(report: Mapping[str, Any], better: str) -> str:
    """Return the time saved as a line for people."""
    spent = report["first_seconds"] + report["recompute_seconds"]
    word = "less" if report["saved"] >= 0 else "MORE"
    return (
        f"computing took {format_duration(spent)}, summed over the ranks: an estimated {abs(report['saved']):.0%} "
        f"{word} than everything in {better} ({format_duration(report['alone_seconds'])}, by the time of the "
        "recomputed rows)"
    )
