"""Evaluates an artefact on its checks: the fresh process of `atomsieve.export.fidelity.measure_in_process`.

python -m atomsieve.export.measure GFM CHECKS.npz OUT.npz --entry ENTRY.json --place DIR
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError
from atomsieve.export.artefact import Artefact
from atomsieve.export.checks import Checks, Part
from atomsieve.export.fidelity import evaluate_part
from atomsieve.gfm import ExportEntry, load_gfm
from atomsieve.graphs import build_graph
from atomsieve.models import Ensemble, set_precision
from atomsieve.structures import StructureBatch

MEMORY = 4e8  # bytes that one piece may take, roughly
_BYTES_PER_EDGE = 20 * 8  # of a member and channel
NATIVE_SECONDS = 10.0
"""How long the native ensemble is timed for comparison, about."""


class _Timed:
    """Calls an artefact on structures and keeps the time; neighbour lists are made outside of it."""

    def __init__(self, artefact: Artefact, cutoff: float, max_neighbors: int | None, device: torch.device) -> None:
        self.artefact, self.cutoff, self.max_neighbors, self.device = artefact, cutoff, max_neighbors, device
        self.seconds, self.structures, self.atoms = 0.0, 0, 0

    def __call__(self, batch: StructureBatch, head: NDArray[np.int64], everything: bool) -> dict[str, NDArray[Any]]:
        graph = build_graph(batch, self.cutoff, max_neighbors=self.max_neighbors, dtype=torch.float64)
        began = time.perf_counter()
        found = self.artefact(batch, graph, head)
        self.seconds += time.perf_counter() - began
        self.structures += len(batch)
        self.atoms += batch.n_atoms
        return found


def measure(folder: Path, entry: ExportEntry, place: Path, checks: Checks) -> dict[str, NDArray[Any]]:
    """Return the artefact's values by "part.name", and "speed.name" (see `fidelity.measure_in_process`)."""
    ensemble, manifest = load_gfm(folder)
    config = manifest.config
    device = torch.device("cuda" if entry.device == "cuda" else "cpu")
    began = time.perf_counter()
    artefact = Artefact(folder, manifest, entry, device, place)
    loaded = time.perf_counter() - began
    max_edges = MEMORY / (_BYTES_PER_EDGE * len(manifest.members) * config.hidden)
    values: dict[str, NDArray[Any]] = {}
    for name in ("vector", "varied", "ranked"):  # the ranked come last, when everything is warm
        call = _Timed(artefact, config.cutoff, config.max_neighbors, device)
        found = evaluate_part(getattr(checks, name), call, config.cutoff, max_edges, name != "ranked")
        values |= {f"{name}.{n}": a for n, a in found.items() if name != "ranked" or n == "energy"}
        if call.structures:
            timed, part = call, getattr(checks, name)
    values["speed.structures_per_s"] = np.array(timed.structures / timed.seconds)
    values["speed.atoms_per_s"] = np.array(timed.atoms / timed.seconds)
    values["speed.load_s"] = np.array(loaded)
    values["speed.peak_mib"] = np.array(peak_mib())
    values["speed.threads"] = np.array(torch.get_num_threads())
    values["speed.native"] = np.array(native_speed(ensemble, entry, part, max_edges, device))
    return values


def native_speed(ensemble: Ensemble, entry: ExportEntry, part: Part, max_edges: float, device: torch.device) -> float:
    """Return structures per second of the ensemble itself in the artefact's precision, neighbour search left out."""
    model = set_precision(ensemble, entry.precision).to(device).eval().requires_grad_(False)
    config = model.config
    dtype = torch.float64 if entry.precision == "fp64" else torch.float32

    def took(piece: NDArray[np.int64]) -> float:
        batch = part.batch.take(piece)
        graph = build_graph(batch, config.cutoff, max_neighbors=config.max_neighbors, device=device, dtype=dtype)
        head = torch.from_numpy(part.head[piece]).to(device)
        state = {}
        if config.charge_spin:
            assert batch.charge is not None and batch.spin is not None
            state = {n: torch.from_numpy(a).to(device) for n, a in (("charge", batch.charge), ("spin", batch.spin))}
        began = time.perf_counter()
        with torch.no_grad():
            out = model(graph, head, **state, forces=entry.kind == "forces", stress=False)
        out.energy.cpu()  # waits for a GPU
        return time.perf_counter() - began

    pieces = part.pieces(config.cutoff, max_edges)
    took(pieces[0])  # warms up
    chosen = pieces[:: max(1, round(took(pieces[0]) * len(pieces) / NATIVE_SECONDS))]
    seconds = sum(took(piece) for piece in chosen)
    return sum(map(len, chosen)) / seconds


def peak_mib() -> float:
    """Return the largest memory that this process ever had resident, MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts what the parent held before this program was started
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)


def main(args: list[str] | None = None) -> int:
    """Run as a program: exit code 0, or 1 with one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m atomsieve.export.measure", description=__doc__)
    for name in ("folder", "checks", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--entry", type=Path, required=True)
    parser.add_argument("--place", type=Path, required=True)
    given = parser.parse_args(args)
    try:
        entry = ExportEntry.model_validate_json(given.entry.read_bytes())
        np.savez(given.out, **measure(given.folder, entry, given.place, Checks.load(given.checks)))  # type: ignore[arg-type]
    except AtomSieveError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
