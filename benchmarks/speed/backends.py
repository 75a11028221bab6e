"""Time every backend on one ensemble: energies, forces, virial and spread of crystals of 20 atoms.

    python benchmarks/speed/backends.py [--hidden 64] [--members 4] [--precisions fp32,bf16,fp64] [--sizes 1,16,64,256]

Each route runs in a process of its own under the launcher's allocator settings. Ratios are against the eager edge list
(one row per edge, scatter by index_add) in FP32 with the same batch, measured in the same call of this script. Times
are medians, from a batch and its graph to results; making the graph is not counted. Peak memory is that of the process.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from ensemble import crystals, median_time

from atomsieve.export.artefact import Artefact
from atomsieve.export.spec import Spec, describe_processor, entry_of, import_format
from atomsieve.export.trace import example_inputs, trace
from atomsieve.export.trust import trust
from atomsieve.gfm import ExportEntry, ensemble_id, load_gfm, save_gfm
from atomsieve.graphs import build_graph
from atomsieve.graphs.table import table_arrays
from atomsieve.models import Ensemble, HeadSpec, ModelConfig
from atomsieve.models.messages.message import message
from atomsieve.models.painn import encoder as painn
from atomsieve.predict.backends.native import NativeBackend
from atomsieve.runs.environment import ALLOCATOR

ROUTES = ("edges", "native", "compile", "torchscript", "onnx", "pt2")
ATOMS = 20


def ensemble_of(arguments: argparse.Namespace, folder: Path) -> Path:
    """Write an untrained ensemble and return its folder."""
    references = dict.fromkeys(range(1, 119), -1.0)
    head = HeadSpec(name="any", level_of_theory="none", references=references, scale=1.0, elements={})
    config = ModelConfig(hidden=arguments.hidden, layers=arguments.layers)
    return save_gfm(folder, Ensemble(config, [head], list(range(arguments.members))))


def prepare(folder: Path, route: str, precision: str, place: Path, device: str) -> dict[str, Any]:
    """Lower the ensemble for a route; return the entry of the artefact and the seconds it took."""
    ensemble, _ = load_gfm(folder)
    spec = Spec(route, precision, device=device)
    began = time.perf_counter()
    written = import_format(route).write(ensemble, spec, place, ensemble_id(folder))
    seconds = time.perf_counter() - began
    entry = entry_of(ensemble, spec, place, ensemble_id(folder), written)
    trust(list(place.iterdir()))
    return {"entry": entry.model_dump(), "build_s": seconds}


def runner(route: str, precision: str, folder: Path, place: Path, device: torch.device) -> Any:
    """Return a function of (batch, graph), opened as the route does it."""
    ensemble, manifest = load_gfm(folder)
    if route in ("edges", "native"):
        backend = NativeBackend(ensemble, precision, device)
        return lambda batch, graph: backend(batch, graph, 0, {"forces", "stress"})
    if route == "compile":
        functional = Spec("pt2", precision, device=device.type).functional(ensemble, inline=False)
        graph_module = torch.compile(trace(functional), dynamic=True)
        graph_module(*example_inputs(functional))

        def call(batch: Any, graph: Any) -> Any:
            given = {
                "numbers": batch.numbers,
                "positions": batch.positions,
                "cell": batch.cell,
                "structure": batch.structure_of_atom,
                "head": np.zeros(len(batch), np.int64),
                **table_arrays(graph.neighbors, batch.n_atoms),
            }
            with torch.no_grad():
                return graph_module(*(torch.from_numpy(given[s.name]).to(device) for s in functional.inputs))

        return call
    entry = ExportEntry.model_validate(json.loads((place.parent / f"{place.name}.json").read_text())["entry"])
    artefact = Artefact(folder, manifest, entry, device, place)
    return lambda batch, graph: artefact(batch, graph, 0)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one route in this process."""
    route, precision = arguments.route, arguments.precisions
    device = torch.device(arguments.device)
    began = time.perf_counter()
    place = Path(arguments.work) / f"{route}-{precision}"
    call = runner(route, precision, Path(arguments.work) / "gfm", place, device)
    opened = time.perf_counter() - began
    dtype = torch.float64 if precision == "fp64" else torch.float32
    times = {}
    plain = {"message": functools.partial(message, implementation="edges"), "layer_serves": lambda *given: False}
    patch = mock.patch.multiple(painn, **plain) if route == "edges" else mock.patch.dict({})
    with patch:
        for size in arguments.sizes.split(","):
            batch = crystals(int(size), ATOMS)
            graph = build_graph(batch, 5.0, dtype=dtype, device=device)
            repeats = int(np.clip(256 // int(size), 5, 30))
            times[size] = median_time(lambda b=batch, g=graph: call(b, g), repeats)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    return {"times": times, "open_s": opened, "peak_mib": peak}


def in_process(arguments: argparse.Namespace, route: str, precision: str, work: Path) -> dict[str, Any]:
    """Run one route in a fresh process and return what it measured."""
    environ = os.environ | ALLOCATOR | {"OMP_NUM_THREADS": str(arguments.threads)}
    command = [
        sys.executable,
        __file__,
        "--route",
        route,
        "--precisions",
        precision,
        "--sizes",
        arguments.sizes,
        "--work",
        str(work),
        "--device",
        arguments.device,
    ]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["failed"])[-1][:100]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--precisions", default="fp32,bf16,fp64")
    parser.add_argument("--sizes", default="1,16,64,256")
    parser.add_argument("--routes", default="native,torchscript,onnx,pt2", help=f"any of {', '.join(ROUTES)}")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--route", help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.route:
        print(json.dumps(measure(arguments)))
        return
    sizes = arguments.sizes.split(",")
    print(f"{describe_processor()}, {arguments.threads} threads, torch {torch.__version__}, {arguments.device}")
    print(
        f"{arguments.members} members, hidden {arguments.hidden}, {arguments.layers} layers, {ATOMS} atoms a crystal\n"
    )
    heads = " | ".join(f"{n} a batch" for n in sizes)
    print(f"| route | precision | {heads} | atoms/s | against edges | build s | open s | peak MiB |")
    print("| --- " * (len(sizes) + 7) + "|")
    with tempfile.TemporaryDirectory(prefix="atomsieve-backends-") as name:
        work = Path(name)
        ensemble_of(arguments, work / "gfm")
        base: dict[str, float] = {}
        rows = [("edges", "fp32")]
        rows += [(r, p) for p in arguments.precisions.split(",") for r in arguments.routes.split(",")]
        for route, precision in rows:
            built = 0.0
            if route in ("torchscript", "onnx", "pt2"):
                place = work / f"{route}-{precision}"
                place.mkdir()
                made = prepare(work / "gfm", route, precision, place, arguments.device)
                (work / f"{place.name}.json").write_text(json.dumps(made))
                built = made["build_s"]
            found = in_process(arguments, route, precision, work)
            if "error" in found:
                print(f"| {route} | {precision} | {found['error']} |", flush=True)
                continue
            rates = {n: int(n) / found["times"][n] for n in sizes}
            base = base or rates
            best = max(rates, key=lambda n: rates[n])
            ratios = " ".join(f"{rates[n] / base[n]:.2f}" for n in sizes)
            cells = " | ".join(f"{rates[n]:.0f}/s" for n in sizes)
            print(
                f"| {route} | {precision} | {cells} | {rates[best] * ATOMS:.0f} | {ratios} | {built:.0f} | "
                f"{found['open_s']:.1f} | {found['peak_mib']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
