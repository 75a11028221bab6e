"""Whether ensembles are robust in use: relaxation of candidates, dynamics, smooth curves, errors by novelty.

    python benchmarks/robustness.py --gfm old/gfm --gfm new/gfm --data ../shared/data --converted real_data
    python benchmarks/robustness.py --gfm old/gfm --gfm new/gfm --data ../shared/data --parts relax --structures 20

Parts: relax (the first --structures of each candidate file that both ensembles can evaluate, by the head --head), nve
(drift and fluctuation of the total energy at two time steps), curves (energy against volume, pairs of atoms through the
cutoff and down to 0.3 Angstrom), errors (of forces on the test files, by element and by distance from the training
data). Everything is one process with one thread; every part prints a table with a row for each ensemble.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase import Atoms, units
from ase.data import chemical_symbols, covalent_radii
from ase.md.velocitydistribution import Stationary
from ase.md.verlet import VelocityVerlet

from atomsieve.calculators import GFMCalculator
from atomsieve.calculators.relaxation import relax
from atomsieve.graphs import build_graph
from atomsieve.predict import Predictor
from atomsieve.predict.prediction import Prediction
from atomsieve.predict.status import Status
from atomsieve.structures import StructureBatch, open_structures

CLOSE = 0.6
"""Atoms closer than this part of the sum of their covalent radii lie in a hole of the energy surface, or press hard."""
FALLEN = 3.0
"""eV/atom: no candidate, as it is given, has so much to gain by relaxing."""
PARTS = ("relax", "nve", "curves", "errors")


def main() -> None:
    """Print the tables."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--gfm", action="append", required=True, help="folder of an ensemble; give it for each")
    ask.add_argument("--data", type=Path, required=True, help="folder that holds candidates/")
    ask.add_argument("--converted", type=Path, help="folder of test.bp; needed by nve, curves and errors")
    ask.add_argument("--parts", default=",".join(PARTS), help="names joined by commas")
    ask.add_argument("--structures", type=int, default=200, help="of each candidate file and of each head's test data")
    ask.add_argument("--head", help="that relaxes candidates; default: the ensemble's")
    ask.add_argument("--fmax", type=float, default=0.05)
    ask.add_argument("--steps", type=int, default=300)
    ask.add_argument("--cell", action="store_true", help="relax cells too")
    ask.add_argument("--rattle", type=float, default=0.0, help="displace atoms of candidates first, Angstrom")
    ask.add_argument("--femtoseconds", type=float, default=100.0, help="of dynamics")
    given = ask.parse_args()
    torch.set_num_threads(1)
    parts = given.parts.split(",")
    if not set(parts) <= set(PARTS) or (given.converted is None and parts != ["relax"]):
        ask.error(f"--parts takes {', '.join(PARTS)}; all but relax need --converted")
    single, double = ({f: Predictor.load(f, given.head, p) for f in given.gfm} for p in ("fp32", "fp64"))
    if "relax" in parts:
        relax_candidates(single, given)
    if "nve" in parts:
        run_dynamics(double, given)
    if "curves" in parts:
        draw_volume_curves(double, given)
        draw_pair_curves(double)
    if "errors" in parts:
        tabulate_errors(single, given)


# -- relaxation ------------------------------------------------------------------------------------------------------


