"""Element references of one source: the part of a total energy that the composition alone explains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError
from atomsieve.structures import StructureBatch

MAX_Z = 119
RANK_TOLERANCE = 1e-6
"""Singular values below this part of the largest count as zero: their direction cannot be told from the data."""
REWEIGHTINGS = 40
SMALL_RESIDUAL = 0.05
"""eV/atom below which the robust fit counts a residual by its square."""
PULL = 0.04
"""1/eV: a structure of one element 1 eV/atom away from its reference outweighs the prior 25 times in the robust fit."""


@dataclass(frozen=True)
class ElementReferences:
    """Per-element energies of one source.

    Attributes
    ----------
    energies : eV per atom of each element seen; elements never seen are left out.
    counts : atoms of each element seen.
    rank : how many independent element combinations the compositions determine.
    inseparable : one line for each combination of elements that the data cannot separate (its share of the energy is
        set by the prior, the mean energy per atom).
    """

    energies: dict[int, float]
    counts: dict[int, int]
    rank: int
    inseparable: list[str]

    def table(self) -> NDArray[np.float64]:
        """Return the energies as a table [119] eV by atomic number, zero for an element never seen."""
        table = np.zeros(MAX_Z)
        table[list(self.energies)] = list(self.energies.values())
        return table


def count_elements(batch: StructureBatch) -> NDArray[np.int64]:
    """Return atoms of each element per structure, [S,119]."""
    flat = batch.structure_of_atom * MAX_Z + batch.numbers
    return np.bincount(flat, minlength=batch.n_structures * MAX_Z).reshape(batch.n_structures, MAX_Z)


def composition_energy(counts: NDArray[np.int64], references: ElementReferences) -> NDArray[np.float64]:
    """Return the reference energy [S] eV of structures with element counts [S,119]."""
    return np.asarray(counts @ references.table(), np.float64)


def _describe(direction: NDArray[np.float64], symbols: list[str]) -> str:
    """Write a null direction as a readable combination, largest part first."""
    scaled = direction / np.abs(direction).max()
    order = [int(k) for k in np.argsort(-np.abs(scaled), kind="stable") if abs(scaled[k]) > 0.01]
    terms = [f"{scaled[k]:+.2g} {symbols[k]}" for k in order[:6]]
    return " ".join(terms) + (f" ... ({len(order)} elements)" if len(order) > 6 else "")


def _sparse_null_space(vt_null: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a basis [d,n] of the same space whose rows touch few elements each (Gauss-Jordan with full pivoting)."""
    rows = vt_null.copy()
    for k in range(len(rows)):
        r, c = np.unravel_index(np.abs(rows[k:]).argmax(), rows[k:].shape)
        rows[[k, k + int(r)]] = rows[[k + int(r), k]]
        rows[k] /= rows[k, c]
        for other in range(len(rows)):
            if other != k:
                rows[other] -= rows[other, c] * rows[k]
    return rows


def fit_around(
    counts: NDArray[np.int64], energy: NDArray[np.float64], free_atoms: Mapping[int, float]
) -> ElementReferences:
    """Return the energies of free atoms as references, and fit those of elements without one to what is left.

    counts : [S,119] atoms of each element. energy : [S] eV, total energies. free_atoms : eV by atomic number.

    Raises
    ------
    DataError
        if there is no structure, or an energy is not finite.
    """
    counts, energy = np.asarray(counts), np.asarray(energy, np.float64)
    known = [z for z in np.flatnonzero(counts.sum(0)).tolist() if z in free_atoms]
    if not known:
        return fit_references(counts, energy)
    fixed = {z: float(free_atoms[z]) for z in known}
    numbers = {z: int(counts[:, z].sum()) for z in known}
    rest = counts.copy()
    rest[:, known] = 0
    if not rest.any():
        return ElementReferences(fixed, numbers, len(known), [])
    fitted = fit_references(rest, energy - counts[:, known] @ np.array(list(fixed.values())))
    return ElementReferences(
        dict(sorted({**fixed, **fitted.energies}.items())),
        dict(sorted({**numbers, **fitted.counts}.items())),
        len(known) + fitted.rank,
        fitted.inseparable,
    )


