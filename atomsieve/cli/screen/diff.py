"""`screen diff`: two screenings of the same structures, row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atomsieve.cli.common import CHOICE, IN_OUT, OverwriteOption, ResultsArgument, console, show_table
from atomsieve.cli.groups import expand_groups
from atomsieve.cli.screen.options import SHOWN, RankingOptions


@expand_groups(first=("first", "second"))
def diff(
    first: ResultsArgument,
    second: Annotated[
        Path,
        typer.Argument(help="The results folder to compare it with; the same one for two heads.", show_default=False),
    ],
    *,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Table to write (.csv).", rich_help_panel=IN_OUT, show_default=False),
    ] = None,
    k: Annotated[
        int, typer.Option("--top", "-k", min=1, help="Best rows of each that are compared.", rich_help_panel=CHOICE)
    ] = 1000,
    ranking: RankingOptions,
    head: Annotated[
        str | None,
        typer.Option(
            "--head", help="Head of the first, if it had several.", rich_help_panel=CHOICE, show_default=False
        ),
    ] = None,
    other_head: Annotated[
        str | None,
        typer.Option(
            "--other-head", help="Head of the second. [default: as --head]", rich_help_panel=CHOICE, show_default=False
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Write all matching rows, not the best alone.", rich_help_panel=CHOICE)
    ] = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Compare two screenings by id: differences, changes of rank, what left the best rows and what entered them."""
    from atomsieve.followup.diff import compare, format_comparison, list_lines, order_pairs, write_table
    from atomsieve.screen.results.record import open_results, require_complete
    from atomsieve.text import pluralize

    opened = open_results(first), open_results(second)
    for results in opened:
        require_complete(results)
    found = compare(
        *opened,
        by=ranking.by,
        descending=ranking.descending,
        where=ranking.where,
        heads=(head, other_head if other_head is not None else head),
        top=k,
    )
    screen = console()
    written = None if out is None else write_table(found, out, every=every, overwrite=overwrite)
    order = order_pairs(found)
    moved = order[found.changes()[order] != "stayed"][:SHOWN]
    if len(moved):
        heading, *lines = list_lines(found, moved)
        shown = [heading.index(name) for name in (*heading[:2], *heading[7:14])]
        title = f"{pluralize(len(moved), 'row')} that left the best {k:,} or entered them"
        show_table(screen, title, tuple(heading[n] for n in shown), [[_cut(line[n]) for n in shown] for line in lines])
    for line in format_comparison(found):
        screen.print(line, highlight=False, soft_wrap=True)
    if written is not None:
        screen.print(f"{pluralize(written, 'row')} written to {out}", highlight=False, soft_wrap=True)


def _cut(text: str) -> str:
    """Return a cell: numbers with four decimals, long texts cut."""
    try:
        return f"{float(text):.4f}" if "." in text else text
    except ValueError:
        return text if len(text) <= 60 else f"{text[:59]}…"
