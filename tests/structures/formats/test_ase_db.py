"""ASE databases (SQLite), against files that ASE itself wrote and reads."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.db import connect

from atomsieve.errors import DataError
from atomsieve.structures.formats.ase_db import count_rows, read_metadata
from tests.structures.block_checks import assert_same_geometry, read_all, rows_of
from tests.structures.formats.test_lmdb import sample


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, list[Atoms]]:
    """A file of 30 rows, of which the third and the last are deleted; the fifth is fixed."""
    rng, path = np.random.default_rng(5), tmp_path / "a b#c?.db"
    images = [sample(rng) for _ in range(30)]
    images[4].set_constraint(FixAtoms([0]))
    images[7].set_initial_magnetic_moments(rng.normal(size=len(images[7])))
    images[8].set_initial_charges(np.full(len(images[8]), 0.5))
    for k in (7, 8):  # results belong to what they were computed for
        images[k].calc = SinglePointCalculator(images[k], **images[k].calc.results)
    with connect(path) as db:
        for k, image in enumerate(images):
            data = {"spin": 2, "matrix": np.full((2, 2), k), "nested": {"deep": [1, {"array": np.arange(3)}]}}
            db.write(image, key_value_pairs={"n": k, "charge": k - 3, "word": f"w{k}"}, data=data)
        db.delete([3, 30])
    return path, images


def test_rows_equal_those_of_ase(written: tuple[Path, list[Atoms]]) -> None:
    path, images = written
    found = rows_of(read_all(path, "db"))
    rows = list(connect(path).select())
    assert len(found) == len(rows) == 28
    for row, expected in zip(found, rows, strict=True):
        k = expected.n
        assert (row["id"], row["n"], row["word"], row["where"]) == (expected.id, k, f"w{k}", f"{path}: row {k + 1}")
        assert_same_geometry(row, expected.toatoms())
        for name, value in images[k].calc.results.items():
            np.testing.assert_array_equal(row[name], value, err_msg=name)
        np.testing.assert_array_equal(row["matrix"], np.full((2, 2), k))
        np.testing.assert_array_equal(row["nested"]["deep"][1]["array"], np.arange(3))
        for name in ("initial_magmoms", "initial_charges", "tags"):
            if name in expected:
                np.testing.assert_array_equal(row[name], expected[name], err_msg=name)


def test_a_stated_charge_is_not_hidden_by_the_row(written: tuple[Path, list[Atoms]]) -> None:
    """ASE's `row.charge` is a property: the sum of initial charges. The key-value pair of that name lies behind it."""
    path, images = written
    row = next(connect(path).select(id=9))
    assert row.charge == row.key_value_pairs["charge"] == 0.5 * len(images[8])
    assert [r["charge"] for r in rows_of(read_all(path, "db"))] == [k - 3 for k in range(30) if k not in (2, 29)]


def test_spans_meet(written: tuple[Path, list[Atoms]]) -> None:
    path, _ = written
    assert count_rows(path) == 29  # the last id that is left
    parts = [rows_of(read_all(path, "db", a, b)) for a, b in ((0, 2), (2, 3), (3, 17), (17, 29))]
    assert [row["id"] for part in parts for row in part] == [k + 1 for k in range(30) if k not in (2, 29)]


def test_the_version_before_keeps_its_data_as_text(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with connect(path) as db:
        db.write(Atoms("H"), data={"charge": 1})
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE information SET value='8' WHERE name='version'")
        raw.execute("""UPDATE systems SET data='{"charge": 2}'""")
    assert rows_of(read_all(path, "db"))[0]["charge"] == 2
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE information SET value='6' WHERE name='version'")
    assert rows_of(read_all(path, "db"))[0]["charge"] == 2, "read through ASE"


def test_metadata(tmp_path: Path) -> None:
    db = connect(tmp_path / "x.db")
    db.write(Atoms("H"))
    assert read_metadata(tmp_path / "x.db") == {}
    db.metadata = {"_distance_unit": "Bohr"}
    assert read_metadata(tmp_path / "x.db") == {"_distance_unit": "Bohr"}


def test_bad_rows_are_counted(written: tuple[Path, list[Atoms]]) -> None:
    path, _ = written
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE systems SET positions=x'00' WHERE id=1")
        raw.execute("UPDATE systems SET data=x'ff00000000000000' WHERE id=2")
        raw.execute("UPDATE systems SET numbers=NULL WHERE id=4")
        raw.execute("UPDATE systems SET key_value_pairs='{' WHERE id=5")
    blocks = read_all(path, "db")
    assert sum(len(block) for block in blocks) == 24
    assert [bad.where for block in blocks for _, bad in block.bad] == [f"{path}: row {k}" for k in (1, 2, 4, 5)]


def test_what_is_no_database_is_refused(tmp_path: Path, written: tuple[Path, list[Atoms]]) -> None:
    path, _ = written
    (tmp_path / "cut.db").write_bytes(path.read_bytes()[:20_000])
    (tmp_path / "text.db").write_text("no database" * 1000)
    (tmp_path / "empty.db").write_bytes(b"")
    for name in ("cut.db", "text.db", "empty.db"):
        with pytest.raises(DataError, match=r"is not a readable ASE database|is damaged"):
            read_all(tmp_path / name, "db")
    assert (tmp_path / "empty.db").stat().st_size == 0, "nothing is created by reading"


def test_a_database_that_is_being_written_is_named(
    written: tuple[Path, list[Atoms]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = written
    connect_now = sqlite3.connect
    writer = sqlite3.connect(path)
    writer.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(sqlite3, "connect", lambda *given, **options: connect_now(*given, **options | {"timeout": 0}))
    with pytest.raises(DataError, match="is being written to by another program"):
        read_all(path, "db")
    writer.rollback()
    writer.close()
    assert sum(len(block) for block in read_all(path, "db")) == 28
