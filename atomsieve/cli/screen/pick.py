"""`screen pick`: uncertain and different structures to label next."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atomsieve.cli.common import CHOICE, IN_OUT, HeadOption, OverwriteOption, ResultsArgument, WhereOption, console
from atomsieve.cli.screen.options import MovedEnsembleOption, MovedInputOption


def pick(
    results: ResultsArgument,
    n: Annotated[int, typer.Option("--n", "-n", help="How many structures.", rich_help_panel=CHOICE)] = 100,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File to write (.extxyz); a .csv comes beside.", rich_help_panel=IN_OUT)
    ] = Path("picked.extxyz"),
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            help="sigma_energy, energy_std (both per atom), sigma_force, max_force_std or distance. "
            "[default: sigma_energy, or energy_std without calibration]",
            rich_help_panel=CHOICE,
            show_default=False,
        ),
    ] = None,
    where: WhereOption = None,
    per_formula: Annotated[
        int | None,
        typer.Option(
            "--per-formula", help="At most so many of one reduced formula.", rich_help_panel=CHOICE, show_default=False
        ),
    ] = None,
    head: HeadOption = None,
    candidates: Annotated[
        int,
        typer.Option(
            "--candidates", help="Compare this many times n rows, the most uncertain.", rich_help_panel=CHOICE
        ),
    ] = 20,
    ensemble: MovedEnsembleOption = None,
    moved_input: MovedInputOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Pick uncertain and different structures to label next, and write them for a first-principles code."""
    from atomsieve.followup.label_candidates import check_targets, write_candidates
    from atomsieve.followup.label_candidates import pick as choose
    from atomsieve.screen.results.caveats import describe_mixed_precisions
    from atomsieve.screen.results.record import open_results

    opened = open_results(results, moved_input)
    check_targets(out, overwrite, opened)
    picked = choose(
        opened, n, by=by, where=where, per_formula=per_formula, head=head, candidates=candidates, ensemble=ensemble
    )
    path, table = write_candidates(picked, opened, out, overwrite=overwrite)
    screen = console()
    screen.print(
        f"{len(picked.rows):,} of {picked.good:,} rows picked by {picked.by}, head {picked.head}, among the "
        f"{picked.candidates:,} most uncertain: {path}, {table}",
        highlight=False,
        soft_wrap=True,
    )
    if line := describe_mixed_precisions(opened, [picked.rows]):
        screen.print(line, highlight=False, soft_wrap=True)
    if len(picked.rows) < n:
        screen.print(
            f"fewer than --n {n}: the candidates hold no more with --per-formula {per_formula}; raise it, or "
            f"--candidates (now {candidates})",
            highlight=False,
            soft_wrap=True,
        )
