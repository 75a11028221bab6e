"""A file is replaced whole or not at all, and nothing is left of an attempt."""

from __future__ import annotations

import os

import pytest

from atomsieve.errors import AtomSieveError
from atomsieve.runs.output_files import atomic_draft, atomic_folder, atomic_write, disk_errors, draft_path, sibling_path


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "run.json"
    path.write_text("old")
    with atomic_draft(path) as draft:
        draft.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    atomic_write(path, b"newer")
    assert path.read_bytes() == b"newer"
    assert os.listdir(tmp_path) == ["run.json"]


def test_what_fails_leaves_the_old_file_and_no_draft(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")

    def write_half() -> None:
        with atomic_draft(path) as draft:
            draft.write_text("ne")
            raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.csv"]


def test_a_draft_keeps_the_endings_by_which_writers_choose_a_format(tmp_path):
    draft = draft_path(tmp_path / "frames.extxyz.gz")
    assert draft.parent == tmp_path
    assert draft.name.startswith(".frames.extxyz.gz.")
    assert draft.name.endswith(".extxyz.gz")


def test_of_two_files_the_one_entered_last_is_replaced_first(tmp_path, monkeypatch):
    order = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda draft, path: (order.append(path.name), replace(draft, path)))
    with atomic_draft(tmp_path / "table") as table, atomic_draft(tmp_path / "structures") as structures:
        table.touch()
        structures.touch()
    assert order == ["structures", "table"]


def test_an_error_of_the_disk_becomes_one_line(tmp_path):
    again = pytest.raises(AtomSieveError, match=r"is gone .* run the same command again to continue")
    with again, disk_errors(tmp_path / "no"):
        atomic_write(tmp_path / "no" / "f", b"")


def test_a_sibling_has_the_name_with_an_ending(tmp_path, monkeypatch):
    assert sibling_path(tmp_path / "c.bp", ".results") == tmp_path / "c.bp.results"
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    assert sibling_path(type(tmp_path)(), ".results") == tmp_path / "inside.results"


def test_a_folder_appears_complete_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "gfm"
    path.mkdir()
    (path / "old").touch()
    with atomic_folder(path) as draft:
        (draft / "new").touch()
        assert os.listdir(path) == ["old"]
    assert os.listdir(path) == ["new"]
    assert path.stat().st_mode & 0o777 == 0o755

    def write_half() -> None:
        with atomic_folder(path) as draft:
            (draft / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert os.listdir(path) == ["new"]
    assert os.listdir(tmp_path) == ["gfm"]


def test_a_durable_file_is_stored_before_it_gets_its_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda h: (events.append(os.readlink(f"/proc/self/fd/{h}")), fsync(h)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("replace"), replace(a, b)))
    path = tmp_path / "a"
    atomic_write(path, b"x")
    assert events == [str(draft_path(path)), "replace", str(tmp_path)]
