"""What is converted, and how."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from atomsieve.errors import UsageError
from atomsieve.structures.conversion.carry import ALL, NONE, Carry
from atomsieve.structures.conversion.split import Split
from atomsieve.structures.item import ReadRequest, Tick
from atomsieve.structures.labels import LabelKeys
from atomsieve.structures.source import SourceInfo
from atomsieve.structures.units import Units

STDIN = Path("-")
"""As the path of an input: standard input, read as extxyz."""


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
    list_skipped : list the structures left out in `OUT.skipped.csv`.
    element_references : take the energies of single free atoms as element references of their source, into the
        manifest, and leave these atoms out of the samples.
    allow_duplicate_ids : take ids from `keys.id`, or `text_id`, even if some are given twice.
    carry : keys whose values are carried beside the structures, or `all`, or `none`; None: text ids alone.
    text_id : key of ids that are texts; structures are numbered then. `resolve_ids` moves it here from `keys.id`.
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
    list_skipped: bool = True
    element_references: bool = False
    allow_duplicate_ids: bool = False
    carry: tuple[str, ...] | None = None
    text_id: str | None = None

    def __post_init__(self) -> None:
        if self.charge is not None and not math.isfinite(self.charge):
            raise UsageError(f"a total charge is a number, got --charge {self.charge}; leave it out for none")
        if self.spin is not None and not (self.spin >= 0 and self.spin == self.spin // 1):
            raise UsageError(f"a multiplicity 2S+1 is a whole number, got --spin {self.spin}")

    def ask(self, path: Path, tick: Tick) -> ReadRequest:
        """Return the request to read a file."""
        return ReadRequest(
            path,
            tick,
            elements=self.elements,
            wanted=self._list_wanted(),
            topology=self.topology,
            keep_unconverged=self.keep_unconverged,
        )

    def _list_wanted(self) -> tuple[str, ...]:
        carried = () if self.carry in (None, (NONE,)) else ("*",) if self.carry == (ALL,) else self.carry
        return tuple(filter(None, (*self.keys.wanted, self.source_key, self.level_key, self.text_id, *(carried or ()))))

    def as_carry(self) -> Carry:
        """Return what is carried."""
        keys = self.keys
        taken = (keys.charge, keys.spin, keys.id, self.source_key, self.level_key)
        return Carry(self.carry, self.text_id, frozenset(key for key in taken if key is not None), keys.id is None)
