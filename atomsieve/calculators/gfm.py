"""GFMCalculator: an ensemble as an ASE calculator."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import (
    CalculationFailed,
    Calculator,
    CalculatorSetupError,
    InputError,
    PropertyNotImplementedError,
    all_changes,
    compare_atoms,
)
from numpy.typing import NDArray

from atomsieve.calculators.explain import build_error
from atomsieve.calculators.verlet import keep_lists
from atomsieve.errors import AtomSieveError, DataError, unknown
from atomsieve.predict import AnyPredictor, Prediction, Status
from atomsieve.predict.dispersion import add_dispersion
from atomsieve.structures import StructureBatch
from atomsieve.structures.adapters.ase_adapter import check_occupancies
from atomsieve.structures.adapters.conditions import charge_and_spin, copy_atoms
from atomsieve.structures.fields import to_numbers

SETTINGS = {"gfm": None, "head": None, "precision": "fp64", "device": "auto", "backend": "native", "skin": None}
"""Parameters and their defaults."""
VOIGT = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])
"""Where xx, yy, zz, yz, xz, xy stand in a 3 x 3 tensor."""
OF_FORCES = ("forces", "forces_std", "sigma_forces", "forces_ensemble")


class GFMCalculator(Calculator):
    """An ensemble of a gfm/ folder as an ASE calculator. N atoms, K members.

    energy, free_energy, energies [N] : eV; mean over members, element references of the head included.
    forces [N,3] : eV/Angstrom. stress [6] : eV/Angstrom^3, Voigt order xx yy zz yz xz xy, ASE's sign.
    energy_std, forces_std [N,3] : unbiased standard deviation over members, not calibrated.
    energy_ensemble [K], forces_ensemble [K,N,3] : of each member.
    sigma_energy, sigma_forces [N] : calibrated standard errors, where the head is calibrated.
    in_domain : the structure lies in the training domain of the head; `outside` holds the reasons against it.

    `implemented_properties` of the object lists exactly what this ensemble, head and backend give. Energies alone need
    no backward pass; forces bring the energy along, and the stress if the step before was asked for it.

    Total charge (e) and multiplicity (2S+1) are those that the atoms state, in `atoms.info["charge"]` for instance, see
    `atomsieve.structures.adapters.conditions.charge_and_spin`; initial charges and magnetic moments are not used. All
    weights are in memory: the folder may be moved or removed meanwhile.

    Parameters
    ----------
    gfm : the folder, or a loaded `Predictor` or connected `RemotePredictor` (then precision, device and backend are its
        own).
    head : the level of theory to use; None takes the folder's default, "auto" its learned mixture of heads.
    precision : fp64 (the default here; MD conserves energy best), fp32 or bf16. device : auto, cpu, cuda, cuda:N.
    backend : native, or an export: onnx, torchscript, pt2, auto.
    skin : Angstrom; neighbour lists are reused while atoms have moved less than about half of it, 0 rebuilds each;
        None takes the faster choice, see `atomsieve.graphs.SkinList`.
    dispersion : adds D3 to a head whose level of theory lacks it: "auto", or the name of a functional, see
        `atomsieve.predict.dispersion`.

    Raises
    ------
    CalculatorSetupError
        if the folder cannot be opened or a name is unknown.
    """

    nolabel = True
    ignored_changes = {"initial_charges", "initial_magmoms"}  # noqa: RUF012 - ASE's own declaration
    default_parameters = SETTINGS
    settings: ClassVar[dict[str, Any]] = SETTINGS | {"dispersion": None}
    _fixed = True
    """ASE sets all parameters while the calculator is being built; until then `set` checks nothing."""

    def __init__(
        self,
        gfm: str | Path | AnyPredictor | None = None,
        head: str | None = None,
        precision: str | None = None,
        device: str | None = None,
        backend: str | None = None,
        skin: float | None = None,
        dispersion: str | None = None,
        **kwargs: Any,
    ) -> None:
        if gfm is None:
            raise CalculatorSetupError("no ensemble given; name its folder: GFMCalculator('gfm/')")
        own = {"precision": precision, "device": device, "backend": backend}
        try:
            self._use(add_dispersion(_open(gfm, head, own), dispersion, head), head, skin)
        except (AtomSieveError, OSError) as error:
            raise CalculatorSetupError(str(error)) from error
        self._given: Any = gfm if isinstance(gfm, str | Path) else self.predictor
        term = {} if dispersion is None else {"dispersion": dispersion}
        self._begin(
            {
                "gfm": str(gfm) if isinstance(gfm, str | Path) else self.predictor.ensemble_id[:12],
                "head": self._head,
                "precision": self.predictor.precision,
                "device": str(self.predictor.device),
                "backend": self.predictor.backend,
                "skin": self._lists.skin,
                **term,
            },
            kwargs,
        )

    def _use(self, predictor: AnyPredictor, head: str | None, skin: float | None) -> None:
        """Compute with a predictor from now on, for one of its heads."""
        self.predictor = predictor
        self._lists = keep_lists(predictor, skin)
        self._head = predictor.head if head is None else head
        choices = predictor.capabilities.choices
        if self._head not in choices:
            raise unknown("head", self._head, choices)

    def _begin(self, shown: dict[str, Any], kwargs: dict[str, Any]) -> None:
        """Initialise ASE's calculator with the parameters `shown`, of which only the head can be changed later."""
        self.outside = 0
        self._asked: set[str] = set()
        self._fixed = True
        super().__init__(**{"atoms": None, **kwargs, **shown})
        self._fixed = False
        self.implemented_properties = self._list_properties()

    def _get_name(self) -> str:
        return "gfm"

    @property
    def head(self) -> str:
        """Name of the head in use; `calc.set(head=...)` changes it."""
        return self._head

    def set(self, **kwargs: Any) -> dict[str, Any]:
        """Change the head; the other parameters belong to the loaded ensemble.

        Raises
        ------
        CalculatorSetupError
            for an unknown parameter or head, or a parameter that cannot be changed.
        """
        for name in () if self._fixed else kwargs:
            if name not in self.settings:
                raise CalculatorSetupError(str(unknown("parameter", name, self.settings)))
            if name != "head":
                kind = type(self).__name__
                raise CalculatorSetupError(f"{name} cannot be changed later; make a new {kind} with {name}=...")
            choices = self.predictor.capabilities.choices
            if kwargs["head"] not in choices:
                raise CalculatorSetupError(str(unknown("head", str(kwargs["head"]), choices)))
        if "parameters" not in kwargs and (extra := sorted(set(kwargs) - set(self.settings))):
            raise CalculatorSetupError(str(unknown("parameter", extra[0], self.settings)))
        changed: dict[str, Any] = super().set(**kwargs)
        if "head" in changed and not self._fixed:
            self._head = kwargs["head"]
            self.implemented_properties = self._list_properties()
            self.reset()
        return changed

    def reset(self) -> None:
        """Forget results and neighbour lists."""
        super().reset()
        self._lists.clear()
        self._asked = set()

    # -- what is given ---------------------------------------------------------------------------------------------

    def _list_properties(self) -> list[str]:
        """Return the names of all properties that this ensemble, head and backend give."""
        predictor, outputs = self.predictor, self.predictor.capabilities.outputs
        many = predictor.members > 1
        calibrated = set(predictor.describe()["calibrated"][self._head]) if many else set()
        rows = {
            "energy": True,
            "free_energy": True,
            "energies": "energies" in outputs,
            "forces": "forces" in outputs,
            "stress": "stress" in outputs,
            "in_domain": True,
            "energy_std": many,
            "energy_ensemble": many,
            "forces_std": many and "forces" in outputs,
            "forces_ensemble": many and "forces_members" in outputs,
            "sigma_energy": "energy" in calibrated,
            "sigma_forces": "forces" in calibrated and "forces" in outputs,
        }
        return [name for name, given in rows.items() if given]

    def _why_not(self, name: str) -> str:
        """Return why a property is not given and how to get it, in one line."""
        predictor = self.predictor
        if name.startswith("sigma_") and predictor.members > 1:
            return f"{name}: head {self._head!r} is not calibrated; run `atomsieve calibrate` on held-out data"
        if predictor.members == 1 and name in (*OF_FORCES[1:], "energy_std", "energy_ensemble", "sigma_energy"):
            return f"{name}: needs an ensemble of 2 members or more, this one has 1; train more members"
        if predictor.backend != "native" and name in (*OF_FORCES, "energies", "stress"):
            return f"{name}: the {predictor.backend} export does not hold it; use backend='native'"
        if name == "stress":
            return "stress: a model with direct forces gives none; train one with forces: conservative"
        return f"{name}: not given by this calculator; it gives {', '.join(self.implemented_properties)}"

    # -- ASE's protocol --------------------------------------------------------------------------------------------

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """Return the changes since the last calculation, those of total charge and multiplicity included."""
        changes: list[str] = compare_atoms(self.atoms, atoms, tol=tol, excluded_properties=self.ignored_changes)
        if self.atoms is not None:
            try:
                pairs = zip(("charge", "spin"), charge_and_spin(self.atoms), charge_and_spin(atoms), strict=True)
            except DataError as error:
                raise InputError(str(error)) from error
            changes += [name for name, old, new in pairs if not (old == new or (old != old and new != new))]
        return changes

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """Return a property (arrays are copies), computing it if need be.

        Raises
        ------
        PropertyNotImplementedError
            for a property that is not given, or a stress without three periodic directions.
        InputError, CalculationFailed
            if the structure has no result; the message gives the reason and the remedy.
        """
        if name not in self.implemented_properties:
            raise PropertyNotImplementedError(self._why_not(name))
        found = super().get_property(name, atoms, allow_calculation)
        self._asked.add(name)
        return found

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] | None = None,
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Compute properties of atoms, which are not changed."""
        atoms = self.atoms if atoms is None else atoms
        if atoms is None:
            raise InputError("no atoms given; call calc.calculate(atoms)")
        wanted = frozenset(properties or ["energy"])
        if "stress" in wanted and not atoms.pbc.all():
            raise PropertyNotImplementedError(
                f"stress needs a cell that is periodic along all three vectors, got pbc {[bool(p) for p in atoms.pbc]}"
                "; set atoms.pbc = True where that is meant"
            )
        if system_changes:
            if not wanted.isdisjoint(OF_FORCES) and "stress" in self._asked and atoms.pbc.all():
                wanted |= {"stress"}
            self.results, self._asked = {}, set()
        prediction = self._predict(atoms, self._request(wanted))
        self.atoms = copy_atoms(atoms)
        self.outside = int(prediction.outside[0])
        self.results.update(_results(prediction, self.implemented_properties))

    def _request(self, wanted: frozenset[str]) -> frozenset[str]:
        """Return the properties to ask the predictor for: those wanted, and all that come at no further cost."""
        outputs, many = self.predictor.capabilities.outputs, self.predictor.members > 1
        want = {"energy"} | ({"energies"} & outputs)
        if "stress" in wanted or not wanted.isdisjoint(OF_FORCES):
            want |= {"forces"} & outputs
        if "stress" in wanted:
            want.add("stress")
        if many:
            want.add("spread")
        costly = self.predictor.kind == "shallow" and "forces" in want  # each member's forces take a pass of their own
        if many and costly and not wanted.isdisjoint(("forces_std", "sigma_forces")):
            want.add("force_spread")
        possible = "forces_members" in outputs or "forces" not in want
        if many and possible and (not costly or "forces_ensemble" in wanted):
            want.add("members")
        return frozenset(want)

    def _predict(self, atoms: Atoms, want: frozenset[str]) -> Prediction:
        try:
            batch = single(atoms)
            prediction = self.predictor(batch, want, head=self._head, build=self._lists.build)
        except DataError as error:
            raise InputError(str(error)) from error
        except AtomSieveError as error:  # of a server that does not answer, or refuses
            raise CalculationFailed(str(error)) from error
        status = Status(prediction.status[0])
        if status != Status.OK:
            raise build_error(status, atoms, self.predictor, self._head)
        return prediction

    # -- copies ----------------------------------------------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, Any]) -> GFMCalculator:
        """Return a calculator with an own cache that shares the (unchanging) ensemble."""
        new = GFMCalculator(self.predictor, self._head, skin=self._lists.skin)
        new._given = self._given
        new.parameters = copy.deepcopy(self.parameters, memo)
        return new

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path of the ensemble if it came from a folder, otherwise the predictor itself."""
        if not isinstance(self._given, str | Path):
            return _reopen, (self._given, self._head, {}, self._lists.skin, None)
        given = ("precision", "device", "backend", "dispersion")
        own = {name: self.parameters[name] for name in given if name in self.parameters}
        return _reopen, (str(self._given), self._head, own, self._lists.skin, self.predictor.ensemble_id)


