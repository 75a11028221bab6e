"""What stands before and behind a graph model: raw structures to padded tables, and network outputs to answers.

Both halves go through `Engine` with the checks, the domain and the calibration of the ensemble, as the model that takes
raw structures does; only the network itself runs elsewhere, between them. Knows nothing of Triton.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError
from atomsieve.export.interface import Slot, inputs, outputs
from atomsieve.gfm import ExportEntry, Manifest
from atomsieve.graphs import Graph, build_graph
from atomsieve.graphs.limits import MAX_NEIGHBORS_PER_ATOM
from atomsieve.graphs.table import table_arrays
from atomsieve.predict import Predictor, Status
from atomsieve.predict.backends.select import Evaluation, NativeBackend, atoms_at_once, places_per_atom
from atomsieve.predict.prediction import Prediction
from atomsieve.predict.results import Results
from atomsieve.remote.wire import given
from atomsieve.serve.model.engine import Arrays, Engine
from atomsieve.serve.model.request import Refused, Request
from atomsieve.serve.model.settings import Settings
from atomsieve.structures import StructureBatch
from atomsieve.structures.batch import ragged_index

USED = ("energy", "energy_std", "energy_members", "forces", "forces_std", "virial")
"""Outputs of an artefact that the second half takes."""
WHOLE = 2**62
"""A budget that nothing exceeds: a request is one graph."""
PADDING = 2.0
"""Places of a neighbour table that are allowed for each edge that is expected."""

ROUGHLY = 4.0
"""How much more than a graph model takes may be expected of a request whose neighbours are not yet counted."""


@dataclass(frozen=True)
class Passed:
    """A tensor that goes from the first half to the second, past the network: name, dtype, what it is."""

    name: str
    dtype: np.dtype[Any]
    doc: str


PASSED = (
    Passed("prepared_index", np.dtype("int64"), "structure of the request that each structure of the graph is"),
    Passed("prepared_status", np.dtype("uint8"), "status of each structure of the request"),
    Passed("prepared_outside", np.dtype("uint8"), "reasons against it"),
    Passed("prepared_distance", np.dtype("float64"), "its distance from the training data"),
)


def slots(entry: ExportEntry, manifest: Manifest) -> tuple[tuple[Slot, ...], tuple[Slot, ...]]:
    """Return inputs and outputs of an artefact."""
    taken = inputs(charge_spin=manifest.config.charge_spin, truncated="reverse" in entry.inputs)
    every = outputs(
        entry.kind,
        conservative="virial" in entry.outputs,
        members="forces_members" in entry.outputs,
        shallow=manifest.kind == "shallow",
    )
    return taken, tuple(s for s in every if s.name in entry.outputs)


@dataclass(frozen=True)
class Capacity:
    """How much a graph model takes at once. atoms : N; places : N * W."""

    atoms: int
    places: int

    @staticmethod
    def of(manifest: Manifest, entry: ExportEntry, settings: Settings) -> Capacity:
        """Return the capacity: as in `Predictor`, or as the settings say."""
        atoms = settings.max_atoms or atoms_at_once(manifest, entry, torch.device(settings.device.partition(":")[0]))
        edges = settings.max_edges or int(atoms * places_per_atom(manifest))
        return Capacity(atoms, int(PADDING * edges))

    def settings(self, settings: Settings) -> Settings:
        """Return settings that tell clients how to cut their requests."""
        return settings.model_copy(update={"max_atoms": self.atoms, "max_edges": int(self.places / PADDING)})

    @property
    def bytes(self) -> int:
        """What the tables of so many atoms and places take: places hold a neighbour, a shift, and a way back."""
        return 128 * max(self.atoms, 1) + 28 * max(self.places, MAX_NEIGHBORS_PER_ATOM)

    def refusal(self, atoms: int, width: int) -> str | None:
        """Say why a table is too large, or None; a single atom may have all neighbours that an atom may have."""
        places = max(self.places, MAX_NEIGHBORS_PER_ATOM) if atoms <= 1 else self.places
        for what, size, most in (("atoms", atoms, max(self.atoms, 1)), ("places (N * W)", atoms * width, places)):
            if size > most:
                return (
                    f"the graph has {size} {what}, allowed are {most} at once; send fewer structures, or use the model "
                    "for raw structures, which cuts its work by itself"
                )
        return None


class Recorder:
    """A backend that computes no energy: it keeps the graphs, and gives the features that the domain test reads."""

    name, precision, why = "prepare", "fp32", "prepares graphs"
    dtype, max_atoms, outputs = torch.float32, WHOLE, frozenset[str]()
    digest: str | None = None

    def __init__(self, encoder: NativeBackend, members: int) -> None:
        self._encoder, self._members = encoder, members
        self.seen: list[tuple[StructureBatch, Graph]] = []

    def __call__(
        self, batch: StructureBatch, graph: Graph, head: int | NDArray[np.float64], want: Collection[str]
    ) -> Evaluation:
        """See `atomsieve.predict.backends.select.Backend`."""
        self.seen.append((batch, graph))
        zeros = np.zeros((self._members, len(batch)))
        features = None
        if "features" in want:
            features = self._encoder(batch, graph, head, {"energy", "features"}).features
        return Evaluation(zeros, zeros[0], zeros[0], features=features)


class Preparer:
    """Makes the inputs of an artefact out of requests."""

    def __init__(
        self,
        predictor: Predictor,
        manifest: Manifest,
        entry: ExportEntry,
        settings: Settings,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """Take over a predictor of the ensemble itself, whose first encoder is used; the rest of it is left alone.

        progress : as of `Engine`.
        """
        native = predictor.run
        assert isinstance(native, NativeBackend)
        encoder = NativeBackend(native.model.take([0]), "fp32", predictor.device)
        self._recorder = Recorder(encoder, predictor.members)
        self._slots, _ = slots(entry, manifest)
        self._config = manifest.config
        self._lone = [predictor.elements(name)[0] for name in predictor.heads]
        self.capacity = Capacity.of(manifest, entry, settings)
        whole = settings.model_copy(update={"max_atoms": WHOLE, "max_edges": WHOLE})
        self.engine = Engine(predictor.with_backend(self._recorder), whole, progress)

    def __call__(self, arrays: Mapping[str, NDArray[Any]], parameters: Mapping[str, Any]) -> Arrays | Refused:
        """Return the artefact's inputs by name, and what is `PASSED`, or why the request is refused."""
        asked = ("status", "outside", "distance")
        request = self.engine.read(arrays, parameters, asked)
        if isinstance(request, Refused):
            return request
        refusal = self._crowd(request)
        if refusal is not None:
            return Refused("too_large", refusal)
        self._recorder.seen = []
        [answer] = self.engine([request])
        if isinstance(answer, Refused):
            return answer
        seen, self._recorder.seen = self._recorder.seen, []
        batch, graph, heads, index = self._joined(request, seen)
        reverse = self._slots[-1].name == "reverse"
        refusal = self.capacity.refusal(batch.n_atoms, _width(graph, batch.n_atoms, reverse))
        if refusal is not None:  # before there is a table: one atom with many neighbours makes it wide for all
            return Refused("too_large", refusal)
        tables = table_arrays(graph.neighbors, batch.n_atoms, reverse=reverse)
        own: dict[str, Any] = {
            "numbers": batch.numbers,
            "positions": batch.positions,
            "cell": batch.cell,
            "structure": batch.structure_of_atom,
            "head": heads,
            "charge": batch.charge,
            "spin": batch.spin,
            **tables,
        }
        found = {s.name: np.ascontiguousarray(own[s.name], s.dtype) for s in self._slots}
        return {**found, "prepared_index": index, **{f"prepared_{name}": answer[name] for name in asked}}

    def _crowd(self, request: Request) -> str | None:
        """Say why a request is far too large for one graph, or None, before its neighbours are listed."""
        taken = np.isfinite(request.edges)
        atoms, edges = int(request.batch.counts[taken].sum()), float(request.edges[taken].sum())
        far = edges > ROUGHLY * self.capacity.places
        return self.capacity.refusal(atoms, int(edges / max(atoms, 1)) if far else 1)

    def _joined(
        self, request: Request, seen: Sequence[tuple[StructureBatch, Graph]]
    ) -> tuple[StructureBatch, Graph, NDArray[np.int64], NDArray[np.int64]]:
        """Return what the network sees as one batch: structures, graph, heads, and which of the request they are."""
        if not seen:  # every structure has a status of its own, or there is none: the network still wants an atom
            batch = self._lone_atom()
            return batch, self._graph(batch), np.zeros(1, np.int64), np.zeros(0, np.int64)
        if len(seen) == 1:
            batch, graph = seen[0]
        else:
            batch = StructureBatch.concatenate([one for one, _ in seen])
            graph = self._graph(batch)
        return batch, graph, request.heads[batch.id].astype(np.int64), batch.id

    def _graph(self, batch: StructureBatch) -> Graph:
        config = self._config
        return build_graph(batch, config.cutoff, max_neighbors=config.max_neighbors, dtype=torch.float32)

    def _lone_atom(self) -> StructureBatch:
        return StructureBatch(
            ptr=np.array([0, 1], np.int64),
            numbers=np.array([self._lone[0]], np.uint8),
            positions=np.zeros((1, 3)),
            cell=np.zeros((1, 3, 3)),
            pbc=np.zeros((1, 3), bool),
            id=np.zeros(1, np.int64),
            charge=np.zeros(1, np.float32),
            spin=np.ones(1, np.float32),
        )


