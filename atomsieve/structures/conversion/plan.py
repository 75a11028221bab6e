"""Divides an input into pieces by what it is, never by how many processes there are: any number writes the same bytes.

A piece is a run of small files, a file that is read whole, or a span of a large file whose format can be read so.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from atomsieve.errors import UsageError
from atomsieve.runs.hashing import hash_json
from atomsieve.structures.conversion.options import STDIN, ConvertOptions, Input
from atomsieve.structures.conversion.split import Split
from atomsieve.structures.dataset.draft import require_name
from atomsieve.structures.formats import FORMATS
from atomsieve.structures.formats.scan import FoundFile, scan_files, stamp_file
from atomsieve.structures.source import SourceInfo

SMALLEST, LARGEST, SHARES = 32 << 20, 1 << 30, 64
"""A large input is divided into about `SHARES` pieces of `SMALLEST` to `LARGEST` bytes."""
FILES_PER_PIECE = 2000
STDIN_FILE = "/dev/stdin"


@dataclass(frozen=True)
class Run:
    """Files of one input, in order.

    Attributes
    ----------
    source : of all of them, as the user gave it.
    kinds : format of each.
    paths : their paths, joined by zero bytes: a million files take tens of megabytes so.
    stamps : size and time of each, as bytes of int64 `[files,2]`.
    """

    source: SourceInfo | None
    kinds: tuple[str, ...]
    paths: bytes
    stamps: bytes

    def files(self) -> Iterator[FoundFile]:
        """Yield the files."""
        stamps = np.frombuffer(self.stamps, np.int64).reshape(-1, 2).tolist()
        for path, kind, (size, mtime) in zip(self.paths.split(b"\0"), self.kinds, stamps, strict=True):
            yield FoundFile(os.fsdecode(path), kind, size, mtime)


@dataclass(frozen=True)
class Piece:
    """The work of one process at a time.

    Attributes
    ----------
    number : place among all pieces, which is the order of the structures.
    runs : its files.
    weight : bytes, for the progress.
    start, stop : span of its one file, in the unit of the format; None: to the end.
    by_bytes : the span is of bytes, and only the one that begins at 0 begins at a structure for certain.
    """

    number: int
    runs: tuple[Run, ...]
    weight: int
    start: int = 0
    stop: int | None = None
    by_bytes: bool = False

    @property
    def n_files(self) -> int:
        """Number of files."""
        return sum(len(run.kinds) for run in self.runs)

    def follows(self, other: Piece) -> bool:
        """Return True if this is the span of bytes that follows another one of the same file."""
        return self.by_bytes and other.by_bytes and self.start > 0 and self.start == other.stop


@dataclass(frozen=True)
class Plan:
    """All pieces of a conversion.

    Attributes
    ----------
    pieces : in the order of the structures.
    sources : sources that are known before anything is read; all sets list them first.
    outputs : the dataset of each set.
    settings : all on which the result depends, as plain data, for messages; `digest` is their checksum.
    resumable : False if the input cannot be read again.
    """

    pieces: tuple[Piece, ...]
    sources: tuple[SourceInfo, ...]
    outputs: dict[str, Path]
    settings: dict[str, Any]
    digest: str
    resumable: bool = True


def output_paths(out: Path, split: Split | None) -> dict[str, Path]:
    """Return the output of each set: `OUT.bp`, or `OUT-train.bp`, `OUT-val.bp` and so on."""
    require_name(out)
    if split is None:
        return {"": out}
    return {name: out.with_name(f"{out.stem}-{name}{out.suffix}") for name in split.fractions}


def make_plan(inputs: Sequence[Input], out: Path, options: ConvertOptions) -> Plan:
    """List the files, divide them, and describe all on which the result depends.

    Raises
    ------
    DataError
        if an input is not there, cannot be read, or has no known format.
    """
    outputs = output_paths(out, options.split)
    # Where each structure states its own source or level, only what structures state is listed.
    stated = options.source_key or options.level_key
    sources = tuple(dict.fromkeys(g.source for g in inputs if g.source is not None and not stated))
    _require_each_once(inputs)
    described: list[dict[str, Any]] = []
    divided = _Divided(options.step_size)
    own = frozenset(str(p) + end for p in outputs.values() for end in ("", ".partial", ".lock"))
    for given in inputs:
        digest, count = hashlib.sha256(), 0
        for found in _find(given, options, own):
            digest.update(b"\0".join([os.fsencode(found.path), *(str(word).encode() for word in found[1:])]) + b"\n")
            count += 1
            divided.add(found, given.source)
        described.append(
            {
                "path": str(given.path),
                "source": None if given.source is None else [given.source.name, given.source.level_of_theory],
                "files": count,
                "sizes and times": digest.hexdigest()[:16],
            }
        )
    settings = _describe(options, described)
    whole = hash_json(settings)
    return Plan(
        divided.finish(), sources, outputs, settings, whole, resumable=all(given.path != STDIN for given in inputs)
    )


def _require_each_once(inputs: Sequence[Input]) -> None:
    """Raise if an input is given twice, or lies in a folder that is given too: its structures would be there twice."""
    seen: set[str] = set()
    paths = [os.path.realpath(given.path) for given in inputs if given.path != STDIN]
    for path in paths:
        if path in seen:
            raise UsageError(f"{path} is given twice, and its structures would be in the dataset twice: leave one out")
        seen.add(path)
    for path in paths:
        if outer := seen.intersection(map(str, Path(path).parents)):
            raise UsageError(
                f"{path} is given, and so is a folder that holds it, {outer.pop()}; its structures would be in the "
                "dataset twice: leave one out"
            )


def _find(given: Input, options: ConvertOptions, own: frozenset[str]) -> Iterator[FoundFile]:
    if given.path != STDIN:
        yield from scan_files(given.path, options.format, own)
        return
    if options.format not in (None, "extxyz"):
        raise UsageError(f"standard input is read as extxyz, --format is {options.format!r}; write it to a file first")
    yield FoundFile(STDIN_FILE, "extxyz", 0, 0)


def _describe(options: ConvertOptions, inputs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the options and inputs on which the bytes of the output depend, as plain data."""
    from atomsieve.version import __version__

    free = ("overwrite", "list_skipped", "allow_duplicate_ids")
    if options.topology is not None:
        inputs = [*inputs, {"path": str(options.topology), "sizes and times": list(stamp_file(str(options.topology)))}]
    plain = {name: value for name, value in asdict(options).items() if name not in free}
    return {"atomsieve": __version__, "inputs": inputs, "options": _to_plain(plain)}


