"""Odd, damaged and hostile input through `atomsieve data`: counted with place and reason, or refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from atomsieve.cli.main import run
from atomsieve.native import text_library
from atomsieve.structures import open_structures

HEAD = 'Lattice="3 0 0 0 3 0 0 0 3" Properties=species:S:1:pos:R:3 energy=-7 pbc="T T T"'
FRAME = f"2\n{HEAD}\nCs 0 0 0\nCl 1.5 1.5 1.5\n"
LABELS = ("--source", "x", "--level-of-theory", "y")

Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Return a function that calls `atomsieve data` and returns its exit code and all that it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*args: str) -> tuple[int, str]:
        code = run("atomsieve", ["data", *args])
        shown = capfd.readouterr()
        text = shown.out + shown.err
        assert "Traceback" not in text and "internal error" not in text
        return code, text

    return call


SKIPPED = {
    "a truth value as energy": (HEAD.replace("energy=-7", "energy=T"), "energy is not a number"),
    "a truth value as charge": (f"{HEAD} charge=T", "charge is not a number"),
    "flat cell": (HEAD.replace('"3 0 0 0 3 0', '"3 0 0 3 0 0'), "periodic along lattice vectors that are linearly"),
    "flat layer": (
        HEAD.replace('"3 0 0 0 3 0', '"3 0 0 6 0 0').replace("T T T", "T T F"),
        "periodic along lattice vectors that are linearly",
    ),
    "keys": (HEAD + "".join(f" k{k}=1" for k in range(20_001)), "a header of more than 20,000 keys"),
}


@pytest.mark.parametrize("name", SKIPPED)
def test_a_frame_that_cannot_be_taken(call: Call, name: str) -> None:
    if name == "keys" and text_library() is None:
        pytest.skip("no compiled parser")
    head, reason = SKIPPED[name]
    Path("a.extxyz").write_text(FRAME + FRAME.replace(HEAD, head) + FRAME)
    code, text = call("convert", "a.extxyz", "a.bp", *LABELS)
    assert code == 3
    assert f"skipped 1: {reason}" in text and "a.extxyz: frame 1" in text
    with open_structures("a.bp") as found:
        assert found.read(0, len(found)).energy.tolist() == [-7, -7]


def test_truth_values_beside_numbers_stay_truth_values(call: Call) -> None:
    """Through ASE's objects too, where numpy makes one array of numbers of both."""
    from ase import Atoms
    from ase.io import write

    frames = [Atoms("Cs", [[0, 0, 0]], cell=[9, 9, 9], info={"my_energy": value}) for value in (-7.0, True)]
    write("a.traj", frames)
    code, text = call("convert", "a.traj", "a.bp", "--energy-key", "my_energy", *LABELS)
    assert code == 3 and "skipped 1: energy is not a number" in text


def test_a_vector_that_is_not_periodic_may_be_zero(call: Call) -> None:
    slab = FRAME.replace('0 0 0 3"', '0 0 0 0"').replace("T T T", "T T F")
    Path("a.extxyz").write_text(slab)
    assert call("convert", "a.extxyz", "a.bp", *LABELS)[0] == 0


def test_files_without_a_structure_are_counted(call: Call) -> None:
    Path("folder").mkdir()
    Path("folder/a.extxyz").write_text(FRAME)
    Path("folder/b.extxyz").write_text("\n")
    Path("folder/c.extxyz").symlink_to("nowhere")
    Path("folder/d.extxyz").symlink_to("d.extxyz")
    code, text = call("convert", "folder", "a.bp", *LABELS)
    assert code == 3
    assert "skipped 1: a file without a structure, first folder/b.extxyz" in text
    assert "skipped 2: a link to nothing, first folder/c.extxyz" in text
    code, text = call("inspect", "folder")
    assert code == 3
    assert "would be left out, 1: a file without a structure, first folder/b.extxyz" in text
    assert "would be left out, 2: a link to nothing, first folder/c.extxyz" in text
    code, text = call("convert", "folder/b.extxyz", "b.bp", *LABELS)
    assert code == 1 and "1 a file without a structure; the first: folder/b.extxyz" in text
    assert not list(Path.cwd().glob("b.bp*"))


