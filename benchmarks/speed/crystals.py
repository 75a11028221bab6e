"""Benchmark of crystals: periodic cells of 20 atoms, energies, forces and spread, on the CPU or a GPU.

    python benchmarks/speed/crystals.py mace --mace-python venv/bin/python [--gfm gfm/] [--precision fp32]
    python benchmarks/speed/crystals.py members [--hidden 64] [--layers 2] [--sizes 1,16,64]

mace: structures/s of an ensemble with its spread, and of one of its members, beside an untrained MACE of like size in
torch-sim, which runs in an environment of its own that has mace-torch and torch-sim. Neighbour lists are made anew in
every call, by everyone. All ways are timed in turns, so that a busy machine slows all alike; rates are from medians,
ratios are to the ensemble and medians over rounds. Without --gfm the ensemble is an untrained one of four members.

members: what four members cost beside one, deep and shallow: from structures to results, graph and geometry included.

Everything runs under the allocator settings of the `atomsieve` command, MACE too.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

ATOMS = 20
MACES = {"64x0e": (64, 0), "32x0e+32x1o": (32, 1)}
"""Hidden irreps of the MACE models: channels and largest l."""


def take_turns(calls: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each call in each round, after one that is not counted."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(call())
    return times


def timed(call: Callable[[], object]) -> Callable[[], float]:
    """Return a function that makes the call and returns its seconds."""

    def run() -> float:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    return run


def untrained(folder: Path, options: argparse.Namespace, members: int, kind: str = "deep") -> Path:
    """Write an untrained ensemble and return its folder."""
    from atomsieve.gfm import save_gfm
    from atomsieve.models import Ensemble, HeadSpec, ModelConfig

    head = HeadSpec(
        name="any", level_of_theory="none", references=dict.fromkeys(range(1, 119), -1.0), scale=1.0, elements={}
    )
    config = ModelConfig(hidden=options.hidden, layers=options.layers, cutoff=options.cutoff)
    return save_gfm(folder, Ensemble(config, [head], list(range(members)), kind))  # type: ignore[arg-type]


def parameters(folder: Path) -> int:
    """Return the parameters of one member, its heads included."""
    from atomsieve.gfm import load_gfm

    return sum(p.numel() for p in load_gfm(folder)[0].take([0]).parameters())


# -- beside MACE -----------------------------------------------------------------------------------------------------


class Worker:
    """MACE in torch-sim in a process of its own; a call evaluates the crystals once and returns the seconds."""

    def __init__(self, python: str, kind: str, precision: str, cutoff: float, device: str, crystals: Path) -> None:
        program = [
            python,
            __file__,
            "worker",
            "--kind",
            kind,
            "--precision",
            precision,
            "--cutoff",
            str(cutoff),
            "--device",
            device,
            "--crystals",
            str(crystals),
        ]
        self.process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.parameters = int(self._answer())

    def _answer(self) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("> "):
                return line[2:]
        raise SystemExit(f"the MACE process ended with code {self.process.wait()}; its error is above")

    def __call__(self) -> float:
        """Evaluate once."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def worker(options: argparse.Namespace) -> None:
    """Be the process of a `Worker`; runs where mace-torch and torch-sim are, and needs nothing of this package."""
    import os

    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # e3nn 0.4.4 reads its own constants by pickle
    import torch
    import torch_sim
    from e3nn import o3
    from mace import modules
    from torch_sim.models.mace import MaceModel

    arrays = np.load(options.crystals)
    dtype = torch.float64 if options.precision == "fp64" else torch.float32
    torch.set_default_dtype(dtype)
    elements = sorted(set(arrays["numbers"].tolist()))
    channels, largest = MACES[options.kind]
    model = modules.MACE(
        r_max=options.cutoff,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=3,
        num_interactions=2,
        interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=modules.interaction_classes["RealAgnosticInteractionBlock"],
        num_elements=len(elements),
        atomic_numbers=elements,
        atomic_energies=np.zeros(len(elements)),
        hidden_irreps=o3.Irreps("+".join(f"{channels}x{k}{'eo'[k % 2]}" for k in range(largest + 1))),
        MLP_irreps=o3.Irreps("16x0e"),
        avg_num_neighbors=30.0,
        correlation=3,
        gate=torch.nn.functional.silu,
    )
    device = torch.device(options.device)
    in_torch_sim = MaceModel(model, device=device, dtype=dtype, compute_stress=False)
    counts = np.diff(arrays["ptr"])
    state = torch_sim.SimState(
        positions=torch.from_numpy(arrays["positions"]).to(device, dtype),
        masses=torch.ones(len(arrays["numbers"]), dtype=dtype, device=device),
        cell=torch.from_numpy(arrays["cell"]).to(device, dtype).transpose(1, 2).contiguous(),
        pbc=True,
        atomic_numbers=torch.from_numpy(arrays["numbers"].astype(np.int64)).to(device),
        system_idx=torch.from_numpy(np.repeat(np.arange(len(counts)), counts)).to(device),
    )

    def call() -> None:
        found = in_torch_sim(state)
        found["energy"].cpu(), found["forces"].cpu()

    print(f"> {sum(p.numel() for p in model.parameters())}", flush=True)
    for _ in sys.stdin:
        print(f"> {timed(call)()}", flush=True)


