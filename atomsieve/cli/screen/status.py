"""`screen status`: progress of a run, and the status of its structures."""

from __future__ import annotations

from typing import Annotated

import typer

from atomsieve.cli.common import WORK, ResultsArgument, console


def status(
    results: ResultsArgument,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare every byte with its checksum.", rich_help_panel=WORK)
    ] = False,
) -> None:
    """Show the progress of a run, its rate, and the status of its structures; also while it runs."""
    from atomsieve.errors import DataError
    from atomsieve.screen.results.record import open_results
    from atomsieve.screen.results.status import format_status_lines, read_status
    from atomsieve.screen.results.tables import status_table

    opened = open_results(results)
    found = read_status(opened, verify=verify)
    screen = console()
    for line in format_status_lines(found):
        screen.print(line, highlight=False, soft_wrap=True)
    if found.status:
        screen.print(status_table(found.status, opened.labels))
    if found.wrong is not None:
        raise DataError(found.wrong)
