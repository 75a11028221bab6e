"""Guard: watches the uncertainty of a simulation, and warns, stops it, or writes the frame for labelling."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.filters import Filter
from ase.io.extxyz import write_extxyz
from numpy.typing import NDArray

from atomsieve.calculators.gfm import GFMCalculator
from atomsieve.errors import AtomSieveError, UsageError, unknown
from atomsieve.predict import AnyPredictor, Outside
from atomsieve.structures.adapters.conditions import copy_atoms

ACTIONS = ("warn", "stop", "write")


class GuardWarning(UserWarning):
    """A limit was exceeded."""


class GuardStop(AtomSieveError):  # noqa: N818 - a request, not an error
    """A limit was exceeded and the run must end; the atoms keep the geometry at which that was found."""


@dataclass(frozen=True)
class _Limit:
    """The limit on one quantity: its name in reports, the property it is computed from, unit and value."""

    name: str
    needs: str
    unit: str
    limit: float
    calibrated: bool


class Guard:
    """Limits on the uncertainty of a run; attach it: `dyn.attach(Guard(atoms, max_sigma_force=0.3), interval=10)`.

    Sigmas are calibrated standard errors. The raw spread of the members is no error bar and is watched only if it is
    asked for by its own name.

    Parameters
    ----------
    source : the atoms of a run whose calculator is a `GFMCalculator` (or the filter around them); for batched
        relaxation the `Predictor`, or `RemotePredictor`.
    max_sigma_energy : eV per atom; max_sigma_force : eV/Angstrom, of a component of the force on any atom.
    max_energy_std : eV per atom; max_force_std : eV/Angstrom, on any atom (root mean square of the three components).
    in_domain : act also when the structure lies outside of the head's training domain.
    action : warn, stop, write, or several of them. write : appends the frame to `file`, as extxyz with the reasons.
    every : checks between two checks that write frames, at least; a structure that is stopped is always written.
    head : for a `Predictor`; None takes its own. For atoms it is always the present head of their calculator.

    Attributes
    ----------
    checks : number of checks. passed : how often a limit was exceeded. written : frames. reasons : the last ones.

    Raises
    ------
    UsageError
        if nothing is watched, a name is unknown, or a sigma is limited for a head that is not calibrated.
    """

    def __init__(
        self,
        source: Atoms | Filter | GFMCalculator | AnyPredictor,
        *,
        max_sigma_energy: float | None = None,
        max_sigma_force: float | None = None,
        max_energy_std: float | None = None,
        max_force_std: float | None = None,
        in_domain: bool = True,
        action: str | Collection[str] = "stop",
        file: str | Path = "guard.extxyz",
        every: int = 1,
        head: str | None = None,
    ) -> None:
        self.actions = frozenset([action] if isinstance(action, str) else action)
        for name in self.actions:
            if name not in ACTIONS:
                raise unknown("action", name, ACTIONS)
        if not self.actions or every < 1:
            raise UsageError(f"a guard needs an action of {', '.join(ACTIONS)} and every >= 1, got every={every}")
        limits = (
            _Limit("sigma_energy per atom", "sigma_energy", "eV", _number("max_sigma_energy", max_sigma_energy), True),
            _Limit("sigma_force", "sigma_forces", "eV/A", _number("max_sigma_force", max_sigma_force), True),
            _Limit("energy_std per atom", "energy_std", "eV", _number("max_energy_std", max_energy_std), False),
            _Limit("force_std", "forces_std", "eV/A", _number("max_force_std", max_force_std), False),
        )
        self.limits = [limit for limit in limits if np.isfinite(limit.limit)]
        self.in_domain, self.file, self.every = in_domain, Path(file), every
        if not self.limits and not in_domain:
            raise UsageError("a guard that watches nothing: give max_sigma_energy, max_sigma_force, or in_domain=True")
        if "write" in self.actions:
            _check_file(self.file)
        self.atoms = _atoms_of(source)
        self._check_calibrated(source, head)
        self.checks = self.passed = self.written = 0
        self.reasons: list[str] = []
        self._last_written = -every

    def _check_calibrated(self, source: Any, head: str | None) -> None:
        if self.atoms is not None:
            source = self.atoms.calc
            if not isinstance(source, GFMCalculator):
                kind = type(source).__name__
                raise UsageError(f"a guard watches atoms with a GFMCalculator, these have {kind}; set atoms.calc first")
        if isinstance(source, GFMCalculator):
            predictor, head = source.predictor, source.head
        else:
            predictor, head = source, source.head if head is None else head
        found = predictor.describe()["calibrated"]
        if head not in found:
            raise unknown("head", str(head), found)
        for limit in self.limits:
            kind = "energy" if "energy" in limit.needs else "forces"
            if predictor.members == 1:
                raise UsageError(f"{limit.name} cannot be limited: the ensemble has 1 member and no spread; train more")
            if limit.calibrated and kind not in found[head]:
                raise UsageError(
                    f"{limit.name} cannot be limited: head {head!r} is not calibrated for {kind}; run `atomsieve "
                    f"calibrate`, or limit the raw spread by name (max_{kind.removesuffix('s')}_std)"
                )
            if kind == "forces" and "forces" not in predictor.capabilities.outputs:
                raise UsageError(f"{limit.name} cannot be limited: backend {predictor.backend} gives no forces")
        self.head = head

    # -- judging ---------------------------------------------------------------------------------------------------

    @property
    def needs(self) -> set[str]:
        """Properties that are looked at."""
        return {limit.needs for limit in self.limits} | ({"in_domain"} if self.in_domain else set())

    def judge(
        self,
        values: dict[str, Any],
        ptr: NDArray[np.int64],
        outside: NDArray[np.uint8],
        good: NDArray[np.bool_] | bool = True,
    ) -> list[list[str]]:
        """Return the limits that each structure exceeds, as reasons; an empty list if it is within all of them.

        NaN exceeds every limit. Structures that are not `good` have no result and get no reasons.

        values : by name of property, [S], or [N] or [N,3] for those of atoms. ptr : [S+1]. outside, good : [S].
        """
        counts = np.diff(ptr)
        filled = counts > 0
        reasons: list[list[str]] = [[] for _ in counts]
        for limit in self.limits:
            array = np.asarray(values[limit.needs], np.float64)
            if "energy" in limit.needs:
                measured = array / np.maximum(counts, 1)
            else:
                per_atom = np.sqrt((array**2).mean(1)) if array.ndim == 2 else array
                measured = np.zeros(len(counts))
                measured[filled] = np.maximum.reduceat(per_atom, ptr[:-1][filled])
            for s in np.flatnonzero(~(measured <= limit.limit) & good):
                compared = "is not a number, limit" if np.isnan(measured[s]) else f"{measured[s]:.3g} above"
                reasons[s].append(f"{limit.name} {compared} {limit.limit:g} {limit.unit}")
        if self.in_domain:
            for s in np.flatnonzero((outside > 0) & good):
                flags = Outside(int(outside[s]))
                names = [str(flag.name).lower().replace("_", " ") for flag in Outside if flag in flags]
                reasons[s].append(f"outside of the domain: {', '.join(names)}")
        return reasons

    def act(self, reasons: list[str], frame: Callable[[], Atoms], where: str) -> bool:
        """Warn of or write one structure with reasons, as `action` asks; return whether it must stop."""
        self.passed += 1
        self.reasons = reasons
        text = f"{where}: {'; '.join(reasons)}"
        if "warn" in self.actions:
            warnings.warn(text, GuardWarning, stacklevel=3)
        last = self._last_written
        due = "stop" in self.actions or self.checks == last or self.checks - last >= self.every
        if "write" in self.actions and due:
            self._write(frame(), reasons)
            self._last_written = self.checks
        return "stop" in self.actions

    def _write(self, atoms: Atoms, reasons: list[str]) -> None:
        """Append a frame, without results that a reader could take for labels, and sync the file to disk."""
        atoms.info["guard"] = "; ".join(reasons)
        with self.file.open("a") as file:
            write_extxyz(file, [atoms], write_results=False)
            file.flush()
            os.fsync(file.fileno())
        self.written += 1

    # -- in ASE ----------------------------------------------------------------------------------------------------

    def __call__(self) -> None:
        """Check the atoms; ASE calls this as an observer.

        Raises
        ------
        GuardStop
            if a limit is passed and the action is stop.
        UsageError
            if the calculator's head was changed to one that lacks a limited quantity.
        """
        if self.atoms is None:
            raise UsageError("this guard was made for a Predictor; make one for the atoms: Guard(atoms, ...)")
        atoms, calc = self.atoms, self.atoms.calc
        if not isinstance(calc, GFMCalculator) or calc.head != self.head:
            self._check_calibrated(calc, None)
        self.checks += 1
        calc.get_property("energy" if not self._forces() else "forces", atoms)
        values = {limit.needs: calc.get_property(limit.needs, atoms) for limit in self.limits}
        values = {n: np.asarray(v)[None] if "energy" in n else v for n, v in values.items()}
        outside = np.array([calc.outside], np.uint8)
        reasons = self.judge(values, np.array([0, len(atoms)]), outside)[0]
        if reasons and self.act(reasons, lambda: self._frame(atoms, values), f"check {self.checks}"):
            raise GuardStop(f"stopped at check {self.checks} of the guard: {'; '.join(reasons)}")

    def _forces(self) -> bool:
        return any("forces" in limit.needs for limit in self.limits)

    def _frame(self, atoms: Atoms, values: dict[str, Any]) -> Atoms:
        """Return a copy of the atoms, with predictions under names that no reader takes for labels."""
        frame = copy_atoms(atoms)
        frame.calc = None
        frame.set_constraint()
        frame.info |= {"guard_check": self.checks, "predicted_head": self.head}
        frame.info["predicted_energy"] = atoms.calc.get_property("energy", atoms)
        for name, value in values.items():
            if "energy" in name:
                frame.info[name] = float(value[0])
            else:
                frame.arrays[name] = np.array(value)
        return frame

    def run(self, dynamics: Any, *args: Any, **kwargs: Any) -> bool:
        """Call `dynamics.run(...)`; return False where this guard ended it, else True."""
        try:
            dynamics.run(*args, **kwargs)
        except GuardStop:
            return False
        return True


def _atoms_of(source: Atoms | Filter | GFMCalculator | AnyPredictor) -> Atoms | None:
    """Return the atoms that a guard watches, None if it is for the batched relaxation of a predictor."""
    if isinstance(source, Filter):
        return source.atoms
    return source if isinstance(source, Atoms) else None


def _check_file(path: Path) -> None:
    """Raise UsageError for a file that could not be written later."""
    if path.suffix.lower() not in (".extxyz", ".xyz"):
        raise UsageError(f"a guard writes extxyz, got file {str(path)!r}; let its name end in .extxyz")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {path.parent} to write {path.name} to; make it first")


def _number(name: str, value: float | None) -> float:
    if value is None:
        return float("inf")
    if isinstance(value, str) or not 0 < value < float("inf"):
        raise UsageError(f"{name} must be a number above 0, got {value!r}; leave it out for no limit")
    return float(value)
