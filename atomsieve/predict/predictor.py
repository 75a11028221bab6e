"""Predictor: the one way to get numbers out of a gfm/ folder."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError, unknown
from atomsieve.graphs import Graph, build_graph, shortest_edges
from atomsieve.models import Ensemble, Manifest, ensemble_id, load_gfm, read_calibration
from atomsieve.predict.backends import Evaluation, choose_device, make_backend
from atomsieve.predict.prediction import PROPERTIES, Prediction
from atomsieve.predict.status import SHORTEST_DISTANCE, Status, check_inputs
from atomsieve.structures import StructureBatch


class Predictor:
    """An ensemble, ready to be called on batches of structures.

    Attributes
    ----------
    heads : names of all heads; default_head : the folder's own; head : the one used when a call names none.
    ensemble_id : SHA-256 that names the ensemble.
    members, cutoff (Angstrom), precision, device : as loaded. backend : the one in use; why : how it was chosen.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        manifest: Manifest,
        *,
        folder: str | Path,
        identity: str,
        calibration: dict[str, Any],
        head: str | None,
        precision: str,
        device: str,
        backend: str,
    ) -> None:
        self.heads = [h.name for h in manifest.heads]
        self.default_head = manifest.default_head
        self.head = self.default_head if head is None else head
        self._index = {name: k for k, name in enumerate(self.heads)}
        if self.head not in self._index:
            raise unknown("head", self.head, self.heads)
        self.device = choose_device(device)
        self.ensemble_id = identity
        self.members, self.cutoff = ensemble.members, manifest.cutoff
        self._config = manifest.config
        self._specs = manifest.heads
        self._calibration = calibration.get("heads", {})
        self._run = make_backend(backend, folder, ensemble, manifest, precision, self.device)
        self.precision, self.backend, self.why = precision, self._run.name, self._run.why
        self._seen = np.zeros((len(self.heads), 256), bool)
        for k, spec in enumerate(self._specs):
            self._seen[k, sorted(spec.references)] = True

    @property
    def artefact(self) -> str | None:
        """SHA-256 that names the exported artefact in use, None for the native backend."""
        return self._run.digest

    @staticmethod
    def load(
        folder: str | Path,
        head: str | None = None,
        precision: str = "fp32",
        device: str = "cpu",
        backend: str = "native",
    ) -> Predictor:
        """Open a gfm/ folder, checking every file against its manifest.

        head : the head used when a call names none; None takes the folder's default head.
        precision : fp64, fp32, or bf16 (matrix products only).
        device : cpu, cuda, cuda:N or auto.
        backend : native; onnx, torchscript or pt2 where `atomsieve export` made one; or auto, the fastest that was
            checked on this machine.

        Raises
        ------
        DataError
            if the folder is damaged; UsageError for a name outside the allowed ones, with the nearest.
        """
        ensemble, manifest = load_gfm(folder)
        return Predictor(
            ensemble,
            manifest,
            folder=folder,
            identity=ensemble_id(folder),
            calibration=read_calibration(folder),
            head=head,
            precision=precision,
            device=device,
            backend=backend,
        )

    def describe(self) -> dict[str, Any]:
        """Return what this predictor is, as plain data for logs and manifests."""
        return {
            "ensemble_id": self.ensemble_id,
            "heads": self.heads,
            "head": self.head,
            "levels_of_theory": {h.name: h.level_of_theory for h in self._specs},
            "calibrated": sorted(self._calibration),
            "members": self.members,
            "cutoff": self.cutoff,
            "precision": self.precision,
            "device": str(self.device),
            "backend": self.backend,
            "why": self.why,
        }

    def calibrated(self, head: str) -> bool:
        """Say whether the energy uncertainty of a head was calibrated."""
        return "energy_per_atom" in self._calibration.get(head, {})

    def __call__(
        self,
        batch: StructureBatch,
        want: Collection[str] = ("energy", "forces", "spread"),
        head: str | None = None,
        max_structure_atoms: int | None = None,
    ) -> Prediction:
        """Evaluate a batch for one head; results are in input order, one status per structure.

        want : any of energy, forces, stress, spread, members. Energies always come.
        head : name of a head; None takes `self.head`.
        max_structure_atoms : structures above it get the status TOO_LARGE.

        Raises
        ------
        UsageError
            for an unknown head or property. A bad structure raises nothing: it gets a status.
        """
        for name in want:
            if name not in PROPERTIES:
                raise unknown("property", name, PROPERTIES)
        name = self.head if head is None else head
        if name not in self._index:
            raise unknown("head", name, self.heads)
        batch.validate()
        results = _Results(batch, self.members, set(want), name)
        results.status[:] = check_inputs(
            batch, self._seen[self._index[name]], charge_spin=self._config.charge_spin, max_atoms=max_structure_atoms
        )
        good = np.flatnonzero(results.status == Status.OK)
        for piece in _pieces(batch.counts[good], self._run.max_atoms):
            self._evaluate(batch, good[piece], results)
        return results.finish(self._calibration.get(name, {}))

    def _evaluate(self, batch: StructureBatch, index: NDArray[np.int64], results: _Results) -> None:
        """Fill in the results of the structures `index`."""
        own, graph, index = self._graph(batch, index, results)
        if graph is None:
            return
        shortest = shortest_edges(graph)
        overlap = shortest < SHORTEST_DISTANCE
        if overlap.any():
            results.status[index[overlap]] = Status.OVERLAPPING_ATOMS
            self._evaluate(batch, index[~overlap], results)
            return
        head = self._index[results.head]
        want = results.want
        out = self._run(own, graph, head, forces="forces" in want, stress="stress" in want)
        closest = self._specs[head].statistics.get("shortest_distance", 0.0)
        results.put(index, own, out, shortest > closest - 1e-3)

    def _graph(
        self, batch: StructureBatch, index: NDArray[np.int64], results: _Results
    ) -> tuple[StructureBatch, Graph | None, NDArray[np.int64]]:
        """Build the graph of the structures `index`, setting aside any that has no neighbour list."""
        own = batch.take(index)
        if len(index) == 0:
            return own, None, index
        config = self._config
        try:
            graph = build_graph(
                own, config.cutoff, max_neighbors=config.max_neighbors, device=self.device, dtype=self._run.dtype
            )
        except DataError:
            if len(index) == 1:
                results.status[index] = Status.BAD_GEOMETRY
                return own, None, index[:0]
            kept = [self._graph(batch, half, results)[2] for half in np.array_split(index, 2)]
            return self._graph(batch, np.concatenate(kept), results)
        return own, graph, index


