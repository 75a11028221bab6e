"""Measure the calculator: ms per step beside one member and MACE, ns/day with and without a skin, NVE drift.

    python benchmarks/speed/calculator.py speed --gfm gfm/ --head elements_mlearn [--mace-python venv/bin/python]
    python benchmarks/speed/calculator.py days  --gfm gfm/ --head elements_mlearn
    python benchmarks/speed/calculator.py nve   --gfm gfm/ --head elements_mlearn --system metal --ps 20
    python benchmarks/speed/calculator.py nve   --gfm gfm/ --head ethanol_pbe --system ethanol --ps 20

Set OMP_NUM_THREADS=1 and the allocator (see `atomsieve --debug`) before starting: times are processor time of one
thread, which other work on the machine disturbs least. Prints Markdown rows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import bulk, molecule


def copper(n: int) -> Atoms:
    """A rattled crystal of 64, or about 500, copper atoms."""
    repeat = {32: (2, 2, 2), 64: (2, 2, 4), 500: (5, 5, 5)}[n]
    atoms = bulk("Cu", a=3.63, cubic=True).repeat(repeat)
    atoms.rattle(0.08, seed=0)
    return atoms


def step_times(atoms: Atoms, steps: int) -> np.ndarray:
    """Return processor seconds of energy and forces of steps in which every atom moves a little."""
    rng = np.random.default_rng(0)
    for _ in range(3):
        atoms.positions += rng.normal(scale=0.004, size=atoms.positions.shape)
        atoms.get_forces(), atoms.get_potential_energy()
    taken = []
    for _ in range(steps):
        atoms.positions += rng.normal(scale=0.004, size=atoms.positions.shape)
        start = time.process_time()
        atoms.get_forces(), atoms.get_potential_energy()
        taken.append(time.process_time() - start)
    return np.array(taken)


def members_of(gfm: Path, keep: int, into: Path) -> Path:
    """Write an ensemble of the first `keep` members of another one."""
    from atomsieve.gfm import load_gfm, save_gfm

    ensemble, manifest = load_gfm(gfm)
    return save_gfm(into, ensemble.take(range(keep)), default_head=manifest.default_head)


def speed(given: argparse.Namespace) -> None:
    """Time one 64-atom cell: the ensemble, one member, and MACE, in turns, so that all see the same machine."""
    from atomsieve.calculators import GFMCalculator

    with tempfile.TemporaryDirectory() as folder:
        one = members_of(given.gfm, 1, Path(folder) / "one")
        calcs = {
            f"{name}, {precision}": GFMCalculator(path, given.head, precision)
            for name, path in (("ensemble", given.gfm), ("one member", one))
            for precision in ("fp64", "fp32")
        }
    best = dict.fromkeys(calcs, np.inf)
    for _ in range(given.rounds):
        for name, calc in calcs.items():
            atoms = copper(64)
            atoms.calc = calc
            best[name] = min(best[name], float(np.median(step_times(atoms, given.steps))))
        for kind in MACES if given.mace_python else ():
            for precision in ("fp64", "fp32"):
                program = [given.mace_python, __file__, "mace", "--kind", kind, "--precision", precision]
                program += ["--steps", str(given.steps)]
                found = subprocess.run(program, capture_output=True, text=True, check=True)
                seconds, parameters = json.loads(found.stdout.splitlines()[-1])
                name = f"MACE {kind} ({parameters:,} parameters), {precision}"
                best[name] = min(best.get(name, np.inf), seconds)
    threads = os.environ.get("OMP_NUM_THREADS", "(unset)")
    print(f"OMP_NUM_THREADS={threads}, least of {given.rounds} medians of {given.steps} steps\n")
    print("| 64 atoms of Cu, energy + forces | ms/step |\n| --- | --- |")
    for name, seconds in best.items():
        print(f"| {name} | {1e3 * seconds:.1f} |")


MACES = {"64x0e": (64, 0), "32x0e+32x1o": (32, 1)}
"""Hidden irreps of the MACE models: channels and largest l."""


def mace(given: argparse.Namespace) -> None:
    """Time an untrained MACE of like size; runs in an environment that has mace-torch."""
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # e3nn 0.4.4 reads its own constants by pickle
    import torch
    from e3nn import o3
    from mace import modules
    from mace.calculators import MACECalculator

    channels, largest = MACES[given.kind]
    irreps = "+".join(f"{channels}x{k}{'eo'[k % 2]}" for k in range(largest + 1))
    torch.set_default_dtype(torch.float64 if given.precision == "fp64" else torch.float32)
    model = modules.MACE(
        r_max=4.5,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=3,
        num_interactions=2,
        num_elements=1,
        interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=modules.interaction_classes["RealAgnosticInteractionBlock"],
        hidden_irreps=o3.Irreps(irreps),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.zeros(1),
        avg_num_neighbors=40.0,
        atomic_numbers=[29],
        correlation=3,
        gate=torch.nn.functional.silu,
    )
    calc = MACECalculator(models=[model], device="cpu", default_dtype=f"float{given.precision[2:]}")
    atoms = copper(64)
    atoms.calc = calc
    taken = step_times(atoms, given.steps)
    print(json.dumps([float(np.median(taken)), sum(p.numel() for p in model.parameters())]))


def days(given: argparse.Namespace) -> None:
    """Time MD of 500 atoms with steps of 1 fs, with and without a skin."""
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
    from ase.md.verlet import VelocityVerlet

    from atomsieve.calculators import GFMCalculator

    print("| 500 atoms of Cu, 1 fs | ms/step | ns/day | lists built |\n| --- | --- | --- | --- |")
    for precision in ("fp64", "fp32"):
        for skin in (0.0, 0.5, 1.0):
            atoms = copper(500)
            atoms.calc = GFMCalculator(given.gfm, given.head, precision, skin=skin)
            MaxwellBoltzmannDistribution(atoms, temperature_K=600, rng=np.random.default_rng(0))
            run = VelocityVerlet(atoms, 1 * units.fs)
            run.run(2)
            start = time.process_time()
            run.run(given.steps)
            seconds = (time.process_time() - start) / given.steps
            lists = atoms.calc._lists.build
            print(
                f"| {precision}, skin {skin} A | {1e3 * seconds:.1f} | {86400 / seconds * 1e-6:.3f} | "
                f"{lists.builds} in {lists.calls} |",
                flush=True,
            )


def nve(given: argparse.Namespace) -> None:
    """Equilibrate by Langevin dynamics, then let go; drift is the slope of a line through the total energy."""
    from ase.md.langevin import Langevin
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
    from ase.md.verlet import VelocityVerlet

    from atomsieve.calculators import GFMCalculator

    metal = given.system == "metal"
    step, kelvin = (1.0, 1900.0) if metal else (0.5, 300.0)
    atoms = copper(given.atoms) if metal else molecule("CH3CH2OH")
    rng = np.random.default_rng(0)
    atoms.calc = GFMCalculator(given.gfm, given.head, given.precision)
    if metal:
        atoms.set_cell(atoms.cell * 1.035, scale_atoms=True)
    MaxwellBoltzmannDistribution(atoms, temperature_K=2 * kelvin, rng=rng)
    warm = Langevin(atoms, step * units.fs, temperature_K=kelvin, friction=0.02 / units.fs, rng=rng, fixcm=False)
    warm.run(int(given.warm / step))
    run = VelocityVerlet(atoms, step * units.fs)
    rows: list[tuple[float, float, float, bool]] = []
    start = atoms.positions.copy()

    def note() -> None:
        inside = atoms.calc.get_property("in_domain", atoms)
        rows.append((run.get_time() / units.fs / 1e3, atoms.get_total_energy(), atoms.get_temperature(), inside))

    run.attach(note, interval=10)
    began = time.process_time()
    run.run(int(given.ps * 1e3 / step))
    seconds = time.process_time() - began
    time_ps, energy, temperature = np.array([r[:3] for r in rows]).T
    per_atom = 1e3 * (energy - energy[0]) / len(atoms)
    slope = np.polyfit(time_ps, per_atom, 1)[0]
    moved = float(np.sqrt(((atoms.positions - start) ** 2).sum(1).mean()))
    print(
        f"| {atoms.get_chemical_formula()}, {given.precision}, {step} fs | {time_ps[-1]:.1f} | {10 * slope:+.4f} | "
        f"{per_atom.std():.4f} | {temperature.mean():.0f} | {moved:.2f} | {np.mean([r[3] for r in rows]):.2f} | "
        f"{1e3 * seconds / len(rows) / 10:.1f} |",
        flush=True,
    )
    if given.save:
        np.savez(given.save, time_ps=time_ps, energy_mev=per_atom, temperature=temperature)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("speed", "days", "nve", "mace"))
    parser.add_argument("--gfm", type=Path)
    parser.add_argument("--head")
    parser.add_argument("--precision", default="fp64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--system", choices=("metal", "ethanol"), default="metal")
    parser.add_argument("--atoms", type=int, default=32)
    parser.add_argument("--ps", type=float, default=20.0)
    parser.add_argument("--warm", type=float, default=2000.0, help="fs of equilibration")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--kind", choices=tuple(MACES))
    parser.add_argument("--mace-python")
    given = parser.parse_args()
    {"speed": speed, "days": days, "nve": nve, "mace": mace}[given.what](given)


if __name__ == "__main__":
    sys.exit(main())
