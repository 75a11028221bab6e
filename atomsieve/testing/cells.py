"""Structures that break neighbour lists, by name, and ordinary ones to compare with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from atomsieve.structures.batch import StructureBatch

Array = NDArray[np.generic] | Sequence[object]
"""Numbers in nested sequences, or an array."""


def one_structure(positions: Array, cell: Array, pbc: Array, number: int = 6) -> StructureBatch:
    """Return one structure of atoms of one element; positions [N,3] and cell [3,3] in Angstrom."""
    positions = np.asarray(positions, float).reshape(-1, 3)
    n = len(positions)
    return StructureBatch(
        ptr=np.array([0, n]),
        numbers=np.full(n, number, np.uint8),
        positions=positions,
        cell=np.asarray(cell, float).reshape(1, 3, 3),
        pbc=np.asarray(pbc, bool).reshape(1, 3),
        id=np.zeros(1, np.int64),
    )


def _random(
    seed: int, n: int, cell: Array, pbc: tuple[int, int, int] = (1, 1, 1), spread: float = 1.0
) -> StructureBatch:
    rng = np.random.default_rng(seed)
    return one_structure((rng.random((n, 3)) - 0.5) * 2 * spread @ np.asarray(cell, float), cell, pbc)


def _rhombohedral(length: float, degrees: float) -> np.ndarray:
    """Return a cell with this angle between any two vectors."""
    c = np.cos(np.radians(degrees))
    z = np.sqrt(1 - c**2 - (c - c**2) ** 2 / (1 - c**2))
    return length * np.array([[1, 0, 0], [c, np.sqrt(1 - c**2), 0], [c, (c - c**2) / np.sqrt(1 - c**2), z]])


_BCC = 1.43 * np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]])
_FCC = 2.0 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]])
_SLAB = np.array([[5, 0, 0], [-2.5, 4.3, 0], [0, 0, 0]])
_EIGHT = np.random.default_rng(12).random((8, 3)) * 6
_NINE = np.random.default_rng(11).random((9, 3)) * 5
_FIVE = np.random.default_rng(15).random((5, 3)) * 3
_CLUSTERS = np.random.default_rng(22).random((200, 3)) * 6 + np.repeat([[0, 0, 0], [1e6, 0, 0]], 100, 0)

AWKWARD_CELLS: dict[str, StructureBatch] = {
    "no atoms": one_structure(np.zeros((0, 3)), np.zeros((3, 3)), (0, 0, 0)),
    "no atoms, singular periodic cell": one_structure(np.zeros((0, 3)), np.zeros((3, 3)), (1, 1, 1)),
    "one atom, no cell": one_structure([[1, 2, 3]], np.zeros((3, 3)), (0, 0, 0)),
    "one atom, bcc": one_structure([[0.1, 0.2, 0.3]], _BCC, (1, 1, 1)),
    "one atom, fcc": one_structure([[0, 0, 0]], _FCC, (1, 1, 1)),
    "one atom, tiny cell": one_structure([[0, 0, 0]], 0.9 * np.eye(3), (1, 1, 1)),
    "two atoms, far apart": one_structure([[0, 0, 0], [50, 0, 0]], np.zeros((3, 3)), (0, 0, 0)),
    "two atoms on one point": one_structure([[1, 1, 1], [1, 1, 1]], 4 * np.eye(3), (1, 1, 1)),
    "two atoms one cell apart": one_structure([[0, 0, 0], [4, 0, 0]], 4 * np.eye(3), (1, 1, 1)),
    "exact cutoff": one_structure([[0, 0, 0]], 2.5 * np.eye(3), (1, 1, 1)),
    "left-handed": _random(1, 7, [[0, 4.1, 0.3], [5.2, 0, 0], [0.5, 0.1, 6.0]]),
    "skewed": _random(2, 6, [[4, 0, 0], [9, 4, 0], [-11, 13, 4]]),
    "very skewed": _random(3, 3, [[3, 0, 0], [20, 3.5, 0], [-14, 30, 4]]),
    "25 degrees": _random(4, 4, _rhombohedral(7.0, 25)),
    "100 degrees": _random(5, 4, _rhombohedral(5.0, 100)),
    "needle": _random(6, 5, np.diag([1.2, 40.0, 2.0])),
    "plate": _random(7, 8, np.diag([20.0, 20.0, 1.1])),
    "far outside": _random(8, 9, [[5, 0, 0], [1, 6, 0], [0, 1, 7]], spread=300.0),
    "unwrapped molecule in a box": _random(9, 12, 30 * np.eye(3), spread=0.1),
    "molecule": _random(10, 12, 4 * np.eye(3), pbc=(0, 0, 0)),
    "molecule, singular cell": one_structure(_NINE, np.zeros((3, 3)), (0, 0, 0)),
    "molecule, NaN cell": one_structure(_NINE, np.full((3, 3), np.nan), (0, 0, 0)),
    "slab, zero vector": one_structure(_EIGHT, _SLAB, (1, 1, 0)),
    "slab, short vector": one_structure(_EIGHT, np.add(_SLAB, np.diag([0, 0, 0.1])), (1, 1, 0)),
    "slab, long vector": one_structure(_EIGHT, np.add(_SLAB, np.diag([0, 0, 90])), (1, 1, 0)),
    "slab, vector in its plane": one_structure(_EIGHT, [[5, 0, 0], [-2.5, 4.3, 0], [1, 1, 0]], (1, 1, 0)),
    "slab in the first and last axes": one_structure(_EIGHT, [[0, 0, 5], [0, 0, 0], [4, 1, 0]], (1, 0, 1)),
    "skewed slab": one_structure(_EIGHT[:5], [[3, 0, 0], [0, 0, 0], [40, 3.2, 1]], (1, 0, 1)),
    "wire": one_structure(_FIVE, [[0, 0, 0], [0.5, 0.3, 2.2], [0, 0, 0]], (0, 1, 0)),
    "wire, one atom": one_structure([[5, 5, 5]], [[0, 0, 0], [0, 0, 0], [0, 0, 1.7]], (0, 0, 1)),
    "140 atoms": _random(16, 140, [[11, 0, 0], [2, 12, 0], [-3, 1, 13]]),
    "300 atoms, small skewed cell": _random(17, 300, [[6, 0, 0], [5, 7, 0], [-4, 8, 9]]),
    "200 atoms, slab": _random(18, 200, [[15, 0, 0], [4, 14, 0], [0, 0, 9]], pbc=(1, 1, 0)),
    "260 atoms, cluster": _random(19, 260, 12 * np.eye(3), pbc=(0, 0, 0)),
    "150 atoms, wire": _random(20, 150, np.diag([3.0, 4.0, 20.0]), pbc=(0, 0, 1)),
    "250 atoms far outside": _random(21, 250, np.diag([13.0, 14.0, 15.0]), spread=40.0),
    "two clusters far apart": one_structure(_CLUSTERS, np.zeros((3, 3)), (0, 0, 0)),
    "flat cell of 150 atoms": _random(23, 150, np.diag([40.0, 40.0, 1.3])),
}
"""Empty and one-atom structures, cells far smaller than any cutoff, skewed and left-handed cells, every periodicity."""


def crystals(n: int, elements: tuple[int, ...] = (8, 29), seed: int = 0) -> StructureBatch:
    """Return n distorted periodic crystals of 2 to 8 atoms of these elements, nearest neighbours near 2.6 Angstrom."""
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(n):
        shape = rng.integers(1, 3, 3) if rng.integers(2) else np.array([2, 1, 1])
        grid = np.stack(np.meshgrid(*(np.arange(k) for k in shape), indexing="ij"), -1).reshape(-1, 3)
        cell = np.diag(2.6 * shape) + rng.normal(scale=0.25, size=(3, 3))
        positions = 2.6 * grid + rng.normal(scale=0.12, size=(len(grid), 3))
        part = one_structure(positions, cell, (1, 1, 1))
        parts.append(part.replace(numbers=rng.choice(elements, len(grid)).astype(np.uint8)))
    return _number_structures(parts)


def molecules(n: int, elements: tuple[int, ...] = (8, 29), seed: int = 0) -> StructureBatch:
    """Return n clusters of 2 to 7 atoms of these elements without a cell, no two atoms nearer than 1.2 Angstrom."""
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(n):
        count, positions = int(rng.integers(2, 8)), [np.zeros(3)]
        while len(positions) < count:
            trial = positions[int(rng.integers(len(positions)))] + rng.normal(scale=1.3, size=3)
            if min(np.linalg.norm(trial - other) for other in positions) > 1.2:
                positions.append(trial)
        part = one_structure(positions, np.zeros((3, 3)), (0, 0, 0))
        parts.append(part.replace(numbers=rng.choice(elements, count).astype(np.uint8)))
    return _number_structures(parts)


def lone_atoms(elements: tuple[int, ...] = (8, 29)) -> StructureBatch:
    """Return one atom of each element, each alone in a structure, without neighbours."""
    return _number_structures(
        [one_structure([[0.1, 0.2, 0.3]], np.zeros((3, 3)), (0, 0, 0), number) for number in elements]
    )


def _number_structures(parts: list[StructureBatch]) -> StructureBatch:
    batch = StructureBatch.concatenate(parts)
    return batch.replace(id=np.arange(len(batch)))