def mace(options: argparse.Namespace) -> None:
    """Print the table of rates beside MACE."""
    from ensemble import crystals

    from atomsieve.gfm import load_gfm, save_gfm
    from atomsieve.predict import Predictor

    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = options.gfm or untrained(place / "gfm", options, 4)
        ensemble, manifest = load_gfm(folder)
        head = options.head or manifest.default_head
        single = save_gfm(place / "one", ensemble.take([0]), default_head=manifest.default_head)
        every = Predictor.load(folder, head, options.precision, options.device)
        one = Predictor.load(single, head, options.precision, options.device)
        batch = crystals(options.structures, ATOMS)
        known = every.elements(head) if options.gfm else range(1, 90)
        batch = batch.replace(numbers=np.random.default_rng(1).choice(np.array(known, np.uint8), batch.n_atoms))
        np.savez(place / "crystals.npz", **batch.present())
        want, name = {"energy", "forces", "spread"}, f"{manifest.kind} {every.members}"
        calls: dict[str, Callable[[], float]] = {
            f"{name} members, with spread": timed(lambda: every(batch, want)),
            "one member": timed(lambda: one(batch, want)),
        }
        sizes = dict.fromkeys(calls, parameters(folder))
        if options.torch_sim:
            from atomsieve.calculators.torchsim import TorchSimModel

            state, model = as_state(batch, every), TorchSimModel(every, skin=0.0)
            model.compute_stress = False
            calls[f"{name} members, in torch-sim"] = timed(lambda: model(state))
        for kind in MACES if options.mace_python else ():
            process = Worker(
                options.mace_python, kind, options.precision, manifest.cutoff, options.device, place / "crystals.npz"
            )
            stack.callback(process.close)
            calls[f"MACE {kind}, in torch-sim"] = process
            sizes[f"MACE {kind}, in torch-sim"] = process.parameters
        times = take_turns(calls, options.rounds)
    print(
        f"{len(batch)} crystals of {ATOMS} atoms, cutoff {manifest.cutoff:g} Angstrom, {options.precision}, "
        f"{options.device}, medians of {options.rounds} rounds\n"
    )
    print("| model | parameters of one network | structures/s | ratio |\n| --- | --- | --- | --- |")
    base = np.array(next(iter(times.values())))
    for name, seconds in times.items():
        size = f"{sizes[name]:,}" if name in sizes else ""
        ratio = statistics.median((base / np.array(seconds)).tolist())
        print(f"| {name} | {size} | {len(batch) / statistics.median(seconds):.1f} | {ratio:.2f} |")


