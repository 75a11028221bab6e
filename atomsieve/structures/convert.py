"""Converts files of every format into dataset folders: streaming, counting the structures left out by reason."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from atomsieve.errors import DataError, UsageError
from atomsieve.structures.formats import find_files, read_items
from atomsieve.structures.source import SourceInfo
from atomsieve.structures.split import Split
from atomsieve.structures.validation import ConversionCounts, ItemValidator, LabelKeys, ValidItem, build_batch
from atomsieve.structures.writer import StructureWriter, require_name

if TYPE_CHECKING:
    from rich.console import Console

BUFFER_STRUCTURES = 2000
BUFFER_ATOMS = 200_000


@dataclass(frozen=True)
class Input:
    """A file or folder, and the source of its structures (None: no source, or the one that each structure states)."""

    path: Path
    source: SourceInfo | None = None


@dataclass(frozen=True)
class ConvertOptions:
    """How to convert.

    Attributes
    ----------
    keys : names of labels, charge, spin and id in the files.
    source_key, level_key : keys of the source and the level of theory of each structure.
    format : format of all files, for names without a known ending.
    split : sets to divide the structures among.
    keep_bad : keep structures that no model accepts, so that a screening reports them.
    charge, spin : for structures that state none.
    step_size, positions, overwrite : see `StructureWriter`.
    """

    keys: LabelKeys = field(default_factory=LabelKeys)
    source_key: str | None = None
    level_key: str | None = None
    format: str | None = None
    split: Split | None = None
    keep_bad: bool = False
    charge: float | None = None
    spin: float | None = None
    step_size: int = 20_000
    positions: str = "float64"
    overwrite: bool = False


@dataclass(frozen=True)
class ConvertReport:
    """Result of a conversion: structures per output, atoms, structures per source, skipped structures, seconds."""

    outputs: dict[Path, int]
    atoms: int
    sources: dict[SourceInfo, int]
    tally: ConversionCounts
    seconds: float

    @property
    def written(self) -> int:
        """Number of structures written."""
        return sum(self.outputs.values())

    @property
    def notice(self) -> str:
        """A hint for the user if no energies were read but other keys look like energies; else empty."""
        names = sorted(key for key in self.tally.keys if "energy" in key.lower() and not key.startswith("ref_"))
        if self.tally.labels["energy"] or not self.sources or not names:
            return ""
        return f"no energies were taken; --energy-key may name one of {', '.join(names[:8])}"


def output_paths(out: Path, split: Split | None) -> dict[str, Path]:
    """Return the output of each set: `OUT.bp`, or `OUT-train.bp`, `OUT-val.bp` and so on."""
    require_name(out)
    if split is None:
        return {"": out}
    return {name: out.with_name(f"{out.stem}-{name}{out.suffix}") for name in split.fractions}


def convert(
    inputs: Sequence[Input], out: Path, options: ConvertOptions, console: Console | None = None
) -> ConvertReport:
    """Convert files into one dataset folder, or one per set of a split.

    Raises
    ------
    UsageError
        if labelled structures have no source, or a key that was named is nowhere.
    DataError
        if a file cannot be read at all, or no structure is left.
    """
    start = time.monotonic()
    files = [(file, kind, given.source) for given in inputs for file, kind in find_files(given.path, options.format)]
    validator = ItemValidator(options.keys, keep_bad=options.keep_bad, charge=options.charge, spin=options.spin)
    # Where each structure states its own source or level, only what structures state is listed.
    stated = options.source_key or options.level_key
    sources: dict[SourceInfo, int] = {g.source: 0 for g in inputs if g.source is not None and not stated}
    outputs = output_paths(out, options.split)
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(
                StructureWriter(
                    path, step_size=options.step_size, positions=options.positions, overwrite=options.overwrite
                )
            )
            for name, path in outputs.items()
        }
        sets = _Sets(writers, options.split, sources)
        with _bar(console, len(files)) as show:
            for k, (file, kind, source) in enumerate(files):
                tick = partial(show, k, validator.tally)
                for item in read_items(file, kind, tick):
                    valid = validator(item)
                    if valid is not None:
                        sets.add(valid, _source_of(valid, source, options))
                tick(1.0)
        sets.flush()
        validator.check_keys()
        if not sum(writer.n_structures for writer in writers.values()):
            raise DataError(
                f"no structure is left of {validator.tally.read} read: {format_skipped(validator.tally.skipped)}"
            )
        report = ConvertReport(
            {writer.path: writer.n_structures for writer in writers.values()},
            sum(writer.n_atoms for writer in writers.values()),
            dict(sources),
            validator.tally,
            time.monotonic() - start,
        )
    return report


class _Sets:
    """Gathers structures per set and hands them to the writers some thousands at a time."""

    def __init__(
        self, writers: dict[str, StructureWriter], split: Split | None, sources: dict[SourceInfo, int]
    ) -> None:
        self.writers, self.split, self.sources = writers, split, sources
        self.rows: dict[str, list[ValidItem]] = {name: [] for name in writers}
        self.atoms: Counter[str] = Counter()
        for writer in writers.values():  # all sets list the same sources in the same order
            for source in sources:
                writer.add_source(source)

    def add(self, valid: ValidItem, source: SourceInfo | None) -> None:
        """Add one structure to its set."""
        if source is not None:
            if source not in self.sources:
                self.sources[source] = 0
                for writer in self.writers.values():
                    writer.add_source(source)
            self.sources[source] += 1
            valid.head = list(self.sources).index(source)
        name = self.split.choose(valid.item) if self.split is not None else ""
        self.rows[name].append(valid)
        self.atoms[name] += len(valid.item.numbers)
        if len(self.rows[name]) >= BUFFER_STRUCTURES or self.atoms[name] >= BUFFER_ATOMS:
            self._hand_over(name)

    def _hand_over(self, name: str) -> None:
        batch = build_batch(self.rows[name])
        self.rows[name], self.atoms[name] = [], 0
        if batch.head is None and self.sources and len(batch):
            batch = batch.replace(head=np.full(len(batch), -1, np.int32))
        self.writers[name].append(batch)

    def flush(self) -> None:
        """Hand the remaining structures to the writers."""
        for name in self.rows:
            self._hand_over(name)


def _source_of(valid: ValidItem, given: SourceInfo | None, options: ConvertOptions) -> SourceInfo | None:
    """Return the source of a structure: the value of `source_key` if that is set, else the source of its file."""
    item = valid.item
    if given is None and isinstance(item.source, SourceInfo) and not options.source_key:
        return item.source
    own = options.source_key and item.find(options.source_key)
    level = options.level_key and item.find(options.level_key)
    if options.source_key and own is None:
        raise DataError(f"{item.where} has no {options.source_key!r} to tell its source")
    if options.level_key and level is None:
        raise DataError(f"{item.where} has no {options.level_key!r} to tell its level of theory")
    if own is not None or level is not None:
        name = str(own) if own is not None else given.name if given is not None else None
        if name is None:
            raise UsageError("a level of theory needs a source: give --source NAME or --source-key KEY")
        return SourceInfo(name, str(level) if level is not None else given.level_of_theory if given is not None else "")
    labelled = any(name in valid.values for name in ("energy", "forces", "stress"))
    if given is None and labelled:
        raise UsageError(
            f"{item.where} has labels: say what they are with --source NAME --level-of-theory TEXT (or --source-key), "
            "or leave them out with --no-labels"
        )
    if given is not None and labelled and not given.level_of_theory:
        raise UsageError(
            f"{item.where} has labels: at which level were they computed? Say it with --level-of-theory TEXT, e.g. "
            "'PBE, PAW (VASP)'"
        )
    return given


def format_skipped(skipped: Counter[str]) -> str:
    """Return counts by reason in one line."""
    return "; ".join(f"{count} {reason}" for reason, count in skipped.most_common()) or "nothing skipped"


Show = Callable[[int, ConversionCounts, float], None]


@contextmanager
def _bar(console: Console | None, files: int) -> Iterator[Show]:
    """Give a function that shows (file, fraction of it, counts) as a progress bar, if there is a console."""
    if console is None:
        yield lambda *_: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("converting"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%  {task.fields[count]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_interactive) as progress:
        task = progress.add_task("", total=float(files), count="")
        start, last = time.monotonic(), 0.0

        def show(file: int, tally: ConversionCounts, fraction: float) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < 0.1 and fraction < 1:
                return
            last = now
            rate = tally.read / max(now - start, 1e-9)
            count = f"{tally.read:,} structures, {rate:,.0f}/s, {sum(tally.skipped.values()):,} skipped"
            progress.update(task, completed=file + fraction, count=count)

        yield show
