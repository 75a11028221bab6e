"""The ensemble as a torch-sim model: `pip install 'atomsieve[torchsim]'`.

model = TorchSimModel("gfm/", head="mptrj")
final = torch_sim.optimize(system=atoms, model=model, optimizer=torch_sim.frechet_cell_fire)
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atomsieve.errors import DataError, UsageError, require, unknown
from atomsieve.graphs import SkinList
from atomsieve.predict import AnyPredictor, Predictor, Status
from atomsieve.structures import StructureBatch
from atomsieve.structures.fields import to_numbers

if TYPE_CHECKING:
    from torch_sim.models.interface import ModelInterface
else:
    ModelInterface = require("torch_sim.models.interface", "torchsim", "torch-sim models").ModelInterface

NAMES = ("energy", "forces", "stress")


class TorchSimModel(ModelInterface):
    """An ensemble as a torch-sim `ModelInterface`: means over members, and their spread.

    Gives `energy [S]` eV, `forces [N,3]` eV/Angstrom, `stress [S,3,3]` eV/Angstrom^3 (where periodic), and with several
    members `energy_std [S]` and `forces_std [N,3]`; with a calibrated head `sigma_energy [S]`, `sigma_forces [N]`; and
    `in_domain [S]` (bool). No gradient runs through them. A shallow ensemble gives no `forces_std` and `sigma_forces`
    here, as each member's forces would take a backward pass of their own.

    Parameters
    ----------
    gfm : a gfm/ folder, or a loaded `Predictor` (then precision and device are its own).
    head, precision, device, backend : as for `Predictor.load`. skin : see `atomsieve.graphs.SkinList`.
    pbc : the axes along which all systems are periodic, such as (True, True, False) for slabs; None takes the state's.
        torch-sim makes states of atoms with one truth value for all axes, and partial periodicity becomes False there:
        cells that arrive without periodicity are warned about, once.

    Raises
    ------
    UsageError
        for an unknown head, an ensemble without forces, one that needs charge and spin, or a `pbc` that is no one or
        three truth values. In a call: DataError naming the first system that has no result, and why.
    """

    def __init__(
        self,
        gfm: str | Path | AnyPredictor,
        head: str | None = None,
        precision: str = "fp64",
        device: str = "auto",
        backend: str = "native",
        skin: float | None = None,
        pbc: bool | Sequence[bool] | None = None,
    ) -> None:
        super().__init__()
        self._pbc = None if pbc is None else _check_axes(pbc)
        self._warned = False
        self.predictor: AnyPredictor
        if isinstance(gfm, str | Path):
            self.predictor = Predictor.load(gfm, head, precision, device, backend)
        else:
            self.predictor = gfm
        if self.predictor.capabilities.endpoints:
            raise UsageError(
                "torch-sim computes in this process, and a server computes for this predictor; use RemoteCalculator"
            )
        self.head = self.predictor.head if head is None else head
        if self.head not in (choices := self.predictor.capabilities.choices):
            raise unknown("head", self.head, choices)
        outputs = self.predictor.capabilities.outputs
        if "forces" not in outputs:
            raise UsageError(f"torch-sim needs forces, which backend {self.predictor.backend} does not give")
        if self.predictor.capabilities.charge_spin:
            raise UsageError("the ensemble needs charge and spin, which torch-sim models do not get; use GFMCalculator")
        self._device = torch.device(self.predictor.device)
        self._dtype = torch.float64 if self.predictor.precision == "fp64" else torch.float32
        self._compute_forces = True
        self._compute_stress = "stress" in outputs
        self._memory_scales_with = "n_atoms_x_density"
        self._build = SkinList(skin, self._device)

    @property
    def compute_forces(self) -> bool:
        """Whether forces are computed."""
        return self._compute_forces

    @compute_forces.setter
    def compute_forces(self, wanted: bool) -> None:
        self._compute_forces = bool(wanted)

    @property
    def compute_stress(self) -> bool:
        """Whether stresses are computed."""
        return self._compute_stress

    @compute_stress.setter
    def compute_stress(self, wanted: bool) -> None:
        if wanted and "stress" not in self.predictor.capabilities.outputs:
            raise NotImplementedError("this ensemble gives no stress (direct forces, or an export without it)")
        self._compute_stress = bool(wanted)

    def forward(self, state: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Evaluate the systems of a `SimState`, or a dictionary with its fields; see the class."""
        import torch_sim

        if isinstance(state, dict):
            masses = torch.ones_like(state["positions"][:, 0])
            state = torch_sim.SimState(**{"masses": masses, "pbc": True, **state})
        batch = self._batch(state)
        want = {"energy", "spread"}
        want |= {"forces"} if self._compute_forces else set()
        want |= {"stress"} if self._compute_stress and batch.pbc.all() else set()
        found = self.predictor(batch, want, head=self.head, build=self._build)
        for s in np.flatnonzero(found.status):
            status = Status(found.status[s])
            raise DataError(f"system {s} of {len(batch)} has no result: it {status.meaning}; take it out of the state")
        out = {name: getattr(found, name) for name in NAMES}
        if self.predictor.members > 1:
            out |= {"energy_std": found.energy_std, "forces_std": found.forces_std}  # what is None is left out below
            calibrated = {"sigma_energy": "energy", "sigma_forces": "forces"}
            out |= {name: getattr(found, name) for name, kind in calibrated.items() if kind in found.calibrated}
        tensors = {n: torch.from_numpy(a).to(self._device, self._dtype) for n, a in out.items() if a is not None}
        if self._compute_stress and "stress" not in tensors:  # torch-sim wants one for molecules, too
            tensors["stress"] = torch.zeros(len(batch), 3, 3, device=self._device, dtype=self._dtype)
        return tensors | {"in_domain": torch.from_numpy(found.in_domain).to(self._device)}

    def _batch(self, state: Any) -> StructureBatch:
        """Return the systems of a state as a batch, periodic as the model was told or else as the state is."""
        batch = _batch(state)
        if self._pbc is not None:
            return batch.replace(pbc=np.tile(self._pbc, (len(batch), 1)))
        if not self._warned and batch.cell.any() and not batch.pbc.any():
            self._warned = True
            warnings.warn(
                "systems have cells, but the state is not periodic: they are computed as clusters. torch-sim makes a "
                "state of atoms periodic along all axes or none, so that slabs and wires lose their periodicity; for "
                "slabs make the model with pbc=(True, True, False), for clusters in a box with pbc=False",
                stacklevel=5,  # beyond torch's own two calls of a module
            )
        return batch


