"""Artefacts with code in them open only where this user made them or said so."""

import hashlib
import logging
import os
import stat
from pathlib import Path

import pytest

from atomsieve.errors import AtomSieveError
from atomsieve.export.trust import find_trust_directory, is_trusted, require_trust, trust
from atomsieve.gfm import ExportEntry
from atomsieve.runs.hashing import hash_file


@pytest.fixture
def artefact(tmp_path) -> Path:
    """A file in its place in a gfm/ folder."""
    path = tmp_path / "gfm" / "exports" / "torchscript-fp32" / "model.ts"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"a program")
    return path


def entry_of(path: Path, format_: str = "torchscript", sha256: str | None = None) -> ExportEntry:
    digest = hash_file(path) if sha256 is None else sha256
    return ExportEntry(
        format=format_,
        precision="fp32",
        ensemble_id="ab" * 32,
        files={path.name: {"size": 9, "sha256": digest}},
        inputs=[],
        outputs=[],
        versions={},
    )


def test_a_file_is_refused_until_it_is_trusted(artefact, trusted):
    with pytest.raises(AtomSieveError) as caught:
        require_trust(artefact, "machine code")
    assert str(caught.value) == (
        f"{artefact} holds machine code, and nothing in {trusted} says that you made or trust it; export it again "
        f"here with --force, or run atomsieve export trust {artefact.parents[2]} if you trust its sender, or use "
        "--backend onnx"
    )
    assert not trusted.exists()
    assert trust([artefact])
    require_trust(artefact, "machine code")


def test_trust_goes_with_the_bytes_not_with_the_place(artefact, tmp_path):
    trust([artefact])
    copy = tmp_path / "copy.ts"
    copy.write_bytes(artefact.read_bytes())
    require_trust(copy, "code")
    artefact.write_bytes(b"a program.")
    with pytest.raises(AtomSieveError, match="says that you made or trust it"):
        require_trust(artefact, "code")


def test_a_file_outside_of_an_ensemble_has_no_folder_to_name(tmp_path):
    path = tmp_path / "model.ts"
    path.write_bytes(b"x")
    with pytest.raises(AtomSieveError, match="run atomsieve export trust FOLDER if you trust its sender"):
        require_trust(path, "code")


def test_marks_lie_in_a_directory_of_the_user_alone_outside_of_the_folder(artefact, trusted):
    before = sorted(artefact.parents[2].rglob("*"))
    old = os.umask(0)
    try:
        trust([artefact])
    finally:
        os.umask(old)
    assert stat.S_IMODE(trusted.stat().st_mode) == 0o700
    assert [p.name for p in trusted.iterdir()] == [hashlib.sha256(b"a program").hexdigest()]
    assert sorted(artefact.parents[2].rglob("*")) == before


def test_the_state_directory_is_read_from_the_environment_at_each_call(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME")
    assert find_trust_directory() == tmp_path / ".local" / "state" / "atomsieve" / "trusted"
    monkeypatch.setenv("XDG_STATE_HOME", "relative/path")  # which the standard says to ignore
    assert find_trust_directory() == tmp_path / ".local" / "state" / "atomsieve" / "trusted"
    monkeypatch.setenv("XDG_STATE_HOME", "/elsewhere")
    assert find_trust_directory() == Path("/elsewhere/atomsieve/trusted")


def test_a_state_directory_that_cannot_be_made_warns_and_the_refusal_names_it(artefact, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file" / "state"))
    with caplog.at_level(logging.WARNING):
        assert not trust([artefact])
    (record,) = caplog.records
    assert "may be opened" in record.message and "set XDG_STATE_HOME to a directory" in record.message
    assert str(tmp_path / "file") in record.message
    with pytest.raises(AtomSieveError) as caught:
        require_trust(artefact, "code")
    assert f"nothing in {tmp_path}/file/state/atomsieve/trusted says that you made or trust it" in str(caught.value)
    assert f"({tmp_path}/file is not a writable directory; set XDG_STATE_HOME to a directory of" in str(caught.value)


def test_a_user_without_a_home_is_told_what_to_set(artefact, monkeypatch, caplog):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert not trust([artefact])
    assert "no home directory" in caplog.text
    assert not is_trusted(artefact.parents[2], entry_of(artefact))
    with pytest.raises(AtomSieveError, match="no home directory; set XDG_STATE_HOME to a directory of your own"):
        require_trust(artefact, "code")


def test_marks_where_others_can_write_count_for_nothing(artefact, trusted):
    trust([artefact])
    trusted.chmod(0o777)
    assert not is_trusted(artefact.parents[2], entry_of(artefact))
    with pytest.raises(AtomSieveError, match=r"\(other users can write there; set XDG_STATE_HOME to"):
        require_trust(artefact, "code")
    assert trust([artefact])  # which takes it back
    require_trust(artefact, "code")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_marks_that_can_only_be_read_count(artefact, trusted):
    trust([artefact])
    trusted.chmod(0o500)
    require_trust(artefact, "code")
    trusted.chmod(0o700)


def test_a_manifest_is_looked_up_without_reading_files(artefact):
    folder, entry = artefact.parents[2], entry_of(artefact)
    assert not is_trusted(folder, entry)
    assert is_trusted(folder, entry_of(artefact, "onnx"))  # holds no code
    trust([artefact])
    assert is_trusted(folder, entry)
    artefact.unlink()
    assert is_trusted(folder, entry)
    two = entry.model_copy(update={"files": {**entry.files, "other": {"size": 1, "sha256": "0" * 64}}})
    assert not is_trusted(folder, two)
    assert not is_trusted(folder, entry.model_copy(update={"files": {}}))


@pytest.mark.parametrize("digest", ["", ".", "../trusted", "/etc/passwd", "A" * 64, None])
def test_a_manifest_cannot_point_at_files_that_are_no_marks(artefact, trusted, digest):
    trust([artefact])
    (trusted / ("A" * 64)).touch()
    entry = entry_of(artefact)
    entry.files = {"model.ts": {"size": 9, **({} if digest is None else {"sha256": digest})}}
    assert not is_trusted(artefact.parents[2], entry)
