"""Input folders of VASP, Quantum ESPRESSO and CP2K: read back, they hold the structure, the level, charge and spin."""

import csv

import numpy as np
import pytest
from ase.build import bulk, fcc111, molecule
from ase.io import read, write
from pymatgen.core import Structure

from atomsieve.cli.main import run as run_command
from atomsieve.errors import AtomSieveError, UsageError
from atomsieve.followup.inputs.recipe import count_k_points
from atomsieve.followup.inputs.write import name_folder, write_inputs
from atomsieve.screen.results.record import open_results
from tests.helpers import tiny_gfm


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A screening of an oxide, a slab, a molecule without cell, and a magnetic cell with a stated multiplicity."""
    room = tmp_path_factory.mktemp("inputs")
    oxide = bulk("CuO", "rocksalt", a=4.3)
    slab = fcc111("Cu", (1, 1, 3), vacuum=6.0, a=3.7)
    flat = fcc111("Cu", (1, 1, 2), a=3.7)
    pair = molecule("O2")
    images = [oxide, slab, flat, pair, bulk("Cu", "fcc", a=3.7, cubic=True)]
    for k, atoms in enumerate(images):
        atoms.info["sid"] = f"set/{k} {'x' * k}"
    write(room / "in.extxyz", images)
    gfm = tiny_gfm(room / "gfm")
    arguments = ["run", str(room / "in.extxyz"), "-e", str(gfm), "--head", "metal", "--out", str(room / "results")]
    assert run_command("screen", [*arguments, "--quiet"]) == 0
    return open_results(room / "results")


def rows_of(results, *positions):
    return np.asarray(results.rows())[list(positions)]


def table(folder):
    return list(csv.DictReader((folder / "inputs.csv").read_text().splitlines()))


def test_vasp_folders_hold_structure_level_and_potentials_by_name(results, tmp_path):
    done = write_inputs(results, tmp_path / "out", rows_of(results, 0, 1, 3), "vasp", level="PBEsol, 500 eV")
    lines = table(tmp_path / "out")
    assert (done.folders, done.input_set) == (2, "MPRelaxSet")
    assert dict(done.skipped) == {"it has no cell, and VASP needs one": 1}
    assert lines[2]["folder"] == ""
    folder = tmp_path / "out" / lines[0]["folder"]
    assert lines[0]["folder"].startswith("0001_CuO_")
    assert sorted(p.name for p in folder.iterdir()) == ["INCAR", "KPOINTS", "POSCAR", "POTCAR.spec"]
    back = Structure.from_file(folder / "POSCAR")
    assert back.composition.reduced_formula == "CuO"
    assert back.volume == pytest.approx(4.3**3 / 4)
    incar = dict(line.split(" = ", 1) for line in (folder / "INCAR").read_text().splitlines() if " = " in line)
    assert (incar["GGA"].lower(), incar["ENCUT"], incar["LDAU"], incar["ISIF"]) == ("ps", "500.0", "False", "3")
    assert (folder / "POTCAR.spec").read_text().split() == ["Cu_pv", "O"]
    slab = (tmp_path / "out" / lines[1]["folder"] / "INCAR").read_text()
    assert "ISIF = 2" in slab
    assert "the cell is kept" in lines[1]["remarks"]


@pytest.mark.parametrize(
    ("level", "task", "said"),
    [
        ("PBE+U", "relax", ["NSW = 99", "ISIF = 3"]),
        ("PBE", "static", ["LDAU = False", "NSW = 0"]),
        ("r2SCAN", "relax", ["METAGGA = R2scan", "ISIF = 3"]),
        ("HSE06", "static", ["LHFCALC = True", "NSW = 0"]),
        ("PBE-D3(BJ)", "relax", ["IVDW = 12"]),
    ],
)
def test_each_level_has_its_own_settings(results, tmp_path, level, task, said):
    write_inputs(results, tmp_path / "out", rows_of(results, 0), "vasp", level=level, task=task)
    text = (next((tmp_path / "out").glob("0001_*")) / "INCAR").read_text()
    for line in said:
        assert line in text, text
    assert ("LDAU = False" in text) == (level in ("PBE", "PBE-D3(BJ)"))


def test_espresso_reads_its_own_input_back(results, tmp_path):
    done = write_inputs(results, tmp_path / "out", rows_of(results, 0, 1), "qe", level="PBE")
    first, second = sorted((tmp_path / "out").glob("000*"))
    back = read(first / "pw.in", format="espresso-in")
    assert sorted(back.get_chemical_symbols()) == ["Cu", "O"]
    assert back.get_volume() == pytest.approx(4.3**3 / 4, rel=1e-6)
    text = (first / "pw.in").read_text()
    for word in ("'vc-relax'", "'pbe'", "Cu.upf", "nspin", "K_POINTS automatic"):
        assert word in text
    assert "'relax'" in (second / "pw.in").read_text()
    divisions = (second / "pw.in").read_text().split("K_POINTS automatic")[1].split()[:3]
    assert divisions == ["13", "13", "1"]
    assert any("pseudo" in remark for remark in done.remarks)


def test_cp2k_input_is_readable_and_takes_molecules(results, tmp_path):
    from pymatgen.io.cp2k.inputs import Cp2kInput

    write_inputs(results, tmp_path / "out", rows_of(results, 0, 3), "cp2k", level="PBEsol", task="static")
    crystal, _ = (Cp2kInput.from_file(p / "cp2k.inp") for p in sorted((tmp_path / "out").glob("000*")))
    force = crystal["FORCE_EVAL"]["DFT"]
    assert {"GGA_X_PBE_SOL", "GGA_C_PBE_SOL"} <= set(force["XC"]["XC_FUNCTIONAL"].subsections)
    assert "KPOINTS" in force.subsections
    text = next((tmp_path / "out").glob("0002_*/cp2k.inp")).read_text()
    assert "PERIODIC NONE" in text


def test_charge_and_multiplicity_are_in_the_files_or_named(tmp_path):
    from pymatgen.core import Lattice

    from atomsieve.followup.inputs.cp2k import CP2K
    from atomsieve.followup.inputs.espresso import ESPRESSO
    from atomsieve.followup.inputs.recipe import Job
    from atomsieve.followup.inputs.vasp import VASP
    from atomsieve.structures.level_of_theory import read_level

    cell = Structure(Lattice.cubic(4.3), ["Cu", "O"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    job = Job(cell, np.ones(3, bool), read_level("PBE"), "relax", 1.0, 3.0)
    texts, said = {}, {}
    for code, name in ((VASP, "INCAR"), (ESPRESSO, "pw.in"), (CP2K, "cp2k.inp")):
        folder = tmp_path / code.title.replace(" ", "")
        folder.mkdir()
        said[code.title] = " ".join(code.write(job, folder))
        texts[code.title] = " ".join((folder / name).read_text().split())
    assert "NUPDOWN = 2" in texts["VASP"]
    assert "NELECT" in said["VASP"]
    assert "tot_charge = 1.0" in texts["Quantum ESPRESSO"]
    assert "tot_magnetization = 2" in texts["Quantum ESPRESSO"]
    assert "CHARGE 1" in texts["CP2K"]
    assert "MULTIPLICITY 3" in texts["CP2K"]


def test_names_of_folders_are_safe_and_k_points_follow_the_spacing():
    assert name_folder(3, "CuO", "a/b c:*") == "0003_CuO_a_b_c"
    assert name_folder(3, "CuO", "../" + "x" * 500) == "0003_CuO_" + "x" * 80
    cell = np.diag([2 * np.pi, 4 * np.pi, 10.0])
    assert count_k_points(cell, np.array([True, True, False]), 0.25) == (4, 2, 1)


def test_wrong_calls_are_refused(results, tmp_path):
    row = rows_of(results, 0)
    for named, said in (
        ({}, "made up"),  # the level of the head
        ({"level": "PBE and SCAN"}, "several functionals"),
        ({"level": "B3LYP"}, "VASP has no input for B3LYP here"),
        ({"level": "CCSD(T)"}, "no density functional"),
        ({"level": "PBE", "task": "md"}, "allowed: relax, static"),
        ({"level": "PBE", "head": "organics"}, "allowed: metal"),
    ):
        with pytest.raises(UsageError, match=said.replace("(", r"\(")):
            write_inputs(results, tmp_path / "out", row, "vasp", **named)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="allowed: cp2k, qe, vasp"):
        write_inputs(results, tmp_path / "out", row, "abinit", level="PBE")
    (tmp_path / "mine").mkdir()
    with pytest.raises(AtomSieveError, match="no folder of inputs"):
        write_inputs(results, tmp_path / "mine", row, "vasp", level="PBE", overwrite=True)


def test_the_command(results, tmp_path, capsys):
    folder, out = str(results.folder.path), str(tmp_path / "out")
    assert run_command("screen", ["export", folder, out, "--top", "3", "--for", "vasp", "--level", "PBE"]) in (0, 3)
    assert "MPRelaxSet, PBE" in capsys.readouterr().out
    for arguments, said in (
        (["--for", "vasp", "--level", "PBE"], "choose rows by --top"),
        (["--top", "3", "--for", "vasp"], "name one with --level"),
        (["--top", "3", "--level", "PBE"], "--level goes with --for"),
        (["--top", "3", "--for", "vasp", "--level", "PBE"], "--overwrite replaces it"),
        (["--top", "3", "--for", "vasp", "--as", "cif"], "exclude each other"),
    ):
        assert run_command("screen", ["export", folder, out, *arguments]) in (1, 2)
        assert said in capsys.readouterr().err
