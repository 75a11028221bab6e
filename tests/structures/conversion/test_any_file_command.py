"""`data info`, `data export` and `data generate` take files that are no datasets."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from atomsieve.cli.main import run
from atomsieve.structures import open_structures

FRAME = '2\nProperties=species:S:1:pos:R:3:forces:R:3 energy=-1.5 pbc="F F F"\nN 0 0 0 0 0 1\nN 0 0 1.1 0 0 -1\n'
BROKEN = "1\nProperties=species:S:1:pos:R:3 energy=1\nXx 0 0 0\n"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.xyz").write_text(FRAME * 30)
    (tmp_path / "b.xyz").write_text(FRAME + BROKEN + FRAME.replace("energy", "E_total"))
    return tmp_path


def call(*args: str) -> int:
    return run("atomsieve", ["data", *args])


def test_info_of_a_file(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("info", "a.xyz") == 0
    said = capsys.readouterr()
    assert "a.xyz: 30 structures, 60 atoms" in said.out
    assert "into a temporary dataset" in said.err
    assert call("info", "b.xyz", "--json", "--energy-key", "E_total") == 3
    found = json.loads(capsys.readouterr().out)
    assert found["path"] == "b.xyz"
    assert found["sources"][0]["name"] == "(none)"
    assert sorted(p.name for p in work.iterdir()) == ["a.xyz", "b.xyz"]


def test_what_is_left_out_or_not_taken_is_told(work: Path, capsys: pytest.CaptureFixture[str], caplog) -> None:
    assert call("export", "b.xyz", "o.extxyz") == 3
    assert "--energy-key E_total" in capsys.readouterr().err
    assert "1 of 3 structures could not be read and are left out" in caplog.text
    assert "b.xyz: frame 1" in caplog.text
    text = (work / "o.extxyz").read_text()
    assert text.count("energy=-1.5") == 1
    assert "source=" not in text
    assert not list(work.glob(".converting*"))


def test_export_of_standard_input_in_other_units(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(FRAME.encode())))
    assert call("export", "-", "o.bp", "--unit", "energy=hartree", "-q") == 0
    with open_structures("o.bp") as reader:
        assert reader.read(0, 1).energy[0] == pytest.approx(-40.81708)


def test_generate_from_a_file_tells_what_it_cannot_read(work: Path, caplog) -> None:
    assert call("generate", "rattle", "r.bp", "-n", "5", "--from", "b.xyz", "-q") == 0
    assert "could not be read" in caplog.text
    assert len(open_structures("r.bp")) == 5
