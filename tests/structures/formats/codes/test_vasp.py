"""Outputs of VASP: values against those that the files state."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from atomsieve.errors import DataError
from atomsieve.structures.formats import find_files
from atomsieve.structures.labels import LabelKeys
from tests.structures.formats.codes.reading import FILES, labels_of, read_all

KBAR = 6.241509e-4  # eV/Angstrom^3

SCSTEP = """<scstep><energy><i name="e_fr_energy">{free}</i><i name="e_wo_entrp">0</i>
<i name="e_0_energy">{zero}</i></energy></scstep>"""


def calculation(energy: float, x: float, steps: list[tuple[float, float]]) -> str:
    """One ionic step of Ti (with semi-core states) and O; the energies of its electronic steps in pairs."""
    return f"""<calculation>
{"".join(SCSTEP.format(free=free, zero=zero) for free, zero in steps)}
<structure><crystal><varray name="basis"><v>4 0 0</v><v>1 3 0</v><v>0 0 5</v></varray></crystal>
<varray name="positions"><v>{x} 0 0</v><v>0.5 0.5 0.5</v></varray></structure>
<varray name="forces"><v>1 2 3</v><v>-1 -2 -3</v></varray>
<varray name="stress"><v>10 1 2</v><v>1 20 3</v><v>2 3 30</v></varray>
<energy><i name="e_fr_energy">{energy}</i><i name="e_wo_entrp">0</i><i name="e_0_energy">999</i></energy>
<eigenvalues><array><set><r>1</r></set></array></eigenvalues>
</calculation>
"""


def vasprun(*calculations: str, electrons: float = 9.0) -> str:
    """A vasprun.xml as VASP 6 lays it out, in the elements that matter here."""
    return f"""<?xml version="1.0" encoding="ISO-8859-1"?>
