"""Labelled structures made on the spot: GFN2-xTB molecules off equilibrium, and EMT crystals and alloys of fcc metals.

They let anyone train and screen without data or network, with labels from a real electronic-structure method
(GFN2-xTB, Bannwarth, Ehlert, Grimme, J. Chem. Theory Comput. 15, 1652 (2019)) and from a real potential of metals
(EMT, Jacobsen, Stoltze, Norskov, Surf. Sci. 366, 394 (1996)). Group k of a source is a function of the seed and k
alone, whatever the number of workers.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import numpy as np

from atomsieve.errors import require, unknown

if TYPE_CHECKING:
    from ase import Atoms

MOLECULES = (
    "CH4",
    "NH3",
    "H2O",
    "CH3OH",
    "C2H6",
    "C2H4",
    "C2H2",
    "H2CO",
    "HCOOH",
    "CH3CN",
    "H3CNH2",
    "CH3CHO",
    "CH3OCH3",
    "CH3CONH2",
    "C3H8",
    "CH3CH2OH",
    "C6H6",
    "C5H5N",
    "C4H4O",
    "CH3COCH3",
)
"""Closed-shell molecules of H, C, N, O, by their names in ASE's G2 set."""

TEMPERATURES = (300.0, 500.0, 700.0, 900.0)
"""Kelvin, of the Langevin runs; group k takes molecule `k % 20` and temperature `(k // 20) % 4`."""

METALS = {"Al": 4.05, "Ni": 3.52, "Cu": 3.61, "Pd": 3.89, "Ag": 4.09, "Pt": 3.92, "Au": 4.08}
"""Elements of EMT and their fcc lattice constants, Angstrom."""

REPEATS = ((1, 1, 1), (2, 1, 1), (2, 2, 1), (2, 2, 2), (3, 2, 1), (3, 2, 2))
"""Supercells of the small crystals."""


@dataclass(frozen=True)
class LabelSource:
    """One way of making labelled structures.

    Attributes
    ----------
    name, level_of_theory : as written into the files.
    make : `(seed, group) -> list of ASE atoms` with energy (eV), forces (eV/Angstrom) and, for crystals, stress.
    group_size : structures in one group; they resemble each other and must not be parted between training and test.
    """

    name: str
    level_of_theory: str
    make: Callable[[int, int], list[Atoms]]
    group_size: int


def _frozen(atoms: Atoms, calculator: Any, group: str) -> Atoms:
    """Return a copy of `atoms` that holds the labels of `calculator` as plain results."""
    from ase.calculators.singlepoint import SinglePointCalculator

    results = {"energy": calculator.get_potential_energy(atoms), "forces": calculator.get_forces(atoms).copy()}
    if atoms.pbc.all():
        results["stress"] = calculator.get_stress(atoms).copy()
    frame = atoms.copy()
    frame.info = {"group": group}
    frame.calc = SinglePointCalculator(frame, **results)
    return frame


def _gfn2() -> Any:
    return require("tblite.ase", "demo", "making GFN2-xTB labels").TBLite(method="GFN2-xTB", verbosity=0)


@functools.cache
def _relax_molecule(name: str) -> Atoms:
    from ase.build import molecule
    from ase.optimize import BFGS

    atoms = molecule(name)
    atoms.calc = _gfn2()
    BFGS(atoms, logfile=None).run(fmax=0.05, steps=50)
    atoms.calc = None
    atoms.set_initial_magnetic_moments(None)
    return atoms