def fit_together(counts: NDArray[np.int64], energy: NDArray[np.float64]) -> ElementReferences:
    """Fit element energies that several sources have in common, by the absolute error of the energy per atom.

    Sources of one kind differ in what they hold: relaxed crystals in one, crystals under pressure in the next. Least
    squares would let the structures farthest from equilibrium decide. Iteratively reweighted least squares minimises
    the sum of absolute residuals (of squares below `SMALL_RESIDUAL`), and elements of few structures are pulled towards
    the mean energy per atom by `PULL`.

    counts : [S,119] atoms of each element. energy : [S] eV, total energies.

    Raises
    ------
    DataError
        if there is no structure, or an energy is not finite.
    """
    plain = fit_references(counts, energy)
    n_atoms = np.asarray(counts).sum(1)
    usable = n_atoms > 0
    seen = list(plain.energies)
    fractions = np.asarray(counts)[usable][:, seen] / n_atoms[usable, None]
    per_atom = np.asarray(energy, np.float64)[usable] / n_atoms[usable]
    prior = float(np.median(per_atom))
    shift, weight = np.zeros(len(seen)), np.ones(len(per_atom))
    for _ in range(REWEIGHTINGS):
        # the pull as further rows, solved as they are: the Gram matrix would lose half the digits
        rows = np.vstack([np.sqrt(weight)[:, None] * fractions, np.sqrt(PULL) * np.eye(len(seen))])
        goal = np.concatenate([np.sqrt(weight) * (per_atom - prior), np.zeros(len(seen))])
        shift = np.linalg.lstsq(rows, goal, rcond=None)[0]
        weight = 1.0 / np.maximum(np.abs(per_atom - prior - fractions @ shift), SMALL_RESIDUAL)
    energies = {z: prior + float(d) for z, d in zip(seen, shift, strict=True)}
    return replace(plain, energies=energies)


def fit_references(counts: NDArray[np.int64], energy: NDArray[np.float64]) -> ElementReferences:
    """Fit element energies by least squares of the energy per atom over element fractions.

    Around the mean energy per atom as the prior, the minimum-norm solution is taken through the singular value
    decomposition, so absent elements cost nothing and collinear ones (H and O in pure water) share alike.

    counts : [S,119] atoms of each element.
    energy : [S] eV, total energies.

    Raises
    ------
    DataError
        if there is no structure, or an energy is not finite.
    """
    from ase.data import chemical_symbols

    counts, energy = np.asarray(counts), np.asarray(energy, np.float64)
    n_atoms = counts.sum(1)
    usable = n_atoms > 0
    counts, energy, n_atoms = counts[usable], energy[usable], n_atoms[usable]
    if len(energy) == 0:
        raise DataError("element references need at least one structure with an energy, got none")
    if not np.isfinite(energy).all():
        raise DataError(f"element references need finite energies; {np.sum(~np.isfinite(energy))} are not")
    seen = np.flatnonzero(counts.sum(0))
    fractions = counts[:, seen] / n_atoms[:, None]
    per_atom = energy / n_atoms
    prior = float(per_atom.mean())
    # The Gram matrix would square the condition number: decompose the R factor of the fractions instead.
    q, r = np.linalg.qr(fractions)
    u, sigma, vt = np.linalg.svd(r, full_matrices=True)
    rank = int(np.sum(sigma > RANK_TOLERANCE * sigma[0]))
    projected = u.T @ (q.T @ (per_atom - prior))
    shift = vt[:rank].T @ (projected[:rank] / sigma[:rank])
    symbols = [chemical_symbols[z] for z in seen]
    null = _sparse_null_space(vt[rank:])
    return ElementReferences(
        energies={int(z): prior + float(d) for z, d in zip(seen, shift, strict=True)},
        counts={int(z): int(n) for z, n in zip(seen, counts[:, seen].sum(0), strict=True)},
        rank=rank,
        inseparable=[_describe(row, symbols) for row in null],
    )
