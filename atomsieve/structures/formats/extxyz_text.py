"""Texts of the headers of extended XYZ, and frames of it without compiled code."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from atomsieve.structures.batch import StructureBatch


@dataclass(frozen=True)
class Dialect:
    """Names under which a program looks for what a frame states.

    Attributes
    ----------
    lattice, properties, forces, energy, stress, charge, spin : the names.
    second_spin : another name under which the multiplicity is stated too; empty: none.
    virial : in place of the stress, minus stress times volume in eV; empty: the stress is written.
    needs_cell : the program reads structures with three lattice vectors only.
    """

    lattice: str = "Lattice"
    properties: str = "Properties"
    forces: str = "forces"
    energy: str = "energy"
    stress: str = "stress"
    virial: str = ""
    charge: str = "charge"
    spin: str = "spin"
    second_spin: str = ""
    needs_cell: bool = False

    @property
    def reserved(self) -> set[str]:
        """Names that no further value may have."""
        return {"pbc", *(getattr(self, name) for name in KEYS)} - {""}


KEYS = ("lattice", "properties", "forces", "energy", "stress", "virial", "charge", "spin", "second_spin")
"""Fields of `Dialect` that are names."""

_PLAIN = re.compile(r"[^\s,\"'{}\[\]=\\\x00-\x1f\x7f]+")
_NUMBER_LIKE = re.compile(r"[+-]?(\d|\.\d|nan$|inf$|infinity$)", re.IGNORECASE)
_TRUTHS = {"T", "F", "True", "False", "true", "false", "TRUE", "FALSE"}


def format_info(values: Mapping[str, Any]) -> str:
    """Return pairs `key=value` that ASE reads back as these values; those that are None are left out."""
    return " ".join(f"{_quote(key)}={_format(value)}" for key, value in values.items() if value is not None)


def _format(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return "T" if value else "F"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return _quote(value) if _is_text(value) else _as_json(value)
    array = np.asarray(value) if isinstance(value, np.ndarray | list | tuple) else None
    if array is not None and array.ndim == 1 and len(array) > 1 and array.dtype.kind in "biuf":
        return f'"{" ".join(_format(one) for one in array)}"'
    return _as_json(value.tolist() if isinstance(value, np.ndarray) else value)


def _is_text(word: str) -> bool:
    """Return True for a text that is not taken for anything else when it is read."""
    words = word.replace(",", " ").split()
    if not words or word != word.strip() or any(ord(c) < 32 for c in word) or word.startswith("_JSON"):
        return False
    return not all(_NUMBER_LIKE.match(one) or one in _TRUTHS for one in words)


def _as_json(value: Any) -> str:
    return _quote(f"_JSON {json.dumps(value, default=str)}")


def _quote(word: str) -> str:
    if _PLAIN.fullmatch(word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def write_in_python(batch: StructureBatch, dialect: Dialect, texts: Sequence[str], *, text_ids: bool = False) -> bytes:
    """Return the frames of a batch, each with a text in its header, as the compiled code gives them (slower).

    text_ids : ids are among the texts; those of the batch are left out.
    """
    from ase.data import chemical_symbols

    out: list[str] = []
    for s, text in enumerate(texts):
        own = slice(int(batch.ptr[s]), int(batch.ptr[s + 1]))
        labels = {
            name: getattr(batch, name)[s if name != "forces" else own]
            for name in ("energy", "forces", "stress")
            if getattr(batch, name) is not None and getattr(batch, f"has_{name}")[s]
        }
        cell = batch.cell[s]
        parts = [f'{dialect.lattice}="{_join(cell.ravel())}"'] if cell.any() else []
        forces = f":{dialect.forces}:R:3" if "forces" in labels else ""
        parts.append(f"{dialect.properties}=species:S:1:pos:R:3{forces}")
        parts += [] if text_ids else [f"id={int(batch.id[s])}"]
        for names, array in (((dialect.charge,), batch.charge), ((dialect.spin, dialect.second_spin), batch.spin)):
            if array is not None and not np.isnan(array[s]):
                parts += [f"{name}={_format(float(str(array[s])))}" for name in names if name]
        parts += [text] if text else []
        if "energy" in labels:
            parts.append(f"{dialect.energy}={_format(labels['energy'])}")
        if "stress" in labels:
            factor = -abs(np.linalg.det(cell)) if dialect.virial else 1.0
            parts.append(f'{dialect.virial or dialect.stress}="{_join(factor * labels["stress"].T.ravel())}"')
        parts.append(f'pbc="{" ".join("T" if axis else "F" for axis in batch.pbc[s])}"')
        out += [f"{own.stop - own.start}\n", " ".join(parts), "\n"]
        columns = [batch.positions[own].astype(np.float64), *([labels["forces"]] if forces else [])]
        for number, *rows in zip(batch.numbers[own].tolist(), *columns, strict=True):
            out.append(f"{chemical_symbols[number]} {' '.join(_join(row) for row in rows)}\n")
    return "".join(out).encode()


def _join(row: Any) -> str:
    return " ".join(repr(float(value)) for value in row)
