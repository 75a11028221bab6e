"""`atomsieve calibrate gfm/ --data held_out.bp`: intervals from structures that were kept from training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atomsieve.cli.common import IN_OUT, MODEL, DeviceOption, PrecisionOption, QuietOption, console

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

FolderArgument = Annotated[Path, typer.Argument(help="The ensemble folder (gfm/).", show_default=False)]
DataOption = Annotated[
    Path,
    typer.Option("--data", help="Labelled structures, kept from training.", rich_help_panel=IN_OUT, show_default=False),
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


def app(
    folder: FolderArgument,
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
    quiet: QuietOption = False,
) -> None:
    """Fit the uncertainty of an ensemble to labelled structures, and write it into the folder.

    Training does the same with the part of its data kept for calibration. Heads without data in the file stay as they
    are. The table shows the share of errors within the 90 % interval, each structure judged by what the others gave:
    of the raw spread, of the spread times the factor (both taken as a Gaussian's), and of the interval that is used.
    """
    from atomsieve.predict.calibrate import HEADINGS, calibrate_gfm, calibration_rows

    if domain_data is not None:
        from atomsieve.predict.domain_fit import fit_folder

        with Steps(quiet, "fitting domains") as step:
            fitted = fit_folder(folder, domain_data, data, progress=step)
        console().print(f"domain of {', '.join(fitted)}: wrote {folder}/domain.safetensors", soft_wrap=True)
    with Steps(quiet, "predicting") as step:
        found = calibrate_gfm(
            folder, data, head=head, precision=precision, device=device, allow_training_data=allow_training_data,
            progress=step,
        )  # fmt: skip
    screen = console()
    rows = calibration_rows({name: fit for name, (fit, _) in found.items()})
    show_table(screen, "Share of errors within the 90 % interval, cross-fitted", HEADINGS, rows)
    for name, (fit, usable) in found.items():
        if "energy" not in fit.calibrated:
            screen.print(f"{name}: energies stay uncalibrated: {usable} usable structures", highlight=False)
    screen.print(f"wrote {folder}/calibration.json", highlight=False, soft_wrap=True)


def show_table(screen: Console, title: str, headings: tuple[str, ...], rows: list[list[str]]) -> None:
    """Print a table: the first two columns are names, the others numbers."""
    from rich.table import Table

    table: Table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for k, heading in enumerate(headings):
        table.add_column(heading, justify="left" if k < 2 else "right", no_wrap=k < 2)
    for row in rows:
        table.add_row(*row)
    if not screen.is_terminal:  # the width of a file or pipe means nothing
        screen.width = max(screen.width, 160)
    screen.print(table)


class Steps:
    """A bar on stderr, moved by calls `step(done, total)`; nothing with `quiet`."""

    def __init__(self, quiet: bool, what: str) -> None:
        from rich.progress import Progress

        self._bar = Progress(console=console(stderr=True), transient=True, disable=quiet)
        self._what = what

    def __enter__(self) -> Steps:
        self._bar.start()
        self._task = self._bar.add_task(self._what, total=None)
        return self

    def __call__(self, done: int, total: int) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=done, total=total)

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()
