"""Batches as tensors, made ahead of time in a thread (the neighbour search releases the interpreter lock)."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atomsieve.graphs import Graph, build_graph
from atomsieve.models.config import ModelConfig
from atomsieve.structures import StructureBatch
from atomsieve.train.data.label_scales import HeadData

T = TypeVar("T")


@dataclass(frozen=True)
class TrainBatch:
    """One rank's share of a global batch.

    Attributes
    ----------
    graph : its graph; head [S] int64; charge, spin [S] or None.
    index : [S] catalogue indices.
    energy [S] residual eV, energy_size [S] eV (per atom), n_atoms [S]; has_energy [S] weight of its error, 0: none.
    forces [N,3] eV/Angstrom, force_size [N]; has_forces [N] 0/1.
    virial [S,3,3] eV, virial_size [S] eV; has_stress [S] 0/1.
    weight : [K,S] weight of each structure for each member, or None for 1.
    n_energy, n_forces, n_stress : labels in the whole global batch (sum of the weights, atoms, structures).
    """

    graph: Graph | None
    head: Tensor
    charge: Tensor | None
    spin: Tensor | None
    index: NDArray[np.int64]
    energy: Tensor
    energy_size: Tensor
    n_atoms: Tensor
    has_energy: Tensor
    forces: Tensor
    force_size: Tensor
    has_forces: Tensor
    virial: Tensor
    virial_size: Tensor
    has_stress: Tensor
    weight: Tensor | None
    n_energy: int
    n_forces: int
    n_stress: int


@dataclass(frozen=True)
class Labels:
    """Arrays of the catalogue that batches need: residual energy, label flags and atoms [S], sizes per head.

    energy_weight [S] : weight of the error of an energy among those of a batch, 0 without one.
    """

    residual: NDArray[np.float64]
    has_energy: NDArray[np.bool_]
    has_forces: NDArray[np.bool_]
    has_stress: NDArray[np.bool_]
    n_atoms: NDArray[np.int64]
    energy_size: NDArray[np.float64]
    force_size: NDArray[np.float64]
    stress_size: NDArray[np.float64]
    energy_weight: NDArray[np.int64]

    @staticmethod
    def build(
        residual: NDArray[np.float64],
        has_forces: NDArray[np.bool_],
        has_stress: NDArray[np.bool_],
        n_atoms: NDArray[np.int64],
        heads: list[HeadData],
        mean_over: Literal["structures", "atoms"] = "structures",
    ) -> Labels:
        """Collect the labels; an energy counts as present where its residual is known, and by the atoms if so asked."""
        sizes = [(h.energy_size, h.force_size, h.stress_size) for h in heads]
        energy, force, stress = np.array(sizes, float).T
        known = np.isfinite(residual)
        weight = np.where(known, n_atoms if mean_over == "atoms" else 1, 0)
        return Labels(residual, known, has_forces, has_stress, n_atoms, energy, force, stress, weight)


def make_batch(
    structures: StructureBatch,
    index: NDArray[np.int64],
    whole: NDArray[np.int64],
    labels: Labels,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    weight: NDArray[np.float32] | None = None,
) -> TrainBatch:
    """Build one rank's batch: `index` are its structures, `whole` those of the global batch."""
    n, counts = len(index), structures.counts
    head = np.asarray(structures.head if structures.head is not None else np.zeros(n), np.int64)

    def tensor(values: NDArray, kind: torch.dtype = dtype) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(values)).to(device=device, dtype=kind)

    has_energy, has_forces = labels.has_energy[index], labels.has_forces[index]
    has_stress = labels.has_stress[index]
    atom_mask = np.repeat(has_forces, counts)
    forces = np.zeros((structures.n_atoms, 3)) if structures.forces is None else structures.forces
    stress = np.zeros((n, 3, 3)) if structures.stress is None else structures.stress
    volume = np.abs(np.linalg.det(structures.cell))
    graph = None
    if structures.n_atoms:
        graph = build_graph(structures, config.cutoff, max_neighbors=config.max_neighbors, device=device, dtype=dtype)
    conditioned = config.charge_spin
    return TrainBatch(
        graph=graph,
        head=tensor(head, torch.int64),
        index=index,
        charge=tensor(structures.charge) if conditioned and structures.charge is not None else None,
        spin=tensor(structures.spin) if conditioned and structures.spin is not None else None,
        energy=tensor(np.where(has_energy, labels.residual[index], 0.0), torch.float64),
        energy_size=tensor(labels.energy_size[head], torch.float64),
        n_atoms=tensor(counts, torch.float64),
        has_energy=tensor(labels.energy_weight[index], torch.float64),
        forces=tensor(np.where(atom_mask[:, None], forces, 0.0)),
        force_size=tensor(np.repeat(np.nan_to_num(labels.force_size[head], nan=1.0), counts)),
        has_forces=tensor(atom_mask),
        virial=tensor(np.where(has_stress[:, None, None], stress * volume[:, None, None], 0.0), torch.float64),
        virial_size=tensor(labels.stress_size[head] * np.maximum(volume, 1e-9), torch.float64),
        has_stress=tensor(has_stress, torch.float64),
        weight=None if weight is None else tensor(weight[:, index]),
        n_energy=int(labels.energy_weight[whole].sum()),
        n_forces=int(labels.n_atoms[whole][labels.has_forces[whole]].sum()),
        n_stress=int(labels.has_stress[whole].sum()),
    )


class Prefetch(Iterator[T]):
    """Runs `make` over `tasks` in a thread, at most `depth` results ahead, in order; errors come out of `next`.

    Use as a context manager: leaving it stops the thread.
    """

    def __init__(self, make: Callable[[int], T], n_tasks: int, start: int = 0, depth: int = 3) -> None:
        self._queue: queue.Queue[tuple[T | None, BaseException | None, bool]] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(make, start, n_tasks), daemon=True, name="prefetch")
        self._thread.start()

    def _put(self, item: tuple[T | None, BaseException | None, bool]) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def _work(self, make: Callable[[int], T], start: int, stop: int) -> None:
        try:
            for k in range(start, stop):
                if not self._put((make(k), None, False)):
                    return
            self._put((None, None, True))
        except BaseException as error:  # handed to the thread that waits for it
            self._put((None, error, True))

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def __iter__(self) -> Prefetch[T]:
        return self

    def __next__(self) -> T:
        item, error, ended = self._queue.get()
        if error is not None:
            raise error
        if ended:
            raise StopIteration
        return item  # type: ignore[return-value]
