"""The best rows of each group: the same as by a plain search, whatever the chunks, and within little memory."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from math import gcd

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read
from typer.testing import CliRunner

from atomsieve.cli.screen import app
from atomsieve.errors import AtomSieveError, DataError, UsageError
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.results import formulas
from atomsieve.screen.results.columns import blank_rows
from atomsieve.screen.results.record import open_results
from atomsieve.screen.results.screened_input import read_at, read_numbers_at
from atomsieve.screen.run import run_screen
from atomsieve.screen.selection import groups, pareto
from atomsieve.screen.selection import select as select_module
from atomsieve.screen.selection.groups import Grouping, make_composition_keys
from atomsieve.screen.selection.pareto import Front
from atomsieve.screen.selection.select import BestOfGroups, Selection, rank_in_groups, select
from atomsieve.screen.selection.top_k import TopK
from atomsieve.structures import SourceInfo, StructureBatch, StructureWriter, open_structures, write_structures
from atomsieve.structures.dataset import part_writer
from tests.screen.screen_fakes import FakePredictor, candidates

N = 400


def name_of(numbers, kind):
    counts = Counter(numbers.tolist())
    if kind == "chemsys":
        return tuple(sorted(counts))
    divisor = gcd(*counts.values()) if kind == "reduced-formula" and counts else 1
    return tuple(sorted((z, n // divisor) for z, n in counts.items()))


@pytest.fixture(scope="module")
def screened(tmp_path_factory):
    """Return the results of structures with three sources and of two heads, some of them bad; and the structures."""
    place = tmp_path_factory.mktemp("groups")
    batch = candidates(N, seed=3)
    batch = batch.replace(head=np.random.default_rng(0).integers(-1, 2, N).astype(np.int32))
    write_structures(place / "c.bp", batch, [SourceInfo("alpha"), SourceInfo("beta")])
    run_screen(
        place / "c.bp", "gfm", ScreenOptions(head="all", chunk_size=32), out=place / "out", predictor=FakePredictor()
    )
    return open_results(place / "out"), batch


def plainly(rows, members, by, n, each, descending=False):
    """Choose in plain Python: best first, leaving out what its group has enough of."""
    sign = -1 if descending else 1
    order = sorted(
        np.flatnonzero(rows["status"] == 0).tolist(), key=lambda k: (sign * rows[by][k], rows["position"][k])
    )
    taken, chosen = Counter(), []
    for k in order:
        if taken[members[k]] < each and (n is None or len(chosen) < n):
            taken[members[k]] += 1
            chosen.append(int(rows["position"][k]))
    return chosen


@pytest.mark.parametrize("kind", ["formula", "reduced-formula", "chemsys"])
def test_keys_are_equal_where_compositions_are(kind):
    batch = candidates(600, seed=1)
    keys = make_composition_keys(batch.ptr, batch.numbers, kind)
    names = [name_of(batch.numbers[a:b], kind) for a, b in zip(batch.ptr[:-1], batch.ptr[1:], strict=True)]
    by_key = {}
    for key, name in zip(map(bytes, keys), names, strict=True):
        assert by_key.setdefault(key, name) == name
    assert len(by_key) == len(set(names)) > 10


def test_compositions_are_counted_in_blocks(monkeypatch):
    batch = candidates(600, seed=1)
    whole = {kind: make_composition_keys(batch.ptr, batch.numbers, kind) for kind in groups.COMPOSITIONS}
    monkeypatch.setattr(formulas, "BLOCK", 64)
    widest, bincount = [], np.bincount
    monkeypatch.setattr(
        np, "bincount", lambda *a, minlength: widest.append(minlength) or bincount(*a, minlength=minlength)
    )
    for kind, keys in whole.items():
        assert np.array_equal(make_composition_keys(batch.ptr, batch.numbers, kind), keys)
    assert len(widest) == 30
    assert max(widest) <= 64 * 256
    assert [len(a) for a in groups.count_elements(batch.ptr[:1], batch.numbers[:0])] == [0, 0, 0]


@pytest.mark.parametrize("kind", groups.GROUPS)
def test_nothing_to_choose_from(screened, kind):
    results, _ = screened
    chosen = select(results, Selection(per=kind, head="pbe", where="natoms > 1000"))
    assert len(chosen.rows) == 0
    assert chosen.groups == []


@pytest.mark.parametrize("kind", ["formula", "reduced-formula", "chemsys", "source"])
@pytest.mark.parametrize(("n", "each"), [(7, 1), (40, 3), (None, 2)])
def test_the_best_of_each_group_are_those_of_a_plain_search(screened, monkeypatch, kind, n, each):
    monkeypatch.setattr(select_module, "AT_ONCE", 8)
    results, batch = screened
    rows = np.array(results.rows())
    rows = rows[rows["head"] == 1]
    if kind == "source":
        members = batch.head.tolist()
    else:
        members = [name_of(batch.numbers[a:b], kind) for a, b in zip(batch.ptr[:-1], batch.ptr[1:], strict=True)]
    chosen = select(results, Selection(top=n, by="max_force", descending=True, head="scan", per=kind, each=each))
    assert chosen.rows["position"].tolist() == plainly(rows, members, "max_force", n, each, descending=True)
    assert set(chosen.rows["head"]) == {1}
    assert len(set(chosen.groups)) == len({members[p] for p in chosen.rows["position"]})


def test_what_was_forgotten_is_not_missed():
    """Rows in any order, in pieces of any size, give the same choice."""
    rng = np.random.default_rng(5)
    rows = blank_rows(3000)
    rows["position"] = np.arange(3000)
    rows["energy"] = rng.integers(0, 400, 3000)  # with many ties
    group = (40 * rng.random(3000) ** 3).astype(int)  # a few groups have most rows
    lookups = []

    def keys(rows):
        positions = rows["position"]
        lookups.append(len(positions))
        return np.stack([group[positions], group[positions] % 3], axis=1).astype(np.uint64)

    for n, each in ((10, 1), (50, 4), (None, 2)):
        expected = plainly(rows, group.tolist(), "energy", n, each)
        for _ in range(3):
            best = BestOfGroups(n, each, "energy", keys)
            order, at = rng.permutation(3000), np.sort(rng.integers(0, 3000, 20))
            for part in np.split(order, at):
                best.add(rows[part])
            assert best.rows()["position"].tolist() == expected
    lookups.clear()
    best = BestOfGroups(5, 1, "energy", keys)
    for _ in range(40):  # rows worse than what is held are not looked up at all
        best.add(rows)
    assert sum(lookups) < 3 * len(rows)


def test_rank_within_a_group():
    keys = np.array([[1, 0], [2, 0], [1, 0], [1, 1], [2, 0], [1, 0]], np.uint64)
    assert rank_in_groups(keys).tolist() == [0, 0, 1, 0, 1, 2]
    assert rank_in_groups(keys[:0]).tolist() == []


def crystals():
    """Return crystals of five space groups, twice as many rattled ones, and a molecule."""
    rng = np.random.default_rng(2)
    made = [
        bulk("Cu", "fcc", a=3.6),
        bulk("Cu", "bcc", a=2.9),
        bulk("Cu", "sc", a=2.5),
        bulk("CuO", "rocksalt", a=4.2),
        bulk("CuO", "cesiumchloride", a=2.7),
        bulk("Cu", "fcc", a=3.7, cubic=True),
        bulk("CuO", "zincblende", a=4.6),
    ]
    for atoms in [a.repeat((2, 1, 1)) for a in made for _ in range(3)]:
        atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
        made.append(atoms)
    for k, atoms in enumerate(made):  # springs to the origin then tell structures apart
        atoms.positions += 0.01 * k
    return [*made, Atoms("CO", [[0, 0, 0], [0, 0, 1.1]])]


@pytest.fixture(scope="module")
def crystalline(tmp_path_factory):
    """Return the results of crystals; one part, no sources."""
    place = tmp_path_factory.mktemp("crystals")
    write_structures(place / "c.bp", StructureBatch.from_ase(crystals()), [])
    run_screen(place / "c.bp", "gfm", ScreenOptions(), out=place / "out", predictor=FakePredictor(("pbe",)))
    return open_results(place / "out")


@pytest.mark.parametrize(("n", "each"), [(3, 1), (4, 2), (None, 1)])
def test_the_best_of_each_space_group(crystalline, monkeypatch, n, each):
    images, results, found = crystals(), crystalline, []
    monkeypatch.setattr(select_module, "AT_ONCE", 2)
    real = groups.find_space_group
    monkeypatch.setattr(groups, "find_space_group", lambda *given: found.append(1) or real(*given))
    chosen = select(results, Selection(top=n, by="energy", per="space-group", each=each))
    numbers = [real(StructureBatch.from_ase(a))[0] for a in images]
    assert {225, 229, 221, 216, 1, 0} <= set(numbers)
    assert chosen.rows["position"].tolist() == plainly(np.array(results.rows()), numbers, "energy", n, each)
    labels = dict(zip(chosen.rows["position"].tolist(), chosen.groups, strict=True))
    for position, label in labels.items():
        assert label.endswith(f"({numbers[position]})") or (numbers[position] == 0 and label == "not a crystal")
    assert len(found) <= len(images)  # each once
    if n == 3:
        assert len(found) < len(images)  # and only as many as it takes


def test_a_crystal_without_a_space_group_is_a_group_of_its_own(crystalline, monkeypatch):
    import spglib

    monkeypatch.setattr(spglib, "get_symmetry_dataset", lambda *given, **more: None)
    chosen = select(crystalline, Selection(per="space-group"))
    assert sorted(chosen.groups) == ["not a crystal", "unknown"]


def test_parts_are_sources_where_structures_name_none(tmp_path, monkeypatch):
    monkeypatch.setattr(part_writer, "STEPS_PER_PART", 1)
    with StructureWriter(tmp_path / "c.bp", step_size=100) as out:
        out.append(StructureBatch.concatenate([candidates(100, seed=k, bad=False) for k in range(3)]))
    run_screen(tmp_path / "c.bp", "gfm", ScreenOptions(), out=tmp_path / "out", predictor=FakePredictor(("pbe",)))
    results = open_results(tmp_path / "out")
    chosen = select(results, Selection(per="source"))
    rows = np.array(results.rows())
    best = sorted(range(3), key=lambda k: rows["energy_per_atom"][100 * k : 100 * k + 100].min())
    assert [p // 100 for p in chosen.rows["position"]] == best
    assert [label[:10] for label in chosen.groups] == [f"part-0000{k}" for k in best]


def test_structures_come_as_asked_for(screened):
    results, batch = screened
    positions = np.array([390, 3, 77, 3, 199])
    with open_structures(results.manifest["input_path"]) as reader:
        assert read_at(reader, positions).id.tolist() == batch.id[positions].tolist()
        ptr, numbers = read_numbers_at(reader, np.array([2, 3, 150, 399]))
        assert len(read_numbers_at(reader, np.zeros(0, np.int64))[1]) == 0
        with pytest.raises(UsageError, match=r"--symprec must be above 0"):
            Grouping("space-group", reader, 0.0)
    expected = batch.take([2, 3, 150, 399])
    assert np.array_equal(ptr, expected.ptr)
    assert np.array_equal(numbers, expected.numbers)


def test_refused_with_a_reason(screened, monkeypatch):
    results, _ = screened
    with pytest.raises(UsageError, match=r"unknown group 'formulas' .did you mean 'formula'"):
        select(results, Selection(per="formulas"))
    with pytest.raises(UsageError, match="has several heads; name one with --head: pbe, scan"):
        select(results, Selection(per="formula"))
    with pytest.raises(UsageError, match="unknown head 'pbf'"):
        select(results, Selection(head="pbf"))
    with pytest.raises(UsageError, match="--each 2 goes with --per"):
        Selection(each=2)
    monkeypatch.setattr(select_module, "LARGEST", 10)
    for selection in (Selection(per="formula", head="pbe"), Selection(per="space-group", head="pbe"), Selection()):
        with pytest.raises(UsageError, match="more than 10 "):
            select(results, selection)


def test_no_more_rows_are_held_than_may_be_chosen(screened, monkeypatch):
    held = []
    monkeypatch.setattr(select_module, "LARGEST", 10)
    monkeypatch.setattr(select_module, "TopK", lambda k, *args, **given: held.append(k) or TopK(k, *args, **given))
    with pytest.raises(UsageError, match="more than 10 rows would be chosen"):
        select(screened[0], Selection(top=500))
    assert len(select(screened[0], Selection(top=10)).rows) == 10
    assert held == [11, 10]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pareto": "energy,max_force", "by": "natoms"}, "leave out --by and --descending"),
        ({"pareto": "energy,max_force", "descending": True}, "leave out --by and --descending"),
        ({"symprec": 0.1}, "--symprec 0.1 goes with --per space-group"),
        ({"symprec": 0.1, "per": "formula"}, "--symprec 0.1 goes with --per space-group"),
    ],
)
def test_what_would_be_ignored_is_refused(given, message):
    with pytest.raises(UsageError, match=message):
        Selection(**given)


@pytest.mark.parametrize("verb", ["dedup", "hull"])
def test_tolerance_of_space_groups_of_other_verbs(crystalline, tmp_path, monkeypatch, verb):
    given = []
    monkeypatch.setattr(select_module, "Grouping", lambda kind, reader, symprec: given.append(symprec) or 1 / 0)
    args = [verb, str(crystalline.folder.path), "--per", "space-group", "--symprec", "0.07"]
    more = ["-r", "nothing", "-o", str(tmp_path / "h.csv")] if verb == "hull" else ["-o", str(tmp_path / "d.csv")]
    assert isinstance(CliRunner().invoke(app, [*args, *more]).exception, ZeroDivisionError)
    assert given == [0.07]


def test_an_input_without_sources_or_that_changed(crystalline, monkeypatch):
    with pytest.raises(UsageError, match="names no source and is one part"):
        select(crystalline, Selection(per="source"))
    monkeypatch.setitem(crystalline.manifest["input"], "identity", "another")
    with pytest.raises(DataError, match="no longer what was screened"):
        select(crystalline, Selection(per="formula"))
    monkeypatch.setitem(crystalline.manifest, "input_path", "nowhere.bp")
    with pytest.raises(AtomSieveError, match=r"no longer at nowhere\.bp; put them back"):
        select(crystalline, Selection(per="formula"))


def test_the_command_line_shows_and_exports_groups(screened, tmp_path):
    results, _ = screened
    shown = CliRunner().invoke(app, ["top", str(results.folder.path), "--per", "source", "--head", "pbe"])
    assert shown.exit_code == 0, shown.output
    for source in ("alpha", "beta", "no source"):
        assert source in shown.output
    assert "3 rows with the smallest energy_per_atom, at most 1 of each source" in shown.output
    out = tmp_path / "best.bp"
    args = [
        "export",
        str(results.folder.path),
        str(out),
        "--per",
        "chemsys",
        "--each",
        "2",
        "--head",
        "scan",
        "-k",
        "6",
    ]
    assert CliRunner().invoke(app, args).exit_code == 0
    chosen = select(results, Selection(top=6, per="chemsys", each=2, head="scan")).rows
    with open_structures(out) as reader:
        assert reader.read(0, 6).id.tolist() == chosen["id"].tolist()
    args[2] = str(tmp_path / "best.csv")
    assert CliRunner().invoke(app, args).exit_code == 0
    with open(tmp_path / "best.csv") as file:
        table = list(csv.DictReader(file))
    assert [int(r["id"]) for r in table] == chosen["id"].tolist()
    labels = [r["chemsys"] for r in table]
    for kind in ("npz", "parquet", "extxyz"):
        args[2] = str(tmp_path / f"best.{kind}")
        assert CliRunner().invoke(app, args).exit_code == 0
    assert np.load(tmp_path / "best.npz")["chemsys"].tolist() == labels
    assert [a.info["chemsys"] for a in read(tmp_path / "best.extxyz", ":")] == labels
    for label, atoms in zip(labels, read(tmp_path / "best.extxyz", ":"), strict=True):
        assert set(label.split("-")) == set(atoms.get_chemical_symbols())
    parquet = pytest.importorskip("pyarrow.parquet")
    assert parquet.read_table(tmp_path / "best.parquet")["chemsys"].to_pylist() == labels


def test_ten_times_as_many_structures_make_no_more_calls(tmp_path):
    """Rows of groups are chosen without Python per structure: as many calls for 4,000 structures as for 400."""
    batch = candidates(4000, bad=False)
    write_structures(tmp_path / "c.bp", batch, [])
    rows = blank_rows(4000)
    rows["position"] = np.arange(4000)
    rows["energy"] = np.random.default_rng(0).normal(size=4000)
    rows["max_force"] = rows["energy"] + rows["position"] % 7

    def calls(n):
        seen = 0

        def note(frame, event, argument):
            nonlocal seen
            seen += event == "call"

        with open_structures(tmp_path / "c.bp") as reader:
            reader.read(0, 1)
            grouping = Grouping("reduced-formula", reader)
            best = BestOfGroups(10, 1, "energy", lambda rows: grouping.keys(rows["position"]))
            front = Front([("energy", 1.0), ("max_force", -1.0)])
            sys.setprofile(note)
            try:
                for reducer in (best, front):
                    reducer.add(rows[:n])
                    reducer.rows()
            finally:
                sys.setprofile(None)
        return seen

    calls(400)  # imports and caches
    few, many = calls(400), calls(4000)
    assert few > 100  # it does count
    assert many - few <= 100 * 4000 // pareto.BLOCK  # a front is made of blocks of 256 points
