"""Records of databases in JSON: structures, labels and their units, told by the keys of the records."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from monty.json import MontyEncoder
from pymatgen.core import Lattice, Molecule, Structure
from pymatgen.entries.computed_entries import ComputedStructureEntry
from pymatgen.io.ase import AseAtomsAdaptor

from atomsieve.errors import DataError
from atomsieve.structures import SourceInfo, StructureBatch, open_structures
from atomsieve.structures.conversion.convert import ConvertOptions, ConvertReport, Input, convert
from atomsieve.structures.labels import LabelKeys
from atomsieve.structures.units import Units
from tests.structures.block_checks import assert_same_geometry, read_all, rows_of

FILES = Path(__file__).parents[2] / "files" / "records"
KBAR = 1e8 / 1.6021766208e-19 * 1e-30
"""eV/Angstrom^3."""
SALT = Structure(Lattice.from_parameters(5, 6, 7, 80, 95, 110), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.4, 0.6]])
FORCES = [[0.1, 0.2, 0.3], [-0.1, -0.2, -0.3]]


def write(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value, cls=MontyEncoder))
    return path


def take(path: Path, **options: Any) -> tuple[StructureBatch, ConvertReport]:
    out = path.parent / "out.bp"
    report = convert([Input(path, SourceInfo("x", "PBE"))], out, ConvertOptions(overwrite=True, **options))
    with open_structures(out) as reader:
        return reader.read(0, len(reader)), report


def bad_of(path: Path) -> list[tuple[str, str]]:
    return [(bad.reason, bad.detail) for block in read_all(path, "json") for _, bad in block.bad]


# -- MatPES, MPtrj, Matbench-Discovery ---------------------------------------------------------------------------------


def test_matpes_stress_in_its_unit_order_and_sign(tmp_path: Path) -> None:
    """The tensor of a rhombohedral crystal is symmetric about its three-fold axis; one order of six makes it so."""
    path = tmp_path / "matpes.json.gz"
    path.write_bytes((FILES / "matpes_pbe_elements.json.gz").read_bytes())
    batch, report = take(path)
    with gzip.open(path) as file:
        records = list(json.load(file).values())
    assert batch.energy is not None and batch.forces is not None and batch.stress is not None
    assert batch.energy.tolist() == [record["energy"] for record in records]
    np.testing.assert_array_equal(batch.forces, np.concatenate([record["forces"] for record in records]))
    for k, record in enumerate(records):
        xx, yy, zz, yz, xz, xy = (-KBAR * x for x in record["stress"])
        np.testing.assert_allclose(batch.stress[k], [[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]], rtol=1e-12)
    assert batch.stress[0].trace() < 0, "argon below its equilibrium volume in PBE is under compression"
    for k in (1, 2):
        axis = batch.cell[k].sum(axis=0) / np.linalg.norm(batch.cell[k].sum(axis=0))
        along = axis @ batch.stress[k] @ axis
        across = (batch.stress[k].trace() - along) / 2
        expected = across * np.eye(3) + (along - across) * np.outer(axis, axis)
        np.testing.assert_allclose(batch.stress[k], expected, atol=1e-7)
    assert batch.charge is not None and batch.charge.tolist() == [0, 0, 0]
    assert any(key[2] == "MatPES" for key in report.tally.found.units)
    row = rows_of(read_all(path, "json"))[1]
    assert (row["entry"], row["matpes_id"]) == ("As", records[1]["matpes_id"])
    np.testing.assert_array_equal(row["magmom"], [0.0, 0.0])


@pytest.mark.parametrize("spelled", [list, np.array], ids=["lists", "monty"])
def test_a_record_of_unknown_origin(tmp_path: Path, spelled: Any) -> None:
    """Forces are taken. The unit, order and sign of a stress are stated nowhere: it is named, and taken where told."""
    record = {"structure": SALT.as_dict(), "energy": -11.5, "forces": spelled(FORCES), "stress": spelled([1.0] * 6)}
    path = write(tmp_path / "x.json", [record])
    batch, report = take(path)
    assert batch.energy is not None and batch.energy.tolist() == [-11.5]
    np.testing.assert_array_equal(batch.forces, FORCES)
    assert batch.stress is None or not batch.has_stress.any()
    assert ("stress_as_given", "6 numbers") in report.tally.found.left
    batch, _ = take(path, keys=LabelKeys(stress="stress_as_given"), units=Units(stress="GPa", stress_sign=-1))
    np.testing.assert_allclose(batch.stress[0], -10 * KBAR * np.ones((3, 3)), rtol=1e-12)


def mptrj_frame(energy: float) -> dict[str, Any]:
    return {
        "structure": SALT.as_dict(),
        "uncorrected_total_energy": energy,
        "corrected_total_energy": energy - 1,
        "energy_per_atom": (energy - 1) / 2,
        "ef_per_atom": -0.5,
        "force": FORCES,
        "stress": np.diag([10.0, 20.0, 30.0]).tolist(),
        "magmom": None,
        "bandgap": 0.3,
        "mp_id": "mp-1",
    }


def test_mptrj(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atomsieve.structures.formats.records import stream

    monkeypatch.setattr(stream, "BLOCK", 100)
    frames = {"mp-1": {"mp-1-0-0": mptrj_frame(-5.0), "mp-1-0-1": mptrj_frame(-6.0)}, "mp-2": {"t": mptrj_frame(-7.0)}}
    path = write(tmp_path / "x.json", frames)
    batch, report = take(path)
    assert batch.energy is not None and batch.energy.tolist() == [-5, -6, -7], "as calculated, without corrections"
    np.testing.assert_array_equal(batch.forces, FORCES * 3)
    np.testing.assert_allclose(batch.stress, [-KBAR * np.diag([10.0, 20.0, 30.0])] * 3, rtol=1e-12)
    assert any(key[0] == "corrected_total_energy" for key in report.tally.found.left)
    rows = rows_of(read_all(path, "json"))
    assert [row["entry"] for row in rows] == ["mp-1-0-0", "mp-1-0-1", "t"]
    assert rows[1]["where"] == f"{path}: entry mp-1 mp-1-0-1"


@pytest.mark.parametrize("orient", ["columns", "records", "lines"])
def test_tables_of_matbench_discovery(tmp_path: Path, orient: str) -> None:
    names = [f"wbm-1-{k}" for k in range(12)]
    entries = [
        ComputedStructureEntry(SALT, -16.5 - k, correction=-1.0, entry_id=n).as_dict() for k, n in enumerate(names)
    ]
    table = {"material_id": names, "computed_structure_entry": entries, "e_form_per_atom_wbm": [0.1] * 12}
    rows = [{key: column[k] for key, column in table.items()} for k in range(12)]
    value: Any = rows if orient == "records" else "\n".join(json.dumps(row) for row in rows)
    if orient == "columns":
        value = {key: {str(k): one for k, one in enumerate(column)} for key, column in table.items()}
    path = write(tmp_path / "x.json", value)
    batch, _ = take(path)
    assert batch.energy is not None and batch.energy.tolist() == [-16.5 - k for k in range(12)]
    found = rows_of(read_all(path, "json"))
    assert [row["material_id"] for row in found] == names
    assert {row["e_form_per_atom_wbm"] for row in found} == {0.1}


# -- JARVIS, OPTIMADE, ASE ---------------------------------------------------------------------------------------------


def jarvis_atoms(cartesian: bool) -> dict[str, Any]:
    return {
        "lattice_mat": SALT.lattice.matrix.tolist(),
        "coords": (SALT.cart_coords if cartesian else SALT.frac_coords).tolist(),
        "elements": ["Na", "Cl"],
        "abc": list(SALT.lattice.abc),
        "angles": list(SALT.lattice.angles),
        "cartesian": cartesian,
        "props": ["", ""],
    }


@pytest.mark.parametrize("cartesian", [True, False])
def test_jarvis_energies_per_atom_are_told(tmp_path: Path, cartesian: bool) -> None:
    record = {
        "jid": "JVASP-1",
        "atoms": jarvis_atoms(cartesian),
        "total_energy": -3.5,
        "forces": FORCES,
        "stresses": [0] * 6,
    }
    path = write(tmp_path / "id_prop.json", [record])
    batch, report = take(path)
    np.testing.assert_allclose(batch.positions, SALT.cart_coords, atol=1e-12)
    assert batch.pbc.all() and (batch.energy is None or not batch.has_energy.any())
    np.testing.assert_array_equal(batch.forces, FORCES)
    assert any("--unit energy=eV/atom" in note for note in report.tally.notes)
    batch, _ = take(path, keys=LabelKeys(energy="total_energy"), units=Units(energy="eV/atom"))
    assert batch.energy is not None and batch.energy.tolist() == [-7.0]
    np.testing.assert_array_equal(batch.forces, FORCES)


def test_optimade_structures(tmp_path: Path) -> None:
    found = rows_of(read_all(FILES / "optimade.json", "json"))
    expected = json.loads((FILES / "optimade.json").read_text())
    assert len(found) == 2
    for row, one in zip(found, expected, strict=True):
        np.testing.assert_array_equal(row["positions"], one["cartesian_site_positions"])
        np.testing.assert_array_equal(row["cell"], one["lattice_vectors"])
        assert row["pbc"].all()
    slab = {
        "cartesian_site_positions": [[0, 0, 0], [0, 0, 1]],
        "lattice_vectors": [[3, 0, 0], [0, 3, 0], [None, None, None]],
        "dimension_types": [1, 1, 0],
        "nperiodic_dimensions": 2,
        "species_at_sites": ["a", "O"],
        "species": [
            {"name": "a", "chemical_symbols": ["Mg"], "concentration": [1.0]},
            {"name": "O", "chemical_symbols": ["O"], "concentration": [1.0]},
        ],
    }
    shared = {"name": "a", "chemical_symbols": ["Mg", "vacancy"], "concentration": [0.7, 0.3]}
    holes = {**slab, "species": [shared, slab["species"][1]]}  # type: ignore[index]
    unknown = {**slab, "species_at_sites": ["X", "O"]}
    open_axes = {key: value for key, value in slab.items() if key != "dimension_types"}
    data = [
        {"id": str(k), "type": "structures", "attributes": a} for k, a in enumerate((slab, holes, unknown, open_axes))
    ]
    path = write(tmp_path / "x.json", {"links": {"next": None}, "data": data, "meta": {"data_returned": 4}})
    (row,) = rows_of(read_all(path, "json"))
    assert row["numbers"].tolist() == [12, 8] and row["pbc"].tolist() == [True, True, False] and row["id"] == "0"
    assert row["cell"][2].tolist() == [0, 0, 0]
    assert bad_of(path) == [
        ("partly occupied sites", "site 0 is Mg: 0.7, vacancy: 0.3"),
        ("a site that is no element", "site 0 is X"),
        ("periodicity is not stated", "neither dimension_types nor nperiodic_dimensions of 0 or 3"),
    ]


def test_ase_json_database(tmp_path: Path) -> None:
    images = [bulk("Cu"), Atoms("H2", [[0, 0, 0], [0, 0, 0.74]])]
    for k, image in enumerate(images):
        image.calc = SinglePointCalculator(
            image, energy=-1.5 - k, forces=np.full((len(image), 3), 0.5), stress=[0.1] * 6
        )
    path = tmp_path / "x.json"
    with connect(path) as db:
        for image in images:
            db.write(image, key_value_pairs={"charge": 2}, data={"spin": 3})
    found = rows_of(read_all(path, "json"))
    assert len(found) == 2
    for k, (row, image) in enumerate(zip(found, images, strict=True)):
        assert_same_geometry(row, image)
        assert (row["energy"], row["charge"], row["spin"], row["entry"]) == (-1.5 - k, 2, 3, str(k + 1))
        np.testing.assert_array_equal(row["forces"], np.full((len(image), 3), 0.5))
        np.testing.assert_array_equal(row["stress"], [0.1] * 6)


def test_ase_atoms_as_pymatgen_keeps_them(tmp_path: Path) -> None:
    atoms = bulk("Cu")
    path = write(tmp_path / "x.json", {"atoms": AseAtomsAdaptor.get_atoms(SALT).as_dict(), "energy": -2.0})
    (row,) = rows_of(read_all(path, "json"))
    np.testing.assert_allclose(row["positions"], SALT.cart_coords, atol=1e-12)
    assert row["energy"] == -2.0 and row["pbc"].all() and atoms.pbc.all()


# -- charges and sites -------------------------------------------------------------------------------------------------


def test_a_property_of_sites_is_no_total_charge(tmp_path: Path) -> None:
    ions = SALT.copy(site_properties={"charge": [0.9, -0.9]})
    one = Structure(Lattice.cubic(3), ["Fe"], [[0, 0, 0]], site_properties={"charge": [1.5]})
    batch, report = take(write(tmp_path / "x.json", [ions.as_dict(), one.as_dict()]))
    assert batch.charge is None or np.isnan(batch.charge).all() or batch.charge.tolist() == [0, 0]
    assert not report.tally.skipped
    np.testing.assert_array_equal(rows_of(read_all(tmp_path / "x.json", "json"))[0]["charge"], [0.9, -0.9])


@pytest.mark.filterwarnings("ignore:Structure charge")
def test_sums_of_oxidation_states(tmp_path: Path) -> None:
    """Cu6Au8 with Cu 8/3+ and Au 2-: pymatgen writes the residue of the sum as the charge. Of the two other structures
    one lacks a cation, which is no charge either; the last one is given a total charge."""
    alloy = Structure(Lattice.cubic(6), ["Cu"] * 6 + ["Au"] * 8, np.random.default_rng(0).random((14, 3)))
    alloy.add_oxidation_state_by_element({"Cu": 8 / 3, "Au": -2})
    lacking = Structure(Lattice.cubic(6), ["Li+", "O2-"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    given = Structure(Lattice.cubic(6), ["Li", "O"], [[0, 0, 0], [0.5, 0.5, 0.5]], charge=-1)
    ion = Molecule(["O", "H"], [[0, 0, 0], [0, 0, 1]], charge=-1, spin_multiplicity=1)
    batch, report = take(write(tmp_path / "x.json", [s.as_dict() for s in (alloy, lacking, given, ion)]))
    assert batch.charge is not None
    np.testing.assert_array_equal(batch.charge, [np.nan, np.nan, -1, -1])
    assert any("sum of oxidation states" in note for note in report.tally.notes)


@pytest.mark.filterwarnings("ignore:Structure charge")
def test_two_values_of_a_charge_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", [{"structure": SALT.copy().set_charge(1).as_dict(), "charge": 2}, SALT.as_dict()])
    assert bad_of(path) == [("two values of charge", "the structure states 1, the record 2")]


def test_sites_that_are_no_single_atom(tmp_path: Path) -> None:
    sites = [
        {"species": [{"element": name, "occu": occupied}], "xyz": [0, 0, 0]}
        for name, occupied in (("X0+", 1), ("Fe", 0.5), ("Vac", 1), ("D", 1), ("Fe2+", 1))
    ]
    path = write(tmp_path / "x.json", [{"sites": [sites[4], site]} for site in sites])
    assert bad_of(path) == [
        ("a site that is no element", "site 1 is X0+"),
        ("partly occupied sites", "site 1 is Fe: 0.5"),
        ("a site that is no element", "site 1 is Vac"),
    ]
    blocks = read_all(path, "json")
    assert [row["numbers"].tolist() for row in rows_of(blocks)] == [[26, 1], [26, 26]]
    assert blocks[0].notes == {"deuterium or tritium is taken as hydrogen": 1}


# -- bad input ---------------------------------------------------------------------------------------------------------

SITE = '{"species": [{"element": "Fe", "occu": 1}], "xyz": [0, 0, 0]}'
ONE = f'{{"sites": [{SITE}]}}'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"[{ONE}, {ONE[:-5]}", "is not complete JSON"),
        (f"[{ONE} {ONE}]", r"is not JSON: ']' is expected at character 76"),
        (f"[{ONE}, {{'sites': 1}}]", "is not JSON: Expecting property name"),
        (f"[{ONE}, " + "[" * 200_000, "nested too deeply"),
        (f"[{ONE}, {'9' * 6000}]", "is not JSON: Exceeds the limit"),
        ('{"a": 1}', "is not a structure, or a record with one: its keys are a"),
        ("5", "is not a structure, or a record with one: a int"),
        (f'{{"structure": {ONE}, "initial_structure": {ONE}', "is not complete JSON"),
    ],
)
def test_text_that_is_no_json_is_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path / "x.json", text)
    with pytest.raises(DataError, match=words) as caught:
        read_all(path, "json")
    assert "\n" not in str(caught.value)


def test_elements_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    text = f"""[{ONE}, {{"sites": [], "sites": [{SITE}]}}, {{"sites": 5}}, 7,
        {{"final_structure": {ONE}, "initial_structure": {ONE}}}, {{"sites": [{{"species": [], "xyz": [0, 0, 0]}}]}},
        {{"sites": [{SITE.replace("0, 0, 0", "NaN, 0, 0")}]}},
        {{"sites": [{SITE.replace("0, 0, 0", "0, 0")}]}}, {ONE}]"""
    path = write(tmp_path / "x.json", text)
    assert bad_of(path)[:1] == [("a key twice in one object", "'sites'")]
    assert [reason for reason, _ in bad_of(path)] == [
        "a key twice in one object",
        "not readable (TypeError)",
        "no structure",
        "several structures in one record",
        "partly occupied sites",
        "not readable (ValueError)",
    ]
    batch, report = take(path)
    assert len(batch) == 2 and report.tally.skipped["positions or cell are not finite"] == 1


def test_a_gzip_file_that_was_cut_short(tmp_path: Path) -> None:
    whole = gzip.compress(f"[{', '.join([ONE] * 500)}]".encode())
    (tmp_path / "x.json.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        read_all(tmp_path / "x.json.gz", "json")


def test_a_missing_bracket_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atomsieve.structures.formats.records import stream

    monkeypatch.setattr(stream, "LARGEST_VALUE", 10_000)
    monkeypatch.setattr(stream, "BLOCK", 1000)
    path = write(tmp_path / "x.json", f'[{ONE}, {{"sites": [{", ".join([SITE] * 1000)}')
    with pytest.raises(DataError, match="one value has more than 10,000 characters"):
        read_all(path, "json")
