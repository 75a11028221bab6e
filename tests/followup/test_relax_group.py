"""A group is relaxed many at once, each replaced when done: the same as alone, in any number of goes."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from atomsieve.calculators import ChangeLimits, Stop, relax
from atomsieve.errors import UsageError
from atomsieve.followup.relax import group as relax_group
from atomsieve.followup.relax.budget import resolve_budget
from atomsieve.followup.relax.files import FORMAT, RelaxFolder
from atomsieve.followup.relax.group import (
    begin_group,
    collect_arrays,
    rattle,
    read_arrays,
    write_arrays,
)
from atomsieve.followup.relax.options import RelaxOptions
from atomsieve.followup.relax.trajectories import Frames
from atomsieve.predict import Predictor, Status
from atomsieve.screen.selection.select import Selection
from tests.helpers import copper_oxides, tiny_gfm

LOOSE = {"fmax": 0.02, "max_steps": 20, "precision": "fp64", "limits": ChangeLimits.none(), "optimizer": "fire"}


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return Predictor.load(tiny_gfm(tmp_path_factory.mktemp("relax") / "gfm", hidden=8, layers=1), precision="fp64")


@pytest.fixture(scope="module")
def batch():
    return copper_oxides(24, seed=3)


class Spy:
    """A predictor that notes who was evaluated, and fails on order."""

    def __init__(self, predictor, memory=None):
        self.inner, self.memory, self.calls = predictor, memory, []

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, batch, *args, **kwargs):
        if self.memory is not None and batch.n_atoms > self.memory:
            raise MemoryError
        self.calls.append(batch.counts)
        return self.inner(batch, *args, **kwargs)


def go(predictor, batch, path, budget=(30, 10**6), stop=lambda: False, frames=None, **changes):
    options = RelaxOptions(**{**LOOSE, **changes})
    group = begin_group(predictor, batch, options, "metal", budget, path / "state.npz", frames)
    done = group.run(stop, lambda many: None)
    if done:
        (path / "state.npz").unlink(missing_ok=True)
    return group, collect_arrays(group, batch) if done else None


def same(found, expected):
    return found.keys() == expected.keys() and all(
        np.asarray(found[name]).tobytes() == np.asarray(expected[name]).tobytes() for name in expected
    )


@pytest.mark.parametrize("cell", [False, True])
def test_in_flight_is_as_alone(predictor, batch, tmp_path, cell):
    spy = Spy(predictor)
    group, found = go(spy, batch, tmp_path, cell=cell)
    sizes = np.array([counts.sum() for counts in spy.calls])
    assert sizes.max() <= 30 and batch.n_atoms > 3 * 30
    entered = group.batching.evaluations
    assert entered == len(spy.calls) and group.batching.atom_steps == sizes.sum()
    longest = found["steps"].max() + 1
    assert len(spy.calls) < (found["steps"] + 1).sum() / 2, "several at once"
    assert len(spy.calls) > longest, "those that wait come later"
    assert len(set(found["steps"].tolist())) > 3
    for s in range(0, len(batch), 5):
        alone = relax(predictor, batch.slice(s, s + 1), fmax=0.02, steps=20, cell=cell, head="metal", limits=None)
        assert alone.steps[0] == found["steps"][s] and alone.reason[0] == found["reason"][s]
        assert alone.energy[0] == pytest.approx(found["energy"][s], abs=1e-9)
        own = slice(*batch.ptr[s : s + 2])
        assert np.allclose(alone.batch.positions, found["batch.positions"][own], atol=1e-8)
        assert np.allclose(alone.batch.cell[0], found["batch.cell"][s], atol=1e-8)
    assert np.isfinite(found["energy_std"]).all() and (found["distance"].shape == found["energy"].shape)


def test_the_budget_of_edges_holds_too_and_a_large_structure_goes_alone(predictor, batch, tmp_path):
    spy = Spy(predictor)
    _, found = go(spy, batch, tmp_path, budget=(10**6, 1), max_steps=2)
    assert {len(counts) for counts in spy.calls} == {1}
    assert (found["status"] == Status.OK).all() and np.isfinite(found["energy"]).all()


@pytest.mark.parametrize("skin", [0.0, 0.5])
def test_broken_off_again_and_again_gives_the_same_bytes(predictor, batch, tmp_path, skin, monkeypatch):
    monkeypatch.setattr(relax_group, "KEEP_STEPS", 4)

    def frames(name):
        return Frames(tmp_path / name, np.arange(len(batch)) * 10, 3)

    _, whole = go(predictor, batch, tmp_path, cell=True, skin=skin, frames=frames("whole"))
    parts, goes = None, 0
    while parts is None:
        goes += 1
        left = iter(range(7 + goes))
        stop = lambda left=left: next(left, None) is None  # noqa: E731
        _, parts = go(predictor, batch, tmp_path, cell=True, skin=skin, frames=frames("parts"), stop=stop)
    assert goes > 3 and same(parts, whole)
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert len(names) == len(batch) and "230.extxyz" in names
    assert names == sorted(path.name for path in (tmp_path / "parts").iterdir())
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_little_memory_makes_batches_smaller_and_changes_no_result(predictor, batch, tmp_path):
    _, whole = go(predictor, batch, tmp_path)
    spy = Spy(predictor, memory=9)
    group, found = go(spy, batch, tmp_path)
    assert group.batching.shrunk > 0 and group.batching.max_atoms <= 9
    assert np.array_equal(found["steps"], whole["steps"]) and np.array_equal(found["reason"], whole["reason"])
    assert np.allclose(found["energy"], whole["energy"], atol=1e-9)
    spy = Spy(predictor, memory=6)
    _, found = go(spy, batch, tmp_path)
    large = batch.counts > 6
    assert large.any() and (found["status"][large] == Status.OUT_OF_MEMORY).all()
    assert (found["reason"][large] == Stop.FAILED).all() and np.isnan(found["energy"][large]).all()
    assert np.array_equal(found["steps"][~large], whole["steps"][~large])


def test_another_failure_is_not_taken_for_lack_of_memory(predictor, batch, tmp_path):
    class Broken(Spy):
        def __call__(self, *args, **kwargs):
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        go(Broken(predictor), batch, tmp_path)


def test_bad_structures_fail_alone_and_keep_their_place(predictor, batch, tmp_path):
    bad = copper_oxides(6, seed=5)
    positions, numbers = bad.positions.copy(), bad.numbers.copy()
    positions[bad.ptr[1]] = np.nan
    numbers[bad.ptr[3]] = 92
    bad = bad.replace(positions=positions, numbers=numbers)
    _, found = go(predictor, bad, tmp_path)
    wanted = [Status.OK] * 6
    wanted[1], wanted[3] = Status.NAN_INPUT, Status.UNSEEN_ELEMENT
    assert found["status"].tolist() == wanted
    assert ((found["reason"] == Stop.FAILED) == (found["status"] != Status.OK)).all()


@pytest.mark.parametrize("held", [{"keep_symmetry": 0.01}, {"fix_depth": 0.5, "cell_axes": "xy", "pressure": 2.0}])
def test_what_is_held_is_held_through_a_break(predictor, batch, tmp_path, held):
    few = batch.slice(0, 6)
    options = {"optimizer": "lbfgs", "cell": True, "max_steps": 8, **held}
    _, whole = go(predictor, few, tmp_path, **options)
    left = iter(range(2))
    assert go(predictor, few, tmp_path, stop=lambda: next(left, None) is None, **options)[1] is None
    assert same(go(predictor, few, tmp_path, **options)[1], whole)
    assert (whole["steps"] > 0).any()
    if "cell_axes" in held:
        assert np.allclose(whole["batch.cell"][:, 2, 2], few.cell[:, 2, 2]), "no strain along z"


def test_what_the_guard_stops_stays_and_its_reason_is_kept_through_a_break(predictor, batch, tmp_path):
    spread = predictor(batch, {"energy", "forces", "spread"}, head="metal").energy_std / batch.counts
    limit = float(np.median(spread))
    options = {"max_energy_std": limit, "fmax": 1e-6, "max_steps": 6}
    _, whole = go(predictor, batch, tmp_path, **options)
    stopped = whole["reason"] == Stop.GUARD
    relaxed = (whole["reason"] == Stop.CONVERGED) & (whole["steps"] == 0)  # by symmetry
    assert (stopped >= (spread > limit) & ~relaxed).all() and stopped.any() and not stopped.all()
    assert all(text.startswith("energy_std per atom") for text in whole["said"][stopped])
    assert (whole["said"][~stopped] == "").all()
    at_once = stopped & (whole["steps"] == 0)
    first = np.repeat(at_once, batch.counts)
    assert np.array_equal(whole["batch.positions"][first], batch.positions[first])
    left = iter(range(5))
    assert go(predictor, batch, tmp_path, stop=lambda: next(left, None) is None, **options)[1] is None
    assert same(go(predictor, batch, tmp_path, **options)[1], whole)


def test_files_are_the_same_bytes_and_a_missing_one_is_none(tmp_path):
    arrays = {"a": np.arange(5.0), "b": np.array(["x", "yy"])}
    write_arrays(tmp_path / "one.npz", arrays)
    write_arrays(tmp_path / "two.npz", arrays)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    assert same(read_arrays(tmp_path / "one.npz"), arrays)
    assert read_arrays(tmp_path / "three.npz") is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fmax": 0.0}, "fmax must be above 0"),
        ({"max_atoms": -3}, "max-atoms must be at least 1, got -3"),
        ({"precision": "fp16"}, "unknown precision 'fp16'"),
        ({"pressure": 5.0}, "pressure acts on the cell, got 5.0; add --cell"),
        ({"keep_symmetry": 0.01, "rattle": 0.01}, "leave one out"),
        ({"cell_axes": "xw", "cell": True}, "cell axes must be of x, y and z"),
        ({"optimizer": "bfgs"}, "unknown optimizer 'bfgs'"),
        ({"selection": {"top": 0}}, "top must be at least 1, got 0"),
    ],
)
def test_options_are_checked_when_they_are_made(options, said):
    with pytest.raises(UsageError, match=said):
        RelaxOptions(**{name: Selection(**v) if name == "selection" else v for name, v in options.items()})


def test_a_relaxation_begun_before_groups_could_be_selected_continues():
    """Its relax.json names the four settings of the ranking; groups are recorded only where they are used."""
    older = {"limits": ChangeLimits.none(), "optimizer": "fire"}
    chosen = Selection(top=7, by="energy_per_atom", where="natoms < 5")
    plain = RelaxOptions(selection=chosen, **older).deciding()
    assert [*plain][-5:] == ["trajectory", "top", "by", "descending", "where"]
    assert (plain["top"], plain["by"], plain["descending"], plain["where"]) == (
        7,
        "energy_per_atom",
        False,
        "natoms < 5",
    )
    grouped = RelaxOptions(selection=replace(chosen, per="chemsys", each=2), **older)
    assert grouped.deciding() == plain | {"per": "chemsys", "each": 2}
    limited = RelaxOptions(selection=chosen, limits=ChangeLimits(max_moved=2.0))
    assert limited.deciding() == plain | {"optimizer": "lbfgs", "limits": ChangeLimits(max_moved=2.0).as_dict()}


def test_a_gpus_memory_decides_once_and_what_is_asked_goes_before(tmp_path, monkeypatch):
    asked = []

    def budget_of(model, sample, usual, *, want, head, share):
        asked.append((sample(), head, share))
        return SimpleNamespace(max_atoms=7000, max_edges=90000)

    monkeypatch.setattr("atomsieve.predict.memory_budget.find_budget", budget_of)
    folder, on_gpu = RelaxFolder(tmp_path), SimpleNamespace(device="cuda:0")

    def settle(model=on_gpu, overwrite=False, **options):
        options = RelaxOptions(**options)
        return resolve_budget(model, options, folder, lambda: 5, head="metal", overwrite=overwrite, share=1)

    assert settle() == (7000, 90000, 28000) and asked == [(5, "metal", 1)]
    assert settle(max_atoms=100) == (100, 90000, 400) and settle(group_atoms=9) == (7000, 90000, 9)
    assert settle(max_atoms=100, max_edges=10) == (100, 10, 400) and len(asked) == 3
    assert settle(SimpleNamespace(device="cpu"))[0] == 512 and len(asked) == 3
    batches = {"max_atoms": 50, "max_edges": 60, "group_atoms": 70}
    folder.record.write_text(json.dumps({"format": FORMAT, "batches": batches}))
    assert settle() == (50, 60, 200) and len(asked) == 3, "as in the earlier part"
    assert settle(overwrite=True) == (7000, 90000, 28000) and len(asked) == 4


def test_a_rattle_depends_on_the_place_in_the_input_alone(batch):
    places = np.arange(len(batch)) * 3 + 7
    whole = rattle(batch, places, 0.01)
    assert rattle(batch, places, 0.0) is batch
    order = np.array([5, 2, 9])
    some = rattle(batch.take(order), places[order], 0.01)
    assert np.array_equal(some.positions, whole.take(order).positions)
    shift = whole.positions - batch.positions
    assert 0.008 < shift.std() < 0.012 and len(np.unique(shift)) == shift.size
