"""A served ensemble as its description gives it; batches cut into requests, and answers joined to one prediction."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import unknown
from atomsieve.graphs.crowding import estimate_crowded_edges
from atomsieve.graphs.estimate import edge_budget_estimate
from atomsieve.predict.interface import Capabilities
from atomsieve.predict.prediction import PROPERTIES, Prediction
from atomsieve.predict.status import Status
from atomsieve.remote.wire import OUTPUTS, outputs_for, prediction_from_arrays, request_arrays
from atomsieve.structures.batch import StructureBatch, check_batch, ragged_index

Arrays = dict[str, NDArray[Any]]
BYTES = (95, 25)
"""Bytes that a structure and an atom take in a request, all tensors together."""
LARGEST_FLOAT = float(np.finfo(np.float32).max)
LARGEST_MESSAGE = 2**30
"""Bytes of a request or an answer that gRPC surely carries; it ends at 2^31."""


class ServedEnsemble:
    """An ensemble on a server, with the properties of `atomsieve.predict.Predictor`.

    Attributes
    ----------
    heads, default_head, ensemble_id, members, kind, cutoff, precision, device, backend, why, artefact, outputs :
        of the predictor that is served; `device` is a string.
    head : used when a call names none. alone : every request is computed separately, so that its last bits do
        not depend on other requests.
    budget : atoms and estimated edges that the server computes at once.
    server : version, threads, budget and limits of the server, which decide the last bits of an answer.
    """

    def __init__(self, description: Mapping[str, Any], head: str | None, *, alone: bool) -> None:
        d = self._description = dict(description)
        self.heads: list[str] = list(d["heads"])
        self.default_head: str = d["default_head"]
        self.head = self.default_head if head is None else head
        if self.head not in self.heads:
            raise unknown("head", self.head, self.heads)
        self.ensemble_id: str = d["ensemble_id"]
        self.members, self.kind, self.cutoff = int(d["members"]), str(d["kind"]), float(d["cutoff"])
        self.precision, self.device, self.backend, self.why = (
            str(d[name]) for name in ("precision", "device", "backend", "why")
        )
        self.artefact: str | None = d.get("artefact")
        self.outputs = frozenset(d["outputs"])
        self.server = {name: d[name] for name in ("atomsieve", "threads", "budget", "limits")}
        self.alone = alone
        self.budget: tuple[int, int] = (int(d["budget"]["atoms"]), int(d["budget"]["edges"]))

    @property
    def capabilities(self) -> Capabilities:
        """Capabilities of the server, from its description."""
        return Capabilities(
            choices=tuple(self.heads),
            precisions=(self.precision,),
            outputs=self.outputs,
            budget=self.budget,
            artefact=self.artefact,
            server=self.server,
        )

    def note(self, head: str) -> str | None:
        """Return one line that a user of a head must know: None, as a server gives none."""
        return None

    def describe(self) -> dict[str, Any]:
        """Return the description of this predictor, as plain data."""
        left_out = ("elements", "references", "gives")
        return {name: value for name, value in self._description.items() if name not in left_out} | {"head": self.head}

    def elements(self, head: str) -> list[int]:
        """Return the atomic numbers of the elements that a head was trained on."""
        return list(self._description["elements"][head])

    def references(self, head: str) -> NDArray[np.float64]:
        """Return the energy [256] eV of one atom of each element, by atomic number; NaN where the head has none."""
        table = np.full(256, np.nan)
        for number, energy in self._description["references"][head].items():
            table[int(number)] = energy
        return table

    def is_calibrated(self, head: str) -> bool:
        """Return whether the energy uncertainty of a head was calibrated."""
        return "energy" in self._description["calibrated"][head]

    # -- requests and answers --------------------------------------------------------------------------------------

    def _plan_call(
        self, batch: StructureBatch, want: Collection[str], head: str | None, largest: int | None
    ) -> RemoteCall:
        """Return a call cut into requests, after the checks that `atomsieve.predict.Predictor` makes.

        Requests follow from the batch and the description alone: consecutive structures, filled to the budget of one
        evaluation of the server and within its limits. largest : atoms of a structure that is not TOO_LARGE.
        """
        for name in want:
            if name not in PROPERTIES:
                raise unknown("property", name, PROPERTIES)
        name = self.head if head is None else head
        if name not in self.heads:
            raise unknown("head", name, self.heads)
        check_batch(batch)
        batch.validate()
        limits, counts = self.server["limits"], batch.counts
        most = min(limits["structure_atoms"], limits["atoms"], counts.max(initial=0) if largest is None else largest)
        size = BYTES[0] + BYTES[1] * counts
        usual = edge_budget_estimate(batch, self.cutoff)
        edges = np.maximum(usual, estimate_crowded_edges(batch, self.cutoff))  # compared with the limits alone
        fits = np.flatnonzero((counts <= most) & (size <= limits["bytes"]) & (edges <= limits["structure_edges"]))
        asked = outputs_for(want, self.kind)
        given = self._description["gives"]
        members = self.members if "members" in want else 1
        volume = size * (4 + members)  # of the answer too, features left out
        costs = {
            "atoms": (counts, min(self.budget[0], limits["atoms"])),
            "edges": (usual, self.budget[1]),
            "crowded": (edges, limits["edges"]),
            "structures": (np.ones(len(batch)), limits["structures"]),
            "bytes": (size, limits["bytes"]),
            "message": (volume, LARGEST_MESSAGE),
        }
        pieces = _fill_pieces([(cost[fits], limit) for cost, limit in costs.values()])
        return RemoteCall(
            batch=batch,
            head=name,
            pieces=[fits[piece] for piece in pieces] or [fits],
            outputs=[output for output in asked if output in given],
            lacking=[output for output in asked if output not in given],
            calibrated=frozenset(self._description["calibrated"][name]),
            parameters={"head": name, "ensemble_id": self.ensemble_id, **({"alone": True} if self.alone else {})},
            members=self.members,
        )


@dataclass(frozen=True)
class RemoteCall:
    """A call, cut into requests.

    batch : all structures. head : name. pieces : the structures of each request, in order; a single empty piece
    if no structure fits. outputs : names of requested outputs that the server gives; lacking : those that it does not
    give. parameters : of every request. members : K.
    """

    batch: StructureBatch
    head: str
    pieces: list[NDArray[np.int64]]
    outputs: list[str]
    lacking: list[str]
    calibrated: frozenset[str]
    parameters: dict[str, Any]
    members: int

    def arrays(self, piece: NDArray[np.int64]) -> Arrays:
        """Return the tensors [1,...] of one request."""
        arrays = request_arrays(self.batch if len(piece) == len(self.batch) else self.batch.take(piece))
        for name in ("charge", "spin"):
            if name in arrays:  # infinity would be refused, with all other structures; this gets the same status
                arrays[name] = np.clip(arrays[name], -LARGEST_FLOAT, LARGEST_FLOAT)
        return arrays

    def prediction(self, answers: Sequence[Mapping[str, NDArray[Any]]]) -> Prediction:
        """Return the answers to the requests, in their order, as one; structures of no request are TOO_LARGE."""
        batch, found = self.batch, {}
        for name in self.outputs:
            parts = [answer[name] for answer in answers]
            if len(answers) == 1 and len(self.pieces[0]) == len(batch):
                found[name] = parts[0]
                continue
            found[name] = _blank(name, batch, parts[0].shape[1:])
            for piece, values in zip(self.pieces, parts, strict=True):
                found[name][self._rows(name, piece)] = values
        sent = np.zeros(len(batch), bool)
        for piece in self.pieces:
            sent[piece] = True
        if not sent.all():
            found["status"][~sent] = Status.TOO_LARGE
        if found["status"].all():
            found.pop("features", None)  # their width is known of a result alone
        for name in self.lacking:
            trailing = tuple(self.members if n == -1 else n for n in OUTPUTS[name].trailing)
            if name != "features":  # their width is known to the model alone
                found[name] = _blank(name, batch, trailing)
        return prediction_from_arrays(found, self.head, self.calibrated)

    def _rows(self, name: str, piece: NDArray[np.int64]) -> NDArray[np.int64]:
        if OUTPUTS[name].axis == "structure":
            return piece
        return ragged_index(self.batch.ptr[:-1][piece], self.batch.counts[piece])


def _blank(name: str, batch: StructureBatch, trailing: tuple[int, ...]) -> NDArray[Any]:
    """Return an output [S,...] or [N,...] without results: NaN, or 0 where it is a flag."""
    tensor = OUTPUTS[name]
    first = batch.n_atoms if tensor.axis == "atom" else len(batch)
    return np.full((first, *trailing), np.nan if tensor.dtype.kind == "f" else 0, tensor.dtype)


def _fill_pieces(costs: Sequence[tuple[NDArray[Any], float]]) -> list[NDArray[np.int64]]:
    """Cut consecutive items into pieces, as long as every cost of a piece stays within its limit; one item at least."""
    n = len(costs[0][0])
    ends = [(np.cumsum(cost), limit) for cost, limit in costs]
    pieces, start = [], 0
    while start < n:
        stops = [np.searchsorted(end, (end[start - 1] if start else 0) + limit, "right") for end, limit in ends]
        stop = max(int(min(stops)), start + 1)
        pieces.append(np.arange(start, stop))
        start = stop
    return pieces
