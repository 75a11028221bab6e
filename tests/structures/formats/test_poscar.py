"""POSCAR, against ASE's reader; what is not certain is refused by name. Folders of one file per structure."""

from __future__ import annotations

import gzip
import io
from collections import Counter
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.constraints import FixAtoms

from atomsieve.errors import UsageError
from atomsieve.structures import StructureBatch, open_structures, write_structures
from atomsieve.structures.conversion.convert import ConvertOptions, Input, convert
from atomsieve.structures.export import Subset, export
from tests.structures.block_checks import assert_same_geometry, read_all, rows_of

LATTICE = "4 0 0.5\n0 5 0\n-1 0 6\n"
PLACES = "0 0 0\n0.5 0.25 0.125\n0.1 1.2 -0.3\n"


def read(path: Path, text: str) -> list[dict[str, Any]]:
    path.write_text(text)
    return rows_of(read_all(path, "poscar"))


def bad(path: Path, text: str) -> tuple[str, str]:
    path.write_text(text)
    ((_, one),) = [bad for block in read_all(path, "poscar") for bad in block.bad]
    return one.reason, one.detail


@pytest.mark.parametrize("scale", ["1.0", "2.5", "-120", "1.1 0.9 2.0"])
@pytest.mark.parametrize("mode", ["Direct", "Cartesian", "cart", "K", "d"])
@pytest.mark.parametrize("species", ["Ti O", "Ti_sv O_s/abc123"])
def test_the_same_as_ase(tmp_path: Path, scale: str, mode: str, species: str) -> None:
    text = f"title here\n {scale}\n{LATTICE}{species}\n1 2\nSelective dynamics\n{mode}\n"
    text += "".join(f"{line} T F T\n" for line in PLACES.splitlines()) + "\n0 0 0\n0.1 0.1 0.1\n0 0 0\n"
    (row,) = read(tmp_path / "POSCAR", text)
    assert_same_geometry(row, ase.io.read(io.StringIO(text), format="vasp"), atol=1e-14)
    assert row["title"] == "title here"


def test_what_ase_writes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for k in range(30):
        n = int(rng.integers(1, 12))
        atoms = Atoms(rng.integers(1, 99, n), rng.normal(size=(n, 3)), cell=rng.normal(size=(3, 3)) * 5, pbc=True)
        atoms.set_constraint(FixAtoms([0]))
        ase.io.write(tmp_path / "POSCAR", atoms, format="vasp", direct=bool(k % 2), sort=bool(k % 3))
        (row,) = rows_of(read_all(tmp_path / "POSCAR", "poscar"))
        assert_same_geometry(row, ase.io.read(tmp_path / "POSCAR"), atol=1e-13)


def test_compressed_and_fortran_numbers(tmp_path: Path) -> None:
    text = f"x\n1.0D+00\n{LATTICE}Cu\n3\nDirect\n{PLACES.replace('0.125', '1.25D-1')}"
    (tmp_path / "POSCAR.gz").write_bytes(gzip.compress(text.encode()))
    (row,) = rows_of(read_all(tmp_path / "POSCAR.gz", "poscar"))
    assert (row["positions"][1] @ np.linalg.inv(row["cell"]))[2] == pytest.approx(0.125)


def test_species_of_vasp_4(tmp_path: Path) -> None:
    """Without a line of species: those at the ends of the lines, or the words of the title, if these are certain."""
    path, counts = tmp_path / "POSCAR", f"1.0\n{LATTICE}1 2\nDirect\n"
    (row,) = read(path, f"Ti O\n{counts}{PLACES}")
    assert row["numbers"].tolist() == [22, 8, 8]
    named = "".join(f"{line} {name}\n" for line, name in zip(PLACES.splitlines(), ("Cu", "Au", "Au"), strict=True))
    (row,) = read(path, f"Ti O\n{counts}{named}")
    assert row["numbers"].tolist() == [29, 79, 79]
    for title in ("rutile", "Ti O O", "Ti1 O2", ""):
        reason, detail = bad(path, f"{title}\n{counts}{PLACES}")
        assert reason == "species are not named (VASP 4)" and "add a line of symbols" in detail
    mixed = named.replace("Au", "Ag", 1)
    assert bad(path, f"rutile\n{counts}{mixed}")[0] == "species are not named (VASP 4)"


