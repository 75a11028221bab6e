"""Options and helpers that the commands of `atomsieve data` share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atomsieve.cli.common import IN_OUT

if TYPE_CHECKING:
    from rich.console import Console

PositionsOption = Annotated[
    str,
    typer.Option("--positions", help="float64, or float32 for half the size.", rich_help_panel=IN_OUT),
]
ChargeOption = Annotated[
    float | None,
    typer.Option("--charge", help="Total charge (e) of structures that state none.", show_default=False),
]
SpinOption = Annotated[
    float | None,
    typer.Option("--spin", help="Multiplicity 2S+1 of structures that state none.", show_default=False),
]
OutArgument = Annotated[Path, typer.Argument(help="Dataset folder to make, e.g. candidates.bp.", show_default=False)]


def skip_torch() -> None:
    """Spare these commands, which need no torch, the time it takes to load."""
    from atomsieve.structures.dataset.bp5 import import_lightly

    import_lightly()


@contextmanager
def progress_bar(what: str, total: int, screen: Console) -> Iterator[Callable[[int], None]]:
    """Show a progress bar over structures, on a terminal; give the function that advances it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("structures"), TimeRemainingColumn())
    hidden = screen.quiet or not screen.is_interactive
    with Progress(*columns, console=screen, transient=True, disable=hidden) as progress:
        task = progress.add_task(what, total=max(total, 1))
        yield lambda count: progress.advance(task, count)
