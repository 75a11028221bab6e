"""`atomsieve evaluate gfm/ --data test.bp --out evaluation/`: errors of predictions and coverage of intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atomsieve.cli.calibrate import FolderArgument, SourceHeadOption
from atomsieve.cli.common import (
    ANY_FILE,
    IN_OUT,
    DeviceOption,
    OverwriteOption,
    PrecisionOption,
    QuietOption,
    Steps,
    console,
    find_gfm,
)
from atomsieve.cli.data_shared import skip_torch
from atomsieve.cli.groups import expand_groups
from atomsieve.cli.reading import LabelledOptions


@expand_groups()
def app(
    folder: FolderArgument,
    *,
    data: Annotated[
        Path,
        typer.Option("--data", help=f"Labelled structures: {ANY_FILE}.", rich_help_panel=IN_OUT, show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the page goes.", rich_help_panel=IN_OUT)] = Path(
        "evaluation"
    ),
    overwrite: OverwriteOption = False,
    head: SourceHeadOption = None,
    precision: PrecisionOption = "fp32",
    device: DeviceOption = "auto",
    files: LabelledOptions,
    quiet: QuietOption = False,
) -> None:
    """Compare an ensemble with labels: errors, reliability, coverage of the intervals, in and out of the domain.

    Writes index.html (all in one file), metrics.json, structures.npz and the plots. Needs the extra `uncertainty`.
    A file that is no dataset is converted once, into the folder converted/ beside the page.
    """
    skip_torch()
    from atomsieve.evaluation.labelled import check_labelled

    reading, stderr = files.reading(), console(stderr=True, quiet=quiet)
    gfm = find_gfm(folder, stderr)
    check_labelled(gfm, data, head, reading=reading, beside=out, console=stderr)
    from atomsieve.evaluation.metrics import evaluate_gfm
    from atomsieve.evaluation.page import list_notices, write_evaluation
    from atomsieve.evaluation.verdict import judge
    from atomsieve.gfm.evaluation_file import format_table

    with Steps(quiet, "predicting") as step:
        found = evaluate_gfm(
            gfm, data, head=head, precision=precision, device=device, reading=reading, beside=out, progress=step
        )
    page = write_evaluation(found, out, overwrite=overwrite)
    screen = console()
    screen.print(format_table(found.metrics["heads"]), highlight=False, markup=False, soft_wrap=True)
    screen.print()
    for text in list_notices(found.metrics):
        screen.print(text, highlight=False, soft_wrap=True)
    for text in judge(found.metrics).format_lines():
        screen.print(text, highlight=False, markup=False, soft_wrap=True)
    screen.print(f"wrote {page}", highlight=False, soft_wrap=True)
