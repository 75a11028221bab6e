"""How a file that is no dataset is read: the options of `atomsieve data convert` of the same names, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from atomsieve.errors import UsageError
from atomsieve.structures.conversion.carry import parse_carry
from atomsieve.structures.conversion.convert import ConvertOptions
from atomsieve.structures.item import parse_elements
from atomsieve.structures.labels import LabelKeys
from atomsieve.structures.source import SourceInfo
from atomsieve.structures.units import Units


@dataclass(frozen=True)
class ReadOptions:
    """How to read a file.

    Attributes
    ----------
    format : of the file, for names without a known ending.
    elements : symbols of the types 1, 2, ..., e.g. `Al,Ni`, for formats that number their species.
    topology : file with the species of a trajectory that holds positions only.
    keep_unconverged : keep steps of calculations whose electronic steps did not converge.
    energy_key, forces_key, stress_key, virial_key : names of the labels in the file; None: names that are certain.
    charge_key, spin_key, id_key : names of the total charge, the multiplicity, and the identity.
    unit, stress_sign : units of the numbers, e.g. `energy=hartree,length=bohr`, before those that the file states.
    charge, spin : for structures that state none.
    carry : keys whose values are carried, separated by commas, or `all`, or `none`; None: text ids alone.
    source, level_of_theory : of all labels.
    source_key, level_key : keys under which each structure states them.
    """

    format: str | None = None
    elements: str = ""
    topology: str | None = None
    keep_unconverged: bool = False
    energy_key: str | None = None
    forces_key: str | None = None
    stress_key: str | None = None
    virial_key: str | None = None
    charge_key: str | None = None
    spin_key: str | None = None
    id_key: str | None = None
    unit: str = ""
    stress_sign: int | None = None
    charge: float | None = None
    spin: float | None = None
    source: str | None = None
    level_of_theory: str = ""
    source_key: str | None = None
    level_key: str | None = None
    carry: str | None = None

    def __post_init__(self) -> None:
        if self.source is None and self.level_of_theory:
            raise UsageError(f"level of theory {self.level_of_theory!r} needs a source; name it")
        if self.source is not None and self.source_key is not None:
            raise UsageError(f"source {self.source!r} and source key {self.source_key!r}: leave out one of them")
        self.units()
        parse_carry(self.carry)

    def units(self) -> Units:
        """Return the units that are stated.

        Raises
        ------
        UsageError
            for a unit that is not known.
        """
        return Units.parse(self.unit, self.stress_sign)

    def keys(self, *, labels: bool = True) -> LabelKeys:
        """Return the names of labels; without `labels` they are left out."""
        return LabelKeys(
            self.energy_key,
            self.forces_key,
            self.stress_key,
            self.virial_key,
            self.charge_key,
            self.spin_key,
            self.id_key,
            not labels,
        )

    def source_info(self) -> SourceInfo | None:
        """Return the source of all labels, None where none is named."""
        return None if self.source is None else SourceInfo(self.source, self.level_of_theory)

    def as_convert_options(self, *, labels: bool = True, keep_bad: bool = False) -> ConvertOptions:
        """Return them as the conversion takes them."""
        return ConvertOptions(
            keys=self.keys(labels=labels),
            units=self.units(),
            source_key=self.source_key,
            level_key=self.level_key,
            format=self.format,
            elements=parse_elements(self.elements),
            topology=None if self.topology is None else Path(self.topology),
            keep_unconverged=self.keep_unconverged,
            keep_bad=keep_bad,
            charge=self.charge,
            spin=self.spin,
            carry=parse_carry(self.carry),
        )

    def list_given(self) -> dict[str, Any]:
        """Return the options that differ from their defaults."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}
