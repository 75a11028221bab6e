"""`atomsieve export gfm/`, `atomsieve export report gfm/` and `atomsieve export trust gfm/`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer

from atomsieve.cli.common import CHOICE, WORK, QuietOption, RunFirst, console, find_gfm
from atomsieve.gfm.backends import FORMATS, holds_code
from atomsieve.models.precision import PRECISIONS
from atomsieve.text import join_choices

if TYPE_CHECKING:
    from atomsieve.export.run import ExportOutcome


app = typer.Typer(
    cls=RunFirst,
    add_completion=False,
    no_args_is_help=True,
    help="Turn an ensemble into files that run without this package: `atomsieve export gfm/ --format onnx`. Each is "
    "checked against FP64 in a fresh process, and written only if it is as good as its precision must be.",
)

FolderArgument = Annotated[Path, typer.Argument(help="The ensemble folder (gfm/).", show_default=False)]
StructuresOption = Annotated[
    Path | None,
    typer.Option(
        "--structures",
        help="Check on these structures (a dataset or any readable file) instead of generated ones.",
        rich_help_panel=WORK,
        show_default=False,
    ),
]


@app.command("run")
def run(
    folder: FolderArgument,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            "-f",
            help=f"{join_choices(FORMATS)}; may be repeated. [default: onnx]",
            rich_help_panel=CHOICE,
            show_default=False,
        ),
    ] = None,
    precisions: Annotated[
        list[str] | None,
        typer.Option(
            "--precision",
            "-p",
            help=f"{join_choices(PRECISIONS)}; may be repeated. [default: fp32]",
            rich_help_panel=CHOICE,
            show_default=False,
        ),
    ] = None,
    energy_only: Annotated[
        bool, typer.Option("--energy-only", help="Energies and their spread alone: faster.", rich_help_panel=CHOICE)
    ] = False,
    members: Annotated[
        bool, typer.Option("--members", help="Give the forces of each member too.", rich_help_panel=CHOICE)
    ] = False,
    device: Annotated[
        str, typer.Option("--device", help="cpu or cuda: what it will run on.", rich_help_panel=WORK)
    ] = "cpu",
    force: Annotated[
        bool, typer.Option("--force", help="Make anew what is already there.", rich_help_panel=WORK)
    ] = False,
    structures: StructuresOption = None,
    quiet: QuietOption = False,
) -> int:
    """Export an ensemble in every format and precision named (`run` may be left out); what is there already stays.

    Exit code 3 if an artefact could not be made or failed its check; its line says why.
    """
    from atomsieve.errors import UsageError, unknown
    from atomsieve.structures.conversion.ready import check_input

    formats, precisions = formats or ["onnx"], precisions or ["fp32"]
    for what, given, allowed in (
        ("format", formats, FORMATS),
        ("precision", precisions, PRECISIONS),
        ("device", [device], ("cpu", "cuda")),
    ):
        for name in given:
            if name not in allowed:
                raise unknown(what, name, allowed)
    if energy_only and members:
        raise UsageError("--energy-only gives no forces, so --members has nothing to add; leave one of them out")
    folder = find_gfm(folder, console(stderr=True, quiet=quiet))
    if structures is not None:
        check_input(structures)
    from atomsieve.export.run import ExportOptions, export_gfm

    options = ExportOptions(
        formats=tuple(formats),
        precisions=tuple(precisions),
        kind="energy" if energy_only else "forces",
        members=members,
        device=device,
        force=force,
        structures=structures,
    )
    with _Progress(quiet) as progress:
        outcomes = export_gfm(folder, options, progress.say, progress.done)
    return _exit_code(outcomes)


@app.command("report")
def report(
    folder: FolderArgument,
    check: Annotated[
        bool, typer.Option("--check", help="Measure every artefact again, on this machine.", rich_help_panel=WORK)
    ] = False,
    quiet: QuietOption = False,
) -> int:
    """Show how far each artefact is from FP64 and how fast it was, and write exports/report.md."""
    from atomsieve.errors import EXIT_DONE
    from atomsieve.export.report import table, write_report
    from atomsieve.gfm import read_manifest

    shown, code = console(), EXIT_DONE
    folder = find_gfm(folder, console(stderr=True, quiet=quiet))
    if check:
        from atomsieve.export.run import recheck

        with _Progress(quiet) as progress:
            outcomes = recheck(folder, progress.say)
            for outcome in outcomes:
                if outcome.state != "written":
                    progress.done(outcome)
        code = _exit_code(outcomes)
    manifest = read_manifest(folder)
    if manifest.exports:
        if not shown.is_terminal:  # the width of a file or pipe means nothing
            shown.width = max(shown.width, 200)
        shown.print(table(manifest))
    else:
        shown.print("no exports yet; make one with: atomsieve export FOLDER --format onnx", soft_wrap=True)
    shown.print(f"wrote {write_report(folder)}", highlight=False, soft_wrap=True, markup=False)
    return code


@app.command("trust")
def trust(folder: FolderArgument) -> int:
    """Let this user open the TorchScript and .pt2 files of a folder that came from elsewhere.

    They hold code that runs with your rights: trust only what comes from somebody whose programs you would run.
    """
    from atomsieve.errors import EXIT_DONE, EXIT_ERROR
    from atomsieve.export.trust import trust as mark
    from atomsieve.gfm import read_manifest
    from atomsieve.gfm.exports import check_export

    shown = console()
    files = []
    for key, entry in read_manifest(folder).exports.items():
        if not holds_code(entry.format):
            continue
        place = check_export(folder, entry)
        for name, expected in entry.files.items():
            shown.print(
                f"{key}/{name}  sha256 {expected['sha256'][:16]}...", highlight=False, soft_wrap=True, markup=False
            )
            files.append(place / name)
    if not files:
        shown.print("no file of this folder holds code; there is nothing to trust", soft_wrap=True)
        return EXIT_DONE
    if not mark(files):  # a warning has said why
        return EXIT_ERROR
    many = "1 file" if len(files) == 1 else f"{len(files)} files"
    shown.print(f"{many} may be opened by this user from now on", highlight=False, soft_wrap=True, markup=False)
    return EXIT_DONE


class _Progress:
    """Shows the current step on stderr (in a terminal, on one line), and the outcome of each artefact on stdout."""

    def __init__(self, quiet: bool) -> None:
        self._steps, self._lines = console(stderr=True, quiet=quiet), console()
        self._status = self._steps.status("opening the ensemble") if self._steps.is_terminal else None

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def say(self, step: str) -> None:
        """Show a step that begins."""
        from rich.text import Text

        if self._status is not None:
            self._status.update(Text(step))  # a string is taken for markup, whatever the console says
        else:
            self._steps.print(step, highlight=False, soft_wrap=True, markup=False)

    def done(self, outcome: ExportOutcome) -> None:
        """Print the outcome of an artefact, above the line of the current step."""
        if self._status is not None:
            self._status.stop()
        self._lines.print(_format_outcome(outcome), highlight=False, soft_wrap=True, markup=False)
        if self._status is not None:
            self._status.start()


def _format_outcome(outcome: ExportOutcome) -> str:
    from atomsieve.export.report import line

    if outcome.state == "failed":
        return f"failed  {outcome.key}  {outcome.seconds:.0f} s  {outcome.reason}"
    assert outcome.entry is not None
    if outcome.state == "kept":
        why = outcome.reason or "is there already (--force makes it anew)"
        return f"kept    {line(outcome.key, outcome.entry)}  {why}"
    return f"written {line(outcome.key, outcome.entry, outcome.seconds)}"


def _exit_code(outcomes: list[ExportOutcome]) -> int:
    from atomsieve.errors import EXIT_DONE, EXIT_SOME_FAILED

    return EXIT_SOME_FAILED if any(o.state == "failed" for o in outcomes) else EXIT_DONE
