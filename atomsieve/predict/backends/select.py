"""Backends: how the members are evaluated on a graph. All answer the same call; `native` is the reference."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError, UsageError, unknown
from atomsieve.export.artefact import Artefact
from atomsieve.export.spec import machine
from atomsieve.export.trust import is_trusted
from atomsieve.gfm import ExportEntry, Manifest
from atomsieve.gfm.exports import FORMATS, export_key
from atomsieve.graphs import Graph
from atomsieve.models import Ensemble, set_precision
from atomsieve.models.layers import MATMULS
from atomsieve.predict.packing import cached_budget
from atomsieve.structures import StructureBatch

if TYPE_CHECKING:
    from atomsieve.models.hydragnn.fast.ensemble import FastEnsemble

BACKENDS = ("native", *FORMATS, "auto")
MAX_ATOMS = {"cpu": 20_000, "cuda": 200_000}
"""Atoms that the ensemble itself evaluates at once on each kind of device."""
MEMORY = {"cpu": 1.5e9, "cuda": 3e10}
"""Bytes that an artefact may take for one batch, roughly."""
ARRAYS = {"onnx": 60, "torchscript": 30, "pt2": 6}
"""Arrays [K,N,W,F] that an artefact holds at its peak, as measured: `benchmarks/backends.py`."""


EDGE_ARRAYS = 8
"""Arrays [K,E,3F] that HydraGNN's model by automatic differentiation holds at its peak, roughly."""


@dataclass(frozen=True)
class Evaluation:
    """What the members say of S structures with N atoms.

    Attributes
    ----------
    energy_members : [K,S] eV, element references included; energy, energy_std : [S] mean and unbiased spread.
    forces, forces_std : [N,3] eV/Angstrom, or None; forces_std is NaN with one member, and None of a shallow ensemble
        unless "force_spread" was asked for.
    virial : [S,3,3] eV, mean, or None.
    atom_energies : [N] eV, mean of the atoms' shares in the energy, references included, or None.
    forces_members : [K,N,3] eV/Angstrom, or None.
    features : [N,F], scalars that the first member's encoder gives each atom, or None.
    """

    energy_members: NDArray[np.float64]
    energy: NDArray[np.float64]
    energy_std: NDArray[np.float64]
    forces: NDArray[np.float64] | None = None
    forces_std: NDArray[np.float64] | None = None
    virial: NDArray[np.float64] | None = None
    atom_energies: NDArray[np.float64] | None = None
    forces_members: NDArray[np.float64] | None = None
    features: NDArray[np.float32] | None = None


class Backend(Protocol):
    """Evaluates all members on one graph.

    Attributes
    ----------
    name, precision : as asked for. dtype : of the edge vectors in the graphs that it is given.
    max_atoms : evaluated at once; a larger batch is worked through in consecutive pieces.
    outputs : what it gives beside the energy: of "forces", "stress", "energies" and "forces_members".
    why : one line on how it was chosen. digest : SHA-256 that names the artefact, None for native.
    """

    name: str
    precision: str
    dtype: torch.dtype
    max_atoms: int
    outputs: frozenset[str]
    why: str
    digest: str | None

    def __call__(
        self, batch: StructureBatch, graph: Graph, head: int | NDArray[np.float64], want: Collection[str]
    ) -> Evaluation:
        """Evaluate a batch and its graph for one head.

        head : its index, or [S,H], the weight of every head in each structure: then all are mixed, by one pass.
        want : any of `atomsieve.predict.prediction.PROPERTIES`; "features" are those of the first encoder.
        """


