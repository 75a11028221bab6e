"""Options of a relaxation of the best rows of a screening, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from atomsieve.calculators.change_limits import ChangeLimits
from atomsieve.calculators.holding import hold_axes
from atomsieve.calculators.relaxation import find_optimizer
from atomsieve.errors import UsageError
from atomsieve.models.precision import check_precision
from atomsieve.predict.packing import BUDGETS
from atomsieve.screen.selection.select import Selection

CPU_ATOMS = 512
"""Atoms of a batch on a CPU: more are not faster, and fewer leave less to compute alone at a group's end."""
GROUP_BATCHES = 4
BEST = Selection(top=1000)
LATER = {"optimizer": "fire", "pressure": 0.0, "keep_symmetry": 0.0, "cell_axes": "", "fix_depth": 0.0}
"""Options that relaxations of earlier versions lack, with the values that these imply; recorded where they differ."""
LIMITED = ChangeLimits()
LIMITS = ("max_sigma_energy", "max_sigma_force", "max_energy_std", "max_force_std")
DECIDING = (
    "fmax",
    "cell",
    "max_steps",
    "rattle",
    "precision",
    "threads",
    "skin",
    "guard",
    *LIMITS,
    "trajectory",
)
RANKING = ("top", "by", "descending", "where")
GROUPING = ("per", "each", "symprec", "pareto")
"""Options that decide the results are `DECIDING`, `RANKING` and, where they are used, `GROUPING` and limits."""


@dataclass(frozen=True)
class RelaxOptions:
    """Options of one relaxation.

    Attributes
    ----------
    fmax : eV/Angstrom; done when no force is longer and, with `cell`, no row of the virial per atom.
    cell : relax the cell too. max_steps : at most so many for each structure. rattle : Angstrom; displace atoms first,
        by normal random numbers of this width that depend on the place in the input alone.
    selection : which rows of the screening, of one head; its head is needed where the screening had several.
    precision : fp64, fp32 or bf16. device : auto, cpu, cuda or cuda:N. threads : of each process on a CPU.
    max_atoms, max_edges : budget of a batch (edges are estimated); None takes the device's default.
    group_atoms : structures of about so many atoms are one piece of work, done by one process from its first to its
        last; None takes four batches.
    skin : Angstrom, see `atomsieve.graphs.SkinList`. A list is kept while no structure joins or leaves the batch, so it
        may pay for a few large structures; 0 computes each list again.
    guard : stop a structure that leaves the head's domain. max_sigma_energy, max_sigma_force, max_energy_std,
        max_force_std : and one whose uncertainty is larger, see `atomsieve.calculators.Guard`.
    limits : on the change of a structure, see `ChangeLimits`; a structure beyond one ends with a reason of its own.
    optimizer : lbfgs, or fire with the steps of ASE's. pressure : GPa, on the cell.
    keep_symmetry : Angstrom within which the space group of the start is found, and then kept; 0 keeps none.
    cell_axes : Cartesian axes along which the cell may strain, such as xy; "" is all of them.
    fix_depth : Angstrom; atoms so near the lowest one, along the normal of the third axis, stay; 0 fixes none.
    trajectory : write every n-th step of each structure; 0 writes none.
    dispersion : adds D3 to a head whose level of theory lacks it: "auto" or a functional, see
        `atomsieve.predict.dispersion`.
    """

    selection: Selection = BEST
    fmax: float = 0.02
    cell: bool = False
    max_steps: int = 500
    rattle: float = 0.0
    precision: str = "fp32"
    device: str = "auto"
    threads: int = 1
    max_atoms: int | None = None
    max_edges: int | None = None
    group_atoms: int | None = None
    skin: float = 0.0
    guard: bool = False
    max_sigma_energy: float | None = None
    max_sigma_force: float | None = None
    max_energy_std: float | None = None
    max_force_std: float | None = None
    trajectory: int = 0
    dispersion: str | None = None
    limits: ChangeLimits = LIMITED
    optimizer: str = "lbfgs"
    pressure: float = 0.0
    keep_symmetry: float = 0.0
    cell_axes: str = ""
    fix_depth: float = 0.0

    def __post_init__(self) -> None:
        check_precision(self.precision)
        if not 0 < self.fmax < float("inf"):
            raise UsageError(f"fmax must be above 0 eV/Angstrom, got {self.fmax}; 0.02 is usual")
        for name, least in (
            ("max_steps", 0),
            ("threads", 1),
            ("trajectory", 0),
            ("skin", 0),
            ("rattle", 0),
            ("keep_symmetry", 0),
            ("fix_depth", 0),
        ):
            if getattr(self, name) < least:
                raise UsageError(f"{name.replace('_', '-')} must be at least {least}, got {getattr(self, name)}")
        find_optimizer(self.optimizer)
        if self.cell_axes:
            hold_axes(0, self.cell_axes)
        for name, value in (("pressure", self.pressure), ("cell-axes", self.cell_axes)):
            if value and not self.cell:
                raise UsageError(f"{name} acts on the cell, got {value}; add --cell")
        if self.keep_symmetry and (self.rattle or self.cell_axes or self.fix_depth):
            raise UsageError(
                "keep-symmetry goes without rattle, cell-axes and fix-depth, which break it; leave one out"
            )
        if not abs(self.pressure) < float("inf"):
            raise UsageError(f"pressure must be a number of GPa, got {self.pressure}")
        for name in ("max_atoms", "max_edges", "group_atoms"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name.replace('_', '-')} must be at least 1, got {value}")

    @property
    def guarded(self) -> bool:
        """Whether a guard watches the relaxation."""
        return self.guard or any(getattr(self, name) is not None for name in LIMITS)

    def deciding(self) -> dict[str, Any]:
        """Return the options that decide the results, as plain data."""
        chosen, usual = self.selection, Selection()
        return {
            **{name: getattr(self, name) for name in DECIDING},
            **{name: getattr(chosen, name) for name in RANKING},
            **{name: getattr(chosen, name) for name in GROUPING if getattr(chosen, name) != getattr(usual, name)},
            **{name: getattr(self, name) for name, older in LATER.items() if getattr(self, name) != older},
            **({"limits": self.limits.as_dict()} if self.limits.watched else {}),
            **({} if self.dispersion is None else {"dispersion": self.dispersion}),
        }

    def budget(self, device_kind: str) -> tuple[int, int, int]:
        """Return the atoms and edges of a batch, and the atoms of a group, on `cpu` or `cuda`."""
        atoms, edges = BUDGETS.get(device_kind, BUDGETS["cpu"])
        atoms = self.max_atoms or (min(atoms, CPU_ATOMS) if device_kind == "cpu" else atoms)
        return atoms, self.max_edges or edges, self.group_atoms or GROUP_BATCHES * atoms
