"""Short-range repulsion of atoms: screened nuclei between pairs, without parameters, the same for every member.

Lengths count in units of the reach of a pair, the sum of the core radii of its atoms: x = d / (r_i + r_j). These are
covalent radii, but of the elements of groups 1 to 4 and the f elements, which give away their outer shell and come far
closer to each other under pressure, SOFT times that.

- The energy of a pair is that of Ziegler, Biersack and Littmark (1985) times a switch that falls from 1 to 0 between
  SWITCH[0] and SWITCH[1], or the cutoff where that is nearer; beyond it is exactly zero.
- The network sees no pair closer than a floor: below FLOOR[1] its distance is replaced by one that falls more slowly,
  and below FLOOR[0] by a constant, so that the network has no force along such a pair.

SWITCH[1] is above FLOOR[0]. So whatever the weights are, the energy falls strictly with the distance of any pair that
is closer than FLOOR[0] times its reach, all other distances kept. docs/model.md tells how the limits were chosen.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import NamedTuple

import torch
from ase.data import covalent_radii
from torch import Tensor

from atomsieve.graphs.graph import Graph
from atomsieve.models.elements import MAX_NUMBER, place
from atomsieve.models.output import EnsembleOutput

SWITCH = (0.45, 0.7)
"""Part of the reach at which the repulsion begins to be switched off, and at which it is zero."""
FLOOR = (0.6, 0.7)
"""Part of the reach below which the network sees a constant distance, and from which on it sees the true one."""
FURTHEST = max(SWITCH[1], FLOOR[1])
SOFT = 0.75
"""Core radius over covalent radius of elements of groups 1 to 4, hydrogen left out, and of f elements."""
LAST_RADIUS = 96
"""Elements beyond have no tabulated covalent radius and take that of this one, curium."""

COULOMB = 14.399645
"""Square of the elementary charge over 4 pi epsilon_0, eV Angstrom."""
SCREENING_LENGTH = 0.8854 * 0.529177
"""Angstrom; over Z_i^0.23 + Z_j^0.23 it is the length of a pair (Ziegler, Biersack and Littmark 1985, eq. 2-59)."""
POWER = 0.23
PHI = ((0.18175, 3.19980), (0.50986, 0.94229), (0.28022, 0.40290), (0.02817, 0.20162))
"""Weights and rates of the universal screening function (the same, eq. 2-60)."""
_SHORTEST = 1e-3  # Angstrom; below, the energy is that of this distance (such structures are refused before)


class PairTables(NamedTuple):
    """What a pair's energy needs of each element.

    radii : [119] Angstrom, core radii, by covalent radii of Cordero et al., Dalton Trans. 2832, 2008.
    powers : [119], Z^0.23.
    """

    radii: Tensor
    powers: Tensor


@functools.cache
def pair_tables(dtype: torch.dtype, device: torch.device) -> PairTables:
    """Return the tables of all elements; row 0 is no element."""
    radii = torch.tensor(covalent_radii[: MAX_NUMBER + 1], dtype=torch.float64)
    radii[LAST_RADIUS + 1 :] = radii[LAST_RADIUS]
    soft = [z for z in range(2, MAX_NUMBER + 1) if place(z)[0] <= 4]
    radii[soft] *= SOFT
    powers = torch.arange(MAX_NUMBER + 1, dtype=torch.float64).pow(POWER)
    return PairTables(*(t.to(device, dtype) for t in (radii, powers)))


def rise(x: Tensor, low: Tensor | float, high: Tensor | float) -> tuple[Tensor, Tensor]:
    """Return the switch 6 t^5 - 15 t^4 + 10 t^3 of t = (x - low) / (high - low), and its slope by x.

    0 up to `low`, 1 from `high` on; first and second derivatives are continuous.
    """
    t = ((x - low) / (high - low)).clamp(0, 1)
    value = t * t * t * (10 + t * (6 * t - 15))
    return value, 30 * t * t * (1 - t) * (1 - t) / (high - low)


def floor_distance(distance: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance that the network sees and its slope by distance; `reach` is r_i + r_j, Angstrom.

    The slope is the switch of `rise` between the limits of FLOOR, so three derivatives are continuous.
    """
    low, high = FLOOR
    x = distance / reach
    t = ((x - low) / (high - low)).clamp(0, 1)
    area = t.pow(4) * (2.5 + t * (t - 3))  # integral of the switch by t
    seen = reach * (low + (high - low) * (0.5 + area))
    return torch.where(x < high, seen, distance), rise(x, low, high)[0]


