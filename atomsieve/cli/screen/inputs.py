"""Options of `screen export --for CODE`, and what it prints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from numpy.typing import NDArray

from atomsieve.cli.common import console
from atomsieve.text import pluralize

if TYPE_CHECKING:
    from atomsieve.screen.results.record import Results

INPUTS = "Inputs of first-principles codes"


@dataclass(frozen=True)
class InputOptions:
    """Input folders instead of a file."""

    code: Annotated[
        str | None,
        typer.Option(
            "--for",
            help="OUT is a folder with an input folder per structure, for vasp, qe or cp2k.",
            rich_help_panel=INPUTS,
            show_default=False,
        ),
    ] = None
    task: Annotated[str, typer.Option(help="relax or static.", rich_help_panel=INPUTS)] = "relax"
    level: Annotated[
        str | None,
        typer.Option(
            help="Level of theory, e.g. PBE, PBE+U, r2SCAN. [default: that of the head]",
            rich_help_panel=INPUTS,
            show_default=False,
        ),
    ] = None


def refuse_misplaced(options: InputOptions, form: str | None, chosen: bool, given: set[str]) -> None:
    """Refuse options of `--for` without it, `--as` with it, and all rows at once."""
    from atomsieve.errors import UsageError

    if options.code is None:
        if misplaced := [name for name in ("task", "level") if name in given]:
            raise UsageError(f"--{misplaced[0]} goes with --for vasp, qe or cp2k; add that, or leave it out")
    elif form is not None:
        raise UsageError(f"--for {options.code} and --as {form} exclude each other; leave one out")
    elif not chosen:
        raise UsageError(f"--for {options.code} writes a folder for each row; choose rows by --top, --per or --pareto")


def write_input_folders(
    results: Results, out: Path, rows: NDArray[Any], options: InputOptions, head: str | None, overwrite: bool
) -> int:
    """Write input folders of rows, print what was written and what is not in the files; return the exit code."""
    from atomsieve.followup.inputs.write import write_inputs
    from atomsieve.screen.results.targets import check_target

    check_target(out, True, results)
    assert options.code is not None
    done = write_inputs(
        results, out, rows, options.code, task=options.task, level=options.level, head=head, overwrite=overwrite
    )
    screen = console()
    level = f"{done.level.text} ({done.level.functional}{'+U' if done.level.hubbard else ''})"
    screen.print(
        f"{pluralize(done.folders, 'folder')} for {options.code} written to {out}: {done.input_set}, {level}",
        highlight=False,
        soft_wrap=True,
    )
    for remark, count in done.remarks.most_common():
        screen.print(f"{pluralize(count, 'folder')}: {remark}", highlight=False, soft_wrap=True)
    for reason, count in done.skipped.most_common():
        screen.print(f"skipped {count:,}: {reason}", style="yellow", highlight=False, soft_wrap=True)
    return 3 if done.skipped else 0