def _check_axes(pbc: bool | Sequence[bool]) -> NDArray[np.bool_]:
    """Return the periodicity of three axes.

    Raises
    ------
    UsageError
        for anything but one or three truth values.
    """
    axes = np.asarray(pbc)
    if axes.dtype != bool or axes.shape not in ((), (3,)):
        raise UsageError(f"pbc must be one or three truth values, such as (True, True, False), got {pbc!r}")
    return np.broadcast_to(axes, 3).copy()


def _batch(state: Any) -> StructureBatch:
    """Return the systems of a state as a batch; torch-sim keeps cell vectors in columns."""

    def plain(t: Tensor, dtype: torch.dtype) -> Any:
        return t.detach().to("cpu", dtype).contiguous().numpy()

    systems = int(state.n_systems)
    counts = np.bincount(plain(state.system_idx, torch.int64), minlength=systems)
    pbc = state.pbc
    flags = np.asarray(pbc.cpu() if isinstance(pbc, Tensor) else pbc, bool)
    return StructureBatch(
        ptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        numbers=to_numbers(plain(state.atomic_numbers, torch.int64)),
        positions=plain(state.positions, torch.float64),
        cell=plain(state.row_vector_cell, torch.float64),
        pbc=np.broadcast_to(flags, (systems, 3)).copy(),
        id=np.arange(systems, dtype=np.int64),
    )
