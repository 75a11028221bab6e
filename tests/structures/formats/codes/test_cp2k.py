"""Files of CP2K, in the layouts of its versions before 8, from 8 on, and from 2025 on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from atomsieve.errors import DataError
from atomsieve.structures.formats import find_files, find_format
from tests.structures.formats.codes.reading import labels_of, read_all
from tests.structures.formats.learning.samples import convert_and_read, convert_file

HARTREE, BOHR, GPA = 27.211386, 0.529177, 0.00624151
WATER = [("O", 0.0, 0.0, 0.1), ("H", 0.76, 0.0, -0.5), ("H", -0.76, 0.0, -0.5)]


def frame(step: int, energy: str, rows: list[tuple[str, float, float, float]] = WATER) -> str:
    lines = "".join(f"{s:>3}{x:20.10f}{y:20.10f}{z:20.10f}\n" for s, x, y, z in rows)
    return f"{len(rows):8d}\n i = {step:8d}, time = {step / 2:12.3f}, E = {energy:>20}\n{lines}"


def forces(scale: float) -> list[tuple[str, float, float, float]]:
    return [(s, scale * (k + 1), 0.0, -scale) for k, (s, *_) in enumerate(WATER)]


def test_energies_of_position_files_are_hartree(tmp_path: Path) -> None:
    path = tmp_path / "water-pos-1.xyz"
    path.write_text(frame(0, "-123.4") + frame(1, "-17.1643447508"))
    found = convert_and_read(path)
    assert found.energy is not None
    np.testing.assert_allclose(found.energy, [-3357.885, -17.1643447508 * HARTREE], rtol=1e-7)
    assert not found.pbc.any() and not found.cell.any()
    report = convert_file(path, tmp_path / "x.bp")
    assert [note for note in report.tally.notes if "states the cell" in note]
    other = tmp_path / "renamed.xyz"
    other.write_text(path.read_text())
    assert find_format(other) == "cp2k-xyz"
    other.write_text(path.read_text().replace(" i =", " image"))
    assert find_format(other) == "extxyz"


def test_forces_cells_and_periodicity_beside_the_positions_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "water-pos-1.xyz"
    path.write_text("".join(frame(k, f"-17.{k}") for k in range(0, 8, 2)))
    (tmp_path / "water-frc-1.xyz").write_text("".join(frame(k, "-17.0", forces(0.01 * k)) for k in (0, 1, 2, 4)))
    (tmp_path / "water-vel-1.xyz").write_text(frame(0, "-17.0"))
    cells = "".join(f"{k} 0.0 {10 + k} 0 0 1 9 0 0 0 8 720.0\n" for k in range(8))
    (tmp_path / "water-1.cell").write_text("#   Step   Time [fs]       Ax [Angstrom]\n" + cells)
    (tmp_path / "water-1.restart").write_text(
        "&SUBSYS\n  &CELL\n A 10 0 0\n B 1 9 0\n C 0 0 8\n PERIODIC XY\n &END CELL\n"
    )
    items, bad = read_all(path)
    assert not bad and [item.info["step"] for item in items] == [0, 2, 4, 6]
    found = labels_of(items)
    assert found.has["forces"].tolist() == [True, True, True, False]
    np.testing.assert_allclose(
        found.values["forces"][3:6] * BOHR / HARTREE, [[0.02, 0, -0.02], [0.04, 0, -0.02], [0.06, 0, -0.02]], rtol=1e-6
    )
    assert [item.cell[0, 0] for item in items] == [10, 12, 14, 16] and items[0].cell[1].tolist() == [1, 9, 0]
    assert items[0].pbc.tolist() == [True, True, False]
    assert [file.name for file, _ in find_files(tmp_path)] == [path.name]
    with pytest.raises(DataError, match=r"is read together with \*-pos-\*\.xyz \(cp2k-xyz\) beside it"):
        find_files(tmp_path / "water-frc-1.xyz")


@pytest.mark.parametrize(
    ("section", "diagonal", "pbc"),
    [
        ("ABC 5 6 7\nPERIODIC NONE", (5, 6, 7), "FFF"),
        ("ABC [bohr] 10.0 10.0 20.0\n", (5.29177, 5.29177, 10.58354), "TTT"),
        ("A 5 0 0\nB 0 6 0\nC 0 0 7\nPERIODIC Z # a wire", (5, 6, 7), "FFT"),
        ("ABC ${A} ${A} ${A}", (0, 0, 0), "FFF"),
    ],
)
def test_the_cell_of_an_input_holds_for_all_frames(
    tmp_path: Path, section: str, diagonal: tuple[float, ...], pbc: str
) -> None:
    path = tmp_path / "water-pos-1.xyz"
    path.write_text(frame(0, "-17.0"))
    (tmp_path / "water.inp").write_text(f"&FORCE_EVAL\n&SUBSYS\n&CELL\n{section}\n&END CELL\n&END SUBSYS\n")
    (item,), _ = read_all(path)
    np.testing.assert_allclose(np.diag(item.cell), diagonal, rtol=1e-5)
    assert "".join("FT"[int(flag)] for flag in item.pbc) == pbc


def test_the_cell_of_a_topology_holds_for_all_frames(tmp_path: Path) -> None:
    path = tmp_path / "water-pos-1.xyz"
    path.write_text(frame(0, "-17.0") + frame(1, "-17.1"))
    topology = tmp_path / "start.extxyz"
    topology.write_text('1\nLattice="4 0 0 0 5 0 0 0 6" Properties=species:S:1:pos:R:3\nH 0 0 0\n')
    found = convert_and_read(path, topology=topology)
    np.testing.assert_allclose(found.cell[1], np.diag([4, 5, 6]))
    assert found.pbc.all()


def test_broken_position_files(tmp_path: Path) -> None:
    path = tmp_path / "water-pos-1.xyz"
    good = frame(0, "-17.0")
    path.write_text(good + frame(1, "********") + frame(2, "-17.2").replace("0.1", "abc") + good[:-30])
    items, bad = read_all(path)
    assert len(items) == 1
    assert [one.where.split()[-1] for one in bad] == ["1", "2", "3"]
    assert bad[2].reason == "the file ends within a structure" and "********" in bad[0].detail
    path.write_text("some text\n")
    with pytest.raises(DataError, match="position file of CP2K"):
        read_all(path)


HEAD = """ CP2K| version string:                                        CP2K version {version}
 CELL_REF| Vector a [angstrom]:       1.000     0.000     0.000    |a| =       1.000
 CELL| Vector a [angstrom]:       6.000     0.000     0.000    |a| =       6.000
 CELL| Vector b [angstrom]:       0.000     7.000     0.000    |b| =       7.000
 CELL| Vector c [angstrom]:       1.000     0.000     8.000    |c| =       8.062
 {periodic}
 DFT| Multiplicity                                                             2
 DFT| Charge                                                                   1

 MODULE QUICKSTEP:  ATOMIC COORDINATES IN {angstrom}

  Atom  Kind  Element       X           Y           Z          Z(eff)       Mass

       1     1 O    8    0.000000    0.000000    0.100000      6.00      15.9994
       2     2 H    1    0.760000    0.000000   -0.500000      1.00       1.0079
       3     2 H    1   -0.760000    0.000000   -0.500000      1.00       1.0079


