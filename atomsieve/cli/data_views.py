"""Tables that `atomsieve data` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from atomsieve.text import pluralize

if TYPE_CHECKING:
    from rich.console import Console

    from atomsieve.evaluation.verdict import Remark
    from atomsieve.structures.conversion.convert import ConvertOptions, ConvertReport

SHOWN_ELEMENTS = 20
SHOWN_KEYS = 12
LABEL_OPTIONS = ("energy", "forces", "stress", "virial", "charge", "spin")


def show_report(report: ConvertReport, screen: Console, options: ConvertOptions) -> None:
    """Print the written datasets, the sources, the labels with their keys and units, and what was left and why."""
    table = Table(title="converted", title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("dataset", overflow="fold")
    table.add_column("structures", justify="right")
    for path, count in report.outputs.items():
        table.add_row(Text(str(path)), f"{count:,}")
    screen.print(table)
    for source, count in report.sources.items():
        _say(screen, Text.assemble("source ", (source.name, "bold"), f" ({source.level_of_theory}): {count:,}"))
    tally, found = report.tally, report.tally.found
    _say(screen, Text(f"labels: {', '.join(_label_words(report)) or 'none'}"))
    for words in found.describe_units():
        _say(screen, Text(f"units: {words}"))
    rate = tally.read / max(report.seconds, 1e-9)
    screen.print(f"{report.atoms:,} atoms; {report.seconds:.1f} s ({rate:,.0f} structures/s)")
    for reason, count in tally.skipped.most_common():
        first = f", first {tally.first[reason]}"
        _say(screen, Text.assemble((f"skipped {count:,}: {reason}", "yellow"), first))
    if report.skipped_file is not None:
        _say(screen, Text(f"listed in {report.skipped_file}", "yellow"))
    if report.continued:
        screen.print(f"{report.continued:,} of {pluralize(report.pieces, 'piece')} were done by an earlier run")
    for note, count in tally.notes.most_common():
        _say(screen, Text(f"note: {pluralize(count, 'structure')}: {note}", "yellow"))
    known = [key for key in (options.keys.id, options.text_id, options.source_key, options.level_key) if key]
    known += sorted(tally.carried.keys)
    if options.split is not None and options.split.by.startswith("group:"):
        known.append(options.split.by.removeprefix("group:"))
    settled = [] if options.keys.none else [name for name in LABEL_OPTIONS if getattr(options.keys, name) is not None]
    for note in [
        *tally.carried.list_notes(report.written),
        *found.list_notes(known, settled),
        *_partial_conditions(report),
    ]:
        _say(screen, Text(f"note: {note}", "yellow"))
    for remark in [*report.remarks, *_free_atoms(report, options)]:
        _say(screen, Text(f"note: {remark}", "yellow"))
    for finding in _find_odd_sizes(report, screen):
        _say(screen, Text(f"does not fit: {finding}", "yellow"))
    if others := found.list_others(known, settled):
        more = f", and {len(others) - SHOWN_KEYS} more" if len(others) > SHOWN_KEYS else ""
        _say(
            screen,
            Text(f"not kept: {', '.join(others[:SHOWN_KEYS])}{more}; --carry NAME,... or --carry all keeps them"),
        )


def _free_atoms(report: ConvertReport, options: ConvertOptions) -> Iterator[str]:
    """Yield what single free atoms became, or the option that takes them."""
    from atomsieve.structures.conversion.references import describe_references

    taken, found = sum(report.tally.references.values()), report.tally.free_atoms
    yield from describe_references(report.tally.references)
    rest = sum(found.values()) - taken
    if rest <= 0 or options.keys.none:
        return
    names = ", ".join(f"{symbol} {count:,}" for symbol, count in found.most_common(12))
    where = ", all in one set" if options.split is not None and options.split.by == "structure" else ""
    if options.element_references:
        yield f"{pluralize(rest, 'single free atom')} of {names} kept as samples{where}: they have no energy"
    else:
        yield (
            f"{pluralize(rest, 'single free atom')} ({names}) kept as samples{where}; --element-references takes their "
            "energies as element references in place of that"
        )


def _find_odd_sizes(report: ConvertReport, screen: Console) -> list[str]:
    """Return what does not fit in the datasets that were written, by a sample of them."""
    from atomsieve.structures.plausibility import check_datasets

    if screen.quiet or not report.tally.labels["energy"]:
        return []
    applied = report.tally.found.common_units()
    found = check_datasets(list(report.outputs), applied)
    if applied is None:  # several units: which option would fit which file cannot be said
        found = [replace(one, option="") for one in found]
    return [one.describe() for one in found]


def _label_words(report: ConvertReport) -> Iterator[str]:
    """Yield `energy on 1,204 (from REF_energy)` for each label that any structure has, and what none has."""
    labels, taken = report.tally.labels, report.tally.found.taken
    for name in ("energy", "forces", "stress", "charge", "spin"):
        keys = [key for (label, key), _ in taken.most_common() if label == name]
        if labels[name]:
            yield f"{name} on {labels[name]:,}" + (f" (from {', '.join(keys)})" if keys and keys != [name] else "")
        elif name in ("energy", "forces", "stress") and any(labels[label] for label in ("energy", "forces", "stress")):
            yield f"{name} on 0"


def _partial_conditions(report: ConvertReport) -> Iterator[str]:
    """Yield a note where only some structures state a charge or a multiplicity."""
    for name, option in (("charge", "--charge"), ("spin", "--spin")):
        stated = report.tally.labels[name]
        if 0 < stated < report.written:
            rest = report.written - stated
            yield f"{stated:,} of {report.written:,} structures state a {name}; {option} sets it for the other {rest:,}"


def _say(screen: Console, text: Text) -> None:
    """Print a line: wrapped on a terminal, whole in a pipe, where other programs read it."""
    screen.print(text, soft_wrap=not screen.is_terminal)


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
    levels: list[tuple[str, str]] = []  # in lines of their own: they are long, and they are what separates sources
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("source", overflow="fold")
    for name in ("structures", "labels", "E/atom (std), eV", "F rms (max), eV/Å"):
        table.add_column(name, justify="right")
    for row in found["sources"]:
        energy = row.get("energy_per_atom")
        levels.append((row["name"], row["level_of_theory"]))
        table.add_row(
            Text(row["name"]),
            f"{row['structures']:,}",
            _labels(row),
            f"{energy['mean']:.3f} ({energy['std']:.3f})" if energy else "-",
            f"{row['force_rms']:.3f} ({row['force_max']:.1f})" if "force_rms" in row else "-",
        )
    if found["sources"]:
        screen.print(table)
    for name, level in levels:
        if level:
            screen.print(Text.assemble("level of theory of ", (name, "bold"), f": {level}"), soft_wrap=True)
    for name, text in found["notes"].items():
        _say(screen, Text.assemble((name, "bold"), f": {text}"))
    elements = sorted(found["elements"].items(), key=lambda pair: -pair[1]["structures"])
    shown = ", ".join(f"{symbol} {counts['structures']:,}" for symbol, counts in elements[:SHOWN_ELEMENTS])
    more = f", and {len(elements) - SHOWN_ELEMENTS} more" if len(elements) > SHOWN_ELEMENTS else ""
    screen.print(f"{len(elements)} elements (structures with it): {shown}{more}")
    screen.print(f"files: {found['verified']}; {found['steps']:,} steps; identity {found['identity'][:16]}")


def show_outlook(found: dict[str, list[Remark]], screen: Console) -> None:
    """Print what can be said of each source before a training; nothing where there are no labels."""
    if not found:
        return
    screen.print(Text("what a training can expect", "bold"))
    for name, remarks in found.items():
        if name:
            _say(screen, Text.assemble((name, "bold"), ":"))
        for remark in remarks:
            _say(screen, Text(f"  {remark.text}", "yellow" if remark.grade in ("poor", "fair") else ""))


def _labels(row: dict[str, Any]) -> str:
    """Return which labels the structures of a source have: `E F`, with counts where only some have them."""
    words = []
    for letter, key in (("E", "with_energy"), ("F", "with_forces"), ("S", "with_stress")):
        if row[key]:
            words.append(letter if row[key] == row["structures"] else f"{letter} on {row[key]:,}")
    return " ".join(words) or "none"