class _Results:
    """Arrays of a whole call, filled piece by piece."""

    def __init__(self, batch: StructureBatch, members: int, want: set[str], head: str) -> None:
        structures, atoms = batch.n_structures, batch.n_atoms
        self.batch, self.want, self.head = batch, want, head
        self.status = np.zeros(structures, np.uint8)
        self.in_domain = np.zeros(structures, bool)
        self.energy_members = np.full((members, structures), np.nan)
        self.energy, self.energy_std = np.full(structures, np.nan), np.full(structures, np.nan)
        self.forces = np.full((atoms, 3), np.nan) if "forces" in want else None
        self.forces_std = np.full((atoms, 3), np.nan) if {"forces", "spread"} <= want else None
        self.stress = np.full((structures, 3, 3), np.nan) if "stress" in want else None

    def put(
        self,
        index: NDArray[np.int64],
        own: StructureBatch,
        out: Evaluation,
        in_domain: NDArray[np.bool_],
    ) -> None:
        """Take over the output of a piece whose structures are `index`; non-finite results get a status."""
        finite: NDArray[np.bool_] = np.asarray(np.isfinite(out.energy_members).all(axis=0))
        if out.forces is not None:
            broken = ~np.asarray(np.isfinite(out.forces)).all(axis=1)
            finite[np.unique(own.structure_of_atom[broken])] = False
        self.status[index[~finite]] = Status.NAN_OUTPUT
        self.in_domain[index] = in_domain & finite
        self.energy_members[:, index] = np.where(finite, out.energy_members, np.nan)
        self.energy[index] = np.where(finite, out.energy, np.nan)
        self.energy_std[index] = np.where(finite, out.energy_std, np.nan)
        if out.forces is not None and out.forces_std is not None and self.forces is not None:
            starts, counts = self.batch.ptr[:-1][index], own.counts
            atoms = np.repeat(starts - own.ptr[:-1], counts) + np.arange(own.n_atoms)
            keep = np.repeat(finite, counts)[:, None]
            self.forces[atoms] = np.where(keep, out.forces, np.nan)
            if self.forces_std is not None:
                self.forces_std[atoms] = np.where(keep, out.forces_std, np.nan)
        if self.stress is not None and out.virial is not None:
            volume = np.where(own.pbc.all(1) & finite, np.abs(np.linalg.det(own.cell)), np.nan)
            self.stress[index] = out.virial / volume[:, None, None]

    def finish(self, calibration: dict[str, Any]) -> Prediction:
        """Return the prediction of the whole call."""
        spread = sigma = None
        if "spread" in self.want:
            spread = self.energy_std
            sigma = np.full_like(spread, np.nan)
            if "energy_per_atom" in calibration:
                sigma = spread * float(calibration["energy_per_atom"]["scale"])
        return Prediction(
            head=self.head,
            status=self.status,
            in_domain=self.in_domain,
            energy=self.energy,
            energy_std=spread,
            sigma_energy=sigma,
            forces=self.forces,
            forces_std=self.forces_std,
            stress=self.stress,
            energy_members=self.energy_members if "members" in self.want else None,
        )


def _pieces(counts: NDArray[np.int64], budget: int) -> list[NDArray[np.int64]]:
    """Split consecutive structures into pieces of at most `budget` atoms (one structure at the least)."""
    pieces, start, total = [], 0, 0
    for k, count in enumerate(counts.tolist()):
        if total and total + count > budget:
            pieces.append(np.arange(start, k))
            start, total = k, 0
        total += count
    if start < len(counts):
        pieces.append(np.arange(start, len(counts)))
    return pieces
