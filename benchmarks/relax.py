"""Relaxation many at once beside one after another in ASE, with the same ensemble in one run: speed, and the minima.

    python benchmarks/relax.py --gfm gfm/ --candidates candidates.bp --n 100 --cell

Every way gets the same structures and the same limit. Times are processor time of this process (threads of its own
included), so that other work on the machine counts for little; wall time stands beside it. ASE computes with
`GFMCalculator`, torch-sim (if it is installed) with `TorchSimModel` in batches of as many atoms.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from ase.calculators.calculator import CalculationFailed
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE

from atomsieve.calculators import GFMCalculator
from atomsieve.followup.relax.group import begin_group, collect_arrays
from atomsieve.followup.relax.options import RelaxOptions
from atomsieve.predict import Predictor
from atomsieve.structures import StructureBatch, open_structures


def main() -> None:
    """Print the tables."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--gfm", required=True)
    ask.add_argument("--candidates", required=True)
    ask.add_argument("--n", type=int, default=60, help="structures, spread evenly over the candidates")
    ask.add_argument("--head")
    ask.add_argument("--fmax", type=float, default=0.02)
    ask.add_argument("--steps", type=int, default=300)
    ask.add_argument("--cell", action="store_true")
    ask.add_argument("--rattle", type=float, default=0.0, help="displace atoms first, Angstrom")
    ask.add_argument("--max-atoms", type=int, default=512)
    ask.add_argument("--without", default="", help="of ase-bfgs, torch-sim, fp32, divided by commas")
    given = ask.parse_args()
    torch.set_num_threads(1)
    without = given.without.split(",")
    double = Predictor.load(given.gfm, given.head, "fp64")
    batch = _candidates(given, double)
    print(
        f"{len(batch)} structures, {batch.n_atoms} atoms, head {double.head}, {double.members} members, "
        f"{double.kind}; fmax {given.fmax}, at most {given.steps} steps, cell {given.cell}"
    )
    ways: dict[str, Callable[[], Minima]] = {
        "ASE FIRE, one by one, fp64": lambda: _ase(double, batch, given, FIRE),
        "at once, fp64": lambda: _own(double, batch, given),
    }
    if "ase-bfgs" not in without:
        ways["ASE BFGS, one by one, fp64"] = lambda: _ase(double, batch, given, BFGS)
    if "fp32" not in without:
        single = Predictor.load(given.gfm, given.head, "fp32")
        ways["at once, fp32"] = lambda: _own(single, batch, given)
    if "torch-sim" not in without:
        ways["torch-sim, at once, fp64"] = lambda: _torchsim(double, batch, given)
    double(batch.slice(0, 2), {"energy", "forces", "stress", "spread"})
    print("| | processor s | wall s | ratio | converged | steps, mean | structures/s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    found: dict[str, Minima] = {}
    spent: dict[str, float] = {}
    for name, way in ways.items():
        wall, processor = time.perf_counter(), time.process_time()
        try:
            found[name] = way()
        except ImportError as error:
            print(f"| {name} | not run: {error} |")
            continue
        wall, spent[name] = time.perf_counter() - wall, time.process_time() - processor
        ratio = spent["ASE FIRE, one by one, fp64"] / spent[name]
        ours = found[name]
        steps = f"{ours.steps.mean():.1f}" if ours.steps is not None else ""
        print(
            f"| {name} | {spent[name]:.1f} | {wall:.1f} | {ratio:.2f} | {ours.converged.sum()} | {steps} | "
            f"{len(batch) / spent[name]:.2f} |",
            flush=True,
        )
    _compare(batch, found)


class Minima:
    """Where a way ended. energy : [S] eV. converged : [S]. steps : [S] or None."""

    def __init__(self, after: StructureBatch, energy: np.ndarray, converged: np.ndarray, steps: np.ndarray | None):
        self.after, self.energy, self.converged, self.steps = after, energy, converged, steps


def _candidates(given: argparse.Namespace, predictor: Predictor) -> StructureBatch:
    with open_structures(Path(given.candidates)) as reader:
        whole = reader.read(0, min(len(reader), 20_000), ("charge", "spin"))
    good = np.flatnonzero(predictor(whole, {"energy"}).status == 0)
    if given.cell:
        good = good[whole.pbc[good].all(1)]
    batch = whole.take(good[np.linspace(0, len(good) - 1, min(given.n, len(good))).astype(int)])
    if given.rattle:
        shift = np.random.default_rng(0).normal(scale=given.rattle, size=batch.positions.shape)
        batch = batch.replace(positions=batch.positions + shift)
    return batch


def _ase(predictor: Predictor, batch: StructureBatch, given: argparse.Namespace, kind: type) -> Minima:
    calc, energy, steps, done, images = GFMCalculator(predictor), [], [], [], batch.to_ase()
    for atoms in images:
        atoms.calc = calc
        dyn = kind(FrechetCellFilter(atoms) if given.cell else atoms, logfile=None)
        try:
            done.append(dyn.run(fmax=given.fmax, steps=given.steps))
            energy.append(atoms.get_potential_energy())
        except CalculationFailed:  # it fell apart
            done.append(False)
            energy.append(np.nan)
        steps.append(dyn.nsteps)
        atoms.calc = None
    return Minima(StructureBatch.from_ase(images), np.array(energy), np.array(done), np.array(steps))


def _own(predictor: Predictor, batch: StructureBatch, given: argparse.Namespace) -> Minima:
    options = RelaxOptions(fmax=given.fmax, max_steps=given.steps, cell=given.cell)
    with TemporaryDirectory() as folder:
        budget = given.max_atoms, 10**9
        group = begin_group(predictor, batch, options, predictor.head, budget, Path(folder) / "state.npz", None)
        group.run(lambda: False, lambda count: None)
        found = collect_arrays(group, batch)
    after = group.fire.result.batch
    return Minima(after, found["energy"], group.fire.result.converged, found["steps"])


def _torchsim(predictor: Predictor, batch: StructureBatch, given: argparse.Namespace) -> Minima:
    import torch_sim as ts

    from atomsieve.calculators.torchsim import TorchSimModel

    model = TorchSimModel(predictor)
    batcher = ts.InFlightAutoBatcher(model, memory_scales_with="n_atoms", max_memory_scaler=given.max_atoms)
    reached = ts.generate_force_convergence_fn(force_tol=given.fmax, include_cell_forces=given.cell)
    fire = ts.optimizers.frechet_cell_fire if given.cell else ts.optimizers.fire
    final = ts.optimize(
        system=batch.to_ase(),
        model=model,
        optimizer=fire,
        convergence_fn=reached,
        autobatcher=batcher,
        max_steps=given.steps,
        steps_between_swaps=5,
    )
    after = StructureBatch.from_ase(final.to_atoms())
    largest = np.array([np.linalg.norm(f.numpy(), axis=1).max() for f in final.forces.split(batch.counts.tolist())])
    return Minima(after, final.energy.numpy(), largest < given.fmax, None)


def _compare(batch: StructureBatch, found: dict[str, Minima]) -> None:
    """Print how far the minima of each way are from those of ASE's FIRE."""
    first, *others = found
    base = found[first]
    print(
        f"\n| beside {first} | both converged | same energy (1 meV/atom) | largest difference of these, meV/atom | "
        "median distance of atoms, A | largest of 95 % | lower by more | higher by more |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in others:
        both = base.converged & found[name].converged
        gap = (found[name].energy - base.energy) / batch.counts
        same = both & (np.abs(gap) < 1e-3)
        apart = _apart(base.after, found[name].after)[same]
        largest = 1e3 * np.abs(gap[same]).max(initial=0.0)
        distances = (np.quantile(apart, q) if len(apart) else np.nan for q in (0.5, 0.95))
        print(
            f"| {name} | {both.sum()} | {same.sum()} | {largest:.3f} | {next(distances):.4f} | "
            f"{next(distances):.4f} | {(both & (gap < -1e-3)).sum()} | {(both & (gap > 1e-3)).sum()} |"
        )


def _apart(one: StructureBatch, other: StructureBatch) -> np.ndarray:
    """Return the largest distance [S] Angstrom between the same atom of both, beyond a shift and the cells' difference.

    Atoms are compared by fractional coordinates in the first's cell where it is periodic along all three vectors.
    """
    out = np.zeros(len(one))
    for s in range(len(one)):
        own = slice(*one.ptr[s : s + 2])
        a, b = one.positions[own], other.positions[own]
        if one.pbc[s].all():
            b = b @ np.linalg.inv(other.cell[s]) @ one.cell[s]
        gap = b - a
        gap -= gap.mean(0)
        out[s] = np.linalg.norm(gap, axis=1).max()
    return out


if __name__ == "__main__":
    main()
