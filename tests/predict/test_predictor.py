"""Predictor: right numbers in input order, a status for every structure, errors that help."""

import numpy as np
import pytest
import torch
from ase import Atoms

from atomsieve.errors import AtomSieveError, DataError, UsageError
from atomsieve.gfm import load_gfm, save_gfm
from atomsieve.predict import Predictor, Status
from atomsieve.structures import StructureBatch
from atomsieve.uncertainty.calibration import parse_calibration
from tests.helpers import copper_oxides, tiny_ensemble, tiny_gfm

ALL = {"energy", "forces", "stress", "spread", "members"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_gfm(tmp_path_factory.mktemp("gfm") / "gfm")


@pytest.fixture(scope="module")
def exact(folder):
    return Predictor.load(folder, precision="fp64")


def spoiled() -> tuple[StructureBatch, list[Status]]:
    """Eleven structures, each bad in its own way but the last, which is good."""
    good = copper_oxides(11, seed=5).take([0] * 11)
    while good.counts[0] < 4:
        good = copper_oxides(11, seed=int(good.id[0]) + 7).take([10] * 11)
    parts = [good.slice(s, s + 1) for s in range(11)]
    nan = parts[0].positions.copy()
    nan[1, 2] = np.nan
    parts[0] = parts[0].replace(positions=nan)
    parts[1] = parts[1].replace(cell=np.full((1, 3, 3), np.inf))
    twins = parts[2].positions.copy()
    twins[1] = twins[0] + 1e-3
    parts[2] = parts[2].replace(positions=twins)
    uranium = parts[3].numbers.copy()
    uranium[0] = 92
    parts[3] = parts[3].replace(numbers=uranium)
    parts[4] = StructureBatch(
        ptr=np.array([0, 0]),
        numbers=np.zeros(0, np.uint8),
        positions=np.zeros((0, 3)),
        cell=np.zeros((1, 3, 3)),
        pbc=np.zeros((1, 3), bool),
        id=np.zeros(1, np.int64),
    )
    parts[5] = parts[5].replace(cell=np.zeros((1, 3, 3)))
    flat = parts[6].cell.copy()
    flat[0, 2] = flat[0, 0] + flat[0, 1]
    parts[6] = parts[6].replace(cell=flat)
    parts[7] = parts[7].replace(charge=np.array([1.0], np.float32))
    parts[8] = parts[8].replace(spin=np.array([3.0], np.float32))
    far = parts[9].positions.copy()
    far[0] = 1e30
    parts[9] = parts[9].replace(positions=far)
    expected = [
        Status.NAN_INPUT,
        Status.NAN_INPUT,
        Status.OVERLAPPING_ATOMS,
        Status.UNSEEN_ELEMENT,
        Status.EMPTY,
        Status.BAD_CELL,
        Status.BAD_CELL,
        Status.CHARGE_NOT_MODELLED,
        Status.CHARGE_NOT_MODELLED,
        Status.BAD_GEOMETRY,
        Status.OK,
    ]
    return StructureBatch.concatenate(parts), expected


def test_every_bad_structure_has_its_status_and_disturbs_nobody(exact):
    bad, expected = spoiled()
    fine = copper_oxides(7)
    out = exact(StructureBatch.concatenate([bad, fine]), ALL)
    assert [Status(s) for s in out.status[:11]] == expected
    assert np.isnan(out.energy[:10]).all()
    assert not out.in_domain[:10].any()
    alone = exact(fine, ALL)
    assert (alone.status == Status.OK).all()
    assert np.allclose(out.energy[11:], alone.energy, atol=1e-11)
    assert np.allclose(out.forces[bad.n_atoms :], alone.forces, atol=1e-11)
    assert np.allclose(out.stress[11:], alone.stress, atol=1e-11)
    assert np.isfinite(alone.energy_std).all()
    assert all(Status(s).meaning for s in out.status)


def test_results_do_not_depend_on_order_or_on_pieces(exact, monkeypatch):
    batch = copper_oxides(40)
    whole = exact(batch, ALL)
    order = np.random.default_rng(0).permutation(40)
    monkeypatch.setattr(exact._run, "max_atoms", 13)
    mixed = exact(batch.take(order), ALL)
    assert np.allclose(mixed.energy, whole.energy[order], atol=1e-10)
    assert np.allclose(mixed.energy_members, whole.energy_members[:, order], atol=1e-10)
    forces = np.concatenate([whole.forces[batch.ptr[s] : batch.ptr[s + 1]] for s in order])
    assert np.allclose(mixed.forces, forces, atol=1e-10)


def test_mean_spread_and_references(exact, folder):
    batch = copper_oxides(5)
    out = exact(batch, ALL)
    ensemble, _ = load_gfm(folder)
    reference = ensemble.reference_energy(batch.numbers, batch.ptr, 1)
    assert np.allclose(out.energy, out.energy_members.mean(0))
    assert np.allclose(out.energy_std, out.energy_members.std(0, ddof=1))
    assert (np.abs(out.energy - reference) < 30).all()
    assert np.isnan(out.sigma_energy).all()  # not calibrated, and it says so
    assert not exact.is_calibrated("metal")
    assert out.forces_std.shape == out.forces.shape
    assert (out.forces_std > 0).any()


@pytest.mark.parametrize(("precision", "energy", "force"), [("fp32", 5e-6, 5e-5), ("bf16", 5e-3, 5e-2)])
def test_other_precisions_stay_near_fp64(folder, exact, precision, energy, force):
    batch = copper_oxides(50)
    reference, out = exact(batch, ALL), Predictor.load(folder, precision=precision)(batch, ALL)
    assert np.abs(out.energy - reference.energy).max() <= energy * batch.counts.max()
    assert np.abs(out.forces - reference.forces).max() <= force


def test_only_what_is_wanted_is_given(exact):
    out = exact(copper_oxides(2), {"energy"})
    assert set(out.arrays()) == {"status", "outside", "in_domain", "distance", "energy"}
    with pytest.raises(UsageError, match="did you mean 'forces'"):
        exact(copper_oxides(2), {"force"})


def test_a_head_with_a_typo_names_the_nearest(folder, exact):
    with pytest.raises(UsageError, match="did you mean 'organic'"):
        Predictor.load(folder, head="organics")
    with pytest.raises(UsageError, match="metal"):
        exact(copper_oxides(1), head="mettal")
    assert exact.head == exact.default_head == "metal"


@pytest.mark.parametrize(
    ("options", "message"),
    [({"precision": "fp16"}, "fp32"), ({"device": "gpu"}, "cuda"), ({"backend": "onyx"}, "native")],
)
def test_unknown_options_say_what_is_allowed(folder, options, message):
    with pytest.raises(UsageError, match=message):
        Predictor.load(folder, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_here_is_said(folder):
    with pytest.raises(AtomSieveError, match="--device cpu"):
        Predictor.load(folder, device="cuda")


def test_heads_differ(exact):
    both = StructureBatch.from_ase(Atoms("O2", positions=[[0, 0, 0], [0, 0, 1.3]]))
    assert exact(both, head="organic").energy[0] < exact(both, head="metal").energy[0] - 1000


def test_charge_and_spin_are_asked_for_when_the_model_needs_them(tmp_path):
    folder = tiny_gfm(tmp_path / "gfm", charge_spin=True)
    predictor = Predictor.load(folder, precision="fp64")
    batch = copper_oxides(3)
    assert (predictor(batch).status == Status.MISSING_CHARGE_OR_SPIN).all()
    given = batch.replace(charge=np.array([0, 1, np.nan], np.float32), spin=np.array([1, 2, 1], np.float32))
    assert predictor(given).status.tolist() == [0, 0, Status.MISSING_CHARGE_OR_SPIN]


def test_too_large_is_a_status_too(exact):
    batch = copper_oxides(6)
    out = exact(batch, max_structure_atoms=int(batch.counts.min()))
    assert ((out.status == Status.TOO_LARGE) == (batch.counts > batch.counts.min())).all()


def test_a_model_that_answers_nan_is_reported_not_believed(tmp_path):
    ensemble = tiny_ensemble(2)
    with torch.no_grad():
        ensemble.encoder.embedding[1, 8] = torch.nan  # one member cannot stand oxygen
    folder = save_gfm(tmp_path / "gfm", ensemble, default_head="metal")
    batch = copper_oxides(30)
    out = Predictor.load(folder)(batch, ALL)
    oxygen = np.array([8 in batch.slice(s, s + 1).numbers for s in range(30)])
    assert oxygen.any()
    assert not oxygen.all()
    assert ((out.status == Status.NAN_OUTPUT) == oxygen).all()
    assert np.isnan(out.energy[oxygen]).all()
    assert np.isfinite(out.energy[~oxygen]).all()


def test_one_member_has_no_spread(tmp_path):
    folder = tiny_gfm(tmp_path / "gfm", members=1)
    out = Predictor.load(folder)(copper_oxides(3))
    assert np.isnan(out.energy_std).all()
    assert np.isfinite(out.energy).all()


def test_a_batch_of_nothing(exact):
    out = exact(StructureBatch.empty(), ALL)
    assert out.energy.shape == (0,)
    assert out.forces.shape == (0, 3)


def test_a_broken_batch_is_an_error_not_a_guess(exact):
    batch = copper_oxides(2)
    with pytest.raises(DataError, match="positions"):
        exact(batch.replace(positions=batch.positions[:-1]))


def test_a_calibration_of_an_older_version_scales_the_spread(tmp_path):
    old = {"heads": {"metal": {"energy_per_atom": {"scale": 2.0, "n": 20, "coverage_90": 0.9}}}}
    folder = save_gfm(tmp_path / "g", tiny_ensemble(), default_head="metal", calibration=parse_calibration(old))
    out = Predictor.load(folder)(copper_oxides(4))
    assert out.calibrated == {"energy"}
    assert np.allclose(out.sigma_energy, 2 * out.energy_std)
    assert np.allclose(out.interval_energy, 1.645 * out.sigma_energy)
    assert np.isnan(out.sigma_forces).all() and np.isnan(out.interval_forces).all()


def test_a_status_of_a_later_version_has_a_name_and_a_meaning():
    """A server may be newer than its client."""
    later = Status(np.uint8(200))
    assert (later, later.name) == (200, "STATUS_200") and "status 200" in later.meaning
    assert later not in list(Status) and all(status.meaning for status in Status)
    for wrong in (-1, 256, "OK"):
        with pytest.raises(ValueError, match="not a valid Status"):
            Status(wrong)
