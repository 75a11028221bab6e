"""One structure as read from a file, before validation."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import unknown
from atomsieve.structures.source import SourceInfo
from atomsieve.structures.units import Units

if TYPE_CHECKING:
    from ase import Atoms

Tick = Callable[[float], None]
"""Called now and then with the fraction of the file that has been read."""


@dataclass(frozen=True)
class ReadRequest:
    """What a reader of a format is asked for.

    Attributes
    ----------
    path : the file or folder.
    tick : called now and then with the fraction that has been read.
    start, stop : the span to read, in the unit of the format's `extent` (bytes, rows); None: all. A structure belongs
        to the span in which it begins.
    sure : a structure begins at `start` exactly; otherwise the reader looks for the first that begins there or later.
    elements : symbols of the types 1, 2, ... for formats that number their species.
    wanted : keys that the user names, for readers that do not read all that a file has; `*` is everything.
    topology : file with the species of a trajectory that holds positions only.
    reference : first structure of `topology`, in Angstrom, where a format of structures reads it.
    keep_unconverged : give steps of a calculation whose electronic steps did not converge; otherwise they are bad.
    """

    path: Path
    tick: Tick = lambda fraction: None
    start: int = 0
    stop: int | None = None
    sure: bool = True
    elements: tuple[str, ...] = ()
    wanted: tuple[str, ...] = ()
    topology: Path | None = None
    reference: Item | None = None
    keep_unconverged: bool = False


def parse_elements(text: str | None) -> tuple[str, ...]:
    """Return the symbols of `Al,Ni`.

    Raises
    ------
    UsageError
        for a word that is no element.
    """
    from ase.data import chemical_symbols

    words = tuple(word.strip() for word in (text or "").split(",")) if text else ()
    for word in words:
        if word not in chemical_symbols[1:]:
            raise unknown("element", word, chemical_symbols[1:])
    return words


@dataclass
class Item:
    """One structure: `numbers [n]`, `positions [n,3]` and `cell [3,3]` in Angstrom, `pbc [3]`, and all that came along.

    `labels` are results of a calculator by name (energy in eV, forces in eV/Angstrom, stress in eV/Angstrom^3, all as
    ASE has them), `arrays` are other arrays per atom, `info` is everything else; `source` where the format itself has
    sources; `units` those that the file states or the format fixes (then all numbers here are as the file has them);
    `note` what the reader did or noticed beside taking it, in words for the report.
    """

    numbers: NDArray[Any]
    positions: NDArray[np.float64]
    cell: NDArray[np.float64]
    pbc: NDArray[np.bool_]
    where: str
    info: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, Any] = field(default_factory=dict)
    source: SourceInfo | None = None
    units: Units = field(default_factory=Units)
    note: str = ""

    def find(self, key: str) -> Any:
        """Return the value of `key` from labels, arrays or info, the first of them that has it, or None."""
        for place in (self.labels, self.arrays, self.info):
            if place.get(key) is not None:
                return place[key]
        return None


@dataclass(frozen=True)
class BadItem:
    """A structure that could not be read.

    Attributes
    ----------
    reason : in words shared by alike cases, which are counted together.
    where : place in the input.
    detail : what is particular to this one, such as the line and the word that does not fit.
    """

    reason: str
    where: str
    detail: str = ""


def item_from_atoms(atoms: Atoms, where: str) -> Item:
    """Return ASE atoms as an item."""
    own = {"numbers", "positions"}
    return Item(
        numbers=atoms.numbers,
        positions=np.asarray(atoms.positions, np.float64),
        cell=np.asarray(atoms.cell, np.float64),
        pbc=np.asarray(atoms.pbc, bool),
        where=where,
        info=dict(atoms.info),
        labels=dict(getattr(atoms.calc, "results", {})) if atoms.calc is not None else {},
        arrays={name: array for name, array in atoms.arrays.items() if name not in own},
    )


class _RawFile:
    """The raw bytes of a file that may be compressed; knows the fraction that was read."""

    def __init__(self, path: Path) -> None:
        self.size = max(path.stat().st_size, 1)
        self.raw: io.BufferedReader = path.open("rb")

    def fraction(self) -> float:
        return min(self.raw.tell() / self.size, 1.0) if self.raw.seekable() else 0.0


@contextmanager
def open_with_progress(path: Path) -> Iterator[tuple[IO[bytes], Callable[[], float]]]:
    """Open a plain or gzip file for reading bytes; yield it and a function that returns the fraction read so far."""
    counted = _RawFile(path)
    with counted.raw:
        if counted.raw.peek(2)[:2] == b"\x1f\x8b":  # a pipe cannot go back
            with gzip.GzipFile(fileobj=counted.raw) as unpacked:
                yield unpacked, counted.fraction  # type: ignore[misc]
        else:
            yield counted.raw, counted.fraction
