"""Tables that `atomsieve data` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from atomsieve.text import pluralize

if TYPE_CHECKING:
    from rich.console import Console

    from atomsieve.structures.convert import ConvertReport

SHOWN_ELEMENTS = 20


def show_report(report: ConvertReport, screen: Console) -> None:
    """Print the written datasets, the sources, and the skipped structures by reason."""
    table = Table(title="converted", title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("dataset")
    table.add_column("structures", justify="right")
    for path, count in report.outputs.items():
        table.add_row(Text(str(path)), f"{count:,}")
    screen.print(table)
    for source, count in report.sources.items():
        screen.print(Text.assemble("source ", (source.name, "bold"), f" ({source.level_of_theory}): {count:,}"))
    labels = ", ".join(f"{name} on {report.tally.labels[name]:,}" for name in ("energy", "forces", "stress"))
    rate = report.tally.read / max(report.seconds, 1e-9)
    screen.print(f"{report.atoms:,} atoms; {labels}; {report.seconds:.1f} s ({rate:,.0f} structures/s)")
    for reason, count in report.tally.skipped.most_common():
        first = f", first {report.tally.first[reason]}"
        screen.print(Text.assemble((f"skipped {count:,}: {reason}", "yellow"), first))
    for note, count in report.tally.notes.most_common():
        screen.print(Text(f"note: {pluralize(count, 'structure')}: {note}", "yellow"))
    if report.notice:
        screen.print(Text(f"note: {report.notice}", "yellow"))


def show_summary(found: dict[str, Any], screen: Console) -> None:
    """Print the summary of a dataset."""
    size = f": {pluralize(found['structures'], 'structure')}, {pluralize(found['atoms'], 'atom')}"
    screen.print(Text.assemble((found["path"], "bold"), size))
    if sizes := found["atoms_per_structure"]:
        screen.print(
            f"atoms per structure: {sizes['min']:.0f} to {sizes['max']:.0f}, mean {sizes['mean']:.1f}, "
            f"median {sizes['median']:.0f}"
        )
    axes = ", ".join(f"{count:,} periodic along {k} axes" for k, count in found["periodic_axes"].items())
    screen.print(f"{axes or 'no structures'}; {found['with_charge']:,} with a charge")
    if found["not_finite_or_empty"]:
        screen.print(Text(f"{found['not_finite_or_empty']:,} structures are empty or not finite", "yellow"))
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("source")
    table.add_column("level of theory")
    for name in ("structures", "labels", "E/atom (std), eV", "F rms (max), eV/Å"):
        table.add_column(name, justify="right")
    for row in found["sources"]:
        energy = row.get("energy_per_atom")
        table.add_row(
            Text(row["name"]),
            Text(row["level_of_theory"]),
            f"{row['structures']:,}",
            _labels(row),
            f"{energy['mean']:.3f} ({energy['std']:.3f})" if energy else "-",
            f"{row['force_rms']:.3f} ({row['force_max']:.1f})" if "force_rms" in row else "-",
        )
    if found["sources"]:
        screen.print(table)
    elements = sorted(found["elements"].items(), key=lambda pair: -pair[1]["structures"])
    shown = ", ".join(f"{symbol} {counts['structures']:,}" for symbol, counts in elements[:SHOWN_ELEMENTS])
    more = f", and {len(elements) - SHOWN_ELEMENTS} more" if len(elements) > SHOWN_ELEMENTS else ""
    screen.print(f"{len(elements)} elements (structures with it): {shown}{more}")
    screen.print(f"files: {found['verified']}; {found['steps']:,} steps; identity {found['identity'][:16]}")


def _labels(row: dict[str, Any]) -> str:
    """Return which labels the structures of a source have: `E F`, with counts where only some have them."""
    words = []
    for letter, key in (("E", "with_energy"), ("F", "with_forces"), ("S", "with_stress")):
        if row[key]:
            words.append(letter if row[key] == row["structures"] else f"{letter} on {row[key]:,}")
    return " ".join(words) or "none"
