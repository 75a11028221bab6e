"""The interface of a reader of structures: all that training, evaluation and screening ask of their input."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import unknown
from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.carried import CarriedColumn
from atomsieve.structures.source import SourceInfo

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class PartInfo:
    """One part of an input that is stored in parts: its name and its number of structures."""

    name: str
    structures: int


class StructureReader(Protocol):
    """Structures by global index. `open_structures` returns one for files; a caller may pass one of any other kind.

    A class that inherits from this one may leave out `parts`, `copied`, `notes`, `carried` and `reopenable`: the input
    then has no parts, carries nothing, and the process that opened it reads it.

    Attributes
    ----------
    path : where the structures come from, for messages and for the record of a run.
    sources : the sources; the field `head` is an index into this list.
    fields : names of the fields (`atomsieve.structures.fields.FIELDS`) that the input has; required ones always are.
    n_atoms : atoms of all structures.
    parts : the parts in which the input is stored, in the order of the structures; empty if it is not stored in parts.
    copied : indices of the parts that are read from copies on a nearer disk.
    notes : free text by name that came with the structures.
    carried : columns that the structures carry beside all fields; `read_carried`, `read_carried_at` read them.
    reopenable : True if a pickled copy opens the input again by itself, so that another process can read ahead.
    """

    path: Path
    sources: Sequence[SourceInfo]
    fields: Sequence[str]
    n_atoms: int
    parts: Sequence[PartInfo] = ()
    copied: frozenset[int] = frozenset()
    notes: Mapping[str, str] = MappingProxyType({})
    carried: Sequence[CarriedColumn] = ()
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

    def read_carried(self, start: int, stop: int) -> pa.Table | None:
        """Return the carried columns of structures `start:stop` as an Arrow table; None if there are none."""
        return None

    def read_carried_at(self, positions: NDArray[np.int64], name: str) -> NDArray[Any]:
        """Return the values [n] of a carried column at sorted positions [n].

        Numbers are float64 (NaN where missing), texts objects of type str ("" where missing), flags bool.
        """
        raise unknown("carried column", name, [column.name for column in self.carried])
