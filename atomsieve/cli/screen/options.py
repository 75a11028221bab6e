"""Option groups that several screen verbs share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atomsieve.cli.common import (
    IN_OUT,
    WORK,
    ByOption,
    DescendingOption,
    EachOption,
    OutOption,
    OverwriteOption,
    ParetoOption,
    PerOption,
    RowHeadOption,
    SymprecOption,
    WhereOption,
)

if TYPE_CHECKING:
    from atomsieve.screen.results.record import Results
    from atomsieve.screen.selection.select import Selection

SYMPREC = 0.01  # Angstrom, as in atomsieve.screen.selection.groups
SHOWN = 20
"""Rows of a table that a verb prints unless asked otherwise."""

MovedEnsembleOption = Annotated[
    Path | None,
    typer.Option(
        "--ensemble",
        "-e",
        help="Folder of the ensemble that screened, if it was moved.",
        rich_help_panel=IN_OUT,
        show_default=False,
    ),
]

MovedInputOption = Annotated[
    Path | None,
    typer.Option(
        "--input",
        help="Where the screened structures lie now, if they were moved.",
        rich_help_panel=IN_OUT,
        show_default=False,
    ),
]

ThreadsOption = Annotated[
    int, typer.Option(help="CPU threads of each process; more processes are faster.", rich_help_panel=WORK, min=1)
]


@dataclass(frozen=True)
class RankingOptions:
    """Which rows are best: a column, its direction, and a filter."""

    by: ByOption = "auto"
    descending: DescendingOption = False
    where: WhereOption = None


@dataclass(frozen=True)
class SelectionOptions:
    """Which rows of a results folder are chosen: best rows, best of each group, or a Pareto front."""

    ranking: RankingOptions = field(default_factory=RankingOptions)
    head: RowHeadOption = None
    per: PerOption = None
    each: EachOption = 1
    pareto: ParetoOption = None
    symprec: SymprecOption = SYMPREC
    moved_input: MovedInputOption = None

    def with_top(self, top: int | None) -> Selection:
        """Return the choice of at most `top` rows."""
        from atomsieve.screen.selection.select import Selection

        return Selection(
            top=top,
            by=self.ranking.by,
            descending=self.ranking.descending,
            where=self.ranking.where,
            head=self.head,
            per=self.per,
            each=self.each,
            symprec=self.symprec,
            pareto=self.pareto,
        )


@dataclass(frozen=True)
class OutputOptions:
    """Folder of the results."""

    out: OutOption = None
    overwrite: OverwriteOption = False


@dataclass(frozen=True)
class BatchOptions:
    """Budget of one batch."""

    max_atoms: Annotated[
        int | None,
        typer.Option(help="Atoms per batch. [default: by the device]", rich_help_panel=WORK, show_default=False, min=1),
    ] = None
    max_edges: Annotated[
        int | None,
        typer.Option(
            help="Estimated edges per batch. [default: by the device]", rich_help_panel=WORK, show_default=False, min=1
        ),
    ] = None


def format_mixed_heads(results: Results, selection: SelectionOptions) -> str | None:
    """Return a line for people if energies of several heads were ranked together."""
    from atomsieve.screen.results.caveats import describe_mixed_heads
    from atomsieve.screen.results.stability import choose_ranking

    if selection.head is not None:
        return None
    return describe_mixed_heads(results.labels, choose_ranking(results, selection.ranking.by), selection.ranking.where)
