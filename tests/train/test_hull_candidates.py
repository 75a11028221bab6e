"""A training keeps, by source, the lowest labelled structure of each reduced formula as a candidate for a hull."""

from __future__ import annotations

from collections import Counter
from math import gcd

import numpy as np

from atomsieve.stability.candidates import read_stored_candidates
from atomsieve.structures import open_structures
from atomsieve.train.run import train


def formula(numbers):
    counts = Counter(numbers.tolist())
    divisor = gcd(*counts.values())
    return tuple(sorted((z, n // divisor) for z, n in counts.items()))


def test_the_lowest_of_each_formula_is_kept(small, data_file):
    config = small(budget={"steps": 2})
    gfm = train(config).gfm
    with open_structures(data_file) as reader:
        batch, names = reader.read(0, len(reader)), [source.name for source in reader.sources]
    found = {name: read_stored_candidates(gfm, name) for name in names}
    assert any(kept is not None for kept in found.values())
    for head, name in enumerate(names):
        kept = found[name]
        if kept is None:
            continue
        lowest: dict[tuple, float] = {}
        for k in np.flatnonzero((batch.head == head) & batch.has_energy):
            own = batch.numbers[batch.ptr[k] : batch.ptr[k + 1]]
            lowest[formula(own)] = min(lowest.get(formula(own), np.inf), batch.energy[k] / len(own))
        formulas = [formula(kept.numbers[kept.ptr[k] : kept.ptr[k + 1]]) for k in range(len(kept))]
        assert len(set(formulas)) == len(formulas) and set(formulas) <= set(lowest)
        per_atom = kept.energy / kept.counts
        assert all(
            e >= lowest[f] - 1e-6 for e, f in zip(per_atom, formulas, strict=True)
        )  # test structures are kept out
