"""L-BFGS for many structures at once, vectorised over structures.

Liu and Nocedal, Math. Program. 45, 503 (1989); the two loops are algorithm 7.4 of Nocedal and Wright, Numerical
Optimization (2006). There is no line search: each step costs one evaluation, and the length of steps is limited for
each structure, by less where its energy rose. The variables of a cell are scaled such that a strain counts as the
displacement that it gives an atom at the distance of a neighbour.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from atomsieve.calculators.minimiser import Minimiser

Array = NDArray[np.float64]
MEMORY = 10
"""Pairs of steps and changes of forces that a structure remembers."""
STIFFNESS = 30.0
"""eV/Angstrom^2, the curvature that the first step takes."""
REACH, LEAST_REACH, SHRINK, GROW = 0.2, 0.002, 0.5, 1.3
"""Longest displacement of an atom in a step, Angstrom, at most and at least; its factors after a step up, and down."""
STRAIN = 0.03
"""Largest logarithmic strain of a cell in a step where `REACH` is the longest displacement."""
RISE = 1e-5  # eV/atom; a smaller rise of the energy may be rounding
FLAT = 1e-3
"""A pair whose step and change of forces are at a larger angle than this cosine tells of no curvature."""


class Lbfgs(Minimiser):
    """A relaxation by L-BFGS; see `Minimiser`.

    Pairs stand newest first: `moves`, `turns` [N,M,3] of atoms, `cell_moves`, `cell_turns` [S,M,3,3] of cells,
    `overlap` [S,M] their products; `pairs` [S] counts them.
    """

    moves: Array
    turns: Array
    cell_moves: Array
    cell_turns: Array
    overlap: Array
    pairs: NDArray[np.int64]
    reach: Array
    last_frame: Array
    last_forces: Array
    last_strain: Array
    last_cell_forces: Array
    last_energy: Array
    of_structures: ClassVar[tuple[str, ...]] = (
        *Minimiser.of_structures,
        "cell_moves",
        "cell_turns",
        "overlap",
        "pairs",
        "reach",
        "last_strain",
        "last_cell_forces",
        "last_energy",
    )
    of_atoms: ClassVar[tuple[str, ...]] = (*Minimiser.of_atoms, "moves", "turns", "last_frame", "last_forces")

    def _begin(self, many: int, atoms: int) -> dict[str, NDArray[Any]]:
        """Return an empty memory."""
        return {
            "cell_moves": np.zeros((many, MEMORY, 3, 3)),
            "cell_turns": np.zeros((many, MEMORY, 3, 3)),
            "overlap": np.ones((many, MEMORY)),
            "pairs": np.zeros(many, np.int64),
            "reach": np.full(many, REACH),
            "last_strain": np.zeros((many, 3, 3)),
            "last_cell_forces": np.zeros((many, 3, 3)),
            "last_energy": np.full(many, np.inf),
            "moves": np.zeros((atoms, MEMORY, 3)),
            "turns": np.zeros((atoms, MEMORY, 3)),
            "last_frame": np.zeros((atoms, 3)),
            "last_forces": np.zeros((atoms, 3)),
        }

    def step(self) -> None:
        """Move the active structures by one step of L-BFGS."""
        counts, home = self.own.counts, self.home
        energy = self.result.energy[self.active]
        if self.pressure:
            energy = energy + self.pressure * np.abs(np.linalg.det(self.own.cell))
        scale = self._find_cell_scale()
        cell_forces = self.cell_forces * (counts / scale)[:, None, None]  # on scale * L
        self._remember(cell_forces, scale)
        rose = energy > self.last_energy + RISE * counts
        self.reach = np.where(rose, np.maximum(self.reach * SHRINK, LEAST_REACH), np.minimum(self.reach * GROW, REACH))
        way, cell_way = self._find_direction(self.forces, cell_forces)
        up = self._dot(way, self.forces, cell_way, cell_forces) <= 0
        self.pairs = np.where(up, 0, self.pairs)
        way = np.where(up[home, None], self.forces / STIFFNESS, way)
        cell_way = np.where(up[:, None, None], cell_forces / STIFFNESS, cell_way)
        longest = self._largest(np.linalg.norm(way, axis=1))
        strain = np.linalg.norm(cell_way, axis=2).max(1) / scale
        longest = np.maximum(longest, strain * (REACH / STRAIN))
        part = np.minimum(1.0, self.reach / np.maximum(longest, 1e-300))
        self.last_frame, self.last_strain = self.frame, self.log_strain
        self.last_forces, self.last_cell_forces, self.last_energy = self.forces, cell_forces, energy
        self._move(self.frame + part[home, None] * way, self.log_strain + (part / scale)[:, None, None] * cell_way)

    def _find_cell_scale(self) -> Array:
        """Return by what L is multiplied to become a variable like positions [S], Angstrom."""
        volume = np.abs(np.linalg.det(self.original)) / np.maximum(self.own.counts, 1)
        length = np.where(volume > 0, np.cbrt(volume), 1.0) if self.cell else np.ones(len(volume))
        return np.asarray(length * np.sqrt(self.own.counts))

    def _remember(self, cell_forces: Array, scale: Array) -> None:
        """Put the last step and the change of forces in front of the memory, where they tell of curvature."""
        move, turn = self.frame - self.last_frame, self.last_forces - self.forces
        cell_move = scale[:, None, None] * (self.log_strain - self.last_strain)
        cell_turn = self.last_cell_forces - cell_forces
        product = self._dot(move, turn, cell_move, cell_turn)
        sizes = self._dot(move, move, cell_move, cell_move) * self._dot(turn, turn, cell_turn, cell_turn)
        new = np.isfinite(self.last_energy) & (product > FLAT * np.sqrt(sizes)) & (product > 0)
        for name, value in (("cell_moves", cell_move), ("cell_turns", cell_turn), ("overlap", product)):
            setattr(self, name, _push(getattr(self, name), value, new))
        for name, value in (("moves", move), ("turns", turn)):
            setattr(self, name, _push(getattr(self, name), value, new[self.home]))
        self.pairs = np.where(new, np.minimum(self.pairs + 1, MEMORY), self.pairs)

    def _find_direction(self, forces: Array, cell_forces: Array) -> tuple[Array, Array]:
        """Return the inverse Hessian of the memory times the forces, of atoms [N,3] and cells [S,3,3]."""
        home, most = self.home, int(self.pairs.max(initial=0))
        way, cell_way = forces.copy(), cell_forces.copy()
        weights = []
        for k in range(most):
            there = self.pairs > k
            product = self._dot(self.moves[:, k], way, self.cell_moves[:, k], cell_way)
            weight = np.where(there, product / self.overlap[:, k], 0.0)
            way -= weight[home, None] * self.turns[:, k]
            cell_way -= weight[:, None, None] * self.cell_turns[:, k]
            weights.append(weight)
        newest = self.turns[:, 0], self.cell_turns[:, 0]
        square = self._dot(newest[0], newest[0], newest[1], newest[1])
        start = np.where(self.pairs > 0, self.overlap[:, 0] / np.maximum(square, 1e-300), 1 / STIFFNESS)  # (7.20)
        way *= start[home, None]
        cell_way *= start[:, None, None]
        for k in reversed(range(most)):
            product = self._dot(self.turns[:, k], way, self.cell_turns[:, k], cell_way) / self.overlap[:, k]
            change = np.where(self.pairs > k, weights[k] - product, 0.0)
            way += change[home, None] * self.moves[:, k]
            cell_way += change[:, None, None] * self.cell_moves[:, k]
        return way, cell_way


def _push(memory: NDArray[Any], value: Array, new: NDArray[np.bool_]) -> NDArray[Any]:
    """Return a memory [X,M,...] with `value` [X,...] in front where `new` [X]; the oldest of those is dropped."""
    out = memory.copy()
    out[new, 1:] = memory[new, :-1]
    out[new, 0] = value[new]
    return out
