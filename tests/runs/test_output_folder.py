"""The folder of a long job: it refuses foreign files, names other settings, continues a job, deletes only its own."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from atomsieve.errors import AtomSieveError
from atomsieve.runs import output_folder
from atomsieve.runs.lock import PathLock
from atomsieve.runs.output_folder import OutputFolder, find_changes, flatten, format_changes


@dataclass(frozen=True)
class DosFolder(OutputFolder):
    """A job as a newcomer would write it."""

    contents = "densities of states"
    record_name = "dos.json"

    def list_files(self):
        return [self.path / "dos.csv", self.record]

    def list_folders(self):
        return [self.path / "bands"]

    def start(self, settings, overwrite=False):
        """Occupy and claim the folder as a job does, and leave it again."""
        with ExitStack() as stack:
            self.occupy(PathLock(self.lock), stack)
            assert self.lock.is_file()
            return self.claim(
                settings,
                overwrite=overwrite,
                read_record=lambda: json.loads(self.record.read_text()),
                list_differences=lambda old, new: format_changes(find_changes(old, new), longest=40, kept=12),
            )


def test_a_job_begins_and_is_continued(tmp_path):
    folder = DosFolder(tmp_path / "new" / "dos")
    assert folder.start({"width": 0.1, "mesh": (4, 4)}) is None
    assert os.listdir(folder.path) == ["dos.json"]
    assert folder.start({"width": 0.1, "mesh": (4, 4)}) == {"width": 0.1, "mesh": [4, 4]}


def test_other_settings_are_named_and_nothing_is_changed(tmp_path):
    folder = DosFolder(tmp_path)
    folder.start({"options": {"width": 0.1, "head": "pbe"}})
    before = folder.record.read_bytes()
    with pytest.raises(AtomSieveError) as caught:
        folder.start({"options": {"width": 0.2, "head": "pbe"}, "mesh": 8})
    assert str(caught.value) == (
        f"{tmp_path} holds densities of states of other settings (options.width: 0.1 -> 0.2; mesh: (none) -> 8); "
        "repeat the earlier settings, choose another --out, or discard them with --overwrite"
    )
    assert folder.record.read_bytes() == before


def test_overwrite_deletes_what_the_job_wrote_and_nothing_else(tmp_path):
    folder = DosFolder(tmp_path)
    folder.start({"width": 0.1})
    (tmp_path / "dos.csv").touch()
    (tmp_path / "bands").mkdir()
    (tmp_path / "bands" / "0.npz").touch()
    (tmp_path / "notes.txt").touch()
    assert folder.start({"width": 0.2}, overwrite=True) is None
    assert sorted(os.listdir(tmp_path)) == ["dos.json", "notes.txt"]
    assert json.loads(folder.record.read_text()) == {"width": 0.2}


def test_the_record_is_deleted_last(tmp_path, monkeypatch):
    folder = DosFolder(tmp_path)
    folder.start({"width": 0.1})
    (tmp_path / "bands").mkdir()
    (tmp_path / "dos.csv").mkdir()  # cannot be deleted as a file
    with pytest.raises(OSError):
        folder.clear()
    assert not (tmp_path / "bands").exists()
    assert folder.is_ours()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_other_files_is_refused(tmp_path, overwrite):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(AtomSieveError, match="holds other files than densities of states; choose another --out"):
        DosFolder(tmp_path).start({}, overwrite=overwrite)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_start_that_was_killed_leaves_a_folder_for_the_next(tmp_path):
    for name in ("lock.json.8f3a", ".dos.json.4711.json"):
        (tmp_path / name).write_text("{")
    (tmp_path / "bands").mkdir()
    assert DosFolder(tmp_path).start({}) is None
    assert not (tmp_path / ".dos.json.4711.json").exists()


def test_no_record_where_the_disk_refuses_it(tmp_path, monkeypatch):
    def full(path, data):
        raise AtomSieveError("no space left")

    monkeypatch.setattr(output_folder, "write_output", full)
    with pytest.raises(AtomSieveError, match="no space left"):
        DosFolder(tmp_path).start({})
    assert not os.listdir(tmp_path)


def test_a_folder_in_use_is_refused(tmp_path):
    folder = DosFolder(tmp_path)
    with ExitStack() as stack:
        folder.occupy(PathLock(folder.lock), stack)
        with pytest.raises(AtomSieveError, match="in use by another run"):
            folder.start({})
    assert folder.start({}) is None


def test_a_file_instead_of_a_folder_and_a_place_that_cannot_be_made(tmp_path):
    (tmp_path / "t.sh").touch()
    with pytest.raises(AtomSieveError, match=r"t\.sh is a file, no folder for results; choose another --out"):
        DosFolder(tmp_path / "t.sh").make()
    with pytest.raises(AtomSieveError, match=r"cannot make the results folder .*Not a directory.*--out"):
        DosFolder(tmp_path / "t.sh" / "out").make()


def test_settings_are_flattened_and_compared():
    nested = {"a": {"b": 1, "c": [{"d": 2}]}}
    assert flatten(nested) == {"a.b": 1, "a.c": [{"d": 2}]}
    assert flatten(nested, lists=True) == {"a.b": 1, "a.c.0.d": 2}
    assert find_changes({"a": 1, "b": {"c": 2}, "e": 0}, {"d": 3, "b": {"c": 4}, "e": 0}) == {
        "a": (1, None),
        "b.c": (2, 4),
        "d": (None, 3),
    }


def test_long_values_are_cut():
    changes = {"id": ("a" * 41, "b" * 40), "heads": (["pbe", "scan"], None)}
    assert format_changes(changes, longest=40, kept=12) == [
        f"id: {'a' * 12}... -> {'b' * 40}",
        "heads: pbe, scan -> (none)",
    ]
