"""Two screenings are compared by id, or by place, and tables are joined by id."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from typer.testing import CliRunner

from atomsieve.cli.screen import app
from atomsieve.errors import DataError, UsageError
from atomsieve.followup.diff import compare, format_comparison, write_table
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.results.join import join_table
from atomsieve.screen.results.record import open_results
from atomsieve.screen.results.table import list_columns
from atomsieve.screen.run import run_screen
from atomsieve.screen.selection.select import Selection, select
from tests.screen.screen_fakes import FakePredictor

pytest.importorskip("pyarrow")
N = 40


def images(order, ids):
    rng = np.random.default_rng(5)
    positions = rng.normal(size=(N, 2, 3)) * 2
    out = [Atoms("HO", positions[k]) for k in range(N)]
    for atoms, name in zip(out, ids, strict=True):
        atoms.info["sid"] = name
    return [out[k] for k in order]


@pytest.fixture
def screened(tmp_path):
    def run(name, order=range(N), ids=None, heads=("pbe",), **options):
        write(tmp_path / f"{name}.extxyz", images(order, ids or [f"m-{k}" for k in range(N)]))
        out = tmp_path / f"{name}.results"
        options = ScreenOptions(**{"chunk_size": 8, **options})
        run_screen(tmp_path / f"{name}.extxyz", None, options, out=out, predictor=FakePredictor(heads))
        return open_results(out)

    return run


def plainly(results, by="energy_per_atom"):
    """Return value and rank by text id."""
    rows = np.asarray(results.rows())
    ids = list_columns(results)["id"].values(rows)
    order = sorted((k for k in range(len(rows)) if rows["status"][k] == 0), key=lambda k: (rows[by][k], k))
    return {ids[k]: (float(rows[by][k]), rank) for rank, k in enumerate(order, start=1)}


def test_rows_match_by_id_whatever_their_order(screened, tmp_path):
    a, b = (
        screened("a"),
        screened("b", order=np.random.default_rng(1).permutation(N)[:30], heads=("scan", "pbe"), head="pbe"),
    )
    found = compare(a, b, top=6)
    assert (len(found.pairs), found.only_first, found.only_second, found.repeated) == (30, 10, 0, 0)
    n = write_table(found, tmp_path / "d.csv", every=True)
    with open(tmp_path / "d.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert n == len(lines) == 30
    first, second = plainly(a), plainly(b)
    for line in lines:
        value, rank = first[line["id"]]
        other, other_rank = second[line["id"]]
        assert float(line["energy_per_atom [eV/atom]"]) == value
        assert float(line["energy_per_atom_difference [eV/atom]"]) == other - value
        assert (int(line["rank"]), int(line["rank_other"])) == (rank, other_rank)
        inside = (rank <= 6, other_rank <= 6)
        assert line["change"] == {(1, 1): "stayed", (1, 0): "left", (0, 1): "entered", (0, 0): ""}[inside]
    text = "\n".join(format_comparison(found))
    assert "30 structures in both" in text and "rank correlation (Spearman)" in text


def test_two_heads_of_one_folder_match_by_place(screened):
    both = screened("a", heads=("pbe", "scan"), head="all")
    found = compare(both, both, heads=("pbe", "scan"), top=5)
    assert len(found.pairs) == N
    a, b = found.values()
    assert np.allclose(b, 2 * a)
    assert (found.first.rank == found.second.rank).all()
    assert "different zeros" in format_comparison(found)[-1]
    with pytest.raises(UsageError, match="compared with themselves"):
        compare(both, both, heads=("pbe", "pbe"))
    with pytest.raises(UsageError, match="several heads; name one"):
        compare(both, both)


def test_ids_that_repeat_or_never_match(screened):
    a = screened("a", ids=["twice" if k < 3 else f"m-{k}" for k in range(N)])
    b = screened("b", order=range(N - 1, -1, -1))
    found = compare(a, b)
    assert (len(found.pairs), found.repeated) == (N - 3, 3)
    c = screened("c", order=range(N - 1), ids=[f"other-{k}" for k in range(N)])
    with pytest.raises(DataError, match=r"no id of .* is one of"):
        compare(a, c)


def test_a_joined_table_ranks_and_filters(screened, tmp_path):
    results = screened("a")
    table = tmp_path / "t.csv"
    table.write_text("material_id,gap,spg,id2\n" + "".join(f"m-{k},{k % 5}.5,F{k % 3},{k}\n" for k in range(0, 50, 2)))
    found = CliRunner().invoke(app, ["join", str(results.folder.path), str(table)])
    assert found.exit_code == 0, found.output
    assert (
        "joined gap, spg, id2 by material_id = id: 20 of 40 structures have a row, 5 rows of the table" in found.output
    )
    results = open_results(results.folder.path)
    chosen = select(results, Selection(top=3, by="gap", descending=True, where="spg == 'F1'")).rows["position"].tolist()
    assert chosen == [4, 34, 28]
    with pytest.raises(UsageError, match="'gap' was joined before; --overwrite replaces it"):
        join_table(results, table, list_columns(results))
    other = tmp_path / "u.csv"
    other.write_text("id,natoms,flag\nm-1,7,true\n")
    report = join_table(results, other, list_columns(results))
    assert report.columns == ["natoms_joined", "flag"]
    rows = np.asarray(results.rows())[:3]
    columns = list_columns(results)
    assert columns["natoms_joined"].values(rows)[1] == 7 and columns["flag"].values(rows).tolist() == [
        False,
        True,
        False,
    ]
    assert columns["gap"].values(rows).tolist()[::2] == [0.5, 2.5]
    assert join_table(results, table, columns, on="position", key="id2", take=["spg"], overwrite=True).matched == 20
    for text, message in (
        ("id,x\nm-1,1\nm-1,2\n", "1 ids stand more than once under 'id'"),
        ("id,x\nzz,1\n", r"no id of .* is an id of the results"),
        ("code,x\nm-1,1\n", "has no column 'id' nor another usual name"),
        ("id\nm-1\n", "no column beside its ids"),
    ):
        other.write_text(text)
        with pytest.raises((DataError, UsageError), match=message):
            join_table(results, other, columns)
