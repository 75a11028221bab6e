"""Outputs of codes that ASE parses step by step: values against those that the files state."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import ulm
from ase.io.trajectory import write_atoms

from atomsieve.errors import DataError
from atomsieve.structures.block import build_block
from atomsieve.structures.formats import find_format
from tests.structures.formats.codes.reading import FILES, labels_of, read_all

HARTREE, BOHR, KBAR = 27.211386, 0.529177, 6.241509e-4
RYDBERG = HARTREE / 2
SPECIES = """
     atomic species   valence    mass     pseudopotential
        Si             4.00    28.08600     Si( 1.00)

"""
UNCONVERGED = "the electronic steps did not converge"
ENDS_WITHIN = "the file ends within a structure"


# -- Quantum ESPRESSO --------------------------------------------------------------------------------------------------


def test_pw_gives_every_step_in_this_package_s_units() -> None:
    path = FILES / "espresso_silicon.out"
    assert find_format(path) == "espresso"
    items, bad = read_all(path)
    assert len(items) == 3 and not bad
    found = labels_of(items)
    stated = [float(row) for row in re.findall(r"^! +total energy += +(\S+) Ry", path.read_text(), re.MULTILINE)]
    np.testing.assert_allclose(found.values["energy"], np.array(stated) * RYDBERG, rtol=1e-7)
    # pw.x counts pressure as positive: 433.16, 133.81 and 134.46 kbar
    np.testing.assert_allclose(found.values["stress"][:, 0, 0] / -KBAR, [433.16, 133.81, 134.46], rtol=5e-5)
    np.testing.assert_allclose(items[0].cell[0], 7.255773 * BOHR * np.array([0, 0.707107, 0.707107]), rtol=1e-6)
    np.testing.assert_allclose(items[2].cell[0], [0, 2.914861274, 2.914861274])
    np.testing.assert_allclose(items[1].positions[1], [1.4574306371] * 3)


def test_pw_charges_forces_and_unconverged_steps(tmp_path: Path) -> None:
    path = tmp_path / "pw.out"
    text = (FILES / "espresso_silicon.out").read_text()
    first, second, third = text.split("CELL_PARAMETERS")
    text = first.replace("=         8.00", "=         7.00").replace("     site n. ", SPECIES + "     site n. ")
    text = text.replace("1   force =     0.00000000", "1   force =     0.01000000", 1)
    second = second.replace("convergence has been achieved in   7", "convergence NOT achieved after   7")
    path.write_text("CELL_PARAMETERS".join([text, second, third]))
    items, bad = read_all(path)
    found = labels_of(items)
    assert found.values["charge"].tolist() == [1, 1]
    assert found.values["forces"][0, 0] == pytest.approx(0.01 * RYDBERG / BOHR, rel=2e-6)
    assert [(one.reason, one.where[-1]) for one in bad] == [(UNCONVERGED, "2")]
    assert len(read_all(path, keep_unconverged=True)[0]) == 3
    path.write_text("CELL_PARAMETERS".join([text, third[: third.index("Forces acting")]]))
    items, bad = read_all(path)
    assert len(items) == 1 and (bad[0].reason, bad[0].detail) == (ENDS_WITHIN, "no forces")


def test_pw_runs_in_one_file_and_final_coordinates(tmp_path: Path) -> None:
    """A relaxation repeats its last structure without calculating it: no structure more."""
    path = tmp_path / "pw.out"
    first, second, _ = (FILES / "espresso_silicon.out").read_text().split("CELL_PARAMETERS")
    final = (
        "Begin final coordinates\nCELL_PARAMETERS" + second[: second.index("!")] + "End final coordinates\nJOB DONE.\n"
    )
    path.write_text((first + final) * 2)
    items, bad = read_all(path)
    assert len(items) == 2 and not bad
    with pytest.raises(DataError, match=r"no ionic step of pw\.x"):
        read_all(FILES / "lammps_metal.dump", "espresso")


# -- FHI-aims ----------------------------------------------------------------------------------------------------------


def test_aims_gives_molecules_without_a_cell() -> None:
    path = FILES / "aims_water_md.out"
    items, bad = read_all(path, "aims")
    stated = [float(row) for row in re.findall(r"Electronic free energy +: +(-0\.\d+E\+04) eV", path.read_text())]
    steps = list(dict.fromkeys(stated))[1:]  # each is printed twice; the first one did not converge
    np.testing.assert_allclose(labels_of(items).values["energy"], steps)
    assert len(items) == 3 and [one.reason for one in bad] == [ENDS_WITHIN]
    assert not items[0].pbc.any() and not items[0].cell.any() and items[0].numbers.tolist() == [8, 1, 1]
    np.testing.assert_allclose(labels_of(items).values["forces"][0, :2], [-0.481289206, -0.615051287], rtol=1e-8)
    assert items[0].labels["energy_corrected"] == items[0].labels["energy"]


def test_aims_gives_steps_of_a_relaxing_crystal(tmp_path: Path) -> None:
    items, bad = read_all(FILES / "aims_silicon.out", "aims")
    found = labels_of(items)
    np.testing.assert_allclose(found.values["energy"], [-15747.6651322907, -15747.8216496768, -15748.0426628815])
    np.testing.assert_allclose(found.values["stress"][0], np.eye(3) * 0.0774892, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(items[1].cell[0], [0, 2.85968266, 2.85968266])
    assert items[0].pbc.all() and [one.reason for one in bad] == [ENDS_WITHIN]
    text = (FILES / "aims_silicon.out").read_text()
    held = tmp_path / "held.out"
    at = text.index("  | Number of Kohn-Sham")
    held.write_text(
        "Invoking FHI-aims ...\n"
        + text[:at]
        + "  Found relaxation constraint for atom      1: All coordinates fixed.\n"
        + text[at:]
    )
    assert find_format(held) == "aims"
    items, _ = read_all(held)
    assert "forces" not in items[0].labels and "constrained_forces" in items[0].labels
    assert "constraints" in next(iter(build_block(items).notes))
    held.write_text(text.replace("Self-consistency cycle converged.", "Self-consistency cycle not converged."))
    items, bad = read_all(held, "aims")
    assert not items and [one.reason for one in bad] == [UNCONVERGED] * 3 + [ENDS_WITHIN]


# -- GPAW --------------------------------------------------------------------------------------------------------------

GPAW_HEAD = """
  ___ ___ ___ _ _ _
 |   |   |_  | | | |
 | | | | | . | | | |
 |__ |  _|___|_____|  21.1.0
 |___|_|

