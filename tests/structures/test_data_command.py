"""`atomsieve data` as a user calls it: exit codes, one-line errors, several ranks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from atomsieve.cli.data import parse_inputs
from atomsieve.cli.main import run
from atomsieve.errors import UsageError
from atomsieve.structures import SourceInfo, open_structures

FRAME = '2\nProperties=species:S:1:pos:R:3:forces:R:3 energy=-1.5 pbc="F F F"\nN 0 0 0 0 0 1\nN 0 0 1.1 0 0 -1\n'


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.xyz").write_text(FRAME * 30)
    return tmp_path


def call(*args: str) -> int:
    return run("atomsieve", ["data", *args])


def test_the_whole_verb(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("convert", "n2=a.xyz", "o.bp", "--level-of-theory", "n2=PBE", "-q") == 0
    assert call("info", "o.bp") == 0
    shown = capsys.readouterr().out
    assert "30 structures, 60 atoms" in shown
    assert "n2" in shown
    assert "PBE" in shown
    assert call("info", "o.bp", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sources"][0]["energy_per_atom"]["mean"] == -0.75
    assert call("generate", "rattle", "r.bp", "-n", "50", "--from", "o.bp", "-q") == 0
    assert call("generate", "substitute", "s.bp", "-n", "50", "--prototypes", "a.xyz", "--elements", "P,As", "-q") == 0
    assert call("generate", "random", "b.bp", "-n", "50", "--charge", "0", "--spin", "0", "-q") == 0
    assert [len(open_structures(f"{name}.bp")) for name in "rsb"] == [50, 50, 50]
    assert call("export", "r.bp", "o.extxyz", "--where", "id < 10", "-q") == 0
    assert call("convert", "o.extxyz", "again.bp", "-q") == 0
    assert len(open_structures("again.bp")) == 10


def test_no_bar_is_drawn_where_nobody_sees_it(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for args in (
        ("convert", "a.xyz", "o.bp", "--no-labels"),
        ("info", "o.bp"),
        ("export", "o.bp", "x.extxyz"),
        ("generate", "random", "b.bp", "-n", "5"),
    ):
        assert call(*args) == 0
        shown = capsys.readouterr()
        assert shown.out.splitlines()[0].strip(), args  # not the empty line that the end of a bar leaves
        assert not shown.err, args


@pytest.mark.parametrize("out", [".", "..", "/"])
def test_an_output_without_a_name_is_refused(work: Path, capsys: pytest.CaptureFixture[str], out: str) -> None:
    for args in ((), ("--split", "train=0.5,test=0.5"), ("--overwrite",)):
        assert call("convert", "a.xyz", out, "--no-labels", "-q", *args) == 2
        assert f"{out} is no name for a new folder; add one, such as " in capsys.readouterr().err


def test_names_in_brackets_are_shown_as_they_are(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "a.xyz").write_text(FRAME + FRAME.replace("energy=-1.5", "energy=nan"))
    named = ("--source", "n[/2]", "--level-of-theory", "[PBE]")
    assert call("convert", "a.xyz", "[o].bp", *named) == 3
    assert call("convert", "a.xyz", "p[bold].bp", *named) == 3
    assert call("info", "[o].bp") == 0
    assert call("export", "[o].bp", "[/x].xyz") == 0
    shown = capsys.readouterr().out
    assert "p[bold].bp" in shown
    assert "source n[/2] ([PBE]): 1" in shown
    assert "skipped 1: " in shown
    assert "[o].bp: 1 structure, 2 atoms" in shown
    assert "1 structure in [/x].xyz" in shown
    assert not any(tag in shown for tag in ("\\[", "[yellow]", "[/]"))


def test_exit_codes_and_messages(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "b.xyz").write_text(FRAME + FRAME.replace("energy=-1.5", "energy=nan"))
    assert call("convert", "b.xyz", "b.bp", "--source", "b", "--level-of-theory", "PBE", "-q") == 3
    cases = [
        (2, "labels", "convert", "a.xyz", "o.bp"),
        (2, "exists", "convert", "a.xyz", "b.bp", "--no-labels"),
        (1, "does not exist", "info", "none.bp"),
        (2, "did you mean 'natoms'", "export", "b.bp", "o.xyz", "--where", "natms<3"),
        (2, "Missing", "generate", "random", "x.bp"),
        (2, "element 'Fx'", "generate", "substitute", "x.bp", "-n", "3", "--prototypes=a.xyz", "--elements=Fx"),
        (2, "add up to 1", "convert", "a.xyz", "o.bp", "--no-labels", "--split", "a=0.5,b=0.4"),
    ]
    capsys.readouterr()
    for code, words, *args in cases:
        assert call(*args) == code, args
        errors = capsys.readouterr().err.strip()
        assert words in errors, args
        assert errors.startswith("error: ")
        assert len(errors.splitlines()) == 1


def test_inputs(work: Path) -> None:
    (work / "c=d.xyz").write_text("")
    found = parse_inputs(["x=a.xyz", "c=d.xyz", "b.xyz"], "rest", ["x=PBE", "y=LDA"[:0] + "HSE"])
    assert [(i.path.name, i.source) for i in found] == [
        ("a.xyz", SourceInfo("x", "PBE")),
        ("c=d.xyz", SourceInfo("rest", "HSE")),
        ("b.xyz", SourceInfo("rest", "HSE")),
    ]
    assert parse_inputs(["a.xyz"], None, [])[0].source is None
    assert parse_inputs(["a.xyz"], "a", ["U=4 eV"])[0].source == SourceInfo("a", "U=4 eV")
    for words, source, levels in [
        (["a.xyz"], None, ["PBE"]),
        (["a.xyz"], "a", ["PBE", "LDA"]),
        (["x=a.xyz", "y=a.xyz"], None, ["z=PBE"]),
    ]:
        with pytest.raises(UsageError):
            parse_inputs(words, source, levels)


def test_help_is_quick_and_light() -> None:
    program = (
        "import sys; from atomsieve.cli.main import run; run('atomsieve', ['data', '--help']); "
        "print('torch' in sys.modules, 'adios2' in sys.modules, 'ase' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False False"


@pytest.mark.mpi
def test_ranks_generate_the_same_dataset(work: Path) -> None:
    launcher = Path(sys.executable).parent / "mpirun"
    mpirun = str(launcher) if launcher.exists() else shutil.which("mpirun")
    if mpirun is None:
        pytest.skip("mpirun is not installed")
    arguments = ["-m", "atomsieve", "data", "generate", "random", "-n", "2500", "--max-atoms", "8", "-q"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for ranks, out in ((1, "one.bp"), (3, "three.bp")):
        command = [mpirun, "-n", str(ranks), sys.executable, *arguments, out]
        subprocess.run(command, check=True, env=environment, timeout=120, capture_output=True)
    one, three = open_structures("one.bp"), open_structures("three.bp")
    assert len(one) == len(three) == 2500
    a, b = one.read(0, 2500), three.read(0, 2500)
    assert a.positions.tobytes() == b.positions.tobytes()
    assert a.id.tolist() == b.id.tolist() == list(range(2500))
    assert len(three.manifest.parts) == 3


def test_formats_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    from atomsieve.structures.formats import FORMATS

    assert call("formats") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == list(FORMATS)
