"""Export and summary: what is written back is what was there, and the numbers are right."""

from __future__ import annotations

import resource
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest

from atomsieve.errors import DataError, UsageError
from atomsieve.structures import SourceInfo, StructureBatch, open_structures, write_structures
from atomsieve.structures.conversion.convert import ConvertOptions, Input, convert
from atomsieve.structures.export import COLUMNS, Subset, export, filter_columns
from atomsieve.structures.labels import LabelKeys
from atomsieve.structures.summary import RunningStatistics, summarise
from tests.structures.structure_samples import random_batch

SOURCES = [SourceInfo("a", "PBE"), SourceInfo("b", "wB97X/6-31G(d)")]


def sample() -> StructureBatch:
    """Random structures whose absent labels are NaN, as files have them."""
    batch = random_batch(40, smallest=1, heads=2)
    rng = np.random.default_rng(5)
    known = batch.has_forces[batch.structure_of_atom][:, None]
    batch = batch.replace(
        positions=rng.normal(size=(batch.n_atoms, 3)) * 4,
        cell=rng.normal(size=(40, 3, 3)) * 5 + 8 * np.eye(3),
        energy=np.where(batch.has_energy, rng.normal(size=40), np.nan),
        forces=np.where(known, rng.normal(size=(batch.n_atoms, 3)), np.nan),
        charge=np.where(rng.random(40) < 0.5, np.nan, 1).astype(np.float32),
        spin=rng.integers(1, 4, 40).astype(np.float32),
        id=np.arange(40) * 7,
    )
    stress = rng.normal(size=(40, 3, 3))
    stress = np.where(batch.has_stress[:, None, None], stress + stress.transpose(0, 2, 1), np.nan)
    return batch.replace(stress=stress)


@pytest.fixture
def dataset(tmp_path: Path) -> tuple[Path, StructureBatch]:
    batch = sample()
    write_structures(tmp_path / "x.bp", batch, SOURCES, step_size=9)
    return tmp_path / "x.bp", batch


def back(path: Path, out: Path) -> StructureBatch:
    options = ConvertOptions(LabelKeys(id="id"), source_key="source", level_key="level_of_theory", overwrite=True)
    convert([Input(path)], out, options)
    with open_structures(out) as reader:
        batch = reader.read(0, len(reader))
        order = np.array([SOURCES.index(s) for s in reader.sources], np.int32)
    return batch.replace(head=order[batch.head])


@pytest.mark.parametrize(("name", "tolerance"), [("o.parquet", 0), ("o.db", 0), ("o.extxyz", 1e-8), ("o.xyz.gz", 1e-8)])
def test_there_and_back(dataset: tuple[Path, StructureBatch], tmp_path: Path, name: str, tolerance: float) -> None:
    path, batch = dataset
    with open_structures(path) as reader:
        assert export(reader, tmp_path / name, Subset()) == (40, 0)
    found = back(tmp_path / name, tmp_path / "back.bp")
    for field in ("ptr", "numbers", "pbc", "id", "head", "charge", "spin", "has_energy", "has_forces", "has_stress"):
        np.testing.assert_array_equal(getattr(found, field), getattr(batch, field), err_msg=field)
    for field in ("positions", "cell", "energy", "forces", "stress"):
        np.testing.assert_allclose(
            getattr(found, field), getattr(batch, field), rtol=1e-15, atol=tolerance, equal_nan=True, err_msg=field
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["x.bp", "back.bp", name])


def test_ase_reads_what_is_written(dataset: tuple[Path, StructureBatch], tmp_path: Path) -> None:
    path, batch = dataset
    with open_structures(path) as reader:
        export(reader, tmp_path / "o.extxyz", Subset(stop=3))
        export(reader, tmp_path / "o.db", Subset(stop=3))
    write_structures(tmp_path / "crystals.bp", batch.take(np.arange(3)).replace(pbc=np.ones((3, 3), bool)), SOURCES)
    with open_structures(tmp_path / "crystals.bp") as reader:
        export(reader, tmp_path / "o.cif", Subset())
    images = ase.io.read(tmp_path / "o.extxyz", ":")
    assert [len(image) for image in images] == batch.counts[:3].tolist()
    assert images[0].info["source"] == SOURCES[batch.head[0]].name
    assert ase.db.connect(tmp_path / "o.db").count() == 3
    crystals = ase.io.read(tmp_path / "o.cif", ":")
    assert [len(image) for image in crystals] == batch.counts[:3].tolist()
    for image, cell in zip(crystals, batch.cell[:3], strict=True):
        assert abs(image.get_volume() - abs(np.linalg.det(cell))) < 1e-2


