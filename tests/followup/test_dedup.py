"""Dropping duplicates: the same as by the matcher on all pairs, for crystals in many guises."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111, make_supercell, molecule
from ase.io import read
from typer.testing import CliRunner

from atomsieve.cli.screen import app
from atomsieve.errors import UsageError
from atomsieve.followup.dedup import Tolerances, find_different, to_pymatgen
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.results.record import open_results
from atomsieve.screen.run import run_screen
from atomsieve.screen.selection.select import Selection, select
from atomsieve.structures import StructureBatch, write_structures
from tests.screen.screen_fakes import FakePredictor

ANYTHING = Tolerances(volume=np.inf, energy=np.inf)
KINDS = [
    bulk("Cu", "fcc", a=3.6),
    bulk("Cu", "bcc", a=2.87),
    bulk("Cu", "hcp", a=2.55, c=4.17),
    bulk("CuO", "rocksalt", a=4.2),
    bulk("CuO", "cesiumchloride", a=2.6),
    bulk("CuO", "zincblende", a=4.5),
    bulk("Cu", "fcc", a=4.4),
    bulk("CuH", "rocksalt", a=4.2),
]


def guise(atoms, rng):
    """Return the same crystal in other words: a supercell, moved, turned, in another order, hardly rattled."""
    matrix = np.triu(rng.integers(-1, 2, (3, 3)), 1) + np.diag([rng.integers(1, 3), 1, 1])
    atoms = make_supercell(atoms, matrix)
    atoms.positions += rng.normal(0, 0.01, atoms.positions.shape) + rng.random(3)
    atoms.rotate(360 * rng.random(), rng.normal(size=3), rotate_cell=True)
    if rng.random() < 0.3:
        atoms.positions[:, 0] *= -1  # a left-handed cell
        atoms.cell[:, 0] *= -1
    atoms = atoms[rng.permutation(len(atoms))]
    if rng.random() < 0.5:
        atoms.wrap()
    return atoms


def family(n, seed=0):
    """Return n crystals, which kind each is, and energies that tell kinds apart."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, len(KINDS), n)
    images = [guise(KINDS[k], rng) for k in kind]
    return StructureBatch.from_ase(images), kind, -3.0 + 0.3 * kind + 0.01 * rng.random(n)


