"""D3 dispersion added to a predictor whose level of theory lacks it: a stated term, the same for every member.

    predictor = add_dispersion(Predictor.load("gfm/", head="mptrj"), "auto")

Two-body D3 with the damping of Becke and Johnson (S. Grimme, S. Ehrlich and L. Goerigk, J. Comput. Chem. 32, 1456
(2011)), by the library s-dftd3 of its authors, with the parameters that it has for the functional. It is evaluated
structure by structure on the CPU, so it is for calculators, relaxations and properties, not for screening.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import UsageError, require, unknown
from atomsieve.predict.base import DeferredCall, ForwardingPredictor
from atomsieve.predict.interface import AnyPredictor, Capabilities, Pending
from atomsieve.predict.prediction import Prediction
from atomsieve.predict.status import Status, any_atom
from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.level_of_theory import FUNCTIONALS, Level, read_level

if TYPE_CHECKING:
    from atomsieve.predict.interface import Builder

AUTO = "auto"
"""Asks for the functional of the head's level of theory."""
WITHOUT_PARAMETERS = ("LDA", "AM05", "B97", "M06-L", "wB97M")
"""Functionals without parameters of this damping, or, as wB97M, published with another dispersion alone."""
KNOWN = tuple(name for name in FUNCTIONALS if name not in WITHOUT_PARAMETERS)
HEAVIEST = 103
"""Atomic number of the heaviest element with parameters."""
MARGIN = 10.0
"""Angstrom; empty space along directions that are not periodic."""
HARTREE, BOHR = 27.211386245988, 0.529177210903
"""eV and Angstrom (CODATA 2018)."""


def add_dispersion(predictor: AnyPredictor, functional: str | None, head: str | None = None) -> AnyPredictor:
    """Return the predictor with D3 added, or the predictor itself if `functional` is None.

    functional : of `KNOWN`, whose damping parameters are taken; "auto" takes that of the head's level of theory.
    head : None takes the predictor's own. Other heads are refused by the result.

    Raises
    ------
    UsageError
        if the level of theory has dispersion in it, or names no functional with parameters. AtomSieveError if s-dftd3
        is missing.
    """
    if functional is None:
        return predictor
    used = predictor.head if head is None else head
    return DispersionPredictor(predictor, used, resolve_functional(predictor, used, functional))


def resolve_functional(predictor: AnyPredictor, head: str, functional: str) -> str:
    """Return the functional whose parameters are taken for a head; see `add_dispersion`."""
    text = str(predictor.describe().get("levels_of_theory", {}).get(head, ""))
    level = read_level(text)
    stated = f"head {head}: level of theory {text!r}" if text else f"head {head} states no level of theory"
    if level.dispersion is not None:
        raise UsageError(f"{stated} has dispersion in it already ({level.dispersion}); leave out --dispersion")
    if functional != AUTO:
        found = next((name for name in KNOWN if name.lower() == functional.lower()), None)
        if found is None:
            raise unknown("functional of D3", functional, (AUTO, *KNOWN))
        if level.functional not in (None, found):
            raise UsageError(f"{stated} is not of functional {found}; say --dispersion auto, or leave it out")
        return found
    return _take_functional(level, stated)


def _take_functional(level: Level, stated: str) -> str:
    if level.functional is None or level.functional not in KNOWN:
        why = level.why or f"D3 has no parameters for {level.functional}"
        raise UsageError(f"{stated}: {why}; name the functional: --dispersion {' or '.join(('PBE', 'B3LYP'))}, ...")
    return level.functional


