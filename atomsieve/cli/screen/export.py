"""`screen export`: rows as a table, or their structures with the results."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from atomsieve.cli.common import CHOICE, OverwriteOption, ResultsArgument, SingleFormatOption, console
from atomsieve.cli.groups import expand_groups, given_options
from atomsieve.cli.screen.inputs import InputOptions, refuse_misplaced, write_input_folders
from atomsieve.cli.screen.options import SelectionOptions, format_mixed_heads
from atomsieve.text import pluralize


@expand_groups(first=("ctx", "results", "out", "where"))
def export(
    ctx: typer.Context,
    results: ResultsArgument,
    out: Annotated[
        Path,
        typer.Argument(
            help="Rows: .csv, .parquet, .npz. Structures: .extxyz, .bp, .db, .cif; with --as or --for a folder.",
            show_default=False,
        ),
    ],
    *,
    k: Annotated[
        int | None, typer.Option("--top", "-k", min=1, help="Only the best rows, best first.", rich_help_panel=CHOICE)
    ] = None,
    selection: SelectionOptions,
    form: SingleFormatOption = None,
    inputs: InputOptions,
    overwrite: OverwriteOption = False,
) -> int:
    """Write rows as a table (csv, parquet, npz), their structures with the results, or inputs of other codes."""
    from atomsieve.errors import UsageError
    from atomsieve.screen.results.caveats import describe_mixed_precisions
    from atomsieve.screen.results.export import export as write
    from atomsieve.screen.results.record import open_results, require_complete
    from atomsieve.screen.selection.best import best_rows, iter_matching_rows
    from atomsieve.screen.selection.row_filter import restrict_to_head
    from atomsieve.screen.selection.select import select

    by, descending, where = selection.ranking.by, selection.ranking.descending, selection.ranking.where
    per, pareto = selection.per, selection.pareto
    refuse_misplaced(inputs, form, bool(k or per or pareto), given_options(ctx))
    opened, rows = open_results(results, selection.moved_input), None
    require_complete(opened)
    if pareto and k:
        raise UsageError(f"--pareto gives all rows of the front; leave out --top {k}")
    if not (k or per or pareto):
        for name, shown in (("by", f"--by {by}"), ("descending", "--descending" if descending else "--ascending")):
            if name in given_options(ctx):
                raise UsageError(f"{shown} goes with --top or --per; all rows come in input order: leave it out")
    asked, texts = restrict_to_head(opened, where, selection.head), None
    if per or pareto:
        chosen = select(opened, selection.with_top(k))
        rows = chosen.rows
        texts = {per.replace("-", "_"): chosen.groups} if per and chosen.groups is not None else None
    elif k is not None:
        rows = best_rows(opened, k, by, descending=descending, where=asked)
    if inputs.code is not None and rows is not None:
        return write_input_folders(opened, out, rows, inputs, selection.head, overwrite)
    reasons: Counter[str] = Counter()
    n = write(
        opened,
        out,
        iter_matching_rows(opened, asked) if rows is None else [rows],
        texts=texts,
        overwrite=overwrite,
        form=form,
        reasons=reasons,
    )
    console().print(f"{pluralize(n, 'row')} written to {out}", highlight=False, soft_wrap=True)
    for reason, count in reasons.most_common():
        console().print(f"skipped {count:,}: {reason}", style="yellow", highlight=False, soft_wrap=True)
    if k is not None and (line := format_mixed_heads(opened, selection)):
        console().print(line, highlight=False, soft_wrap=True)
    if line := describe_mixed_precisions(opened, iter_matching_rows(opened, asked) if rows is None else [rows]):
        console().print(line, highlight=False, soft_wrap=True)
    return 0
