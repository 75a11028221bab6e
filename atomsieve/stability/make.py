"""Makes the reference set of a head: elements and competing phases, all computed by the ensemble itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError, UsageError
from atomsieve.predict.interface import AnyPredictor
from atomsieve.predict.packing import pack
from atomsieve.predict.status import Status
from atomsieve.stability.candidates import find_lowest, hash_reduced
from atomsieve.stability.phases import Compositions, ReferenceSet, count_compositions
from atomsieve.stability.prototypes import list_prototypes
from atomsieve.structures import StructureBatch
from atomsieve.uncertainty.head_mixture import AUTO

Relax = Callable[[StructureBatch, bool], StructureBatch]
"""Relaxes structures by the head; the flag asks for cells too. Structures without a result stay as they are."""
VOLUMES = (0.6, 1.67)
"""Of a relaxed cell over its first volume; an element beyond is taken as it was given: its crystal did not survive."""
ATOMS, EDGES = 4_000, 400_000
"""Of a batch."""


@dataclass(frozen=True)
class Made:
    """A reference set, and what people should know about it.

    failed : candidates without a result. missing : elements of the head that have no reference.
    outside : elements whose reference lies outside of the domain of the head. kept_cells : prototypes whose relaxed
    volume was refused.
    """

    references: ReferenceSet
    failed: int
    missing: list[int]
    outside: list[int]
    kept_cells: list[str]


@dataclass(frozen=True)
class Evaluated:
    """Structures with their energies, eV/atom; NaN without a result."""

    batch: StructureBatch
    energy: NDArray[np.float64]
    deviation: NDArray[np.float32]
    in_domain: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.energy)


def make_references(
    predictor: AnyPredictor,
    head: str,
    weights: str,
    candidates: StructureBatch | None,
    relax: Relax,
    *,
    level: str = "",
    relax_phases: bool = False,
    origin: str = "data",
) -> Made:
    """Compute the reference set of a head.

    candidates : structures for the hull, None for elements alone. weights : SHA-256 of the ensemble's weights.
    relax : relaxes structures by this head. relax_phases : relax the candidates, too; prototypes always are.

    The elements are those that the head was trained on: their crystals among the candidates, and standard prototypes,
    relaxed with cell; the lowest counts.

    Raises
    ------
    UsageError
        for the mixture of heads, whose energies of two compositions may be of two levels of theory.
    AtomSieveError
        if no structure has a result.
    """
    if head == AUTO:
        raise UsageError(
            "the head auto mixes levels of theory by composition, so energies of different compositions make no hull; "
            "name one head"
        )
    parts, names, origins, failed = [], [], [], 0
    if candidates is not None and len(candidates):
        found = evaluate(predictor, head, relax(candidates, True) if relax_phases else candidates)
        keys = hash_reduced(count_compositions(found.batch.ptr, found.batch.numbers))
        failed = int(np.isnan(found.energy).sum())
        parts.append(_take(found, find_lowest(keys, found.energy)))
        names += _name_phases(parts[0].batch)
        origins += [origin] * len(parts[0])
    symbols = [chemical_symbols[z] for z in predictor.elements(head) if 0 < z < len(chemical_symbols)]
    known = [(name, atoms) for symbol in symbols for name, atoms in list_prototypes(symbol)]
    crystals, refused = _relax_prototypes(
        predictor, head, StructureBatch.from_ase([atoms for _, atoms in known]), relax
    )
    good = np.flatnonzero(np.isfinite(crystals.energy))
    parts.append(_take(crystals, good))
    names += [known[k][0] for k in good.tolist()]
    origins += ["prototype"] * len(good)
    if not names:
        raise AtomSieveError(f"no structure has a result by head {head}: it has no references")
    batches = [part.batch for part in parts]
    compositions = _join([count_compositions(batch.ptr, batch.numbers) for batch in batches])
    references = ReferenceSet(
        head=head,
        level=level,
        weights=weights,
        precision=predictor.precision,
        relaxed=relax_phases,
        compositions=compositions,
        energy=np.concatenate([part.energy for part in parts]),
        deviation=np.concatenate([part.deviation for part in parts]),
        in_domain=np.concatenate([part.in_domain for part in parts]),
        names=tuple(names),
        origins=tuple(origins),
    )
    elements = references.elements
    missing = [z for z in predictor.elements(head) if z not in elements]
    outside = sorted(z for z, k in elements.items() if not references.in_domain[k])
    return Made(references, failed, missing, outside, [known[k][0] for k in refused])


def evaluate(predictor: AnyPredictor, head: str, batch: StructureBatch) -> Evaluated:
    """Return the energies of structures by one head and by each of its members."""
    from atomsieve.graphs.estimate import edge_budget_estimate

    n, many = len(batch), predictor.members
    energy, deviation = np.full(n, np.nan), np.zeros((n, many), np.float32)
    in_domain = np.zeros(n, bool)
    asked = {"energy", "spread"} | ({"energy_members"} if many > 1 else set())
    if many > 1 and "energy_members" not in predictor.capabilities.outputs:
        raise AtomSieveError("the predictor gives no energies of single members; references need them")
    bare = batch.replace(energy=None)
    for group in pack(edge_budget_estimate(bare, predictor.cutoff), bare.counts, ATOMS, EDGES):
        part = bare.take(group)
        found = predictor(part, asked, head=head)
        atoms, ok = np.maximum(part.counts, 1), found.status == Status.OK
        energy[group] = np.where(ok, found.energy / atoms, np.nan)
        in_domain[group] = found.in_domain
        if found.energy_members is not None:
            apart = ((found.energy_members - found.energy) / atoms).T
            deviation[group] = np.where(ok[:, None], apart, 0.0)
    return Evaluated(batch, energy, deviation, in_domain)


def _relax_prototypes(
    predictor: AnyPredictor, head: str, batch: StructureBatch, relax: Relax
) -> tuple[Evaluated, list[int]]:
    """Return prototypes relaxed, molecules in their box; and those whose relaxed cell was refused."""
    molecules = np.abs(np.linalg.det(batch.cell)) / batch.counts > 500.0
    order = np.concatenate([np.flatnonzero(~molecules), np.flatnonzero(molecules)])
    parts = [
        relax(batch.take(np.flatnonzero(chosen)), cell)
        for chosen, cell in ((~molecules, True), (molecules, False))
        if chosen.any()
    ]
    relaxed = StructureBatch.concatenate([part.replace(energy=None) for part in parts]).take(np.argsort(order))
    first, second = evaluate(predictor, head, batch), evaluate(predictor, head, relaxed)
    ratio = np.abs(np.linalg.det(relaxed.cell)) / np.abs(np.linalg.det(batch.cell))
    whole = np.isfinite(second.energy) & (ratio >= VOLUMES[0]) & (ratio <= VOLUMES[1])
    best = Evaluated(
        batch,
        np.where(whole, second.energy, first.energy),
        np.where(whole[:, None], second.deviation, first.deviation),
        np.where(whole, second.in_domain, first.in_domain),
    )
    return best, np.flatnonzero(~whole & np.isfinite(first.energy)).tolist()


def _take(found: Evaluated, index: NDArray[np.int64]) -> Evaluated:
    return Evaluated(found.batch.take(index), found.energy[index], found.deviation[index], found.in_domain[index])


def _join(parts: Sequence[Compositions]) -> Compositions:
    ends = np.cumsum([0, *(int(part.ptr[-1]) for part in parts)])
    ptr = np.concatenate([[0], *(part.ptr[1:] + end for part, end in zip(parts, ends, strict=False))])
    return Compositions(
        ptr.astype(np.int64),
        np.concatenate([part.element for part in parts]),
        np.concatenate([part.count for part in parts]),
    )


def _name_phases(batch: StructureBatch) -> list[str]:
    """Return the formula of each structure, with its id."""
    c = count_compositions(batch.ptr, batch.numbers)
    out = []
    for k, identity in enumerate(batch.id.tolist()):
        own = slice(int(c.ptr[k]), int(c.ptr[k + 1]))
        counts = c.count[own] // np.gcd.reduce(c.count[own])
        symbols = sorted(
            (chemical_symbols[z] if z < len(chemical_symbols) else f"[{z}]", n)
            for z, n in zip(c.element[own].tolist(), counts.tolist(), strict=True)
        )
        out.append("".join(s + (str(n) if n > 1 else "") for s, n in symbols) + f" #{identity}")
    return out
