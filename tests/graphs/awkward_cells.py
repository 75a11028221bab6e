"""More structures that break neighbour lists than `atomsieve.testing` has: random ones, and a hypothesis strategy."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from atomsieve.structures.batch import StructureBatch
from atomsieve.testing.cells import AWKWARD_CELLS as AWKWARD
from atomsieve.testing.cells import one_structure as single

__all__ = ["AWKWARD", "random_cells", "single", "structures", "together"]


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