def on_all_pairs(batch, energy, tolerances):
    """Compare every structure with all that were kept, by the matcher alone, then by the windows."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    matcher = StructureMatcher(ltol=tolerances.length, stol=tolerances.site, angle_tol=tolerances.angle)
    structures = [to_pymatgen(batch, k) for k in range(len(batch))]
    per_atom = [s.volume / len(s) for s in structures]
    twin = list(range(len(batch)))
    for k in range(len(batch)):
        for other in range(k):
            apart = abs(per_atom[k] - per_atom[other]) / min(per_atom[k], per_atom[other])
            near = abs(energy[k] - energy[other]) <= tolerances.energy and apart <= tolerances.volume
            if twin[other] == other and matcher.fit(structures[other], structures[k]) and near:
                twin[k] = other
                break
    return twin


@pytest.mark.parametrize("tolerances", [Tolerances(), ANYTHING, Tolerances(site=0.01, length=0.02)])
def test_the_same_as_on_all_pairs(tolerances):
    batch, kind, energy = family(30)
    found = find_different(batch, energy, tolerances)
    assert found.twin.tolist() == on_all_pairs(batch, energy, tolerances)
    assert found.alone == 0
    assert found.compared < 60  # of 435 pairs
    if tolerances.site > 0.1:
        wanted = {(k % 6 if tolerances is ANYTHING and k == 6 else k) for k in kind}  # fcc is fcc, however wide
        assert len(found.kept) == len(wanted)


def test_windows_keep_apart():
    atoms = bulk("Cu", "fcc", a=3.6)
    images = [atoms.copy() for _ in range(3)]
    images[1].set_cell(atoms.cell * 1.05, scale_atoms=True)  # 16 % of the volume
    batch = StructureBatch.from_ase(images)
    energy = np.array([-3.0, -2.9, -2.8])
    for tolerances, twin in (
        (ANYTHING, [0, 0, 0]),
        (Tolerances(energy=np.inf), [0, 1, 0]),
        (Tolerances(volume=np.inf), [0, 1, 2]),
        (Tolerances(volume=0.2, energy=0.11), [0, 0, 2]),
    ):
        found = find_different(batch, energy, tolerances)
        assert found.twin.tolist() == twin
        assert found.kept.tolist() == sorted(set(twin))


def adsorbed(site, metal="Pt", size=(2, 2, 4), height=1.5):
    atoms = fcc111(metal, size, vacuum=12.0, periodic=True)
    add_adsorbate(atoms, "O", height, site)
    return atoms


def test_sites_of_an_adsorbate_stay_apart():
    sites = ["fcc", "hcp", "bridge", "ontop"]
    rng = np.random.default_rng(5)
    images = [adsorbed(site) for site in sites]
    for first in images[:4]:  # the same ones, moved along the surface, turned, in another order, hardly rattled
        other = first[rng.permutation(len(first))]
        other.positions += rng.normal(0, 0.01, other.positions.shape) + np.array([1.3, 0.4, 7.0])
        other.wrap()
        other.rotate(25, "z", rotate_cell=True)
        images.append(other)
    batch, same = StructureBatch.from_ase(images), np.full(8, -5.0)
    found = find_different(batch, same, Tolerances())
    assert (found.twin.tolist(), found.empty) == ([0, 1, 2, 3, 0, 1, 2, 3], 8)
    loose = find_different(batch, same, Tolerances(shift=np.inf, cell_energy=np.inf))
    assert len(loose.kept) < 4  # what the tolerances of crystals would merge
    apart = same + np.array([0, 0, 0, 0, 0.04, 0.06, 0.04, 0.06]) / 17  # eV per cell of 17 atoms
    assert find_different(batch, apart, Tolerances()).twin.tolist() == [0, 1, 2, 3, 0, 5, 2, 7]
    crystals = StructureBatch.from_ase(KINDS)
    assert find_different(crystals, np.zeros(len(KINDS)), Tolerances()).empty == 0


def test_what_is_no_crystal_is_kept():
    slab, bare = fcc111("Cu", (1, 1, 3), vacuum=6.0), fcc111("Cu", (1, 1, 3), vacuum=1.0)
    box = molecule("H2O", cell=[12, 12, 12])
    images = [slab, slab, bare, bare, molecule("H2O"), molecule("H2O"), box, box, Atoms("Cu", cell=[3, 3, 0], pbc=True)]
    found = find_different(StructureBatch.from_ase(images), np.zeros(len(images)), Tolerances())
    assert found.twin.tolist() == [0, 0, 2, 3, 4, 5, 6, 6, 8]
    assert found.alone == 5
    empty = find_different(StructureBatch.empty(), np.zeros(0), Tolerances())
    assert empty.twin.tolist() == []


def test_a_crystal_is_full_whatever_comes_after_it():
    salt, free = bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (2, 1, 1), molecule("CH3CH2OH")
    turned = salt.copy()
    turned.rotate(30, "z", rotate_cell=True)
    images = [Atoms(), salt, free, Atoms(cell=[20, 20, 20], pbc=True), turned, free]
    found = find_different(StructureBatch.from_ase(images), np.array([0, -3.40, -3, 0, -3.39, -3]), Tolerances())
    assert (found.twin.tolist(), found.empty) == ([0, 1, 2, 3, 1, 5], 0)  # 0.16 eV per cell apart


def test_tolerances_are_refused_with_a_reason():
    with pytest.raises(UsageError, match="--volume must be above 0, got 0"):
        Tolerances(volume=0.0)


def test_the_command_line(tmp_path):
    batch, _, _ = family(40, seed=4)
    write_structures(tmp_path / "c.bp", batch, [])
    run_screen(tmp_path / "c.bp", "gfm", ScreenOptions(), out=tmp_path / "out", predictor=FakePredictor(("pbe",)))
    results, out = open_results(tmp_path / "out"), tmp_path / "left.extxyz"
    best = select(results, Selection(top=25, by="energy")).rows
    args = ["dedup", str(tmp_path / "out"), "--top", "25", "--by", "energy", "--energy", "inf", "-o", str(out)]
    said = CliRunner().invoke(app, args)
    assert said.exit_code == 0, said.output
    twin = np.array(on_all_pairs(batch.take(best["position"]), best["energy_per_atom"], Tolerances(energy=np.inf)))
    kept = np.flatnonzero(twin == np.arange(25))
    assert f"{len(kept)} different structures among the best 25 rows, {25 - len(kept)} duplicates" in said.output
    assert [a.info["position"] for a in read(out, ":")] == best["position"][kept].tolist()
    with open(tmp_path / "left.duplicates.csv") as file:
        table = [(int(r["position"]), int(r["kept_position"])) for r in csv.DictReader(file)]
    dropped = np.flatnonzero(twin != np.arange(25))
    assert table == [(best["position"][k], best["position"][twin[k]]) for k in dropped]
    assert len(dropped) > 0
    again = CliRunner().invoke(app, args)
    assert "already there" in str(again.exception)
    out.unlink()
    again = CliRunner().invoke(app, args)
    assert "left.duplicates.csv, the table of duplicates beside left.extxyz, is already there" in str(again.exception)
    assert "choose another name with --out" in str(again.exception)
