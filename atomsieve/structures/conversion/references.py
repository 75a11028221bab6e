"""Energies of single free atoms in files: counted, and taken as element references of their source where asked for."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError
from atomsieve.structures.block import Block

NOTE = "element references"
"""Name of the note in a manifest that holds energies of free atoms (eV) by source and element, as JSON."""
FREE_VOLUME = 1000.0
"""An atom alone in a cell of at least this volume (Angstrom^3) is free."""
CONFIG_KEYS = ("config_type", "config")
FREE_WORDS = ("isolatedatom", "isolated_atom", "isolated atom", "isolated_atoms", "free_atom", "e0")


def find_free_atoms(block: Block, length: float = 1.0) -> NDArray[np.bool_]:
    """Return `[S]`, True for a single free atom: without periodicity, in a cell of at least 1000 Angstrom^3, or marked
    by `config_type=IsolatedAtom`.

    length : Angstrom per unit of length of the block.
    """
    alone: NDArray[np.bool_] = np.asarray(block.counts == 1)
    if not alone.any():
        return alone
    volume = np.abs(np.linalg.det(block.cell)) * length**3
    free = ~block.pbc.any(axis=1) | (volume >= FREE_VOLUME)
    for key in CONFIG_KEYS:
        column = block.info.get(key)
        if column is not None and not column.numeric:
            free |= np.array([str(value).lower() in FREE_WORDS for value in column.spread("")], bool)
    return alone & free


def count_free_atoms(block: Block, free: NDArray[np.bool_], counts: Counter[str]) -> None:
    """Add free atoms by element to the counts."""
    if free.any():
        from ase.data import chemical_symbols

        numbers = block.numbers[block.ptr[:-1][free]]
        counts.update(chemical_symbols[z] for z in numbers.tolist() if 0 < z < len(chemical_symbols))


def choose_references(found: Mapping[tuple[str, str, float], int]) -> dict[str, dict[str, float]]:
    """Return energies by source and element: the lowest where an element has several."""
    out: dict[str, dict[str, float]] = {}
    for source, symbol, energy in found:
        own = out.setdefault(source, {})
        own[symbol] = min(energy, own.get(symbol, np.inf))
    return {source: dict(sorted(own.items())) for source, own in out.items()}


def describe_references(found: Counter[tuple[str, str, float]]) -> list[str]:
    """Return a line for each source: `element references of a: H -13.6052, O -432.1 eV`, and what was chosen."""
    lines = []
    for source, own in choose_references(found).items():
        words = ", ".join(f"{symbol} {energy:.6g}" for symbol, energy in own.items())
        several = sorted({s for name, s, energy in found if name == source and energy - own[s] > 1e-6})
        chosen = f" (the lowest of several of {', '.join(several)})" if several else ""
        lines.append(f"element references of {source}: {words} eV{chosen}")
    return lines


def encode_references(found: Mapping[tuple[str, str, float], int]) -> dict[str, str]:
    """Return the note of a manifest that holds the references; empty without any."""
    return {NOTE: json.dumps(choose_references(found), sort_keys=True)} if found else {}


def decode_references(notes: Mapping[str, str], where: str = "") -> dict[str, dict[int, float]]:
    """Return energies of free atoms, eV, by source and atomic number, from the notes of a dataset.

    Raises
    ------
    DataError
        if the note is not what `encode_references` writes.
    """
    from ase.data import atomic_numbers

    try:
        stated = json.loads(notes.get(NOTE, "{}"))
        return {
            str(source): {atomic_numbers[symbol]: float(energy) for symbol, energy in own.items()}
            for source, own in stated.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where}: the note {NOTE!r} holds no energies by source and element ({error})") from error
