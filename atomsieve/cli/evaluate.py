"""`atomsieve evaluate gfm/ --data test.bp --out evaluation/`: errors of predictions and coverage of intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atomsieve.cli.calibrate import FolderArgument, SourceHeadOption
from atomsieve.cli.common import (
    IN_OUT,
    DeviceOption,
    OverwriteOption,
    PrecisionOption,
    QuietOption,
    Steps,
    console,
    show_table,
)


def app(
    folder: FolderArgument,
    data: Annotated[
        Path, typer.Option("--data", help="Labelled structures.", rich_help_panel=IN_OUT, show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the page goes.", rich_help_panel=IN_OUT)] = Path(
        "evaluation"
    ),
    overwrite: OverwriteOption = False,
    head: SourceHeadOption = None,
    precision: PrecisionOption = "fp32",
    device: DeviceOption = "auto",
    quiet: QuietOption = False,
) -> None:
    """Compare an ensemble with labels: errors, reliability, coverage of the intervals, in and out of the domain.

    Writes index.html (all in one file), metrics.json, structures.npz and the plots. Needs the extra `uncertainty`.
    """
    from atomsieve.evaluation.metrics import evaluate_gfm
    from atomsieve.evaluation.page import HEADINGS, format_row, list_notices, write_evaluation

    with Steps(quiet, "predicting") as step:
        found = evaluate_gfm(folder, data, head=head, precision=precision, device=device, progress=step)
    page = write_evaluation(found, out, overwrite=overwrite)
    screen = console()
    headings = ("head", "property", *(h for _, h in HEADINGS))
    rows = [
        [name, kind, *format_row(row[kind])]
        for name, row in found.metrics["heads"].items()
        for kind in ("energy", "force")
        if kind in row
    ]
    title = "Errors in meV/atom and meV/Å; share of errors within the 90 % interval, and within 1.645 spreads (raw)"
    show_table(screen, title, headings, rows)
    for text in list_notices(found.metrics):
        screen.print(text, highlight=False, soft_wrap=True)
    screen.print(f"wrote {page}", highlight=False, soft_wrap=True)
