"""Formation energies and energies above the hull: by hand, by pymatgen, by linear programming; heads never mixed."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write as write_atoms
from scipy.optimize import linprog
from typer.testing import CliRunner

from atomsieve.cli.screen import app
from atomsieve.errors import AtomSieveError, DataError, UsageError
from atomsieve.followup.hull import compute_hull, find_lowest
from atomsieve.followup.hull_references import Entries, gather_references, join_entries, make_entries
from atomsieve.followup.hull_table import COLUMNS
from atomsieve.predict import Predictor
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.results.record import open_results
from atomsieve.screen.run import run_screen
from atomsieve.structures import StructureBatch, open_structures, write_structures
from tests.helpers import copper_oxides, tiny_gfm
from tests.screen.screen_fakes import FakePredictor


def entries(*content):
    """Return entries of (atoms by atomic number, eV/atom)."""
    structure, element, count = [], [], []
    for k, (atoms, _) in enumerate(content):
        for z, n in sorted(atoms.items()):
            structure.append(k)
            element.append(z)
            count.append(n)
    made = [np.array(a, np.int64) for a in (structure, element, count)]
    return Entries(np.array([e for _, e in content], float), *made, np.array([bool(a) for a, _ in content]))


def at_random(n, elements, rng, pure=False):
    """Return n entries of up to four elements; with `pure` the elements themselves come first."""
    made = [({z: 2}, float(rng.normal(-3, 1))) for z in elements] if pure else []
    for _ in range(n):
        chosen = rng.choice(elements, rng.integers(1, min(4, len(elements)) + 1), replace=False)
        made.append(({int(z): int(rng.integers(1, 5)) for z in chosen}, float(rng.normal(-3.5, 1))))
    return entries(*made)


def test_by_hand():
    references = entries(({26: 1}, 0.0), ({26: 4}, 0.3), ({8: 2}, 0.0), ({26: 2, 8: 2}, -1.0), ({26: 1, 8: 1}, -0.2))
    rows = entries(({26: 3, 8: 1}, -0.4), ({26: 1, 8: 1}, -1.5), ({26: 1, 8: 3}, -0.6), ({26: 1}, 0.1), ({92: 1}, -9.0))
    found = compute_hull(rows, references)
    np.testing.assert_allclose(found.formation, [-0.4, -1.5, -0.6, 0.1, np.nan], atol=1e-12)
    np.testing.assert_allclose(found.above, [0.1, -0.5, -0.1, 0.1, np.nan], atol=1e-12)
    # the second row pulls the hull down to -0.75 at a quarter and at three quarters
    np.testing.assert_allclose(found.above_all, [0.35, 0.0, 0.15, 0.1, np.nan], atol=1e-12)
    assert [{i for _, i in p} for p in found.phases] == [{0, 3}, {3}, {2, 3}, {0}, set()]
    np.testing.assert_allclose([x for x, _ in found.phases[0]], [0.5, 0.5])
    assert found.missing == [[], [], [], [], [92]]
    assert found.systems == 2  # that of uranium has no hull


def test_the_same_as_pymatgen_and_linear_programming():
    from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
    from pymatgen.core import Composition, Element

    rng = np.random.default_rng(0)
    elements = [3, 8, 22, 26, 29]
    references, rows = at_random(60, elements, rng, pure=True), at_random(80, elements, rng)
    found = compute_hull(rows, references)

    def as_entries(some):
        content = some.content(np.arange(len(some)), np.array(elements))
        return content, [
            PDEntry(
                Composition({Element.from_Z(z): int(n) for z, n in zip(elements, atoms, strict=True) if n}),
                e * atoms.sum(),
            )
            for atoms, e in zip(content, some.energy, strict=True)
        ]

    known, known_entries = as_entries(references)
    content, own_entries = as_entries(rows)
    diagram, together = PhaseDiagram(known_entries), PhaseDiagram(known_entries + own_entries)
    fraction = known / known.sum(axis=1, keepdims=True)
    for k, entry in enumerate(own_entries):
        assert found.formation[k] == pytest.approx(diagram.get_form_energy_per_atom(entry), abs=1e-9)
        assert found.above[k] == pytest.approx(diagram.get_e_above_hull(entry, allow_negative=True), abs=1e-9)
        assert found.above_all[k] == pytest.approx(together.get_e_above_hull(entry), abs=1e-9)
        best = linprog(references.energy, A_eq=fraction.T, b_eq=content[k] / content[k].sum())
        assert found.above[k] == pytest.approx(rows.energy[k] - best.fun, abs=1e-7)
        share = sum(x * fraction[i] for x, i in found.phases[k])  # the phases make up the row
        np.testing.assert_allclose(share, content[k] / content[k].sum(), atol=1e-6)
        assert sum(x * references.energy[i] for x, i in found.phases[k]) == pytest.approx(best.fun, abs=1e-6)
    assert (found.above_all > -1e-9).all()
    assert (found.above < 0).any()
    assert (found.above > 0).any()
    assert found.systems > 10


@pytest.mark.parametrize("seed", range(6))
def test_phases_on_one_line_or_plane(seed):
    """Hulls with many phases in one facet, where facets without volume must not be taken."""
    rng = np.random.default_rng(seed)
    elements = [3, 8, 22, 26][: 2 + seed % 3]
    references, rows = at_random(40, elements, rng, pure=True), at_random(20, elements, rng)
    content = references.content(np.arange(len(references)), np.array(elements))
    fraction = content / content.sum(axis=1, keepdims=True)
    if seed % 2:
        energy = -2.0 * np.minimum(fraction[:, 0], fraction[:, 1])  # all lie on the hull
    else:
        energy = np.minimum(np.round(2 * references.energy) / 2, 0.0)
        energy[: len(elements)] = 0.0
    references = replace(references, energy=energy)
    found = compute_hull(rows, references)
    content = rows.content(np.arange(len(rows)), np.array(elements))
    for k, made_of in enumerate(content / content.sum(axis=1, keepdims=True)):
        best = linprog(energy, A_eq=fraction.T, b_eq=made_of)
        assert found.above[k] == pytest.approx(rows.energy[k] - best.fun, abs=1e-9)
        assert all(x > 0 for x, _ in found.phases[k])


def test_what_differs_by_rounding_lies_on_the_hull():
    references = entries(({26: 1}, 0.0), ({8: 2}, 0.0), ({26: 1, 8: 1}, -1.0))
    found = compute_hull(entries(*(({26: 1, 8: 1}, -1.0 + x) for x in (3e-7, -3e-7, 2e-6, -2e-6))), references)
    assert found.above[:2].tolist() == [0.0, 0.0]
    np.testing.assert_allclose(found.above[2:], [2e-6, -2e-6], rtol=1e-6)
    assert found.above_all[2] == pytest.approx(4e-6)


def test_only_the_lowest_of_a_formula_can_be_on_a_hull():
    some = entries(({8: 2}, -1.0), ({8: 1}, -2.0), ({8: 1, 26: 2}, 1.0), ({26: 4, 8: 2}, 0.5), ({}, -99.0))
    assert find_lowest(some).tolist() == [1, 3]
    assert np.array_equal(join_entries([some, some]).masks(), np.concatenate([some.masks()] * 2))


# -- references ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def screened(tmp_path_factory):
    """Return a folder with an ensemble, copper oxides and their results of both heads, and references."""
    place = tmp_path_factory.mktemp("hull")
    gfm = tiny_gfm(place / "gfm")
    write_structures(place / "c.bp", copper_oxides(40), [])
    run_screen(place / "c.bp", gfm, ScreenOptions(device="cpu", head="all"), out=place / "out")
    images = [
        bulk("Cu", "fcc", a=3.6),
        bulk("Cu", "bcc", a=2.9),
        Atoms("O2", [[0, 0, 0], [0, 0, 1.2]]),
        bulk("CuO", "rocksalt", a=4.2),
        Atoms("Au", cell=[3, 3, 3], pbc=True),
    ]
    for k, atoms in enumerate(images):  # energies of another method, which must not be used
        atoms.calc = SinglePointCalculator(atoms, energy=-1000.0 * (k + 1))
    write_atoms(place / "references.extxyz", images)
    write_structures(place / "references.bp", StructureBatch.from_ase([a.copy() for a in images]), [])
    run_screen(place / "references.bp", gfm, ScreenOptions(device="cpu", head="metal"), out=place / "references")
    return place, images


def test_references_are_computed_by_the_same_head(screened):
    place, images = screened
    results = open_results(place / "out")
    now = gather_references(results, "metal", "fp32", [place / "references.extxyz"])
    expected = Predictor.load(place / "gfm", head="metal", device="cpu")(StructureBatch.from_ase(images), {"energy"})
    per_atom = expected.energy[:4] / np.array([1, 1, 2, 2])
    np.testing.assert_allclose(now.entries.energy, per_atom, rtol=1e-6)
    assert (now.failed, now.precisions) == (1, {"fp32"})  # gold has not been seen
    content = now.entries.content(np.arange(4), np.array([8, 29]))
    assert content.tolist() == [[0, 1], [0, 1], [2, 0], [1, 1]]
    for path in ("references", "references.bp"):
        again = gather_references(results, "metal", "fp32", [place / path])
        assert np.array_equal(again.entries.energy, now.entries.energy)
    both = gather_references(results, "metal", "fp32", [place / "references", place / "references.bp"])
    assert len(both.entries) == 8
    assert both.failed == 2


def test_what_is_not_of_the_same_head_is_refused(screened, tmp_path, monkeypatch):
    place, _ = screened
    results = open_results(place / "out")
    with pytest.raises(UsageError, match="has the head metal, the candidates are of organic; energies of two heads"):
        gather_references(results, "organic", "fp32", [place / "references"])
    with pytest.raises(UsageError, match="the head auto mixes levels of theory"):
        gather_references(results, "auto", "fp32", [place / "references"])
    with pytest.raises(UsageError, match="--references is needed"):
        gather_references(results, "metal", "fp32", [])
    with pytest.raises(DataError, match="does not exist"):
        gather_references(results, "metal", "fp32", [place / "nowhere"])
    run_screen(
        place / "references.bp", "gfm", ScreenOptions(), out=tmp_path / "other", predictor=FakePredictor(("metal",))
    )
    with pytest.raises(UsageError, match="was screened by another ensemble"):
        gather_references(results, "metal", "fp32", [tmp_path / "other"])
    with pytest.raises(DataError, match="is not the ensemble that screened"):
        gather_references(results, "metal", "fp32", [place / "references.bp"], tiny_gfm(tmp_path / "gfm", members=2))
    with pytest.raises(AtomSieveError, match="name its folder with --ensemble"):
        gather_references(results, "metal", "fp32", [place / "references.bp"], tmp_path)
    shutil.copytree(place / "references", tmp_path / "part")
    (tmp_path / "part" / "rows.npy").rename(tmp_path / "part" / "rows.npy.part")
    with pytest.raises(AtomSieveError, match="is not complete"):
        gather_references(results, "metal", "fp32", [tmp_path / "part"])


def test_entries_come_in_the_order_of_the_rows_and_charged_ones_are_left_out(screened, tmp_path):
    place, _ = screened
    batch = copper_oxides(6).replace(charge=np.array([0, 1, np.nan, 0, 0, 0], np.float32))
    write_structures(tmp_path / "c.bp", batch, [])
    rows = np.array(open_results(place / "out").rows())
    rows = rows[rows["head"] == 1][[4, 0, 1, 2]]
    with open_structures(tmp_path / "c.bp") as reader:
        found = make_entries(reader, rows)
        with pytest.raises(UsageError, match="of one head; name it with --head"):
            make_entries(reader, rows[[0, 0]])
    assert np.array_equal(found.energy, rows["energy_per_atom"])
    assert found.usable.tolist() == [True, True, False, True]
    counts = [np.bincount(batch.slice(k, k + 1).numbers, minlength=30)[[8, 29]].tolist() for k in (4, 0, 1, 2)]
    assert found.content(np.arange(4), np.array([8, 29])).tolist() == counts
    assert np.all(np.diff(found.structure) >= 0)


def test_the_command_line(screened, tmp_path):
    place, _ = screened
    out = tmp_path / "hull.csv"
    args = ["hull", str(place / "out"), "--references", str(place / "references"), "--head", "metal", "-o", str(out)]
    said = CliRunner().invoke(app, args)
    assert said.exit_code == 0, said.output
    assert "references: 4 entries of head metal, 1 without result" in said.output
    with open(out) as file:
        table = list(csv.DictReader(file))
    rows = np.array(open_results(place / "out").rows())
    rows = rows[rows["head"] == 1]
    assert sorted(int(r["position"]) for r in table) == list(range(40))
    above = [float(r["energy_above_hull [eV/atom]"]) for r in table]
    assert above == sorted(above)
    assert {r["head"] for r in table} == {"metal"}
    references = np.load(place / "references" / "rows.npy")["energy_per_atom"]
    pure = {"Cu": min(references[0], references[1]), "O": references[2]}
    for line in table:
        row = rows[int(line["position"])]
        n_o = float(line["formula"].partition("O")[2] or 1) if "O" in line["formula"] else 0
        made_of = (row["natoms"] - n_o) * pure["Cu"] + n_o * pure["O"]
        wanted = row["energy_per_atom"] - made_of / row["natoms"]
        assert float(line["formation_energy [eV/atom]"]) == pytest.approx(wanted, abs=1e-9)
    args[3] = str(place / "references.extxyz")
    parquet = pytest.importorskip("pyarrow.parquet")
    again = CliRunner().invoke(app, [*args[:-1], str(tmp_path / "hull.parquet"), "--top", "7", "--by", "energy"])
    assert again.exit_code == 0, again.output
    read = parquet.read_table(tmp_path / "hull.parquet")
    assert read.num_rows == 7
    assert read.schema.field("formation_energy").metadata[b"unit"] == b"eV/atom"
    csv_of = {int(r["position"]): float(r["energy_above_hull [eV/atom]"]) for r in table}
    for position, value in zip(*(read[name].to_pylist() for name in ("position", "energy_above_hull")), strict=True):
        assert value == pytest.approx(csv_of[position], abs=1e-6)


def test_charged_rows_are_said(screened, tmp_path):
    place, _ = screened
    charge = np.zeros(12, np.float32)
    charge[[2, 5, 7]] = 1
    write_structures(tmp_path / "c.bp", copper_oxides(12).replace(charge=charge), [])
    for source, name in ((tmp_path / "c.bp", "out"), (place / "references.bp", "references")):
        run_screen(source, "gfm", ScreenOptions(), out=tmp_path / name, predictor=FakePredictor(("metal",)))
    out = tmp_path / "hull.csv"
    said = CliRunner().invoke(app, ["hull", str(tmp_path / "out"), "-r", str(tmp_path / "references"), "-o", str(out)])
    assert "3 rows are charged: a charged structure has no place on a hull" in said.output
    with open(out) as file:
        table = {int(r["position"]): r for r in csv.DictReader(file)}
    assert {p for p, r in table.items() if not r["energy_above_hull [eV/atom]"]} == {2, 5, 7}
    assert {r["precision"] for r in table.values()} == {"fp32"}


def test_elements_without_a_reference_are_said(screened, tmp_path):
    place, _ = screened
    write_structures(tmp_path / "oxygen.bp", StructureBatch.from_ase(Atoms("O2", [[0, 0, 0], [0, 0, 1.2]])), [])
    out = tmp_path / "hull.csv"
    args = ["hull", str(place / "out"), "-r", str(tmp_path / "oxygen.bp"), "--head", "metal", "-o", str(out)]
    said = CliRunner().invoke(app, args)
    assert said.exit_code == 0, said.output
    with open_structures(place / "c.bp") as reader:
        n = len(np.unique(reader.read(0, 40).structure_of_atom[reader.read(0, 40).numbers == 29]))
    assert f"{n} rows have no hull: no reference is the element Cu; add structures" in said.output.replace("\n", " ")
    with open(out) as file:
        told = [(r["missing"], r["formation_energy [eV/atom]"]) for r in csv.DictReader(file)]
    assert told.count(("Cu", "")) == n
    assert told[40 - n :] == n * [("Cu", "")]
    for wrong, message in (
        (["-o", str(tmp_path / "hull.xlsx")], "unknown format of the table 'xlsx'"),
        (["--overwrite", "--where", "natoms > 1e6"], "no row of"),
        ([], "already there"),
    ):
        assert message in str(CliRunner().invoke(app, [*args, *wrong]).exception)
    with open_structures(place / "c.bp") as reader:  # none of the chosen rows has a hull: no rows are shown as lowest
        batch = reader.read(0, 40)
    copper = [k for k in range(40) if 29 in batch.numbers[batch.ptr[k] : batch.ptr[k + 1]]][:2]
    none = CliRunner().invoke(app, [*args, "--overwrite", "--where", f"position in {copper}"])
    assert "no row has a hull: no reference is the element Cu; add structures" in none.output.replace("\n", " ")
    assert not any(word in none.output for word in ("nan", "lowest", "on or below"))
    assert json.loads((place / "out" / "run.json").read_text())["heads"] == ["organic", "metal"]
    assert set(COLUMNS) >= {"formation_energy", "energy_above_hull"}