REFUSED = {
    "few lines": ("a\n1\n2\n", "not a POSCAR"),
    "few atoms": (f"a\n1\n{LATTICE}Cu\n9\nDirect\n{PLACES}", "fewer coordinates than atoms"),
    "memory": (f"a\n1\n{LATTICE}Cu\n99999999999999\nDirect\n{PLACES}", "fewer coordinates than atoms"),
    "names": (f"a\n1\n{LATTICE}Cu Au\n3\nDirect\n{PLACES}", "species and counts differ in number"),
    "element": (f"a\n1\n{LATTICE}Xx\n3\nDirect\n{PLACES}", "a species that is no element"),
    "pseudo-hydrogen": (f"a\n1\n{LATTICE}H1.25\n3\nDirect\n{PLACES}", "a species that is no element"),
    "scale": (f"a\n0\n{LATTICE}Cu\n3\nDirect\n{PLACES}", "a scale that VASP does not take"),
    "scales": (f"a\n1 -1 1\n{LATTICE}Cu\n3\nDirect\n{PLACES}", "a scale that VASP does not take"),
    "lattice": (f"a\n1\n4 0\n{LATTICE}Cu\n3\nDirect\n{PLACES}", "a line that is no POSCAR"),
    "coordinates": (f"a\n1\n{LATTICE}Cu\n3\nDirect\n0 0 0\n*** 0 0\n0 0 0\n", "a line that is no POSCAR"),
    "counts": (f"a\n1\n{LATTICE}Cu\nthree\nDirect\n{PLACES}", "a line that is no POSCAR"),
    "rubbish": ("\x00\x01\n" * 20, "a line that is no POSCAR"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_by_name(tmp_path: Path, case: str) -> None:
    text, reason = REFUSED[case]
    assert bad(tmp_path / "POSCAR", text)[0] == reason


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    assert bad(tmp_path / "POSCAR", REFUSED["coordinates"][0]) == ("a line that is no POSCAR", "line 10: '*** 0 0'")


# -- folders of one file per structure ---------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path: Path) -> tuple[Path, StructureBatch]:
    """Twelve crystals of which one is a slab and one a molecule; the last two have the same id."""
    rng, n = np.random.default_rng(1), 12
    pbc = np.ones((n, 3), bool)
    pbc[4, 2], pbc[5] = False, False
    batch = StructureBatch(
        ptr=np.arange(0, 3 * n + 1, 3),
        numbers=rng.integers(1, 99, 3 * n).astype(np.uint8),
        positions=rng.normal(size=(3 * n, 3)) * 9,
        cell=np.eye(3) * 7 + rng.normal(size=(n, 3, 3)),
        pbc=pbc,
        id=np.array([*range(100, 100 + n - 1), 110]),
    )
    write_structures(tmp_path / "x.bp", batch)
    return tmp_path / "x.bp", batch


@pytest.mark.parametrize(("form", "ending"), [("poscar", ".vasp"), ("cif", ".cif")])
def test_folders_of_files(dataset: tuple[Path, StructureBatch], tmp_path: Path, form: str, ending: str) -> None:
    path, batch = dataset
    out, reasons = tmp_path / "out", Counter[str]()
    with open_structures(path) as reader:
        assert export(reader, out, Subset(), form=form, reasons=reasons) == (10, 2)
        with pytest.raises(UsageError, match="exists"):
            export(reader, out, Subset(), form=form)
        assert export(reader, out, Subset(stop=3), form=form, overwrite=True) == (3, 0)
        assert len(list(out.iterdir())) == 3
        export(reader, out, Subset(), form=form, overwrite=True)
        (out / "notes.txt").write_text("mine")
        with pytest.raises(UsageError, match=r"holds notes.txt, which no export wrote"):
            export(reader, out, Subset(), form=form, overwrite=True)
        (out / "notes.txt").unlink()
        with pytest.raises(UsageError, match="unknown format of a folder of files 'db'"):
            export(reader, tmp_path / "other", Subset(), form="db")
    kept = [k for k in range(12) if batch.pbc[k].all()]
    assert reasons == {
        f"{form.upper()} cannot say that a structure has two periodic axes (a slab)": 1,
        f"{form.upper()} cannot say that a structure has no periodicity": 1,
    }
    names = [f"{batch.id[k]}" for k in kept[:-1]] + ["110_2"]
    assert sorted(p.name for p in out.iterdir()) == sorted(name + ending for name in names)
    for name, k in zip(names, kept, strict=True):
        atoms, (row,) = ase.io.read(out / (name + ending)), rows_of(read_all(out / (name + ending), form))
        given = batch.positions[3 * k : 3 * k + 3]
        np.testing.assert_array_equal(atoms.numbers, batch.numbers[3 * k : 3 * k + 3])
        if form == "poscar":
            np.testing.assert_allclose(row["positions"], given, atol=1e-12)
            np.testing.assert_allclose(row["cell"], batch.cell[k], atol=1e-14)
    report = convert([Input(out)], tmp_path / "back.bp", ConvertOptions())
    assert report.written == 10


def test_the_command_tells_why_structures_are_left_out(
    dataset: tuple[Path, StructureBatch], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from atomsieve.cli.main import run

    assert run("atomsieve", ["data", "export", str(dataset[0]), str(tmp_path / "out"), "--as", "cif"]) == 3
    text = " ".join(capsys.readouterr().out.split())
    assert "10 structures in" in text
    assert "skipped 1: CIF cannot say that a structure has two periodic axes (a slab)" in text


def test_numbers_of_lines_equal_those_read_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    from atomsieve.structures.formats import poscar

    rng = np.random.default_rng(3)
    words = [
        "1",
        "-0.0",
        "+.5",
        "1e-3",
        "1_0",
        "nan",
        "1.0D+00",
        "x",
        "",
        "0.1234567890123456789",
        "1\x1f2",
        "é",
        "1\xa02",
    ]
    head, refused = ["title", "1.0", "4 0 0", "0 4 0", "0 0 4", "Ti", "2", "Direct"], 0
    for _ in range(400):
        rows = [[repr(rng.normal()) if rng.random() < 0.8 else str(rng.choice(words)) for _ in range(4)] for _ in "ab"]
        text = "\n".join([*head, *(" \t"[rng.integers(2)].join(row) for row in rows)])
        found = []
        for library in (poscar.text_library, lambda: None):
            with monkeypatch.context() as patch:
                patch.setattr(poscar, "text_library", library)
                try:
                    found.append(poscar.parse_poscar(text, "x").positions.tobytes())
                except poscar.UnusableError as error:
                    found.append(str(error) + error.detail)
                    refused += 1
        assert found[0] == found[1], text
    assert 100 < refused < 700
