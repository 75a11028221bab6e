"""From requests to answers: checks, gathering, batches within a memory budget, one Predictor. Independent of Triton.

Requests that came together are evaluated together. A bad one gets an error of its own and disturbs no other.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError
from atomsieve.graphs import edge_budget_estimate
from atomsieve.graphs.crowding import estimate_crowded_edges
from atomsieve.predict import Predictor, Status
from atomsieve.predict.packing import pack, run_halving_on_oom, usual_budget
from atomsieve.remote.wire import OUTPUTS, prediction_arrays, required_properties
from atomsieve.serve.model.request import Refused, Request, read_request
from atomsieve.serve.model.settings import Settings
from atomsieve.structures import StructureBatch
from atomsieve.structures.batch import ragged_index

log = logging.getLogger(__name__)

Arrays = dict[str, NDArray[Any]]

ANSWER_BYTES = 64 * 2**20
"""Answers that are computed together hold no more than this, or as much as a request may."""


@dataclass
class Work:
    """Counts of one call of the engine, for metrics and the log.

    Attributes
    ----------
    requests, structures, atoms : computed. evaluations : calls of the predictor. seconds : of the whole call.
    status : structures by the name of their status. errors : refused or failed requests by kind.
    """

    requests: int = 0
    structures: int = 0
    atoms: int = 0
    evaluations: int = 0
    seconds: float = 0.0
    status: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)


class Engine:
    """Answers requests with one predictor.

    Attributes
    ----------
    predictor, settings : as given. work : counts of the latest call.
    progress : is called after each evaluation.
    """

    def __init__(self, predictor: Predictor, settings: Settings, progress: Callable[[], None] = lambda: None) -> None:
        self.predictor, self.settings, self.progress = predictor, settings, progress
        self._budget = _budget(predictor, settings)
        self.work = Work()

    def __call__(self, requests: Sequence[Request | Refused]) -> list[Arrays | Refused]:
        """Return the arrays [S,...] or [N,...] that each request asked for, or why there are none."""
        began, self.work = time.perf_counter(), Work()
        answers: list[Arrays | Refused | None] = [r if isinstance(r, Refused) else None for r in requests]
        for together in self._groups(requests):
            group = [request for k in together if isinstance(request := requests[k], Request)]
            for k, answer in zip(together, self._answer(group), strict=True):
                answers[k] = answer
        found = [answer for answer in answers if answer is not None]
        assert len(found) == len(requests)
        self.work.errors.update(a.kind for a in found if isinstance(a, Refused))
        self.work.seconds = time.perf_counter() - began
        return found

    def answer_one(self, arrays: Mapping[str, NDArray[Any]], head: str, outputs: Collection[str]) -> Arrays:
        """Return the answer to one request for one head.

        Raises
        ------
        AtomSieveError
            if it is refused.
        """
        [answer] = self([self.read(arrays, {"head": head}, outputs)])
        if isinstance(answer, Refused):
            raise AtomSieveError(answer.message)
        return answer

    def read(
        self, arrays: Mapping[str, NDArray[Any]], parameters: Mapping[str, Any], outputs: Collection[str]
    ) -> Request | Refused:
        """Check a request; see `read_request`."""
        predictor, limits = self.predictor, self.settings.limits
        request = read_request(
            arrays,
            parameters,
            outputs,
            heads=predictor.capabilities.choices,
            default_head=predictor.head,
            ensemble_id=predictor.ensemble_id,
            limits=limits,
        )
        if isinstance(request, Refused):
            return request
        batch = request.batch
        edges = np.maximum(
            edge_budget_estimate(batch, predictor.cutoff), estimate_crowded_edges(batch, predictor.cutoff)
        )
        large = (batch.counts > limits.structure_atoms) | ~(edges <= limits.structure_edges)
        total = float(edges[~large].sum())
        if total > limits.edges:
            return Refused(
                "too_large",
                f"the structures have about {total:.3g} pairs of neighbours, allowed are "
                f"{limits.edges} in a request; send fewer at once",
            )
        return replace(request, edges=np.where(large, np.inf, edges))

    def _groups(self, requests: Sequence[Request | Refused]) -> Iterator[list[int]]:
        """Yield which requests are evaluated together: those with the same outputs, except requests with `alone`.

        A group stays within the limits of a single request, so that memory is bounded by these.
        """
        groups: dict[Any, list[int]] = {}
        for k, request in enumerate(requests):
            if isinstance(request, Request):
                groups.setdefault(k if request.alone else request.outputs, []).append(k)
        limits = self.settings.limits
        allowed = (limits.structures, limits.atoms, max(limits.bytes, ANSWER_BYTES))
        for group in groups.values():
            start, filled = 0, (0, 0, 0)
            for place, k in enumerate(group if len(group) > 1 else ()):
                request = requests[k]
                assert isinstance(request, Request)
                size = self._size(request)
                filled = (filled[0] + size[0], filled[1] + size[1], filled[2] + size[2])
                if place > start and any(f > most for f, most in zip(filled, allowed, strict=True)):
                    yield group[start:place]
                    start, filled = place, size
            yield group[start:]

    def _size(self, request: Request) -> tuple[int, int, int]:
        """Return structures, atoms, and bytes of the answer of a request."""
        structures, atoms = len(request.batch), request.batch.n_atoms
        each = {"atom": atoms, "structure": structures}
        found = sum(
            each[OUTPUTS[name].axis] * math.prod(self._trailing(name)) * OUTPUTS[name].dtype.itemsize
            for name in request.outputs
        )
        return structures, atoms, found

    def _answer(self, group: Sequence[Request]) -> Sequence[Arrays | Refused]:
        """Evaluate requests together; if that fails, each by itself, so that only the faulty one gets the error."""
        try:
            return self._evaluate(group)
        except Exception as error:  # whatever it is, it must not end the other requests
            if len(group) > 1:
                return [answer for request in group for answer in self._answer([request])]
            if isinstance(error, AtomSieveError):
                return [Refused("unsupported", str(error))]
            return [log_internal_error()]

    def _evaluate(self, group: Sequence[Request]) -> list[Arrays]:
        batch = StructureBatch.concatenate([request.batch for request in group])
        heads, edges = (np.concatenate([getattr(r, name) for r in group]) for name in ("heads", "edges"))
        arrays = self._predict(batch, heads, edges, group[0].outputs)
        work = self.work
        work.requests += len(group)
        work.structures += len(batch)
        work.atoms += batch.n_atoms
        codes, counts = np.unique(arrays["status"], return_counts=True)
        work.status.update({Status(code).name: int(n) for code, n in zip(codes.tolist(), counts, strict=True)})
        ends = np.cumsum([len(request.batch) for request in group])
        answers = []
        for stop, request in zip(ends.tolist(), group, strict=True):
            start = stop - len(request.batch)
            atoms = slice(int(batch.ptr[start]), int(batch.ptr[stop]))
            answers.append(
                {
                    name: arrays[name][atoms if OUTPUTS[name].axis == "atom" else slice(start, stop)]
                    for name in request.outputs
                }
            )
        return answers

    def _predict(
        self, batch: StructureBatch, heads: NDArray[np.int32], edges: NDArray[np.float64], outputs: frozenset[str]
    ) -> Arrays:
        """Return all arrays of a batch, evaluated head by head in pieces within the budget.

        edges : [S], estimated; inf for a structure above a limit.
        """
        want = required_properties(outputs)
        found: Arrays = {"head": heads, "status": np.zeros(len(batch), np.uint8)}
        large = np.isinf(edges)
        found["status"][large] = Status.TOO_LARGE
        for head in np.unique(heads).tolist():
            own = np.flatnonzero((heads == head) & ~large)
            for piece in pack(edges[own], batch.counts[own], *self._budget):
                self._piece(batch, own[piece], self.predictor.capabilities.choices[head], want, found)
        for name in outputs - found.keys():  # nothing was evaluated: all too large, or no structures
            found[name] = self._blank(name, batch)
        return found

    def _piece(
        self, batch: StructureBatch, index: NDArray[np.int64], head: str, want: frozenset[str], found: Arrays
    ) -> None:
        """Evaluate the structures `index` and put the results in their places."""

        def compute(some: NDArray[np.int64]) -> None:
            self.work.evaluations += 1
            part = batch.take(some)
            atoms = ragged_index(batch.ptr[:-1][some], part.counts)
            for name, values in prediction_arrays(self.predictor(part, want, head=head)).items():
                if name not in found:
                    found[name] = self._blank(name, batch)
                found[name][atoms if OUTPUTS[name].axis == "atom" else some] = values
            self.progress()

        for large in run_halving_on_oom(compute, index, batch.counts):
            found["status"][large] = Status.OUT_OF_MEMORY

    def _blank(self, name: str, batch: StructureBatch) -> NDArray[Any]:
        """Return an output without results: NaN, or 0 where it is a flag."""
        tensor = OUTPUTS[name]
        first = batch.n_atoms if tensor.axis == "atom" else len(batch)
        fill = np.nan if tensor.dtype.kind == "f" else 0
        return np.full((first, *self._trailing(name)), fill, tensor.dtype)

    def _trailing(self, name: str) -> tuple[int, ...]:
        """Return the lengths of the axes of an output behind the first."""
        trailing = OUTPUTS[name].trailing
        if -1 not in trailing:
            return trailing
        own = self.predictor.capabilities.features if name == "features" else self.predictor.members
        assert own is not None
        return tuple(own if n == -1 else n for n in trailing)


def log_internal_error() -> Refused:
    """Log the current exception under a reference; return the refusal that gives a client the reference alone."""
    reference = secrets.token_hex(6)
    log.exception("request failed, reference %s", reference)
    return Refused("internal", f"internal error, reference {reference}: the server's log holds the details under it")


def _budget(predictor: Predictor, settings: Settings) -> tuple[int, int]:
    """Return the atoms and estimated edges that are computed at once."""
    atoms, edges = usual_budget(predictor)
    return settings.max_atoms or atoms, settings.max_edges or edges


def describe_model(predictor: Predictor, settings: Settings, outputs: Sequence[str]) -> Mapping[str, Any]:
    """Return the description of a served model, as plain data.

    outputs : names of the outputs that it gives.
    """
    import torch

    from atomsieve.remote.wire import WIRE
    from atomsieve.version import __version__

    on_cpu, known = str(predictor.device) == "cpu", predictor.capabilities
    return {
        "wire": WIRE,
        "atomsieve": __version__,
        **predictor.describe(),
        "heads": list(known.choices),
        "default_head": predictor.head,
        "outputs": sorted(known.outputs),
        "gives": list(outputs),
        "elements": {head: predictor.elements(head) for head in known.choices},
        "references": {
            head: {str(z): float(of[z]) for z in predictor.elements(head) if not math.isnan(of[z])}
            for head in known.choices
            for of in [predictor.references(head)]
        },
        "artefact": known.artefact,
        "threads": torch.get_num_threads() if on_cpu else None,
        "budget": dict(zip(("atoms", "edges"), _budget(predictor, settings), strict=True)),
        "limits": settings.limits.model_dump(),
    }