"""
FORCES_8 = """ ATOMIC FORCES in [a.u.]

 # Atom   Kind   Element          X              Y              Z
      1      1      O           0.01000000     0.00000000     0.02000000
      2      2      H          -0.00500000     0.00000000    -0.01000000
      3      2      H          -0.00500000     0.00000000    -0.01000000
 SUM OF ATOMIC FORCES           0.00000000     0.00000000     0.00000000     0.00000000

"""
FORCES_2025 = """ FORCES| Atomic forces [hartree/bohr]
 FORCES|   Atom     x               y               z               |f|
 FORCES|      1  1.00000000E-02  0.00000000E+00  2.00000000E-02   2.23606798E-02
 FORCES|      2 -5.00000000E-03  0.00000000E+00 -1.00000000E-02   1.11803399E-02
 FORCES|      3 -5.00000000E-03  0.00000000E+00 -1.00000000E-02   1.11803399E-02
 FORCES| Sum     0.00000000E+00  0.00000000E+00  0.00000000E+00
"""
STRESS = """ STRESS| Analytical stress tensor [GPa]
 STRESS|                        x                   y                   z
 STRESS|      x        1.37382515001E-01   3.90453773469E-02  -3.90586881497E-02
 STRESS|      y        3.90453773469E-02   1.37453715622E-01   3.90638959674E-02
 STRESS|      z       -3.90586881497E-02   3.90638959674E-02   1.37635963266E-01
 STRESS| 1/3 Trace                                             1.37490731296E-01