class NativeBackend:
    """The ensemble itself, eagerly, in one precision on one device."""

    name = "native"
    digest: str | None = None
    budget: tuple[int, int] | None = None
    """Atoms and edges of a batch that suits this model; None: what is usual on the device."""

    def __init__(self, ensemble: Ensemble, precision: str, device: torch.device, why: str = "as asked") -> None:
        self.model = set_precision(ensemble, precision).to(device).eval().requires_grad_(False)
        self.dtype = torch.float64 if precision == "fp64" else torch.float32
        self.precision, self.why = precision, why
        self.fast = _fast(ensemble, precision, device)
        self.max_atoms = MAX_ATOMS[device.type]
        if device.type == "cpu" and self.fast is None:
            self.budget = cached_budget(ensemble.encoders * ensemble.config.hidden * self.dtype.itemsize)
        if ensemble.config.hydragnn is not None and self.fast is None:
            config = ensemble.config
            per_edge = 3 * config.hidden * (8 if precision == "fp64" else 4) * ensemble.encoders
            per_atom = EDGE_ARRAYS * per_edge * (config.max_neighbors or 1.5 * config.typical_neighbors)
            self.max_atoms = int(np.clip(MEMORY[device.type] / per_atom, 100, self.max_atoms))
        conservative = ensemble.config.forces == "conservative"
        given = {"forces", "forces_members"} | ({"stress"} if conservative else set())
        self.outputs = frozenset(given | (set() if ensemble.encoder.pooled else {"energies"}))

    def __call__(
        self, batch: StructureBatch, graph: Graph, head: int | NDArray[np.float64], want: Collection[str]
    ) -> Evaluation:
        """See `Backend`."""
        device = graph.numbers.device
        if "energies" in want and "energies" not in self.outputs:
            raise UsageError(f"encoder {self.model.config.encoder} gives no energies of atoms; ask for energy alone")
        if isinstance(head, np.ndarray):
            index = torch.from_numpy(head).to(device)
        else:
            index = torch.full((graph.n_structures,), head, dtype=torch.int64, device=device)
        charge = spin = None
        if self.model.config.charge_spin:
            assert batch.charge is not None and batch.spin is not None
            charge, spin = (torch.from_numpy(a).to(device) for a in (batch.charge, batch.spin))
        forces = "forces" in want
        apart = None
        if self.model.shallow and forces and not {"force_spread", "members"}.isdisjoint(want):
            apart = range(self.model.members)
        with torch.no_grad():
            if self.fast is not None and charge is not None and spin is not None:
                out = self.fast(
                    graph, index, charge, spin, forces=forces, stress="stress" in want, features="features" in want
                )
            else:
                out = self.model(
                    graph, index, charge, spin, forces=forces, stress="stress" in want, force_members=apart
                )
            features = out.features
        network = out.energy.cpu().numpy()
        reference = self.model.reference_energy(batch.numbers, batch.ptr, head)
        every = None if out.forces is None else out.forces.detach().double()
        shares = None
        if "energies" in want and out.atom_energy is not None:
            shares = out.atom_energy.double().mean(0).cpu().numpy() + self._of_atoms(batch, head)
        return Evaluation(
            network + reference,
            network.mean(0) + reference,
            network.std(0, ddof=1) if len(network) > 1 else np.full(len(batch), np.nan),
            None if every is None else every.mean(0).cpu().numpy(),
            None if every is None or (self.model.shallow and apart is None) else _spread(every),
            None if out.virial is None else out.virial.mean(0).cpu().numpy(),
            atom_energies=shares,
            forces_members=every.cpu().numpy() if every is not None and "members" in want else None,
            features=features[0].float().cpu().numpy() if "features" in want else None,
        )

    def _of_atoms(self, batch: StructureBatch, head: int | NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the references [N] eV of the atoms."""
        table = self.model.references.numpy()
        if not isinstance(head, np.ndarray):
            return np.asarray(table[head][batch.numbers])
        weights, of_heads = head[batch.structure_of_atom], table[:, batch.numbers].T
        return np.asarray(np.where(weights > 0, weights * of_heads, 0.0).sum(1))


def _fast(ensemble: Ensemble, precision: str, device: torch.device) -> FastEnsemble | None:
    """Return the fast path of HydraGNN's model, where it is that and can be used."""
    if ensemble.config.hydragnn is None:
        return None
    from atomsieve.models.hydragnn.fast.ensemble import FastEnsemble, fast_serves

    return FastEnsemble(ensemble, precision, device) if fast_serves(ensemble, device) else None


def _spread(every: torch.Tensor) -> NDArray[np.float64]:
    if every.shape[0] == 1:
        return np.full(tuple(every.shape[1:]), np.nan)
    found: NDArray[np.float64] = every.std(0).cpu().numpy()
    return found


class ExportedBackend:
    """An exported artefact; energies alone come from an energy-only one where the folder has it."""

    dtype = torch.float32

    def __init__(
        self,
        artefact: Artefact,
        energy_only: Artefact | None,
        encoder: NativeBackend,
        max_atoms: int,
        why: str = "as asked",
    ) -> None:
        self.artefact, self.energy_only, self.encoder, self.why = artefact, energy_only, encoder, why
        self.name, self.precision = artefact.entry.format, artefact.entry.precision
        self.digest: str | None = artefact.digest
        self.max_atoms = max_atoms
        given = {"forces": "forces", "stress": "virial"}
        self.outputs = frozenset(name for name, stored in given.items() if stored in artefact.entry.outputs)

    def __call__(
        self, batch: StructureBatch, graph: Graph, head: int | NDArray[np.float64], want: Collection[str]
    ) -> Evaluation:
        """See `Backend`."""
        entry = self.artefact.entry
        if isinstance(head, np.ndarray):
            raise UsageError(f"{entry.key} cannot mix heads; name one head, or use --backend native with head auto")
        forces, stress = "forces" in want, "stress" in want
        lacking = [n for n, asked in (("forces", forces), ("virial", stress)) if asked and n not in entry.outputs]
        if lacking:
            raise UsageError(
                f"{entry.key} gives no {lacking[0]}; allowed: {', '.join(entry.outputs)}. Export without "
                "--energy-only, or use --backend native"
            )
        spread = forces and "force_spread" in want and "forces_std" not in entry.outputs
        if "energies" in want or (forces and "members" in want) or spread:
            what = "energies of atoms" if "energies" in want else "spread of forces" if spread else "forces of members"
            raise UsageError(f"{entry.key} gives no {what}; use --backend native")
        light = self.energy_only is not None and not (forces or stress)
        found = (self.energy_only if light else self.artefact)(batch, graph, head)  # type: ignore[misc]
        out: dict[str, Any] = {n: found[n] for n in ("energy_members", "energy", "energy_std")}
        if forces:
            given = [n for n in ("forces", "forces_std") if n in entry.outputs]
            out |= {n: np.asarray(found[n], np.float64) for n in given}
        features = None
        if "features" in want:  # an artefact holds none: the first member's encoder gives them, energies alone
            features = self.encoder(batch, graph, head, {"energy", "features"}).features
        return Evaluation(**out, virial=found["virial"] if stress else None, features=features)


def choose_device(name: str) -> torch.device:
    """Return the device that a name stands for; `auto` takes CUDA where it is.

    Raises
    ------
    UsageError
        for a name that is no device; AtomSieveError for one that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise unknown("device", name, ("auto", "cpu", "cuda", "cuda:0"))
    if kind == "cuda" and (not torch.cuda.is_available() or int(index or 0) >= torch.cuda.device_count()):
        raise AtomSieveError(
            f"device {name!r} is not here ({torch.cuda.device_count()} CUDA devices); use --device cpu"
        )
    return torch.device(name)


def make_backend(
    name: str, folder: str | Path, ensemble: Ensemble, manifest: Manifest, precision: str, device: torch.device
) -> Backend:
    """Build a backend by name; names and precisions that do not exist are refused with those that do.

    `auto` takes the fastest one in this precision that was checked on this machine (see `fastest`).
    """
    if name not in BACKENDS:
        raise unknown("backend", name, BACKENDS)
    if precision not in MATMULS:
        raise unknown("precision", precision, MATMULS)
    why = "as asked"
    if name == "auto":
        name, why = fastest(folder, manifest, precision, device)
    if name == "native":
        return NativeBackend(ensemble, precision, device, why)
    entry = export_entry(folder, manifest, name, precision, device)
    light = manifest.exports.get(export_key(name, precision, "energy", entry.device))
    if light is entry:
        light = None
    return ExportedBackend(
        Artefact(folder, manifest, entry, device),
        None if light is None else Artefact(folder, manifest, light, device),
        NativeBackend(ensemble.take([0]), "fp32", device),
        atoms_at_once(manifest, entry, device),
        why,
    )


def atoms_at_once(manifest: Manifest, entry: ExportEntry, device: torch.device) -> int:
    """Return how many atoms an artefact evaluates at once: runtimes that fuse nothing hold every array of edges."""
    config = manifest.config
    places = places_per_atom(manifest)
    size = 8 if entry.precision == "fp64" else 4
    encoders = 1 if manifest.kind == "shallow" else len(manifest.members)
    bytes_per_atom = ARRAYS[entry.format] * encoders * places * config.hidden * size
    return int(np.clip(MEMORY[device.type] / bytes_per_atom, 100, MAX_ATOMS[device.type]))


def places_per_atom(manifest: Manifest) -> float:
    """Return how wide a neighbour table is expected to be."""
    return manifest.config.max_neighbors or 1.5 * manifest.config.typical_neighbors


def _find(manifest: Manifest, name: str, precision: str, device: torch.device) -> ExportEntry | None:
    for kind in ("forces", "energy"):
        for made_for in dict.fromkeys((device.type, "cpu")):
            entry = manifest.exports.get(export_key(name, precision, kind, made_for))
            if entry is not None and entry.device in (device.type, "any"):
                return entry
    return None


def export_entry(
    folder: str | Path, manifest: Manifest, name: str, precision: str, device: torch.device
) -> ExportEntry:
    """Return the artefact for a format, precision and device; one with forces before one without.

    Raises
    ------
    AtomSieveError
        if there is none, with the command that makes it.
    """
    entry = _find(manifest, name, precision, device)
    if entry is None:
        there = ", ".join(manifest.exports) or "none"
        raise AtomSieveError(
            f"{folder} has no {name} export in {precision} for {device.type} (there: {there}); make it with: "
            f"atomsieve export {folder} --format {name} --precision {precision}"
            + (f" --device {device.type}" if device.type != "cpu" else "")
        )
    return entry


def fastest(folder: str | Path, manifest: Manifest, precision: str, device: torch.device) -> tuple[str, str]:
    """Return the backend that was measured fastest on this machine, and one line that says why.

    A candidate passed its fidelity check (none is written otherwise) on this processor, and holds no foreign code.
    Speeds count relative to native, each measured in the same run.
    """
    here, ratios, left = machine(), {"native": 1.0}, []
    for name in FORMATS:
        entry = _find(manifest, name, precision, device)
        if entry is None or entry.kind != "forces":
            continue
        if entry.machine != here:
            left.append(f"{entry.key} was checked on another processor")
        elif not is_trusted(folder, entry):
            left.append(f"{entry.key} holds code that this user has not trusted")
        elif entry.speed.get("native"):
            ratios[name] = entry.speed["structures_per_s"] / entry.speed["native"]
    best = max(ratios, key=lambda n: ratios[n])
    known = ", ".join(f"{n} {r:.2f}" for n, r in sorted(ratios.items(), key=lambda kv: -kv[1]))
    why = (
        f"fastest in {precision} here, relative to native: {known}"
        if len(ratios) > 1
        else (f"no export in {precision} was checked on this machine")
    )
    return best, "; ".join([why, *left])