def as_state(batch: Any, predictor: Any) -> Any:
    """Return a batch as torch-sim's state."""
    import torch
    import torch_sim

    dtype = torch.float64 if predictor.precision == "fp64" else torch.float32
    return torch_sim.SimState(
        positions=torch.from_numpy(batch.positions).to(predictor.device, dtype),
        masses=torch.ones(batch.n_atoms, dtype=dtype, device=predictor.device),
        cell=torch.from_numpy(batch.cell).to(predictor.device, dtype).transpose(1, 2).contiguous(),
        pbc=True,
        atomic_numbers=torch.from_numpy(batch.numbers.astype(np.int64)).to(predictor.device),
        system_idx=torch.from_numpy(batch.structure_of_atom).to(predictor.device),
    )


# -- one member and four ---------------------------------------------------------------------------------------------


def members(options: argparse.Namespace) -> None:
    """Print what more members cost beside one."""
    from ensemble import crystals

    from atomsieve.predict import Predictor

    wants: Sequence[tuple[str, str, set[str]]] = (
        ("deep", "deep, forces and spread of all", {"energy", "forces", "spread"}),
        ("shallow", "shallow, forces of the mean", {"energy", "forces", "spread"}),
        ("shallow", "shallow, forces and spread of all", {"energy", "forces", "spread", "force_spread"}),
    )
    print(
        f"{options.members} members beside one, crystals of {ATOMS} atoms, {options.layers} x {options.hidden}, "
        f"cutoff {options.cutoff:g} Angstrom, {options.precision}, {options.device}, medians of {options.rounds} "
        "rounds\n"
    )
    print(
        "| crystals | way | one, structures/s | all, structures/s | cost of all in calls of one (range) |\n"
        "| --- | --- | --- | --- | --- |"
    )
    with tempfile.TemporaryDirectory() as place:
        load = {}
        for kind, n in (("deep", 1), ("deep", options.members), ("shallow", options.members)):
            folder = untrained(Path(place) / f"{kind}{n}", options, n, kind)
            load[kind, n] = Predictor.load(folder, None, options.precision, options.device)
        for size in (int(s) for s in options.sizes.split(",")):
            batch = crystals(size, ATOMS)
            calls = {"one": timed(lambda batch=batch: load["deep", 1](batch, wants[0][2]))}  # type: ignore[misc]
            for kind, way, want in wants:
                predictor = load[kind, options.members]
                calls[way] = timed(lambda p=predictor, w=want, batch=batch: p(batch, w))  # type: ignore[misc]
            times = take_turns(calls, options.rounds)
            one = np.array(times.pop("one"))
            for way, seconds in times.items():
                ratios = sorted((np.array(seconds) / one).tolist())
                span = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
                rates = f"{size / np.median(one):.0f} | {size / np.median(seconds):.0f}"
                print(f"| {size} | {way} | {rates} | {span} |", flush=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("mace", "members", "worker"))
    parser.add_argument("--gfm", type=Path, help="a trained ensemble, for mace")
    parser.add_argument("--head")
    parser.add_argument("--mace-python", help="interpreter that has mace-torch and torch-sim")
    parser.add_argument("--torch-sim", action="store_true", help="the ensemble in torch-sim, too")
    parser.add_argument("--precision", choices=("fp32", "fp64"), default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--structures", type=int, default=64)
    parser.add_argument("--sizes", default="1,16,64")
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--cutoff", type=float, default=4.5)
    parser.add_argument("--kind", choices=tuple(MACES), help=argparse.SUPPRESS)
    parser.add_argument("--crystals", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task == "worker":
        worker(options)
        return
    from atomsieve.cli.launch import relaunch

    relaunch()  # with the allocator's settings, as the commands start
    {"mace": mace, "members": members}[options.task](options)


if __name__ == "__main__":
    main()
