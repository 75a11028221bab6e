"""How dense structures are and how many bonds their atoms have, beside what a head's training data teach of both.

Both come from the neighbours within the encoder's cutoff r_c, so that a slab is as dense as its crystal, whatever its
cell holds of empty space. A neighbour at r counts as (1 - (r / r_c)^2)^2, so that no shell enters with a step.
A structure of mean composition x_Z, with n such neighbours and b bonds per atom, has

- the density r = ln(V_c / n) - ln(sum_Z x_Z v_Z), V_c = 4 pi r_c^3 8 / 105 the integral of that weight: the logarithm
  of its volume per atom over the volume expected of its elements;
- the coordination c = ln(b + 1) - ln(sum_Z x_Z (b_Z + 1)).

v_Z and b_Z are fitted by least squares of relative residuals, not negative, and drawn to the mean of all elements with
the weight of `PRIOR` structures, because a head of many elements has seen few structures of some.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls

from atomsieve.graphs import Graph
from atomsieve.structures import StructureBatch
from atomsieve.uncertainty.radii import BOND, SIZE, SUMS

Array = NDArray[np.float64]
PRIOR = 0.1
TAIL = 0.005
"""Part of the structures kept from the fit that may lie beyond each end of a range, before `SLACK`."""
SLACK = 0.1
"""Added to both ends: data of one density do not make a tenth more of it unusual."""
WEIGHED = 4 * np.pi * 8 / 105
"""Integral of the weight of neighbours over the sphere, in cubes of the cutoff."""
FEWEST_NEIGHBOURS = 0.01
"""Neighbours per atom that stand for none."""


@dataclass(frozen=True)
class MatterRange:
    """Densities and coordinations that are usual for a head.

    Attributes
    ----------
    volumes : [119] float32 Angstrom^3, v_Z by atomic number. bonds : [119] float32, b_Z + 1.
    ranges : [4] float64, least and largest density and least and largest coordination, as above.
    """

    volumes: NDArray[np.float32]
    bonds: NDArray[np.float32]
    ranges: NDArray[np.float64]

    def judge(
        self, batch: StructureBatch, neighbours: Array, bonds: Array, cutoff: float
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return masks [S]: density beyond the range, and coordination; never without atoms.

        neighbours, bonds : [S], per atom, as `count_neighbours` gives them.
        """
        mean = _mean_of_atoms(batch, self.volumes), _mean_of_atoms(batch, self.bonds)
        density, coordination = _residuals(neighbours, bonds, *mean, cutoff)
        low, high, least, most = self.ranges
        filled = batch.counts > 0
        usual = (low <= density) & (density <= high), (least <= coordination) & (coordination <= most)
        return filled & ~usual[0], filled & ~usual[1]


def _mean_of_atoms(batch: StructureBatch, table: NDArray[np.float32]) -> Array:
    sums = np.bincount(batch.structure_of_atom, table[batch.numbers], len(batch))
    return np.asarray(sums / np.maximum(batch.counts, 1))


def _residuals(neighbours: Array, bonds: Array, volume: Array, usual: Array, cutoff: float) -> tuple[Array, Array]:
    sphere = WEIGHED * cutoff**3
    density = np.log(sphere / np.maximum(neighbours, FEWEST_NEIGHBOURS)) - np.log(np.maximum(volume, 1e-30))
    return density, np.log(bonds + 1) - np.log(np.maximum(usual, 1e-30))


def count_neighbours(graph: Graph, length: torch.Tensor, bonded: torch.Tensor) -> tuple[Array, Array]:
    """Return the weighed neighbours and the bonds of an atom, mean of each structure [S].

    length : [E] Angstrom, of the edges. bonded : [E] bool, edges shorter than a bond of their elements.
    """
    home = graph.structure[graph.neighbors.receiver]
    weight = (1 - (length / graph.neighbors.cutoff) ** 2) ** 2
    sums = torch.zeros((2, graph.n_structures), dtype=torch.float64, device=length.device)
    sums[0].index_add_(0, home, weight.double())
    sums[1].index_add_(0, home, bonded.double())
    found = (sums / torch.diff(graph.ptr).clamp(min=1)).cpu().numpy()
    return found[0], found[1]


