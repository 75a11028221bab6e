"""`screen top`: the best rows of a results folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atomsieve.cli.common import CHOICE, ResultsArgument, console, widen
from atomsieve.cli.groups import expand_groups, given_options
from atomsieve.cli.screen.options import SHOWN, SelectionOptions, format_mixed_heads
from atomsieve.text import pluralize


@expand_groups(first=("ctx", "results"))
def top(
    ctx: typer.Context,
    results: ResultsArgument,
    *,
    k: Annotated[int, typer.Option("-k", "--top", min=1, help="How many rows.", rich_help_panel=CHOICE)] = SHOWN,
    failed: Annotated[
        bool,
        typer.Option("--failed", help="Rows without result, in input order, and why.", rich_help_panel=CHOICE),
    ] = False,
    selection: SelectionOptions,
) -> None:
    """Show the best rows, exactly, over all rows; of a run at work, over those that are durable."""
    if failed:
        show_failed(ctx, results, k, selection)
        return
    from atomsieve.screen.results.caveats import describe_bare_hulls, describe_mixed_precisions
    from atomsieve.screen.results.formulas import read_formulas
    from atomsieve.screen.results.record import open_results
    from atomsieve.screen.results.stability import choose_ranking, describe_ranking, list_companions
    from atomsieve.screen.results.table import list_columns, name_ranking
    from atomsieve.screen.results.tables import top_table
    from atomsieve.screen.selection.best import count_without_result
    from atomsieve.screen.selection.pareto import parse_objectives
    from atomsieve.screen.selection.row_filter import find_columns_beside, restrict_to_head
    from atomsieve.screen.selection.select import select

    opened = open_results(results, selection.moved_input)
    columns = list_columns(opened)
    by, where, head = choose_ranking(opened, selection.ranking.by), selection.ranking.where, selection.head
    per, pareto = selection.per, selection.pareto
    chosen = select(opened, selection.with_top(None if pareto else k))
    rows = chosen.rows[:k]
    order = "largest" if selection.ranking.descending else "smallest"
    note = "" if opened.complete else " (the run is not complete)"
    if pareto:
        shown: str | list[str] = [name_ranking(by) for by, _ in parse_objectives(pareto, columns)]
        title = f"{len(rows)} of {len(chosen.rows):,} rows that no other beats in {' and '.join(shown)}{note}"
    else:
        shown, among = by, f", at most {selection.each} of each {per}" if per else ""
        title = f"{pluralize(len(rows), 'row')} with the {order} {by}{among}{note}"
    # with formulas as groups, a formula column would repeat them
    names = {} if per == "formula" else read_formulas(opened, rows)
    groups = None if chosen.groups is None or per is None else (per.replace("-", " "), chosen.groups)
    asked_for = find_columns_beside(
        opened, [shown, *list_companions(shown)] if isinstance(shown, str) else shown, where
    )
    widen(console()).print(top_table(rows, opened.labels, names, title, shown, groups, asked_for))
    if not pareto and selection.ranking.by == "auto" and (line := describe_ranking(opened, by)):
        console().print(line, highlight=False, soft_wrap=True)
    if line := describe_bare_hulls(rows, asked_for):
        console().print(line, highlight=False, soft_wrap=True)
    if not pareto and (line := format_mixed_heads(opened, selection)):
        console().print(line, highlight=False, soft_wrap=True)
    if line := describe_mixed_precisions(opened, [rows]):
        console().print(line, highlight=False, soft_wrap=True)
    asked = None if where is None else restrict_to_head(opened, where, head)
    if asked is not None and len(rows) < k and (without := count_without_result(opened, asked)):
        console().print(f"{without:,} more rows fulfil --where but have no result; `screen export` writes them too")


def show_failed(ctx: typer.Context, folder: Path, k: int, selection: SelectionOptions) -> None:
    """Print the first `k` rows without result that the filter keeps, with the reason of each.

    Raises
    ------
    UsageError
        for an option that ranks or groups rows.
    """
    from atomsieve.errors import UsageError
    from atomsieve.screen.results.record import open_results
    from atomsieve.screen.results.tables import failed_table
    from atomsieve.screen.selection.best import find_failed_rows
    from atomsieve.screen.selection.row_filter import restrict_to_head

    for name in ("by", "descending", "per", "each", "pareto"):
        if name in given_options(ctx):
            raise UsageError(f"--{name} ranks or groups rows, and those of --failed have no numbers; leave it out")
    opened = open_results(folder, selection.moved_input)
    where = restrict_to_head(opened, selection.ranking.where, selection.head)
    rows = find_failed_rows(opened, where, k)
    if not len(rows):
        console().print("every row has a result" if where is None else "no row without result fulfils --where")
        return
    widen(console()).print(failed_table(opened, rows, f"{pluralize(len(rows), 'row')} without result"))