def molecule_group(seed: int, group: int, *, thermal: int = 5, rattled: int = 5) -> list[Atoms]:
    """Return one molecule around its GFN2 minimum: frames of a Langevin run and Gaussian displacements.

    Displacements have standard deviations drawn from 0.03 to 0.08 Angstrom; the run (1 fs steps, friction 0.02/fs) is
    thinned to every fifth step after 20.
    """
    from ase import units
    from ase.md.langevin import Langevin

    rng = np.random.default_rng([seed, 1, group])
    name = MOLECULES[group % len(MOLECULES)]
    temperature = TEMPERATURES[(group // len(MOLECULES)) % len(TEMPERATURES)]
    label = f"{name}/{group:04d}"
    start = _relax_molecule(name)
    calculator = _gfn2()
    frames = []
    for _ in range(rattled):
        atoms = start.copy()
        atoms.positions += rng.normal(scale=rng.uniform(0.03, 0.08), size=atoms.positions.shape)
        frames.append(_frozen(atoms, calculator, label))
    atoms = start.copy()
    atoms.calc = calculator
    # Twice the temperature at a minimum: half of it turns into potential energy.
    spread = np.sqrt(2 * units.kB * temperature * atoms.get_masses())
    atoms.set_momenta(rng.normal(size=atoms.positions.shape) * spread[:, None])
    run = Langevin(atoms, units.fs, temperature_K=temperature, friction=0.02 / units.fs, fixcm=False, rng=rng)
    run.run(20)
    for _ in range(thermal):
        run.run(5)
        frames.append(_frozen(atoms, calculator, label))
    return frames


def prototype(kind: str, species: list[str], lattice: float) -> Atoms:
    """Return a crystal prototype: `fcc`, `L1_2` (A3B), `L1_0` (AB), `D0_22` (A3B), `bcc` or `B2` (AB).

    `lattice` is the fcc-like constant, Angstrom; bcc and B2 are scaled to the same volume per atom.

    Raises
    ------
    UsageError
        for another `kind`.
    """
    from ase import Atoms
    from ase.build import bulk

    a, b = species[0], species[-1]
    if kind == "fcc":
        return bulk(a, "fcc", a=lattice)
    if kind == "L1_2":
        return Atoms([b, a, a, a], bulk(a, "fcc", a=lattice, cubic=True).positions, cell=[lattice] * 3, pbc=True)
    if kind == "L1_0":
        side = lattice / np.sqrt(2)
        return Atoms([a, b], [[0, 0, 0], [side / 2, side / 2, lattice / 2]], cell=[side, side, lattice], pbc=True)
    if kind == "D0_22":
        scaled = [
            [0, 0, 0],
            [0.5, 0.5, 0.5],
            [0.5, 0.5, 0],
            [0, 0, 0.5],
            [0.5, 0, 0.25],
            [0, 0.5, 0.25],
            [0.5, 0, 0.75],
            [0, 0.5, 0.75],
        ]
        cell = [lattice, lattice, 2 * lattice]
        return Atoms([b, b, a, a, a, a, a, a], scaled_positions=scaled, cell=cell, pbc=True)
    side = lattice / 2 ** (1 / 3)
    if kind == "bcc":
        return bulk(a, "bcc", a=side)
    if kind == "B2":
        return Atoms([a, b], [[0, 0, 0], [side / 2] * 3], cell=[side] * 3, pbc=True)
    raise unknown("prototype", kind, ("fcc", "L1_2", "L1_0", "D0_22", "bcc", "B2"))


def _random_alloy(rng: np.random.Generator) -> tuple[str, Atoms]:
    """Return a name and an ordered or random alloy of one to four metals, 1 to 32 atoms, at about its own volume."""
    from ase.build import bulk

    n_species = int(rng.choice([1, 2, 2, 2, 3, 4]))
    species = [str(s) for s in rng.choice(list(METALS), size=n_species, replace=False)]
    ordered = n_species <= 2 and rng.random() < 0.6
    if ordered:
        kind = str(rng.choice(["fcc", "bcc"] if n_species == 1 else ["L1_2", "L1_0", "D0_22", "B2"]))
        atoms = prototype(kind, species, 4.0)
        if len(atoms) <= 2 and rng.random() < 0.7:
            atoms = atoms.repeat(REPEATS[int(rng.integers(len(REPEATS)))])
    else:
        kind = "random"
        size = REPEATS[int(rng.choice(4, p=[0.3, 0.35, 0.2, 0.15]))]
        atoms = bulk("Cu", "fcc", a=4.0, cubic=True).repeat(size)
        atoms.symbols = rng.choice(species, size=len(atoms))
    # Vegard's rule for the volume: the structure starts near its own lattice constant.
    volume = np.mean([METALS[s] ** 3 / 4 for s in atoms.get_chemical_symbols()])
    atoms.set_cell(atoms.cell * (volume * len(atoms) / atoms.get_volume()) ** (1 / 3), scale_atoms=True)
    return f"{kind}-{atoms.get_chemical_formula()}", atoms


def alloy_group(seed: int, group: int, *, variants: int = 4) -> list[Atoms]:
    """Return one alloy, strained (lengths within 9 %, shear within 3 %) and rattled (0 to 0.12 Angstrom), by EMT."""
    from ase.calculators.emt import EMT

    rng = np.random.default_rng([seed, 2, group])
    name, start = _random_alloy(rng)
    frames = []
    for _ in range(variants):
        atoms = start.copy()
        strain = rng.uniform(-0.03, 0.03, size=(3, 3))
        strain = np.eye(3) * (1 + rng.uniform(-0.06, 0.06)) + (strain + strain.T) / 2
        atoms.set_cell(atoms.cell @ strain, scale_atoms=True)
        atoms.positions += rng.normal(scale=rng.uniform(0, 0.12), size=atoms.positions.shape)
        frames.append(_frozen(atoms, EMT(), f"{name}/{group:04d}"))
    return frames


LABEL_SOURCES = {
    s.name: s
    for s in (
        LabelSource("gfn2_xtb", "GFN2-xTB (tblite), closed shell, gas phase", molecule_group, 10),
        LabelSource("emt", "EMT (ASE), zero at each element's own fcc crystal", alloy_group, 4),
    )
}
"""The sources by name."""


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let processes that start inside use one OpenMP thread: more make labels of small systems 3-10 times slower."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _make(task: tuple[str, int, int]) -> list[Atoms]:
    name, seed, group = task
    return LABEL_SOURCES[name].make(seed, group)


def label_groups(name: str, n_groups: int, *, seed: int = 0, workers: int = 2) -> Iterator[list[Atoms]]:
    """Yield groups 0 to `n_groups - 1` of a source in order, made by `workers` processes of one thread each.

    Raises
    ------
    UsageError
        for an unknown source.
    AtomSieveError
        where tblite is needed and absent.
    """
    if name not in LABEL_SOURCES:
        raise unknown("label source", name, LABEL_SOURCES)
    tasks = [(name, seed, group) for group in range(n_groups)]
    with _one_thread(), ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.map(_make, tasks, chunksize=1)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