def measure_edges(graph: Graph) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the lengths [E] of the edges, and which are shorter than `BOND` times the sum of the covalent radii."""
    limits = torch.from_numpy(BOND * SUMS).float().to(graph.vec.device).ravel()
    code = graph.numbers[graph.neighbors.sender] * SIZE + graph.numbers[graph.neighbors.receiver]
    length = torch.linalg.vector_norm(graph.vec, dim=1).float()
    return length, length < limits[code]


@dataclass(frozen=True)
class MatterSample:
    """Neighbours and bonds per atom [S] of structures, and their compositions [S,119], each summing to 1."""

    neighbours: Array
    bonds: Array
    parts: Array

    @staticmethod
    def measure(batch: StructureBatch, graph: Graph) -> MatterSample:
        """Return the sample of a batch."""
        table = np.zeros((len(batch), SIZE))
        np.add.at(table, (batch.structure_of_atom, batch.numbers.astype(np.int64)), 1.0)
        return MatterSample(
            *count_neighbours(graph, *measure_edges(graph)), table / np.maximum(batch.counts, 1)[:, None]
        )

    def take(self, chosen: NDArray[np.bool_]) -> MatterSample:
        """Return the structures `chosen` [S]."""
        return MatterSample(self.neighbours[chosen], self.bonds[chosen], self.parts[chosen])

    @staticmethod
    def join(parts: list[MatterSample]) -> MatterSample:
        """Join the samples of several batches."""
        if not parts:
            return MatterSample(np.zeros(0), np.zeros(0), np.zeros((0, SIZE)))
        return MatterSample(*(np.concatenate([getattr(p, n) for p in parts]) for n in ("neighbours", "bonds", "parts")))


def fit_matter(trained: MatterSample, held: MatterSample, cutoff: float) -> MatterRange | None:
    """Fit volumes and bonds of the elements to one sample, and the ranges to another; None without neighbours at all.

    Structures of `held` with elements that `trained` lacks do not count. Fewer than 1 / `TAIL` do not show the tails:
    the ranges then hold those of `trained` too.
    """
    near = trained.neighbours > 0
    if not near.any():
        return None
    sphere = WEIGHED * cutoff**3
    volumes = _fit_elements(trained.parts[near], sphere / trained.neighbours[near])
    bonds = _fit_elements(trained.parts, trained.bonds + 1)
    known = trained.parts.sum(0) > 0
    use = held.parts[:, ~known].sum(1) == 0
    samples = [held.take(use)] if use.sum() * TAIL >= 1 else [held.take(use), trained]
    several = [
        _residuals(some.neighbours, some.bonds, some.parts @ volumes, some.parts @ bonds, cutoff) for some in samples
    ]
    found = [np.concatenate(values) for values in zip(*several, strict=True)]
    ranges = []
    for values in found:
        ordered = np.sort(values)
        cut = int(TAIL * len(ordered))
        ranges += [ordered[cut] - SLACK, ordered[len(ordered) - 1 - cut] + SLACK]
    return MatterRange(volumes.astype(np.float32), bonds.astype(np.float32), np.array(ranges))


def _fit_elements(parts: Array, values: Array) -> Array:
    """Return a value of each element [119] whose means over `parts` [S,119] are near `values` [S], all above 0."""
    usual = float(np.exp(np.log(values).mean()))
    there = np.flatnonzero(parts.sum(0) > 0)
    weight = np.sqrt(PRIOR) / usual
    rows = np.vstack([parts[:, there] / values[:, None], weight * np.eye(len(there))])
    fitted = nnls(rows, np.concatenate([np.ones(len(values)), np.full(len(there), weight * usual)]))[0]
    out = np.full(SIZE, usual)
    out[there] = np.maximum(fitted, 0.05 * usual)
    return out
