"""Files that are no datasets, converted once: a file with its options has one copy, and a copy is whole."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading

import numpy as np
import pytest

from atomsieve.errors import DataError, UsageError
from atomsieve.structures import open_structures
from atomsieve.structures.conversion import ready as ready_module
from atomsieve.structures.conversion.convert import ConvertOptions, Input, convert
from atomsieve.structures.conversion.copy_record import RECORD
from atomsieve.structures.conversion.read_options import ReadOptions
from atomsieve.structures.conversion.ready import check_input, ensure_dataset, is_dataset, open_any
from atomsieve.structures.labels import LabelKeys
from tests.helpers import copper_oxides

KILLED = """
import os, signal, sys
from pathlib import Path
from atomsieve.structures.dataset.bp5 import import_lightly
import_lightly()
from atomsieve.structures.conversion import ready
from atomsieve.structures.dataset import draft as dataset_draft
publish = dataset_draft.DatasetDraft.publish
def die(self, *what):
    if sys.argv[3] == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    publish(self, *what)
    os.kill(os.getpid(), signal.SIGKILL)
dataset_draft.DatasetDraft.publish = die
ready.ensure_dataset(Path(sys.argv[1]), Path(sys.argv[2]), labels=False)
"""


@pytest.fixture
def file(tmp_path):
    from ase.io import write

    write(tmp_path / "c.extxyz", copper_oxides(20).to_ase())
    return tmp_path / "c.extxyz"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "converted"


def test_a_copy_is_what_the_conversion_gives_and_is_used_again(file, folder, tmp_path, monkeypatch):
    copy = ensure_dataset(file, folder, labels=False)
    assert copy.is_copy
    assert copy.fresh
    convert([Input(file)], tmp_path / "plain.bp", ConvertOptions(keys=LabelKeys(none=True)))
    with open_structures(copy.path) as found, open_structures(tmp_path / "plain.bp") as plain:
        assert found.identity() == plain.identity()
    monkeypatch.setattr(ready_module, "digest_content", None)  # an unchanged file is not read again
    again = ensure_dataset(file, folder, labels=False)
    assert again.path == copy.path
    assert not again.fresh


def test_a_renamed_file_keeps_its_copy_and_a_changed_one_gets_another(file, folder):
    first = ensure_dataset(file, folder, labels=False)
    moved = file.rename(file.with_name("moved.extxyz"))
    assert ensure_dataset(moved, folder, labels=False).path == first.path
    moved.write_text(moved.read_text() * 2)
    other = ensure_dataset(moved, folder, labels=False)
    assert other.path != first.path
    with open_structures(other.path) as reader:
        assert len(reader) == 40


def test_other_options_give_another_copy(file, folder):
    paths = {
        ensure_dataset(file, folder, options, labels=False).path
        for options in (None, ReadOptions(charge=1.0), ReadOptions(unit="length=bohr"))
    }
    assert len(paths) == 3
    with open_any(file, ReadOptions(charge=1.0)) as reader:
        assert np.array_equal(reader.read(0, 20).charge, np.ones(20, np.float32))


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_conversion_that_was_killed_is_not_taken_for_whole(file, folder, moment):
    done = subprocess.run([sys.executable, "-c", KILLED, str(file), str(folder), moment], check=False)
    assert done.returncode == -9
    assert not list(folder.glob(f"*/{RECORD}"))
    copy = ensure_dataset(file, folder, labels=False)
    assert copy.fresh
    with open_structures(copy.path) as reader:
        assert len(reader) == 20
    assert [p.name for p in folder.iterdir()] == [copy.path.name]


def test_of_two_at_once_one_converts_and_the_other_waits(file, folder, monkeypatch):
    made, begun, let_go = [], threading.Event(), threading.Event()
    real = convert

    def slow(*args, **more):
        made.append(args)
        begun.set()
        let_go.wait(20)
        return real(*args, **more)

    monkeypatch.setattr(ready_module, "convert", slow)
    found = []
    threads = [threading.Thread(target=lambda: found.append(ensure_dataset(file, folder))) for _ in range(2)]
    for thread in threads:
        thread.start()
    begun.wait(20)
    let_go.set()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len({copy.path for copy in found}) == 1


def test_frames_that_cannot_be_read_are_counted_with_their_places(file, folder):
    lines = file.read_text().splitlines(True)
    lines[int(lines[0]) + 4] = "Xx 0 0 0\n"
    file.write_text("".join(lines))
    copy = ensure_dataset(file, folder, labels=False, keep_bad=True)
    again = ensure_dataset(file, folder, labels=False, keep_bad=True)
    assert copy.unreadable == again.unreadable
    assert (copy.unreadable.read, copy.unreadable.count) == (20, 1)
    assert copy.unreadable.places[0][0] == f"{file}: frame 1"
    assert copy.unreadable.describe()["first"][0]["where"] == f"{file}: frame 1"
    with open_structures(copy.path) as reader:
        assert reader.read(0, 19).id.tolist() == [0, *range(2, 20)]


def test_labels_without_a_source_are_taken_where_none_is_needed(folder, tmp_path):
    (tmp_path / "l.extxyz").write_text('1\nProperties=species:S:1:pos:R:3 energy=-1.5 pbc="F F F"\nH 0 0 0\n')
    with pytest.raises(UsageError, match="has labels: say what they are"):
        ensure_dataset(tmp_path / "l.extxyz", folder)
    with open_any(tmp_path / "l.extxyz") as reader:
        assert reader.sources == []
        assert reader.read(0, 1).energy.tolist() == [-1.5]
    named = ensure_dataset(tmp_path / "l.extxyz", folder, ReadOptions(source="a", level_of_theory="PBE"))
    with open_structures(named.path) as reader:
        assert [(s.name, s.level_of_theory) for s in reader.sources] == [("a", "PBE")]


def test_standard_input(file, folder, monkeypatch):
    data = file.read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    copy = ensure_dataset("-", folder, labels=False)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert ensure_dataset("-", folder, labels=False).path == copy.path
    assert [p.name for p in folder.iterdir()] == [copy.path.name]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(DataError, match="standard input is empty"):
        ensure_dataset("-", folder)


def test_a_dataset_is_taken_as_it_is(file, folder, tmp_path):
    convert([Input(file)], tmp_path / "d.bp", ConvertOptions())
    copy = ensure_dataset(tmp_path / "d.bp", folder)
    assert copy.path == tmp_path / "d.bp"
    assert not copy.is_copy
    assert not folder.exists()
    with pytest.raises(UsageError, match=r"d\.bp is a dataset, which is read as it is; leave out charge-key"):
        ensure_dataset(tmp_path / "d.bp", folder, ReadOptions(charge_key="q"))


def test_what_is_not_there_or_of_no_known_format(tmp_path, folder):
    with pytest.raises(DataError, match=r"no\.bp does not exist"):
        check_input(tmp_path / "no.bp")
    with pytest.raises(DataError, match=r"no\.extxyz does not exist"):
        check_input(tmp_path / "no.extxyz")
    (tmp_path / "x.what").write_text("")
    with pytest.raises(DataError, match="name it with --format"):
        check_input(tmp_path / "x.what")
    assert is_dataset(tmp_path / "no.bp")


def test_a_record_of_another_version_is_not_used(file, folder):
    copy = ensure_dataset(file, folder)
    record = json.loads((copy.path / RECORD).read_text())
    (copy.path / RECORD).write_text(json.dumps(record | {"version": 0}))
    assert ensure_dataset(file, folder).fresh


def test_options_that_exclude_each_other():
    with pytest.raises(UsageError, match="needs a source"):
        ReadOptions(level_of_theory="PBE")
    with pytest.raises(UsageError, match="leave out one of them"):
        ReadOptions(source="a", source_key="b")
    with pytest.raises(UsageError, match="unknown unit of energy"):
        ReadOptions(unit="energy=hartre")