"""
STRESS_7 = """ STRESS TENSOR [GPa]

            X               Y               Z
  X       0.13738251      0.03904537     -0.03905868
  Y       0.03904537      0.13745371      0.03906389
  Z      -0.03905868      0.03906389      0.13763596
"""
ENERGY = " ENERGY| Total FORCE_EVAL ( QS ) energy {unit}              -17.164344750800000\n"


@pytest.mark.parametrize(
    "text",
    [
        HEAD.format(version="7.1", periodic="POISSON| Periodicity   XY", angstrom="angstrom")
        + ENERGY.format(unit="(a.u.):")
        + FORCES_8
        + STRESS_7,
        HEAD.format(version="9.1", periodic="POISSON| Periodicity   XY", angstrom="ANGSTROM")
        + ENERGY.format(unit="[a.u.]:")
        + FORCES_8
        + STRESS,
        HEAD.format(version="2025.2", periodic="CELL| Periodicity      XY", angstrom="ANGSTROM")
        + ENERGY.format(unit="[hartree]")
        + FORCES_2025
        + STRESS,
    ],
    ids=["7", "9", "2025"],
)
def test_outputs_of_every_generation(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.out"
    path.write_text(text)
    assert find_format(path) == "cp2k"
    (item,), bad = read_all(path)
    found = labels_of([item])
    assert not bad and found.values["energy"][0] == pytest.approx(-17.1643447508 * HARTREE, rel=1e-7)
    np.testing.assert_allclose(found.values["forces"][0] * BOHR / HARTREE, [0.01, 0, 0.02], rtol=1e-5)
    # CP2K counts pressure as positive, as its calculator in ASE has it
    np.testing.assert_allclose(found.values["stress"][0, 0] / -GPA, [0.13738251, 0.03904537, -0.03905868], rtol=1e-5)
    assert (found.values["charge"][0], found.values["spin"][0]) == (1, 2)
    assert item.cell.tolist() == [[6, 0, 0], [0, 7, 0], [1, 0, 8]] and item.pbc.tolist() == [True, True, False]
    np.testing.assert_allclose(item.positions[1], [0.76, 0, -0.5])


def test_later_steps_and_unconverged_ones_of_an_output(tmp_path: Path) -> None:
    path = tmp_path / "run.out"
    head = HEAD.format(version="2025.2", periodic="CELL| Periodicity  NONE", angstrom="ANGSTROM")
    step = ENERGY.format(unit="[hartree]") + FORCES_2025
    path.write_text(head + " *** WARNING in qs_scf.F:586 :: SCF run NOT converged ***\n" + step + step)
    items, bad = read_all(path)
    assert not items
    assert [one.reason.split(":")[0] for one in bad] == [
        "the electronic steps did not converge",
        "CP2K does not print the positions of this step",
    ]
    (item,), bad = read_all(path, keep_unconverged=True)
    assert len(bad) == 1 and not item.pbc.any()
    path.write_text(head + step[: step.index(" FORCES|      3")])
    items, bad = read_all(path)
    assert not items and (bad[0].reason, bad[0].detail) == ("the file ends within a structure", "2 forces of 3 atoms")
    path.write_text(head)
    assert read_all(path)[1][0].reason == "the file ends within a structure"
