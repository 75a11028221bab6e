"""Atoms, cell and arrays of the structures that records of databases hold."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

FULL = 1e-3
"""An occupancy nearer than this to 1 is 1."""
RESIDUE = 1e-6
HEAVY_HYDROGEN = "deuterium or tritium is taken as hydrogen"


class UnusableError(ValueError):
    """A structure that cannot be taken: the reason that alike cases share, and the detail of this one."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass
class Geometry:
    """A structure: `numbers [n]`, `positions [n,3]` and `cell [3,3]` in Angstrom, `pbc [3]`, and what it states.

    Attributes
    ----------
    arrays : values by name that every atom has.
    info : values by name of the structure itself: its total charge, multiplicity, properties.
    notes : what was done beside taking it, in words for the report.
    """

    numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    cell: NDArray[np.float64]
    pbc: NDArray[np.bool_]
    arrays: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_geometry(found: Any) -> Geometry:
    """Return the structure that an object of JSON is, told by its keys.

    Raises
    ------
    UnusableError
        if it is none, is ambiguous, or has sites that are no single atom.
    ValueError, KeyError, TypeError, IndexError
        if its values are not what its keys promise.
    """
    if isinstance(found, str):
        found = json.loads(found)
    if not isinstance(found, Mapping):
        raise UnusableError("no structure", f"a {type(found).__name__} where a structure is expected")
    if isinstance(found.get("atoms_json"), str):  # ASE atoms as pymatgen keeps them
        found = json.loads(found["atoms_json"])
    if isinstance(found.get("attributes"), Mapping):
        found = {**found, **found["attributes"]}
    kinds = [name for name in READERS if name in found]
    if len(kinds) != 1:
        keys = ", ".join(map(str, list(found)[:12]))
        raise UnusableError("several structures in one" if kinds else "no structure", f"its keys are {keys}")
    return READERS[kinds[0]](found)


def _pymatgen(found: Mapping[str, Any]) -> Geometry:
    """A Structure or Molecule of pymatgen. A sum of formal oxidation states is no total charge."""
    lattice, sites = found.get("lattice"), found["sites"]
    cell = np.zeros((3, 3)) if lattice is None else np.asarray(lattice["matrix"], np.float64).reshape(3, 3)
    numbers, notes, states = [], list[str](), []
    for k, site in enumerate(sites):
        species = site["species"]
        if len(species) != 1 or abs(float(species[0].get("occu", 1)) - 1) > FULL:
            named = ", ".join(f"{one.get('element')}: {one.get('occu', 1)}" for one in species)
            raise UnusableError("partly occupied sites", f"site {k} is {named or 'empty'}")
        numbers.append(read_element(species[0]["element"], f"site {k}", notes))
        states.append(species[0].get("oxidation_state"))
    within = lattice is not None and all("abc" in site for site in sites)
    places = np.array([site["abc" if within else "xyz"] for site in sites], np.float64).reshape(-1, 3)
    pbc = (lattice.get("pbc") or [True] * 3) if lattice is not None else [False] * 3
    info = {key: read_value(value) for key, value in (found.get("properties") or {}).items()}
    charge = found.get("charge")
    if charge is not None and any(states) and abs(float(charge) - sum(s or 0 for s in states)) <= RESIDUE:
        if abs(float(charge)) > RESIDUE:
            notes.append("a charge that is the sum of oxidation states is not taken for the total charge")
        charge = None
    for key, value in (("charge", charge), ("spin_multiplicity", found.get("spin_multiplicity"))):
        if value is not None:
            info[key] = value
    return Geometry(
        np.asarray(numbers, np.int64),
        places @ cell if within else places,
        cell,
        np.asarray(pbc, bool),
        _site_properties(sites),
        info,
        notes,
    )


