"""Sizes of the labels of each source: the network's output is multiplied by them, its errors are divided by them.

An error divided by the mean size of the label is 1 for the trivial prediction (element references alone, zero forces)
whatever the source. Taken literally, that starves some sources: the gradient by the network's output is output scale /
size, so a liquid (3 meV/atom from a network that works in eV) would pull a hundred times harder on the shared encoder
than crystals of many elements (1 eV/atom). And where labels are almost zero (forces of relaxed crystals), the quickest
way down is a head whose output is constant, from which training does not recover. So sizes are kept within stated parts
of the output scale: all sources pull alike within a small factor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError
from atomsieve.models.config import HeadSpec
from atomsieve.train.config import LossSection
from atomsieve.train.data.catalog import Catalog
from atomsieve.train.data.references import ElementReferences, composition_energy, fit_around, fit_together

SMALLEST_SCALE = 1.0
"""eV: energies of atoms differ by about this much between environments, even where a source shows only relaxed ones."""


@dataclass(frozen=True)
class HeadData:
    """References, sizes and statistics from the training part of one source.

    Attributes
    ----------
    references : element references, fitted on the training part only.
    energy_size : eV per atom, divides energy errors: mean |residual energy per atom|, kept in range.
    force_size : eV/Angstrom, divides force errors: mean force norm, kept in range.
    force_rms : eV/Angstrom, root mean square of force components, NaN without forces.
    output_scale : eV, factor of the network's output per atom.
    """

    name: str
    level_of_theory: str
    references: ElementReferences
    energy_size: float
    force_size: float
    force_rms: float
    stress_size: float
    output_scale: float
    statistics: dict[str, Any]

    def spec(self) -> HeadSpec:
        """Return the head's description for the model."""
        return HeadSpec(
            name=self.name,
            level_of_theory=self.level_of_theory,
            references=self.references.energies,
            scale=self.output_scale,
            elements=self.references.counts,
            statistics=self.statistics,
        )


@dataclass(frozen=True)
class ForceSums:
    """Sums over the training part of one source: atoms with forces, sum of norms, of squares, of |components|."""

    atoms: int = 0
    norm: float = 0.0
    square: float = 0.0
    absolute: float = 0.0
    stresses: int = 0
    stress: float = 0.0


def residual_energy(catalog: Catalog, heads: list[HeadData]) -> NDArray[np.float64]:
    """Return energy minus element references, [S] eV; NaN where there is no energy or an element is new to the head."""
    table = np.stack([h.references.table() for h in heads])
    seen = np.stack([np.isin(np.arange(table.shape[1]), list(h.references.energies)) for h in heads])
    out = np.full(len(catalog), np.nan)
    for head in range(len(heads)):
        own = np.flatnonzero(catalog.head == head)
        composition = catalog.composition[own].astype(np.int64)
        value = catalog.energy[own] - composition @ table[head]
        value[(composition[:, ~seen[head]] > 0).any(1)] = np.nan
        out[own] = value
    return out


def describe_heads(
    catalog: Catalog, train: NDArray[np.bool_], forces: list[ForceSums], loss: LossSection
) -> list[HeadData]:
    """Fit references and sizes of every source on its training part; energies of free atoms that were asked for stay.

    Sources that share one fit of references have its energies, of the elements that each of them holds.

    Raises
    ------
    DataError
        if a source has no training structure with an energy.
    """
    heads: list[HeadData] = []
    common = _fit_common_references(catalog, train)
    for head, name in enumerate(catalog.sources):
        own = train & (catalog.head == head)
        labelled = own & catalog.has_energy
        if not labelled.any():
            raise DataError(
                f"source {name!r} has no training structure with an energy ({int(own.sum())} after cleaning and "
                "splitting); every head needs some"
            )
        counts = catalog.composition[labelled].astype(np.int64)
        references = fit_around(counts, catalog.energy[labelled], catalog.free_atoms.get(name, {}))
        if name in common:
            references = replace(references, energies={z: common[name][z] for z in references.energies})
        n_atoms = catalog.n_atoms[labelled]
        residual = (catalog.energy[labelled] - composition_energy(counts, references)) / n_atoms
        heads.append(_head_data(catalog, head, own, references, residual, forces[head], loss))
    return heads