def _reopen(
    gfm: str | AnyPredictor, head: str, own: dict[str, str], skin: float, identity: str | None
) -> GFMCalculator:
    calc = GFMCalculator(gfm, head, skin=skin, **own)
    if identity is not None and calc.predictor.ensemble_id != identity:
        raise CalculatorSetupError(
            f"{gfm} now holds another ensemble ({calc.predictor.ensemble_id[:12]}, was {identity[:12]}); restore the "
            "old one, or make a new calculator"
        )
    return calc


def _open(gfm: str | Path | AnyPredictor, head: str | None, own: dict[str, str | None]) -> AnyPredictor:
    """Return the predictor of a folder, or a given one after checking that it is as asked."""
    if isinstance(gfm, str | Path):
        from atomsieve.predict import Predictor

        return Predictor.load(gfm, head=head, **{n: str(SETTINGS[n] if v is None else v) for n, v in own.items()})
    has = {"precision": gfm.precision, "device": str(gfm.device), "backend": gfm.backend}
    for name, value in own.items():
        if value is not None and value not in ("auto", has[name]):
            raise CalculatorSetupError(
                f"the given predictor has {name} {has[name]}, not {value}; load one with {name}={value!r}"
            )
    return gfm


def single(atoms: Atoms) -> StructureBatch:
    """Return one structure as a batch, without labels.

    Raises
    ------
    DataError
        if the charge or the multiplicity that the atoms state is no number, or is stated twice and differs; if sites
        are partly occupied.
    """
    check_occupancies(atoms)
    charge, spin = charge_and_spin(atoms)
    return StructureBatch(
        ptr=np.array([0, len(atoms)], np.int64),
        numbers=to_numbers(atoms.numbers),
        positions=np.array(atoms.positions, np.float64),
        cell=np.array(atoms.cell, np.float64)[None],
        pbc=np.array(atoms.pbc, bool)[None],
        id=np.zeros(1, np.int64),
        charge=None if charge != charge else np.array([charge], np.float32),
        spin=None if spin != spin else np.array([spin], np.float32),
    )


def _results(prediction: Prediction, given: Sequence[str]) -> dict[str, Any]:
    """Return ASE's results; arrays are copies, numbers plain."""
    found: dict[str, Any] = {
        "energy": float(prediction.energy[0]),
        "free_energy": float(prediction.energy[0]),
        "in_domain": bool(prediction.in_domain[0]),
    }
    if prediction.stress is not None:
        found["stress"] = np.array(prediction.stress[0][VOIGT])
    for name, values in (("energy_std", prediction.energy_std), ("sigma_energy", prediction.sigma_energy)):
        if values is not None:
            found[name] = float(values[0])
    if prediction.energy_members is not None:
        found["energy_ensemble"] = np.array(prediction.energy_members[:, 0])
    arrays: dict[str, NDArray[Any] | None] = {
        "energies": prediction.atom_energies,
        "forces": prediction.forces,
        "forces_std": prediction.forces_std,
        "sigma_forces": prediction.sigma_forces,
        "forces_ensemble": prediction.forces_members,
    }
    found |= {name: np.array(values, np.float64) for name, values in arrays.items() if values is not None}
    return {name: value for name, value in found.items() if name in given}