def relax_candidates(predictors: dict[str, Predictor], given: argparse.Namespace) -> None:
    """Relax the first candidates of each file."""
    task = f"relaxation to {given.fmax} eV/A, at most {given.steps} steps, cell {given.cell}"
    print(
        f"\n| {task} | ensemble | structures | converged | steps, median | steps, 90 % | "
        "failed | 3 eV/atom below the candidate | with a pair below 0.6 (r1 + r2) before | after | "
        "largest force at the end, eV/A | processor s |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for path in sorted((given.data / "candidates").glob("*.extxyz.gz")):
        images = ase.io.read(path, index=f":{given.structures}", format="extxyz")
        batch = StructureBatch.from_ase([strip(atoms) for atoms in images])
        given_batch = batch = take_known(batch, predictors)
        if given.rattle:
            shift = np.random.default_rng(0).normal(scale=given.rattle, size=batch.positions.shape)
            batch = batch.replace(positions=batch.positions + shift)
        before = shortest_parts(batch)
        for folder, predictor in predictors.items():
            spent = time.process_time()
            start = predictor(given_batch, ("energy",)).energy
            found = relax(predictor, batch, given.fmax, given.steps, cell=given.cell)
            spent = time.process_time() - spent
            fallen = (start - found.energy) / batch.counts > FALLEN
            print(
                f"| {path.name.split('.')[0]} | {folder} | {len(batch)} | {found.converged.mean():.3f} | "
                f"{np.median(found.steps):.0f} | {np.quantile(found.steps, 0.9):.0f} | "
                f"{(found.status != Status.OK).sum()} | {fallen.sum()} | {(before < CLOSE).sum()} | "
                f"{(shortest_parts(found.batch) < CLOSE).sum()} | {np.nanmax(found.max_force):.2f} | {spent:.0f} |",
                flush=True,
            )


def strip(atoms: Atoms) -> Atoms:
    """Return the structure without labels."""
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


def take_known(batch: StructureBatch, predictors: dict[str, Predictor]) -> StructureBatch:
    """Return the structures that all ensembles can evaluate."""
    good = np.ones(len(batch), bool)
    for predictor in predictors.values():
        good &= predictor(batch, ("energy",)).status == Status.OK
    return batch.take(np.flatnonzero(good))


def shortest_parts(batch: StructureBatch) -> np.ndarray:
    """Return the shortest distance of each structure over the sum of the covalent radii of its pair, [S]."""
    graph = build_graph(batch, 4.0, dtype=torch.float64)
    radii = torch.from_numpy(covalent_radii)[graph.numbers]
    part = graph.vec.norm(dim=1) / (radii[graph.neighbors.receiver] + radii[graph.neighbors.sender])
    home = graph.structure[graph.neighbors.receiver]
    return torch.full((len(batch),), 9.0, dtype=torch.float64).scatter_reduce(0, home, part, "amin").numpy()


# -- dynamics --------------------------------------------------------------------------------------------------------


def run_dynamics(predictors: dict[str, Predictor], given: argparse.Namespace) -> None:
    """Run velocity Verlet from a test structure of each head with few atoms, at a time step and half of it."""
    print(
        f"\n| NVE from 600 K, {given.femtoseconds} fs | ensemble | atoms | drift, meV/atom/ps | half the step | "
        "fluctuation, meV/atom | half the step | ratio (4 if second order) |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for head, atoms in test_structures(given, 1, 64):
        for folder, predictor in predictors.items():
            if head not in predictor.heads:
                continue
            step = 0.5 if 1 in atoms.numbers else 2.0
            whole, half = (follow(predictor, head, atoms, step / k, given.femtoseconds) for k in (1, 2))
            print(
                f"| {head} | {folder} | {len(atoms)} | {whole[0]:.3f} | {half[0]:.3f} | {whole[1]:.4f} | "
                f"{half[1]:.4f} | {whole[1] / half[1]:.2f} |",
                flush=True,
            )


def follow(predictor: Predictor, head: str, atoms: Atoms, step: float, duration: float) -> tuple[float, float]:
    """Return the drift of the total energy (meV/atom/ps) and the deviation of it from that line (meV/atom)."""
    atoms = atoms.copy()
    atoms.calc = GFMCalculator(predictor, head=head)
    thermal = np.random.default_rng(0).normal(size=(len(atoms), 3))
    atoms.set_momenta(thermal * np.sqrt(atoms.get_masses() * units.kB * 600)[:, None])
    Stationary(atoms)
    energies: list[float] = []
    dynamics = VelocityVerlet(atoms, step * units.fs)
    dynamics.attach(lambda: energies.append(atoms.get_total_energy()))
    dynamics.run(int(duration / step))
    values = 1e3 * np.array(energies) / len(atoms)
    times = step * 1e-3 * np.arange(len(values))
    slope, start = np.polyfit(times, values, 1)
    return float(slope), float((values - slope * times - start).std())


# -- curves ----------------------------------------------------------------------------------------------------------


def draw_volume_curves(predictors: dict[str, Predictor], given: argparse.Namespace) -> None:
    """Compare second differences of energy against strain at two spacings: a kink doubles the larger one."""
    print(
        "\n| energy against isotropic strain, -4 % to 4 % | ensemble | largest second difference / h^2 at h = 0.1 %, "
        "eV/atom | ratio at h / 2 (1: smooth, 2: kink) |"
    )
    print("| --- | --- | --- | --- |")
    for head, atoms in test_structures(given, 1, 64):
        if not atoms.pbc.all():
            continue
        for folder, predictor in predictors.items():
            if head not in predictor.heads:
                continue
            found = []
            for h in (1e-3, 5e-4):
                strains = np.arange(-0.04, 0.04 + h / 2, h)
                images = []
                for strain in strains:
                    images.append(atoms.copy())
                    images[-1].set_cell(atoms.cell * (1 + strain), scale_atoms=True)
                energy = predictor(StructureBatch.from_ase(images), ("energy",), head).energy / len(atoms)
                found.append(np.abs(np.diff(energy, 2)).max() / h**2)
            print(f"| {head} | {folder} | {found[0]:.2f} | {found[1] / found[0]:.3f} |", flush=True)


def draw_pair_curves(predictors: dict[str, Predictor]) -> None:
    """Follow pairs of atoms from 0.3 Angstrom through the cutoff, for every head and 30 pairs of its elements."""
    print(
        "\n| pairs of atoms, all heads | ensemble | pairs | of them attract or fall somewhere below 0.6 (r1 + r2) | "
        "deepest fall there, eV | second difference around the cutoff at h = 0.01 A, eV/A^2 | ratio at h / 2 |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for folder, predictor in predictors.items():
        pairs = bad = 0
        fall, kinks = 0.0, []
        for head in predictor.heads:
            elements = predictor.elements(head)
            rng = np.random.default_rng(0)
            for a, b in rng.choice(elements, (30, 2)):
                end = CLOSE * (covalent_radii[a] + covalent_radii[b])
                found = evaluate_pairs(predictor, head, a, b, np.arange(0.3, max(end, 0.33), 0.02))
                pairs += 1
                bad += bool((np.diff(found.energy) >= 0).any() or (found.forces[1::2, 0] <= 0).any())
                fall = max(fall, float(np.diff(found.energy).max(initial=0)))
            cutoff = predictor.cutoff
            a, b = elements[len(elements) // 2], elements[-1]
            kinks.append(
                [
                    np.abs(np.diff(evaluate_pairs(predictor, head, a, b, points).energy, 2)).max() / h**2
                    for h in (0.01, 0.005)
                    for points in (np.arange(cutoff - 0.5, cutoff + 0.2, h),)
                ]
            )
        largest = np.array(kinks).max(0)
        print(f"| | {folder} | {pairs} | {bad} | {fall:.2f} | {largest[0]:.4f} | {largest[1] / largest[0]:.3f} |")


def evaluate_pairs(predictor: Predictor, head: str, a: int, b: int, distances: np.ndarray) -> Prediction:
    """Return the prediction for two atoms at distances along x."""
    images = [Atoms([a, b], [[0, 0, 0], [d, 0, 0]]) for d in distances]
    return predictor(StructureBatch.from_ase(images), ("energy", "forces"), head)


# -- errors ----------------------------------------------------------------------------------------------------------


def tabulate_errors(predictors: dict[str, Predictor], given: argparse.Namespace) -> None:
    """Print force errors on test data by element, and by the structure's distance from the training data."""
    limits = (0.0, 0.5, 0.75, 1.0, 1.5, np.inf)
    by_element: dict[str, dict[int, list[np.ndarray]]] = {f: {} for f in predictors}
    by_distance: dict[str, list[list[np.ndarray]]] = {f: [[] for _ in limits[1:]] for f in predictors}
    for head, batch in test_batches(given, given.structures, 10**6):
        for folder, predictor in predictors.items():
            if head not in predictor.heads or batch.forces is None:
                continue
            found = predictor(batch, ("energy", "forces"), head)
            has = np.ones(len(batch), bool) if batch.has_forces is None else batch.has_forces
            good = (has & (found.status == Status.OK))[batch.structure_of_atom]
            error = np.abs(found.forces - batch.forces).mean(1)
            size = np.linalg.norm(batch.forces, axis=1)
            for z in np.unique(batch.numbers[good]):
                chosen = good & (batch.numbers == z)
                by_element[folder].setdefault(int(z), []).append(np.stack([error[chosen], size[chosen]]))
            if found.distance is None:
                continue
            far = found.distance[batch.structure_of_atom]
            for k, (low, high) in enumerate(pairwise(limits)):
                chosen = good & (far >= low) & (far < high)
                by_distance[folder][k].append(np.stack([error[chosen], size[chosen]]))
    names = list(predictors)
    columns = " | ".join(f"MAE of {name}" for name in names)
    print(
        f"\n| forces, meV/A, by element | atoms | mean length | {columns} |\n| --- | --- | --- {'| --- ' * len(names)}|"
    )
    every = {f: {z: np.concatenate(parts, 1) for z, parts in rows.items()} for f, rows in by_element.items()}
    for z in sorted(every[names[0]], key=lambda z: -every[names[0]][z].shape[1]):
        first = every[names[0]][z]
        found_of = [f"{1e3 * every[f][z][0].mean():.0f}" if z in every[f] else "" for f in names]
        print(f"| {chemical_symbols[z]} | {first.shape[1]} | {1e3 * first[1].mean():.0f} | {' | '.join(found_of)} |")
    print("\n| forces, meV/A, by distance from the training data | ensemble | atoms | mean length | MAE |")
    print("| --- | --- | --- | --- | --- |")
    for folder in names:
        for k, (low, high) in enumerate(pairwise(limits)):
            parts = np.concatenate(by_distance[folder][k], 1) if by_distance[folder][k] else np.zeros((2, 0))
            if parts.shape[1]:
                error, size = 1e3 * parts.mean(1)
                print(f"| {low} to {high} | {folder} | {parts.shape[1]} | {size:.0f} | {error:.0f} |")


# -- test data -------------------------------------------------------------------------------------------------------


def test_batches(given: argparse.Namespace, count: int, most: int) -> list[tuple[str, StructureBatch]]:
    """Return up to `count` test structures of at most `most` atoms for each source."""
    with open_structures(given.converted / "test.bp", verify="size") as reader:
        whole = reader.read(0, len(reader))
        names = [source.name for source in reader.sources]
    assert whole.head is not None
    chosen = {name: np.flatnonzero((whole.head == k) & (whole.counts <= most))[:count] for k, name in enumerate(names)}
    return [(name, whole.take(rows)) for name, rows in chosen.items() if len(rows)]


def test_structures(given: argparse.Namespace, count: int, most: int) -> list[tuple[str, Atoms]]:
    """Return the same as structures of ASE, without labels."""
    return [(name, strip(atoms)) for name, batch in test_batches(given, count, most) for atoms in batch.to_ase()]


if __name__ == "__main__":
    main()
