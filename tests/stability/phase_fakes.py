"""Reference sets of random phases, without a model."""

from __future__ import annotations

import numpy as np

from atomsieve.stability.phases import Compositions, ReferenceSet, count_compositions


def compositions_of(structures) -> Compositions:
    """Return the compositions of structures given as lists of (atomic number, atoms)."""
    numbers = [np.repeat([z for z, _ in s], [n for _, n in s]) for s in structures]
    ptr = np.concatenate([[0], np.cumsum([len(x) for x in numbers])]).astype(np.int64)
    return count_compositions(ptr, np.concatenate(numbers).astype(np.uint8))


def reference_set(structures, energy, deviation=None, head="pbe", **more) -> ReferenceSet:
    n = len(structures)
    return ReferenceSet(
        head=head,
        level="PBE",
        weights="w" * 64,
        precision="fp32",
        relaxed=False,
        compositions=compositions_of(structures),
        energy=np.asarray(energy, np.float64),
        deviation=np.zeros((n, 2), np.float32) if deviation is None else np.asarray(deviation, np.float32),
        in_domain=np.ones(n, bool),
        names=tuple(f"phase {k}" for k in range(n)),
        origins=("data",) * n,
        **more,
    )


def random_structures(rng, elements, n, most=6):
    """Return n structures of 1 to len(elements) of the elements."""
    found = []
    for _ in range(n):
        chosen = rng.choice(elements, rng.integers(1, len(elements) + 1), replace=False)
        found.append([(int(z), int(rng.integers(1, most))) for z in sorted(chosen)])
    return found


def random_set(seed=0, elements=(3, 8, 22, 26), n=60, members=5):
    """Return elements and n random phases, some far below the elements, with energies of each member."""
    rng = np.random.default_rng(seed)
    structures = [[(z, 2)] for z in elements] + random_structures(rng, elements, n)
    pure = dict(zip(elements, rng.normal(-5, 3, len(elements)), strict=True))
    ideal = [sum(pure[z] * k for z, k in s) / sum(k for _, k in s) for s in structures]
    energy = np.array(ideal) + np.where([len(s) > 1 for s in structures], rng.normal(-0.3, 0.5, len(structures)), 0.0)
    deviation = rng.normal(0, 0.1, (len(structures), members))
    return reference_set(structures, energy, deviation - deviation.mean(1, keepdims=True))
