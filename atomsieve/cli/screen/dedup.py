"""`screen dedup`: which of the best rows are the same crystal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from atomsieve.cli.common import CHOICE, IN_OUT, WORK, OverwriteOption, QuietOption, ResultsArgument, Steps, console
from atomsieve.cli.groups import expand_groups, merge_fields
from atomsieve.cli.screen.options import SelectionOptions


@dataclass(frozen=True)
class ToleranceOptions:
    """How much duplicates may differ; the fields of `atomsieve.followup.dedup.Tolerances`."""

    energy: Annotated[float, typer.Option(help="Duplicates differ by no more, eV/atom.", rich_help_panel=WORK)] = 0.05
    volume: Annotated[
        float, typer.Option(help="Nor by more of the volume per atom, a fraction.", rich_help_panel=WORK)
    ] = 0.1
    length: Annotated[
        float, typer.Option(help="StructureMatcher: tolerance of cell lengths, a fraction.", rich_help_panel=WORK)
    ] = 0.2
    site: Annotated[
        float,
        typer.Option(
            help="StructureMatcher: tolerance of sites, fraction of the free length per atom.", rich_help_panel=WORK
        ),
    ] = 0.3
    angle: Annotated[
        float, typer.Option(help="StructureMatcher: tolerance of cell angles, degrees.", rich_help_panel=WORK)
    ] = 5.0
    cell_energy: Annotated[
        float,
        typer.Option(
            "--cell-energy",
            help="Slabs and molecules with empty space in the cell: duplicates differ by no more, eV per cell.",
            rich_help_panel=WORK,
        ),
    ] = 0.05
    shift: Annotated[
        float,
        typer.Option(
            "--shift",
            help="Slabs and molecules with empty space in the cell: no site differs by more, Å.",
            rich_help_panel=WORK,
        ),
    ] = 0.3


@expand_groups(without=("pareto",))
def dedup(
    results: ResultsArgument,
    *,
    k: Annotated[
        int, typer.Option("--top", "-k", min=1, help="Look at so many of the best rows.", rich_help_panel=CHOICE)
    ] = 1000,
    selection: SelectionOptions,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="File for the different ones (.csv, .parquet, .npz, .extxyz or .bp); a table "
            "of the duplicates comes beside.",
            rich_help_panel=IN_OUT,
        ),
    ] = Path("different.csv"),
    tolerances: ToleranceOptions,
    quiet: QuietOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Drop those of the best rows whose crystal is there already with a better row, and write the others."""
    from atomsieve.followup.dedup import Tolerances, drop_duplicates, format_dedup_lines
    from atomsieve.screen.results.record import open_results

    allowed, chosen = Tolerances(**merge_fields(tolerances)), selection.with_top(k)
    with Steps(quiet, "comparing") as step:
        opened = open_results(results, selection.moved_input)
        report = drop_duplicates(opened, chosen, out, allowed, overwrite=overwrite, step=step)
    screen = console()
    for line in format_dedup_lines(report):
        screen.print(line, highlight=False, soft_wrap=True)
