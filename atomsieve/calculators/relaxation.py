"""Relaxation of many structures at once, with the steps of `ase.optimize.FIRE` for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atomsieve.calculators.change_limits import ChangeLimits
from atomsieve.calculators.fire import Fire
from atomsieve.calculators.holding import Holding
from atomsieve.calculators.lbfgs import Lbfgs
from atomsieve.calculators.minimiser import Minimiser
from atomsieve.calculators.relax_result import RelaxResult, Stop
from atomsieve.errors import UsageError, unknown
from atomsieve.predict import AnyPredictor
from atomsieve.structures import StructureBatch

if TYPE_CHECKING:
    from atomsieve.calculators.guard import Guard

__all__ = ["ChangeLimits", "RelaxResult", "Stop", "relax"]

USUAL = ChangeLimits()
OPTIMIZERS: dict[str, type[Minimiser]] = {"fire": Fire, "lbfgs": Lbfgs}


def find_optimizer(name: str) -> type[Minimiser]:
    """Return the class of an optimiser; UsageError for a name that does not exist."""
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS)
    return OPTIMIZERS[name]


def relax(
    predictor: AnyPredictor,
    batch: StructureBatch,
    fmax: float = 0.05,
    steps: int = 500,
    *,
    cell: bool = False,
    guard: Guard | None = None,
    head: str | None = None,
    skin: float | None = None,
    limits: ChangeLimits | None = USUAL,
    optimizer: str = "fire",
    holding: Holding | None = None,
    pressure: float = 0.0,
) -> RelaxResult:
    """Relax the positions of every structure, and with `cell` their cells too.

    fmax : eV/Angstrom; done when no force is longer and, with `cell`, no row of the virial per atom (as in ASE).
    steps : at most so many for each structure.
    guard : looked at in every step; a structure that it stops stays where it is. Its head must be the one used.
    limits : on the change of a structure; one beyond them ends with a reason of its own and has not converged. None:
        no limits.
    optimizer : "fire", with the steps of ASE's, or "lbfgs", which needs fewer.
    holding : symmetry, atoms or axes of the cell that are held fast, see `atomsieve.calculators.holding`.
    pressure : eV/Angstrom^3, on the cell; the energies of the result do not include it.
    head : of the predictor; skin : Angstrom, see `atomsieve.graphs.SkinList`.

    Raises
    ------
    UsageError
        for an unknown head, values out of range, a guard for another head, or if the ensemble gives no forces or
        stress. A bad structure raises nothing: it gets a status.
    """
    if pressure and not cell:
        raise UsageError(f"a pressure acts on the cell, got pressure={pressure:g} without cell=True")
    run = find_optimizer(optimizer)(
        predictor,
        batch,
        fmax,
        steps,
        cell=cell,
        guard=guard,
        head=head,
        skin=skin,
        limits=limits,
        holding=holding,
        pressure=pressure,
    )
    run.evaluate()
    while len(run.active):
        run.step()
        run.evaluate()
    return run.result
