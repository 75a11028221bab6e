"""A precision cascade gives the rows that the better precision alone gives, whatever happens on the way."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace

import numpy as np
import pytest

from atomsieve.errors import AtomSieveError, UsageError
from atomsieve.screen.cascade import driver as module
from atomsieve.screen.cascade.error_bounds import OpenFilter, Tables, error_scale, measure_errors
from atomsieve.screen.cascade.passes import Choice, Note, Rule, read_notes, write_note
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.results.columns import MEASURED, ROW
from atomsieve.screen.run import run_screen
from atomsieve.screen.selection.row_filter import compile_row_filter
from tests.screen.cascade.cascade_fakes import Better, Cheap, cascade
from tests.screen.screen_fakes import FakePredictor, MemoryReader, candidates

BATCH = candidates(700)
REASONS = {1: "UNSEEN_ELEMENT", 2: "UNSEEN_PAIR", 4: "SHORT_CONTACT", 8: "FAR_FROM_TRAINING"}
TABLES = Tables(["pbe", "scan"], {0: "OK", 1: "NAN_INPUT"}, REASONS)


@pytest.fixture(autouse=True)
def small_sample(monkeypatch):
    monkeypatch.setattr(module, "SAMPLE", (60, 60))
    monkeypatch.setattr(module, "BEYOND", (10, 10))


def whole(predictor, out, **options):
    small = {"chunk_size": 64, "max_atoms": 200, "top": 40, **options}
    return run_screen(
        "candidates", "gfm", ScreenOptions(**small), out=out, predictor=predictor, reader=MemoryReader(BATCH)
    )


def table(path):
    return np.load(path / "rows.npy")


CHOICES = [
    {},
    {"by": "max_force", "descending": True},
    {"where": "max_force < 9 and natoms > 3"},
    {"where": "in_domain or energy_per_atom > 30", "top": 25},
    {"where": "energy / natoms - 0.1 * max_force < 2.5", "by": "energy_std", "top": 7},
    {"where": "status == 'OK' and not far_from_training", "by": "distance", "descending": True},
    {"head": "all", "where": "head == 'scan' and abs(energy_per_atom - 8) < 3"},
    {"where": "max_force < 4", "top": 3000},
    {"where": "max_force < 4", "top": 0},
]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_the_best_rows_are_those_of_the_better_precision(tmp_path, choice):
    whole(FakePredictor(), tmp_path / "better", **choice)
    whole(Cheap(), tmp_path / "cheap", **choice)
    cascade(BATCH, tmp_path / "out", Cheap(), Better(), **choice)
    assert (tmp_path / "out/top.csv").read_bytes() == (tmp_path / "better/top.csv").read_bytes()
    rows, cheap, better = (table(tmp_path / name) for name in ("out", "cheap", "better"))
    recomputed = rows["precision"] == 1
    assert 0 < recomputed.sum() < len(rows)
    for name in ROW.names:
        if name != "precision":
            np.testing.assert_array_equal(rows[name], np.where(recomputed, better[name], cheap[name]))
    text = choice.get("where")
    if text is not None:  # the filter is decided as the better precision decides it, also beyond the best rows
        keep = compile_row_filter(text, ["pbe", "scan"], {0: "OK"}, REASONS)
        ok = better["status"] == 0
        assert np.array_equal(keep(rows)[ok], keep(better)[ok])


@pytest.mark.parametrize(("by", "descending"), [("energy_per_atom", False), ("distance", True)])
def test_best_rows_that_the_cheaper_precision_ranks_far_behind_are_found(tmp_path, by, descending):
    choice = {"top": 15, "by": by, "descending": descending, "where": "natoms > 5"}
    whole(FakePredictor(), tmp_path / "better", **choice)
    whole(Cheap(0.6), tmp_path / "cheap", **choice)
    cascade(BATCH, tmp_path / "out", Cheap(0.6), Better(), **choice)
    cheap, rows = table(tmp_path / "cheap"), table(tmp_path / "out")
    key = np.where((cheap["status"] == 0) & (cheap["natoms"] > 5), cheap[by] * (-1 if descending else 1), np.inf)
    rank = np.argsort(np.argsort(key))
    with open(tmp_path / "better/top.csv") as file:
        best = [int(row["position"]) for row in csv.DictReader(file)]
    assert rank[best].max() > 15 + 10 + 5  # beyond the sample
    assert (tmp_path / "out/top.csv").read_bytes() == (tmp_path / "better/top.csv").read_bytes()
    assert (rows["precision"] == 1).mean() < 0.75


def test_what_is_said_is_what_was_done(tmp_path):
    cascade(BATCH, tmp_path / "out", Cheap(), Better())
    rows = table(tmp_path / "out")
    found = json.loads((tmp_path / "out/cascade.json").read_text())
    report = found["report"]
    assert found["settled"]
    assert report["recomputed"] == (rows["precision"] == 1).sum()
    assert report["rows"] == len(rows)
    cheap, better = (whole(p, tmp_path / n) and table(tmp_path / n) for p, n in ((Cheap(), "a"), (Better(), "b")))
    again = rows["precision"] == 1
    largest = measure_errors(cheap[again], better[again])["energy_per_atom"]
    assert report["largest_errors"] == {"energy_per_atom": pytest.approx(largest, rel=1e-12)}
    assert report["bounds"]["energy_per_atom"] <= 2 * largest * (1 + 1e-12)
    assert report["bounds"]["energy_per_atom"] >= largest
    manifest = json.loads((tmp_path / "out/run.json").read_text())
    assert manifest["precisions"] == ["bf16", "fp32"]
    assert manifest["cascade"]["then"] == "fp32"


def test_a_bound_that_does_not_hold_is_raised_until_it_does(tmp_path):
    choice = {"where": "max_force < 6"}
    whole(FakePredictor(), tmp_path / "better", **choice)
    cascade(BATCH, tmp_path / "calm", Cheap(), Better(), **choice)
    rows, better = table(tmp_path / "calm"), table(tmp_path / "better")
    tame = rows[(rows["precision"] == 0) & (rows["max_force"] > 3) & (rows["max_force"] < 5)][0]
    wild = {int(tame["id"]): float(5.99 / tame["max_force"])}  # seen only because the filter seems undecided
    cascade(BATCH, tmp_path / "out", Cheap(wild=wild), Better(), **choice)
    calm, found = (json.loads((tmp_path / n / "cascade.json").read_text()) for n in ("calm", "out"))
    bounds = [rule["bounds"]["max_force"] for rule in found["rules"] if rule["kind"] == "bound"]
    assert len(bounds) == 2
    assert bounds[0] == calm["report"]["bounds"]["max_force"]
    seen = max(note.errors.get("max_force", 0.0) for note in read_notes(tmp_path / "out/cascade"))
    assert bounds[0] < seen <= bounds[1]
    assert found["report"]["recomputed"] > calm["report"]["recomputed"]
    assert (tmp_path / "out/top.csv").read_bytes() == (tmp_path / "better/top.csv").read_bytes()
    rows, keep = table(tmp_path / "out"), compile_row_filter(choice["where"], ["pbe"], {})
    ok = better["status"] == 0
    assert np.array_equal(keep(rows)[ok], keep(better)[ok])


class Rarely:
    """A part of a fake that knows sigma for a few structures only."""

    def __init__(self, known=(), factor=1.0):
        super().__init__()
        self.known, self.factor = known, factor

    def __call__(self, batch, want, head=None, **more):
        found = super().__call__(batch, want, head)
        sigma = np.where(np.isin(batch.id, self.known), 0.1 * self.factor, np.nan)
        return replace(found, sigma_energy=sigma)


class RarelyCheap(Rarely, Cheap):
    pass


class RarelyBetter(Rarely, Better):
    pass


def test_a_column_that_no_row_of_the_sample_has(tmp_path):
    choice = {"top": 5, "where": "max_force > 5"}
    cascade(BATCH, tmp_path / "first", Cheap(), Better(), **choice)
    sampled = json.loads((tmp_path / "first/cascade.json").read_text())["rules"][0]
    filter_ = OpenFilter(choice["where"], TABLES)
    whole(Cheap(), tmp_path / "cheap")
    drawn = Choice("energy_per_atom", False, filter_, 1).takes(Rule.from_plain(sampled), table(tmp_path / "cheap"))
    rows = table(tmp_path / "first")
    late = rows["id"][(rows["precision"] == 1) & ~drawn][:3]
    assert len(late) == 3
    cascade(BATCH, tmp_path / "out", RarelyCheap(late), RarelyBetter(late, 1.01), **choice)
    found = json.loads((tmp_path / "out/cascade.json").read_text())
    assert found["settled"]
    assert "sigma_energy" not in found["rules"][1]["bounds"]
    assert np.array_equal(table(tmp_path / "out")["precision"], rows["precision"])
    assert max(note.errors.get("sigma_energy", 0.0) for note in read_notes(tmp_path / "out/cascade")) > 0


def test_a_note_is_written_whole_though_the_disk_takes_it_in_parts(tmp_path, monkeypatch):
    write, note = os.write, Note(3, 1, 20, 0, {"energy": 0.25}, 0.5)
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:7]))
    write_note(tmp_path / "00000.notes", note)
    assert read_notes(tmp_path) == [note]


ARTEFACTS = ("rows.npy", "forces.npy", "top.csv", "run.json")


def artefacts(path):
    return {name: (path / name).read_bytes() for name in ARTEFACTS if (path / name).exists()}


def test_forces_of_recomputed_rows_are_replaced_too(tmp_path):
    whole(FakePredictor(), tmp_path / "better", forces=True)
    whole(Cheap(), tmp_path / "cheap", forces=True)
    cascade(BATCH, tmp_path / "out", Cheap(), Better(), forces=True)
    again = np.repeat(table(tmp_path / "out")["precision"] == 1, BATCH.counts)
    forces, cheap, better = (np.load(tmp_path / n / "forces.npy") for n in ("out", "cheap", "better"))
    np.testing.assert_array_equal(forces, np.where(again[:, None], better, cheap))
    assert (forces[again] != cheap[again]).any()


WILD = {1100: 2.0, 1200: 0.6, 1300: 1.3}


@pytest.mark.parametrize(("at", "later"), [(0, 0), (3, 3), (12, 9)])
def test_broken_off_anywhere_it_continues_to_the_same_bytes(tmp_path, at, later):
    options = {"forces": True, "where": "max_force < 9", "cascade_safety": 1.0}
    cascade(BATCH, tmp_path / "whole", Cheap(wild=WILD), Better(), **options)
    for cheap, better in ((Cheap(wild=WILD, at=at), Better()), (Cheap(wild=WILD), Better(at=later))):
        with pytest.raises(ZeroDivisionError):
            cascade(BATCH, tmp_path / "out", cheap, better, **options)
        assert not (tmp_path / "out/rows.npy").exists()
    cascade(BATCH, tmp_path / "out", Cheap(wild=WILD), Better(), **options)
    assert artefacts(tmp_path / "out") == artefacts(tmp_path / "whole")
    rules = [json.loads((tmp_path / n / "cascade.json").read_text())["rules"] for n in ("out", "whole")]
    assert rules[0] == rules[1]


def test_a_finished_one_is_not_computed_again_and_a_damaged_chunk_is(tmp_path):
    cascade(BATCH, tmp_path / "out", Cheap(), Better(), forces=True)
    before = artefacts(tmp_path / "out")
    cascade(BATCH, tmp_path / "out", Cheap(at=0), Better(at=0), forces=True)
    assert artefacts(tmp_path / "out") == before
    damaged = int(np.flatnonzero(table(tmp_path / "out")["precision"] == 1)[7])
    with open(tmp_path / "out/rows.npy", "r+b") as file:
        file.seek(4096 + damaged * ROW.itemsize + 20)
        file.write(b"\xff")
    cheap = Cheap()
    cascade(BATCH, tmp_path / "out", cheap, Better(), forces=True)
    assert 0 < cheap.calls < 10
    assert artefacts(tmp_path / "out") == before


def test_other_choices_are_other_results(tmp_path):
    cascade(BATCH, tmp_path / "out", Cheap(), Better())
    with pytest.raises(AtomSieveError, match=r"cascade.top: 40 -> 41"):
        cascade(BATCH, tmp_path / "out", Cheap(), Better(), top=41)
    cascade(BATCH, tmp_path / "out", Cheap(), Better(), top=41, overwrite=True)


class Brittle(Cheap):
    """The cheaper precision overflows for the best structures."""

    def __call__(self, batch, want, head=None, **more):
        found = super().__call__(batch, want, head)
        lost = found.energy / np.maximum(batch.counts, 1) < 1.0
        return replace(found, energy=np.where(lost, np.inf, found.energy))


def test_what_the_cheaper_precision_cannot_evaluate_is_recomputed(tmp_path):
    whole(FakePredictor(), tmp_path / "better")
    cascade(BATCH, tmp_path / "out", Brittle(), Better())
    assert (tmp_path / "out/top.csv").read_bytes() == (tmp_path / "better/top.csv").read_bytes()
    report = json.loads((tmp_path / "out/cascade.json").read_text())["report"]
    assert report["status_changed"] > 0


FILTERS = [
    "energy_per_atom < -1",
    "max_force > 1 and max_force <= 3 or natoms == 4",
    "not (0.5 < distance < 1.5)",
    "in_domain",
    "outside == 'FAR_FROM_TRAINING' or outside == 'none'",
    "far_from_training and head == 'pbe'",
    "energy / natoms < energy_per_atom + 0.1",
    "energy * max_force > -distance",
    "1 / energy_per_atom > 0.5",
    "abs(energy_per_atom) < 1 or min(max_force, distance) > 2",
    "max(max_force, 2) == 2",
    "max_force != 2",
    "natoms in [2, 4] and energy_std not in [0.1, 0.2]",
    "isnan(sigma_energy) and isfinite(energy)",
    "max_force < nan or max_force < inf",
    "sigma_energy < 1",
    "max_force / distance - energy_per_atom <= 2 * distance",
    "not (abs(sigma_energy / energy_per_atom) >= 0)",
    "not (energy / max_force * 0 < 1)",
    "not (0 * (1 / energy) == 0)",
    "abs(energy / max_force) >= 0 and min(energy / max_force, 9) <= 9",
    "1 / (max_force * 0) > 0",
]


@pytest.mark.parametrize("text", FILTERS)
def test_an_open_filter_encloses_the_filter(text):
    rng = np.random.default_rng(3)
    rows = np.zeros(4000, ROW)
    for name in MEASURED:
        rows[name] = rng.choice([rng.normal(0, 2, 4000), rng.integers(-2, 3, 4000)])
    for name in ("energy_std", "max_force", "max_force_std", "distance"):
        rows[name] = np.abs(rows[name])
    rows["sigma_energy"][::3] = np.nan
    rows["natoms"] = rng.integers(1, 6, 4000)
    rows["head"] = rng.integers(0, 2, 4000)
    rows["precision"] = rng.integers(0, 2, 4000)
    bounds = {name: float(rng.uniform(0.01, 0.3)) for name in MEASURED}
    other = rows.copy()
    room = {name: bounds[name] * error_scale(name, rows) * (rows["precision"] == 0) for name in MEASURED}
    for name in MEASURED:
        off = 0.999 * rng.uniform(-1, 1, 4000) * room[name]
        other[name] = (rows[name] + off).astype(ROW[name])
        np.copyto(other[name], rows[name], where=rows["precision"] == 1)
    for table_ in (rows, other):
        far = table_["distance"] > 1
        table_["outside"] = np.where(far, 8, 0)
        table_["in_domain"] = ~far
    may, must = OpenFilter(text, TABLES)(rows, bounds)
    truth = compile_row_filter(text, TABLES.heads, TABLES.statuses, REASONS)(other)
    assert not (must & ~may).any()
    assert not (must & ~truth).any()
    assert not (truth & ~may).any()
    known = rows["precision"] == 1
    assert np.array_equal(may[known], must[known])
    assert np.array_equal(may[known], truth[known])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cascade": "fp32"}, "write cheaper:better"),
        ({"cascade": "fp32:bf16"}, "must be the cheaper one"),
        ({"cascade": "fp32:fp32"}, "--cascade-members"),
        ({"cascade": "fp16:fp32"}, "unknown precision of the cascade 'fp16'"),
        ({"cascade": "bf16:fp32", "cascade_safety": 0.5}, "at least 1, got 0.5"),
        ({"cascade": "bf16:fp32", "cascade_members": 0}, "at least 1, got 0"),
        ({"cascade_members": 1}, "goes with cascade"),
        ({"cascade": "bf16:fp32", "precision": "fp64"}, "names both"),
        ({"cascade": "bf16:fp32", "local": "/nowhere"}, "leave out one"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        ScreenOptions(**options)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"where": "precision == 'fp32'"}, "filter by it when the results are there"),
        ({"where": "max_force % 2 < 1"}, "'max_force % 2' in the row filter has no error bound"),
        ({"where": "sqrt(energy_std) < 1"}, "has no error bound"),
        ({"where": "isfinite(energy / max_force)"}, "has no error bound"),
        ({"where": "energy_std < 1", "cascade_members": 1}, "column 'energy_std' has no error bound"),
        ({"by": "sigma_energy", "cascade_members": 1}, "column 'sigma_energy' has no error bound"),
        ({"where": "maxforce < 1"}, "did you mean 'max_force'"),
    ],
)
def test_a_choice_without_a_bound_is_refused_before_anything_is_computed(tmp_path, choice, message):
    cheap = Cheap()
    with pytest.raises(UsageError, match=message):
        cascade(BATCH, tmp_path / "out", cheap, Better(), **choice)
    assert cheap.calls == 0
    assert not (tmp_path / "out").exists()