def _to_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _to_plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(inner) for inner in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


class _Divided:
    """Gathers files into pieces: small ones together, those that can be cut when the size of all is known."""

    def __init__(self, step_size: int) -> None:
        self.step_size = step_size
        self.groups: list[tuple[list[Run], int, bool]] = []  # files, bytes, whether it may be cut
        self.runs: list[Run] = []
        self.files: list[FoundFile] = []
        self.source: SourceInfo | None = None
        self.count = self.bytes = 0

    def add(self, found: FoundFile, source: SourceInfo | None) -> None:
        """Add the next file."""
        if found.size >= SMALLEST:
            self._end_group()
            self.groups.append(([_build_run([found], source)], found.size, True))
            return
        if self.count >= FILES_PER_PIECE or self.bytes + found.size > SMALLEST:
            self._end_group()
        if source != self.source:
            self._end_run()
            self.source = source
        self.files.append(found)
        self.count += 1
        self.bytes += max(found.size, 0)

    def _end_run(self) -> None:
        if self.files:
            self.runs.append(_build_run(self.files, self.source))
            self.files = []

    def _end_group(self) -> None:
        self._end_run()
        if self.runs:
            self.groups.append((self.runs, self.bytes, False))
        self.runs, self.count, self.bytes = [], 0, 0

    def finish(self) -> tuple[Piece, ...]:
        """Return the pieces."""
        self._end_group()
        extents = [
            FORMATS[runs[0].kinds[0]].extent(Path(next(runs[0].files()).path)) if large else 0
            for runs, _, large in self.groups
        ]
        total = sum(size for (_, size, _), extent in zip(self.groups, extents, strict=True) if extent)
        size_wanted = min(max(total // SHARES, SMALLEST), LARGEST)
        pieces: list[Piece] = []
        for (runs, size, _), extent in zip(self.groups, extents, strict=True):
            shares = -(-size // size_wanted) if extent else 1
            if shares == 1:
                pieces.append(Piece(len(pieces), tuple(runs), size))
                continue
            by_bytes = extent == size
            bounds = [extent * k // shares for k in range(shares + 1)]
            if not by_bytes and extent // shares > self.step_size:  # whole steps
                bounds = [min(-(-row // self.step_size) * self.step_size, extent) for row in bounds]
            for start, stop in pairwise(bounds):
                if stop > start:
                    share = size * (stop - start) // extent
                    pieces.append(Piece(len(pieces), tuple(runs), share, start, stop, by_bytes))
        return tuple(pieces)


def _build_run(files: list[FoundFile], source: SourceInfo | None) -> Run:
    return Run(
        source,
        tuple(found.kind for found in files),
        b"\0".join(os.fsencode(found.path) for found in files),
        np.array([[found.size, found.mtime_ns] for found in files], np.int64).tobytes(),
    )