def _width(graph: Graph, atoms: int, reverse: bool) -> int:
    """Return the places for each atom of the wider of the tables of a graph."""
    widest = int(torch.diff(graph.neighbors.row_ptr).max()) if atoms else 0
    if reverse and len(graph.neighbors.sender):
        widest = max(widest, int(torch.bincount(graph.neighbors.sender).max()))
    return max(widest, 1)


class Computed:
    """The attributes of a backend that ran elsewhere."""

    dtype, max_atoms = torch.float32, WHOLE

    def __init__(self, entry: ExportEntry, digest: str) -> None:
        self.name, self.precision, self.why = entry.format, entry.precision, "graph model"
        self.digest: str | None = digest
        stored = {"forces": "forces", "stress": "virial"}
        self.outputs = frozenset(name for name, output in stored.items() if output in entry.outputs)

    def __call__(
        self, batch: StructureBatch, graph: Graph, head: int | NDArray[np.float64], want: Collection[str]
    ) -> Evaluation:
        """Refuse: it ran already."""
        raise NotImplementedError


class Finisher:
    """Makes answers out of what the network said; stands in for the predictor of an `Engine`.

    Parameters
    ----------
    predictor : of the ensemble, for its checks and calibration. entry : the artefact.
    digest : names the artefact. settings : of the served model. progress : as of `Engine`.
    """

    def __init__(
        self,
        predictor: Predictor,
        entry: ExportEntry,
        digest: str,
        settings: Settings,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        self.predictor = predictor.with_backend(Computed(entry, digest))
        self._needed = [name for name in USED if name in entry.outputs]
        self._network: Arrays = {}
        self._passed: Arrays = {}
        self._atoms = np.zeros(0, np.int64)
        whole = settings.model_copy(update={"max_atoms": WHOLE, "max_edges": WHOLE})
        self.engine = Engine(cast(Predictor, self), whole, progress)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.predictor, name)

    def __call__(self, batch: StructureBatch, want: Collection[str], head: str) -> Prediction:
        """Return the prediction of structures of the present request; their `id` says which."""
        asked = set(want) | ({"force_spread"} if "spread" in want and self.predictor.kind == "deep" else set())
        results = Results(batch, self.predictor.members, asked, head)
        results.status[:] = self._passed["prepared_status"][batch.id]
        results.outside[:] = self._passed["prepared_outside"][batch.id]
        good = np.flatnonzero(results.status == Status.OK)
        own = batch.take(good)
        row = np.full(len(self._passed["prepared_status"]), -1, np.int64)
        row[self._passed["prepared_index"]] = np.arange(len(self._passed["prepared_index"]))
        rows = row[own.id]
        distance = self._passed["prepared_distance"][own.id]
        results.put(good, own, self._evaluation(rows, own, asked), results.outside[good], distance)
        return results.finish(self.predictor.uncertainty(head))

    def _evaluation(self, rows: NDArray[np.int64], own: StructureBatch, asked: set[str]) -> Evaluation:
        """Return what the network says of the structures that are its `rows`."""
        n = self._network
        atoms = ragged_index(self._atoms[rows], own.counts)
        of_atoms: dict[str, Any] = {
            name: np.asarray(n[name][atoms], np.float64)
            for name in ("forces", "forces_std")
            if name in n and "forces" in asked
        }
        virial = n["virial"][rows] if "virial" in n and "stress" in asked else None
        members = n["energy_members"][:, rows]
        return Evaluation(members, n["energy"][rows], n["energy_std"][rows], virial=virial, **of_atoms)

    def answer(
        self,
        arrays: Mapping[str, NDArray[Any]],
        parameters: Mapping[str, Any],
        outputs: Collection[str],
        network: Arrays,
        passed: Arrays,
    ) -> tuple[Request | Refused, Arrays | Refused]:
        """Return a request as read, and its answer.

        arrays, parameters, outputs : of the request for raw structures. network : outputs of the artefact.
        passed : what `Preparer` gave.
        """
        request = self.engine.read(arrays, parameters, outputs)
        if isinstance(request, Refused):
            return request, request
        try:
            _check(network, passed, self._needed)
            self._atoms = _fit(request.batch, network, passed, self.predictor.members)
        except AtomSieveError as error:
            refused = Refused("invalid", str(error))
            return refused, refused
        self._network, self._passed = network, passed
        [answer] = self.engine([request])
        self._network, self._passed = {}, {}
        return request, answer