<modeling><generator><i name="program" type="string">vasp </i></generator>
<parameters><i name="NELECT">{electrons}</i><i type="int" name="NELM">3</i><i name="EDIFF">0.0001</i></parameters>
<atominfo><array name="atoms"><set><rc><c>Ti</c><c>1</c></rc><rc><c>O </c><c>2</c></rc></set></array>
<array name="atomtypes"><set><rc><c>1</c><c>Ti</c><c>47.9</c><c>4</c><c>PAW</c></rc>
<rc><c>1</c><c>O </c><c>16</c><c>6</c><c>PAW</c></rc></set></array></atominfo>
<structure name="initialpos"><crystal><varray name="basis"><v>4 0 0</v><v>1 3 0</v><v>0 0 5</v></varray></crystal>
<varray name="positions"><v>0 0 0</v><v>0.5 0.5 0.5</v></varray></structure>
{"".join(calculations)}</modeling>
"""


DONE = [(-9.0, -9.5), (-10.0, -10.5)]


def test_vasprun_of_a_run_with_pressure_takes_the_energy_of_outcar() -> None:
    items, bad = read_all(FILES / "vasprun_diamond.xml")
    assert len(items) == 1 and not bad
    found = labels_of(items)
    # e_0_energy and e_fr_energy of the last electronic step; those of the ionic step include 1 kbar times the volume
    assert found.values["energy"][0] == pytest.approx(-20.24720095, abs=2e-8)
    free = labels_of(items, LabelKeys(energy="free_energy")).values["energy"][0]
    assert free == pytest.approx(-20.24695937, abs=2e-8)
    np.testing.assert_allclose(found.values["stress"][0], np.eye(3) * 165.99562580 * KBAR, rtol=1e-6)
    assert found.values["charge"][0] == 0
    np.testing.assert_allclose(items[0].positions[1], [1.785 / 2] * 3)
    assert items[0].numbers.tolist() == [6, 6] and items[0].pbc.all()


def test_vasprun_gives_every_ionic_step_with_its_labels(tmp_path: Path) -> None:
    path = tmp_path / "vasprun.xml"
    path.write_text(vasprun(calculation(-20.0, 0.0, DONE), calculation(-21.0, 0.1, DONE), electrons=9.0))
    items, bad = read_all(path)
    assert [item.where for item in items] == [f"{path}: ionic step 1", f"{path}: ionic step 2"] and not bad
    found = labels_of(items)
    np.testing.assert_allclose(found.values["energy"], [-20.5, -21.5])
    np.testing.assert_allclose(found.values["forces"][:2], [[1, 2, 3], [-1, -2, -3]])
    np.testing.assert_allclose(
        found.values["stress"][0], -KBAR * np.array([[10, 1, 2], [1, 20, 3], [2, 3, 30]]), rtol=1e-6
    )
    np.testing.assert_allclose(items[1].positions, [[0.4, 0, 0], [2.5, 1.5, 2.5]])
    assert found.values["charge"].tolist() == [1, 1] and items[0].numbers.tolist() == [22, 8]


def test_steps_of_vasprun_that_did_not_converge_are_marked(tmp_path: Path) -> None:
    path = tmp_path / "vasprun.xml"
    drifting = [(-9.0, -9.0), (-9.5, -9.5), (-10.0, -10.0)]
    in_time = [(-9.0, -9.0), (-10.0, -10.0), (-10.00001, -10.00001)]
    path.write_text(vasprun(*(calculation(-20.0, 0.0, steps) for steps in (DONE, drifting, in_time, []))))
    items, bad = read_all(path)
    assert [item.where[-1] for item in items] == ["1", "3"]
    assert [(one.reason, one.where[-1]) for one in bad] == [
        ("the electronic steps did not converge", "2"),
        ("no electronic steps: predicted by a force field that VASP learned", "4"),
    ]
    assert "3 electronic steps of NELM 3, the last changed the energy by 0.5 eV" in bad[0].detail
    kept, _ = read_all(path, keep_unconverged=True)
    assert [item.where[-1] for item in kept] == ["1", "2", "3"]


def test_vasprun_of_a_job_that_was_killed_gives_its_whole_steps(tmp_path: Path) -> None:
    text = vasprun(calculation(-20.0, 0.0, DONE), calculation(-21.0, 0.1, DONE))
    path = tmp_path / "vasprun.xml.gz"
    path.write_bytes(gzip.compress(text[: text.rindex("<eigenvalues>")].encode()))
    items, bad = read_all(path)
    assert len(items) == 1
    assert [(one.reason, one.where) for one in bad] == [("the file ends within a structure", f"{path}: ionic step 2")]


@pytest.mark.parametrize("text", ["<html><body/></html>", "no XML at all", ""])
def test_another_file_is_no_vasprun(tmp_path: Path, text: str) -> None:
    path = tmp_path / "vasprun.xml"
    path.write_text(text)
    with pytest.raises(DataError, match=r"is no (whole )?vasprun\.xml"):
        read_all(path)


def test_outcar_gives_both_energies_forces_and_stress() -> None:
    items, bad = read_all(FILES / "OUTCAR_Ni18")
    assert len(items) == 1 and not bad
    found = labels_of(items)
    assert found.values["energy"][0] == -68.23102426  # energy(sigma->0)
    assert labels_of(items, LabelKeys(energy="free_energy")).values["energy"][0] == -68.22868532  # TOTEN
    np.testing.assert_allclose(found.values["forces"][1], [-0.455659, 1.097145, 0.261504])
    xx, yy, zz, xy, yz, zx = KBAR * np.array([4.29429, 4.58894, 4.50342, -0.50047, 0.94049, -0.36481])
    np.testing.assert_allclose(found.values["stress"][0], [[xx, xy, zx], [xy, yy, yz], [zx, yz, zz]], rtol=1e-5)
    assert found.values["charge"][0] == 0 and items[0].numbers.tolist() == [28] * 18
    np.testing.assert_allclose(items[0].cell, np.eye(3) * 17.93435)


def test_steps_of_outcar_are_told_apart_and_marked(tmp_path: Path) -> None:
    text = (FILES / "OUTCAR_Ni18").read_text()
    head, begin, body = text.partition("----------------------------------------- Iteration")
    step = begin + body
    drifting = step.replace("because EDIFF is reached", "EDIFF was not reached (unconverged)")
    path = tmp_path / "OUTCAR"
    path.write_text(head.replace("180.0000 ", "178.0000 ") + step + drifting + step.replace("-68.23102426", "-70.0"))
    items, bad = read_all(path)
    assert labels_of(items).values["energy"].tolist() == [-68.23102426, -70.0]
    assert labels_of(items).values["charge"].tolist() == [2, 2]
    assert [(one.reason, one.where[-1]) for one in bad] == [("the electronic steps did not converge", "2")]
    path.write_text(head + step + step[: step.index("POSITION")])
    items, bad = read_all(path)
    assert len(items) == 1 and bad[0].reason == "the file ends within a structure"
    path.write_text("something else\n" * 100)
    with pytest.raises(DataError, match="is it another kind of file"):
        read_all(path)


XDATCAR = """unknown system
   2.0
     1.5    0.0    0.0
     0.0    2.0    0.0
     0.5    0.0    2.5
   Ti_sv   O
   1   2
Direct configuration=     1
   0.0 0.0 0.0
   0.5 0.5 0.5
   0.25 0.0 0.0
Direct configuration=     2
   0.1 0.0 0.0
   0.5 0.5 0.5
   0.25 0.0 0.0
