"""`atomsieve data inspect`: what is in files, before they are converted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from atomsieve.cli.common import QuietOption, console
from atomsieve.cli.data_shared import skip_torch
from atomsieve.text import pluralize

if TYPE_CHECKING:
    from rich.console import Console

    from atomsieve.structures.conversion.inspection import Inspection

SHOWN_ELEMENTS = 24
SHOWN_NOTES = 20
SHOWN_SOURCES = 6
KEYS = "As for convert"


def inspect_command(
    src: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Files or folders to look at.", show_default=False)
    ],
    limit: Annotated[int, typer.Option("--limit", min=0, help="Read about so many structures; 0 reads all.")] = 100_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    energy_key: Annotated[
        str | None, typer.Option(help="Total energy.", rich_help_panel=KEYS, show_default=False)
    ] = None,
    forces_key: Annotated[str | None, typer.Option(help="Forces.", rich_help_panel=KEYS, show_default=False)] = None,
    stress_key: Annotated[str | None, typer.Option(help="Stress.", rich_help_panel=KEYS, show_default=False)] = None,
    virial_key: Annotated[str | None, typer.Option(help="Virial.", rich_help_panel=KEYS, show_default=False)] = None,
    unit: Annotated[
        list[str] | None,
        typer.Option("--unit", help="E.g. energy=hartree,length=bohr.", rich_help_panel=KEYS, show_default=False),
    ] = None,
    stress_sign: Annotated[
        int | None, typer.Option("--stress-sign", help="1 or -1.", rich_help_panel=KEYS, show_default=False)
    ] = None,
    file_format: Annotated[
        str | None,
        typer.Option("--format", help="Format of all files, if names do not tell.", show_default=False),
    ] = None,
    elements: Annotated[
        str | None,
        typer.Option("--elements", help="Elements of the types that a file numbers: LAMMPS, MTP.", show_default=False),
    ] = None,
    topology: Annotated[
        Path | None, typer.Option("--topology", help="File with the elements of trajectories.", show_default=False)
    ] = None,
    keep_unconverged: Annotated[
        bool, typer.Option("--keep-unconverged", help="Keep steps of codes that did not converge.")
    ] = False,
    quiet: QuietOption = False,
) -> int:
    """Show what is in files before converting: keys with ranges, what would be taken and left, units, problems.

    Exit code 3 if some structures would be left out. Nothing is written.
    """
    skip_torch()
    import json
    import shlex

    from atomsieve.errors import EXIT_DONE, EXIT_SOME_FAILED
    from atomsieve.structures.conversion.inspection import inspect_path
    from atomsieve.structures.item import parse_elements
    from atomsieve.structures.labels import LabelKeys
    from atomsieve.structures.units import Units

    given = {
        "--energy-key": energy_key,
        "--forces-key": forces_key,
        "--stress-key": stress_key,
        "--virial-key": virial_key,
        "--unit": ",".join(unit or []) or None,
        "--stress-sign": stress_sign,
        "--format": file_format,
        "--elements": elements,
        "--topology": topology,
    }
    options = " ".join(f"{name} {shlex.quote(str(value))}" for name, value in given.items() if value is not None)
    options = " ".join([options, "--keep-unconverged"] if keep_unconverged else [options]).strip()
    screen = console(stderr=True, quiet=quiet or as_json)
    found = []
    for path in src:
        with _bar(f"reading {path.name}", screen) as progress:
            found.append(
                inspect_path(
                    path,
                    file_format=file_format,
                    limit=limit,
                    keys=LabelKeys(energy=energy_key, forces=forces_key, stress=stress_key, virial=virial_key),
                    units=Units.parse(",".join(unit or []), stress_sign),
                    options=options,
                    elements=parse_elements(elements),
                    topology=topology,
                    keep_unconverged=keep_unconverged,
                    progress=progress,
                )
            )
    if as_json:
        typer.echo(json.dumps([one.as_plain() for one in found], indent=2, allow_nan=False))
    else:
        for k, one in enumerate(found):
            if k:
                console().print()
            show_inspection(one, console())
    return EXIT_SOME_FAILED if any(one.counts.skipped for one in found) else EXIT_DONE


def show_inspection(found: Inspection, screen: Console) -> None:
    """Print what a file holds, in lines that fit 80 columns; in a pipe they are not wrapped."""
    from atomsieve.structures.conversion.inspection import describe_formats

    def say(*parts: str | tuple[str, str]) -> None:
        screen.print(Text.assemble(*parts), soft_wrap=not screen.is_terminal)

    counts, labels = found.counts, found.counts.found
    say((str(found.path), "bold"), f": {describe_formats(found)}")
    whole = "" if found.complete else f" (the first ones; --limit {counts.read * 10} reads more, --limit 0 all)"
    say(f"{pluralize(counts.read, 'structure')}{whole}, {pluralize(found.atoms, 'atom')}{_sizes(found)}")
    elements = found.elements.most_common()
    more = f", and {len(elements) - SHOWN_ELEMENTS} more" if len(elements) > SHOWN_ELEMENTS else ""
    say(
        f"{pluralize(len(elements), 'element')} (structures with it): "
        + ", ".join(f"{symbol} {count:,}" for symbol, count in elements[:SHOWN_ELEMENTS])
        + more
    )
    periodic = [f"{count:,} {_axes(axes)}" for axes, count in sorted(found.periodic.items(), key=lambda row: -row[1])]
    say(f"periodicity: {', '.join(periodic) or 'none'}")
    if found.keys:
        screen.print()
        screen.print(_key_table(found, 80 if not screen.is_terminal else screen.width))
        screen.print()
    units = list(labels.describe_units())
    for words in units:
        say(f"units: {words}")
    if not units and any(counts.labels[name] for name in ("energy", "forces", "stress")):
        say("units: none are stated, so eV, Angstrom, eV/Angstrom and eV/Angstrom^3 are assumed; --unit says others")
    for name, word in (("charge", "a total charge"), ("spin", "a multiplicity")):
        if counts.labels[name]:
            say(f"{counts.labels[name]:,} of {pluralize(counts.read, 'structure')} state {word}")
    if counts.free_atoms:
        words = ", ".join(f"{symbol} {count}" for symbol, count in counts.free_atoms.most_common(12))
        say(f"single free atoms: {words}; --element-references takes their energies as references")
    notes = found.describe_notes()
    for note in notes[:SHOWN_NOTES]:
        say((f"note: {note}", "yellow"))
    if len(notes) > SHOWN_NOTES:
        say((f"and {len(notes) - SHOWN_NOTES} more notes (--json lists all)", "yellow"))
    for reason, count in counts.skipped.most_common():
        say((f"would be left out, {count:,}: {reason}", "yellow"), f", first {counts.first[reason]}")
    _say_findings(found, say)
    say("to convert: ", (found.suggest_command(), "bold"))


def _say_findings(found: Inspection, say: Callable[..., None]) -> None:
    for one in found.findings:
        say((f"does not fit: {one.describe()}", "yellow"))
    if not found.checked:
        return
    say(f"checks ({pluralize(found.checked, 'structure')} looked at):")
    for source, words in list(found.compared.items())[:SHOWN_SOURCES]:
        say(f"  {source}: " if source else "  ", "; ".join(words) or "nothing there can be compared")
    if len(found.compared) > SHOWN_SOURCES:
        say(f"  and {len(found.compared) - SHOWN_SOURCES} more sources (--json lists all)")


def _sizes(found: Inspection) -> str:
    if not found.atoms:
        return ""
    one = found.smallest == found.largest
    return f" ({found.smallest:,} each)" if one else f" ({found.smallest:,} to {found.largest:,} each)"


def _axes(axes: str) -> str:
    return {"": "not periodic", "xyz": "fully periodic"}.get(axes, f"periodic along {', '.join(axes)}")


def _key_table(found: Inspection, width: int) -> Table:
    """Return a table of the keys; only its last two columns are wrapped."""
    table = Table(show_edge=False, pad_edge=False, box=None, width=min(width, 120))
    table.add_column("key", overflow="fold", max_width=22)
    table.add_column("structures", justify="right", no_wrap=True)
    table.add_column("shape", no_wrap=True)
    table.add_column("range", overflow="fold", max_width=30)
    table.add_column("becomes", overflow="fold", min_width=14)
    order = sorted(found.keys, key=lambda name: (found.taken_as(name) == "not kept", name.lower()))
    for name in order:
        key = found.keys[name]
        shapes = [shape for shape, _ in key.shapes.most_common()]
        shape = shapes[0] + (f" (+{len(shapes) - 1})" if len(shapes) > 1 else "")
        becomes = found.taken_as(name)
        style = "dim" if becomes == "not kept" else "yellow" if becomes.startswith(("--", "not")) else "green"
        table.add_row(
            Text(name.removesuffix(" (atoms)")),
            f"{key.structures:,}",
            Text(shape),
            Text(_clip(key.describe_range(), 60)),
            Text(becomes, style),
        )
    return table


def _clip(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


@contextmanager
def _bar(what: str, screen: Console) -> Iterator[Callable[[float, int], None]]:
    """Show a bar over the fraction of a file, on a terminal."""
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn(what), BarColumn(), TextColumn("{task.percentage:>3.0f}%  {task.fields[count]:,} structures"))
    with Progress(*columns, console=screen, transient=True, disable=screen.quiet or not screen.is_interactive) as bar:
        task = bar.add_task("", total=1.0, count=0)
        yield lambda fraction, count: bar.update(task, completed=fraction, count=count)
