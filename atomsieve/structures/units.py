"""Units of what files state, and factors to those of this package: eV, Angstrom, eV/Angstrom, eV/Angstrom^3."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from atomsieve.errors import UsageError, unknown

EV_PER_HARTREE = 27.211386024367243
ANGSTROM_PER_BOHR = 0.5291772105638411
"""CODATA 2014, as ASE has them."""
_MOL = 6.022140857e23
_CHARGE = 1.6021766208e-19

ENERGY: dict[str, float] = {
    "ev": 1.0,
    "mev": 1e-3,
    "hartree": EV_PER_HARTREE,
    "rydberg": EV_PER_HARTREE / 2,
    "kcal/mol": 4184.0 / _MOL / _CHARGE,
    "kj/mol": 1000.0 / _MOL / _CHARGE,
    "joule": 1.0 / _CHARGE,
}
LENGTH: dict[str, float] = {"angstrom": 1.0, "bohr": ANGSTROM_PER_BOHR, "nm": 10.0, "pm": 0.01, "m": 1e10}
PRESSURE: dict[str, float] = {
    "ev/angstrom^3": 1.0,
    "gpa": 1e9 * 1e-30 / _CHARGE,
    "kbar": 1e8 * 1e-30 / _CHARGE,
    "bar": 1e5 * 1e-30 / _CHARGE,
    "pa": 1e-30 / _CHARGE,
    "atm": 101325e-30 / _CHARGE,
}
LAMMPS_STYLES: dict[str, dict[str, str]] = {
    "metal": {"energy": "ev", "length": "angstrom", "forces": "ev/angstrom", "stress": "bar"},
    "real": {"energy": "kcal/mol", "length": "angstrom", "forces": "kcal/mol/angstrom", "stress": "atm"},
    "electron": {"energy": "hartree", "length": "bohr", "forces": "hartree/bohr", "stress": "pa"},
    "si": {"energy": "joule", "length": "m", "forces": "joule/m", "stress": "pa"},
}
"""Units of LAMMPS by the names that its `units` command gives them."""
_ALIASES = {
    "ha": "hartree",
    "h": "hartree",
    "eh": "hartree",
    "au": "hartree",
    "a.u.": "hartree",
    "hartrees": "hartree",
    "ry": "rydberg",
    "kcal": "kcal/mol",
    "kcal mol^-1": "kcal/mol",
    "kj": "kj/mol",
    "j": "joule",
    "electronvolt": "ev",
    "a": "angstrom",
    "ang": "angstrom",
    "å": "angstrom",
    "angstroms": "angstrom",
    "a0": "bohr",
    "bohrs": "bohr",
    "nanometer": "nm",
    "kb": "kbar",
}


def _plain(word: str) -> str:
    text = " ".join(word.strip().lower().replace("**", "^").split())
    return _ALIASES.get(text, text)


PER_ATOM = "/atom"


def energy_factor(unit: str) -> float:
    """Return eV per unit of energy; of `eV/atom`, of the part before `/atom`.

    Raises
    ------
    UsageError
        naming the units that are known.
    """
    name = _plain(_plain(unit).removesuffix(PER_ATOM))
    if name not in ENERGY:
        raise unknown("unit of energy", unit, ENERGY)
    return ENERGY[name]


def length_factor(unit: str) -> float:
    """Return Angstrom per unit of length.

    Raises
    ------
    UsageError
        naming the units that are known.
    """
    name = _plain(unit)
    if name not in LENGTH:
        raise unknown("unit of length", unit, LENGTH)
    return LENGTH[name]


def force_factor(unit: str) -> float:
    """Return eV/Angstrom per unit of force, such as `hartree/bohr` or `kcal/mol/angstrom`; `-eV/A` is for gradients.

    Raises
    ------
    UsageError
        if it is no quotient of an energy and a length that are known.
    """
    if unit.strip().startswith("-"):
        return -force_factor(unit.strip()[1:])
    energy, slash, length = _plain(unit).rpartition("/")
    if not slash or _plain(length) not in LENGTH or _plain(energy) not in ENERGY:
        raise unknown("unit of force", unit, [f"{e}/{x}" for e in ENERGY for x in ("angstrom", "bohr", "nm")])
    return ENERGY[_plain(energy)] / LENGTH[_plain(length)]


def stress_factor(unit: str) -> float:
    """Return eV/Angstrom^3 per unit of stress: a pressure, or an energy by the third power of a length.

    Raises
    ------
    UsageError
        if it is neither.
    """
    name = _plain(unit)
    if name in PRESSURE:
        return PRESSURE[name]
    energy, slash, length = name.rpartition("/")
    base, power, three = length.partition("^")
    if slash and power and three == "3" and _plain(base) in LENGTH and _plain(energy) in ENERGY:
        return ENERGY[_plain(energy)] / LENGTH[_plain(base)] ** 3
    raise unknown("unit of stress", unit, [*PRESSURE, "hartree/bohr^3"])


_FACTORS = {
    "energy": energy_factor,
    "length": length_factor,
    "forces": force_factor,
    "stress": stress_factor,
    "virial": energy_factor,
}


@dataclass(frozen=True)
class Units:
    """Units by quantity, as words such as `hartree`, `bohr`, `hartree/bohr`, `GPa`; None: not stated.

    Attributes
    ----------
    energy, length, forces, stress, virial : the words; forces follow from energy and length where only those are
        stated, and a virial from the energy.
    stress_sign : 1 for ASE's (positive: the cell is under tension), -1 for the opposite (VASP's output).
    origin : who states them, for the report: "the file", "format n2p2", "--unit".
    needed : quantity and usual units, of quantities whose unit the format leaves open: they can be taken only where
        the user states it.
    """

    energy: str | None = None
    length: str | None = None
    forces: str | None = None
    stress: str | None = None
    virial: str | None = None
    stress_sign: int | None = None
    origin: str = ""
    needed: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for name, factor in _FACTORS.items():
            if getattr(self, name) is not None:
                factor(getattr(self, name))

    @staticmethod
    def parse(text: str, stress_sign: int | None = None) -> Units:
        """Return the units that `energy=hartree,length=bohr` describes, or `metal`, `real`: those of LAMMPS.

        Raises
        ------
        UsageError
            for a quantity or a unit that does not exist.
        """
        if stress_sign not in (None, 1, -1):
            raise UsageError(f"the sign of the stress is 1 (ASE's) or -1, got {stress_sign}")
        found: dict[str, Any] = {}
        for word in text.split(",") if text.strip() else ():
            name, equals, unit = word.strip().partition("=")
            if word.strip() in LAMMPS_STYLES:
                if found:
                    raise UsageError(f"units of LAMMPS state all quantities, and stand alone; got {text!r}")
                found.update(LAMMPS_STYLES[word.strip()])
                continue
            name = {"force": "forces", "energies": "energy", "virials": "virial", "positions": "length"}.get(name, name)
            if not equals:
                raise UsageError(f"units read like energy=hartree,length=bohr, got {text!r}")
            if name not in _FACTORS:
                raise unknown("quantity with a unit", name, _FACTORS)
            if name in found:
                raise UsageError(f"the unit of {name} is given twice in {text!r}")
            found[name] = unit.strip()
        return Units(**found, stress_sign=stress_sign, origin="--unit")

    def over(self, other: Units) -> Units:
        """Return these units, with those of `other` where these are not stated."""
        own = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in ("origin", "needed") and getattr(self, f.name) is not None
        }
        if not own:
            return other
        origin = " and ".join(
            dict.fromkeys(word for word in (self.origin, other.origin if other.stated else "") if word)
        )
        return replace(other, **own, origin=origin)

    def require(self, taken: Collection[str], where: str) -> None:
        """Raise if the unit of a quantity that is taken is needed and not stated.

        Raises
        ------
        UsageError
            naming the option and the usual units.
        """
        missing = [(name, usual) for name, usual in self.needed if getattr(self, name) is None and name in taken]
        if missing:
            asked = ", ".join(f"{name} ({usual})" for name, usual in missing)
            option = ",".join(f"{name}=UNIT" for name, _ in missing)
            raise UsageError(f"{where}: neither the file nor its format states the unit of {asked}: --unit {option}")

    @property
    def per_atom(self) -> bool:
        """True if energies are stated per atom, as `eV/atom`."""
        return self.energy is not None and _plain(self.energy).endswith(PER_ATOM)

    @property
    def stated(self) -> bool:
        """True if any unit is stated."""
        return bool(self.list_stated()) or self.stress_sign is not None

    def list_stated(self) -> set[str]:
        """Return the quantities whose unit is stated."""
        return {name for name in _FACTORS if getattr(self, name) is not None}

    def factor(self, quantity: str) -> float:
        """Return the factor from a quantity as the file has it to this package's unit."""
        if quantity == "forces" and self.forces is None:
            return (energy_factor(self.energy) if self.energy else 1.0) / self.factor("length")
        if quantity == "virial" and self.virial is None:
            return energy_factor(self.energy) if self.energy else 1.0
        if quantity == "stress":
            size = 1.0 if self.stress is None else stress_factor(self.stress)
            return size * (self.stress_sign or 1)
        unit = getattr(self, quantity)
        return 1.0 if unit is None else _FACTORS[quantity](unit)

    def describe(self) -> Mapping[str, str]:
        """Return the units by quantity, those that follow from stated ones too, for reports and manifests."""
        out = {name: str(getattr(self, name)) for name in _FACTORS if getattr(self, name) is not None}
        energy, length = (self.energy or "eV").removesuffix(PER_ATOM), self.length or "angstrom"
        if self.forces is None and (self.energy or self.length):
            out["forces"] = f"{energy}/{length}"
        if self.virial is None and self.energy:
            out["virial"] = energy
        if self.stress_sign is not None:
            out["stress sign"] = "ASE" if self.stress_sign > 0 else "opposite to ASE"
        return out
