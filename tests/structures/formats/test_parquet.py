"""Parquet in this package's layout and in those of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from atomsieve.errors import DataError
from atomsieve.structures import SourceInfo, open_structures, write_structures
from atomsieve.structures.conversion.convert import ConvertOptions, Input, convert
from atomsieve.structures.export import Subset, export
from atomsieve.structures.formats import parquet
from atomsieve.structures.formats.parquet import count_row_groups
from tests.structures.block_checks import read_all, rows_of
from tests.structures.structure_samples import random_batch


def table(**columns: Any) -> pa.Table:
    base = {
        "numbers": [[1, 8], [6], [29, 29, 29]],
        "positions": [np.arange(3.0 * n).reshape(n, 3).tolist() for n in (2, 1, 3)],
    }
    return pa.table({**base, **columns})


def write(path: Path, rows: pa.Table) -> list[dict[str, Any]]:
    pq.write_table(rows, path)
    return rows_of(read_all(path, "parquet"))


def test_our_layout_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that a dataset holds comes back to the last bit, structures without a label in between."""
    batch = random_batch(4500, smallest=1)
    rng = np.random.default_rng(0)
    has = rng.random(4500) < 0.5
    cells = rng.normal(size=(4500, 3, 3))
    full = {name: rng.normal(size=getattr(batch, name).shape) for name in ("positions", "forces", "stress", "energy")}
    full["energy"][~batch.has_energy] = np.nan
    batch = batch.replace(**full, cell=cells, has_forces=has, charge=np.round(batch.charge), spin=None)
    write_structures(tmp_path / "x.bp", batch, [SourceInfo("a", "PBE")])
    monkeypatch.setattr(parquet, "GROUP_ROWS", 1500)
    with open_structures(tmp_path / "x.bp") as reader:
        export(reader, tmp_path / "x.parquet", Subset())
        before = reader.read(0, len(reader))
    convert(
        [Input(tmp_path / "x.parquet")],
        tmp_path / "y.bp",
        ConvertOptions(source_key="source", level_key="level_of_theory"),
    )
    with open_structures(tmp_path / "y.bp") as reader:
        after = reader.read(0, len(reader))
    for name in (
        "ptr",
        "numbers",
        "positions",
        "cell",
        "pbc",
        "charge",
        "energy",
        "has_energy",
        "has_forces",
        "has_stress",
    ):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name), err_msg=name)
    atoms = np.repeat(has, batch.counts)
    np.testing.assert_array_equal(after.forces[atoms], before.forces[atoms])
    assert count_row_groups(tmp_path / "x.parquet") == 5
    parts = [rows_of(read_all(tmp_path / "x.parquet", "parquet", a, b)) for a, b in ((0, 1), (1, 5))]
    assert [len(part) for part in parts] == [1500, 3000]
    assert parts[1][0]["where"] == f"{tmp_path / 'x.parquet'}: row 1500"
    assert [row["id"] for part in parts for row in part] == before.id.tolist()


def test_layouts_of_others(tmp_path: Path) -> None:
    rows = table(
        cell=[np.eye(3).tolist(), None, (2 * np.eye(3)).tolist()],
        pbc=[[True, True, False], None, [True] * 3],
        energy=pa.array([1.5, None, 2.5], pa.float32()),
        forces=[np.ones((2, 3)).tolist(), None, np.zeros((3, 3)).tolist()],
        stress=[[0.0] * 6, [1.0] * 6, None],
        name=["a", None, "c"],
        mulliken=[[0.1, -0.1], [0.0], [1.0, 2.0, 3.0]],
        ragged=[[1.0], [], [1.0, 2.0]],
        nested=[{"a": 1}, {"a": 2}, None],
        truth=[True, False, True],
        nothing=pa.nulls(3),
    )
    found = write(tmp_path / "x.parquet", rows)
    assert [row["cell"].tolist() for row in found] == [
        np.eye(3).tolist(),
        np.zeros((3, 3)).tolist(),
        (2 * np.eye(3)).tolist(),
    ]
    assert [row["pbc"].tolist() for row in found] == [[True, True, False], [False] * 3, [True] * 3]
    assert [row.get("energy") for row in found] == [1.5, None, 2.5]
    assert found[0]["forces"].tolist() == np.ones((2, 3)).tolist() and "forces" not in found[1]
    assert found[1]["stress"].tolist() == [1.0] * 6 and "stress" not in found[2]
    assert [row.get("name") for row in found] == ["a", None, "c"]
    assert found[2]["mulliken"].tolist() == [1, 2, 3] and found[2]["ragged"].tolist() == [1, 2]
    assert found[1]["nested"] == {"a": 2} and found[0]["truth"] and "nothing" not in found[0]
    assert found[2]["positions"].tolist() == np.arange(9.0).reshape(3, 3).tolist()


@pytest.mark.parametrize("kind", ["flat", "large", "float32", "fixed", "sliced"])
def test_spellings_of_positions(tmp_path: Path, kind: str) -> None:
    rows = table()
    flat = [np.arange(3.0 * n).tolist() for n in (2, 1, 3)]
    lists = rows["positions"].combine_chunks()
    other = {
        "flat": pa.array(flat),
        "large": lists.cast(pa.large_list(pa.large_list(pa.float64()))),
        "float32": lists.cast(pa.list_(pa.list_(pa.float32()))),
        "fixed": lists.cast(pa.list_(pa.list_(pa.float64(), 3))),
        "sliced": pa.concat_arrays([lists.slice(1, 1), lists]).slice(1, 3),
    }[kind]
    rows = rows.set_column(1, "positions", other).rename_columns(["atomic_numbers", "positions"])
    found = write(tmp_path / "x.parquet", rows)
    assert [row["numbers"].tolist() for row in found] == [[1, 8], [6], [29, 29, 29]]
    assert [row["positions"].ravel().tolist() for row in found] == flat


def test_rows_that_do_not_fit_are_counted(tmp_path: Path) -> None:
    rows = table(energy=[1.0, 2.0, 3.0], forces=[[[0.0] * 3] * 2, [[0.0] * 3] * 2, None])
    rows = pa.concat_tables([rows, table(energy=[4.0, 5.0, 6.0], forces=pa.nulls(3, rows.schema.field("forces").type))])
    positions = rows["positions"].to_pylist()
    positions[0], positions[5] = positions[0][:1], None
    rows = rows.set_column(1, "positions", pa.array(positions))
    pq.write_table(rows, tmp_path / "x.parquet")
    blocks = read_all(tmp_path / "x.parquet", "parquet")
    assert [(k, bad.where) for k, bad in blocks[0].bad] == [
        (0, f"{tmp_path / 'x.parquet'}: row 0"),
        (5, f"{tmp_path / 'x.parquet'}: row 5"),
    ]
    assert [row["energy"] for row in rows_of(blocks)] == [2, 3, 4, 5]
    report = convert([Input(tmp_path / "x.parquet", SourceInfo("a", "b"))], tmp_path / "o.bp", ConvertOptions())
    assert report.tally.skipped == {"positions do not fit the number of atoms": 2, "forces of the wrong shape": 1}


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write(path, table())
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a readable Parquet"):
        read_all(path, "parquet")
    pq.write_table(table(cell=[[1.0], [2.0], [3.0]]), path)
    with pytest.raises(DataError, match="column 'cell' has to hold 9 numbers in each row"):
        read_all(path, "parquet")
    pq.write_table(table().set_column(0, "numbers", [["H"], ["C"], ["O"]]), path)
    (block,) = read_all(path, "parquet")
    assert {bad.reason for _, bad in block.bad} == {"numbers or positions are no lists of numbers"}
