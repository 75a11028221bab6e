"""CIF: the atoms that its symmetry makes, against ASE and pymatgen; what it cannot say is refused by name."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter

from atomsieve.structures import StructureBatch, open_structures, write_structures
from atomsieve.structures.export import Subset, export
from tests.structures.block_checks import read_all, rows_of

CELL = (
    "".join(f"_cell_length_{x} 4\n" for x in "abc")
    + "_cell_angle_alpha 90\n_cell_angle_beta 90\n_cell_angle_gamma 90\n"
)
SITES = "loop_\n_atom_site_label\n_atom_site_type_symbol\n_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\n"
SALT = CELL + SITES + "Na1 Na+ 0 0 0\nCl1 Cl- 0.5 0.5 0.5\n"


def read(path: Path, text: str) -> list[dict[str, Any]]:
    path.write_text(text)
    return rows_of(read_all(path, "cif"))


def bad(path: Path, text: str) -> list[tuple[str, str]]:
    path.write_text(text)
    return [(one.reason, one.detail) for block in read_all(path, "cif") for _, one in block.bad]


def notes(path: Path) -> dict[str, int]:
    return read_all(path, "cif")[0].notes


def assert_same_crystal(row: dict[str, Any], atoms: Atoms, atol: float = 2e-3) -> None:
    """Fail unless the cells are equal and each atom lies on one of the same element, up to lattice vectors."""
    cell = np.asarray(atoms.cell)
    np.testing.assert_allclose(row["cell"] @ row["cell"].T, cell @ cell.T, atol=1e-5)  # oriented in one way or another
    assert sorted(row["numbers"]) == sorted(atoms.numbers)
    ours, theirs = row["positions"] @ np.linalg.inv(row["cell"]), atoms.positions @ np.linalg.inv(cell)
    for z in set(atoms.numbers.tolist()):
        apart = ours[row["numbers"] == z][:, None] - theirs[atoms.numbers == z][None]
        distance = np.linalg.norm((apart - np.round(apart)) @ row["cell"], axis=2)
        assert (distance.min(axis=0) < atol).all() and (distance.min(axis=1) < atol).all()
        assert len(set(distance.argmin(axis=0).tolist())) == distance.shape[1]


CRYSTALS = {
    "Fm-3m": ("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
    "P6_3/mmc": ("P6_3/mmc", Lattice.hexagonal(3.2, 5.2), ["Mg"], [[1 / 3, 2 / 3, 0.25]]),
    "R-3m": ("R-3m", Lattice.hexagonal(4.3, 11.2), ["Bi", "Se"], [[0, 0, 0.4], [0, 0, 0]]),
    "Fd-3m": ("Fd-3m", Lattice.cubic(8.1), ["Mg", "Al", "O"], [[0.125] * 3, [0.5] * 3, [0.2624] * 3]),
    "P2_1/c": ("P2_1/c", Lattice.monoclinic(5.1, 5.2, 5.3, 99.2), ["Zr", "O"], [[0.27, 0.04, 0.2], [0.07, 0.33, 0.34]]),
    "Pnma": ("Pnma", Lattice.orthorhombic(5.4, 7.6, 5.3), ["Ca", "Ti"], [[0.04, 0.25, 0.99], [0, 0, 0.5]]),
    "Ia-3d": ("Ia-3d", Lattice.cubic(12), ["Al", "Si"], [[0, 0, 0], [0.125, 0, 0.25]]),
    "P3_121": ("P3_121", Lattice.hexagonal(4.9, 5.4), ["Si", "O"], [[0.4697, 0, 1 / 3], [0.4135, 0.2669, 0.4524]]),
}


@pytest.mark.parametrize("name", CRYSTALS)
def test_symmetry_of_pymatgen(tmp_path: Path, name: str) -> None:
    structure = Structure.from_spacegroup(*CRYSTALS[name])
    path = tmp_path / "x.cif"
    CifWriter(structure, symprec=0.01).write_file(path)
    (row,) = rows_of(read_all(path, "cif"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_same_crystal(row, ase.io.read(path))
        assert_same_crystal(row, Structure.from_file(path).to_ase_atoms())


@pytest.mark.parametrize("group", [2, 14, 62, 123, 148, 166, 194, 216, 225, 229])
def test_groups_by_name_alone(tmp_path: Path, group: int) -> None:
    """The operators are left out: the Hermann-Mauguin name is all that is left."""
    lattice = {2: Lattice.from_parameters(5, 6, 7, 80, 95, 110), 14: Lattice.monoclinic(5, 6, 7, 100)}.get(group)
    lattice = lattice or (
        Lattice.orthorhombic(5, 6, 7)
        if group < 75
        else Lattice.tetragonal(5, 7)
        if group < 143
        else Lattice.hexagonal(5, 7)
        if group < 195
        else Lattice.cubic(6)
    )
    structure = Structure.from_spacegroup(group, lattice, ["Fe", "O"], [[0, 0, 0], [0.11, 0.29, 0.37]])
    writer = CifWriter(structure, symprec=0.01)
    (block,) = writer.cif_file.data.values()
    del block.data["_symmetry_equiv_pos_site_id"], block.data["_symmetry_equiv_pos_as_xyz"]
    block.loops = [loop for loop in block.loops if "_symmetry_equiv_pos_as_xyz" not in loop]
    (row,) = read(tmp_path / "x.cif", str(writer))
    assert len(row["numbers"]) == len(structure)


def test_what_ase_writes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = []
    for _ in range(20):
        n = int(rng.integers(1, 9))
        cell = np.eye(3) * 6 + rng.normal(size=(3, 3))
        images.append(Atoms(rng.integers(1, 99, n), scaled_positions=rng.uniform(-1, 2, (n, 3)), cell=cell, pbc=True))
    ase.io.write(tmp_path / "x.cif", images)
    found = rows_of(read_all(tmp_path / "x.cif", "cif"))
    assert [row["where"] for row in found][:2] == [str(tmp_path / "x.cif"), f"{tmp_path / 'x.cif'}: structure 1"]
    for row, atoms in zip(found, ase.io.read(tmp_path / "x.cif", ":"), strict=True):
        assert_same_crystal(row, atoms, atol=1e-9)


def test_operators_without_a_name(tmp_path: Path) -> None:
    path, single = tmp_path / "x.cif", "_symmetry_equiv_pos_as_xyz 'x,y,z'\n"
    looped = "loop_\n_space_group_symop_operation_xyz\nx,y,z\n-x,-y,-z\n"
    (row,) = read(path, f"data_a\n{single}{SALT}")
    assert row["numbers"].tolist() == [11, 17] and row["positions"].tolist() == [[0, 0, 0], [2, 2, 2]]
    (row,) = read(path, f"data_b\n{looped}{CELL}{SITES}Na1 Na 0.25 0.1 0.3\nCl1 Cl 0 0 0\n")
    assert row["numbers"].tolist() == [11, 11, 17], "Na2Cl: chlorine lies on the centre"
    np.testing.assert_allclose(row["positions"], [[1, 0.4, 1.2], [3, 3.6, 2.8], [0, 0, 0]], atol=1e-12)
    (row,) = read(path, f"data_c\n{SALT}")
    assert len(row["numbers"]) == 2
    assert notes(path) == {"no symmetry is stated: its sites are taken for all atoms of the cell": 1}


def test_positions_of_three_digits_meet(tmp_path: Path) -> None:
    """0.333 0.667 of a hexagonal crystal is 1/3 2/3: its images lie 0.01 Angstrom apart and are one atom."""
    cell = CELL.replace("gamma 90", "gamma 120").replace("_length_c 4", "_length_c 6")
    (row,) = read(
        tmp_path / "x.cif",
        f"data_a\n_symmetry_space_group_name_H-M 'P 63/m m c'\n{cell}{SITES}Mg1 Mg 0.333 0.667 0.25\n",
    )
    assert row["numbers"].tolist() == [12, 12]


def test_settings_that_are_left_open(tmp_path: Path) -> None:
    path, carbon = tmp_path / "x.cif", f"{CELL}{SITES}C1 C 0 0 0\n"
    name = "_symmetry_space_group_name_H-M 'F d -3 m'\n"
    refused = ("a space group with two origins", "F d -3 m: operators or the choice of origin are missing")
    assert bad(path, f"data_a\n{name}{carbon}") == [refused]
    for origin, count in ((1, 8), (2, 16)):
        code = f"_space_group_IT_coordinate_system_code {origin}\n"
        (row,) = read(path, f"data_a\n{name}{code}{carbon}")
        assert len(row["numbers"]) == count
    (row,) = read(path, f"data_a\n_symmetry_space_group_name_H-M 'F d -3 m :2'\n{carbon}")
    assert len(row["numbers"]) == 16
    assert bad(path, f"data_a\n_symmetry_space_group_name_H-M 'Q 1'\n{carbon}") == [("an unknown space group", "Q 1")]
    (row,) = read(path, f"data_a\n_space_group_IT_number 225\n{carbon}")
    assert len(row["numbers"]) == 4


HALF = SALT.replace("fract_z\n", "fract_z\n_atom_site_occupancy\n").replace("0.5 0.5 0.5", "0.5 0.5 0.5 1")
MACROMOLECULE = CELL + "loop_\n_atom_site.label_atom_id\n_atom_site.Cartn_x\nCA 1.0\n"
REFUSED = {
    "partial": (HALF.replace("0 0 0", "0 0 0 0.5"), ("partly occupied sites", "Na1 is occupied by 0.5")),
    "hydrogen": (SALT + "H1 H ? ? ?\n", ("atoms without positions", "H1")),
    "formula": ("_chemical_formula_sum 'Na Cl H2 O'\n" + SALT, ("atoms without positions", "hydrogen of Na Cl H2 O")),
    "dummy": (SALT + "X1 X 0 0 0.5\n", ("a site that is no element", "X1 is X")),
    "magnetic": ("loop_\n_space_group_symop_magn_operation.xyz\nx,y,z,+1\n" + SALT, ("magnetic CIF", None)),
    "modulated": ("_cell_modulation_dimension 1\n" + SALT, ("modulated structure", None)),
    "macromolecule": (MACROMOLECULE, ("macromolecular CIF (mmCIF)", None)),
    "no cell": (SALT.replace("_cell_length_b 4\n", ""), ("no cell", "_cell_length_b is missing or no number")),
    "flat cell": (SALT.replace("gamma 90", "gamma 0"), ("no cell", None)),
    "Cartesian": (SALT.replace("fract", "Cartn"), ("no fractional coordinates", None)),
    "operator": ("_symmetry_equiv_pos_as_xyz x,y,q\n" + SALT, ("an operator that cannot be read", None)),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_by_name(tmp_path: Path, case: str) -> None:
    text, (reason, detail) = REFUSED[case]
    ((found, told),) = bad(tmp_path / "x.cif", f"data_a\n{text}")
    assert found == reason
    assert told and (detail is None or told == detail)


def test_disorder_groups_of_full_occupancy(tmp_path: Path) -> None:
    text = SALT.replace("fract_z\n", "fract_z\n_atom_site_disorder_group\n")
    text = text.replace("0 0 0\n", "0 0 0 1\n").replace("0.5 0.5 0.5\n", "0.5 0.5 0.5 2\n")
    assert bad(tmp_path / "x.cif", f"data_a\n{text}") == [("disordered sites", "groups 1, 2")]


def test_symbols(tmp_path: Path) -> None:
    """Symbols with charges; labels where there are none; deuterium; the formula tells CL (chlorine) from carbon."""
    labels = SITES.replace("_atom_site_type_symbol\n", "")
    path = tmp_path / "x.cif"
    (row,) = read(path, f"data_a\n{CELL}{SITES}A1 Fe3+ 0 0 0\nB D 0.1 0 0\nC . 0.2 0 0\n")
    assert row["numbers"].tolist() == [26, 1, 6]
    assert "deuterium or tritium is taken as hydrogen" in next(iter(notes(path)))
    (row,) = read(path, f"data_a\n_chemical_formula_sum 'Cl Na O'\n{CELL}{labels}CL1 0 0 0\nNa1 0.1 0 0\nOW 0.2 0 0\n")
    assert row["numbers"].tolist() == [17, 11, 8]


def test_several_blocks_quotes_and_text_fields(tmp_path: Path) -> None:
    """Blocks without atoms are passed over; a text field may hold a line like a header; one bad block is one."""
    text = "data_global\n_a\n;\ndata_no\n;\n_journal_name 'it's \"one\"'\n"
    text += f"data_7\n{SALT}\ndata_y\n_symmetry_equiv_pos_as_xyz x,y,q\n{SALT}\ndata_z\n{SALT}"
    found = read(tmp_path / "x.cif", text)
    assert [row["name"] for row in found] == ["7", "z"] and found[0]["id"] == 7 and "id" not in found[1]
    assert [one[0] for one in bad(tmp_path / "x.cif", text)] == ["an operator that cannot be read"]


RUBBISH = ["", "data_", "data_x\nloop_\n_a\n_b\n1 2 3\n", "data_x\n_a 'b\n", "\x00\x01" * 9, "loop_ " * 9]


@pytest.mark.parametrize("text", RUBBISH)
def test_rubbish_is_one_bad_item(tmp_path: Path, text: str) -> None:
    assert len(bad(tmp_path / "x.cif", text)) == 1


def test_large_files_are_parsed_by_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atomsieve.structures.formats import cif

    monkeypatch.setattr(cif, "CHUNK", 300)
    text = "".join(f"data_{k}\n{SALT}" for k in range(40))
    assert [row["id"] for row in read(tmp_path / "x.cif", text)] == list(range(40))


def test_writing_keeps_distances_and_skips_slabs(tmp_path: Path) -> None:
    """CIF cannot state a slab: it is left out and counted, never made periodic."""
    rng = np.random.default_rng(1)
    n = 12
    cell = np.eye(3) * 7 + rng.normal(size=(n, 3, 3))
    positions = rng.normal(size=(3 * n, 3)) * 9
    pbc = np.ones((n, 3), bool)
    pbc[4, 2], pbc[5] = False, False
    batch = StructureBatch(
        ptr=np.arange(0, 3 * n + 1, 3), numbers=rng.integers(1, 99, 3 * n).astype(np.uint8), positions=positions,
        cell=cell, pbc=pbc, id=np.arange(100, 100 + n),
    )  # fmt: skip
    write_structures(tmp_path / "x.bp", batch)
    reasons: Counter[str] = Counter()
    with open_structures(tmp_path / "x.bp") as reader:
        assert export(reader, tmp_path / "x.cif", Subset(), reasons=reasons) == (n - 2, 2)
    assert reasons == {
        "CIF cannot say that a structure has two periodic axes (a slab)": 1,
        "CIF cannot say that a structure has no periodicity": 1,
    }
    found = rows_of(read_all(tmp_path / "x.cif", "cif"))
    kept = [k for k in range(n) if pbc[k].all()]
    assert [row["id"] for row in found] == [100 + k for k in kept]
    for row, k in zip(found, kept, strict=True):
        ours, given = row["positions"] - row["positions"][:1], positions[3 * k : 3 * k + 3] - positions[3 * k]
        np.testing.assert_allclose(ours @ ours.T, given @ given.T, atol=1e-8)
        np.testing.assert_allclose(row["cell"] @ row["cell"].T, cell[k] @ cell[k].T, atol=1e-8)


def test_real_crystals(shared_data: Path, tmp_path: Path) -> None:
    """Candidates of WBM, written with their symmetry by pymatgen."""
    images = ase.io.read(shared_data / "candidates" / "wbm_equilibrium.extxyz.gz", "::40")
    for k, image in enumerate(images):
        structure = Structure(Lattice(image.cell.array), image.get_chemical_symbols(), image.get_scaled_positions())
        path = tmp_path / f"{k}.cif"
        CifWriter(structure, symprec=0.01).write_file(path)
        (row,) = rows_of(read_all(path, "cif"))
        assert_same_crystal(row, ase.io.read(io.StringIO(path.read_text()), format="cif"), atol=5e-3)
