"""Times inference on random periodic crystals of 20 atoms: FP32, one thread, from structures to energies and forces.

All models of a call are timed in turns in one process, so that a busy machine slows all alike; models of other
packages answer from processes of their own. Rates are of wall time, medians over rounds; costs are of processor time,
which other work on the machine disturbs least; ratios are medians of the ratios within a round.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

ATOMS = 20
Call = Callable[[], tuple[float, float]]
"""Evaluates the crystals once; returns wall and processor seconds."""


def draw_crystals(count: int, elements: list[int], seed: int = 0) -> Any:
    """Return random periodic structures of the elements, a StructureBatch; positions are alike for all elements."""
    from speed.ensemble import crystals

    batch = crystals(count, ATOMS, seed)
    numbers = np.random.default_rng(seed + 1).choice(np.array(elements, np.uint8), batch.n_atoms)
    return batch.replace(numbers=numbers)


def measure(work: Callable[[], object]) -> tuple[float, float]:
    """Do it; return wall and processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def open_ensemble(gfm: Path, head: str | None, structures: int) -> Call:
    """Return the call of an ensemble: energies, forces and their spreads."""
    import torch

    from atomsieve.predict import Predictor

    torch.set_num_threads(1)
    predictor = Predictor.load(gfm, head, "fp32", "cpu")
    batch = draw_crystals(structures, predictor.elements(head or predictor.head))
    want = {"energy", "forces", "spread"}
    bad = int((predictor(batch, want).status != 0).sum())
    if bad:
        raise SystemExit(f"{gfm}: {bad} of {structures} crystals have no result, so the time would say nothing")
    return lambda: measure(lambda: predictor(batch, want))


class PeerProcess:
    """A model of another package in a process of its own, which answers each line `go` with seconds."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about: dict[str, Any] = json.loads(self._answer())

    def _answer(self) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("> "):
                return line[2:]
        raise SystemExit(f"the peer's process ended with code {self.process.wait()}; its error is above")

    def ask(self, way: str) -> tuple[float, float]:
        """Evaluate once, by a way that the process knows."""
        assert self.process.stdin is not None
        self.process.stdin.write(way + "\n")
        self.process.stdin.flush()
        wall, processor = json.loads(self._answer())
        return wall, processor

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def time_in_turns(calls: Mapping[str, Call], base: str, structures: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Return for each call what inference costs.

    structures_per_second : of wall time. cpu_ms : processor milliseconds of a structure. cost : processor time over
    that of the base.
    """
    for call in calls.values():
        call(), call()
    walls: dict[str, list[float]] = {name: [] for name in calls}
    processors: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            wall, processor = call()
            walls[name].append(wall)
            processors[name].append(processor)
    return {
        name: {
            "base": base,
            "structures_per_second": structures / statistics.median(walls[name]),
            "cpu_ms": 1e3 * statistics.median(processors[name]) / structures,
            "cost": statistics.median(
                own / other for own, other in zip(processors[name], processors[base], strict=True)
            ),
        }
        for name in calls
    }


def say_costs(costs: Mapping[str, Mapping[str, Any]]) -> None:
    """Print what was timed."""
    for name, row in costs.items():
        print(
            f"{name}: {row['structures_per_second']:.0f} structures/s, {row['cpu_ms']:.3f} ms of processor time per "
            f"structure, {row['cost']:.2f} of {row['base']}",
            file=sys.stderr,
            flush=True,
        )
