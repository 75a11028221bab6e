"""Questions to the results of a cascade: what only some rows have is refused, and mixed precisions are said."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from atomsieve.cli.screen import app
from atomsieve.errors import UsageError
from atomsieve.followup.label_candidates import pick
from atomsieve.screen.cascade.predictors import CascadePredictor
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.results.record import open_results
from atomsieve.screen.results.status import format_status_lines, read_status
from atomsieve.screen.run import run_screen
from atomsieve.screen.selection.best import best_rows
from atomsieve.screen.selection.select import Selection, select
from atomsieve.structures import write_structures
from tests.screen.cascade.cascade_fakes import SMALL, Better, Cheap
from tests.screen.screen_fakes import FakePredictor, candidates

N = 500
RECOMPUTED = "precision == 'fp32'"


class First(Cheap):
    """One member: no spread."""

    def __init__(self):
        super().__init__(0.01)
        self.precision = "fp32"

    def __call__(self, batch, want, head=None, **more):
        found = super().__call__(batch, want, head)
        return replace(found, energy_std=np.full(len(batch), np.nan), sigma_energy=None)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with results: of one member first, of BF16 first, and of FP32 alone."""
    place = tmp_path_factory.mktemp("cascades")
    write_structures(place / "c.bp", candidates(N), [])
    small = {**SMALL, "top": 20, "commit_seconds": 100.0}
    for name, cheap, given in (
        ("member", First(), {"cascade": "fp32:fp32", "cascade_members": 1}),
        ("mixed", Cheap(), {"where": "max_force < 9"}),
    ):
        options = ScreenOptions(**{**small, **given})
        run_screen(
            place / "c.bp", "gfm", options, out=place / name, predictor=CascadePredictor(cheap, Better(), options)
        )
    run_screen(place / "c.bp", "gfm", ScreenOptions(chunk_size=64), out=place / "full", predictor=FakePredictor())
    return place


def call(*args):
    """Return what a command says, on one line; its error if there is one."""
    done = CliRunner().invoke(app, [str(a) for a in args])
    return " ".join((str(done.exception) if done.exception else done.output).split())


QUESTIONS = {
    "rank": lambda r, where: select(r, Selection(top=5, by="energy_std", descending=True, where=where)).rows,
    "top": lambda r, where: best_rows(r, 5, "sigma_energy", where=where),
    "pareto": lambda r, where: select(r, Selection(pareto="energy_per_atom,max_force_std:max", where=where)).rows,
    "group": lambda r, where: select(r, Selection(per="formula", by="sigma_force", where=where)).rows,
    "filter": lambda r, where: best_rows(
        r, 5, "energy", where=" and ".join(["energy_std < 3", *([where] if where else [])])
    ),
    "pick": lambda r, where: pick(r, 3, by="energy_std", where=where),
    "pick_by_default": lambda r, where: pick(r, 3, where=where),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_spread_is_asked_only_of_rows_that_have_it(place, question):
    ask = QUESTIONS[question]
    with pytest.raises(UsageError, match=r"only the rows that the cascade recomputed have '.*fewer members \(fp32/1\)"):
        ask(open_results(place / "member"), None)
    if question.startswith("pick"):  # it comes as far as the ensemble, which the fakes have not
        with pytest.raises(Exception, match="the ensemble that screened"):
            ask(open_results(place / "member"), RECOMPUTED)
    else:
        found = ask(open_results(place / "member"), RECOMPUTED)
        assert set(found["precision"]) <= {1}
        ask(open_results(place / "mixed"), None)
        ask(open_results(place / "full"), None)


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_filter_that_cannot_be_read_is_named(place, question):
    with pytest.raises(UsageError, match=r"cannot read the row filter .*compare with '=='"):
        QUESTIONS[question](open_results(place / "member"), "precision = 'fp32'")


def test_other_questions_are_answered_and_the_precision_is_said(place, tmp_path):
    member, mixed = open_results(place / "member"), open_results(place / "mixed")
    assert len(select(member, Selection(top=5, by="max_force")).rows) == 5
    rows = mixed.rows()
    good = rows[rows["status"] == 0]
    cheap = int((good["precision"] == 0).sum())
    line = (
        f"{cheap:,} of {len(good):,} rows are in bf16, not in fp32; the run was asked for the best 20 by "
        "energy_per_atom, --where 'max_force < 9'"
    )
    assert line in call("export", place / "mixed", tmp_path / "all.csv")
    assert "20 of 20 rows are in bf16" in call(
        "top", place / "mixed", "--by", "natoms", "--where", "precision == 'bf16'"
    )
    assert "are in" not in call("top", place / "mixed", "--where", "max_force < 9")  # what the run was asked
    assert "are in" not in call("top", place / "full", "--by", "natoms")
    assert "are in fp32/1, not in fp32" in call("top", place / "member", "-k", "900")
    summary = json.loads((place / "mixed" / "summary.json").read_text())
    assert summary["cascade"]["first"] == "bf16"
    assert "cascade" not in json.loads((place / "full" / "summary.json").read_text())


def test_hulls_are_of_all_members(place, tmp_path):
    for screened in ("member", "full"):
        told = call("hull", place / screened, "-r", place / "member", "-o", tmp_path / "h.csv")
        assert "by a part of the members; energies of a part and of all of them make no hull" in told
        remedy = {"member": RECOMPUTED, "full": "screen the references without --cascade-members"}[screened]
        assert remedy in told
    assert not (tmp_path / "h.csv").exists()
    told = call("hull", place / "member", "-r", place / "full", "-o", tmp_path / "h.csv", "--where", RECOMPUTED)
    assert "references in" not in told
    with open(tmp_path / "h.csv") as file:
        assert {row["precision"] for row in csv.DictReader(file)} == {"fp32"}


def test_two_equally_mixed_sets_make_a_hull_and_it_is_said(place, tmp_path):
    told = call("hull", place / "mixed", "-r", place / "mixed", "-o", tmp_path / "h.csv", "--top", "300")
    assert "references in bf16, fp32, rows in bf16, fp32" in told
    assert "rows are in bf16, not in fp32" in told
    with open(tmp_path / "h.csv") as file:
        table = list(csv.DictReader(file))
    rows = open_results(place / "mixed").rows()
    assert [row["precision"] for row in table] == [
        ["bf16", "fp32"][rows["precision"][int(r["position"])]] for r in table
    ]


def test_duplicates_and_their_precisions(place, tmp_path):
    told = call("dedup", place / "mixed", "--top", "60", "-o", tmp_path / "d.csv", "--energy", "inf")
    assert "60 rows are in bf16, not in fp32" in told
    with open(tmp_path / "d.duplicates.csv") as file:
        assert {"precision", "kept_precision"} <= set(next(csv.reader(file)))


def test_how_far_a_cascade_is(place, tmp_path):
    status = read_status(open_results(place / "mixed"))
    assert status.recomputing is None
    source, out = place / "c.bp", tmp_path / "out"
    options = ScreenOptions(**{**SMALL, "commit_seconds": 0.0})
    with pytest.raises(ZeroDivisionError):
        run_screen(source, "gfm", options, out=out, predictor=CascadePredictor(Cheap(), Better(at=3), options))
    status = read_status(open_results(out))
    assert status.recomputing == ("bf16", "fp32")
    lines = format_status_lines(status)
    assert lines[0].endswith("(100.0 %) screened in bf16, recomputing in fp32 is not finished")
    assert lines[1] == "not running; run the same command again to continue"
    lines = format_status_lines(replace(status, running={"host": "here", "pid": 1, "since": "now"}))
    assert not any("left" in line for line in lines)
