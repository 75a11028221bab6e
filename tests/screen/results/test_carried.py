"""What a file states of a structure ranks, filters and groups its rows, and stands in every table and export."""

from __future__ import annotations

import csv
import shutil

import numpy as np
import pytest
from ase import Atoms
from ase.io import read, write

from atomsieve.errors import DataError, UsageError
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.results.export import export
from atomsieve.screen.results.record import open_results
from atomsieve.screen.results.table import list_columns
from atomsieve.screen.run import run_screen
from atomsieve.screen.selection.select import Selection, select
from atomsieve.structures import open_structures
from atomsieve.structures.conversion.read_options import ReadOptions
from tests.screen.screen_fakes import FakePredictor

pytest.importorskip("pyarrow")
N = 60


def images() -> list[Atoms]:
    rng = np.random.default_rng(3)
    out = []
    for k in range(N):
        atoms = Atoms("HCuO"[: 3 if k % 2 else 1], rng.random((2 if k % 2 else 1, 3)) * 3)
        atoms.info = {
            "sid": f"m-{k:03d}",
            "gap": float(k % 7),
            "family": f"f {k % 4}",
            "energy": -1.0 * k,
            "good": k % 3 == 0,
        }
        out.append(atoms)
    return out


@pytest.fixture
def results(tmp_path):
    write(tmp_path / "c.extxyz", images())
    return run(tmp_path, "out")


def run(tmp_path, out, **options):
    options = ScreenOptions(**{"top": 10, "chunk_size": 16, **options})
    reading = ReadOptions(carry="all")
    run_screen(
        tmp_path / "c.extxyz", None, options, out=tmp_path / out, predictor=FakePredictor(("pbe",)), reading=reading
    )
    return open_results(tmp_path / out)


def test_columns_of_the_input_are_columns_of_results(results, tmp_path):
    columns = list_columns(results)
    assert columns["id"].kind == "text"
    assert {columns[n].kind for n in ("gap", "energy_given")} == {"number"}
    chosen = select(results, Selection(top=5, by="gap", descending=True, where="good and family != 'f 1'")).rows
    expected = [k for k in range(N) if k % 3 == 0 and k % 4 != 1]
    expected.sort(key=lambda k: (-(k % 7), k))
    assert chosen["position"].tolist() == expected[:5]
    per = select(results, Selection(per="family", by="energy_given"))
    assert per.groups == ["f 3", "f 2", "f 1", "f 0"]
    assert select(results, Selection(where="id in ['m-003', 'm-041']")).rows["position"].tolist() in ([3, 41], [41, 3])
    with pytest.raises(UsageError, match="compares text with numbers"):
        select(results, Selection(where="id == 3"))
    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "out", moved)  # results alone keep ids and context
    shutil.rmtree(tmp_path / "converted")
    (tmp_path / "c.extxyz").unlink()
    alone = open_results(moved)
    assert list_columns(alone)["id"].values(np.asarray(alone.rows())[[5, 2, 5]]).tolist() == ["m-005", "m-002", "m-005"]
    (moved / "carried.arrow").write_bytes(b"ARROW1")
    with pytest.raises(DataError, match=r"carried\.arrow cannot be read"):
        select(open_results(moved), Selection(by="gap"))


def test_a_run_ranks_and_filters_by_them(tmp_path):
    write(tmp_path / "c.extxyz", images())
    run(tmp_path, "out", by="energy_given", where="family == 'f 2'", top=4)
    with open(tmp_path / "out" / "top.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["id"] for line in lines] == ["m-058", "m-054", "m-050", "m-046"]
    assert [line["energy_given"] for line in lines] == ["-58", "-54", "-50", "-46"]
    for wrong, message in (({"by": "energy_givn"}, "did you mean 'energy_given'"), ({"by": "family"}, "a text")):
        with pytest.raises(UsageError, match=message):
            run(tmp_path, "other", **wrong)
    with pytest.raises(UsageError, match="a cascade cannot rank by 'gap'"):
        ScreenOptions(by="gap", cascade="bf16:fp32")


def test_rows_are_the_same_bytes_with_and_without(results, tmp_path):
    options = ScreenOptions(top=10, chunk_size=16)
    plain = ReadOptions(carry="none")
    run_screen(
        tmp_path / "c.extxyz", None, options, out=tmp_path / "plain", predictor=FakePredictor(("pbe",)), reading=plain
    )
    assert (tmp_path / "plain" / "rows.npy").read_bytes() == (results.folder.path / "rows.npy").read_bytes()
    assert not (tmp_path / "plain" / "carried.arrow").exists()


@pytest.mark.parametrize("name", ["o.csv", "o.parquet", "o.npz", "o.extxyz", "o.db", "o.bp"])
def test_exports_have_ids_formulas_and_context(results, tmp_path, name):
    rows = np.asarray(results.rows())[[7, 3]]
    assert export(results, tmp_path / name, [rows]) == 2
    if name.endswith(".csv"):
        with open(tmp_path / name, newline="") as file:
            found = list(csv.DictReader(file))
        found = [{**line, "gap": float(line["gap"]), "good": line["good"] == "True"} for line in found]
    elif name.endswith(".parquet"):
        import pyarrow.parquet as parquet

        found = parquet.read_table(tmp_path / name).to_pylist()
    elif name.endswith(".npz"):
        arrays = np.load(tmp_path / name)
        found = [{key: arrays[key][k].item() for key in ("id", "formula", "gap", "family", "good")} for k in range(2)]
    elif name.endswith(".bp"):
        with open_structures(tmp_path / name) as reader:
            found = reader.read_carried(0, 2).to_pylist()
    else:
        read_back = read(tmp_path / name, ":") if name.endswith(".extxyz") else None
        if read_back is None:
            from ase.db import connect

            read_back = [row.toatoms(add_additional_information=True) for row in connect(tmp_path / name).select()]
            found = [atoms.info["data"] for atoms in read_back]
        else:
            found = [atoms.info for atoms in read_back]
    for line, k in zip(found, (7, 3), strict=True):
        assert line["id"] == f"m-{k:03d}"
        assert line["family"] == f"f {k % 4}"
        assert float(line["gap"]) == k % 7
        assert bool(line["good"]) == (k % 3 == 0)
        assert line["formula"] == "CuH"


def test_files_of_single_structures_are_named_by_text_ids(tmp_path):
    crystals = [Atoms("Cu", [[0, 0, 0]], cell=np.eye(3) * 2.5, pbc=True) for _ in range(3)]
    for atoms, name in zip(crystals, ("mp/7 x", "mp/7 x", "b"), strict=True):
        atoms.info["material_id"] = name
    write(tmp_path / "c.extxyz", crystals)
    found = run(tmp_path, "out")
    export(found, tmp_path / "cifs", form="cif")
    assert sorted(p.name for p in (tmp_path / "cifs").iterdir()) == ["b.cif", "mp_7_x.cif", "mp_7_x_2.cif"]
