"""The row of the registry of formats, and the base classes of writers."""

from __future__ import annotations

import gzip
import io
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np

from atomsieve.errors import UsageError
from atomsieve.runs.output_files import atomic_draft, draft_path
from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.block import Block
from atomsieve.structures.item import BadItem, Item, ReadRequest
from atomsieve.structures.source import SourceInfo

if TYPE_CHECKING:
    from ase import Atoms

Read = Callable[[ReadRequest], Iterator[Block | Item | BadItem]]
"""Yields the structures of a file in bounded memory: one by one, or (fast readers) as blocks of some thousands."""


@dataclass(frozen=True)
class WriteOptions:
    """How to write a file.

    Attributes
    ----------
    sources : the sources by `head`.
    overwrite : replace a file that exists.
    notes : free text by name.
    dialect : names that another program looks for, one of `Format.dialects`; empty: the format's own.
    """

    sources: Sequence[SourceInfo] = ()
    overwrite: bool = False
    notes: Mapping[str, str] = field(default_factory=dict)
    dialect: str = ""


class StructureSink(ABC):
    """Context manager that writes structures to `path`, which appears under its name when it is complete.

    Leaving the context by an exception leaves nothing behind.

    Attributes
    ----------
    skipped : structures that the format cannot hold and that were left out; `reasons` counts them by reason.
    """

    def __init__(self, path: Path, options: WriteOptions) -> None:
        self.path, self.options = path, options
        self.skipped = 0
        self.reasons: Counter[str] = Counter()

    def skip(self, reason: str, count: int = 1) -> None:
        """Count structures that are left out."""
        if count:
            self.skipped += count
            self.reasons[reason] += count

    def keep_crystals(self, batch: StructureBatch, name: str) -> list[int]:
        """Return the structures that are periodic along three axes, after counting the others by what they are."""
        axes = np.count_nonzero(batch.pbc, axis=1)
        flat = (axes == 3) & ~(np.abs(np.linalg.det(batch.cell)) > 0)
        for count, what in ((0, "no periodicity"), (1, "one periodic axis"), (2, "two periodic axes (a slab)")):
            self.skip(f"{name} cannot say that a structure has {what}", int((axes == count).sum()))
        self.skip("the cell has no volume", int(flat.sum()))
        return np.flatnonzero((axes == 3) & ~flat).tolist()

    @abstractmethod
    def write(self, batch: StructureBatch, info: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Append structures; `info` adds values by name to each of them, in formats that can hold them."""

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class FileSink(StructureSink):
    """Writes one file: to `draft`, a temporary file in the same folder, which is renamed to `path` at the end.

    Raises
    ------
    UsageError
        if `path` is a folder, or exists and is not to be replaced.
    """

    def __init__(self, path: Path, options: WriteOptions) -> None:
        super().__init__(path, options)
        self.draft = draft_path(path)

    @abstractmethod
    def open(self) -> None:
        """Open the draft."""

    @abstractmethod
    def close(self) -> None:
        """Finish and close the draft."""

    def __enter__(self) -> Self:
        if self.path.is_dir():
            raise UsageError(f"{self.path} is a folder; name a file")
        if self.path.exists() and not self.options.overwrite:
            raise UsageError(f"{self.path} exists; choose another name, or --overwrite to replace it")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self.draft = stack.enter_context(atomic_draft(self.path, durable=False))
            self.open()
            stack.push(self._close)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def _close(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the draft; after an error, that one is told, not what it makes of closing."""
        try:
            self.close()
        except Exception:
            if kind is None:
                raise

    def to_ase(self, batch: StructureBatch, info: Sequence[Mapping[str, Any]] | None) -> list[Atoms]:
        """Return ASE atoms with their source, and the values of `info`, in `atoms.info`."""
        images = batch.to_ase()
        if batch.head is not None:
            for image, head in zip(images, batch.head.tolist(), strict=True):
                if head >= 0:
                    image.info["source"] = self.options.sources[head].name
                    image.info["level_of_theory"] = self.options.sources[head].level_of_theory
        for image, values in zip(images, info or (), strict=info is not None):
            image.info.update(values)
        return images


class TextSink(FileSink):
    """Writes a text file, compressed where its name ends in `.gz`."""

    def open(self) -> None:
        """Open the draft for text; a compressed one has no time and no name inside, so equal texts are equal bytes."""
        raw: Any = self.draft.open("wb")
        self._raw: IO[bytes] = raw
        if self.path.name.endswith(".gz"):
            raw = gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0)
        self.binary: IO[bytes] = raw
        self.text: IO[Any] = io.TextIOWrapper(raw, encoding="utf-8")

    def close(self) -> None:
        """Close the draft."""
        self.text.close()
        self._raw.close()


@dataclass(frozen=True)
class Format:
    """One format of files of structures.

    Attributes
    ----------
    name : by which users choose it (`--format`).
    about : description in a few words.
    endings : endings of file names, lower case, by which it is recognised; a writer takes the same ones.
    read : reader, None for a format that is only written.
    sink : writer, None for a format that is only read.
    lacks : the properties of labelled structures that the format cannot hold.
    extra : optional dependency of atomsieve that it needs, empty for none.
    beginnings : beginnings of file names by which it is recognised, where the ending says nothing.
    patterns : whole file names by which it is recognised, with one `*`, before any ending.
    looks_like : returns True for the first bytes of a file of this format; asked where the name says nothing, or no
        more than `.out`, `.log`, `.txt` or `.xyz`.
    covers : formats whose files, beside one of this format and of the same name else, hold parts of the same
        calculation: in a folder they are left out.
    parts : names, with one `*`, of files that are read together with one of this format and never alone.
    is_folder : returns True for a folder that is one dataset of this format.
    compressed : True if the reader takes `.gz` files too; `compresses` if the writer does.
    holds_info : True if the writer keeps further values by name with each structure.
    carries : True if it keeps them as carried columns of a dataset.
    single : returns the text of one structure of a batch, of formats that folders of one file per structure are written
        in; `single_ending` ends their names.
    extent : returns the length of a file in the unit of the spans that its reader takes (bytes, rows), so that several
        processes can share it; 0 for a file that is read whole.
    dialects : names by which the writer follows the habits of other programs.
    """

    name: str
    about: str
    endings: tuple[str, ...]
    read: Read | None
    sink: Callable[[Path, WriteOptions], StructureSink] | None = None
    lacks: str = ""
    extra: str = ""
    beginnings: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    looks_like: Callable[[bytes], bool] | None = None
    covers: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    is_folder: Callable[[Path], bool] = lambda path: False
    compressed: bool = False
    compresses: bool = False
    holds_info: bool = False
    carries: bool = False
    single: Callable[[StructureBatch, int], str] | None = None
    single_ending: str = ""
    extent: Callable[[Path], int] = lambda path: 0
    dialects: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return the row of the table in docs/formats.md."""
        names = ", ".join(
            f"`{word}`" for word in (*self.endings, *self.patterns, *(f"{word}*" for word in self.beginnings))
        )
        reads = "" if self.read is None else "yes, .gz too" if self.compressed else "yes"
        writes = "" if self.sink is None else "yes, .gz too" if self.compresses else "yes"
        return f"| `{self.name}` | {names} | {self.about} | {reads} | {writes} | {self.lacks} | {self.extra} |"
