"""Structures that break neighbour lists: a table of named ones and a hypothesis strategy."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from atomsieve.structures.batch import StructureBatch


def single(positions, cell, pbc) -> StructureBatch:
    positions = np.asarray(positions, float).reshape(-1, 3)
    n = len(positions)
    return StructureBatch(
        ptr=np.array([0, n]),
        numbers=np.full(n, 6, np.uint8),
        positions=positions,
        cell=np.asarray(cell, float).reshape(1, 3, 3),
        pbc=np.asarray(pbc, bool).reshape(1, 3),
        id=np.zeros(1, np.int64),
    )


def _random(seed: int, n: int, cell, pbc=(1, 1, 1), spread: float = 1.0) -> StructureBatch:
    rng = np.random.default_rng(seed)
    return single((rng.random((n, 3)) - 0.5) * 2 * spread @ np.asarray(cell, float), cell, pbc)


def _angle(length: float, degrees: float) -> list[list[float]]:
    """A rhombohedral cell with this angle between any two vectors."""
    c = np.cos(np.radians(degrees))
    z = np.sqrt(1 - c**2 - (c - c**2) ** 2 / (1 - c**2))
    return length * np.array([[1, 0, 0], [c, np.sqrt(1 - c**2), 0], [c, (c - c**2) / np.sqrt(1 - c**2), z]])


BCC = 1.43 * np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]])
FCC = 2.0 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]])
SLAB = [[5, 0, 0], [-2.5, 4.3, 0], [0, 0, 0]]
EIGHT = np.random.default_rng(12).random((8, 3)) * 6
CLUSTERS = np.random.default_rng(22).random((200, 3)) * 6 + np.repeat([[0, 0, 0], [1e6, 0, 0]], 100, 0)

AWKWARD: dict[str, StructureBatch] = {
    "no atoms": single(np.zeros((0, 3)), np.zeros((3, 3)), (0, 0, 0)),
    "no atoms, singular periodic cell": single(np.zeros((0, 3)), np.zeros((3, 3)), (1, 1, 1)),
    "one atom, no cell": single([[1, 2, 3]], np.zeros((3, 3)), (0, 0, 0)),
    "one atom, bcc": single([[0.1, 0.2, 0.3]], BCC, (1, 1, 1)),
    "one atom, fcc": single([[0, 0, 0]], FCC, (1, 1, 1)),
    "one atom, tiny cell": single([[0, 0, 0]], 0.9 * np.eye(3), (1, 1, 1)),
    "two atoms, far apart": single([[0, 0, 0], [50, 0, 0]], np.zeros((3, 3)), (0, 0, 0)),
    "two atoms on one point": single([[1, 1, 1], [1, 1, 1]], 4 * np.eye(3), (1, 1, 1)),
    "two atoms one cell apart": single([[0, 0, 0], [4, 0, 0]], 4 * np.eye(3), (1, 1, 1)),
    "exact cutoff": single([[0, 0, 0]], 2.5 * np.eye(3), (1, 1, 1)),
    "left-handed": _random(1, 7, [[0, 4.1, 0.3], [5.2, 0, 0], [0.5, 0.1, 6.0]]),
    "skewed": _random(2, 6, [[4, 0, 0], [9, 4, 0], [-11, 13, 4]]),
    "very skewed": _random(3, 3, [[3, 0, 0], [20, 3.5, 0], [-14, 30, 4]]),
    "25 degrees": _random(4, 4, _angle(7.0, 25)),
    "100 degrees": _random(5, 4, _angle(5.0, 100)),
    "needle": _random(6, 5, np.diag([1.2, 40.0, 2.0])),
    "plate": _random(7, 8, np.diag([20.0, 20.0, 1.1])),
    "far outside": _random(8, 9, [[5, 0, 0], [1, 6, 0], [0, 1, 7]], spread=300.0),
    "unwrapped molecule in a box": _random(9, 12, 30 * np.eye(3), spread=0.1),
    "molecule": _random(10, 12, 4 * np.eye(3), pbc=(0, 0, 0)),
    "molecule, singular cell": single(np.random.default_rng(11).random((9, 3)) * 5, np.zeros((3, 3)), (0, 0, 0)),
    "molecule, NaN cell": single(np.random.default_rng(11).random((9, 3)) * 5, np.full((3, 3), np.nan), (0, 0, 0)),
    "slab, zero vector": single(EIGHT, SLAB, (1, 1, 0)),
    "slab, short vector": single(EIGHT, np.add(SLAB, np.diag([0, 0, 0.1])), (1, 1, 0)),
    "slab, long vector": single(EIGHT, np.add(SLAB, np.diag([0, 0, 90])), (1, 1, 0)),
    "slab, vector in its plane": single(EIGHT, [[5, 0, 0], [-2.5, 4.3, 0], [1, 1, 0]], (1, 1, 0)),
    "slab in the first and last axes": single(EIGHT, [[0, 0, 5], [0, 0, 0], [4, 1, 0]], (1, 0, 1)),
    "skewed slab": single(EIGHT[:5], [[3, 0, 0], [0, 0, 0], [40, 3.2, 1]], (1, 0, 1)),
    "wire": single(np.random.default_rng(15).random((5, 3)) * 3, [[0, 0, 0], [0.5, 0.3, 2.2], [0, 0, 0]], (0, 1, 0)),
    "wire, one atom": single([[5, 5, 5]], [[0, 0, 0], [0, 0, 0], [0, 0, 1.7]], (0, 0, 1)),
    "140 atoms": _random(16, 140, [[11, 0, 0], [2, 12, 0], [-3, 1, 13]]),
    "300 atoms, small skewed cell": _random(17, 300, [[6, 0, 0], [5, 7, 0], [-4, 8, 9]]),
    "200 atoms, slab": _random(18, 200, [[15, 0, 0], [4, 14, 0], [0, 0, 9]], pbc=(1, 1, 0)),
    "260 atoms, cluster": _random(19, 260, 12 * np.eye(3), pbc=(0, 0, 0)),
    "150 atoms, wire": _random(20, 150, np.diag([3.0, 4.0, 20.0]), pbc=(0, 0, 1)),
    "250 atoms far outside": _random(21, 250, np.diag([13.0, 14.0, 15.0]), spread=40.0),
    "two clusters far apart": single(CLUSTERS, np.zeros((3, 3)), (0, 0, 0)),
    "flat cell of 150 atoms": _random(23, 150, np.diag([40.0, 40.0, 1.3])),
}


def random_cells(rng: np.random.Generator, atoms: tuple[int, int], n_structures: int) -> StructureBatch:
    """Structures of random shape, skew and periodicity, with atoms at corners and faces of the cell."""
    parts = []
    for _ in range(n_structures):
        n = int(rng.integers(*atoms))
        lengths = rng.uniform(0.25, 1.8, 3) * (n * rng.uniform(6, 30)) ** (1 / 3)
        cell = np.diag(lengths) + np.tril(rng.uniform(-0.5, 0.5, (3, 3)) * lengths * rng.choice([0, 1, 4]), -1)
        cell = cell[rng.permutation(3)] @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
        fractional = rng.random((n, 3)) * rng.choice([1, 3])
        at_faces = rng.random((n, 3)) < 0.3
        fractional[at_faces] = np.rint(2 * fractional[at_faces]) / 2 + rng.normal(size=at_faces.sum()) * 0.01
        parts.append(single(fractional @ cell, cell, rng.random(3) < 0.8))
    return StructureBatch.concatenate(parts)


def together(names: list[str] | None = None) -> StructureBatch:
    """All awkward structures in one batch."""
    return StructureBatch.concatenate([AWKWARD[n] for n in (names or AWKWARD)])


@st.composite
def structures(draw: st.DrawFn, max_atoms: int = 6) -> StructureBatch:
    """Any small structure: skewed, left-handed, mixed periodicity, atoms outside, zero, short or long free vectors."""
    number = st.floats(-1, 1, width=32)
    n = draw(st.integers(0, max_atoms))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    pbc = np.array([draw(st.booleans()) for _ in range(3)])
    lengths = np.array([draw(st.floats(1.2, 12)) for _ in range(3)])
    cell = np.diag(lengths * rng.choice([-1, 1], 3))
    for row, column in ((1, 0), (2, 0), (2, 1)):
        cell[row, column] = draw(number) * draw(st.sampled_from([0, 1, 5, 30]))
    cell = cell[rng.permutation(3)][:, rng.permutation(3)]
    spread = draw(st.sampled_from([0.5, 1.0, 3.0, 50.0]))
    positions = (rng.random((n, 3)) * spread) @ np.diag(lengths)
    if n > 1 and draw(st.booleans()):
        positions[1] = positions[0] + rng.integers(-2, 3, 3) @ (cell * pbc[:, None])
    for axis in np.flatnonzero(~pbc):
        cell[axis] = {"zero": 0, "short": 0.01, "long": 100, "as is": 1}[
            draw(st.sampled_from(["zero", "short", "long", "as is"]))
        ] * cell[axis]
    return single(positions, cell, pbc)
