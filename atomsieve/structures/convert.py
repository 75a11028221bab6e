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
from atomsieve.structures.dataset_draft import require_name
from atomsieve.structures.fields import LABELS
from atomsieve.structures.formats import ReadRequest, find_files, read_blocks
from atomsieve.structures.item import Tick
from atomsieve.structures.labels import LabelKeys
from atomsieve.structures.source import SourceInfo
from atomsieve.structures.split import Split
from atomsieve.structures.units import Units
from atomsieve.structures.validation import BlockValidator, ConversionCounts, ValidBlock
from atomsieve.structures.writer import StructureWriter

if TYPE_CHECKING:
    from rich.console import Console


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
    units : units of the numbers in the files, before those that files state.
    source_key, level_key : keys of the source and the level of theory of each structure.
    format : format of all files, for names without a known ending.
    elements : symbols of the types 1, 2, ... for formats that number their species.
    topology : file with the species of trajectories that hold positions only.
    keep_unconverged : keep steps of calculations whose electronic steps did not converge.
    split : sets to divide the structures among.
    keep_bad : keep structures that no model accepts, so that a screening reports them.
    need_sources : refuse labels that have no source; else they may lack it, and `source_key` too.
    charge, spin : for structures that state none.
    step_size, positions, overwrite : see `StructureWriter`.
    """

    keys: LabelKeys = field(default_factory=LabelKeys)
    units: Units = field(default_factory=Units)
    source_key: str | None = None
    level_key: str | None = None
    format: str | None = None
    elements: tuple[str, ...] = ()
    topology: Path | None = None
    keep_unconverged: bool = False
    split: Split | None = None
    keep_bad: bool = False
    need_sources: bool = True
    charge: float | None = None
    spin: float | None = None
    step_size: int = 20_000
    positions: str = "float64"
    overwrite: bool = False

    def ask(self, path: Path, tick: Tick) -> ReadRequest:
        """Return the request to read a file."""
        return ReadRequest(
            path,
            tick,
            elements=self.elements,
            wanted=tuple(filter(None, (*self.keys.wanted, self.source_key, self.level_key))),
            topology=self.topology,
            keep_unconverged=self.keep_unconverged,
        )


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
    validator = BlockValidator(
        options.keys, units=options.units, keep_bad=options.keep_bad, charge=options.charge, spin=options.spin
    )
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
                for block in read_blocks(options.ask(file, tick), kind):
                    valid = validator(block)
                    sets.add(valid, find_sources(valid, source, options))
                tick(1.0)
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
    """Hands valid structures to the writers of their sets, with their sources."""

    def __init__(
        self, writers: dict[str, StructureWriter], split: Split | None, sources: dict[SourceInfo, int]
    ) -> None:
        self.writers, self.split, self.sources = writers, split, sources
        for writer in writers.values():  # all sets list the same sources in the same order
            for source in sources:
                writer.add_source(source)

    def add(self, valid: ValidBlock, sources: Sequence[SourceInfo | None]) -> None:
        """Add the structures of a block, each with its source."""
        if not len(valid.batch):
            return
        counts = Counter(source for source in sources if source is not None)
        for source in dict.fromkeys(source for source in sources if source is not None):
            if source not in self.sources:
                self.sources[source] = 0
                for writer in self.writers.values():
                    writer.add_source(source)
            self.sources[source] += counts[source]
        batch = valid.batch
        if self.sources:
            places = {source: k for k, source in enumerate(self.sources)}
            heads = [-1 if source is None else places[source] for source in sources]
            batch = batch.replace(head=np.array(heads, np.int32))
        if self.split is None:
            self.writers[""].append(batch)
            return
        chosen = np.array(self.split.choose(valid))
        for name, writer in self.writers.items():
            own = np.flatnonzero(chosen == name)
            if len(own):
                writer.append(batch.take(own))


def find_sources(valid: ValidBlock, given: SourceInfo | None, options: ConvertOptions) -> Sequence[SourceInfo | None]:
    """Return the source of each structure: the value of `source_key` if that is set, else the source of its file.

    Raises
    ------
    DataError
        if a structure lacks the key of its source or level of theory.
    UsageError
        if labelled structures have no source, or a source no level of theory.
    """
    block, places = valid.block, valid.kept.tolist()
    own = valid.values_of(options.source_key) if options.source_key else [None] * len(places)
    level = valid.values_of(options.level_key) if options.level_key else [None] * len(places)
    for key, values, what in ((options.source_key, own, "source"), (options.level_key, level, "level of theory")):
        missing = next((k for k, value in zip(places, values, strict=True) if value is None), None) if key else None
        if missing is not None and options.need_sources:
            raise DataError(f"{block.places[missing]} has no {key!r} to tell its {what}")
    if options.source_key or options.level_key:
        return [
            given if pair[0] is None and not options.need_sources else _stated_source(*pair, given)
            for pair in zip(own, level, strict=True)
        ]
    stated = (
        [block.sources[k] for k in places] if given is None and block.sources is not None else [given] * len(places)
    )
    if not options.need_sources:
        return stated
    labelled = np.zeros(len(places), bool)
    for name in LABELS:
        has = getattr(valid.batch, f"has_{name}")
        labelled |= False if has is None else has
    for k in np.flatnonzero(labelled).tolist():
        source = stated[k]
        if source is None:
            raise UsageError(
                f"{block.places[places[k]]} has labels: say what they are with --source NAME --level-of-theory TEXT "
                "(or --source-key), or leave them out with --no-labels"
            )
        if given is not None and not source.level_of_theory:
            raise UsageError(
                f"{block.places[places[k]]} has labels: at which level were they computed? Say it with "
                "--level-of-theory TEXT, e.g. 'PBE, PAW (VASP)', or with --level-key KEY where each structure states it"
            )
    return stated


def _stated_source(own: object, level: object, given: SourceInfo | None) -> SourceInfo:
    name = str(own) if own is not None else given.name if given is not None else None
    if name is None:
        raise UsageError("a level of theory needs a source: give --source NAME or --source-key KEY")
    return SourceInfo(name, str(level) if level is not None else given.level_of_theory if given is not None else "")


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