def test_cif_skips_what_it_cannot_hold(tmp_path: Path) -> None:
    batch = random_batch(6, smallest=1, fields=set())
    cell = np.tile(np.eye(3) * 9, (6, 1, 1))
    cell[2] = 0
    pbc = np.ones((6, 3), bool)
    write_structures(tmp_path / "x.bp", batch.replace(cell=cell, pbc=pbc, positions=np.zeros((batch.n_atoms, 3))))
    with open_structures(tmp_path / "x.bp") as reader:
        assert export(reader, tmp_path / "o.cif", Subset()) == (5, 1)
    assert len(ase.io.read(tmp_path / "o.cif", ":")) == 5


@pytest.mark.parametrize("name", ["o.extxyz", "o.extxyz.gz", "o.parquet", "o.db", "o.aselmdb", "o.cif"])
def test_a_file_that_cannot_grow(tmp_path: Path, name: str) -> None:
    """A disk that fills up: one line that names the file, and nothing is left. Here files may not exceed 8 kB."""
    batch = random_batch(3000, smallest=2).replace(
        cell=np.tile(9 * np.eye(3), (3000, 1, 1)), pbc=np.ones((3000, 3), bool)
    )
    write_structures(tmp_path / "in.bp", batch, SOURCES)
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / "out").mkdir()
    with open_structures(tmp_path / "in.bp") as reader:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, usual[1]))
        try:
            with pytest.raises(DataError, match=rf"cannot write .*{name}"):
                export(reader, tmp_path / "out" / name, Subset())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert not list((tmp_path / "out").iterdir())


def test_columns(dataset: tuple[Path, StructureBatch]) -> None:
    _, batch = dataset
    columns = filter_columns(batch, 100, SOURCES)
    assert set(columns) == set(COLUMNS)
    for s in range(40):
        own = slice(int(batch.ptr[s]), int(batch.ptr[s + 1]))
        assert columns["index"][s] == 100 + s
        assert columns["n_elements"][s] == len(set(batch.numbers[own].tolist()))
        assert columns["source"][s] == SOURCES[batch.head[s]].name
        assert columns["periodic"][s] == batch.pbc[s].sum()
        np.testing.assert_allclose(columns["volume"][s], abs(np.linalg.det(batch.cell[s])))
        force = np.linalg.norm(batch.forces[own], axis=1).max() if batch.has_forces[s] else np.nan
        np.testing.assert_allclose(columns["max_force"][s], force)
        energy = batch.energy[s] / batch.counts[s] if batch.has_energy[s] else np.nan
        np.testing.assert_allclose(columns["energy_per_atom"][s], energy)


def test_selection(dataset: tuple[Path, StructureBatch], tmp_path: Path) -> None:
    path, batch = dataset
    (tmp_path / "ids").write_text("7, 14\n21 9999")
    cases = [
        (Subset.parse("10:20", None, None), np.arange(10, 20)),
        (Subset.parse(":3", None, None), np.arange(3)),
        (Subset.parse("38:", None, None), np.arange(38, 40)),
        (Subset.parse(None, "0,70", None), np.array([0, 10])),
        (Subset.parse(None, f"@{tmp_path / 'ids'}", None), np.array([1, 2, 3])),
        (Subset.parse("5:35", None, "natoms < 6 and source == 'b'"), None),
    ]
    with open_structures(path) as reader:
        for selection, expected in cases:
            found = [place for _, places in selection.apply(reader) for place in places]
            if expected is None:
                mask = (batch.counts < 6) & (batch.head == 1) & (np.arange(40) >= 5) & (np.arange(40) < 35)
                expected = np.flatnonzero(mask)
                assert len(expected) > 0
            assert found == expected.tolist()
        export(reader, tmp_path / "y.bp", cases[-1][0])
        with pytest.raises(UsageError, match="beyond the 40 structures"):
            list(Subset.parse("30:50", None, None).apply(reader))
    chosen = open_structures(tmp_path / "y.bp")
    assert chosen.sources == SOURCES
    assert chosen.read(0, len(chosen)).id.tolist() == batch.id[expected].tolist()
    for span in ("5", "a:b", "9:3", "-2:5"):
        with pytest.raises(UsageError, match="a range reads like"):
            Subset.parse(span, None, None)
    with pytest.raises(UsageError, match="ids are integers"):
        Subset.parse(None, "1,x", None)
    with pytest.raises(UsageError, match="cannot read the ids"):
        Subset.parse(None, "@nowhere", None)
    with pytest.raises(UsageError, match="did you mean 'natoms'"):
        Subset.parse(None, None, "natom < 3")


