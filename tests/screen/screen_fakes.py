"""A tiny deterministic predictor and an in-memory reader: screening is tested without a model and without files.

Run as a program it is a screening run with faults on order, for tests under mpirun:

    mpirun -n 2 python screen_fakes.py BATCH.npz|FILE OUT '{"fault": "kill", "after": 3, "rank": 1}'
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from atomsieve.predict.base import PredictorBase
from atomsieve.predict.interface import Capabilities
from atomsieve.structures import SourceInfo, StructureBatch, StructureReader

SEEN = np.array([1, 6, 8, 29])
SPREAD = np.array([-0.01, 0.0, 0.01])
"""Relative deviation of the energy of each member."""


@dataclass(frozen=True)
class FakePrediction:
    energy: np.ndarray
    energy_std: np.ndarray
    sigma_energy: np.ndarray
    forces: np.ndarray
    forces_std: np.ndarray
    status: np.ndarray
    in_domain: np.ndarray
    interval_energy: np.ndarray
    sigma_forces: np.ndarray
    distance: np.ndarray
    outside: np.ndarray
    energy_members: np.ndarray | None = None


class FakePredictor(PredictorBase):
    """Energies and forces of particles on springs to the origin, with a spring constant per element and head."""

    members = 3

    def __init__(self, heads: tuple[str, ...] = ("pbe", "scan"), ensemble_id: str = "e" * 64) -> None:
        self.heads = list(heads)
        self.default_head = self.head = heads[0]
        self.ensemble_id = ensemble_id
        self.cutoff = 5.0
        self.precision = "fp32"
        self.calls = 0
        self.largest = 0

    def describe(self) -> dict[str, Any]:
        return {"kind": "springs"}

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, outputs=frozenset({"forces", "energy_members"}))

    def before(self, batch: StructureBatch) -> None:
        """Where a test may let something happen."""

    def __call__(self, batch: StructureBatch, want: Any, head: str | None = None, **more: Any) -> Any:
        self.before(batch)
        self.calls += 1
        self.largest = max(self.largest, batch.n_atoms)
        scale = 1.0 + self.heads.index(head or self.default_head)
        owner, n = batch.structure_of_atom, len(batch)
        k = scale * (1.0 + batch.numbers / 100.0)
        atomic = 0.5 * k * (batch.positions**2).sum(axis=1)
        energy = np.bincount(owner, atomic, n)
        forces = -k[:, None] * batch.positions
        status = np.zeros(n, np.uint8)
        unseen = np.bincount(owner, ~np.isin(batch.numbers, SEEN), n) > 0
        status[unseen] = 3
        pairs = np.concatenate([batch.positions, owner[:, None]], axis=1)
        _, inverse, times = np.unique(pairs, axis=0, return_inverse=True, return_counts=True)
        status[np.bincount(owner, times[inverse.ravel()] > 1, n) > 0] = 2
        status[np.bincount(owner, ~np.isfinite(batch.positions).all(axis=1), n) > 0] = 1
        status[batch.counts == 0] = 5
        bad = status != 0
        energy[bad] = np.nan
        forces[bad[owner]] = np.nan
        uncalibrated = np.full(n, np.nan)
        distance = 0.2 * np.sqrt(np.abs(energy))
        outside = np.where(unseen, 1, np.where(distance > 1, 8, 0)).astype(np.uint8)
        return FakePrediction(
            energy,
            0.01 * np.abs(energy),
            uncalibrated,
            forces,
            0.1 * np.abs(forces),
            status,
            ~bad & (outside == 0),
            uncalibrated,
            0.2 * np.abs(forces[:, 0]),
            distance,
            outside,
            np.outer(1 + SPREAD, energy) if "energy_members" in want else None,
        )


class MemoryReader(StructureReader):
    """Reads a batch in memory."""

    def __init__(self, batch: StructureBatch) -> None:
        self.batch = batch
        self.path = Path("the input")
        self.n_atoms = batch.n_atoms
        self.sources: list[SourceInfo] = []
        self.fields = tuple(batch.present())

    def __len__(self) -> int:
        return len(self.batch)

    def counts(self) -> np.ndarray:
        return self.batch.counts

    def read(self, start: int, stop: int, fields: Iterable[str] | None = None) -> StructureBatch:
        return self.batch.slice(start, stop)

    def read_arrays(self, start: int, stop: int, fields: Iterable[str]) -> dict[str, np.ndarray]:
        found = self.batch.slice(start, stop).present()
        return {name: array for name, array in found.items() if name == "ptr" or name in set(fields)}

    def identity(self) -> str:
        return hashlib.sha256(b"".join(a.tobytes() for a in self.batch.present().values())).hexdigest()


def candidates(n: int, seed: int = 0, bad: bool = True) -> StructureBatch:
    """Return `n` random structures of 1-12 atoms; with `bad`, one in 25 is NaN, overlapping, unseen, or empty."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 13, n)
    kind = rng.integers(0, 100, n) if bad else np.full(n, 99)
    counts[kind == 3] = 0
    counts[(kind == 1) & (counts < 2)] = 2
    ptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    numbers = rng.choice(SEEN, ptr[-1]).astype(np.uint8)
    positions = rng.normal(0, 2, (ptr[-1], 3))
    positions[ptr[:-1][kind == 0], 0] = np.nan
    positions[ptr[:-1][kind == 1]] = positions[ptr[:-1][kind == 1] + 1]
    numbers[ptr[:-1][kind == 2]] = 92
    cell = np.broadcast_to(np.eye(3) * 6.0, (n, 3, 3)).copy()
    pbc = np.ones((n, 3), bool)
    return StructureBatch(ptr, numbers, positions, cell, pbc, np.arange(n, dtype=np.int64) + 1000).validate()