def _fit_common_references(catalog: Catalog, train: NDArray[np.bool_]) -> dict[str, dict[int, float]]:
    """Return the element energies, eV by atomic number, of the sources whose references are fitted together."""
    out: dict[str, dict[int, float]] = {}
    for names in catalog.together:
        own = train & catalog.has_energy & np.isin(catalog.head, [catalog.sources.index(name) for name in names])
        if own.any():
            found = fit_together(catalog.composition[own].astype(np.int64), catalog.energy[own])
            out |= dict.fromkeys(names, found.energies)
    return out


def check_conditions(catalog: Catalog) -> None:
    """Raise if a structure states no charge or no multiplicity: a model that is conditioned on them needs both.

    Raises
    ------
    DataError
        naming the source with the most of them, and how to state them.
    """
    missing = ~(np.isfinite(catalog.charge) & np.isfinite(catalog.spin))
    if missing.any():
        counts = np.bincount(catalog.head[missing], minlength=len(catalog.sources))
        worst = int(counts.argmax())
        raise DataError(
            f"{counts[worst]:,} structures of source {catalog.sources[worst]!r} state no charge or no multiplicity, "
            "and model.charge_spin needs both of every structure; convert them with --charge and --spin for those that "
            "state none, or train without charge_spin"
        )


def _describe_conditions(catalog: Catalog, own: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the ranges of charge and multiplicity, and whether they always fit the electrons of molecules.

    Nothing where not every structure of a source states both.
    """
    charge, spin = catalog.charge[own], catalog.spin[own]
    if not (np.isfinite(charge).all() and np.isfinite(spin).all()):
        return {}
    protons = catalog.composition[own] @ np.arange(catalog.composition.shape[1], dtype=np.float64)
    molecules = np.isnan(catalog.volume[own])
    fits = np.mod(protons - charge + spin, 2) == 1
    return {
        "charge_range": [float(charge.min()), float(charge.max())],
        "spin_range": [float(spin.min()), float(spin.max())],
        "spin_fits_electrons": bool(fits[molecules].all() and (charge == np.round(charge)).all()),
    }


def _head_data(
    catalog: Catalog,
    head: int,
    own: NDArray[np.bool_],
    references: ElementReferences,
    residual: NDArray[np.float64],
    sums: ForceSums,
    loss: LossSection,
) -> HeadData:
    energy_mae = float(np.abs(residual).mean())
    energy_std = float(residual.std())
    force_mean = sums.norm / sums.atoms if sums.atoms else float("nan")
    force_rms = float(np.sqrt(sums.square / (3 * sums.atoms))) if sums.atoms else float("nan")
    scale = max(energy_std, 0.0 if np.isnan(force_rms) else force_rms, SMALLEST_SCALE)
    low, high = loss.energy_range
    shortest = float(catalog.shortest[own].min())
    statistics = {
        "train_structures": int(own.sum()),
        "train_atoms": int(catalog.n_atoms[own].sum()),
        "structures_with_forces": int((own & catalog.has_forces).sum()),
        "residual_energy_per_atom_mae": energy_mae,
        "residual_energy_per_atom_std": energy_std,
        "force_norm_mean": None if np.isnan(force_mean) else force_mean,
        "force_component_rms": None if np.isnan(force_rms) else force_rms,
        "inseparable_elements": references.inseparable,
        "shortest_distance": shortest if np.isfinite(shortest) else 0.0,
        **_describe_conditions(catalog, own),
    }
    return HeadData(
        name=catalog.sources[head],
        level_of_theory=catalog.levels[head],
        references=references,
        energy_size=float(np.clip(energy_mae, low * scale, high * scale)),
        force_size=float(np.fmax(force_mean, loss.force_floor * scale)),
        force_rms=force_rms,
        stress_size=max(sums.stress / max(sums.stresses, 1), 1e-4),
        output_scale=scale,
        statistics=statistics,
    )
