"""Text of one structure as CIF and as POSCAR."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from atomsieve.structures.batch import StructureBatch

DIGITS = 12
"""Decimals of fractional coordinates: 1e-10 Angstrom in a cell of 100 Angstrom."""


def format_cif(batch: StructureBatch, k: int) -> str:
    """Return structure k as a data block in P 1, named by its id."""
    cell = batch.cell[k]
    lengths = np.linalg.norm(cell, axis=1)
    unit = cell / lengths[:, None]
    angles = [np.degrees(np.arccos(np.clip(unit[i] @ unit[j], -1, 1))) for i, j in ((1, 2), (0, 2), (0, 1))]
    rows = [f"data_{int(batch.id[k])}"]
    rows += [f"_cell_length_{name} {x:.{DIGITS}f}" for name, x in zip("abc", lengths, strict=True)]
    rows += [f"_cell_angle_{name} {x:.{DIGITS}f}" for name, x in zip(("alpha", "beta", "gamma"), angles, strict=True)]
    rows += ["_space_group_name_H-M_alt 'P 1'", "_space_group_IT_number 1", ""]
    rows += ["loop_", "_space_group_symop_operation_xyz", "x,y,z", ""]
    rows += ["loop_", "_atom_site_label", "_atom_site_type_symbol"]
    rows += [f"_atom_site_fract_{axis}" for axis in "xyz"] + ["_atom_site_occupancy"]
    symbols, places = _atoms(batch, k)
    counts: dict[str, int] = {}
    for symbol, place in zip(symbols, places, strict=True):
        counts[symbol] = counts.get(symbol, 0) + 1
        rows.append(f"{symbol}{counts[symbol]} {symbol} " + " ".join(f"{x:.{DIGITS}f}" for x in place) + " 1.0")
    return "\n".join(rows) + "\n\n"


def format_poscar(batch: StructureBatch, k: int, title: str = "") -> str:
    """Return structure k as a POSCAR: atoms in their order, runs of one element as one species, fractional."""
    symbols, places = _atoms(batch, k)
    begins = [n for n in range(len(symbols)) if n == 0 or symbols[n] != symbols[n - 1]]
    counts = np.diff([*begins, len(symbols)])
    rows = [title or f"id {int(batch.id[k])}", "1.0"]
    rows += ["  ".join(f"{x:21.16f}" for x in vector) for vector in batch.cell[k]]
    rows += [" ".join(symbols[n] for n in begins), " ".join(str(n) for n in counts), "Direct"]
    rows += ["  ".join(f"{x:19.16f}" for x in place) for place in places]
    return "\n".join(rows) + "\n"


def _atoms(batch: StructureBatch, k: int) -> tuple[list[str], NDArray[np.float64]]:
    """Return symbols and fractional coordinates of structure k."""
    from ase.data import chemical_symbols

    a, b = int(batch.ptr[k]), int(batch.ptr[k + 1])
    places = np.linalg.solve(batch.cell[k].T, batch.positions[a:b].astype(np.float64).T).T
    return [chemical_symbols[z] for z in batch.numbers[a:b].tolist()], places
