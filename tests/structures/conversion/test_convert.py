"""Conversion: every format gives what ASE or pymatgen read from it; what is left out is counted with a reason."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import re
import zlib
from collections.abc import Iterable
from pathlib import Path

import ase.db
import ase.io
import lmdb
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.trajectory import Trajectory
from rich.console import Console

from atomsieve.errors import DataError, UsageError
from atomsieve.native import text_library
from atomsieve.structures import SourceInfo, StructureBatch, open_structures
from atomsieve.structures.conversion.convert import ConvertOptions, ConvertReport, Input, convert
from atomsieve.structures.conversion.split import Split, format_reduced_formula
from atomsieve.structures.formats import find_format
from atomsieve.structures.labels import LabelKeys

SOURCE = SourceInfo("a", "PBE")


def labelled(atoms: Atoms, seed: int, *, stress: bool = True) -> Atoms:
    rng = np.random.default_rng(seed)
    atoms = atoms.copy()
    atoms.rattle(0.1, seed=seed)
    results = {"energy": float(rng.normal()) * 100, "forces": rng.normal(size=(len(atoms), 3))}
    if stress:
        results["stress"] = rng.normal(size=6)
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


@pytest.fixture
def images() -> list[Atoms]:
    salt = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    made = [bulk("Cu"), salt, molecule("CH3CH2OH"), bulk("Fe", cubic=True), molecule("H2O", vacuum=4.0)]
    made[4].pbc = [True, False, True]
    return [labelled(atoms, k) for k, atoms in enumerate(made)]


def run(path: Path | list[Path], out: Path, source: SourceInfo | None = SOURCE, **options: object) -> ConvertReport:
    paths = path if isinstance(path, list) else [path]
    return convert([Input(p, source) for p in paths], out, ConvertOptions(overwrite=True, **options))  # type: ignore[arg-type]


def read(path: Path) -> StructureBatch:
    with open_structures(path) as reader:
        return reader.read(0, len(reader)).validate()


def same(found: StructureBatch, images: Iterable[Atoms], tolerance: float = 0.0) -> None:
    expected = StructureBatch.from_ase(images)
    assert np.array_equal(found.counts, expected.counts)
    assert np.array_equal(found.numbers, expected.numbers)
    assert np.array_equal(found.pbc, expected.pbc)
    for name in ("positions", "cell", "energy", "forces", "stress"):
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None) == (b is None), name
        if b is not None:
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance, err_msg=name)
    for name in ("has_energy", "has_forces", "has_stress"):
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None and b is None) or np.array_equal(a, b), name


# -- every format ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.extxyz", "x.xyz.gz"])
def test_extxyz(tmp_path: Path, images: list[Atoms], name: str) -> None:
    ase.io.write(tmp_path / name, images, format="extxyz")
    report = run(tmp_path / name, tmp_path / "o.bp")
    same(read(tmp_path / "o.bp"), ase.io.read(tmp_path / name, ":", format="extxyz"))
    assert report.written == 5
    assert report.tally.labels == {"energy": 5, "forces": 5, "stress": 5}
    assert open_structures(tmp_path / "o.bp").sources == [SOURCE]


def test_real_extxyz_equals_ase(tmp_path: Path, shared_data: Path) -> None:
    files = [shared_data / "alexandria" / "test.extxyz.gz", shared_data / "fad_ccsdt" / "test.extxyz.gz"]
    report = convert(
        [Input(files[0], SourceInfo("alexandria", "PBE")), Input(files[1], SourceInfo("fad", "CCSD(T)"))],
        tmp_path / "o.bp",
        ConvertOptions(step_size=100),
    )
    batch = read(tmp_path / "o.bp")
    images = [image for file in files for image in ase.io.read(file, ":", format="extxyz")]
    same(batch, images)
    assert batch.has_forces is not None
    assert not batch.has_forces[-1], "the second source has no forces"
    assert batch.head.tolist() == [0] * 144 + [1] * 393
    assert report.sources == {SourceInfo("alexandria", "PBE"): 144, SourceInfo("fad", "CCSD(T)"): 393}


def test_real_candidates_without_labels(tmp_path: Path, shared_data: Path) -> None:
    file = shared_data / "candidates" / "adsorbates_fcc111.extxyz.gz"
    run(file, tmp_path / "o.bp", None)
    same(read(tmp_path / "o.bp"), ase.io.read(file, ":", format="extxyz"))
    reader = open_structures(tmp_path / "o.bp")
    assert reader.sources == []
    assert "energy" not in reader.fields


def test_database_and_trajectory(tmp_path: Path, images: list[Atoms]) -> None:
    with ase.db.connect(tmp_path / "x.db") as database:
        for k, atoms in enumerate(images):
            database.write(atoms, functional="PBE", data={"charge": float(k), "spin": 1.0})
    run(tmp_path / "x.db", tmp_path / "db.bp")
    same(read(tmp_path / "db.bp"), images)
    assert read(tmp_path / "db.bp").charge.tolist() == [0, 1, 2, 3, 4]
    run(tmp_path / "x.db", tmp_path / "db2.bp", None, source_key="functional")
    assert open_structures(tmp_path / "db2.bp").sources == [SourceInfo("PBE", "")]
    with Trajectory(tmp_path / "x.traj", "w") as trajectory:
        for atoms in images:
            trajectory.write(atoms)
    run(tmp_path / "x.traj", tmp_path / "traj.bp")
    same(read(tmp_path / "traj.bp"), images)
    for name in ("bad.db", "bad.traj"):
        (tmp_path / name).write_bytes(b"hello" * 100)
        with pytest.raises(DataError, match="not a readable ASE"):
            run(tmp_path / name, tmp_path / "bad.bp")


def test_cif_and_poscar_folders(tmp_path: Path) -> None:
    crystals = [bulk("Cu", cubic=True), bulk("NaCl", "rocksalt", a=5.6), bulk("Fe")]
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    ase.io.write(folder / "a.cif", crystals[0])
    ase.io.write(folder / "b_POSCAR.vasp", crystals[1], format="vasp", direct=True)
    ase.io.write(folder / "sub" / "POSCAR_2", crystals[2], format="vasp")
    text = (folder / "a.cif").read_text()
    disordered = text.replace("1.0000\n", "0.5000\n")
    assert disordered != text
    (folder / "c.cif").write_text(disordered)
    (folder / "d.cif").write_text("data_x\n_cell_length_a what\n")
    (folder / "POSCAR_3").write_text("nothing\n1\n2\n")
    (folder / "README.txt").write_text("not a structure")
    report = run(folder, tmp_path / "o.bp", None)
    assert report.written == 3
    assert report.tally.read == 6
    assert report.tally.skipped["partly occupied sites"] == 1
    assert sum(report.tally.skipped.values()) == 3
    found = read(tmp_path / "o.bp")
    names = ["a.cif", "b_POSCAR.vasp", "sub/POSCAR_2"]
    same(found, [ase.io.read(folder / n, format=None if "cif" in n else "vasp") for n in names])
    assert found.pbc.all()


def write_lmdb(path: Path, rows: dict[bytes, bytes]) -> None:
    with lmdb.open(str(path), subdir=False, map_size=1 << 24) as environment, environment.begin(write=True) as txn:
        for key, value in rows.items():
            txn.put(key, value)
    Path(f"{path}-lock").unlink()


def ase_row(atoms: Atoms, *, encoded: bool, **data: object) -> dict:
    def array(value: np.ndarray) -> object:
        flat = [list(value.shape), str(value.dtype), value.ravel().tolist()]
        return {"__ndarray__": flat} if encoded else value.tolist()

    row: dict[str, object] = {name: array(np.asarray(v)) for name, v in atoms.calc.results.items() if name != "energy"}
    row |= {"numbers": array(atoms.numbers), "positions": array(atoms.positions), "cell": array(np.asarray(atoms.cell))}
    row |= {"pbc": array(atoms.pbc), "energy": atoms.calc.results["energy"], "key_value_pairs": {"n": 1}, "data": data}
    return row


@pytest.mark.parametrize("encoded", [True, False], ids=["arrays", "lists"])
@pytest.mark.parametrize("packed", [True, False], ids=["zlib", "plain"])
def test_aselmdb(tmp_path: Path, images: list[Atoms], encoded: bool, packed: bool) -> None:
    many = [images[k % 5] for k in range(12)]
    pack = zlib.compress if packed else bytes
    rows = {
        str(k + 1).encode(): pack(json.dumps(ase_row(a, encoded=encoded, charge=k, spin=2)).encode())
        for k, a in enumerate(many)
        if k != 5
    }
    rows |= {b"nextid": pack(b"13"), b"deleted_ids": pack(b"[6]"), b"metadata": pack(b"{}")}
    rows[b"2"] = pack(b'{"numbers": [1]}')
    write_lmdb(tmp_path / "x.aselmdb", rows)
    report = run(tmp_path / "x.aselmdb", tmp_path / "o.bp", keys=LabelKeys(id="id"))
    left = [k for k in range(12) if k not in (1, 5)]
    found = read(tmp_path / "o.bp")
    same(found, [many[k] for k in left])
    assert found.id.tolist() == [k + 1 for k in left], "10 comes after 2"
    assert found.charge.tolist() == left
    assert report.tally.skipped == {"not readable (KeyError)": 1}


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return (tmp_path / "exploded").write_text, ("x",)

    write_lmdb(tmp_path / "x.lmdb", {b"0": pickle.dumps(Bomb()), b"length": pickle.dumps(1)})
    with pytest.raises(DataError, match="Python pickle, which may run any code"):
        run(tmp_path / "x.lmdb", tmp_path / "o.bp")
    assert not (tmp_path / "exploded").exists()
    (tmp_path / "y.lmdb").write_bytes(b"no database" * 1000)
    with pytest.raises(DataError, match="not a readable LMDB"):
        run(tmp_path / "y.lmdb", tmp_path / "o.bp")


def test_pymatgen_json(tmp_path: Path) -> None:
    from pymatgen.core import Lattice, Molecule, Structure
    from pymatgen.entries.computed_entries import ComputedStructureEntry

    salt = Structure(Lattice.from_parameters(5, 6, 7, 80, 95, 110), ["Na+", "Cl-"], [[0, 0, 0], [0.5, 0.4, 0.6]])
    salt.add_site_property("forces", [[0.1, 0.2, 0.3], [-0.1, -0.2, -0.3]])
    plain = Structure(Lattice.cubic(3), ["Fe", "Fe"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    mixed = Structure(Lattice.cubic(3), [{"Fe": 0.5, "Ni": 0.5}], [[0, 0, 0]])
    ion = Molecule(["O", "H"], [[0, 0, 0], [0, 0, 1]], charge=-1, spin_multiplicity=1)
    entry = ComputedStructureEntry(plain, -16.5, correction=-1.0, data={"source": "mp"}, entry_id="mp-13")
    elements = [salt.as_dict(), mixed.as_dict(), ion.as_dict(), entry.as_dict()]
    kept = [salt, ion, plain]
    (tmp_path / "one.json").write_text(json.dumps(salt.as_dict()))
    with gzip.open(tmp_path / "list.json.gz", "wt") as file:
        json.dump(elements, file, indent=2)
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, elements)))
    for name in ("list.json.gz", "lines.jsonl"):
        report = run(tmp_path / name, tmp_path / "o.bp")
        assert report.tally.skipped == {"partly occupied sites": 1}
        found = read(tmp_path / "o.bp")
        expected = np.concatenate([s.cart_coords for s in kept])
        np.testing.assert_allclose(found.positions, expected, atol=1e-12)
        assert found.numbers.tolist() == [z for s in kept for z in s.atomic_numbers]
        np.testing.assert_allclose(found.cell[0], salt.lattice.matrix)
        assert found.pbc.tolist() == [[True] * 3, [False] * 3, [True] * 3]
        assert found.has_energy.tolist() == [False, False, True]
        assert found.energy[2] == -16.5, "without corrections"
        assert found.has_forces.tolist() == [True, False, False]
        np.testing.assert_allclose(found.forces[:2], salt.site_properties["forces"])
        assert found.charge[1] == -1
        assert found.spin[1] == 1
    assert run(tmp_path / "one.json", tmp_path / "o.bp").written == 1


def test_json_is_streamed_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atomsieve.structures.formats.records import stream

    monkeypatch.setattr(stream, "BLOCK", 7)
    site = {"species": [{"element": "Fe", "occu": 1}], "xyz": [0.25, 1.5, -3]}
    text = json.dumps([{"sites": [site] * n, "name": "ö"} for n in range(1, 30)], ensure_ascii=False)
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    run(tmp_path / "x.json", tmp_path / "o.bp", None)
    assert read(tmp_path / "o.bp").counts.tolist() == list(range(1, 30))
    (tmp_path / "x.json").write_text(text[:-40], encoding="utf-8")
    with pytest.raises(DataError, match="not complete JSON"):
        run(tmp_path / "x.json", tmp_path / "o.bp", None)
    (tmp_path / "x.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="is not a structure, or a record with one: its keys are a"):
        run(tmp_path / "x.json", tmp_path / "o.bp", None)


def test_parquet_of_others(tmp_path: Path, images: list[Atoms]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "numbers": [a.numbers.tolist() for a in images],
            "positions": [a.positions.tolist() for a in images],
            "cell": [np.asarray(a.cell).tolist() for a in images],
            "pbc": [a.pbc.tolist() for a in images],
            "e_dft": [a.get_potential_energy() for a in images],
            "forces": [a.get_forces().tolist() for a in images],
            "stress": [a.calc.results["stress"].tolist() for a in images],
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    run(tmp_path / "x.parquet", tmp_path / "o.bp", keys=LabelKeys(energy="e_dft"))
    same(read(tmp_path / "o.bp"), images)
    pq.write_table(table.drop(["positions"]), tmp_path / "y.parquet")
    with pytest.raises(DataError, match="no column 'positions'"):
        run(tmp_path / "y.parquet", tmp_path / "o.bp")
    (tmp_path / "z.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="not a readable Parquet"):
        run(tmp_path / "z.parquet", tmp_path / "o.bp")


def test_datasets_merge(tmp_path: Path, images: list[Atoms]) -> None:
    ase.io.write(tmp_path / "x.extxyz", images)
    other = SourceInfo("b", "LDA")
    run(tmp_path / "x.extxyz", tmp_path / "one.bp")
    run(tmp_path / "x.extxyz", tmp_path / "two.bp", other)
    run([tmp_path / "one.bp", tmp_path / "two.bp"], tmp_path / "o.bp", None)
    assert open_structures(tmp_path / "o.bp").sources == [SOURCE, other]
    found = read(tmp_path / "o.bp")
    assert found.head.tolist() == [0] * 5 + [1] * 5
    same(found, [*images, *images], 1e-7)


# -- what is refused, skipped and counted ----------------------------------------------------------------------------

GOOD = '2\nLattice="3 0 0 0 3 0 0 0 3" Properties=species:S:1:pos:R:3:forces:R:3 energy=-1.5 pbc="T T T"\n' + (
    "Fe 0 0 0 0 0 1\nO 1 1 1 0 0 -1\n"
)


@pytest.mark.skipif(text_library() is None, reason="no compiled parser")
def test_bad_frames_are_skipped_and_counted(tmp_path: Path) -> None:
    frames = [
        GOOD,
        GOOD.replace("Fe", "Xx", 1),
        GOOD.replace("Fe 0 0 0", "Fe 0 nan 0"),
        GOOD.replace("energy=-1.5", "energy=nan"),
        GOOD.replace("0 0 -1", "0 0 -inf"),
        GOOD.replace("O 1 1 1", "O 1 one 1"),
        GOOD.replace("3 0 0 0 3 0 0 0 3", "3 0 0 0 3 0 0 0 0"),
        "0\nProperties=species:S:1:pos:R:3\n",
        GOOD.replace("Fe 0 0 0", "X 0 0 0"),
        "\n\n" + GOOD,
        GOOD[:-30],
    ]
    (tmp_path / "x.xyz").write_text("".join(frames))
    report = run(tmp_path / "x.xyz", tmp_path / "o.bp")
    found = read(tmp_path / "o.bp")
    assert found.id.tolist() == [0, 9], "ids are places in the input"
    assert report.tally.read == 11
    assert report.tally.skipped == {
        "a ghost atom or placeholder": 2,
        "positions or cell are not finite": 1,
        "energy not finite": 1,
        "forces not finite": 1,
        "not a number": 1,
        "periodic along an axis without a lattice vector": 1,
        "no atoms": 1,
        "the file ends within a structure": 1,
    }
    assert report.tally.first["energy not finite"].endswith("frame 3")


def test_keep_bad_is_for_candidates(tmp_path: Path) -> None:
    text = '2\nLattice="3 0 0 0 3 0 0 0 3" Properties=species:S:1:pos:R:3 pbc="T T T"\nFe 0 0 0\nO 1 1 1\n'
    empty = "0\nProperties=species:S:1:pos:R:3\n"
    (tmp_path / "x.xyz").write_text(text + text.replace("Fe 0 0 0", "Fe 0 nan 0") + empty)
    assert run(tmp_path / "x.xyz", tmp_path / "o.bp", None).written == 1
    assert run(tmp_path / "x.xyz", tmp_path / "o.bp", None, keep_bad=True).written == 3
    found = read(tmp_path / "o.bp")
    assert np.isnan(found.positions[2, 1])
    assert found.counts.tolist() == [2, 2, 0]


@pytest.mark.skipif(text_library() is None, reason="no compiled parser")
@pytest.mark.parametrize("tail", ["hello\n", "-3\n", "2.5\n", "99999999999\n"])
def test_a_line_that_should_count_atoms(tmp_path: Path, tail: str) -> None:
    """Behind a frame such a line is counted and the next frame is found; a file of nothing else is refused."""
    (tmp_path / "x.xyz").write_text(GOOD + tail + GOOD)
    report = run(tmp_path / "x.xyz", tmp_path / "o.bp")
    assert report.written == 2 and sum(report.tally.skipped.values()) == 1
    assert re.search("frame 1: line [56]: ", next(iter(report.tally.first.values())))
    (tmp_path / "y.xyz").write_text(tail)
    with pytest.raises(DataError, match=r"y.xyz, line \d|no structure is left"):
        run(tmp_path / "y.xyz", tmp_path / "p.bp")
    assert not (tmp_path / "p.bp").exists()


def test_truncated_gzip(tmp_path: Path) -> None:
    (tmp_path / "x.xyz.gz").write_bytes(gzip.compress((GOOD * 3000).encode(), mtime=0)[:-30])
    report = run(tmp_path / "x.xyz.gz", tmp_path / "o.bp")
    assert report.tally.skipped == {"the file ends within a structure": 1}
    assert report.written > 1000


def test_labels_need_a_source_and_a_level(tmp_path: Path) -> None:
    (tmp_path / "x.xyz").write_text(GOOD)
    with pytest.raises(UsageError, match="--source NAME --level-of-theory"):
        run(tmp_path / "x.xyz", tmp_path / "o.bp", None)
    with pytest.raises(UsageError, match="at which level"):
        run(tmp_path / "x.xyz", tmp_path / "o.bp", SourceInfo("a", ""))
    report = run(tmp_path / "x.xyz", tmp_path / "o.bp", None, keys=LabelKeys(none=True))
    assert report.tally.labels["energy"] == 0
    assert read(tmp_path / "o.bp").energy is None


def test_keys(tmp_path: Path) -> None:
    renamed = GOOD.replace("energy=", "REF_energy=").replace("forces:", "REF_forces:") + "\n"
    (tmp_path / "x.xyz").write_text(renamed.replace("pbc=", "charge=-1 sid=7 kind=k pbc="))
    report = run(tmp_path / "x.xyz", tmp_path / "o.bp")
    assert report.tally.found.taken == {
        ("energy", "REF_energy"): 1,
        ("forces", "REF_forces"): 1,
        ("charge", "charge"): 1,
    }
    keys = LabelKeys(energy="REF_energy", forces="REF_forces", id="sid")
    report = run(tmp_path / "x.xyz", tmp_path / "o.bp", keys=keys, spin=3.0)
    assert not report.tally.found.list_offers()
    found = read(tmp_path / "o.bp")
    assert found.energy.tolist() == [-1.5]
    assert found.forces.tolist() == [[0, 0, 1], [0, 0, -1]]
    assert (found.id[0], found.charge[0], found.spin[0]) == (7, -1, 3)
    with pytest.raises(UsageError, match="did you mean 'REF_energy'"):
        run(tmp_path / "x.xyz", tmp_path / "o.bp", keys=LabelKeys(energy="REF_enrgy"))
    report = run(tmp_path / "x.xyz", tmp_path / "o.bp", keys=LabelKeys(id="kind"))  # texts are carried
    assert report.tally.carried.taken == {("id", "kind", "text"): 1}
    assert read(tmp_path / "o.bp").id.tolist() == [0]
    with pytest.raises(DataError, match="has no 'functional'"):
        run(tmp_path / "x.xyz", tmp_path / "o.bp", source_key="functional")


def test_sources_of_each_structure(tmp_path: Path) -> None:
    pairs = [("p", "PBE"), ("q", "LDA"), ("p", "PBE")]
    text = "".join(GOOD.replace("pbc=", f"src={s} level={t} pbc=") for s, t in pairs)
    (tmp_path / "x.xyz").write_text(text)
    report = run(tmp_path / "x.xyz", tmp_path / "o.bp", None, source_key="src", level_key="level")
    assert report.sources == {SourceInfo("p", "PBE"): 2, SourceInfo("q", "LDA"): 1}
    assert read(tmp_path / "o.bp").head.tolist() == [0, 1, 0]


def test_a_named_file_may_state_its_own_level(tmp_path: Path, images: list[Atoms]) -> None:
    for atoms in images:
        atoms.info["level"] = "stated"
    ase.io.write(tmp_path / "x.xyz", images, format="extxyz")
    run(tmp_path / "x.xyz", tmp_path / "o.bp", SourceInfo("mine", ""), level_key="level")
    assert open_structures(tmp_path / "o.bp").sources == [SourceInfo("mine", "stated")]


def test_nothing_to_convert(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        run(tmp_path / "none.xyz", tmp_path / "o.bp")
    (tmp_path / "x.dat").write_text("1")
    with pytest.raises(DataError, match="--format"):
        run(tmp_path / "x.dat", tmp_path / "o.bp")
    with pytest.raises(UsageError, match="did you mean 'extxyz'"):
        run(tmp_path / "x.dat", tmp_path / "o.bp", format="xtxyz")
    (tmp_path / "x.dat").write_text("0\n\n")
    with pytest.raises(DataError, match="no structure is left of 1 read: 1 no atoms"):
        run(tmp_path / "x.dat", tmp_path / "o.bp", format="extxyz")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="no file of a known format"):
        run(tmp_path / "folder", tmp_path / "o.bp")
    assert not (tmp_path / "o.bp").exists()


def test_formats_by_name() -> None:
    names = {"a.xyz.gz": "extxyz", "POSCAR_1": "poscar", "CONTCAR": "poscar", "a.cif": "cif", "A.CIF": "cif"}
    assert {name: find_format(Path(name)) for name in names} == names
    assert find_format(Path("a.txt")) is None


def test_progress_is_shown(tmp_path: Path) -> None:
    (tmp_path / "x.xyz").write_text(GOOD * 20)
    screen = Console(file=io.StringIO(), force_terminal=True, width=100)
    convert([Input(tmp_path / "x.xyz", SOURCE)], tmp_path / "o.bp", ConvertOptions(), screen)
    assert "20 structures" in screen.file.getvalue()  # type: ignore[attr-defined]


# -- splits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["structure", "formula", "group:config"])
def test_split(tmp_path: Path, shared_data: Path, by: str) -> None:
    file = shared_data / "mattersim_tp" / "test.extxyz.gz"
    report = run(file, tmp_path / "o.bp", split=Split.parse("train=0.7,val=0.2,test=0.1", by, seed=5))
    sets = {name: read(tmp_path / f"o-{name}.bp") for name in ("train", "val", "test")}
    assert [len(b) for b in sets.values()] == list(report.outputs.values())
    assert sorted(np.concatenate([b.id for b in sets.values()]).tolist()) == list(range(389))
    images = ase.io.read(file, ":", format="extxyz")
    same(sets["val"], [images[k] for k in sets["val"].id])

    def what(k: int) -> object:
        return images[k].info["config"] if by == "group:config" else format_reduced_formula(images[k].numbers)

    if by == "structure":
        assert 0.6 < len(sets["train"]) / 389 < 0.8
    else:
        groups = [{what(int(k)) for k in b.id} for b in sets.values()]
        assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    assert all(open_structures(tmp_path / f"o-{name}.bp").sources == [SOURCE] for name in sets)


def test_split_does_not_depend_on_order(tmp_path: Path, shared_data: Path) -> None:
    images = ase.io.read(shared_data / "alexandria" / "test.extxyz.gz", ":", format="extxyz")
    energies = []
    for k, order in enumerate([images, images[::-1]]):
        ase.io.write(tmp_path / f"{k}.extxyz", order)
        run(tmp_path / f"{k}.extxyz", tmp_path / f"{k}.bp", split=Split.parse("train=0.5,val=0.5"))
        energies.append(set(read(tmp_path / f"{k}-val.bp").energy.tolist()))
    assert energies[0] == energies[1]


@pytest.mark.parametrize(
    ("text", "by", "words"),
    [
        ("train", "structure", "reads like"),
        ("train=0.9", "structure", "add up to 1|between 0 and 1"),
        ("train=0.9,val=0.2", "structure", "add up to 1, got 1.1"),
        ("train=0.9,train=0.1", "structure", "twice"),
        ("a/b=0.9,val=0.1", "structure", "letters"),
        ("train=0.9,val=0.1", "formla", "did you mean 'formula'"),
        ("train=0.9,val=0.1", "group:", "way to split"),
        ("train=1.1,val=-0.1", "structure", "between 0 and 1"),
    ],
)
def test_bad_splits(text: str, by: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Split.parse(text, by)


def test_split_by_a_key_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "x.xyz").write_text(GOOD)
    with pytest.raises(DataError, match="has no 'cluster' to split by"):
        run(tmp_path / "x.xyz", tmp_path / "o.bp", split=Split.parse("a=0.5,b=0.5", "group:cluster"))