def repel(distance: Tensor, reach: Tensor, charge: Tensor, powers: Tensor, cutoff: float) -> tuple[Tensor, Tensor]:
    """Return energies of pairs (eV) and their slopes by distance (eV/Angstrom), all of one shape.

    distance : Angstrom. reach : r_i + r_j, Angstrom. charge : Z_i Z_j. powers : Z_i^0.23 + Z_j^0.23.
    """
    d = distance.clamp(min=_SHORTEST)
    scaled = d * (powers / SCREENING_LENGTH)
    parts = [(weight, rate, torch.exp(-rate * scaled)) for weight, rate in PHI]
    phi = sum(weight * e for weight, _, e in parts)
    by_scaled = -sum(weight * rate * e for weight, rate, e in parts)
    coulomb = COULOMB * charge / d
    energy = coulomb * phi
    slope = coulomb * (by_scaled * (powers / SCREENING_LENGTH) - phi / d)
    end = (SWITCH[1] * reach).clamp(max=cutoff)
    risen, risen_slope = rise(d, end * (SWITCH[0] / SWITCH[1]), end)
    left = 1 - risen
    return energy * left, slope * left - energy * risen_slope


class ShortEdges(NamedTuple):
    """The edges of a graph on which the repulsion or the floor acts: M of E.

    rows : [M] int64, places in the graph's edges. vec : [M,3] Angstrom. distance, reach : [M] Angstrom.
    ratio : [M], distance that the network sees over the true one. rate : [M], its slope by the true one.
    """

    rows: Tensor
    vec: Tensor
    distance: Tensor
    reach: Tensor
    ratio: Tensor
    rate: Tensor

    def lengthen(self, vec: Tensor) -> Tensor:
        """Return the edge vectors `[E,3]` that the network sees."""
        return vec.index_copy(0, self.rows, self.vec * self.ratio.unsqueeze(1))

    def pull_back(self, gradient: Tensor) -> Tensor:
        """Turn gradients `[K,E,3]` by the vectors that the network sees into those by the true ones."""
        own = turn_gradient(gradient.index_select(1, self.rows), self.vec, self.ratio, self.rate)
        return gradient.index_copy(1, self.rows, own)


def turn_gradient(gradient: Tensor, vec: Tensor, ratio: Tensor, rate: Tensor) -> Tensor:
    """Turn gradients by the vector h(d) u into those by d u: along u times h'(d), across times h(d) / d."""
    square = (vec * vec).sum(-1).clamp(min=_SHORTEST**2)
    along = (gradient * vec).sum(-1) / square
    return gradient * ratio.unsqueeze(-1) + vec * (along * (rate - ratio)).unsqueeze(-1)


def find_short_edges(graph: Graph, vec: Tensor) -> ShortEdges:
    """Return the edges that are short; `vec [E,3]` holds the graph's in the working precision."""
    near = graph.neighbors
    square = (vec * vec).sum(1)
    radii = pair_tables(vec.dtype, vec.device).radii.index_select(0, graph.numbers)
    reach = radii.index_select(0, near.receiver) + radii.index_select(0, near.sender)
    rows = torch.nonzero(square < (FURTHEST * reach).square()).squeeze(1)
    distance = square.index_select(0, rows).sqrt().clamp(min=_SHORTEST)
    reach = reach.index_select(0, rows)
    seen, rate = floor_distance(distance, reach)
    return ShortEdges(rows, vec.index_select(0, rows), distance, reach, seen / distance, rate)