def _site_properties(sites: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the properties of sites as arrays per atom; numbers that some sites lack are NaN there."""
    names = dict.fromkeys(name for site in sites for name in site.get("properties") or {})
    out: dict[str, Any] = {}
    for name in names:
        values = [(site.get("properties") or {}).get(name) for site in sites]
        present = [value for value in values if value is not None]
        if present and all(isinstance(value, int | float) for value in present):
            out[name] = np.array([np.nan if value is None else value for value in values], np.float64)
        elif len(present) == len(values):
            out[name] = values
    return out


def _jarvis(found: Mapping[str, Any]) -> Geometry:
    """Atoms of JARVIS: always periodic."""
    cell = np.asarray(found["lattice_mat"], np.float64).reshape(3, 3)
    places = np.asarray(found["coords"], np.float64).reshape(-1, 3)
    if not isinstance(found.get("cartesian"), bool):
        raise UnusableError("no structure", "'cartesian' does not say what the coordinates are")
    notes: list[str] = []
    numbers = [read_element(symbol, f"site {k}", notes) for k, symbol in enumerate(found["elements"])]
    positions = places if found["cartesian"] else places @ cell
    return Geometry(np.asarray(numbers, np.int64), positions, cell, np.ones(3, bool), notes=notes)


def _optimade(found: Mapping[str, Any]) -> Geometry:
    """A structure of an OPTIMADE answer (specification 1.2, 7.2)."""
    species = {one["name"]: one for one in found.get("species") or []}
    numbers, notes = [], list[str]()
    for k, name in enumerate(found["species_at_sites"]):
        one = species.get(name, {"chemical_symbols": [name], "concentration": [1.0]})
        symbols, parts = one["chemical_symbols"], one.get("concentration") or [1.0]
        if one.get("attached") or one.get("nattached"):
            raise UnusableError("atoms attached to a site without positions", f"site {k} is {name}")
        if len(symbols) != 1 or abs(float(parts[0]) - 1) > FULL:
            named = ", ".join(f"{s}: {c}" for s, c in zip(symbols, parts, strict=False))
            raise UnusableError("partly occupied sites", f"site {k} is {named}")
        numbers.append(read_element(symbols[0], f"site {k}", notes))
    kinds, count = found.get("dimension_types"), found.get("nperiodic_dimensions")
    if kinds is None and count in (0, 3):
        kinds = [int(count == 3)] * 3
    if kinds is None or len(kinds) != 3:
        raise UnusableError("periodicity is not stated", "neither dimension_types nor nperiodic_dimensions of 0 or 3")
    vectors = found.get("lattice_vectors") or [[0.0] * 3] * 3
    cell = np.array([[0.0 if x is None else x for x in vector] for vector in vectors], np.float64).reshape(3, 3)
    positions = np.asarray(found["cartesian_site_positions"], np.float64).reshape(-1, 3)
    pbc = np.array([kind == 1 for kind in kinds])
    return Geometry(np.asarray(numbers, np.int64), positions, cell, pbc, notes=notes)


ARRAYS = ("tags", "momenta", "masses", "initial_magmoms", "initial_charges", "magmoms", "charges", "forces")


def _ase(found: Mapping[str, Any]) -> Geometry:
    """Atoms of ASE, or a row of its JSON database."""
    row = {key: read_value(value) for key, value in found.items()}
    cell, pbc = row.get("cell"), row.get("pbc")
    cell = cell.get("array") if isinstance(cell, dict) else cell
    count = len(row["numbers"])
    return Geometry(
        np.asarray(row["numbers"], np.int64),
        np.asarray(row["positions"], np.float64).reshape(-1, 3),
        np.zeros((3, 3)) if cell is None else np.asarray(read_value(cell), np.float64).reshape(3, 3),
        np.zeros(3, bool) if pbc is None else np.broadcast_to(np.asarray(pbc, bool), 3).copy(),
        {key: row[key] for key in ARRAYS if row.get(key) is not None and np.shape(row[key])[:1] == (count,)},
        {key: read_value(value) for key, value in (row.get("info") or {}).items()},
    )


READERS = {
    "sites": _pymatgen,
    "lattice_mat": _jarvis,
    "cartesian_site_positions": _optimade,
    "numbers": _ase,
}
"""The key that tells each kind of structure."""


def read_element(symbol: Any, where: str, notes: list[str]) -> int:
    """Return the atomic number of `Fe`, `Fe2+` or `D` (told in `notes`).

    Raises
    ------
    UnusableError
        for a dummy species, or no symbol.
    """
    from ase.data import atomic_numbers

    match = re.match(r"([A-Z][a-z]?)(?:\d*\.?\d*[+-])?(?:,.*)?$", str(symbol))
    name = match.group(1) if match else ""
    if name in ("D", "T"):
        notes.append(HEAVY_HYDROGEN)
        return 1
    number = int(atomic_numbers.get(name, 0))
    if number < 1:
        raise UnusableError("a site that is no element", f"{where} is {symbol}")
    return number


def read_value(value: Any) -> Any:
    """Return a value of JSON; arrays that monty or ASE spelled as arrays, those of complex numbers as they are."""
    if not isinstance(value, dict):
        return value
    if value.get("@module") == "numpy" and value.get("@class") == "array":
        kind = str(value.get("dtype"))
        return value if kind.startswith(("complex", "|O", "object")) else np.array(value["data"], _numeric(kind))
    if "__ndarray__" in value:
        shape, kind, flat = value["__ndarray__"]
        return value if str(kind).startswith("complex") else np.array(flat, _numeric(kind)).reshape(shape)
    return value


def _numeric(kind: str) -> np.dtype[Any]:
    dtype = np.dtype(kind)
    if dtype.kind not in "biufU":
        raise ValueError(f"array of {kind}")
    return dtype
