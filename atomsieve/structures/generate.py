"""Makes candidate structures: random boxes, substitution into prototypes, rattled and strained copies.

Structures come in fixed blocks of 1000; block b is a function of the generator, the seed and b alone (a counter-based
Philox stream keyed by seed and b). So structure k is the same whatever is asked for at a time and however many ranks
share the work.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import UsageError
from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.interface import StructureReader

BLOCK = 1000
"""Structures per block; part of the definition of what a seed gives."""
LARGEST_PARENTS = 50_000_000
"""Atoms of prototypes that may be held in memory."""


@dataclass(frozen=True)
class StructureGenerator(ABC):
    """How to make structures. `charge` and `spin` are written to every structure; None writes neither."""

    charge: float | None = field(default=None, kw_only=True)
    spin: float | None = field(default=None, kw_only=True)

    @abstractmethod
    def _draw(self, rng: np.random.Generator) -> StructureBatch:
        """Return one block of structures; their ids are set later."""

    def block(self, number: int, seed: int) -> StructureBatch:
        """Return block `number`: structures `BLOCK*number` to `BLOCK*(number+1)`, with these numbers as ids."""
        if not 0 <= seed < 2**63:
            raise UsageError(f"the seed must be from 0 to 2^63-1, got {seed}")
        rng = np.random.Generator(np.random.Philox(key=np.array([seed, number], np.uint64)))
        batch = self._draw(rng)
        changes = {"id": np.arange(BLOCK * number, BLOCK * (number + 1), dtype=np.int64)}
        for name, value in (("charge", self.charge), ("spin", self.spin)):
            if value is not None:
                changes[name] = np.full(len(batch), value, np.float32)
        return batch.replace(**changes)


def generate(generator: StructureGenerator, start: int, stop: int, seed: int = 0) -> Iterator[StructureBatch]:
    """Yield structures `start:stop` of a generator, at most one block at a time."""
    if not 0 <= start <= stop:
        raise UsageError(f"structures {start}:{stop} were asked for")
    for number in range(start // BLOCK, -(-stop // BLOCK)):
        first = number * BLOCK
        block = generator.block(number, seed)
        yield block.slice(max(start - first, 0), min(stop - first, BLOCK))


def _check(name: str, value: float, low: float, high: float = np.inf) -> None:
    if not low <= value <= high:
        raise UsageError(f"{name} must be from {low:g} to {high:g}, got {value:g}")


# -- random boxes --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RandomBoxes(StructureGenerator):
    """The workload of HydraGNN's screening runs: atoms thrown into an open box. Unphysical; for measuring speed.

    n atoms, uniform from `min_atoms` to `max_atoms`; atomic numbers uniform from 1 to `max_number`; positions uniform
    in a cube of `box` Angstrom; not periodic. HydraGNN gives the model charge 0 and spin 0.
    """

    min_atoms: int = 2
    max_atoms: int = 500
    max_number: int = 94
    box: float = 10.0

    def __post_init__(self) -> None:
        _check("min-atoms", self.min_atoms, 1)
        _check("max-atoms", self.max_atoms, self.min_atoms)
        _check("max-number", self.max_number, 1, 118)
        _check("box", self.box, 0)

    def _draw(self, rng: np.random.Generator) -> StructureBatch:
        counts = rng.integers(self.min_atoms, self.max_atoms, BLOCK, endpoint=True)
        atoms = int(counts.sum())
        return StructureBatch(
            ptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            numbers=rng.integers(1, self.max_number, atoms, np.uint8, endpoint=True),
            positions=rng.random((atoms, 3)) * self.box,
            cell=np.zeros((BLOCK, 3, 3)),
            pbc=np.zeros((BLOCK, 3), bool),
            id=np.zeros(BLOCK, np.int64),
        )


# -- from parents --------------------------------------------------------------------------------------------------


def load_parents(parents: StructureBatch | StructureReader) -> StructureBatch:
    """Return parents as one batch without labels, without empty structures.

    Raises
    ------
    UsageError
        if there are none, or more than fit in memory.
    """
    if not isinstance(parents, StructureBatch):
        if parents.n_atoms > LARGEST_PARENTS:
            raise UsageError(
                f"{parents.path} has {parents.n_atoms:,} atoms, at most {LARGEST_PARENTS:,} are held in memory; choose "
                "some with 'atomsieve data export'"
            )
        parents = parents.read(0, len(parents), fields=["charge", "spin"])
    kept = {name: getattr(parents, name) for name in ("ptr", "numbers", "positions", "cell", "pbc", "id")}
    batch = StructureBatch(**kept, charge=parents.charge, spin=parents.spin)
    batch = batch.take(np.flatnonzero(batch.counts > 0))
    if not len(batch):
        raise UsageError("there are no structures to start from")
    return batch.replace(positions=batch.positions.astype(np.float64))


@dataclass(frozen=True)
class Rattled(StructureGenerator):
    """Copies of parents, drawn uniformly, with normal displacements and homogeneous strain.

    `rattle` is the standard deviation of each coordinate in Angstrom. `strain` is the largest component of a symmetric
    strain tensor with independent uniform components; structures without periodicity are not strained.
    """

    parents: StructureBatch
    rattle: float = 0.05
    strain: float = 0.0

    def __post_init__(self) -> None:
        _check("rattle", self.rattle, 0, 10)
        _check("strain", self.strain, 0, 0.5)

    def _draw(self, rng: np.random.Generator) -> StructureBatch:
        chosen = rng.integers(0, len(self.parents), BLOCK)
        return _displace(rng, self.parents.take(chosen), self.rattle, self.strain)


def _displace(rng: np.random.Generator, batch: StructureBatch, rattle: float, strain: float) -> StructureBatch:
    """Return the batch strained and rattled; random numbers are drawn in any case, so that options do not interact."""
    tensor = np.zeros((BLOCK, 3, 3))
    i, j = np.triu_indices(3)
    tensor[:, i, j] = rng.uniform(-1, 1, (BLOCK, 6))
    tensor[:, j, i] = tensor[:, i, j]
    moves = rng.standard_normal((batch.n_atoms, 3))
    periodic = np.any(batch.pbc, axis=1).astype(np.float64)
    deformation = np.eye(3) + strain * tensor * periodic[:, None, None]
    positions = np.einsum("ni,nij->nj", batch.positions, deformation[batch.structure_of_atom])
    return batch.replace(positions=positions + rattle * moves, cell=batch.cell @ deformation)


@dataclass(frozen=True)
class Substituted(StructureGenerator):
    """Prototypes, drawn uniformly, with their elements replaced by others, then rattled and strained on request.

    With `by="species"` every element of the prototype becomes one new element, different ones different where the list
    is long enough; with `by="sites"` every atom is drawn for itself. All draws are uniform over `elements`. Atoms of
    the elements `keep` stay. With `scale_volume`, periodic structures are scaled by the cube root of the ratio of the
    sums of cubed covalent radii, new over old.
    """

    prototypes: StructureBatch
    elements: tuple[int, ...]
    keep: tuple[int, ...] = ()
    by: str = "species"
    scale_volume: bool = True
    rattle: float = 0.0
    strain: float = 0.0

    def __post_init__(self) -> None:
        _check("rattle", self.rattle, 0, 10)
        _check("strain", self.strain, 0, 0.5)
        if self.by not in ("species", "sites"):
            raise UsageError(f"substitution goes by species or sites, got {self.by!r}")
        if not self.elements:
            raise UsageError("name at least one element to substitute")
        for number in (*self.elements, *self.keep):
            _check("atomic number", number, 1, 118)

    @cached_property
    def _species(self) -> NDArray[np.int64]:
        """For each atom of the prototypes: which of its structure's replaceable elements it is, -1 where it stays."""
        batch = self.prototypes
        code = batch.structure_of_atom * 256 + batch.numbers.astype(np.int64)
        free = ~np.isin(batch.numbers, self.keep)
        present, place = np.unique(code[free], return_inverse=True)
        first = np.searchsorted(present, np.arange(len(batch), dtype=np.int64) * 256)
        out = np.full(batch.n_atoms, -1, np.int64)
        out[free] = place - first[batch.structure_of_atom[free]]
        return out

    def _draw(self, rng: np.random.Generator) -> StructureBatch:
        from ase.data import covalent_radii

        chosen = rng.integers(0, len(self.prototypes), BLOCK)
        # The species of each atom travel through `take` in the place of the numbers.
        batch = self.prototypes.take(chosen)
        species = self.prototypes.replace(numbers=(self._species + 1).astype(np.uint8)).take(chosen).numbers
        listed = np.array(self.elements, np.uint8)
        order = np.argsort(rng.random((BLOCK, len(listed))), axis=1)
        if self.by == "species":
            rank = (species.astype(np.int64) - 1) % len(listed)
            drawn = listed[order[batch.structure_of_atom, rank]]
        else:
            drawn = listed[rng.integers(0, len(listed), batch.n_atoms)]
        numbers = np.where(species > 0, drawn, batch.numbers).astype(np.uint8)
        if self.scale_volume:
            cubes = covalent_radii**3
            owner = batch.structure_of_atom
            ratio = np.bincount(owner, cubes[numbers], BLOCK) / np.bincount(owner, cubes[batch.numbers], BLOCK)
            factor = np.where(batch.pbc.any(axis=1), np.cbrt(ratio), 1.0)
            batch = batch.replace(
                positions=batch.positions * factor[owner, None], cell=batch.cell * factor[:, None, None]
            )
        # The charge of a prototype does not hold for the new composition.
        batch = batch.replace(numbers=numbers, charge=None, spin=None)
        return _displace(rng, batch, self.rattle, self.strain)


