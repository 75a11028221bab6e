"""`screen status`: progress of a run, and the status of its structures."""

from __future__ import annotations

from typing import Annotated

import typer

from atomsieve.cli.common import WORK, ResultsArgument, console, widen


def status(
    results: ResultsArgument,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare every byte with its checksum.", rich_help_panel=WORK)
    ] = False,
) -> None:
    """Show the progress of a run, its rate, and the status of its structures; also while it runs."""
    from atomsieve.errors import DataError
    from atomsieve.screen.results.explain import count_causes
    from atomsieve.screen.results.record import open_results
    from atomsieve.screen.results.status import format_status_lines, read_status
    from atomsieve.screen.results.tables import status_table

    opened = open_results(results)
    found = read_status(opened, verify=verify)
    screen = console()
    for line in format_status_lines(found):
        screen.print(line, highlight=False, soft_wrap=True)
    if found.status:
        causes, looked_up = count_causes(opened) if found.broken is None else ({}, 0)
        widen(screen).print(status_table(found.status, opened.labels, causes=causes))
        failed = sum(n for name, n in found.status.items() if name != "OK")
        if causes and looked_up < failed:
            screen.print(f"by name: of the first {looked_up:,} of {failed:,} rows without result", highlight=False)
    if found.wrong is not None:
        raise DataError(found.wrong)
