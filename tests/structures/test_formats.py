"""The registry of formats: one row is all that commands, messages and documentation need."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from atomsieve.errors import UsageError
from atomsieve.screen.results.export import check_format
from atomsieve.structures import SourceInfo, StructureBatch, open_structures, write_structures
from atomsieve.structures.conversion.convert import ConvertOptions, Input, convert
from atomsieve.structures.export import Subset, export
from atomsieve.structures.formats import FORMATS, find_files, find_format, find_writer, registry, writable_endings
from tests.structures import toy_format
from tests.structures.structure_samples import random_batch


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, toy_format.ROW.name, toy_format.ROW)


@pytest.fixture
def molecules() -> StructureBatch:
    batch, rng = random_batch(30, smallest=1, fields=set()), np.random.default_rng(3)
    numbers = rng.integers(1, 100, batch.n_atoms).astype(np.uint8)
    return batch.replace(
        numbers=numbers,
        positions=rng.normal(size=(batch.n_atoms, 3)),
        cell=np.zeros((30, 3, 3)),
        pbc=np.zeros((30, 3), bool),
    )


def test_a_format_is_one_file_and_one_row(toy: None, molecules: StructureBatch, tmp_path: Path) -> None:
    """Write a dataset in a format of one small file, recognise the file in a folder, and read it back."""
    write_structures(tmp_path / "x.bp", molecules, [SourceInfo("a", "PBE")])
    (tmp_path / "files").mkdir()
    with open_structures(tmp_path / "x.bp") as reader:
        assert export(reader, tmp_path / "files" / "o.toy", Subset()) == (30, 0)
    assert find_files(tmp_path / "files") == [(tmp_path / "files" / "o.toy", "toy")]
    assert convert([Input(tmp_path / "files")], tmp_path / "back.bp", ConvertOptions()).written == 30
    with open_structures(tmp_path / "back.bp") as reader:
        found = reader.read(0, 30)
    for name in ("ptr", "numbers", "positions"):
        np.testing.assert_array_equal(getattr(found, name), getattr(molecules, name), err_msg=name)
    check_format(Path("rows.toy"))  # screen export takes it too


def test_messages_name_every_format(toy: None, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown format 'tyo' \(did you mean 'toy'"):
        find_files(tmp_path, "tyo")
    with pytest.raises(UsageError, match=r"unknown format of the output '.tyo' \(did you mean '.toy'"):
        registry.open_sink(tmp_path / "x.tyo", registry.WriteOptions())
    with pytest.raises(UsageError, match=r"unknown format 'tyo' \(did you mean 'toy'"):
        check_format(tmp_path / "x.tyo")


def test_rows_that_only_write_are_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(FORMATS, "toy", replace(toy_format.ROW, read=None))
    assert find_format(Path("x.toy")) is None and find_writer(Path("x.toy")) is FORMATS["toy"]
    with pytest.raises(UsageError, match="unknown format 'toy'"):
        find_files(tmp_path, "toy")


def test_endings_name_one_format_each() -> None:
    endings = [end for row in FORMATS.values() for end in row.endings]
    assert len(endings) == len(set(endings))
    for end in writable_endings():
        row = find_writer(Path(f"x{end}"))
        assert row is not None and end.removesuffix(".gz") in row.endings
    assert {".traj", ".json"}.isdisjoint(writable_endings())


def test_a_writer_that_fails_leaves_nothing(toy: None, molecules: StructureBatch, tmp_path: Path) -> None:
    (tmp_path / "o.toy").write_text("kept")

    def fail() -> None:
        with registry.open_sink(tmp_path / "o.toy", registry.WriteOptions(overwrite=True)) as sink:
            sink.write(molecules)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["o.toy"] and (tmp_path / "o.toy").read_text() == "kept"
    with pytest.raises(UsageError, match="exists"), registry.open_sink(tmp_path / "o.toy", registry.WriteOptions()):
        pass


def test_equal_structures_give_equal_compressed_bytes(molecules: StructureBatch, tmp_path: Path) -> None:
    for name in ("a.xyz.gz", "b.xyz.gz"):
        with registry.open_sink(tmp_path / name, registry.WriteOptions()) as sink:
            sink.write(molecules)
    assert (tmp_path / "a.xyz.gz").read_bytes() == (tmp_path / "b.xyz.gz").read_bytes()


def test_a_folder_of_datasets_gives_each_as_one(molecules: StructureBatch, tmp_path: Path) -> None:
    """Find a dataset folder among files as one dataset, and nothing inside of it."""
    write_structures(tmp_path / "f" / "a" / "x.bp", molecules, [SourceInfo("a", "PBE")])
    (tmp_path / "f" / "b.json").write_text("{}")
    assert find_files(tmp_path / "f") == [
        (tmp_path / "f" / "a" / "x.bp", "bp"),
        (tmp_path / "f" / "b.json", "json"),
    ]
    assert find_files(tmp_path / "f", "bp") == [(tmp_path / "f" / "a" / "x.bp", "bp")]