def save(path: Path, batch: StructureBatch) -> Path:
    np.savez(path, **batch.present())
    return path


def load(path: str | Path) -> StructureBatch:
    with np.load(path) as arrays:
        return StructureBatch(**arrays)


class FaultyPredictor(FakePredictor):
    """Fails on order: {"fault": kill | raise | exit | sleep, "after": calls, "rank": which, "slow": seconds}."""

    def __init__(self, order: dict[str, Any], rank: int) -> None:
        super().__init__()
        self.order = order if order.get("rank", rank) == rank else {"slow": order.get("slow_others", 0.0)}

    def before(self, batch: StructureBatch) -> None:
        time.sleep(self.order.get("slow", 0.0))
        if self.calls < self.order.get("after", 1 << 60):
            return
        fault = self.order["fault"]
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "raise":
            raise ValueError("springs are broken")


def without_torch() -> None:
    """Spare the seconds of its import: of these packages, screening with a fake uses files that do without."""
    import types

    import atomsieve

    for name in ("predict", "graphs"):
        package = types.ModuleType(f"atomsieve.{name}")
        package.__path__ = [str(Path(atomsieve.__file__).parent / name)]
        sys.modules[package.__name__] = package


def main() -> None:
    without_torch()

    from rich.console import Console

    from atomsieve.errors import AtomSieveError
    from atomsieve.runs.mpi import connect_ranks
    from atomsieve.screen import load as load_module
    from atomsieve.screen.engine.servers import RemoteOptions
    from atomsieve.screen.options import ScreenOptions
    from atomsieve.screen.run import run_screen
    from atomsieve.structures.dataset.bp5 import import_lightly

    if not sys.argv[1].endswith(".npz"):  # files are converted by adios2
        import_lightly()
    source, out, order = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    comm = connect_ranks()
    small = {"chunk_size": 64, "max_atoms": 200, "commit_seconds": 0.0, "top": 50}
    if "nodes" in order:  # as if the ranks were on so many machines
        order["options"]["local"] += str(comm.rank % order["nodes"])
    options = ScreenOptions(**{**small, **order.get("options", {})})
    predictor: FaultyPredictor | None = FaultyPredictor(order, comm.rank)
    served = None
    if "served" in order:  # what each rank finds at its endpoint
        found = predictor
        found.describe = lambda: {"ensemble_id": order["served"][comm.rank]}
        load_module.connect_servers = lambda *given: found
        predictor, served = None, RemoteOptions("grpc://nowhere")
    try:
        result = run_screen(
            source,
            "gfm",
            options,
            out=out,
            predictor=predictor,
            served=served,
            reader=MemoryReader(load(source)) if source.endswith(".npz") else None,
            comm=comm,
            console=Console(stderr=True),
        )
    except AtomSieveError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    sys.exit(result.exit_code)


if __name__ == "__main__":
    main()
