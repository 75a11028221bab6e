"""`screen dedup`: which of the best rows are the same crystal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from atomsieve.cli.common import CHOICE, IN_OUT, WORK, OverwriteOption, QuietOption, ResultsArgument, Steps, console
from atomsieve.cli.groups import expand_groups, merge_fields
from atomsieve.cli.screen.options import SelectionOptions
from atomsieve.text import counted


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
    from atomsieve.errors import AtomSieveError
    from atomsieve.followup.dedup import Tolerances, write_twins
    from atomsieve.followup.dedup import dedup as find
    from atomsieve.screen.results.caveats import describe_mixed_precisions
    from atomsieve.screen.results.export import check_format, export
    from atomsieve.screen.results.record import open_results
    from atomsieve.screen.results.targets import check_target
    from atomsieve.screen.selection.select import one_head, select

    allowed = Tolerances(**merge_fields(tolerances))
    check_format(out)
    twins = out.with_name(f"{out.stem}.duplicates.csv")
    opened = open_results(results)
    check_target(out, overwrite, opened)
    if twins.exists() and not overwrite:
        raise AtomSieveError(
            f"{twins}, the table of duplicates beside {out.name}, is already there; choose another name with --out, or "
            "give --overwrite"
        )
    check_target(twins, overwrite, opened)
    if not opened.complete:
        raise AtomSieveError(f"{results} is not complete; run the screening again first")
    rows = select(opened, selection.with_top(k, one_head(opened, selection.head))).rows
    with Steps(quiet, "comparing") as step:
        found = find(opened, rows, allowed, step)
    n = export(opened, out, [rows[found.kept]], overwrite=overwrite)
    write_twins(opened, rows, found, twins, overwrite=overwrite)
    screen = console()
    screen.print(
        f"{counted(n, 'different structure')} among the best {counted(len(rows), 'row')}, "
        f"{counted(len(rows) - n, 'duplicate')}; pairs compared: {found.compared:,}\n{out}, {twins}",
        highlight=False,
        soft_wrap=True,
    )
    if line := describe_mixed_precisions(opened, [rows]):
        screen.print(
            f"{line}; energies of both are compared with --energy {tolerances.energy:g}",
            highlight=False,
            soft_wrap=True,
        )
    if found.empty:
        screen.print(
            f"{found.empty:,} of the {len(rows):,} have empty space in the cell (slabs, molecules): duplicates of them "
            f"are also within --cell-energy {tolerances.cell_energy:g} eV per cell and --shift {tolerances.shift:g} Å",
            highlight=False,
            soft_wrap=True,
        )
    if found.alone:
        screen.print(
            f"{found.alone:,} of them are not crystals (no cell, or little empty space along an axis that is not "
            "periodic); they are kept without comparing",
            highlight=False,
            soft_wrap=True,
        )