def _check(network: Arrays, passed: Arrays, needed: Collection[str]) -> None:
    """Raise AtomSieveError unless all tensors are there and of their kind; `needed` are those of the network."""
    lacking = [p.name for p in PASSED if p.name not in passed] + [f"network_{n}" for n in needed if n not in network]
    if lacking:
        raise AtomSieveError(f"inputs {', '.join(lacking)}: missing; the other half and the graph model give them")
    for p in PASSED:
        if passed[p.name].dtype != p.dtype or passed[p.name].ndim != 1:
            found = passed[p.name]
            raise AtomSieveError(f"{p.name} must be {p.dtype} with one axis, got {found.dtype} {list(found.shape)}")
    for name, values in network.items():
        if values.dtype not in (np.float64, np.float32):
            raise AtomSieveError(f"network_{name} must be float64 or float32, got {values.dtype}")


def _fit(batch: StructureBatch, network: Arrays, passed: Arrays, members: int) -> NDArray[np.int64]:
    """Return where the atoms of each structure of the graph begin, after checking that everything fits together.

    Raises
    ------
    AtomSieveError
        if not: whoever sends these tensors has not taken them from the other half.
    """
    many, index = len(batch), passed["prepared_index"]
    for name in ("prepared_status", "prepared_outside", "prepared_distance"):
        if len(passed[name]) != many:
            raise AtomSieveError(f"{name} has {len(passed[name])} entries, but the request has {many} structures")
    if len(index) and (index.min() < 0 or index.max() >= many or len(np.unique(index)) != len(index)):
        raise AtomSieveError("prepared_index names a structure twice, or one that is not in the request")
    status = passed["prepared_status"]
    if status.max(initial=0) > max(Status) or not np.array_equal(np.sort(index), np.flatnonzero(status == Status.OK)):
        raise AtomSieveError("prepared_index does not name the structures whose prepared_status is 0")
    counts = batch.counts[index]
    structures, atoms = (len(index), int(counts.sum())) if len(index) else (1, 1)
    for name, values in network.items():
        first = atoms if name.startswith("forces") else structures
        shape = {
            "energy_members": (members, first),
            "forces": (first, 3),
            "forces_std": (first, 3),
            "virial": (first, 3, 3),
            "forces_members": (members, first, 3),
        }.get(name, (first,))
        if values.shape != shape:
            raise AtomSieveError(f"network_{name} has shape {list(values.shape)}, but the request needs {list(shape)}")
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)[:-1]


def served_ensemble(folder: Path, settings: Settings) -> Predictor:
    """Return the predictor of an ensemble folder on which both halves rest."""
    return Predictor.load(folder, head=settings.head, precision="fp32", device=settings.device)


LACKING = ("features", "head")
"""What no pipeline gives: no artefact has features; and in an ensemble of Triton's, what a tensor is called that comes
in cannot be the name of one that goes out."""


def finished(predictor: Predictor) -> list[str]:
    """Return the names of what a pipeline gives: all else that its artefact allows.

    predictor : with the outputs of the artefact.
    """
    return [name for name in given(predictor.outputs, predictor.kind) if name not in LACKING]
