"""Predictor: evaluates structures with the ensemble of a gfm/ folder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from atomsieve.devices import choose_device
from atomsieve.errors import DataError, UsageError, unknown
from atomsieve.forks import check_fork
from atomsieve.gfm import EnsembleManifest, ensemble_id, load_gfm, read_calibration
from atomsieve.gfm.domain_file import read_domain
from atomsieve.gfm.mixture_file import read_mixture
from atomsieve.graphs import Graph, build_graph, shortest_edges
from atomsieve.models import Ensemble
from atomsieve.models.elements import MAX_NUMBER
from atomsieve.predict.backends.interface import Backend
from atomsieve.predict.backends.native import NativeBackend
from atomsieve.predict.backends.select import open_backend
from atomsieve.predict.base import DeferredCall
from atomsieve.predict.condition_test import ConditionTest
from atomsieve.predict.domain_flags import Outside
from atomsieve.predict.domain_test import DomainTest
from atomsieve.predict.interface import AnyPredictor, Capabilities, Pending
from atomsieve.predict.intervals import HeadUncertainty
from atomsieve.predict.prediction import PROPERTIES, Prediction
from atomsieve.predict.result_buffer import ResultBuffer
from atomsieve.predict.status import SHORTEST_DISTANCE, Status, check_inputs
from atomsieve.structures import StructureBatch
from atomsieve.structures.batch import check_batch
from atomsieve.uncertainty.calibration import Calibration
from atomsieve.uncertainty.domain import HeadDomain
from atomsieve.uncertainty.head_mixture import AUTO, Mixture, reference_gap

Builder = Callable[..., Graph]
FAR_APART = 1.0
"""eV by which the references of one element may differ between heads before their mixture needs a warning."""


class Predictor:
    """An ensemble, ready to be called on batches of structures.

    Attributes
    ----------
    heads : names of all heads; default_head : the folder's own; head : the one used when a call names none.
    ensemble_id : SHA-256 that names the ensemble.
    members, kind ("deep" or "shallow"), cutoff (Angstrom), precision, device : as loaded. backend : the one in use;
        why : one line on how it was chosen.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        manifest: EnsembleManifest,
        *,
        folder: str | Path,
        identity: str,
        calibration: Calibration,
        domains: Mapping[str, HeadDomain],
        mixture: Mixture | None = None,
        head: str | None,
        precision: str,
        device: str,
        backend: str,
    ) -> None:
        self.heads = [h.name for h in manifest.heads]
        self.default_head = manifest.default_head
        self.head = self.default_head if head is None else head
        self._index = {name: k for k, name in enumerate(self.heads)}
        self._mixture = mixture
        if self.head != AUTO:
            self._check_head(self.head)
        self.device = choose_device(device)
        self.ensemble_id = identity
        self.members, self.cutoff, self.kind = ensemble.members, manifest.cutoff, ensemble.kind
        self._config = manifest.config
        self._specs = manifest.heads
        self._uncertainty = {name: HeadUncertainty(calibration.head(name)) for name in (*self.heads, AUTO)}
        self._domain = DomainTest(manifest, domains)
        raw = ensemble.encoder.raw_condition
        self._conditions = ConditionTest(manifest.heads, raw=raw) if manifest.config.charge_spin else None
        self._run = open_backend(backend, folder, ensemble, manifest, precision, self.device)
        self.precision, self.backend, self.why = precision, self._run.name, self._run.why
        self._check_head(self.head)
        self._seen = np.zeros((len(self.heads), 256), bool)
        for k, spec in enumerate(self._specs):
            self._seen[k, sorted(spec.references)] = True

    def _check_head(self, name: str) -> None:
        """Raise UsageError for a name that is neither a head nor the mixture of an ensemble that has one."""
        if name in self._index:
            return
        if name != AUTO:
            raise unknown("head", name, self.heads if self._mixture is None else [*self.heads, AUTO])
        if self._mixture is None:
            raise UsageError(
                f"head {AUTO}: this ensemble holds no learned mixture of its heads; fit one with `atomsieve mixture`, "
                f"or name one of {', '.join(self.heads)}"
            )
        if AUTO not in self.capabilities.choices:
            raise UsageError(f"head {AUTO}: backend {self.backend} mixes no heads; use --backend native, or name one")

    def mixture(self, batch: StructureBatch) -> NDArray[np.float64]:
        """Return the weights [S,H] of the heads in each structure that head "auto" mixes; zeros where no head applies.

        Raises
        ------
        UsageError
            if the folder holds no mixture.
        """
        self._check_head(AUTO)
        assert self._mixture is not None
        return self._mixture(batch, self._seen[:, 1 : MAX_NUMBER + 1])

    @property
    def capabilities(self) -> Capabilities:
        """Features that depend on the ensemble and on the backend in use."""
        mixes = self._mixture is not None and self._run.name == "native"
        return Capabilities(
            choices=(*self.heads, AUTO) if mixes else tuple(self.heads),
            precisions=(self.precision,),
            outputs=self._run.outputs,
            graphs=True,
            charge_spin=self._config.charge_spin,
            features=self._config.hidden,
            budget=self._run.budget,
            max_atoms=self._run.max_atoms,
            fallback=True,
            artefact=self._run.digest,
        )

    @property
    def run(self) -> Backend:
        """The backend that evaluates graphs."""
        return self._run

    def note(self, head: str) -> str | None:
        """Return one line that a user of a head must know, or None."""
        if head != AUTO or self._mixture is None:
            return None
        gap, z, one, other = reference_gap([s for s in self._specs if s.name in self._mixture.mixed])
        if gap < FAR_APART:
            return None
        return (
            f"head {AUTO} mixes levels of theory with different zeros of energy (an atom of {chemical_symbols[z]}: "
            f"{gap:,.0f} eV apart in {one} and {other}); compare its energies within one composition only"
        )

    def references(self, head: str) -> NDArray[np.float64]:
        """Return the energy [256] eV of one atom of each element, by atomic number; NaN where the head has none.

        All of "auto" are NaN: how it mixes those of the heads depends on the whole composition.
        """
        table = np.full(256, np.nan)
        if head == AUTO:
            return table
        for number, energy in self._specs[self._index[head]].references.items():
            table[number] = energy
        return table

    def elements(self, head: str) -> list[int]:
        """Return the atomic numbers of the elements that a head was trained on; of "auto", those of all mixed heads."""
        return np.flatnonzero(self._elements_seen(head)).tolist()

    def _elements_seen(self, head: str) -> NDArray[np.bool_]:
        """Return a mask [256] of the elements that a head was trained on; of "auto", those of all mixed heads."""
        mixed = self.heads if self._mixture is None else self._mixture.mixed
        return np.asarray(self._seen[[self._index[n] for n in (mixed if head == AUTO else [head])]].any(0))

    @staticmethod
    def load(
        folder: str | Path,
        head: str | None = None,
        precision: str = "fp32",
        device: str = "cpu",
        backend: str = "native",
    ) -> Predictor:
        """Open a gfm/ folder, checking every file against its manifest.

        head : used when a call names none; None takes the folder's default head. "auto" mixes the heads by composition,
            with the folder's learned mixture.
        precision : fp64, fp32, or bf16 (matrix products only).
        device : cpu, cuda, cuda:N or auto.
        backend : native; onnx, torchscript or pt2 where `atomsieve export` made one; or auto, the fastest that was
            checked on this machine.

        Raises
        ------
        DataError
            if the folder is damaged; UsageError for a name outside the allowed ones, with the nearest, or in a forked
            process that would hang (`atomsieve.forks`).
        """
        check_fork()
        ensemble, manifest = load_gfm(folder)
        identity = ""
        names = [h.name for h in manifest.heads]
        while identity != ensemble_id(folder):  # again if the calibration or the domain changed in between
            identity, calibration = ensemble_id(folder), read_calibration(folder)
            domains = read_domain(folder, names, manifest.config.hidden)
            mixture = read_mixture(folder, names)
        return Predictor(
            ensemble,
            manifest,
            folder=folder,
            identity=identity,
            calibration=calibration,
            domains=domains,
            mixture=mixture,
            head=head,
            precision=precision,
            device=device,
            backend=backend,
        )

    def uncertainty(self, head: str) -> HeadUncertainty:
        """Return the errors and intervals that the calibration of a head gives for a spread."""
        return self._uncertainty[head]

    def with_backend(self, run: Backend) -> Predictor:
        """Return this predictor with another way to evaluate graphs; all checks stay as they are."""
        other = copy.copy(self)
        other._run = run
        other.precision, other.backend, other.why = run.precision, run.name, run.why
        return other

    def with_members(self, members: int) -> Predictor:
        """Return this predictor with its first members alone; the native backend holds them one by one."""
        run = self._run
        assert isinstance(run, NativeBackend)
        model = run.model.take(list(range(members)))
        other = self.with_backend(NativeBackend(model, run.precision, self.device, run.why))
        other.members = members
        return other

    def describe(self) -> dict[str, Any]:
        """Return a description as plain data, for logs and manifests."""
        return {
            "ensemble_id": self.ensemble_id,
            "heads": self.heads,
            "head": self.head,
            "levels_of_theory": {h.name: h.level_of_theory for h in self._specs}
            | ({AUTO: "a mixture of those of the heads"} if AUTO in self.capabilities.choices else {}),
            "calibrated": {name: sorted(self._uncertainty[name].calibrated) for name in self.capabilities.choices},
            "domain": self._domain.describe(),
            "members": self.members,
            "kind": self.kind,
            "cutoff": self.cutoff,
            "precision": self.precision,
            "device": str(self.device),
            "backend": self.backend,
            "why": self.why,
        }

    def costliest(self) -> AnyPredictor:
        """Return itself."""
        return self

    def lost_endpoints(self) -> dict[str, str]:
        """Return an empty mapping: this process computes."""
        return {}

    def is_calibrated(self, head: str) -> bool:
        """Return whether the energy uncertainty of a head was calibrated."""
        return "energy" in self._uncertainty[head].calibrated

    def __call__(
        self,
        batch: StructureBatch,
        want: Collection[str] = ("energy", "forces", "spread"),
        head: str | None = None,
        max_structure_atoms: int | None = None,
        build: Builder | None = None,
    ) -> Prediction:
        """Evaluate a batch for one head; results are in input order, one status per structure.

        want : any of `atomsieve.predict.prediction.PROPERTIES`. Energies are always returned. With forces,
            "force_spread" (implied by "spread") adds their spread and "members" those of each member.
        head : name of a head; None takes `self.head`.
        max_structure_atoms : structures above it get the status TOO_LARGE.
        build : makes the graph of a batch, with the arguments and results of `atomsieve.graphs.build_graph`, which is
            the default.

        Raises
        ------
        UsageError
            for an unknown head or property, or in a forked process that would hang (`atomsieve.forks`). A structure
            that cannot be evaluated raises nothing: it gets a status.
        """
        check_fork()
        for name in want:
            if name not in PROPERTIES:
                raise unknown("property", name, PROPERTIES)
        name = self.head if head is None else head
        self._check_head(name)
        check_batch(batch)
        batch.validate()
        asked = set(want)
        if "spread" in asked and self.kind == "deep":  # whose members all have forces anyway
            asked.add("force_spread")
        results = ResultBuffer(batch, self.members, asked, name)
        which: int | NDArray[np.float64] = self.mixture(batch) if name == AUTO else self._index[name]
        judge = which.argmax(1) if isinstance(which, np.ndarray) else which
        results.status[:] = check_inputs(
            batch,
            self._elements_seen(name),
            charge_spin=self._config.charge_spin,
            impossible=None if self._conditions is None else self._conditions.find_impossible(batch, judge),
            max_atoms=max_structure_atoms,
        )
        if isinstance(which, np.ndarray):
            results.status[(results.status == Status.OK) & ~which.any(1)] = Status.UNSEEN_ELEMENT
        results.outside[results.status == Status.UNSEEN_ELEMENT] = Outside.UNSEEN_ELEMENT
        good = np.flatnonzero(results.status == Status.OK)
        for piece in _pieces(batch.counts[good], self._run.max_atoms):
            self._evaluate(batch, good[piece], results, build or build_graph, which)
        if self._conditions is not None:
            unseen = self._conditions.find_outside(batch, judge) & (results.status == Status.OK)
            results.outside[unseen] |= np.uint8(Outside.UNSEEN_CHARGE_OR_SPIN)
        return results.finish(self._uncertainty[name])

    def submit(
        self,
        batch: StructureBatch,
        want: Collection[str] = ("energy", "forces", "spread"),
        head: str | None = None,
    ) -> Pending:
        """Return a batch that is evaluated when its result is asked for."""
        return DeferredCall(self, batch, want, head)

    def _evaluate(
        self,
        batch: StructureBatch,
        index: NDArray[np.int64],
        results: ResultBuffer,
        build: Builder,
        which: int | NDArray[np.float64],
    ) -> None:
        """Fill in the results of the structures `index`; `which` is a head, or the weights [S,H] of the whole batch."""
        own, graph, index = self._graph(batch, index, results, build)
        if graph is None:
            return
        shortest = shortest_edges(graph)
        overlap = shortest < SHORTEST_DISTANCE
        if overlap.any():
            results.status[index[overlap]] = Status.OVERLAPPING_ATOMS
            self._evaluate(batch, index[~overlap], results, build, which)
            return
        head = which[index] if isinstance(which, np.ndarray) else which
        out = self._run(own, graph, head, results.want | ({"features"} if self._domain.needs_features(head) else set()))
        results.store(index, own, out, *self._domain(own, graph, head, out.features))

    def _graph(
        self, batch: StructureBatch, index: NDArray[np.int64], results: ResultBuffer, build: Builder
    ) -> tuple[StructureBatch, Graph | None, NDArray[np.int64]]:
        """Build the graph of the structures `index`, without those that have no neighbour list: they get a status."""
        own = batch.take(index)
        if len(index) == 0:
            return own, None, index
        config = self._config
        try:
            graph = build(
                own, config.cutoff, max_neighbors=config.max_neighbors, device=self.device, dtype=self._run.dtype
            )
        except DataError:
            if len(index) == 1:
                results.status[index] = Status.BAD_GEOMETRY
                return own, None, index[:0]
            kept = [self._graph(batch, half, results, build)[2] for half in np.array_split(index, 2)]
            return self._graph(batch, np.concatenate(kept), results, build)
        return own, graph, index


def _pieces(counts: NDArray[np.int64], budget: int) -> list[NDArray[np.int64]]:
    """Split consecutive structures into pieces of at most `budget` atoms (one structure at the least)."""
    ends = np.cumsum(counts)
    pieces, start = [], 0
    while start < len(counts):
        before = int(ends[start - 1]) if start else 0
        stop = max(int(np.searchsorted(ends, before + budget, side="right")), start + 1)
        pieces.append(np.arange(start, stop))
        start = stop
    return pieces