def atomic_numbers_of(symbols: Sequence[str]) -> tuple[int, ...]:
    """Return the atomic numbers of element symbols (`Fe`) or numbers (`26`).

    Raises
    ------
    UsageError
        if one is no element, or is named twice.
    """
    from ase.data import atomic_numbers

    from atomsieve.errors import unknown

    known = {symbol: number for symbol, number in atomic_numbers.items() if number >= 1}
    out: list[int] = []
    for symbol in symbols:
        name = symbol.strip()
        if name.isdigit() and 1 <= int(name) <= 118:
            number = int(name)
        elif name in known:
            number = known[name]
        else:
            raise unknown("element", name, known)
        if number in out:
            raise UsageError(f"element {name} is named twice")
        out.append(number)
    return tuple(out)


# -- one batch -----------------------------------------------------------------------------------------------------


def _generate_all(generator: StructureGenerator, n: int, seed: int, start: int) -> StructureBatch:
    return StructureBatch.concatenate(list(generate(generator, start, start + n, seed)))


def generate_random_boxes(
    n: int,
    *,
    seed: int = 0,
    start: int = 0,
    min_atoms: int = 2,
    max_atoms: int = 500,
    max_number: int = 94,
    box: float = 10.0,
    charge: float | None = None,
    spin: float | None = None,
) -> StructureBatch:
    """Return structures `start:start+n` of `RandomBoxes`."""
    generator = RandomBoxes(min_atoms, max_atoms, max_number, box, charge=charge, spin=spin)
    return _generate_all(generator, n, seed, start)


def generate_rattled(
    parents: StructureBatch | StructureReader,
    n: int,
    *,
    rattle: float = 0.05,
    strain: float = 0.0,
    seed: int = 0,
    start: int = 0,
) -> StructureBatch:
    """Return structures `start:start+n` of `Rattled`."""
    return _generate_all(Rattled(load_parents(parents), rattle, strain), n, seed, start)


def generate_substituted(
    prototypes: StructureBatch | StructureReader,
    n: int,
    elements: Sequence[str],
    *,
    keep: Sequence[str] = (),
    by: str = "species",
    scale_volume: bool = True,
    rattle: float = 0.0,
    strain: float = 0.0,
    seed: int = 0,
    start: int = 0,
) -> StructureBatch:
    """Return structures `start:start+n` of `Substituted`; elements are symbols."""
    generator = Substituted(
        load_parents(prototypes), atomic_numbers_of(elements), atomic_numbers_of(keep), by, scale_volume, rattle, strain
    )
    return _generate_all(generator, n, seed, start)