def test_refused(dataset: tuple[Path, StructureBatch], tmp_path: Path) -> None:
    path, _ = dataset
    with open_structures(path) as reader:
        with pytest.raises(UsageError, match="format of the output"):
            export(reader, tmp_path / "o.pdb", Subset())
        (tmp_path / "o.xyz").write_text("mine")
        with pytest.raises(UsageError, match="--overwrite"):
            export(reader, tmp_path / "o.xyz", Subset())
        (tmp_path / "d.xyz").mkdir()
        with pytest.raises(UsageError, match="folder"):
            export(reader, tmp_path / "d.xyz", Subset(), overwrite=True)
        (tmp_path / "x.bp" / "part-00000.r000.bp" / "data.0").write_bytes(b"0" * 10)
        with pytest.raises(DataError):
            export(reader, tmp_path / "o.xyz", Subset(), overwrite=True)
    assert (tmp_path / "o.xyz").read_text() == "mine", "a failed export leaves the old file"
    assert not list(tmp_path.glob(".*o.xyz"))


# -- summary ---------------------------------------------------------------------------------------------------------


def test_summary(dataset: tuple[Path, StructureBatch], monkeypatch: pytest.MonkeyPatch) -> None:
    from atomsieve.structures import summary

    path, batch = dataset
    monkeypatch.setattr(summary, "BATCH", 7)
    found = summarise(open_structures(path))
    assert (found["structures"], found["atoms"]) == (40, batch.n_atoms)
    assert found["atoms_per_structure"]["mean"] == batch.counts.mean()
    assert sum(row["atoms"] for row in found["elements"].values()) == batch.n_atoms
    assert found["periodic_axes"] == {str(k): int(n) for k, n in enumerate(np.bincount(batch.pbc.sum(axis=1))) if n}
    assert found["with_charge"] == np.isfinite(batch.charge).sum()
    for k, row in enumerate(found["sources"]):
        own = batch.take(np.flatnonzero(batch.head == k))
        assert row["structures"] == len(own)
        values = (own.energy / own.counts)[own.has_energy]
        expected = {"mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()}
        assert row["energy_per_atom"] == pytest.approx(expected, rel=1e-12)
        forces = own.forces[own.has_forces[own.structure_of_atom]]
        assert row["force_rms"] == pytest.approx(np.sqrt((forces**2).mean()))
        assert row["force_max"] == pytest.approx(np.linalg.norm(forces, axis=1).max())
    assert "checksums fit" in found["verified"]


def test_summary_of_odd_datasets(tmp_path: Path) -> None:
    write_structures(tmp_path / "none.bp", StructureBatch.empty())
    assert summarise(open_structures(tmp_path / "none.bp"))["structures"] == 0
    batch = random_batch(5, fields=set(), largest=0)
    write_structures(tmp_path / "hollow.bp", batch)
    found = summarise(open_structures(tmp_path / "hollow.bp"))
    assert found["not_finite_or_empty"] == 5
    assert found["sources"][0]["name"] == "(none)"


def test_running_statistics_far_from_zero() -> None:
    values = 1e9 + np.random.default_rng(0).normal(size=10_000)
    running = RunningStatistics()
    for piece in np.array_split(values, 17):
        running.add(piece)
    assert running.result()["std"] == pytest.approx(values.std(), rel=1e-6)
    assert running.result()["mean"] == pytest.approx(values.mean(), rel=1e-15)
