"""Comparison of what a reader found with ASE atoms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from atomsieve.structures.block import Block
from atomsieve.structures.formats import ReadRequest, read_blocks


def read_all(path: Path, kind: str, start: int = 0, stop: int | None = None) -> list[Block]:
    """Return all blocks of a file."""
    return list(read_blocks(ReadRequest(path, start=start, stop=stop), kind))


def rows_of(blocks: list[Block]) -> list[dict[str, Any]]:
    """Return one dictionary per structure: geometry, and every key of the structure or of its atoms."""
    rows = []
    for block in blocks:
        for s in range(len(block)):
            a, b = block.ptr[s], block.ptr[s + 1]
            row: dict[str, Any] = {
                "numbers": block.numbers[a:b],
                "positions": block.positions[a:b],
                "cell": block.cell[s],
                "pbc": block.pbc[s],
                "where": block.places[s],
            }
            for key, column in block.info.items():
                if column.has[s]:
                    row[key] = column.values[int(column.has[:s].sum())]
            for key, column in block.arrays.items():
                if column.has[s]:
                    first = int(block.counts[:s][column.has[:s]].sum())
                    row[key] = column.values[first : first + b - a]
            rows.append(row)
    return rows


def assert_same_geometry(row: dict[str, Any], atoms: Atoms, atol: float = 0.0) -> None:
    """Fail unless a row has the structure of the atoms, to the last bit unless `atol` (Angstrom) is given."""
    np.testing.assert_array_equal(row["numbers"], atoms.numbers)
    np.testing.assert_allclose(row["positions"], atoms.positions, rtol=0, atol=atol)
    np.testing.assert_allclose(row["cell"], np.asarray(atoms.cell), rtol=0, atol=atol)
    np.testing.assert_array_equal(row["pbc"], atoms.pbc)
