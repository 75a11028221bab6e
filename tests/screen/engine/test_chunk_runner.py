"""From structures to rows: input order, statuses, budgets, and too little memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from atomsieve.predict.status import Status
from atomsieve.screen.engine.runner import Runner
from tests.screen.screen_fakes import FakePredictor, candidates


def make(predictor=None, heads=("pbe",), forces=True, max_atoms=50, max_structure_atoms=10**6):
    return Runner(predictor or FakePredictor(), list(heads), forces, max_atoms, 10**6, 1, max_structure_atoms)


class Silent(FakePredictor):
    """A predictor elsewhere that answers nothing; `cancelled` is what was taken back."""

    cancelled = 0

    @property
    def capabilities(self):
        return replace(super().capabilities, asynchronous=True)

    def submit(self, batch, want, head=None):
        return self

    def result(self, seconds):
        raise TimeoutError

    def cancel(self):
        self.cancelled += 1


def test_a_wait_for_a_server_can_be_left():
    predictor, asked = Silent(), iter(range(3))

    def between():
        if next(asked) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(predictor).predict(candidates(1), {"energy"}, "pbe", between)
    assert predictor.cancelled == 1
    local = make()
    found, truth = local.predict(candidates(3), {"energy"}, "pbe"), FakePredictor()(candidates(3), set())
    np.testing.assert_array_equal(found.energy, truth.energy)


def test_batches_change_nothing():
    batch = candidates(300)
    rows, forces, _ = make(max_atoms=30)(batch, 5000)
    whole = FakePredictor()(batch, set())
    ok = whole.status == 0
    assert np.array_equal(rows["position"], 5000 + np.arange(300))
    assert np.array_equal(rows["id"], batch.id)
    assert np.array_equal(rows["natoms"], batch.counts)
    assert np.array_equal(rows["status"], whole.status)
    assert set(np.unique(rows["status"])) == {0, 1, 2, 3, 5}
    np.testing.assert_allclose(rows["energy"][ok], whole.energy[ok], rtol=1e-12)
    np.testing.assert_allclose(rows["energy_per_atom"][ok], whole.energy[ok] / batch.counts[ok], rtol=1e-12)
    for s in np.flatnonzero(ok):
        own = slice(batch.ptr[s], batch.ptr[s + 1])
        for name, vectors in (("max_force", whole.forces), ("max_force_std", whole.forces_std)):
            assert rows[name][s] == pytest.approx(max(np.linalg.norm(v) for v in vectors[own]), rel=1e-6)
    assert np.array_equal(np.isnan(rows["energy"]), ~ok)
    assert not rows["in_domain"][~ok].any()
    np.testing.assert_allclose(forces, whole.forces.astype("f4"), rtol=1e-6)
    assert np.isnan(forces[~ok[batch.structure_of_atom]]).all()


def test_domain_and_calibration_of_forces_come_along():
    batch = candidates(300)
    rows, *_ = make(max_atoms=30)(batch, 0)
    whole = FakePredictor()(batch, set())
    ok = whole.status == 0
    assert np.array_equal(rows["outside"], whole.outside)
    assert np.array_equal(rows["in_domain"], whole.in_domain)
    np.testing.assert_allclose(rows["distance"][ok], whole.distance[ok], rtol=1e-6)
    for s in np.flatnonzero(ok):
        own = whole.sigma_forces[batch.ptr[s] : batch.ptr[s + 1]]
        assert rows["sigma_force"][s] == pytest.approx(own.max(), rel=1e-6)
    assert np.isnan(rows["interval_energy"]).all()


def test_without_forces_and_spreads_their_columns_are_empty():
    class EnergyOnly(FakePredictor):
        def __call__(self, batch, want, head=None, **more):
            nothing = dict.fromkeys(("forces", "forces_std", "sigma_forces", "sigma_energy", "distance"))
            return replace(super().__call__(batch, want, head), **nothing)

    batch = candidates(50, bad=False)
    rows, *_ = make(EnergyOnly(), forces=False)(batch, 0)
    assert (rows["status"] == 0).all()
    assert np.isfinite(rows["energy"]).all()
    for name in ("max_force", "max_force_std", "sigma_force", "sigma_energy", "distance"):
        assert np.isnan(rows[name]).all()


def test_budget_and_poll():
    batch, calls = candidates(300, bad=False), []
    predictor = FakePredictor()
    make(predictor, max_atoms=40)(batch, 0, lambda: calls.append(1))
    assert predictor.largest <= 40
    assert len(calls) == predictor.calls > batch.n_atoms / 40


def test_every_head_has_a_row():
    batch = candidates(50, bad=False)
    rows, forces, _ = make(heads=("pbe", "scan"))(batch, 0)
    assert np.array_equal(rows["position"], np.repeat(np.arange(50), 2))
    assert np.array_equal(rows["head"], np.tile([0, 1], 50))
    np.testing.assert_allclose(rows["energy"][1::2], 2 * rows["energy"][::2])
    assert forces.shape == (batch.n_atoms, 2, 3)
    np.testing.assert_allclose(forces[:, 1], 2 * forces[:, 0], rtol=1e-6)


def test_too_large_never_reaches_the_predictor():
    batch = candidates(100, bad=False)
    predictor = FakePredictor()
    rows, forces, _ = make(predictor, max_atoms=1, max_structure_atoms=6)(batch, 0)
    assert np.array_equal(rows["status"] == Status.TOO_LARGE, batch.counts > 6)
    assert predictor.largest == 6
    assert np.array_equal(np.isnan(forces).all(1), (batch.counts > 6)[batch.structure_of_atom])


class Small(FakePredictor):
    """Has memory for `room` atoms."""

    def __init__(self, room, error):
        super().__init__()
        self.room, self.error = room, error

    def before(self, batch):
        if batch.n_atoms > self.room:
            raise self.error


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail] can't allocate memory: you tried")])
def test_batches_are_halved_until_they_fit_and_what_does_not_fit_alone_says_so(error):
    batch = candidates(100, bad=False)
    rows, *_ = make(Small(9, error), max_atoms=500)(batch, 0)
    expected, *_ = make(max_atoms=500)(batch, 0)
    large = batch.counts > 9
    assert np.array_equal(rows["status"] == Status.OUT_OF_MEMORY, large)
    assert rows[~large].tobytes() == expected[~large].tobytes()
    assert np.isnan(rows["energy"][large]).all()


def test_other_errors_are_not_swallowed():
    with pytest.raises(RuntimeError, match="shapes"):
        make(Small(9, RuntimeError("shapes do not fit")), max_atoms=500)(candidates(100, bad=False), 0)


def test_a_number_that_is_none_gets_a_status():
    class Broken(FakePredictor):
        def __call__(self, batch, want, head=None, **more):
            found = super().__call__(batch, want, head)
            found.energy[0], found.forces[-1] = np.inf, np.nan
            return found

    rows, *_ = make(Broken(), max_atoms=10**6)(candidates(20, bad=False), 0)
    assert (rows["status"] == Status.NAN_OUTPUT).sum() == 2
    assert np.isnan(rows["energy"][rows["status"] != 0]).all()