def add_repulsion(found: EnsembleOutput, graph: Graph, short: ShortEdges, cutoff: float) -> EnsembleOutput:
    """Return the output of an ensemble with the repulsion of its pairs added to all that it holds.

    Each edge adds half the energy of its pair, to its receiver, so that a list without the reverse of an edge has
    forces that are the gradient of its energy, too. Gradients by weights do not change.
    """
    receiver = graph.neighbors.receiver.index_select(0, short.rows)
    sender = graph.neighbors.sender.index_select(0, short.rows)
    numbers = graph.numbers.index_select(0, receiver), graph.numbers.index_select(0, sender)
    powers = pair_tables(short.vec.dtype, short.vec.device).powers
    power = powers.index_select(0, numbers[0]) + powers.index_select(0, numbers[1])
    charge = (numbers[0] * numbers[1]).to(short.vec.dtype)
    energy, slope = repel(short.distance, short.reach, charge, power, cutoff)
    of_atoms = torch.zeros(graph.n_atoms, dtype=torch.float64, device=energy.device)
    of_atoms = of_atoms.index_add(0, receiver, 0.5 * energy.double())
    home = graph.structure.index_select(0, receiver)
    total = of_atoms.new_zeros(graph.n_structures).index_add(0, graph.structure, of_atoms)
    shares, mixed = found.atom_energy, found.head_energy
    forces, virial = found.forces, found.virial
    gradient = short.vec * (0.5 * slope / short.distance).unsqueeze(1)
    if forces is not None:
        own = gradient.new_zeros(graph.n_atoms, 3)
        forces = forces + own.index_add(0, receiver, gradient).index_add(0, sender, -gradient)
    if virial is not None:
        pairs = (short.vec.unsqueeze(2) * gradient.unsqueeze(1)).double()
        virial = virial + virial.new_zeros(graph.n_structures, 3, 3).index_add(0, home, pairs)
    return replace(
        found,
        energy=found.energy + total,
        forces=forces,
        virial=virial,
        atom_energy=None if shares is None else shares + of_atoms.to(shares.dtype),
        head_energy=None if mixed is None else mixed + total.unsqueeze(1),
    )


class TablePairs(NamedTuple):
    """The repulsion on a padded table of neighbours, N atoms with W places, and what the network sees of them.

    ratio, rate : [N,W], as of `ShortEdges`. energy : [N] float64, eV, shares of atoms.
    gradient : [N,W,3] eV/Angstrom, by the vectors of the places.
    """

    ratio: Tensor
    rate: Tensor
    energy: Tensor
    gradient: Tensor


def repel_table(
    vec: Tensor, numbers: Tensor, neighbors: Tensor, full: Tensor, tables: PairTables, cutoff: float, share: float
) -> TablePairs:
    """Return the repulsion on a table in plain operations without a choice of rows, as an export needs.

    vec : [N,W,3] Angstrom. numbers : [N]. neighbors : [N,W] senders. full : [N,W], places that hold an edge.
    share : of the slope of a pair's energy in the gradient: 0.5 by each place, 1 where a place stands for its pair.
    """
    flat = neighbors.reshape(-1)
    distance = torch.sqrt((vec * vec).sum(2)).clamp(min=_SHORTEST)

    def of_pairs(values: Tensor) -> tuple[Tensor, Tensor]:
        return values.unsqueeze(1), values.index_select(0, flat).view(neighbors.shape)

    reach, power = (own + other for own, other in (of_pairs(table.index_select(0, numbers)) for table in tables))
    z_i, z_j = of_pairs(numbers.to(vec.dtype))
    energy, slope = repel(distance, reach, z_i * z_j, power, cutoff)
    seen, rate = floor_distance(distance, reach)
    of_atoms = 0.5 * torch.where(full, energy, 0).double().sum(1)
    along = share * torch.where(full, slope, 0) / distance
    return TablePairs(seen / distance, rate, of_atoms, vec * along.unsqueeze(2))
