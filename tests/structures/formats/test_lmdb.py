"""aselmdb, against files that ase-db-backends itself wrote and reads."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import lmdb
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.db import connect

from atomsieve.errors import DataError
from atomsieve.structures.conversion.convert import ConvertOptions, Input, convert
from atomsieve.structures.dataset.open import open_structures
from atomsieve.structures.formats.lmdb import count_ids
from tests.structures.block_checks import assert_same_geometry, read_all, rows_of


def sample(rng: np.random.Generator) -> Atoms:
    n = int(rng.integers(1, 9))
    atoms = Atoms(
        rng.integers(1, 90, n),
        positions=rng.normal(size=(n, 3)),
        tags=rng.integers(0, 3, n),
    )
    if rng.random() < 0.7:
        atoms.cell, atoms.pbc = rng.normal(size=(3, 3)), rng.random(3) < 0.5
    results = {"energy": float(rng.normal()), "forces": rng.normal(size=(n, 3))}
    if rng.random() < 0.5:
        results["stress"] = rng.normal(size=6)
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, list[Atoms]]:
    """A file of 30 rows, of which the third and the last are deleted; the fifth is fixed, the seventh has a NaN."""
    rng, path = np.random.default_rng(4), tmp_path / "x.aselmdb"
    images = [sample(rng) for _ in range(30)]
    images[4].set_constraint(FixAtoms([0]))
    images[6].calc.results["forces"][0, 0] = np.nan
    with connect(path) as db:
        for k, image in enumerate(images):
            db.write(
                image, key_value_pairs={"n": k}, data={"charge": k - 3, "spin": 2, "source": "omat", "sid": f"s{k}"}
            )
        db.delete([3, 30])
    del db
    return path, images


def test_rows_equal_those_that_the_library_reads(written: tuple[Path, list[Atoms]]) -> None:
    path, images = written
    found = rows_of(read_all(path, "lmdb"))
    left = [k for k in range(30) if k not in (2, 29)]
    assert [row["id"] for row in found] == [k + 1 for k in left]
    assert [row["charge"] for row in found] == [k - 3 for k in left]
    for row, k in zip(found, left, strict=True):
        assert_same_geometry(row, images[k])
        for name, value in images[k].calc.results.items():  # raw forces, as stored before constraints act
            np.testing.assert_array_equal(row[name], value, err_msg=name)
        np.testing.assert_array_equal(row["tags"], images[k].get_tags())
        assert (row["n"], row["sid"], row["source"]) == (k, f"s{k}", "omat")
        assert row["where"] == f"{path}: key {k + 1}"


def test_spans_meet(written: tuple[Path, list[Atoms]]) -> None:
    path, _ = written
    assert count_ids(path) == 31, "0 to 30"
    parts = [rows_of(read_all(path, "lmdb", a, b)) for a, b in ((0, 3), (3, 4), (4, 18), (18, 31))]
    assert [len(part) for part in parts] == [2, 0, 14, 12]
    assert [row["id"] for part in parts for row in part] == [row["id"] for row in rows_of(read_all(path, "lmdb"))]


def test_conversion_keeps_charge_and_spin(written: tuple[Path, list[Atoms]], tmp_path: Path) -> None:
    path, images = written
    report = convert([Input(path)], tmp_path / "o.bp", ConvertOptions(source_key="source", level_key="source"))
    assert report.tally.skipped == {"forces not finite": 1}
    with open_structures(tmp_path / "o.bp") as reader:
        batch = reader.read(0, len(reader))
    left = [k for k in range(30) if k not in (2, 6, 29)]
    assert batch.charge is not None and batch.charge.tolist() == [k - 3 for k in left]
    assert batch.forces is not None
    np.testing.assert_array_equal(batch.forces, np.concatenate([images[k].calc.results["forces"] for k in left]))


def test_a_file_that_was_cut_short_is_refused(written: tuple[Path, list[Atoms]]) -> None:
    path, _ = written
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(DataError, match=r"was cut short: it has [\d,]+ bytes and its pages [\d,]+"):
        read_all(path, "lmdb")


def test_another_byte_order_is_named(written: tuple[Path, list[Atoms]]) -> None:
    path, _ = written
    swapped = np.frombuffer(path.read_bytes(), np.uint32).byteswap()
    path.write_bytes(swapped.tobytes())
    with pytest.raises(DataError, match="other byte order"):
        read_all(path, "lmdb")


def test_writing_while_it_is_read_is_noticed(written: tuple[Path, list[Atoms]]) -> None:
    """Another process (as far as LMDB is concerned: another file of the same bytes) adds a transaction."""
    import subprocess
    import sys

    path, _ = written
    add = f"import lmdb; e=lmdb.open({str(path)!r},subdir=False,map_size=1<<26); t=e.begin(write=True); "
    add += "t.put(b'99', b'{}'); t.commit(); e.close()"
    from atomsieve.structures.formats.lmdb import read_lmdb
    from atomsieve.structures.item import ReadRequest

    reading = read_lmdb(ReadRequest(path))
    assert len(next(reading)) == 28
    subprocess.run([sys.executable, "-c", add], check=True)
    with pytest.raises(DataError, match="was written to while it was read"):
        next(reading)


BAD = {
    "numbers as texts": {"numbers": ["H"], "positions": [[0, 0, 0]]},
    "fewer positions": {"numbers": [1, 1], "positions": [[0, 0, 0]]},
    "two axes": {"numbers": [1], "positions": [[0, 0, 0]], "pbc": [True, True]},
    "no object": [1, 2],
    "cell of four": {"numbers": [1], "positions": [[0, 0, 0]], "cell": [1, 2, 3, 4]},
    "fractions": {"numbers": [1.5], "positions": [[0, 0, 0]]},
}


@pytest.mark.parametrize("packed", [True, False])
def test_bad_rows_are_counted_and_the_others_read(tmp_path: Path, packed: bool) -> None:
    good = {"numbers": [1], "positions": [[0, 0, 1e-300]], "energy": -1.5}
    texts = [json.dumps(row).encode() for row in [good, *BAD.values(), good]]
    texts[3:3] = [b"{" * 100_000, b"\xff\xfe", b'{"numbers": [1e400], "positions": [[0,0,0]]}', b""]
    rows = {str(k).encode(): zlib.compress(text) if packed else text for k, text in enumerate(texts) if text or packed}
    rows[b"50"] = zlib.compress(texts[0])[:-6]
    with lmdb.open(str(tmp_path / "x.lmdb"), subdir=False, map_size=1 << 24) as env, env.begin(write=True) as txn:
        for key, value in rows.items():
            txn.put(key, value)
    blocks = read_all(tmp_path / "x.lmdb", "lmdb")
    assert [row["energy"] for row in rows_of(blocks)] == [-1.5, -1.5]
    bad = [bad for block in blocks for _, bad in block.bad]
    assert len(bad) == len(rows) - 2
    assert all(one.reason.startswith("not readable") and one.detail for one in bad)
