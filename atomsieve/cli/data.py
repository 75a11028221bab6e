"""`atomsieve data`: convert, inspect, generate and export structures."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atomsieve.cli.common import (
    ANY_FILE,
    CHOICE,
    IN_OUT,
    WORK,
    OverwriteOption,
    QuietOption,
    SeedOption,
    SingleFormatOption,
    console,
)
from atomsieve.cli.data_formats import formats_command
from atomsieve.cli.data_generate import app as generate_app
from atomsieve.cli.data_inspect import inspect_command
from atomsieve.cli.data_shared import (
    ChargeOption,
    OutArgument,
    PositionsOption,
    SpinOption,
    progress_bar,
    skip_torch,
)
from atomsieve.cli.groups import expand_groups
from atomsieve.cli.reading import LabelledOptions
from atomsieve.text import pluralize

if TYPE_CHECKING:
    from atomsieve.structures.conversion.convert import Input

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Convert, inspect, generate and export structures.")
app.command("inspect")(inspect_command)
app.command("formats")(formats_command)
app.add_typer(generate_app, name="generate", help="Make candidates: random boxes, substitutions, rattled copies.")

AnyStructuresArgument = Annotated[
    Path, typer.Argument(help=f"Structures: {ANY_FILE}; - reads extxyz from standard input.", show_default=False)
]
KEYS = "Names in the files"

StepSizeOption = Annotated[
    int, typer.Option("--step-size", min=1, help="Structures per step, the unit of reading.", rich_help_panel=IN_OUT)
]


# -- convert ---------------------------------------------------------------------------------------------------------


@app.command("convert")
def convert_command(
    src: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC...",
            help="Files or folders, or NAME=PATH to give each its source. 'atomsieve data formats' lists the formats: "
            "extxyz, CIF, POSCAR, databases, outputs of codes, ... - is extxyz from standard input.",
            show_default=False,
        ),
    ],
    out: OutArgument,
    source: Annotated[
        str | None, typer.Option("--source", help="Source of all structures without NAME=.", show_default=False)
    ] = None,
    level_of_theory: Annotated[
        list[str] | None,
        typer.Option("--level-of-theory", help="TEXT for all, or NAME=TEXT for one (repeat).", show_default=False),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            help="E.g. train=0.9,val=0.1: writes OUT-train.bp and OUT-val.bp.",
            rich_help_panel=CHOICE,
            show_default=False,
        ),
    ] = None,
    split_by: Annotated[
        str,
        typer.Option("--split-by", help="Kept together: structure, formula or group:KEY.", rich_help_panel=CHOICE),
    ] = "structure",
    seed: SeedOption = 0,
    energy_key: Annotated[
        str | None, typer.Option(help="Total energy.", rich_help_panel=KEYS, show_default=False)
    ] = None,
    forces_key: Annotated[str | None, typer.Option(help="Forces.", rich_help_panel=KEYS, show_default=False)] = None,
    stress_key: Annotated[str | None, typer.Option(help="Stress.", rich_help_panel=KEYS, show_default=False)] = None,
    virial_key: Annotated[
        str | None, typer.Option(help="Virial, minus stress times volume.", rich_help_panel=KEYS, show_default=False)
    ] = None,
    charge_key: Annotated[
        str | None, typer.Option(help="Total charge, e.", rich_help_panel=KEYS, show_default=False)
    ] = None,
    spin_key: Annotated[
        str | None, typer.Option(help="Multiplicity 2S+1.", rich_help_panel=KEYS, show_default=False)
    ] = None,
    unit: Annotated[
        list[str] | None,
        typer.Option(
            "--unit",
            help="Units of the numbers in the files, before those that files state, e.g. energy=hartree,length=bohr,"
            "forces=hartree/bohr,stress=kbar; or metal, real, electron, si: those of LAMMPS. "
            "[default: eV, Angstrom, eV/Angstrom, eV/Angstrom^3]",
            rich_help_panel=KEYS,
            show_default=False,
        ),
    ] = None,
    stress_sign: Annotated[
        int | None,
        typer.Option(
            "--stress-sign",
            help="1: positive under tension (ASE); -1: positive under pressure (VASP).",
            rich_help_panel=KEYS,
            show_default=False,
        ),
    ] = None,
    source_key: Annotated[
        str | None, typer.Option(help="Each structure's source.", rich_help_panel=KEYS, show_default=False)
    ] = None,
    level_key: Annotated[
        str | None, typer.Option(help="Each structure's level of theory.", rich_help_panel=KEYS, show_default=False)
    ] = None,
    id_key: Annotated[
        str | None,
        typer.Option(
            help="Identity, integers or texts. [default: place in the input, and text ids of a usual name]",
            rich_help_panel=KEYS,
            show_default=False,
        ),
    ] = None,
    carry: Annotated[
        str | None,
        typer.Option(
            "--carry",
            help="Values to carry beside the structures: mp_id,spacegroup, or all, or none. [default: text ids]",
            rich_help_panel=KEYS,
            show_default=False,
        ),
    ] = None,
    allow_duplicate_ids: Annotated[
        bool,
        typer.Option("--allow-duplicate-ids", help="Take ids of --id-key that are given twice.", rich_help_panel=KEYS),
    ] = False,
    element_references: Annotated[
        bool,
        typer.Option(
            "--element-references",
            help="Take energies of single free atoms (config_type=IsolatedAtom) as element references of their source, "
            "kept in the manifest, and leave these atoms out.",
            rich_help_panel=CHOICE,
        ),
    ] = False,
    no_labels: Annotated[bool, typer.Option("--no-labels", help="Leave energies, forces and stress out.")] = False,
    keep_bad: Annotated[
        bool, typer.Option("--keep-bad", help="Keep structures no model accepts, so that a screening reports them.")
    ] = False,
    charge: ChargeOption = None,
    spin: SpinOption = None,
    file_format: Annotated[
        str | None,
        typer.Option("--format", help="Format of all files, if names do not tell.", show_default=False),
    ] = None,
    elements: Annotated[
        str | None,
        typer.Option(
            "--elements",
            help="Elements of the types that a file numbers (LAMMPS, MTP), e.g. Al,Ni.",
            rich_help_panel=KEYS,
            show_default=False,
        ),
    ] = None,
    topology: Annotated[
        Path | None,
        typer.Option(
            "--topology",
            help="File of structures with the elements (and the cell) of trajectories that hold positions only.",
            rich_help_panel=KEYS,
            show_default=False,
        ),
    ] = None,
    keep_unconverged: Annotated[
        bool,
        typer.Option(
            "--keep-unconverged",
            help="Keep steps of calculations whose electronic steps did not converge, with their labels.",
        ),
    ] = False,
    step_size: StepSizeOption = 20_000,
    positions: PositionsOption = "float64",
    overwrite: OverwriteOption = False,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            help="Processes that share the work. [default: one per core for large inputs]",
            rich_help_panel=WORK,
            show_default=False,
        ),
    ] = None,
    quiet: QuietOption = False,
) -> int:
    """Convert files into a dataset folder; exit code 3 if some structures had to be left out.

    A conversion that was stopped goes on when the same command is run again. Under mpirun its ranks share the work.
    """
    skip_torch()
    from atomsieve.cli.data_views import show_report
    from atomsieve.errors import EXIT_DONE, EXIT_SOME_FAILED, UsageError
    from atomsieve.runs.mpi import connect_ranks, guard_ranks
    from atomsieve.structures.conversion.carry import parse_carry
    from atomsieve.structures.conversion.convert import ConvertOptions, convert
    from atomsieve.structures.conversion.split import Split
    from atomsieve.structures.item import parse_elements
    from atomsieve.structures.labels import LabelKeys
    from atomsieve.structures.units import Units

    if split is None and split_by != "structure":
        raise UsageError("--split-by says what stays together in the sets of --split, e.g. --split train=0.9,val=0.1")
    options = ConvertOptions(
        keys=LabelKeys(energy_key, forces_key, stress_key, virial_key, charge_key, spin_key, id_key, no_labels),
        units=Units.parse(",".join(unit or []), stress_sign),
        source_key=source_key,
        level_key=level_key,
        format=file_format,
        elements=parse_elements(elements),
        topology=topology,
        keep_unconverged=keep_unconverged,
        split=Split.parse(split, split_by, seed) if split is not None else None,
        keep_bad=keep_bad,
        charge=charge,
        spin=spin,
        step_size=step_size,
        positions=positions,
        overwrite=overwrite,
        element_references=element_references,
        allow_duplicate_ids=allow_duplicate_ids,
        carry=parse_carry(carry),
    )
    inputs = parse_inputs(src, source, level_of_theory or [])
    comm = connect_ranks()
    with guard_ranks(comm):
        report = convert(inputs, out, options, console(stderr=True, quiet=quiet), workers=workers, comm=comm)
        show_report(report, console(quiet=quiet or comm.rank > 0), options)
    return EXIT_SOME_FAILED if report.tally.skipped else EXIT_DONE


def parse_inputs(words: list[str], source: str | None, levels: list[str]) -> list[Input]:
    """Return the inputs that `PATH` and `NAME=PATH` words, `--source` and `--level-of-theory` describe.

    Raises
    ------
    UsageError
        if two texts without a name are given, or a text is for a name that is no source here.
    """
    from atomsieve.errors import UsageError, unknown
    from atomsieve.structures import SourceInfo
    from atomsieve.structures.conversion.convert import Input

    named: list[tuple[str | None, Path]] = []
    for word in words:
        name, equals, path = word.partition("=")
        if equals and not Path(word).exists() and re.fullmatch(r"[\w.+-]+", name):
            named.append((name, Path(path)))
        else:
            named.append((source, Path(word)))
    names = {name for name, _ in named if name is not None}
    general, own = "", dict[str, str]()
    for text in levels:
        name, equals, rest = text.partition("=")
        if equals and name in names:
            if own.setdefault(name, rest) != rest:
                raise UsageError(f"two levels of theory for {name}: {own[name]!r} and {rest!r}")
        elif equals and re.fullmatch(r"[\w.+-]+", name) and names and len(names) > 1:
            raise unknown("source in --level-of-theory", name, names)
        elif general:
            raise UsageError(f"two levels of theory for all: {general!r} and {text!r}; write NAME=TEXT")
        else:
            general = text
    if general and not names:
        raise UsageError("--level-of-theory needs a source: give --source NAME or NAME=PATH")
    return [Input(path, SourceInfo(name, own.get(name, general)) if name is not None else None) for name, path in named]


# -- info ------------------------------------------------------------------------------------------------------------


@app.command("info")
@expand_groups()
def info_command(
    structures: AnyStructuresArgument,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    verify: Annotated[
        str, typer.Option("--verify", help="full: every byte against its checksum; size: sizes and metadata only.")
    ] = "full",
    files: LabelledOptions,
    quiet: QuietOption = False,
) -> int:
    """Show counts, sizes, elements, sources and label statistics, and what a training can expect; verify the files.

    A file that is no dataset is converted into a temporary one first.
    """
    skip_torch()
    import json

    from atomsieve.cli.data_views import show_outlook, show_summary
    from atomsieve.errors import EXIT_DONE, EXIT_SOME_FAILED
    from atomsieve.structures.conversion.ready import open_with_copy
    from atomsieve.structures.summary import summarise
    from atomsieve.train.data.outlook import Outlook, judge_sources

    screen = console(stderr=True, quiet=quiet or as_json)
    with (
        open_with_copy(structures, files.reading(), verify=verify, console=screen) as (reader, copy),
        progress_bar("reading", len(reader), screen) as advance,
    ):
        outlook = Outlook([source.name for source in reader.sources])
        found = summarise(reader, advance, outlook.add) | {"path": str(structures)}
    found["outlook"] = outlook.result()
    if as_json:
        typer.echo(json.dumps(found, indent=2, allow_nan=False))
    else:
        show_summary(found, console())
        show_outlook(judge_sources(found["outlook"]), console())
    return EXIT_SOME_FAILED if copy.unreadable.count else EXIT_DONE


# -- export ----------------------------------------------------------------------------------------------------------


@app.command("export")
@expand_groups(first=("structures", "out"))
def export_command(
    structures: AnyStructuresArgument,
    out: Annotated[
        Path,
        typer.Argument(
            help="OUT.extxyz, .xyz, .db, .parquet, .cif, .extxyz.gz or .bp; with --as a folder.", show_default=False
        ),
    ],
    form: SingleFormatOption = None,
    where: Annotated[
        str | None,
        typer.Option(
            "--where",
            help='Keep structures for which this holds, e.g. "natoms < 50 and energy_per_atom < -3". Columns: index, '
            "id, natoms, n_elements, source, level_of_theory, charge, spin, periodic, volume, energy, energy_per_atom, "
            "max_force.",
            rich_help_panel=CHOICE,
            show_default=False,
        ),
    ] = None,
    span: Annotated[
        str | None, typer.Option("--range", help="Places A:B, from 0.", rich_help_panel=CHOICE, show_default=False)
    ] = None,
    ids: Annotated[
        str | None, typer.Option("--ids", help="1,5,9 or @file.", rich_help_panel=CHOICE, show_default=False)
    ] = None,
    dialect: Annotated[
        str | None,
        typer.Option(
            "--dialect",
            help="Names of keys in extended XYZ: ase, mace, nequip, gap (virial) or nep (virial). [default: ase]",
            rich_help_panel=IN_OUT,
            show_default=False,
        ),
    ] = None,
    *,
    files: LabelledOptions,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
) -> int:
    """Write structures into a common format, all or those that a filter keeps.

    A file that is no dataset is converted into a temporary one first.
    """
    skip_torch()
    from atomsieve.errors import EXIT_DONE, EXIT_SOME_FAILED
    from atomsieve.structures.conversion.ready import open_with_copy
    from atomsieve.structures.export import Subset, export
    from atomsieve.structures.formats import FORMATS, find_writer

    reasons: Counter[str] = Counter()
    selection = Subset.parse(span, ids, where)
    screen = console(stderr=True, quiet=quiet)
    near = out.absolute().parent
    with open_with_copy(structures, files.reading(), scratch_in=near, console=screen) as (reader, copy):
        total = len(reader) if selection.stop is None else selection.stop
        with progress_bar("exporting", total - selection.start, console(stderr=True, quiet=quiet)) as advance:
            written, skipped = export(
                reader,
                out,
                selection,
                overwrite=overwrite,
                dialect=dialect or "",
                progress=advance,
                form=form,
                reasons=reasons,
            )
    screen = console(quiet=quiet)
    screen.print(f"{pluralize(written, 'structure')} in {out}", highlight=False)
    for reason, count in reasons.most_common():
        screen.print(f"skipped {count:,}: {reason}", style="yellow", highlight=False)
    row = FORMATS[form] if form is not None else find_writer(out)
    if skipped > reasons.total() and row is not None:
        left = skipped - reasons.total()
        screen.print(f"skipped {left:,}: the format cannot hold {row.lacks}", style="yellow", highlight=False)
    if written and row is not None and row.single is not None:
        screen.print(f"{row.name.upper()} cannot hold {row.lacks}", highlight=False)
    return EXIT_SOME_FAILED if skipped or copy.unreadable.count else EXIT_DONE