Densities:
  Coarse grid: 32*32*32 grid
  Total Charge: 1.000000
"""
GPAW_STEP = """
Reference energy: -26313.685229

Positions:
   0 Al     0.000000    0.000000    0.100000    ( 0.0000,  0.0000,  0.0000)

Unit cell:
           periodic     x           y           z      points  spacing
  1. axis:    yes    4.050000    0.000000    0.000000    21     0.1929
  2. axis:    yes    0.000000    4.050000    0.000000    21     0.1929
  3. axis:    no     0.000000    0.000000    4.050000    21     0.1929

{convergence}

Energy contributions relative to reference atoms: (reference = -26313.685229)

Kinetic:        +23.028630
Entropy (-ST):   -0.381921
--------------------------
Free energy:    -10.229926
Extrapolated:   -10.038965

Forces in eV/Ang:
  0 Al    0.10000    0.20000   -0.30000
"""


def test_gpaw_gives_both_energies_and_the_charge(tmp_path: Path) -> None:
    """The layout is that of the tests of ASE, which GPAW 21.1 wrote."""
    path = tmp_path / "gpaw.txt"
    step = GPAW_STEP.format(convergence="Converged after 14 iterations.")
    path.write_text(GPAW_HEAD + step + GPAW_STEP.format(convergence="Did not converge!") + step)
    assert find_format(path) == "gpaw"
    items, bad = read_all(path)
    found = labels_of(items)
    assert found.values["energy"].tolist() == [-10.038965] * 2
    assert [item.labels["free_energy"] for item in items] == [-10.229926] * 2
    assert found.values["forces"].tolist() == [[0.1, 0.2, -0.3]] * 2 and found.values["charge"].tolist() == [1, 1]
    assert items[0].pbc.tolist() == [True, True, False] and items[0].cell[0, 0] == 4.05
    assert [(one.reason, one.where[-1]) for one in bad] == [(UNCONVERGED, "2")]
    path.write_text(GPAW_HEAD + step + step[: step.index("Forces")])
    items, bad = read_all(path)
    assert len(items) == 1 and (bad[0].reason, bad[0].detail) == (ENDS_WITHIN, "no forces")
    with pytest.raises(DataError, match="no ionic step of GPAW"):
        read_all(FILES / "lammps_metal.dump", "gpaw")


# -- ORCA --------------------------------------------------------------------------------------------------------------

ORCA_HEAD = """
                                 *****************
                                 * O   R   C   A *
                                 *****************

 Total Charge           Charge          ....   -1
 Multiplicity           Mult            ....    2
"""
ORCA_STEP = """
---------------------------------
CARTESIAN COORDINATES (ANGSTROEM)
---------------------------------
  O     0.0000000    0.0000000    0.0000000
  H     1.0000000    0.0000000    0.0000000
  H     0.0000000    1.0000000    0.0000000

Number of atoms                             ...      3

{scf}

-------------------------   --------------------
FINAL SINGLE POINT ENERGY       {energy}
-------------------------   --------------------

------------------
CARTESIAN GRADIENT
------------------

   1   O   :   -0.047131485   -0.047131485    0.0000000001
   2   H   :    0.025621056    0.021510429    0.0000000000
   3   H   :    0.021510429    0.025621056   -0.0000000001

