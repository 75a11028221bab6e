"""Reads files through and says what is in them, what a conversion would take of it, and what it would leave."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.structures.block import Block, Column
from atomsieve.structures.conversion.validation import BlockValidator, ConversionCounts, ValidBlock
from atomsieve.structures.formats import ReadRequest, read_blocks
from atomsieve.structures.formats.registry import FORMATS
from atomsieve.structures.formats.scan import NO_FILE, scan_files
from atomsieve.structures.item import BadItem
from atomsieve.structures.labels import LabelKeys
from atomsieve.structures.labels.find import describe_shape
from atomsieve.structures.labels.names import offer_option
from atomsieve.structures.plausibility import Finding, SourceSample
from atomsieve.structures.units import Units
from atomsieve.text import pluralize

KEYS_KEPT = 1000
TEXTS_KEPT = 50
SAMPLE = 4000
"""Structures of a file that the checks of plausibility look at, the first ones."""
SOURCES_CHECKED = 100
SOURCE_KEYS = ("source", "dataset", "data_source", "data_origin", "origin", "subset", "head")
LEVEL_KEYS = ("level_of_theory", "level", "theory", "functional", "xc", "method")
ID_KEYS = ("id", "sid", "uid", "material_id", "index", "idx")
DEFAULT_UNITS = {"energy": "eV", "forces": "eV/Å", "stress": "eV/Å³", "charge": "e", "spin": "2S+1"}

Progress = Callable[[float, int], None]
"""Called with the fraction that has been read, and the structures so far."""


@dataclass
class KeyStatistics:
    """What structures state under one key.

    Attributes
    ----------
    of_atoms : one value per atom.
    structures : that state it.
    shapes : structures by shape in words.
    low, high : smallest and largest of its numbers.
    texts : structures by text, of the first `TEXTS_KEPT` different ones.
    whole : all its numbers are whole.
    """

    of_atoms: bool
    structures: int = 0
    shapes: Counter[str] = field(default_factory=Counter)
    low: float = np.inf
    high: float = -np.inf
    texts: Counter[str] = field(default_factory=Counter)
    whole: bool = True

    def add(self, column: Column) -> None:
        """Take in the values of a block."""
        count = int(column.has.sum())
        self.structures += count
        self.shapes[describe_shape(column, of_atoms=self.of_atoms)] += count
        if column.numeric and column.values.size:
            finite = column.values[np.isfinite(column.values)]
            if finite.size:
                self.low, self.high = min(self.low, float(finite.min())), max(self.high, float(finite.max()))
            self.whole &= column.values.dtype.kind in "iub"
        elif not self.of_atoms:
            for value in column.values:
                text = " ".join(str(value).split())[:200]
                if text in self.texts or len(self.texts) < TEXTS_KEPT:
                    self.texts[text] += 1

    def describe_range(self) -> str:
        """Return the range of the numbers, the text where there is one, or how many."""
        if self.low <= self.high and next(iter(self.shapes)).startswith("flag"):
            return "true" if self.low else "true and false" if self.high else "false"
        if self.low <= self.high:
            low, high = f"{self.low:.6g}", f"{self.high:.6g}"
            return low if low == high else f"{low} .. {high}"
        if len(self.texts) == 1:
            return next(iter(self.texts))
        if self.texts:
            more = "at least " if len(self.texts) >= TEXTS_KEPT else ""
            return f"{more}{len(self.texts)} texts, e.g. {next(iter(self.texts))}"
        return ""


@dataclass
class Inspection:
    """What a file or a folder holds.

    Attributes
    ----------
    path : of it.
    formats : files by format.
    counts : as a conversion would count: structures read, labels by key, what was left, problems.
    atoms : all of them; `smallest` and `largest` structure.
    elements : structures by symbol.
    periodic : structures by the axes along which they are periodic, such as `xyz`, `xy`, or an empty string.
    keys : by name; arrays of atoms have names like `force (atoms)` where a key of structures has the same name.
    units : that the file states or its format fixes, by the words of the report.
    findings : what does not fit; `compared` says what could be compared in each source, and `checked` structures were
        looked at.
    complete : everything was read.
    seconds : it took.
    options : options of the call that a conversion needs too.
    """

    path: Path
    formats: Counter[str] = field(default_factory=Counter)
    counts: ConversionCounts = field(default_factory=ConversionCounts)
    atoms: int = 0
    smallest: int = 0
    largest: int = 0
    elements: Counter[str] = field(default_factory=Counter)
    periodic: Counter[str] = field(default_factory=Counter)
    keys: dict[str, KeyStatistics] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    checked: int = 0
    compared: dict[str, list[str]] = field(default_factory=dict)
    complete: bool = True
    seconds: float = 0.0
    sources: set[str] = field(default_factory=set)
    options: str = ""

    # -- what a conversion would do ----------------------------------------------------------------------------------

    def taken_as(self, name: str) -> str:
        """Return what becomes of a key in words: `energy, eV`, `--energy-key E`, or `not kept`."""
        key = name.removesuffix(" (atoms)")
        of_atoms = self.keys[name].of_atoms
        for (label, source), _ in self.counts.found.taken.items():
            if key in (source, source[1:].removesuffix("/volume")) and of_atoms == (label == "forces"):
                unit = next((u for q, u, _ in self.counts.found.units if q == label), DEFAULT_UNITS.get(label, ""))
                return f"{label}, {unit}" if key == source else f"stress = {source}"
        if key in {source for source, _ in self.counts.found.missed}:
            return "not taken"
        if option := offer_option(key, next(iter(self.keys[name].shapes))):
            return option
        return self._role(name) or "not kept"

    def _role(self, name: str) -> str:
        """Return the option that takes a key for something else than a label, or an empty string."""
        plain, found = name.lower(), self.keys[name]
        if found.of_atoms:
            return ""
        if found.texts and plain in SOURCE_KEYS and len(found.texts) < TEXTS_KEPT:
            return f"--source-key {name}"
        if found.texts and plain in LEVEL_KEYS and len(found.texts) < TEXTS_KEPT:
            return f"--level-key {name}"
        if found.whole and plain in ID_KEYS and found.low <= found.high:
            return f"--id-key {name}"
        return ""

    def suggest_command(self) -> str:
        """Return the command that converts this, with words in capitals where only the user knows."""
        words = ["atomsieve", "data", "convert", shlex.quote(str(self.path)), shlex.quote(_name_output(self.path))]
        roles = {role.split()[0]: role for name in self.keys if (role := self._role(name))}
        labelled = any(self.counts.labels[name] for name in ("energy", "forces", "stress"))
        source, level = roles.get("--source-key"), roles.get("--level-key")
        if source and self.keys[source.split()[1]].structures < self.counts.read:
            source = None
        if level and self.keys[level.split()[1]].structures < self.counts.read:
            level = None
        if (labelled or source or level) and not self.sources:
            words.append(source or "--source NAME")
            words.append(level or "--level-of-theory 'TEXT'")
        words += [self.options] if self.options else []
        units = [one.option for one in self.findings if one.option.startswith("--") and ", or " not in one.option]
        words += [option for option in units if "UNIT" not in option and "with" not in option]
        return " ".join(words)

    def as_plain(self) -> dict[str, Any]:
        """Return everything as plain values, ready for JSON."""
        counts, found = self.counts, self.counts.found
        return {
            "path": str(self.path),
            "formats": dict(self.formats),
            "structures": counts.read,
            "complete": self.complete,
            "atoms": self.atoms,
            "atoms_per_structure": {"min": self.smallest, "max": self.largest},
            "elements": dict(self.elements),
            "periodic_axes": dict(self.periodic),
            "keys": {
                name: {
                    "of_atoms": key.of_atoms,
                    "structures": key.structures,
                    "shapes": dict(key.shapes),
                    "range": [key.low, key.high] if key.low <= key.high else None,
                    "texts": dict(key.texts),
                    "taken_as": self.taken_as(name),
                }
                for name, key in self.keys.items()
            },
            "labels": dict(counts.labels),
            "units": list(found.describe_units()),
            "notes": [*self.describe_notes()],
            "findings": [
                {"what": f.what, "text": f.text, "factor": f.factor, "option": f.option} for f in self.findings
            ],
            "checked": self.checked,
            "compared": self.compared,
            "skipped": {r: {"structures": n, "first": counts.first.get(r, "")} for r, n in counts.skipped.items()},
            "free_atoms": dict(counts.free_atoms),
            "convert": self.suggest_command(),
        }

    def describe_notes(self) -> list[str]:
        """Return sentences about labels that were left, and what the reader noticed."""
        notes = [f"{note} ({count:,})" for note, count in self.counts.notes.most_common()]
        return notes + list(self.counts.found.list_notes())


def _name_output(path: Path) -> str:
    name = f"{path.name.split('.')[0] or 'structures'}.bp"
    return "OUT.bp" if name == path.name else name


def inspect_path(
    path: Path,
    *,
    file_format: str | None = None,
    limit: int = 0,
    keys: LabelKeys | None = None,
    units: Units | None = None,
    options: str = "",
    elements: tuple[str, ...] = (),
    topology: Path | None = None,
    keep_unconverged: bool = False,
    progress: Progress | None = None,
) -> Inspection:
    """Read a file, or the files of a folder, and return what is in it.

    Parameters
    ----------
    path
        file or folder.
    file_format
        of all files, where names do not tell.
    limit
        read about so many structures; 0 reads all.
    keys, units, options
        as for a conversion, and how the call said them.
    elements, topology, keep_unconverged
        see `ReadRequest`.
    progress
        called now and then.

    Raises
    ------
    DataError
        if nothing is there, or a file cannot be read at all.
    """
    start = time.monotonic()
    validator = BlockValidator(keys or LabelKeys(), units=units or Units(), ask_units=False)
    out = Inspection(path, counts=validator.tally, options=options)
    sample = SourceSample(SAMPLE)
    applied: set[Units] = set()
    files = list(scan_files(path, file_format))
    for k, found in enumerate(files):
        file, kind = Path(found.path), found.kind
        if found.size < 0:
            validator.tally.read += 1
            validator.tally.skip(BadItem(NO_FILE, found.path))
            continue
        out.formats[kind] += 1

        def tick(fraction: float, done: int = k) -> None:
            if progress is not None:
                progress((done + fraction) / len(files), validator.tally.read)

        asked = ReadRequest(
            file, tick, elements=elements, wanted=("*",), topology=topology, keep_unconverged=keep_unconverged
        )
        for block in read_blocks(asked, kind, skip_bad_file=len(files) > 1):
            if limit and validator.tally.read >= limit:
                out.complete = False
                break
            applied.add(validator.units.over(block.units))
            valid = validator(block)
            _add_block(out, block)
            _add_to_sample(sample, valid)
        if not out.complete:
            break
    out.checked = sum(count for count, _ in sample.held.values())
    out.findings = sample.check(applied.pop() if len(applied) == 1 else None)
    out.compared = {source: sample.describe(source) for source in sample.parts}
    out.seconds = time.monotonic() - start
    return out


def _add_to_sample(sample: SourceSample, valid: ValidBlock) -> None:
    """Add structures to the sample by what seems to separate sources: energies of different levels do not compare."""
    block, batch = valid.block, valid.batch
    keys = [key for key in block.info if key.lower() in (*SOURCE_KEYS, *LEVEL_KEYS)]
    parts = [[str(value) for value in valid.values_of(key)] for key in keys]
    if block.sources is not None and not parts:
        parts.append([source.name if (source := block.sources[k]) else "" for k in valid.kept.tolist()])
    if not parts:
        sample.add("", batch)
        return
    names = np.array([", ".join(words) for words in zip(*parts, strict=True)])
    for name in np.unique(names).tolist():
        if name in sample.parts or len(sample.parts) < SOURCES_CHECKED:
            sample.add(name, batch.take(np.flatnonzero(names == name)))


def _add_block(out: Inspection, block: Block) -> None:
    if not len(block):
        return
    counts = block.counts
    out.smallest = int(counts.min()) if not out.atoms else min(out.smallest, int(counts.min()))
    out.largest, out.atoms = max(out.largest, int(counts.max())), out.atoms + len(block.numbers)
    _count_elements(out, block)
    for axes, count in zip(*np.unique(block.pbc, axis=0, return_counts=True), strict=True):
        out.periodic["".join(name for name, on in zip("xyz", axes.tolist(), strict=True) if on)] += int(count)
    if block.sources is not None:
        out.sources.update(source.name for source in block.sources if source is not None)
    columns: Sequence[tuple[str, bool, Column]] = [
        *((key, False, column) for key, column in block.info.items()),
        *((f"{key} (atoms)" if key in block.info else key, True, column) for key, column in block.arrays.items()),
    ]
    for name, of_atoms, column in columns:
        if name in out.keys and out.keys[name].of_atoms != of_atoms:
            name += " (atoms)"
        if name in out.keys or len(out.keys) < KEYS_KEPT:
            out.keys.setdefault(name, KeyStatistics(of_atoms)).add(column)


def _count_elements(out: Inspection, block: Block) -> None:
    from ase.data import chemical_symbols

    owner: NDArray[np.int64] = np.repeat(np.arange(len(block)), block.counts)
    known = (block.numbers > 0) & (block.numbers < len(chemical_symbols))
    pairs = np.unique(owner[known] * 1000 + block.numbers[known])
    for z, count in zip(*np.unique(pairs % 1000, return_counts=True), strict=True):
        out.elements[chemical_symbols[int(z)]] += int(count)


def describe_formats(found: Inspection) -> str:
    """Return the formats in words: `extxyz (extended XYZ)`, with numbers of files where there are several."""
    words = [f"{name} ({FORMATS[name].about})" for name in found.formats]
    if sum(found.formats.values()) == 1:
        return words[0]
    counts = [pluralize(count, "file") for count in found.formats.values()]
    return ", ".join(f"{count} {word}" for word, count in zip(words, counts, strict=True))
