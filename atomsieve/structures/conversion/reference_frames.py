"""Takes frames of free atoms out of the samples, as element references of their source."""

from __future__ import annotations

import numpy as np

from atomsieve.structures.block import SourceColumn
from atomsieve.structures.conversion.validation import ConversionCounts, ValidBlock

ENERGY_KEYS = ("E0", "e0")
"""Where such a frame may state the energy of its atom, if it has no energy."""
KEPT = 10_000
"""Different energies that are kept; further frames stay samples."""


def take_references(
    valid: ValidBlock, sources: SourceColumn, counts: ConversionCounts, units_energy: float = 1.0
) -> tuple[ValidBlock, SourceColumn]:
    """Take free atoms with an energy out of a block, and count their energies by source and element.

    units_energy : eV per unit of energy of the block, for energies under `ENERGY_KEYS`.
    """
    from ase.data import chemical_symbols

    batch, block = valid.batch, valid.block
    stays = np.ones(len(batch), bool)
    for k in np.flatnonzero(valid.free).tolist():
        energy = None
        if batch.energy is not None and batch.has_energy is not None and batch.has_energy[k]:
            energy = float(batch.energy[k])
        else:
            values = [valid.values_of(key)[k] for key in ENERGY_KEYS if key in block.info]
            energy = next((float(v) * units_energy for v in values if isinstance(v, int | float)), None)
        source = sources[k]
        if energy is None or source is None or len(counts.references) >= KEPT:
            continue
        counts.references[source.name, chemical_symbols[int(batch.numbers[batch.ptr[k]])], energy] += 1
        stays[k] = False
    if stays.all():
        return valid, sources
    for name in ("energy", "forces", "stress"):
        has = getattr(batch, f"has_{name}")
        counts.labels[name] -= 0 if has is None else int(has[~stays].sum())
    rows = np.flatnonzero(stays)
    left = ValidBlock(batch.take(rows), block, valid.kept[rows], valid.free[rows])
    return left, SourceColumn(sources.known, sources.numbers[rows])
