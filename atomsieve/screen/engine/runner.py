"""From the structures of a chunk to its rows: batches by the packing rule, the predictor, results in input order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from atomsieve.predict.interface import Capabilities
from atomsieve.predict.packing import Limit, is_out_of_memory, pack, run_halving_on_oom
from atomsieve.predict.status import Status
from atomsieve.screen.results.columns import MEASURED, blank_rows
from atomsieve.structures import StructureBatch
from atomsieve.structures.batch import ragged_index

if TYPE_CHECKING:
    from atomsieve.screen.engine.cpu_fallback import CpuFallback

MOMENT = 0.1
"""Seconds after which a wait for a server looks whether the run is to stop."""


class PredictorLike(Protocol):
    """What screening needs of `atomsieve.predict.Predictor`."""

    heads: list[str]
    default_head: str
    ensemble_id: str
    cutoff: float
    precision: str
    device: Any
    backend: str

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""

    @property
    def kind(self) -> str:
        """Of the ensemble: "deep" or "shallow"."""

    def __call__(self, batch: StructureBatch, want: set[str], head: str | None = None) -> Any:
        """Return flat arrays in input order (see `atomsieve.predict.Prediction`)."""

    def describe(self) -> dict[str, Any]:
        """Return what it is, as plain data."""


@dataclass(frozen=True)
class Begun:
    """A chunk that is being computed.

    batch : its structures. groups : those of each batch. rows : [S,H], of H heads. forces : [N,H,3], if they are kept.
    edges : [S] estimated.
    sent : where servers compute, the requests on their way: group, index of the head, its batch and its answer.
    """

    batch: StructureBatch
    groups: list[NDArray[np.int64]]
    rows: NDArray[Any]
    forces: NDArray[np.float32] | None
    sent: deque[tuple[NDArray[np.int64], int, StructureBatch, Any]] = field(default_factory=deque)
    edges: NDArray[np.float64] | None = None

    def cancel(self) -> None:
        """Take back what was not sent yet."""
        for *_, answer in self.sent:
            answer.cancel()


@dataclass(frozen=True)
class Runner:
    """Computes chunks.

    Attributes
    ----------
    predictor : gives the numbers. One with `submit` computes elsewhere: then all batches of a chunk are sent at once.
    heads : the heads to run, H of them; a structure has one row per head.
    forces : keep forces.
    max_atoms, max_edges : budget of a batch.
    threads : CPU threads, None where they do not matter.
    max_structure_atoms : structures above it are TOO_LARGE.
    force_spread : rows that get the spread of forces: "all", or "top" or "none" (then no row here).
    limit : what this run has learned of memory. oversized : computes what does not fit alone; None marks it.
    """

    predictor: PredictorLike
    heads: list[str]
    forces: bool
    max_atoms: int
    max_edges: int
    threads: int | None
    max_structure_atoms: int
    force_spread: str = "all"
    limit: Limit | None = None
    oversized: CpuFallback | None = None

    @property
    def elsewhere(self) -> bool:
        """Whether others than this thread compute, so that the next chunk can be on its way while one is waited for."""
        return self.predictor.capabilities.asynchronous

    @property
    def served(self) -> bool:
        """Whether servers compute."""
        return bool(self.predictor.capabilities.endpoints)

    @property
    def uncalibrated(self) -> list[str]:
        """The heads in use whose energies are not calibrated."""
        known = self.predictor.describe().get("calibrated", {})
        return [head for head in self.heads if "energy" not in known.get(head, ())]

    @property
    def _want(self) -> set[str]:
        return wanted_properties(self.force_spread)

    def __call__(
        self, batch: StructureBatch, first: int, between: Callable[[], None] = lambda: None
    ) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """Return the rows [S*H] of a chunk whose first structure has input position `first`, and its forces.

        Forces are [N,3] float32, or [N,H,3] for several heads, NaN for structures without result. `between` is called
        before each batch, and every moment while a server is waited for; it may raise to drop the chunk.
        """
        return self.finish(self.begin(batch, first), between)

    def begin(self, batch: StructureBatch, first: int) -> Begun:
        """Cut a chunk into batches, and send them where they are computed elsewhere."""
        from atomsieve.graphs.estimate import edge_budget_estimate

        n_heads, counts = len(self.heads), batch.counts
        rows = blank_rows(len(batch) * n_heads).reshape(len(batch), n_heads)
        rows["position"] = (first + np.arange(len(batch)))[:, None]
        rows["id"] = batch.id[:, None]
        rows["natoms"] = counts[:, None]
        rows["head"] = np.arange(n_heads)
        forces = np.full((batch.n_atoms, n_heads, 3), np.nan, "<f4") if self.forces else None

        too_large = counts > self.max_structure_atoms
        rows["status"][too_large] = Status.TOO_LARGE
        fits = np.flatnonzero(~too_large)
        edges = edge_budget_estimate(batch, self.predictor.cutoff)
        groups = [fits[group] for group in pack(edges[fits], counts[fits], self.max_atoms, self.max_edges)]
        if self.limit is not None:
            groups = [piece for group in groups for piece in self.limit.pieces(group, counts, edges)]
        begun = Begun(batch, groups, rows, forces, edges=edges)
        if self.elsewhere:
            self._send(begun)
        return begun

    def finish(
        self, begun: Begun, between: Callable[[], None] = lambda: None
    ) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """Return the rows and forces of a chunk, as a call does."""
        if self.elsewhere:
            self._collect(begun, between)
        else:
            for group in begun.groups:
                between()
                self._batch(begun, group)
        forces = begun.forces
        if forces is not None and len(self.heads) == 1:
            forces = forces[:, 0]
        return begun.rows.reshape(-1), forces

    def _send(self, begun: Begun) -> None:
        predictor: Any = self.predictor
        for group in begun.groups:
            batch = begun.batch.take(group)
            for h, head in enumerate(self.heads):
                begun.sent.append((group, h, batch, predictor.submit(batch, self._want, head=head)))

    def ask(self, batch: StructureBatch, want: set[str], head: str, between: Callable[[], None] = lambda: None) -> Any:
        """Return the prediction for one batch; `between` as of a call."""
        predictor: Any = self.predictor
        if not self.elsewhere:
            between()
            return predictor(batch, want, head=head)
        answer = predictor.submit(batch, want, head=head)
        try:
            while True:
                between()
                try:
                    return answer.result(MOMENT)
                except TimeoutError:
                    continue
        except BaseException:
            answer.cancel()
            raise

    def _collect(self, begun: Begun, between: Callable[[], None]) -> None:
        while begun.sent:
            between()
            group, h, batch, answer = begun.sent[0]
            try:
                prediction = answer.result(MOMENT)
            except TimeoutError:
                continue
            except Exception as error:  # every kind: which class says "out of memory" depends on the backend
                if not is_out_of_memory(error):
                    raise
                prediction = None
            begun.sent.popleft()
            if prediction is not None:
                self._enter(begun, group, h, batch, prediction)
                continue
            while begun.sent and begun.sent[0][0] is group:  # its other heads would not fit either
                begun.sent.popleft()[-1].cancel()
            self._batch(begun, group)  # once more alone: another batch may have had the room

    def _batch(self, begun: Begun, index: NDArray[np.int64]) -> None:
        """Fill in the rows of the structures `index`; where memory does not suffice, halve the batch and try again."""

        def compute(some: NDArray[np.int64], predictor: PredictorLike = self.predictor) -> None:
            batch = begun.batch.take(some)
            for h, head in enumerate(self.heads):
                self._enter(begun, some, h, batch, predictor(batch, self._want, head=head))

        for large in run_halving_on_oom(compute, index, begun.batch.counts, begun.edges, self.limit):
            other: Any = None if self.oversized is None else self.oversized.twin(self.predictor)
            instead = partial(compute, predictor=other)
            if other is None or run_halving_on_oom(instead, np.array([large]), begun.batch.counts):
                begun.rows[large] = clear_numbers(begun.rows[large], Status.OUT_OF_MEMORY)
            elif self.oversized is not None:
                self.oversized.computed += 1

    @staticmethod
    def _enter(begun: Begun, some: NDArray[np.int64], h: int, batch: StructureBatch, prediction: Any) -> None:
        """Take over what head `h` says of the structures `some`, which are those of `batch`."""
        rows = begun.rows
        rows[some, h] = fill_rows(rows[some, h], batch, prediction)
        if begun.forces is not None:
            atoms = ragged_index(begun.batch.ptr[:-1][some], batch.counts)  # one after another, as in the chunk
            values = np.asarray(prediction.forces, "<f4").copy()
            values[np.repeat(rows["status"][some, h] != Status.OK, batch.counts)] = np.nan
            begun.forces[atoms, h] = values


def wanted_properties(force_spread: str) -> set[str]:
    """Return what is asked of a predictor for rows; see `Runner.force_spread`."""
    return {"energy", "forces", "spread"} | ({"force_spread"} if force_spread == "all" else set())


def fill_rows(rows: NDArray[Any], batch: StructureBatch, prediction: Any) -> NDArray[Any]:
    """Return `rows` [S] with a prediction entered; rows with a bad status have NaN in every measured column."""
    rows = rows.copy()
    natoms = np.maximum(batch.counts, 1)
    rows["energy"] = prediction.energy
    rows["energy_per_atom"] = prediction.energy / natoms
    rows["energy_std"] = prediction.energy_std
    for name in ("sigma_energy", "interval_energy", "distance"):
        values = getattr(prediction, name)
        rows[name] = np.nan if values is None else values
    for name, of_atoms in (("max_force", "forces"), ("max_force_std", "forces_std"), ("sigma_force", "sigma_forces")):
        values = getattr(prediction, of_atoms)
        if values is not None:
            rows[name] = max_per_structure(np.linalg.norm(values, axis=1) if values.ndim == 2 else values, batch)
    rows["status"] = prediction.status
    broken = ~np.isfinite(rows["energy"])
    if prediction.forces is not None:
        broken |= ~np.isfinite(rows["max_force"])
    rows["status"][broken & (rows["status"] == Status.OK)] = Status.NAN_OUTPUT
    rows["outside"] = prediction.outside
    rows["in_domain"] = prediction.in_domain
    bad = rows["status"] != Status.OK
    rows[bad] = clear_numbers(rows[bad])
    for name in MEASURED:  # one bit pattern for all NaN
        rows[name][np.isnan(rows[name])] = np.nan
    return rows


def clear_numbers(rows: NDArray[Any], status: int | None = None) -> NDArray[Any]:
    """Return `rows` without numbers, with `status` if given."""
    rows = rows.copy()
    for name in MEASURED:
        rows[name] = np.nan
    rows["in_domain"] = False
    if status is not None:
        rows["status"] = status
    return rows


def max_per_structure(values: NDArray[Any], batch: StructureBatch) -> NDArray[np.float64]:
    """Return the largest value [S] over the atoms of each structure; NaN where there is no atom or a NaN."""
    out = np.full(len(batch), np.nan)
    filled = batch.counts > 0
    if filled.any():
        out[filled] = np.maximum.reduceat(values, batch.ptr[:-1][filled])
    return out
