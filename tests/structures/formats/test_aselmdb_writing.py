"""LMDB files of ASE rows: what is written is read back by this package and by ase-db-backends."""

from __future__ import annotations

import json
import pickle
import zlib
from pathlib import Path

import lmdb
import numpy as np
import pytest

from atomsieve.errors import DataError, UsageError
from atomsieve.structures import SourceInfo, StructureBatch, open_structures, write_structures
from atomsieve.structures.export import Subset, export
from tests.structures.formats.learning.samples import convert_and_read
from tests.structures.structure_samples import random_batch

SOURCE = SourceInfo("a", "PBE")


@pytest.fixture
def batch() -> StructureBatch:
    rng = np.random.default_rng(0)
    made = random_batch(25, 3, smallest=1)
    finite = {
        name: rng.normal(size=getattr(made, name).shape) for name in ("positions", "cell", "energy", "forces", "stress")
    }
    finite["stress"] = finite["stress"] + finite["stress"].transpose(0, 2, 1)
    return made.replace(
        **finite,
        head=np.zeros(25, np.int32),
        charge=np.where(np.arange(25) % 3 == 0, np.nan, 1).astype(np.float32),
        spin=np.where(np.arange(25) % 2 == 0, np.nan, 3).astype(np.float32),
    )


def write(path: Path, batch: StructureBatch) -> Path:
    write_structures(path.with_suffix(".bp"), batch, [SOURCE])
    with open_structures(path.with_suffix(".bp")) as reader:
        assert export(reader, path, Subset()) == (len(batch), 0)
    return path


def test_what_is_written_is_read_back(tmp_path: Path, batch: StructureBatch) -> None:
    file = write(tmp_path / "x.aselmdb", batch)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.aselmdb", "x.bp"], "no lock file, no draft"
    found = convert_and_read(file)
    for name in ("numbers", "positions", "cell", "pbc", "has_energy", "has_forces", "has_stress"):
        np.testing.assert_array_equal(getattr(found, name), getattr(batch, name), err_msg=name)
    for name in ("charge", "spin"):
        np.testing.assert_array_equal(getattr(found, name), getattr(batch, name), err_msg=name)
    has = batch.has_energy
    np.testing.assert_array_equal(found.energy[has], batch.energy[has])
    atoms = np.repeat(batch.has_forces, batch.counts)
    np.testing.assert_array_equal(found.forces[atoms], batch.forces[atoms])
    np.testing.assert_array_equal(found.stress[batch.has_stress], batch.stress[batch.has_stress])


def test_layout_of_the_rows(tmp_path: Path, batch: StructureBatch) -> None:
    file = write(tmp_path / "x.aselmdb", batch)
    with lmdb.open(str(file), subdir=False, readonly=True, lock=False) as environment, environment.begin() as rows:
        assert json.loads(zlib.decompress(rows.get(b"nextid"))) == 26
        row = json.loads(zlib.decompress(rows.get(b"2")))
    count = int(batch.counts[1])
    assert row["positions"]["__ndarray__"][:2] == [[count, 3], "float64"]
    assert row["data"]["source"] == "a" and row["data"]["charge"] == 1
    assert len(row["unique_id"]) == 32


def test_ase_db_backends_reads_it(tmp_path: Path, batch: StructureBatch) -> None:
    pytest.importorskip("ase_db_backends")
    import ase.db

    file = write(tmp_path / "x.aselmdb", batch)
    with ase.db.connect(str(file), type="aselmdb", readonly=True) as database:
        rows = list(database.select())
        assert [row.id for row in rows] == list(range(1, 26))
        for s, row in enumerate(rows):
            np.testing.assert_array_equal(row.toatoms().positions, batch.slice(s, s + 1).positions)
            if batch.has_forces[s]:
                np.testing.assert_array_equal(row.forces, batch.slice(s, s + 1).forces)


def test_no_structures_and_a_file_that_exists(tmp_path: Path, batch: StructureBatch) -> None:
    write_structures(tmp_path / "x.bp", batch, [SOURCE])
    with open_structures(tmp_path / "x.bp") as reader:
        assert export(reader, tmp_path / "x.aselmdb", Subset(0, 0)) == (0, 0)
        with pytest.raises(DataError, match="1 a file without a structure; the first: "):
            convert_and_read(tmp_path / "x.aselmdb")
        with pytest.raises(UsageError, match="exists"):
            export(reader, tmp_path / "x.aselmdb", Subset())


def test_pickled_objects_of_pytorch_geometric_are_refused(tmp_path: Path) -> None:
    value = pickle.dumps({"class": "torch_geometric.data.data Data"}, protocol=4)
    environment = lmdb.open(str(tmp_path / "x.lmdb"), subdir=False, map_size=1 << 20)
    with environment, environment.begin(write=True) as transaction:
        transaction.put(b"0", value)
    with pytest.raises(DataError, match=r"key 0 is a pickled PyTorch Geometric object.*OC20.*extxyz files"):
        convert_and_read(tmp_path / "x.lmdb")
