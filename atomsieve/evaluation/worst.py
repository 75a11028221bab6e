"""The structures of a head with the largest errors, and what is odd about each.

Oddities are facts of the structure or its label, not proofs: an element that training hardly saw, surroundings outside
of the domain, atoms too close, forces or energies far from those of the training, a label that all members and the
nearest compositions speak against.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from ase.symbols import Symbols
from numpy.typing import NDArray

from atomsieve.evaluation.error_sets import energy_errors
from atomsieve.evaluation.limits import MILLI
from atomsieve.evaluation.residuals import HeadRows
from atomsieve.graphs import build_graph, shortest_distances
from atomsieve.models.config import HeadSpec
from atomsieve.predict.domain_flags import Outside
from atomsieve.structures import StructureBatch

NUMBER = 5
"""Worst structures of a head and property that are shown."""
RARE = 25
"""Atoms of an element in training below which it counts as rarely seen."""
UNUSUAL = 4.0
"""Standard deviations (energies) or root mean squares (forces) of the training's labels beyond which one is unusual."""
DOUBTFUL = 5.0
"""Standard errors between a label and the prediction from which on the label is doubted."""
TOUCHING = 0.7
"""Part of the sum of covalent radii below which two atoms are called too close."""
SEARCH = 2.5
"""Angstrom within which atoms that are too close are looked for."""
LARGE = 4.0
"""Times the median number of atoms beyond which a structure is called large."""
_SHORT = {
    Outside.UNSEEN_ELEMENT: "an element that training did not have",
    Outside.UNSEEN_PAIR: "a bond of elements never seen bonded in training",
    Outside.SHORT_CONTACT: "atoms closer than training had them",
    Outside.FAR_FROM_TRAINING: "surroundings far from the training data",
    Outside.UNSEEN_CHARGE_OR_SPIN: "a charge or spin that training did not have",
    Outside.UNUSUAL_DENSITY: "a density that training did not have",
    Outside.UNUSUAL_COORDINATION: "more or fewer bonds than in training",
}


def find_worst(
    rows: HeadRows, spec: HeadSpec, fetch: Callable[[NDArray[np.int64]], StructureBatch], number: int = NUMBER
) -> list[dict[str, Any]]:
    """Return the structures with the largest errors of the energy per atom, then those of forces, largest first.

    fetch : gives the structures at positions [W] of the file, in that order.

    Each is a dict: property ("energy" or "force"), position, formula, natoms, error (meV/atom, or mean of the
    components in meV/Angstrom), label and predicted (energies: eV/atom less references; forces: root mean square in
    eV/Angstrom), sigmas (error over its standard error, None uncalibrated), odd (list of words).
    """
    energy, force = _energy_table(rows), _force_table(rows)
    chosen = [
        (kind, int(k))
        for kind, table in (("energy", energy), ("force", force))
        for k in np.argsort(-np.nan_to_num(table["error"], nan=-1.0), kind="stable")[:number]
        if table["error"][k] > 0
    ]
    if not chosen:
        return []
    which = np.unique([k for _, k in chosen])
    batch = fetch(rows.position[which])
    odd = dict(zip(which.tolist(), describe_oddities(batch, which, rows, spec), strict=True))
    formulas = [
        Symbols(batch.numbers[a:b]).get_chemical_formula() for a, b in zip(batch.ptr[:-1], batch.ptr[1:], strict=True)
    ]
    out = []
    for kind, k in chosen:
        table = energy if kind == "energy" else force
        out.append(
            {
                "property": kind,
                "position": int(rows.position[k]),
                "formula": formulas[int(np.searchsorted(which, k))],
                "natoms": int(rows.natoms[k]),
                "error": MILLI * float(table["error"][k]),
                "label": float(table["label"][k]),
                "predicted": float(table["predicted"][k]),
                "sigmas": float(table["sigmas"][k]) if np.isfinite(table["sigmas"][k]) else None,
                "odd": odd[k],
            }
        )
    return out


def _energy_table(rows: HeadRows) -> dict[str, NDArray[np.float64]]:
    """Return |error|, label, prediction, error over standard error [S] of energies per atom; NaN without a result."""
    n = np.maximum(rows.natoms, 1)
    errors, size = energy_errors(rows), len(rows.natoms)
    table = {name: np.full(size, np.nan) for name in ("error", "sigmas")}
    table["error"][errors.structure] = np.abs(errors.error)
    with np.errstate(all="ignore"):
        table["sigmas"][errors.structure] = np.abs(errors.error) / errors.sigma
    return table | {"label": (rows.energy - rows.reference) / n, "predicted": (rows.predicted - rows.reference) / n}


def _force_table(rows: HeadRows) -> dict[str, NDArray[np.float64]]:
    """Return mean |error|, root mean square of label and prediction, error over standard error [S]; NaN without."""
    size, home = len(rows.natoms), rows.atom_structure
    atoms = np.bincount(home, minlength=size)

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(all="ignore"):
            return np.asarray(np.bincount(home, values, size) / atoms)

    error = rows.predicted_force - rows.force
    with np.errstate(all="ignore"):
        sigmas = np.sqrt(mean((error**2).mean(1)) / mean(rows.sigma_force**2))
    return {
        "error": mean(np.abs(error).mean(1)),
        "label": np.sqrt(mean((rows.force**2).mean(1))),
        "predicted": np.sqrt(mean((rows.predicted_force**2).mean(1))),
        "sigmas": sigmas,
    }


