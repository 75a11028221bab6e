"""`screen join`: columns of a table beside the rows of results, by id."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atomsieve.cli.common import CHOICE, IN_OUT, OverwriteOption, ResultsArgument, console


def join(
    results: ResultsArgument,
    table: Annotated[Path, typer.Argument(help="Table with ids: .csv or .parquet.", show_default=False)],
    on: Annotated[
        str, typer.Option("--on", help="Column of the results that holds the ids.", rich_help_panel=CHOICE)
    ] = "id",
    key: Annotated[
        str | None,
        typer.Option(
            "--key",
            help="Column of the table that holds them. [default: as --on, or a usual name of ids]",
            rich_help_panel=CHOICE,
            show_default=False,
        ),
    ] = None,
    take: Annotated[
        str | None,
        typer.Option(
            "--columns", help="Columns to join: a,b. [default: all]", rich_help_panel=CHOICE, show_default=False
        ),
    ] = None,
    moved_input: Annotated[
        Path | None,
        typer.Option(
            "--input",
            help="Where the screened structures lie now, if they were moved.",
            rich_help_panel=IN_OUT,
            show_default=False,
        ),
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Join columns of a table to results, by id; they rank, filter and group rows, and stand in every export."""
    from atomsieve.screen.results.join import join_table
    from atomsieve.screen.results.record import open_results, require_complete
    from atomsieve.screen.results.table import list_columns

    opened = open_results(results, moved_input)
    require_complete(opened)
    names = [] if take is None else [word.strip() for word in take.split(",")]
    columns = list_columns(opened)
    found = join_table(opened, table, columns, on=on, key=key, take=names, overwrite=overwrite)
    console().print(
        f"joined {', '.join(found.columns)} by {found.key} = {found.on}: {found.matched:,} of {found.rows:,} "
        f"structures have a row, {found.unused:,} rows of the table belong to none",
        highlight=False,
        soft_wrap=True,
    )