"""


def test_xdatcar_gives_positions_of_fixed_and_of_changing_cells(tmp_path: Path) -> None:
    path = tmp_path / "XDATCAR"
    path.write_text(XDATCAR + XDATCAR.replace("   2.0\n", "   4.0\n").replace("unknown", "another"))
    items, bad = read_all(path)
    assert len(items) == 4 and not bad
    assert items[0].numbers.tolist() == [22, 8, 8]
    np.testing.assert_allclose(items[1].positions, [[0.3, 0, 0], [2, 2, 2.5], [0.75, 0, 0]])
    np.testing.assert_allclose(items[3].positions, 2 * items[1].positions)
    path.write_text(XDATCAR[: XDATCAR.rindex("0.5 0.5 0.5")])
    items, bad = read_all(path)
    assert len(items) == 1 and bad[0].where == f"{path}: ionic step 2"
    path.write_text("\n".join(["some text"] * 50))
    with pytest.raises(DataError, match="XDATCAR"):
        read_all(path)


STARS, LINE, DASHES = "*" * 50, "=" * 50, "-" * 50


def ml_ab(*configurations: str, count: int | None = None) -> str:
    """A file as VASP 6 writes it, by its documented layout."""
    head = [
        ("The number of configurations", str(count or len(configurations))),
        ("The maximum number of atom type", "2"),
    ]
    head += [("The atom types in the data file", "Ti O"), ("Reference atomic energy (eV)", "0.0 0.0")]
    text = " 1.0 Version\n" + "".join(f"{STARS}\n     {title}\n{DASHES}\n       {value}\n" for title, value in head)
    return text + "".join(
        f"{STARS}\n     Configuration num.      {k}\n{one}" for k, one in enumerate(configurations, 1)
    )


def configuration(energy: float) -> str:
    sections = {
        "System name": "rutile",
        "The number of atom types": "2",
        "The number of atoms": "3",
        "Atom types and atom numbers": "Ti_sv  1\n     O      2",
        "CTIFOR": "  0.2",
        "Primitive lattice vectors (ang.)": "4.0 0.0 0.0\n0.0 5.0 0.0\n0.0 0.0 6.0",
        "Atomic positions (ang.)": "0.0 0.0 0.0\n1.0 1.5 2.0\n3.0 2.0 1.0",
        "Total energy (eV)": str(energy),
        "Forces (eV ang.^-1)": "0.1 0.2 0.3\n-0.1 -0.2 -0.3\n0.0 0.0 0.0",
        "Stress (kbar)": f"XX YY ZZ\n{DASHES}\n 1.0 2.0 3.0\n{DASHES}\n XY YZ ZX\n{DASHES}\n 4.0 5.0 6.0",
    }
    return "".join(f"{LINE}\n     {title}\n{DASHES}\n     {text}\n" for title, text in sections.items())


def test_ml_ab_gives_labels_in_the_order_and_sign_of_vasp(tmp_path: Path) -> None:
    path = tmp_path / "ML_ABN"
    path.write_text(ml_ab(configuration(-30.0), configuration(-31.0)))
    items, bad = read_all(path)
    assert len(items) == 2 and not bad
    found = labels_of(items)
    assert found.values["energy"].tolist() == [-30.0, -31.0]
    np.testing.assert_allclose(found.values["forces"][1], [-0.1, -0.2, -0.3])
    np.testing.assert_allclose(
        found.values["stress"][0], -KBAR * np.array([[1, 4, 6], [4, 2, 5], [6, 5, 3]]), rtol=1e-6
    )
    assert items[1].numbers.tolist() == [22, 8, 8]
    np.testing.assert_allclose(items[1].positions[2], [3, 2, 1])


def test_ml_ab_that_is_cut_off_or_short_of_what_it_announces(tmp_path: Path) -> None:
    path = tmp_path / "ML_AB"
    whole = ml_ab(configuration(-30.0), configuration(-31.0), count=3)
    path.write_text(whole[: whole.rindex("Forces") + 40])
    items, bad = read_all(path)
    assert len(items) == 1
    assert [one.reason for one in bad] == ["the file ends within a structure"] * 2
    path.write_text(ml_ab(configuration(-30.0).replace("1.0 1.5 2.0", "1.0 ***** 2.0"), configuration(-31.0)))
    items, bad = read_all(path)
    assert len(items) == 1 and bad[0].reason == "not readable" and "*****" in bad[0].detail


def test_a_folder_of_a_run_is_read_from_its_fullest_output(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("POSCAR", "CONTCAR", "XDATCAR", "OUTCAR", "vasprun.xml", "ML_AB", "INCAR", "POSCAR.other"):
        (tmp_path / name).write_text("x")
    found = {file.name: kind for file, kind in find_files(tmp_path)}
    assert found == {"vasprun.xml": "vasprun", "ML_AB": "ml_ab", "POSCAR.other": "poscar"}
    assert "4 files are left out" in caplog.text
    assert {file.name for file, _ in find_files(tmp_path, "outcar")} == {"OUTCAR"}
