"""`screen hull`: formation energies and energies above the convex hull."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atomsieve.cli.common import CHOICE, IN_OUT, OverwriteOption, ResultsArgument, console, show_table
from atomsieve.cli.groups import expand_groups
from atomsieve.cli.screen.options import SHOWN, MovedEnsembleOption, SelectionOptions

HIDDEN = ("head", "precision", "missing", "natoms", "energy_per_atom")
"""Columns of the file that the printed table leaves out."""


@expand_groups(without=("pareto",))
def hull(
    results: ResultsArgument,
    *,
    references: Annotated[
        list[Path],
        typer.Option(
            "--references",
            "-r",
            help="Results of the same ensemble and head, or structures, which are "
            "computed now; may be given more than once.",
            rich_help_panel=IN_OUT,
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Table to write: .csv or .parquet.", rich_help_panel=IN_OUT)
    ] = Path("hull.csv"),
    k: Annotated[
        int | None,
        typer.Option(
            "--top", "-k", min=1, help="Only so many of the best rows.", rich_help_panel=CHOICE, show_default=False
        ),
    ] = None,
    selection: SelectionOptions,
    ensemble: MovedEnsembleOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Compare rows with reference phases of the same ensemble and head: formation energy, energy above the hull."""
    from atomsieve.followup.hull_table import format_hull_lines, make_hull
    from atomsieve.screen.results.record import open_results

    chosen = selection.with_top(k)
    opened = open_results(results, selection.moved_input)
    found = make_hull(opened, chosen, references, out, ensemble=ensemble, overwrite=overwrite)
    screen, table = console(), found.columns
    shown = [name for name in table if name not in HIDDEN]
    lines = [
        [f"{v:.4f}" if isinstance(v, float) else str(v) for v in line]
        for line in zip(*(table[name][: min(SHOWN, found.known)] for name in shown), strict=True)
    ]
    if lines:
        title = f"the {len(lines)} of {len(table['id']):,} rows lowest above the hull, eV/atom"
        show_table(screen, title, tuple(shown), lines)
    for line in (*format_hull_lines(found), str(out)):
        screen.print(line, highlight=False, soft_wrap=True)
