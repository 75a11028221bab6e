"""After a relaxation: duplicates among all groups, and the stability of a head that has references."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk

from atomsieve.calculators import Stop
from atomsieve.followup.relax.files import RelaxFolder, find_twins
from atomsieve.followup.relax.group import write_arrays
from atomsieve.followup.relax.stability import PREFIX, evaluate_members, find_references, measure_stability
from atomsieve.predict import Predictor
from atomsieve.stability.hull import HullFinder
from atomsieve.structures import StructureBatch
from tests.helpers import copper_oxides, tiny_gfm
from tests.stability.phase_fakes import compositions_of, random_set


def write_group(folder: RelaxFolder, number: int, images, energy, reason) -> None:
    batch = StructureBatch.from_ase(images)
    many = len(batch)
    arrays = {f"batch.{name}": array for name, array in batch.present().items()}
    energy = np.array(energy) * batch.counts
    arrays |= {"energy": energy, "forces": np.zeros((batch.n_atoms, 3)), "reason": np.array(reason, np.uint8)}
    write_arrays(folder.group(number), arrays | {"status": np.zeros(many, np.uint8)})


def test_duplicates_are_found_across_groups_among_what_converged(tmp_path) -> None:
    folder = RelaxFolder(tmp_path)
    folder.groups.mkdir()
    copper, other = bulk("Cu", a=3.6), bulk("Cu", "bcc", a=2.9)
    write_group(folder, 0, [copper, other, copper], [-3.70, -3.69, -3.70], [0, 0, int(Stop.STEPS)])
    turned = copper * (2, 1, 1)
    turned.rotate(30, "z", rotate_cell=True)
    write_group(folder, 1, [turned, copper], [-3.71, -3.69], [0, int(Stop.EXPLODED)])
    assert find_twins(folder, np.array([0, 3, 5])) == {1: 4}, "the lower one, of rank 4, is kept"


def test_stability_is_that_of_the_members_own_energies(tmp_path) -> None:
    predictor = Predictor.load(tiny_gfm(tmp_path / "gfm", hidden=8, layers=1), precision="fp64")
    batch = copper_oxides(5, seed=1)
    found = predictor(batch, {"energy", "members", "spread"}, head="metal")
    members = evaluate_members(predictor, batch, "metal", 9)
    each = (found.energy_members / batch.counts).T
    assert members == pytest.approx(each - each.mean(1, keepdims=True), abs=1e-6)
    energy = found.energy.copy()
    energy[2] = np.nan
    arrays = {"energy": energy, "energy_std": found.energy_std, "sigma_energy": 2 * found.energy_std}
    references = random_set(members=3, elements=(8, 29))
    columns = measure_stability(references, predictor, batch, arrays, "metal", 9)
    structures = [list(zip(*np.unique(a.numbers, return_counts=True), strict=True)) for a in batch.to_ase()]
    wanted = HullFinder(references).measure(compositions_of(structures), found.energy / batch.counts, members)
    above, sigma = columns[PREFIX + "energy_above_hull"], columns[PREFIX + "sigma_energy_above_hull"]
    known = np.arange(5) != 2
    assert above[known] == pytest.approx(wanted.above[known]) and np.isnan([above[2], sigma[2]]).all()
    assert sigma[known] == pytest.approx(2 * wanted.above_members.std(1, ddof=1)[known], rel=1e-4)
    assert find_references(tmp_path / "gfm", "metal") is None and find_references(None, "metal") is None