"""


def test_orca_gives_every_step_with_charge_and_multiplicity(tmp_path: Path) -> None:
    """The layout is that of ORCA 5, as in the tests of ASE."""
    path = tmp_path / "orca.out"
    cycle = "                *            ORCA GEOMETRY RELAXATION STEP                  *\n"
    good = ORCA_STEP.format(
        scf="               *        SCF CONVERGED AFTER  12 CYCLES          *", energy="-76.4224362012"
    )
    poor = ORCA_STEP.format(scf="", energy="-76.5000 (SCF not fully converged!)")
    end = "                             ****ORCA TERMINATED NORMALLY****\nTOTAL RUN TIME: 0 days\n"
    path.write_text(ORCA_HEAD + good + cycle + poor + cycle + good + end)
    assert find_format(path) == "orca"
    items, bad = read_all(path)
    found = labels_of(items)
    np.testing.assert_allclose(found.values["energy"], [-76.4224362012 * HARTREE] * 2, rtol=1e-7)
    np.testing.assert_allclose(found.values["forces"][1] * BOHR / HARTREE, [-0.025621056, -0.021510429, 0], rtol=1e-5)
    assert found.values["charge"].tolist() == [-1, -1] and found.values["spin"].tolist() == [2, 2]
    assert not items[0].cell.any() and not items[0].pbc.any()
    assert [(one.reason, one.where[-1]) for one in bad] == [(UNCONVERGED, "2")]
    kept, _ = read_all(path, keep_unconverged=True)
    assert labels_of(kept).values["energy"][1] == pytest.approx(-76.5 * HARTREE, rel=1e-7)
    path.write_text(ORCA_HEAD + good + cycle + good[: good.index("FINAL")])
    items, bad = read_all(path)
    assert len(items) == 1 and [(one.reason, one.where[-1]) for one in bad] == [(ENDS_WITHIN, "2")]
    with pytest.raises(DataError, match="no ionic step of ORCA"):
        read_all(FILES / "lammps_metal.dump", "orca")


# -- CASTEP ------------------------------------------------------------------------------------------------------------


def test_castep_gives_every_step(tmp_path: Path) -> None:
    path = FILES / "castep_md.castep"
    assert find_format(path) == "castep"
    items, bad = read_all(path)
    found = labels_of(items)
    assert found.values["energy"].tolist() == [-1351.300206072, -1351.298793468, -1351.294716003] and not bad
    assert found.values["charge"].tolist() == [0, 0, 0] and found.has["stress"].tolist() == [False, False, True]
    row = next(line for line in path.read_text().splitlines() if re.match(r" \*  x  ", line))
    in_gpa = [float(word) for word in row.split()[2:5]]
    np.testing.assert_allclose(found.values["stress"][2, 0], np.array(in_gpa) * 0.00624151, rtol=1e-6)
    np.testing.assert_allclose(items[0].cell, np.eye(3) * 5.43)
    other = tmp_path / "x.castep"
    other.write_text(path.read_text() + "SCF cycles performed but system has not reached the groundstate\n")
    assert [one.reason for one in read_all(other)[1]] == [UNCONVERGED] * 3
    with pytest.raises(DataError, match="no ionic step of CASTEP"):
        read_all(FILES / "lammps_metal.dump", "castep")


# -- GPAW, restart files -----------------------------------------------------------------------------------------------


def write_gpw(path: Path, tag: str = "gpaw", converged: bool = True) -> None:
    """A file with the parts of one that GPAW writes, by the writer that GPAW uses."""
    atoms = Atoms("Al", cell=[4.05, 4.05, 8.0], pbc=[True, True, False])
    with ulm.Writer(str(path), tag=tag) as writer:
        writer.write(version=4, ha=27.211386, bohr=0.529177)
        write_atoms(writer.child("atoms"), atoms)
        forces, stress = np.array([[0.1, 0.2, 0.3]]), np.arange(6.0)
        writer.child("results").write(energy=-10.0, free_energy=-10.2, forces=forces, stress=stress)
        writer.child("parameters").write(charge=1.0)
        writer.child("scf").write(converged=converged)


def test_gpw_gives_the_results_of_its_structure(tmp_path: Path) -> None:
    path = tmp_path / "al.gpw"
    write_gpw(path)
    (item,), bad = read_all(path)
    found = labels_of([item])
    assert not bad and found.values["energy"].tolist() == [-10.0] and found.values["charge"].tolist() == [1]
    assert found.values["forces"].tolist() == [[0.1, 0.2, 0.3]] and item.labels["free_energy"] == -10.2
    assert found.values["stress"][0].tolist() == [[0, 5, 4], [5, 1, 3], [4, 3, 2]]
    assert item.pbc.tolist() == [True, True, False] and item.numbers.tolist() == [13]
    write_gpw(path, converged=False)
    assert [one.reason for one in read_all(path)[1]] == [UNCONVERGED]
    write_gpw(path, tag="other")
    with pytest.raises(DataError, match="it was written as 'other'"):
        read_all(path)
    path.write_bytes(b"junk" * 100)
    with pytest.raises(DataError, match=r"is no \.gpw file"):
        read_all(path)
