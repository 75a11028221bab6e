"""From the structures of a chunk to its rows: batches by the packing rule, the predictor, results in input order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from atomsieve.predict.interface import AnyPredictor, Pending
from atomsieve.predict.packing import Limit, is_out_of_memory, pack, run_halving_on_oom
from atomsieve.predict.prediction import Prediction
from atomsieve.predict.status import Status
from atomsieve.screen.engine.cpu_fallback import CpuFallback
from atomsieve.screen.engine.rows import Rows, clear_numbers, fill_members, fill_rows
from atomsieve.screen.results.columns import blank_rows
from atomsieve.screen.results.npy_file import ChunkArrays
from atomsieve.structures import StructureBatch
from atomsieve.structures.batch import ragged_index

MOMENT = 0.1
"""Seconds of each wait for a prediction, after which the rank looks whether it is to stop."""

Forces = NDArray[np.float32] | None
"""Forces [N,3] of a chunk, [N,H,3] for H > 1 heads; None where they are not kept."""


@dataclass(frozen=True)
class Submitted:
    """A batch that was submitted for one head.

    structures : positions in the chunk of the structures of `batch`. head : index of the head.
    """

    structures: NDArray[np.int64]
    head: int
    batch: StructureBatch
    answer: Pending


@dataclass(frozen=True)
class ChunkInProgress:
    """A chunk that is being computed, of S structures with N atoms and for H heads.

    batch : its structures. edges : [S] estimated. groups : structures of each batch, by position in the chunk.
    rows : [S,H]. forces : [N,H,3]; members : [S,H,K] eV/atom, see `fill_members`; None where they are not kept.
    submitted : batches on their way, where the predictor is asynchronous.
    """

    batch: StructureBatch
    edges: NDArray[np.float64]
    groups: list[NDArray[np.int64]]
    rows: Rows
    forces: Forces
    members: NDArray[np.float32] | None = None
    submitted: deque[Submitted] = field(default_factory=deque)

    def cancel(self) -> None:
        """Cancel the batches that are not begun."""
        for one in self.submitted:
            one.answer.cancel()


@dataclass(frozen=True)
class Runner:
    """Computes chunks.

    Attributes
    ----------
    predictor : evaluates batches. Of an asynchronous one all batches of a chunk are submitted at once.
    heads : the H heads to evaluate; a structure has one row per head.
    forces : keep forces.
    max_atoms, max_edges : budget of a batch.
    threads : CPU threads, None where they do not matter.
    max_structure_atoms : a larger structure gets the status TOO_LARGE.
    force_spread : rows that get the spread of forces: "all", or "top" or "none" (then no row here).
    limit : the part of the budget that memory allowed so far.
    oversized : computes structures that do not fit alone; None gives them the status OUT_OF_MEMORY.
    members : number K of members whose energies are kept, 0 to keep none.
    """

    predictor: AnyPredictor
    heads: list[str]
    forces: bool
    max_atoms: int
    max_edges: int
    threads: int | None
    max_structure_atoms: int
    force_spread: str = "all"
    limit: Limit | None = None
    oversized: CpuFallback | None = None
    members: int = 0

    @property
    def asynchronous(self) -> bool:
        """Whether the next chunk can be submitted while this one is computed."""
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
        return wanted_properties(self.force_spread) | ({"energy_members"} if self.members else set())

    def detach(self) -> Callable[[AnyPredictor], Runner]:
        """Return a picklable function that makes this runner again, given a predictor."""
        return partial(
            Runner,
            heads=self.heads,
            forces=self.forces,
            max_atoms=self.max_atoms,
            max_edges=self.max_edges,
            threads=self.threads,
            max_structure_atoms=self.max_structure_atoms,
            force_spread=self.force_spread,
            limit=self.limit,
            oversized=self.oversized,
            members=self.members,
        )

    def __call__(self, batch: StructureBatch, first: int, between: Callable[[], None] = lambda: None) -> ChunkArrays:
        """Return the rows [S*H] of a chunk whose first structure has input position `first`, its forces and members.

        Forces are [N,3] float32, or [N,H,3] for several heads, NaN for structures without result. `between` is called
        before each batch, and every moment of a wait for an asynchronous one; it may raise to drop the chunk.
        """
        return self.finish(self.begin(batch, first), between)

    def begin(self, batch: StructureBatch, first: int) -> ChunkInProgress:
        """Cut a chunk into batches, and submit them if the predictor is asynchronous."""
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
        members = np.full((*rows.shape, self.members), np.nan, np.float32) if self.members else None
        chunk = ChunkInProgress(batch, edges, groups, rows, forces, members)
        if self.asynchronous:
            self._submit(chunk)
        return chunk

    def finish(self, chunk: ChunkInProgress, between: Callable[[], None] = lambda: None) -> ChunkArrays:
        """Return the arrays of a chunk, as a call does."""
        if self.asynchronous:
            self._collect(chunk, between)
        else:
            for group in chunk.groups:
                between()
                self._compute(chunk, group)
        forces = chunk.forces
        if forces is not None and len(self.heads) == 1:
            forces = forces[:, 0]
        members = chunk.members
        return ChunkArrays(
            chunk.rows.reshape(-1), forces, None if members is None else members.reshape(-1, self.members)
        )

    def _submit(self, chunk: ChunkInProgress) -> None:
        for group in chunk.groups:
            batch = chunk.batch.take(group)
            for h, head in enumerate(self.heads):
                answer = self.predictor.submit(batch, self._want, head=head)
                chunk.submitted.append(Submitted(group, h, batch, answer))

    def predict(
        self, batch: StructureBatch, want: set[str], head: str, between: Callable[[], None] = lambda: None
    ) -> Prediction:
        """Return the prediction for one batch; `between` as of a call."""
        if not self.asynchronous:
            between()
            return self.predictor(batch, want, head=head)
        answer = self.predictor.submit(batch, want, head=head)
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

    def _collect(self, chunk: ChunkInProgress, between: Callable[[], None]) -> None:
        """Wait for the submitted batches in their order, and fill in their rows."""
        while chunk.submitted:
            between()
            one = chunk.submitted[0]
            try:
                prediction = one.answer.result(MOMENT)
            except TimeoutError:
                continue
            except Exception as error:  # every kind: which class says "out of memory" depends on the backend
                if not is_out_of_memory(error):
                    raise
                prediction = None
            chunk.submitted.popleft()
            if prediction is not None:
                self._fill(chunk, one.structures, one.head, one.batch, prediction)
                continue
            while chunk.submitted and chunk.submitted[0].structures is one.structures:
                chunk.submitted.popleft().answer.cancel()  # its other heads would not fit either
            self._compute(chunk, one.structures)  # once more alone: another batch may have had the room

    def _compute(self, chunk: ChunkInProgress, index: NDArray[np.int64]) -> None:
        """Fill in the rows of the structures `index`; where memory does not suffice, halve the batch and try again."""

        def compute(some: NDArray[np.int64], predictor: AnyPredictor = self.predictor) -> None:
            batch = chunk.batch.take(some)
            for h, head in enumerate(self.heads):
                self._fill(chunk, some, h, batch, predictor(batch, self._want, head=head))

        counts = chunk.batch.counts
        for large in run_halving_on_oom(compute, index, counts, chunk.edges, self.limit):
            fallback = self.oversized
            other = None if fallback is None else fallback.load_for(self.predictor)
            if (
                fallback is None
                or other is None
                or run_halving_on_oom(partial(compute, predictor=other), np.array([large]), counts)
            ):
                chunk.rows[large] = clear_numbers(chunk.rows[large], Status.OUT_OF_MEMORY)
                if chunk.members is not None:
                    chunk.members[large] = np.nan
            else:
                fallback.computed += 1

    @staticmethod
    def _fill(
        chunk: ChunkInProgress, some: NDArray[np.int64], h: int, batch: StructureBatch, prediction: Prediction
    ) -> None:
        """Enter the prediction of head `h` for the structures `some`, which are those of `batch`."""
        rows = chunk.rows
        rows[some, h] = fill_rows(rows[some, h], batch, prediction)
        if chunk.members is not None:
            chunk.members[some, h] = fill_members(rows[some, h], prediction, chunk.members.shape[2])
        if chunk.forces is not None:
            atoms = ragged_index(chunk.batch.ptr[:-1][some], batch.counts)  # one after another, as in the chunk
            values = np.asarray(prediction.forces, "<f4").copy()
            values[np.repeat(rows["status"][some, h] != Status.OK, batch.counts)] = np.nan
            chunk.forces[atoms, h] = values


def wanted_properties(force_spread: str) -> set[str]:
    """Return the properties that rows need of a prediction; see `Runner.force_spread`."""
    return {"energy", "forces", "spread"} | ({"force_spread"} if force_spread == "all" else set())
