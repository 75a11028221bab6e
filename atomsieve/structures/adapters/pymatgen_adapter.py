"""Arrays of a batch from pymatgen's structures and molecules, for scripts (a Python loop, not a hot path)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError
from atomsieve.structures.adapters.conditions import find_condition
from atomsieve.structures.fields import to_numbers
from atomsieve.structures.labels import RESIDUE

if TYPE_CHECKING:
    from pymatgen.core import IMolecule, IStructure, PeriodicSite, Site

FULL = 1e-3
"""An occupancy nearer than this to 1 is 1."""


def arrays_from_pymatgen(
    given: Iterable[IStructure | IMolecule] | IStructure | IMolecule, ids: Sequence[int] | None = None
) -> dict[str, NDArray[Any]]:
    """Return the arrays of a batch by field name; none for no structures. See `StructureBatch.from_pymatgen`."""
    from pymatgen import core  # seconds of imports

    kinds = (core.IStructure, core.IMolecule)
    structures = [given] if isinstance(given, kinds) else list(given)
    if ids is not None and len(ids) != len(structures):
        raise DataError(f"{len(ids)} ids for {len(structures)} structures")
    if not structures:
        return {}
    for k, one in enumerate(structures):
        if not isinstance(one, kinds):
            raise DataError(
                f"structure {k} of {len(structures)} is a {type(one).__name__}; give Structure or Molecule objects of "
                "pymatgen (of an entry, its .structure)"
            )
    rows = [_row(one, f"structure {k} of {len(structures)}", core) for k, one in enumerate(structures)]
    counts = np.array([len(row["numbers"]) for row in rows], np.int64)
    out: dict[str, Any] = {
        "ptr": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        "numbers": to_numbers(np.concatenate([row["numbers"] for row in rows])),
        "positions": np.concatenate([row["positions"] for row in rows]),
        "cell": np.stack([row["cell"] for row in rows]),
        "pbc": np.stack([row["pbc"] for row in rows]),
        "id": np.arange(len(rows), dtype=np.int64) if ids is None else np.asarray(ids, np.int64),
    }
    for name in ("charge", "spin"):
        values = np.array([row[name] for row in rows], np.float32)
        if not np.isnan(values).all():
            out[name] = values
    return out


def _row(one: Any, where: str, core: Any) -> dict[str, Any]:
    """Return the arrays of one structure or molecule, its total charge and its multiplicity."""
    stated: dict[str, dict[str, Any]] = {f"{where}: property": one.properties or {}}
    if isinstance(one, core.IStructure):
        cell, pbc = np.array(one.lattice.matrix, np.float64), np.array(one.lattice.pbc, bool)
        stated[f"{where}: attribute"] = {"charge": _stated_charge(one, where)}
    else:
        cell, pbc = np.zeros((3, 3)), np.zeros(3, bool)
        stated[f"{where}: attribute"] = {"charge": one.charge, "spin_multiplicity": one.spin_multiplicity}
    return {
        "numbers": np.array([_atomic_number(site, k, where) for k, site in enumerate(one)], np.int64),
        "positions": np.array(one.cart_coords, np.float64).reshape(-1, 3),
        "cell": cell,
        "pbc": pbc,
        "charge": find_condition("charge", stated),
        "spin": find_condition("spin", stated),
    }


def _stated_charge(structure: IStructure, where: str) -> float | None:
    """Return the total charge that a structure was given, None if it was given none.

    `structure.charge` is then the sum of oxidation states, which pymatgen's JSON writes as if it had been given.
    """
    given = structure._charge
    states = [getattr(specie, "oxi_state", None) for site in structure for specie in site.species]
    if given is None or not any(states) or abs(given - sum(state or 0 for state in states)) > RESIDUE:
        return given
    if abs(given) > RESIDUE:
        warnings.warn(
            f"{where}: its charge {given:g} is the sum of its oxidation states and is not taken for its total charge; "
            "where it is that, state it: structure.properties['charge']",
            stacklevel=5,
        )
    return None


def _atomic_number(site: Site | PeriodicSite, place: int, where: str) -> int:
    """Return the atomic number of the one element of a site.

    Raises
    ------
    DataError
        for a site that is shared, partly empty, or holds a dummy species.
    """
    species = list(site.species.items())
    if len(species) != 1 or abs(species[0][1] - 1) > FULL:
        raise DataError(
            f"{where}: site {place} is {site.species_string}; partly occupied sites have no energy: give an ordered "
            "structure (pymatgen's OrderDisorderedStructureTransformation makes some)"
        )
    number = getattr(species[0][0], "Z", 0)
    if not 1 <= number <= 118 or type(species[0][0]).__name__ == "DummySpecies":
        raise DataError(f"{where}: site {place} is {species[0][0]}, which is no element; remove such sites")
    return int(number)
