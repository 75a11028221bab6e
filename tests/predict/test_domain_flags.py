"""The test of the domain: each reason has its structure, and the one beside it, unchanged, stays inside."""

import shutil

import numpy as np
import pytest
from ase import Atoms

from atomsieve.errors import DataError, UsageError
from atomsieve.evaluation.fit_domain import fit_domain, fit_folder_domain
from atomsieve.gfm import ensemble_id, load_gfm, record_files
from atomsieve.gfm.domain_file import dump_domain, read_domain
from atomsieve.gfm.manifest import DOMAIN
from atomsieve.predict import Outside, Predictor, Status
from atomsieve.predict import predictor as module
from atomsieve.structures import SourceInfo, StructureBatch, open_structures
from atomsieve.structures.dataset.writer import StructureWriter
from atomsieve.uncertainty.domain_fit import fit_head
from tests.helpers import copper_oxides, tiny_gfm

FEW = Outside.UNUSUAL_DENSITY | Outside.UNUSUAL_COORDINATION


def oxides_without_peroxide(n, seed=0):
    """Copper oxides in which no two oxygen atoms are close: seen as neighbours, never bonded."""
    batch = copper_oxides(n, seed)
    images = batch.to_ase()
    for atoms in images:
        oxygen = np.flatnonzero(atoms.numbers == 8)
        atoms.numbers[oxygen[1:]] = 29
    return StructureBatch.from_ase(images)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tiny_gfm(tmp_path_factory.mktemp("gfm") / "gfm")
    ensemble, _ = load_gfm(path)
    batch = oxides_without_peroxide(150)
    domain = fit_head(ensemble.take([0]), batch.take, np.arange(110), np.arange(110, 150))
    record_files(path, {DOMAIN: dump_domain({"metal": domain}, ["organic", "metal"])})
    return path


@pytest.fixture(scope="module")
def predictor(folder):
    return Predictor.load(folder)


def plain():
    atoms = oxides_without_peroxide(12, seed=3).to_ase()
    return next(a for a in atoms if len(a) >= 4)


def judged(predictor, images):
    found = predictor(StructureBatch.from_ase(images), {"energy"}, head="metal")
    return [Outside(int(bits)) for bits in found.outside], found


def with_element(atoms):
    atoms.numbers[1] = 79
    return atoms


def with_bond(atoms):
    oxygen = int(np.flatnonzero(atoms.numbers == 8)[0]) if (atoms.numbers == 8).any() else 0
    atoms.numbers[oxygen] = 8
    atoms += Atoms("O", positions=[atoms.positions[oxygen] + [0.0, 0.0, 1.4]])
    return atoms


def with_contact(atoms):
    copper = np.flatnonzero(atoms.numbers == 29)[:2]
    atoms.positions[copper[1]] = atoms.positions[copper[0]] + [1.4, 0.0, 0.0]
    return atoms


def far(atoms):
    atoms.set_cell(atoms.cell * 1.5, scale_atoms=True)
    return atoms


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_element, Outside.UNSEEN_ELEMENT),
        (with_bond, Outside.UNSEEN_PAIR),
        (with_contact, Outside.SHORT_CONTACT),
        (far, Outside.FAR_FROM_TRAINING),
    ],
)
def test_each_reason_is_found_in_its_structure_alone(predictor, change, reason):
    reasons, found = judged(predictor, [plain(), change(plain()), plain()])
    assert reasons[0] == reasons[2] == Outside(0)
    assert reasons[1] & reason
    if change is far:
        assert reasons[1] & ~FEW == reason
    assert found.in_domain.tolist() == [True, False, True]


def test_an_unseen_element_has_no_result_and_no_other_reason(predictor):
    reasons, found = judged(predictor, [with_element(plain())])
    assert reasons == [Outside.UNSEEN_ELEMENT]
    assert found.status[0] == Status.UNSEEN_ELEMENT
    assert np.isnan(found.distance[0])


def test_neighbours_that_are_not_bonded_are_no_new_pair(predictor):
    atoms = plain()
    oxygen = int(np.flatnonzero(atoms.numbers == 8)[0]) if (atoms.numbers == 8).any() else 0
    atoms.numbers[oxygen] = 8
    distances = atoms.get_distances(oxygen, np.arange(len(atoms)), mic=True)
    other = int(np.argmax(distances))
    atoms.numbers[other] = 8
    assert distances[other] > 2.0
    assert not judged(predictor, [atoms])[0][0] & Outside.UNSEEN_PAIR


def test_order_and_batch_do_not_matter(predictor):
    images = [change(plain()) for change in (lambda a: a, with_bond, with_contact, far)] * 3
    reasons, found = judged(predictor, images)
    order = np.random.default_rng(0).permutation(12)
    mixed, again = judged(predictor, [images[k] for k in order])
    assert mixed == [reasons[k] for k in order]
    np.testing.assert_allclose(again.distance, found.distance[order], rtol=1e-3)
    for k in range(4):
        alone, single = judged(predictor, [images[k]])
        assert alone[0] == reasons[k]
        assert single.distance[0] == pytest.approx(found.distance[k], rel=1e-3)


