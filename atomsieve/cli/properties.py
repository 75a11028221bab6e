"""`atomsieve properties results/ --top 50`: equation of state, elastic moduli and phonons of chosen structures."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atomsieve.cli.common import (
    ANY_FILE,
    CHOICE,
    MODEL,
    DeviceOption,
    DispersionOption,
    HeadOption,
    PrecisionOption,
    QuietOption,
    console,
    widen,
)
from atomsieve.cli.groups import expand_groups, given_options, merge_fields
from atomsieve.cli.reading import CandidateOptions
from atomsieve.cli.screen.options import BatchOptions, MovedInputOption, OutputOptions, RankingOptions, ThreadsOption

if TYPE_CHECKING:
    from rich.table import Table

    from atomsieve.properties.run import PropertySummary

METHOD = "What is computed"
OF_ROWS = ("by", "descending", "where", "moved_input")
"""Options that choose rows of a screening."""
SHOWN = (
    "rank",
    "id",
    "formula",
    "eos_bulk_modulus",
    "bulk_modulus_vrh",
    "shear_modulus_vrh",
    "min_frequency",
    "status",
)


@dataclass(frozen=True)
class MethodOptions:
    """How properties are computed."""

    what: Annotated[
        str, typer.Option("--what", help="Of eos, elastic, phonons; joined by commas.", rich_help_panel=METHOD)
    ] = "eos,elastic,phonons"
    relax: Annotated[
        bool,
        typer.Option("--relax/--as-given", help="Relax atoms and cell first, or not at all.", rich_help_panel=METHOD),
    ] = True
    fmax: Annotated[
        float, typer.Option(help="Relaxed when no force is longer, eV/Angstrom.", rich_help_panel=METHOD)
    ] = 0.005
    max_steps: Annotated[int, typer.Option(help="Steps of a relaxation, at most.", rich_help_panel=METHOD)] = 500
    clamped: Annotated[
        bool,
        typer.Option("--clamped", help="Do not relax atoms in deformed cells.", rich_help_panel=METHOD),
    ] = False
    eos_range: Annotated[float, typer.Option(help="Largest relative change of the volume.", rich_help_panel=METHOD)] = (
        0.06
    )
    eos_points: Annotated[int, typer.Option(help="Volumes of the equation of state.", rich_help_panel=METHOD)] = 7
    norm_strain: Annotated[float, typer.Option(help="Largest normal strain.", rich_help_panel=METHOD)] = 0.01
    shear_strain: Annotated[float, typer.Option(help="Largest shear strain.", rich_help_panel=METHOD)] = 0.06
    supercell_length: Annotated[
        float, typer.Option(help="Least width of the supercell of phonons, Angstrom.", rich_help_panel=METHOD)
    ] = 10.0
    max_supercell_atoms: Annotated[
        int, typer.Option(help="Most atoms of a supercell; a larger one is refused.", rich_help_panel=METHOD)
    ] = 500
    displacement: Annotated[float, typer.Option(help="Displacement of an atom, Angstrom.", rich_help_panel=METHOD)] = (
        0.01
    )
    imaginary: Annotated[
        float, typer.Option(help="THz; unstable if a mode lies below minus this.", rich_help_panel=METHOD)
    ] = 0.1
    symprec: Annotated[float, typer.Option(help="Tolerance of symmetries, Angstrom.", rich_help_panel=METHOD)] = 1e-3


@expand_groups(without=("keep_converted",))
def app(
    ctx: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(help=f"The results folder of a run, or structures: {ANY_FILE}.", show_default=False),
    ],
    *,
    top: Annotated[
        int | None,
        typer.Option(
            "--top",
            "-k",
            min=1,
            help="How many of the best rows, or of the first structures of a file. [default: 50 rows; all structures]",
            rich_help_panel=CHOICE,
            show_default=False,
        ),
    ] = None,
    ranking: RankingOptions,
    method: MethodOptions,
    ensemble: Annotated[
        Path | None,
        typer.Option(
            "--ensemble",
            "-e",
            help="Ensemble folder; of a run, the one that screened, if it was moved.",
            rich_help_panel=MODEL,
            show_default=False,
        ),
    ] = None,
    head: HeadOption = None,
    dispersion: DispersionOption = None,
    precision: PrecisionOption = "fp64",
    device: DeviceOption = "auto",
    moved_input: MovedInputOption = None,
    files: CandidateOptions,
    output: OutputOptions,
    batch: BatchOptions,
    threads: ThreadsOption = 1,
    quiet: QuietOption = False,
) -> int:
    """Compute properties of the best rows of a screening, or of the structures of a file.

    Each number comes with its spread over the members of the ensemble. A broken-off calculation goes on when the same
    command is given again.
    """
    from atomsieve.errors import UsageError
    from atomsieve.properties.options import PropertyOptions, parse_methods
    from atomsieve.properties.run import run_properties
    from atomsieve.properties.source import BEST, is_results
    from atomsieve.screen.selection.select import Selection

    given, screened = given_options(ctx), is_results(source)
    alien = [f.name for f in fields(files) if f.name in given] if screened else [n for n in OF_ROWS if n in given]
    if alien:
        kind = "a results folder" if screened else "no results folder"
        words = {"descending": "--descending/--ascending", "moved_input": "--input"}
        option = words.get(alien[0], f"--{alien[0].replace('_', '-')}")
        raise UsageError(f"{source} is {kind}; leave out {option}, which is for {'files' if screened else 'rows'}")
    own = merge_fields(method, batch) | {"what": parse_methods(method.what)}
    options = PropertyOptions(**own, dispersion=dispersion, precision=precision, device=device, threads=threads)
    chosen = Selection(top=top or (BEST.top if screened else None), head=head, **merge_fields(ranking))
    result = run_properties(
        source,
        options,
        selection=chosen,
        ensemble=ensemble,
        head=head,
        reading=files.reading(),
        moved_input=moved_input,
        out=output.out,
        overwrite=output.overwrite,
        console=console(stderr=True, quiet=quiet),
    )
    screen = widen(console(quiet=quiet))
    screen.print(make_table(result))
    for line in list_problems(result):
        screen.print(line, style="yellow", highlight=False, soft_wrap=True)
    screen.print(f"wrote {result.folder.table}", highlight=False, soft_wrap=True)
    return result.exit_code


def make_table(result: PropertySummary, most: int = 20) -> Table:
    """Return the first rows for people: value and, after +-, the spread of the members."""
    from rich.table import Table

    from atomsieve.properties.columns import COLUMNS

    names = [
        n for n in SHOWN if n in ("rank", "id", "formula", "status") or any(n in f["values"] for f in result.found)
    ]
    title = f"{min(most, len(result.found))} of {len(result.found)} structures"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in names:
        unit = COLUMNS[name][0]
        table.add_column(f"{name} [{unit}]" if unit else name, justify="left" if name in ("id", "formula") else "right")
    for found in result.found[:most]:
        table.add_row(*(_show(found["values"], name) for name in names))
    return table


def _show(values: dict[str, object], name: str) -> str:
    value, spread = values.get(name), values.get(f"{name}_std")
    if value is None:
        return "-"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"{text} +- {spread:.2g}" if isinstance(spread, float) else text


def list_problems(result: PropertySummary, most: int = 5) -> list[str]:
    """Return a line for each of the first structures that lack a property, and one for the others."""
    bad = [f["values"] for f in result.found if f["values"]["status"] != "OK"]
    lines = [f"{v['rank']}. {v['formula']}: {v['status']}: {v['reason']}" for v in bad[:most]]
    return lines + ([f"and {len(bad) - most:,} more, see the column reason"] if len(bad) > most else [])
