"""The test vector of an ensemble as an inference: its structures are sent, and the answers compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atomsieve.errors import AtomSieveError
from atomsieve.remote.wire import request_arrays
from atomsieve.structures.batch import StructureBatch

TOLERANCE = {"fp64": (1e-8, 1e-7), "fp32": (2e-5, 1e-3), "bf16": (5e-2, 1.0)}
"""Allowed error of an energy per atom (eV) and of a force component (eV/Angstrom) per precision: wide enough for any
sound computer, far below the error of a wrong tensor, head or ensemble."""

Answer = Callable[[dict[str, Any], str, list[str]], Mapping[str, Any]]
"""Called with tensors [1,...], the name of a head and the names of outputs; returns arrays without the first axis."""


def read_test_vector(gfm: Path) -> dict[str, Any]:
    """Return the test vector of an ensemble folder and the measured errors of each precision, as plain data."""
    from atomsieve.gfm import read_manifest

    manifest = read_manifest(gfm)
    return {
        "charge_spin": manifest.config.charge_spin,
        "heads": manifest.test_vector["heads"],
        "precision": manifest.precision,
    }


def parse_structures(stored: Mapping[str, Any], charged: bool) -> StructureBatch:
    """Return the structures of the test vector of one head."""
    ptr = np.array(stored["ptr"], np.int64)
    many = len(ptr) - 1
    return StructureBatch(
        ptr=ptr,
        numbers=np.array(stored["numbers"], np.uint8),
        positions=np.array(stored["positions"], np.float64).reshape(-1, 3),
        cell=np.array(stored["cell"], np.float64).reshape(-1, 3, 3),
        pbc=np.array(stored["pbc"], bool).reshape(-1, 3),
        id=np.arange(many, dtype=np.int64),
        charge=np.zeros(many, np.float32) if charged else None,
        spin=np.ones(many, np.float32) if charged else None,
    )


def round_error(error: float) -> float:
    """Round an error, relative to the allowed one, to three digits, as logs and checks show it."""
    return float(f"{error:.3g}")


def compare_test_vector(
    vector: Mapping[str, Any],
    answer: Answer,
    precision: str,
    gives: Sequence[str],
    heads: Sequence[str] | None = None,
) -> float:
    """Request the test vector and compare; return the largest error relative to the allowed one.

    gives : outputs of the model; without forces, energies alone are compared. heads : names to test, None for all.

    Raises
    ------
    AtomSieveError
        if a result is missing or off by more than the precision allows.
    """
    names = [name for name in ("status", "energy", "forces") if name in gives]
    known = vector["precision"].get(precision, {})
    worst = 0.0
    for head in vector["heads"] if heads is None else heads:
        stored = vector["heads"][head]
        batch = parse_structures(stored, vector["charge_spin"])
        found = answer(request_arrays(batch), head, names)
        if found["status"].any():
            raise AtomSieveError(f"head {head}: the test vector has status {found['status'].tolist()}, not all 0")
        energy = np.mean(np.array(stored["energy_members"]), axis=0)
        energy_limit, force_limit = TOLERANCE[precision]
        errors = {"energy_per_atom": (np.abs(found["energy"] - energy) / batch.counts, energy_limit, "eV")}
        if "forces" in names:
            errors["force"] = (np.abs(found["forces"] - np.array(stored["forces"])), force_limit, "eV/Angstrom")
        for quantity, (error, floor, unit) in errors.items():
            limit = max(floor, 3 * known.get(quantity, 0.0))
            if not (error <= limit).all():  # False for NaN too
                raise AtomSieveError(
                    f"head {head}: {quantity.replace('_', ' ')} of the test vector is off by {np.max(error):.3g} "
                    f"{unit}, allowed are {limit:.3g}"
                )
            worst = max(worst, float(np.max(error)) / limit)
    return worst