def test_most_of_its_own_kind_is_inside(predictor):
    found = predictor(oxides_without_peroxide(80, seed=9), {"energy"}, head="metal")
    assert (found.outside != 0).mean() < 0.15
    assert np.isfinite(found.distance).all()


def test_single_atoms_and_empty_batches(predictor):
    found = predictor(StructureBatch.from_ase([Atoms("Cu"), plain()]), {"energy"}, head="metal")
    assert found.outside[0] & ~FEW == Outside.FAR_FROM_TRAINING  # a free atom, where only crystals were seen
    assert found.distance[0] > 1 > found.distance[1]
    nothing = predictor(StructureBatch.empty(), {"energy"}, head="metal")
    assert nothing.outside.shape == nothing.distance.shape == (0,)


def test_a_head_without_a_domain_keeps_the_simple_test(predictor):
    said = predictor.describe()["domain"]
    assert said == {
        "organic": "elements, shortest contact",
        "metal": "elements, bonded pairs, contacts, feature distance, density, coordination",
    }
    water = Atoms("OH2", positions=[[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    found = predictor(StructureBatch.from_ase([water]), {"energy"}, head="organic")
    assert found.outside.tolist() == [0]
    assert np.isnan(found.distance).all()


def test_asking_for_features_too_changes_nothing(predictor):
    batch = oxides_without_peroxide(5, seed=4)
    plainly, more = (predictor(batch, want, head="metal") for want in ({"energy"}, {"energy", "forces", "features"}))
    np.testing.assert_allclose(more.distance, plainly.distance, rtol=1e-3)
    assert plainly.features is None
    assert more.features.shape == (batch.n_atoms, 16)


# -- fitting to a file ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    place = tmp_path_factory.mktemp("files")
    batch = oxides_without_peroxide(150)
    for name, source, rows in (
        ("train", "metal", slice(0, 110)),
        ("held", "metal", slice(110, 150)),
        ("foreign", "gold", slice(0, 30)),
    ):
        part = batch.slice(rows.start, rows.stop)
        with StructureWriter(place / f"{name}.bp", sources=[SourceInfo(source, "made up")]) as writer:
            writer.append(part.replace(head=np.zeros(len(part), np.int32)))
    return place


def test_a_file_gives_the_same_fit(folder, files):
    ensemble, _ = load_gfm(folder)
    with open_structures(files / "train.bp") as train, open_structures(files / "held.bp") as held:
        found = fit_domain(ensemble, train, held)
    assert dump_domain(found, ["organic", "metal"]) == (folder / DOMAIN).read_bytes()


def test_a_fit_put_into_a_folder_keeps_the_other_heads(folder, files, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "gfm")
    before = (copy / DOMAIN).read_bytes()
    assert list(fit_folder_domain(copy, files / "train.bp")) == ["metal"]
    assert (copy / DOMAIN).read_bytes() != before  # the limits are now from a tenth of the same structures
    assert fit_folder_domain(copy, files / "train.bp", files / "held.bp").keys() == {"metal"}
    assert (copy / DOMAIN).read_bytes() == before
    assert Predictor.load(copy).ensemble_id == Predictor.load(folder).ensemble_id


def test_a_file_of_other_sources_is_refused(folder, files):
    ensemble, _ = load_gfm(folder)
    with open_structures(files / "foreign.bp") as reader:
        with pytest.raises(DataError, match="gold"):
            fit_domain(ensemble, reader)
        with pytest.raises(UsageError, match="did you mean 'metal'"):
            fit_domain(ensemble, reader, heads=["mettal"])


def test_a_fit_made_while_the_folder_is_opened_comes_with_its_identity(folder, tmp_path, monkeypatch):
    copy = tmp_path / "gfm"
    shutil.copytree(folder, copy)
    heads = ["organic", "metal"]
    ensemble, _ = load_gfm(copy)
    other = fit_head(ensemble.take([0]), oxides_without_peroxide(40, seed=9).take, np.arange(40))
    old = ensemble_id(copy)

    def late(*arguments):
        monkeypatch.setattr(module, "read_domain", read_domain)
        record_files(copy, {DOMAIN: dump_domain({"metal": other}, heads)})
        return read_domain(*arguments)

    monkeypatch.setattr(module, "read_domain", late)
    found = Predictor.load(copy)
    assert found.ensemble_id == ensemble_id(copy) != old
    batch = oxides_without_peroxide(5, seed=4)
    assert np.array_equal(found(batch, {"energy"}).distance, Predictor.load(copy)(batch, {"energy"}).distance)
