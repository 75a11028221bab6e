"""`atomsieve calibrate gfm/ --data held_out.bp`: intervals from structures that were kept from training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atomsieve.cli.common import (
    ANY_FILE,
    IN_OUT,
    MODEL,
    DeviceOption,
    PrecisionOption,
    QuietOption,
    Steps,
    console,
    find_gfm,
    show_table,
)
from atomsieve.cli.data_shared import skip_torch
from atomsieve.cli.groups import expand_groups
from atomsieve.cli.reading import LabelledOptions
from atomsieve.errors import UsageError

FolderArgument = Annotated[Path, typer.Argument(help="The ensemble folder (gfm/).", show_default=False)]
DataOption = Annotated[
    Path,
    typer.Option(
        "--data",
        help=f"Labelled structures, kept from training: {ANY_FILE}.",
        rich_help_panel=IN_OUT,
        show_default=False,
    ),
]
SourceHeadOption = Annotated[
    str | None,
    typer.Option(
        "--head",
        help="Head for all structures of the file. [default: the head of the name of their source]",
        rich_help_panel=MODEL,
        show_default=False,
    ),
]


@expand_groups()
def app(
    folder: FolderArgument,
    *,
    data: DataOption,
    head: SourceHeadOption = None,
    precision: PrecisionOption = "fp32",
    device: DeviceOption = "auto",
    allow_training_data: Annotated[
        bool,
        typer.Option(
            "--allow-training-data",
            help="Take a file that was trained on; its intervals are too narrow.",
            rich_help_panel=IN_OUT,
        ),
    ] = False,
    domain_data: Annotated[
        Path | None,
        typer.Option(
            "--domain-data",
            help="Structures that were trained on: fits anew what is inside the domain; --data then sets its limits.",
            rich_help_panel=IN_OUT,
            show_default=False,
        ),
    ] = None,
    files: LabelledOptions,
    quiet: QuietOption = False,
) -> None:
    """Fit the uncertainty of an ensemble to labelled structures, and write it into the folder.

    Training does the same with the part of its data kept for calibration. Heads and properties without enough data in
    the file stay as they are. The table shows the share of errors within the 90 % interval, each structure judged by
    what the others gave: of the raw spread, of the spread times the factor (both taken as a Gaussian's), and of the
    interval that is used. A file that is no dataset is converted once, into the folder converted/ beside the ensemble.
    """
    skip_torch()
    from atomsieve.evaluation.labelled import check_labelled
    from atomsieve.structures.conversion.ready import check_input

    reading, stderr = files.reading(), console(stderr=True, quiet=quiet)
    gfm = find_gfm(folder, stderr)
    check_labelled(gfm, data, head, reading=reading, beside=gfm, console=stderr)
    if domain_data is not None:
        check_input(domain_data)
    from atomsieve.evaluation.calibrate import HEADINGS, calibrate_gfm, calibration_rows, check_data
    from atomsieve.gfm import read_calibration

    if domain_data is not None and head is not None:
        raise UsageError(
            "--head cannot go with --domain-data, whose sources name the heads; leave out one of them, or convert both "
            "files with sources that are called like their heads"
        )
    if domain_data is not None:
        check_data(gfm, data, allow_training_data=allow_training_data, reading=reading)
        from atomsieve.evaluation.fit_domain import fit_folder_domain

        with Steps(quiet, "fitting domains") as step:
            fitted = fit_folder_domain(gfm, domain_data, data, reading=reading, progress=step)
        console().print(f"domain of {', '.join(fitted)}: wrote {gfm}/domain.safetensors", soft_wrap=True)
    with Steps(quiet, "predicting") as step:
        found = calibrate_gfm(
            gfm,
            data,
            reading=reading,
            head=head,
            precision=precision,
            device=device,
            allow_training_data=allow_training_data,
            progress=step,
        )
    screen = console()
    rows = calibration_rows({name: fit for name, (fit, _) in found.items()})
    show_table(screen, "Share of errors within the 90 % interval, cross-fitted", HEADINGS, rows)
    now = read_calibration(gfm)
    for name, (fit, usable) in found.items():
        kept = sorted(now.head(name).calibrated - fit.calibrated)
        for what in kept:
            screen.print(f"{name}: {what}: too few labels, kept the earlier calibration", highlight=False)
        if "energy" not in fit.calibrated and "energy" not in kept:
            screen.print(f"{name}: energies stay uncalibrated: {usable} usable structures", highlight=False)
    screen.print(f"wrote {gfm}/calibration.json", highlight=False, soft_wrap=True)
