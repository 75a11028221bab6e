"""The interface of a reader of structures: all that training, evaluation and screening ask of their input."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from numpy.typing import NDArray

from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.source import SourceInfo


@dataclass(frozen=True)
class PartInfo:
    """One part of an input that is stored in parts: its name and its number of structures."""

    name: str
    structures: int


class StructureReader(Protocol):
    """Structures by global index. `open_structures` returns one for files; a caller may pass one of any other kind.

    A class that inherits from this one may leave out `parts`, `copied`, `notes` and `reopenable`: the input then has
    no parts, and the process that opened it reads it.

    Attributes
    ----------
    path : where the structures come from, for messages and for the record of a run.
    sources : the sources; the field `head` is an index into this list.
    fields : names of the fields (`atomsieve.structures.fields.FIELDS`) that the input has; required ones always are.
    n_atoms : atoms of all structures.
    parts : the parts in which the input is stored, in the order of the structures; empty if it is not stored in parts.
    copied : indices of the parts that are read from copies on a nearer disk.
    notes : free text by name that came with the structures.
    reopenable : True if a pickled copy opens the input again by itself, so that another process can read ahead.
    """

    path: Path
    sources: Sequence[SourceInfo]
    fields: Sequence[str]
    n_atoms: int
    parts: Sequence[PartInfo] = ()
    copied: frozenset[int] = frozenset()
    notes: Mapping[str, str] = MappingProxyType({})
    reopenable: bool = False

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of structures."""

    @abstractmethod
    def counts(self) -> NDArray[Any]:
        """Return atoms per structure, int64 [S]."""

    @abstractmethod
    def read(self, start: int, stop: int, fields: Iterable[str] | None = None) -> StructureBatch:
        """Return structures `start:stop`; `fields` limits the optional fields (default: all that the input has)."""

    @abstractmethod
    def read_arrays(self, start: int, stop: int, fields: Iterable[str]) -> dict[str, NDArray[Any]]:
        """Return `ptr` and those of the named fields that the input has, of structures `start:stop`."""

    @abstractmethod
    def identity(self) -> str:
        """Return a digest (hex) that changes when the content changes."""
