"""Turns the status of a structure without result into an ASE exception: one line with the value and the remedy."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculationFailed, CalculatorError, InputError
from ase.data import chemical_symbols

from atomsieve.predict import AnyPredictor, Status
from atomsieve.structures.adapters.conditions import charge_and_spin

SHOWN = 12
"""Elements of a head that a message names."""


def build_error(status: Status, atoms: Atoms, predictor: AnyPredictor, head: str) -> CalculatorError:
    """Return the exception for the status of some atoms; an `InputError` where the user can correct the input."""
    if status == Status.UNSEEN_ELEMENT:
        return InputError(_explain_unseen(atoms, predictor, head))
    if status == Status.BAD_CELL:
        return InputError(_explain_bad_cell(atoms))
    if status == Status.NAN_INPUT:
        return InputError(_explain_not_finite(atoms))
    if status == Status.EMPTY:
        return InputError("the Atoms object is empty (0 atoms); add atoms before asking for an energy")
    if status == Status.MISSING_CHARGE_OR_SPIN:
        return InputError(
            f"this model needs charge and spin multiplicity, the atoms state {_name_conditions(atoms) or 'neither'}; "
            "set atoms.info['charge'] (e) and atoms.info['spin'] (2S+1)"
        )
    if status == Status.CHARGE_NOT_MODELLED:
        return InputError(
            f"the atoms state {_name_conditions(atoms)}, which this model does not take into account; use an ensemble "
            "trained with charge_spin, or, for the neutral singlet, remove them from atoms.info"
        )
    if status == Status.BAD_CHARGE_OR_SPIN:
        return InputError(_explain_bad_condition(atoms))
    what = f"{atoms.get_chemical_formula()} ({len(atoms)} atoms) {status.meaning}"
    remedies = {
        Status.OVERLAPPING_ATOMS: "check the positions, or take a shorter time step",
        Status.NAN_OUTPUT: "check the structure; if it is sound, use precision fp64",
        Status.BAD_GEOMETRY: "check the units of cell and positions",
    }
    return CalculationFailed(f"{what}; {remedies.get(status, 'check the structure')}")


def _name_conditions(atoms: Atoms) -> str:
    """Return the total charge and the multiplicity that atoms state, in words."""
    found = zip(("charge", "spin"), charge_and_spin(atoms), strict=True)
    return " and ".join(f"{name} {value:g}" for name, value in found if value == value)


def _explain_bad_condition(atoms: Atoms) -> str:
    charge, spin = charge_and_spin(atoms)
    protons, formula = int(atoms.numbers.sum()), atoms.get_chemical_formula()
    if abs(charge) > protons:
        return f"charge {charge:g} is beyond the {protons} electrons of {formula}; give it in units of e"
    if spin - 1 > protons - charge:
        return f"spin multiplicity {spin:g} needs more than the {protons - charge:g} electrons of {formula}; give 2S+1"
    zero = "; 0 usually stands for one that was not stated (fairchem writes it by default)" if spin == 0 else ""
    return (
        f"spin multiplicity {spin:g} is no whole number of 1 or more{zero}: give 2S+1 in atoms.info['spin'], 1 for a "
        "singlet, 2 for one unpaired electron"
    )


def _explain_unseen(atoms: Atoms, predictor: AnyPredictor, head: str) -> str:
    known = predictor.elements(head)
    lacking = sorted(set(atoms.numbers.tolist()) - set(known))
    able = [h for h in predictor.heads if not set(atoms.numbers.tolist()) - set(predictor.elements(h))]
    shown = ", ".join(chemical_symbols[z] for z in known[:SHOWN]) + (", ..." if len(known) > SHOWN else "")
    names = ", ".join(chemical_symbols[z] if z < len(chemical_symbols) else str(z) for z in lacking)
    remedy = f"use head {' or '.join(able[:3])}" if able else "train on data that hold it"
    return f"head {head!r} was never trained on {names}; it knows {shown} ({len(known)} elements); {remedy}"


def _explain_bad_cell(atoms: Atoms) -> str:
    lengths = [float(x) for x in np.linalg.norm(np.asarray(atoms.cell), axis=1).round(6)]
    pbc = [bool(p) for p in atoms.pbc]
    return (
        f"pbc is {pbc} but the cell vectors have lengths {lengths} Angstrom, and a periodic one is missing or depends "
        "on the others; give atoms.cell, or set atoms.pbc = False"
    )


def _explain_not_finite(atoms: Atoms) -> str:
    bad = np.flatnonzero(~np.isfinite(atoms.positions).all(1))
    if len(bad) == 0:
        return f"the cell is not finite: {np.asarray(atoms.cell).tolist()}; give a valid atoms.cell"
    where = atoms.positions[bad[0]].tolist()
    return f"positions of {len(bad)} atoms are not finite, first atom {bad[0]}: {where}; start from sound positions"