def test_a_file_that_cannot_be_read_costs_itself_only_among_others(call: Call) -> None:
    Path("folder").mkdir()
    for name in ("a", "c"):
        Path(f"folder/{name}.extxyz").write_text(FRAME)
    for name in ("b.extxyz", "b.traj", "b.db", "b.parquet", "b.h5", "b.aselmdb"):
        Path(f"folder/{name}").write_bytes(b"\x89rubbish\0\n\x1a" * 2000)
    code, text = call("convert", "folder", "a.bp", *LABELS)
    assert code == 3 and "skipped 6: a file that cannot be read, or not to its end, first folder/b.aselmdb: " in text
    with open_structures("a.bp") as found:
        assert len(found) == 2
    code, text = call("inspect", "folder")
    assert code == 3 and "would be left out, 6: a file that cannot be read, or not to its end" in text
    code, text = call("convert", "folder/b.traj", "b.bp", *LABELS)
    assert code == 1 and "folder/b.traj is not a readable ASE trajectory" in text


def test_ids(call: Call) -> None:
    """Whole numbers beside broken ones are the same ids as alone; those beyond 64 bits are refused."""
    Path("a.extxyz").write_text("".join(FRAME.replace("pbc=", f"mid={word} pbc=") for word in ("7", "1e3", "-2.0")))
    assert call("convert", "a.extxyz", "a.bp", "--id-key", "mid", *LABELS)[0] == 0
    with open_structures("a.bp") as found:
        assert found.read(0, 3).id.tolist() == [7, 1000, -2]
    for word in ("9223372036854775808", "1.5", "T"):
        Path("b.extxyz").write_text(FRAME.replace("pbc=", f"mid={word} pbc="))
        code, text = call("convert", "b.extxyz", "b.bp", "--id-key", "mid", *LABELS)
        assert code == 1 and "b.extxyz: frame 0: 'mid' must be an integer from -2^63 to 2^63 - 1 to serve as id" in text
    Path("c.extxyz").write_text(FRAME.replace("pbc=", "mid=9223372036854775807 pbc="))
    assert call("convert", "c.extxyz", "c.bp", "--id-key", "mid", *LABELS)[0] == 0
    with open_structures("c.bp") as found:
        assert found.read(0, 1).id.tolist() == [2**63 - 1]


REFUSED = {
    "twice": (("a.extxyz", "./a.extxyz"), "a.extxyz is given twice"),
    "folder": (("a.extxyz", "."), "and so is a folder that holds it"),
    "charge": (("a.extxyz", "--charge", "nan"), "a total charge is a number, got --charge nan"),
    "spin": (("a.extxyz", "--spin", "1.5"), "a multiplicity 2S+1 is a whole number, got --spin 1.5"),
    "negative": (("a.extxyz", "--spin", "-1"), "a multiplicity 2S+1 is a whole number, got --spin -1"),
    "levels": (("a.extxyz", "--level-of-theory", "x=a", "--level-of-theory", "x=b"), "two levels of theory for x: 'a'"),
    "units": (("a.extxyz", "--unit", "energy=eV,real"), "stand alone; got 'energy=eV,real'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_cannot_be_meant(call: Call, name: str) -> None:
    Path("a.extxyz").write_text(FRAME)
    (source, *rest), words = REFUSED[name]
    others = [word for word in rest[:1] if not word.startswith("--")]
    code, text = call("convert", source, *others, "a.bp", *rest[len(others) :], *LABELS)
    assert code == 2
    assert text.startswith("error: ") and words in text and len(text.splitlines()) == 1
    assert not list(Path.cwd().glob("a.bp*"))


@pytest.mark.skipif(text_library() is None, reason="no compiled parser")
def test_the_first_of_what_is_left_out_is_named_where_nothing_is_left(call: Call) -> None:
    Path("a.extxyz").write_text(FRAME.replace("pos:R:3", "pos:R"))
    code, text = call("convert", "a.extxyz", "a.bp", *LABELS)
    assert code == 1
    assert "the first: a.extxyz: frame 0: " in text


def test_inspection_says_where_nothing_can_be_compared(call: Call) -> None:
    Path("a.extxyz").write_text(FRAME)
    assert "nothing there can be compared" in call("inspect", "a.extxyz")[1]


def test_a_single_energy_that_no_method_gives(call: Call) -> None:
    """Water in kcal/mol without the unit: 23 times the energy of all electrons; with it nothing is wrong."""
    words = "Properties=species:S:1:pos:R:3 e_kcal=-47956.2"
    Path("a.extxyz").write_text(f"3\n{words}\nO 0 0 0\nH 0 0 0.96\nH 0.93 0 -0.24\n")
    given = ("a.extxyz", "--energy-key", "e_kcal")
    code, text = call("inspect", *given)
    assert code == 0 and "does not fit: energies are 23" in text and "lower than any method gives" in text
    assert "lower than any method gives" in call("convert", given[0], "a.bp", *given[1:], *LABELS)[1]
    assert "does not fit" not in call("inspect", *given, "--unit", "energy=kcal/mol")[1]
