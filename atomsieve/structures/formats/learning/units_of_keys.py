"""Units that a file states for each of its keys, as the units of energy, length, forces and stress."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atomsieve.errors import UsageError
from atomsieve.structures.labels.names import NAMES
from atomsieve.structures.units import Units, energy_factor, force_factor, stress_factor

_KINDS = {"energy": energy_factor, "forces": force_factor, "stress": stress_factor}
UNITLESS = ""


def choose_units(
    table: Mapping[str, str], length: str | None, origin: str, names: Mapping[str, str] | None = None
) -> Units:
    """Return the units of a file that states the unit of each key in `table`, and of positions and cells in `length`.

    A key whose name is certain (`energy`, or that of `names`) decides; else the unit that all keys of its kind share.
    Keys of one kind in several units leave the unit open, and so does a certain key without a unit.

    Raises
    ------
    UsageError
        for a unit that is not known.
    """
    plain = {name: plain_unit(unit) for name, unit in table.items()}
    found: dict[str, Any] = {} if length is None else {"length": plain_unit(length)}
    needed: list[tuple[str, str]] = []
    for quantity in _KINDS:
        unit, others = _choose(quantity, plain, (names or {}).get(quantity))
        if unit is not None:
            found[quantity] = unit
        elif others:
            needed.append((quantity, f"{origin} states " + ", ".join(others)))
    return Units(**found, origin=origin, needed=tuple(needed))


def _choose(quantity: str, table: Mapping[str, str], first: str | None) -> tuple[str | None, list[str]]:
    """Return the unit of a quantity, or None and the keys among which it cannot be chosen."""
    for name in (*([first] if first else []), *NAMES[quantity]):
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


def plain_unit(unit: Any) -> str:
    """Return a unit in this package's words: `eV/Ang/Ang/Ang` is eV/Ang^3; nothing and `arb. unit` are empty."""
    if unit in (None, "", "arb. unit"):
        return UNITLESS
    words = [word for word in str(unit).replace(" ", "").split("/") if word]
    tail = len(words)
    while tail > 1 and words[tail - 1] == words[-1]:
        tail -= 1
    power = len(words) - tail
    return "/".join([*words[:tail], words[-1] + f"^{power}"]) if power > 1 else "/".join(words)
