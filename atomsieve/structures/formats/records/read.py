"""Records of databases in JSON, read as a stream; units of labels are known by who writes the records."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from atomsieve.errors import DataError
from atomsieve.structures.formats.base import Format
from atomsieve.structures.formats.records.geometry import RESIDUE, Geometry, UnusableError, read_geometry, read_value
from atomsieve.structures.formats.records.layout import GEOMETRY, STRUCTURES, Record, find_records
from atomsieve.structures.item import BadItem, Item, ReadRequest
from atomsieve.structures.units import Units

log = logging.getLogger(__name__)

VASP = Units(stress="kbar", stress_sign=-1)
"""VASP's output: kB, positive under compression."""
PER_ATOM = (
    "total_energy of JARVIS and ALIGNN is per atom in their own files: "
    "--energy-key total_energy --unit energy=eV/atom takes it"
)
AS_GIVEN = "stress_as_given"
"""The name of a stress whose unit and sign nobody states: it is offered, and taken only with `--unit`."""


class Origin(NamedTuple):
    """Who writes records of a kind: the keys that all of them have, their units, and a note for the report."""

    name: str
    is_one: Callable[[Mapping[str, Any]], bool]
    units: Units
    note: str = ""


ORIGINS = (
    # The six numbers of MatPES are xx yy zz yz xz xy (the three-fold axis of arsenic in its own reference data tells).
    Origin("MatPES", lambda r: "matpes_id" in r, replace(VASP, origin="MatPES")),
    Origin(
        "MPtrj",
        lambda r: "uncorrected_total_energy" in r and ("mp_id" in r or "force" in r),
        replace(VASP, origin="MPtrj"),
    ),
    Origin("ASE", lambda r: "numbers" in r and "positions" in r, Units()),
    Origin("JARVIS", lambda r: isinstance(r.get("atoms"), dict | str) and "total_energy" in r, Units(), PER_ATOM),
)
"""Kinds of records whose units are fixed, the first that fits."""


def read_records(request: ReadRequest) -> Iterator[Item | BadItem]:
    """Yield the structures of a JSON file with what their records state.

    Read are structures of pymatgen, JARVIS, OPTIMADE and ASE, alone or in records with labels; one, a list, lines, an
    object by id, an object of objects by id and frame (MPtrj), the answer of an OPTIMADE server, or a table of pandas.
    The energy of an entry is that which was calculated, without corrections.

    Raises
    ------
    DataError
        if the file is not JSON, or its first record holds no structure.
    """
    known = False
    for record in find_records(request.path, request.tick):
        found = _item(record)
        if not known and isinstance(found, BadItem) and found.reason == "no structure":
            raise DataError(f"{found.where} is not a structure, or a record with one: {found.detail}")
        known = True
        yield found


def _item(record: Record) -> Item | BadItem:
    try:
        if record.twice is not None:
            raise UnusableError("a key twice in one object", repr(record.twice))
        return _read(record)
    except UnusableError as error:
        return BadItem(error.reason, record.where, error.detail)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        log.debug("%s: %s", record.where, error, exc_info=True)
        return BadItem(f"not readable ({type(error).__name__})", record.where, str(error))


def _read(record: Record) -> Item:
    value = record.value
    if not isinstance(value, dict):
        raise UnusableError("no structure", f"a {type(value).__name__} where a record is expected")
    key = _find_structure(value)
    stated = _flatten(value, key)
    if key is not None and key != "atoms" and isinstance(value[key], dict) and "structure" in value[key]:
        entry = value[key]  # an entry in a record
        stated = {**_flatten(entry, "structure"), **stated}
        geometry = read_geometry(entry["structure"])
    else:
        geometry = read_geometry(value if key is None else value[key])
    origin = next((one for one in ORIGINS if one.is_one(value)), None)
    notes = geometry.notes + ([origin.note] if origin is not None and origin.note else [])
    if origin is None or origin.note:
        for name in ("stress", "virial_stress"):
            if name in stated:
                stated[AS_GIVEN] = stated.pop(name)
    if record.key is not None:
        stated.setdefault("entry", record.key)
    return Item(
        numbers=geometry.numbers,
        positions=geometry.positions,
        cell=geometry.cell,
        pbc=geometry.pbc,
        where=record.where,
        info=_merge(geometry, stated),
        arrays=geometry.arrays,
        units=Units() if origin is None else origin.units,
        note="; ".join(dict.fromkeys(notes)),
    )


def _find_structure(value: dict[str, Any]) -> str | None:
    """Return the key that holds the structure of a record, None for a structure itself.

    Raises
    ------
    UnusableError
        if there are several, or none.
    """
    if any(name in value for name in GEOMETRY) or isinstance(value.get("attributes"), dict):
        return None
    names = [name for name in STRUCTURES if isinstance(value.get(name), dict | str)]
    if not names:
        raise UnusableError("no structure", f"its keys are {', '.join(map(str, list(value)[:12]))}")
    if len(names) > 1 and names[0] not in STRUCTURES[:2]:
        raise UnusableError("several structures in one record", f"{' and '.join(names)}")
    return names[0]


def _flatten(value: Mapping[str, Any], structure: str | None) -> dict[str, Any]:
    """Return what a record states beside its structure; the inside of `data`, `outputs` and ASE's pairs comes along."""
    out: dict[str, Any] = {}
    for name, one in value.items():
        if name in ("sites", "lattice", "properties", "numbers", "positions", "cell", "pbc", "info", "attributes"):
            continue
        if name == structure or one is None or (structure is None and name in ("charge", "spin_multiplicity")):
            continue
        if name in ("data", "outputs", "key_value_pairs") and isinstance(one, dict):
            for inner, more in one.items():
                if more is not None:
                    out.setdefault(inner, read_value(more))
        elif not name.startswith("@") and name not in STRUCTURES:
            found = read_value(one)
            if not isinstance(found, dict):
                out[name] = found
    return out


def _merge(geometry: Geometry, stated: dict[str, Any]) -> dict[str, Any]:
    """Return what structure and record state.

    Raises
    ------
    UnusableError
        if both state a total charge or a multiplicity, and not the same.
    """
    for name in ("charge", "spin_multiplicity"):
        own, other = geometry.info.get(name), stated.get(name)
        if own is not None and isinstance(other, int | float) and abs(own - other) > RESIDUE:
            raise UnusableError(f"two values of {name}", f"the structure states {own:g}, the record {other:g}")
    return {**geometry.info, **stated}


ROW = Format(
    name="json",
    about="JSON of pymatgen, MatPES, MPtrj, Matbench-Discovery, JARVIS, OPTIMADE, ASE; one, lists, lines, by id",
    endings=(".json", ".jsonl"),
    read=read_records,
    compressed=True,
)
