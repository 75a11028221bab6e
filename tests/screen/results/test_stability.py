"""Columns about stability: made by the command, ranked by in a run and in questions to its results."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from atomsieve.cli.references import app as references_app
from atomsieve.cli.screen import app as screen_app
from atomsieve.errors import AtomSieveError, UsageError
from atomsieve.predict.status import Status
from atomsieve.screen.results.caveats import describe_bare_hulls
from atomsieve.screen.results.record import open_results
from atomsieve.screen.results.stability import choose_ranking
from atomsieve.screen.results.table import list_columns
from atomsieve.screen.selection.select import Selection, select
from atomsieve.stability.columns import COLUMNS
from atomsieve.stability.phases import read_references, write_references
from atomsieve.structures import write_structures
from tests.helpers import copper_oxides, tiny_gfm

N = 40


def call(app, *args):
    done = CliRunner().invoke(app, [str(a) for a in args])
    return " ".join((str(done.exception) if done.exception else done.output).split())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with an ensemble, its references, candidates, and results with and without references."""
    place = tmp_path_factory.mktemp("stability")
    batch = copper_oxides(N)
    write_structures(place / "c.bp", batch, [])
    write_structures(place / "phases.bp", copper_oxides(12, seed=1), [])
    gfm = tiny_gfm(place / "gfm")
    run = ["run", place / "c.bp", "-e", gfm, "--chunk-size", 16, "--top", 10]
    call(screen_app, *run, "-o", place / "plain")
    said = call(references_app, "make", gfm, "--head", "metal", "--from", place / "phases.bp")
    assert "references of head metal" in said and "2 elements" in said
    shutil.copytree(place / "plain", place / "again")
    call(screen_app, *run, "-o", place / "out")
    return place


def test_the_set_is_of_the_ensemble_and_named(place):
    found = read_references(place / "gfm", "metal")
    assert sorted(found.elements) == [8, 29] and found.has_compounds and found.members == 3
    said = call(references_app, "show", place / "gfm")
    assert "Elements of head metal" in said and found.digest[:12] in said
    assert "holds no references of head 'organic'" in call(references_app, "show", place / "gfm", "--head", "organic")


def test_a_run_ranks_by_the_hull_and_tables_hold_all_columns(place):
    results = open_results(place / "out")
    rows, columns = np.asarray(results.rows()), list_columns(results)
    above = columns["energy_above_hull"].values(rows)
    good = rows["status"] == Status.OK
    assert np.isfinite(above[good]).all()
    with open(place / "out" / "top.csv") as file:
        table = list(csv.DictReader(file))
    assert [int(line["position"]) for line in table] == rows["position"][good][np.argsort(above[good])][:10].tolist()
    listed = [float(line["energy_above_hull [eV/atom]"]) for line in table]
    np.testing.assert_allclose(listed, np.sort(above[good])[:10])
    summary = json.loads((place / "out" / "summary.json").read_text())["selection"]
    assert summary["by"] == "energy_above_hull" and summary["references"]["metal"]["elements"] == 2
    order = np.random.default_rng(0).permutation(len(rows))
    for name in COLUMNS:
        np.testing.assert_array_equal(columns[name].values(rows[order]), columns[name].values(rows)[order])


def test_questions_rank_and_filter_by_them(place):
    results = open_results(place / "out")
    columns = list_columns(results)
    chosen = select(results, Selection(top=5, where="formation_energy < 100 and natoms > 1")).rows
    same = select(results, Selection(top=5, by="energy_above_hull", where="natoms > 1")).rows
    assert chosen.tobytes() == same.tobytes()
    likely = select(results, Selection(top=5, by="p_stable", descending=True)).rows
    assert (np.diff(columns["p_stable"].values(likely)) <= 0).all()
    assert "smallest energy_above_hull" in call(screen_app, "top", place / "out")
    assert choose_ranking(results, "auto") == "energy_above_hull" and choose_ranking(results, "natoms") == "natoms"


def test_rows_whose_hull_is_of_elements_alone_are_counted(place):
    results = open_results(place / "out")
    rows, columns = np.asarray(results.rows()), list_columns(results)
    beside = [columns["formation_energy"], columns["energy_above_hull"]]
    formation, above = (column.values(rows) for column in beside)
    bare = int(np.count_nonzero(formation == above))
    expected = f"for {bare} of these {len(rows)} rows the references know no compound"
    said = describe_bare_hulls(rows, beside)
    assert said is None if bare == 0 else said.startswith(expected)
    elements = [replace(beside[0], name=name) for name in ("formation_energy", "energy_above_hull")]
    known = int(np.isfinite(formation).sum())
    assert describe_bare_hulls(rows, elements).startswith(f"for {known} of these {len(rows)} rows")
    assert describe_bare_hulls(rows, beside[:1]) is None and describe_bare_hulls(rows[:0], beside) is None


def test_results_without_references_rank_as_before(place):
    results = open_results(place / "plain")
    assert choose_ranking(results, "auto") == "energy_per_atom" and "p_stable" not in list_columns(results)
    assert "smallest energy_per_atom" in call(screen_app, "top", place / "plain")
    with pytest.raises(UsageError, match="no references of its head; make them"):
        select(results, Selection(by="formation_energy"))


def test_the_same_command_ranks_anew_and_says_that_references_changed(place, tmp_path):
    run = ["run", place / "c.bp", "-e", place / "gfm", "--chunk-size", 16, "--top", 10, "-o", place / "again"]
    before = (place / "again" / "rows.npy").read_bytes()
    call(screen_app, *run)
    assert (place / "again" / "rows.npy").read_bytes() == before
    assert (place / "again" / "top.csv").read_bytes() == (place / "out" / "top.csv").read_bytes()
    found = read_references(place / "gfm", "metal")
    try:
        from dataclasses import replace

        write_references(place / "gfm", replace(found, energy=found.energy + 0.1))
        assert "references of head metal changed since the run began" in call(screen_app, *run)
        write_references(place / "gfm", replace(found, weights="v" * 64))
        said = call(screen_app, *run[:-1], tmp_path / "other")
        assert "are of another ensemble and are not used" in said and "by energy_per_atom" in said
    finally:
        write_references(place / "gfm", found)


def test_a_mixture_of_heads_makes_no_hull():
    from atomsieve.stability.make import make_references

    with pytest.raises(AtomSieveError, match="head auto mixes levels of theory"):
        make_references(None, "auto", "", None, None)