class DispersionPredictor(ForwardingPredictor):
    """A predictor of one head with D3 added to energies, forces and stresses.

    Spreads, calibrated errors and the domain are those of the ensemble: the term has no error of its own here. The
    identity differs from that of the ensemble. Energies of single atoms are not given.

    Attributes
    ----------
    inner : the ensemble. functional : whose parameters damp the term.
    """

    def __init__(self, inner: AnyPredictor, head: str, functional: str) -> None:
        super().__init__(inner)
        self._head, self.functional = head, functional
        interface = require("dftd3.interface", "properties", "D3 dispersion")
        self._model = interface.DispersionModel
        self._damping = interface.RationalDampingParam(method=functional.lower())

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what it was made of; handles of the library stay behind."""
        return DispersionPredictor, (self.inner, self._head, self.functional)

    @property
    def head(self) -> str:
        """The head that has the term."""
        return self._head

    @property
    def term(self) -> str:
        """The term, for people."""
        return f"D3(BJ) of {self.functional}"

    @property
    def ensemble_id(self) -> str:
        """SHA-256 of the ensemble's own and of the term."""
        return hashlib.sha256(f"{self.inner.ensemble_id} {self.term}".encode()).hexdigest()

    @property
    def capabilities(self) -> Capabilities:
        """Those of the ensemble, for one head, without energies of atoms."""
        own = self.inner.capabilities
        outputs = own.outputs - {"energies"}
        return replace(own, choices=(self._head,), outputs=outputs, asynchronous=False, artefact=None)

    def note(self, head: str) -> str | None:
        """Return what a user must know: the term, and the ensemble's own note."""
        own = self.inner.note(head)
        text = f"{self.term} dispersion is added to head {head}"
        return text if own is None else f"{text}; {own}"

    def describe(self) -> dict[str, Any]:
        """Return the ensemble's description, with the term in its levels of theory and under `dispersion`."""
        own = dict(self.inner.describe())
        levels = dict(own.get("levels_of_theory", {}))
        if self._head in levels:
            levels[self._head] = f"{levels[self._head]} + D3(BJ)"
        return own | {
            "ensemble_id": self.ensemble_id,
            "head": self._head,
            "levels_of_theory": levels,
            "dispersion": self.term,
        }

    def submit(self, batch: StructureBatch, want: Collection[str], head: str | None = None) -> Pending:
        """Return a batch that is evaluated when its result is asked for."""
        return DeferredCall(self, batch, want, head)

    def __call__(
        self,
        batch: StructureBatch,
        want: Collection[str],
        head: str | None = None,
        *,
        max_structure_atoms: int | None = None,
        build: Builder | None = None,
    ) -> Prediction:
        """See `AnyPredictor`; a structure with an element beyond `HEAVIEST` gets the status UNSEEN_ELEMENT."""
        used = self._head if head is None else head
        if used != self._head:
            raise unknown("head", used, (self._head,))
        asked = frozenset(want) - {"energies"}
        found = self.inner(batch, asked, used, max_structure_atoms=max_structure_atoms, build=build)
        status = found.status.copy()
        status[(status == Status.OK) & any_atom(batch, batch.numbers > HEAVIEST)] = Status.UNSEEN_ELEMENT
        energy = np.where(status == Status.OK, 0.0, np.nan)
        forces = np.where((status == Status.OK)[batch.structure_of_atom, None], np.zeros((batch.n_atoms, 3)), np.nan)
        stress = np.full((len(batch), 3, 3), np.nan)
        slopes = found.forces is not None or found.stress is not None
        for s in np.flatnonzero(status == Status.OK).tolist():
            atoms = slice(int(batch.ptr[s]), int(batch.ptr[s + 1]))
            one = self._compute(batch, s, atoms, slopes)
            energy[s] = one["energy"] * HARTREE
            if slopes:
                forces[atoms] = -one["gradient"] * HARTREE / BOHR
                if batch.pbc[s].all():
                    stress[s] = one["virial"] * HARTREE / abs(np.linalg.det(batch.cell[s]))
        status[(status == Status.OK) & ~np.isfinite(energy)] = Status.NAN_OUTPUT
        return _add(found, status, energy, forces, stress)

    def _compute(self, batch: StructureBatch, s: int, atoms: slice, slopes: bool) -> dict[str, NDArray[np.float64]]:
        """Return energy, gradient and virial (dE by strain) of structure s in atomic units."""
        numbers, positions = batch.numbers[atoms].astype(np.int64), np.asarray(batch.positions[atoms], np.float64)
        pbc = batch.pbc[s]
        where: tuple[NDArray[Any], ...] = ()
        if pbc.any():
            cell, positions = enclose(batch.cell[s], pbc, positions)
            where = (cell / BOHR, pbc)
        try:
            model = self._model(numbers, positions / BOHR, *where)
            found: dict[str, NDArray[np.float64]] = model.get_dispersion(self._damping, grad=slopes)
        except RuntimeError:  # the library's word for atoms on one point and the like
            nothing = np.full((len(numbers), 3), np.nan)
            return {"energy": np.array(np.nan), "gradient": nothing, "virial": np.full((3, 3), np.nan)}
        return found


def enclose(
    cell: NDArray[np.float64], pbc: NDArray[np.bool_], positions: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a cell [3,3] of three independent vectors, and positions [n,3] that lie inside along the free ones.

    s-dftd3 needs three vectors, and wraps atoms into the cell along all of them, along those that are not periodic too.
    So vectors at right angles, longer than the structure by `MARGIN`, take the places of the free ones.
    """
    out, moved = np.array(cell, np.float64), np.array(positions, np.float64)
    out[~pbc] = 0
    for k in np.flatnonzero(~pbc):
        normal = np.linalg.svd(np.delete(out, k, axis=0))[2][-1]  # at right angles to the other two
        heights = moved @ normal
        moved += (MARGIN / 2 - heights.min()) * normal
        out[k] = (np.ptp(heights) + MARGIN) * normal
    return out, moved


def _add(
    found: Prediction,
    status: NDArray[np.uint8],
    energy: NDArray[np.float64],
    forces: NDArray[np.float64],
    stress: NDArray[np.float64],
) -> Prediction:
    """Return a prediction with the term added to the mean and to every member."""
    changes: dict[str, Any] = {
        "status": status,
        "in_domain": found.in_domain & (status == Status.OK),
        "energy": found.energy + energy,
        "atom_energies": None,
    }
    for name, term in (("energy", energy), ("forces", forces), ("stress", stress)):
        for field in (name, f"{name}_members"):
            if (own := getattr(found, field)) is not None:
                changes[field] = own + term
    return replace(found, **changes)