def describe_oddities(
    batch: StructureBatch, which: NDArray[np.int64], rows: HeadRows, spec: HeadSpec
) -> list[list[str]]:
    """Return what is odd about each of the structures `which` [W] of the rows; `batch` holds them in that order."""
    energy, force = _energy_table(rows), _force_table(rows)
    shortest, touching = shortest_distances(batch), _find_touching(batch)
    typical = float(np.median(rows.natoms))
    out = []
    for k, row in enumerate(which.tolist()):
        atoms = slice(int(batch.ptr[k]), int(batch.ptr[k + 1]))
        found = _describe_elements(batch.numbers[atoms], spec)
        found += [_SHORT[flag] for flag in Outside if rows.outside[row] & flag and flag != Outside.UNSEEN_ELEMENT]
        found += [touching[k]] if touching[k] else []
        found += _describe_distance(float(shortest[k]), spec) if not touching[k] else []
        if batch.forces is not None and batch.has_forces is not None and batch.has_forces[k]:
            found += _describe_force_labels(batch.forces[atoms], spec)
        found += _describe_energy_label(float(energy["label"][row]), spec)
        found += _describe_doubt(row, energy, rows)
        if force["sigmas"][row] > DOUBTFUL:
            found.append(f"forces {force['sigmas'][row]:.0f} standard errors from the label")
        if rows.natoms[row] > LARGE * typical:
            found.append(f"large: {rows.natoms[row]} atoms, the median is {typical:.0f}")
        out.append(found)
    return out


def _describe_elements(numbers: NDArray[np.uint8], spec: HeadSpec) -> list[str]:
    seen = {int(z): spec.elements.get(int(z), 0) for z in np.unique(numbers)}
    absent = [chemical_symbols[z] for z, n in seen.items() if n == 0]
    rare = [f"{chemical_symbols[z]} ({n} atoms)" for z, n in seen.items() if 0 < n < RARE]
    out = [f"not in training: {', '.join(absent)}"] if absent else []
    return out + ([f"rarely seen in training: {', '.join(rare)}"] if rare else [])


def _find_touching(batch: StructureBatch) -> list[str]:
    """Return for each structure its closest two atoms, by their covalent radii, as text where they are too close."""
    graph = build_graph(batch, SEARCH)
    sender, receiver = graph.neighbors.sender.numpy(), graph.neighbors.receiver.numpy()
    radii = np.nan_to_num(np.asarray(covalent_radii), nan=1.5)
    distance = graph.vec.norm(dim=1).numpy()
    ratio = distance / (radii[batch.numbers[sender]] + radii[batch.numbers[receiver]])
    home, out = batch.structure_of_atom[receiver], [""] * len(batch)
    for k in range(len(batch)):
        own = np.flatnonzero(home == k)
        if len(own) and ratio[own].min() < TOUCHING:
            edge = own[ratio[own].argmin()]
            pair = "-".join(sorted(chemical_symbols[batch.numbers[v[edge]]] for v in (sender, receiver)))
            out[k] = f"{pair} {distance[edge]:.2f} Å apart, {ratio[edge]:.2f} of their covalent radii"
    return out


def _describe_distance(shortest: float, spec: HeadSpec) -> list[str]:
    least = spec.statistics.get("shortest_distance")
    if not least or not np.isfinite(shortest) or shortest >= least:
        return []
    return [f"two atoms {shortest:.2f} Å apart, the shortest in training is {least:.2f}"]


def _describe_force_labels(forces: NDArray[np.float64], spec: HeadSpec) -> list[str]:
    largest, usual = float(np.linalg.norm(forces, axis=1).max(initial=0.0)), spec.statistics.get("force_component_rms")
    if largest == 0.0 and len(forces) > 1:
        return ["all labelled forces are exactly zero"]
    if usual and largest > UNUSUAL * np.sqrt(3) * usual:
        return [f"high force: {largest:.1f} eV/Å, usual in training is {np.sqrt(3) * usual:.2g}"]
    return []


def _describe_energy_label(label: float, spec: HeadSpec) -> list[str]:
    usual = spec.statistics.get("residual_energy_per_atom_std")
    if not usual or not np.isfinite(label) or abs(label) < UNUSUAL * usual:
        return []
    return [f"unusual energy: {label:+.2f} eV/atom from the references, usual in training is {usual:.2g}"]


def _describe_doubt(row: int, energy: dict[str, NDArray[np.float64]], rows: HeadRows) -> list[str]:
    """Return words where the members agree on another energy; more so if the nearest compositions have it as well."""
    sigmas = float(energy["sigmas"][row])
    if not sigmas > DOUBTFUL:
        return []
    label, predicted = float(energy["label"][row]), float(energy["predicted"][row])
    nearest = float((rows.composition[row] - rows.reference[row]) / max(int(rows.natoms[row]), 1))
    if np.isfinite(nearest) and abs(nearest - predicted) < 0.5 * abs(nearest - label):
        return [
            f"label doubtful: {sigmas:.0f} standard errors from the prediction, which the nearest training composition "
            "supports"
        ]
    return [f"{sigmas:.0f} standard errors off, though the members agree: label doubtful, or chemistry they misjudge"]
