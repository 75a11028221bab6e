"""SchNetPack's data sets: ASE databases whose metadata state the units of positions and of each property."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atomsieve.errors import DataError, UsageError
from atomsieve.structures.labels import NAMES
from atomsieve.structures.units import Units, energy_factor, force_factor, stress_factor

_KINDS = {"energy": energy_factor, "forces": force_factor, "stress": stress_factor}
UNITLESS = "arb. unit"
"""What SchNetPack asks for where a property has no unit; None means the same."""


def read_schnetpack_units(metadata: Mapping[str, Any], where: str) -> Units:
    """Return the units that the metadata of an ASE database state, as SchNetPack writes them; none without such keys.

    `_distance_unit` is that of positions and cells, `_property_unit_dict` that of each property by name. A property
    whose name is certain (`energy`, `forces`, `stress`) decides; else the unit that all properties of that kind share.
    Properties of one kind in several units leave the unit open. Atomic references (`atomrefs`) are not taken off the
    stored values, neither there nor here.

    Raises
    ------
    DataError
        if the metadata cannot be understood, naming the option that states the unit.
    """
    distance, properties = metadata.get("_distance_unit"), metadata.get("_property_unit_dict")
    if distance is None and properties is None:
        return Units()
    if not isinstance(properties or {}, Mapping):
        raise DataError(f"{where}: _property_unit_dict of the metadata is no table of units by property")
    table = {str(name): _plain(unit or UNITLESS) for name, unit in (properties or {}).items()}
    found: dict[str, Any] = {} if distance is None else {"length": _plain(distance)}
    needed: list[tuple[str, str]] = []
    for quantity in _KINDS:
        unit, others = _choose(quantity, table)
        if unit is not None:
            found[quantity] = unit
        elif others:
            needed.append((quantity, "the metadata state " + ", ".join(others)))
    try:
        return Units(**found, origin="the metadata of SchNetPack", needed=tuple(needed))
    except UsageError as error:
        raise DataError(
            f"{where}: the metadata state units that are not known ({error}); rewrite them there"
        ) from error


def _choose(quantity: str, table: Mapping[str, str]) -> tuple[str | None, list[str]]:
    """Return the unit of a quantity, or None and the properties among which it cannot be chosen."""
    for name in NAMES[quantity]:
        if name in table:
            return (None, [f"{name} without a unit"]) if table[name] == UNITLESS else (table[name], [])
    alike = {name: unit for name, unit in table.items() if _fits(quantity, unit)}
    if len(set(alike.values())) == 1:
        return next(iter(alike.values())), []
    return None, [f"{name} in {unit}" for name, unit in sorted(alike.items())[:6]]


def _fits(quantity: str, unit: str) -> bool:
    try:
        _KINDS[quantity](unit)
    except UsageError:
        return False
    return True


def _plain(unit: Any) -> str:
    """Return a unit in this package's words: `eV/Ang/Ang/Ang` is eV/Angstrom^3."""
    if unit == UNITLESS:
        return UNITLESS
    words = [word for word in str(unit).replace(" ", "").split("/") if word]
    tail = len(words)
    while tail > 1 and words[tail - 1] == words[-1]:
        tail -= 1
    power = len(words) - tail
    return "/".join([*words[:tail], words[-1] + f"^{power}"]) if power > 1 else "/".join(words)
