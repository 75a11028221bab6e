"""Extended XYZ is written without loss: ASE and the reader of this package give the same batch back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest

from atomsieve.errors import UsageError
from atomsieve.native import text_library
from atomsieve.structures import SourceInfo, StructureBatch
from atomsieve.structures.conversion.validation import BlockValidator
from atomsieve.structures.formats import ReadRequest, WriteOptions, extxyz_sink, open_sink, read_blocks
from atomsieve.structures.formats.extxyz_sink import DIALECTS
from atomsieve.structures.labels import LabelKeys
from tests.structures.structure_samples import random_batch

SOURCES = [SourceInfo("a", "PBE, PAW (VASP)"), SourceInfo("b=2", 'say "so" \\ {x}')]


def labelled(count: int = 12) -> StructureBatch:
    """Return periodic structures whose numbers have all their digits, some without labels, charge or spin."""
    rng = np.random.default_rng(4)
    batch = random_batch(count, smallest=1)
    stress = rng.normal(size=(count, 3, 3)) * 10.0 ** rng.integers(-12, 3, (count, 1, 1))
    forces = rng.normal(size=(batch.n_atoms, 3)) * 10.0 ** rng.integers(-20, 9, (batch.n_atoms, 3))
    forces[0] = [0.0, -0.0, 5e-324]
    some = np.arange(count) % 3 > 0
    return batch.replace(
        numbers=rng.integers(1, 119, batch.n_atoms).astype(np.uint8),
        positions=rng.normal(size=(batch.n_atoms, 3)) * 7,
        cell=rng.normal(size=(count, 3, 3)) * 5,
        pbc=rng.random((count, 3)) > 0.3,
        id=rng.integers(-(2**62), 2**62, count),
        charge=np.where(some, rng.normal(size=count), np.nan).astype(np.float32),
        spin=np.where(some[::-1], 2, np.nan).astype(np.float32),
        head=(np.arange(count) % 3 - 1).astype(np.int32),
        energy=np.where(some, rng.normal(size=count) * 1e3, np.nan),
        forces=np.where(np.repeat(~some, batch.counts)[:, None], np.nan, forces),
        stress=np.where(some[:, None, None], (stress + stress.transpose(0, 2, 1)) / 2, np.nan),
        has_energy=some,
        has_forces=some,
        has_stress=some,
    )


def write(path: Path, batch: StructureBatch, dialect: str = "", info: Any = None) -> Path:
    with open_sink(path, WriteOptions(SOURCES, overwrite=True, dialect=dialect)) as sink:
        sink.write(batch, info)
        assert sink.skipped == 0
    return path


def read_back(path: Path) -> StructureBatch:
    validator = BlockValidator(LabelKeys(id="id"))
    return StructureBatch.concatenate([validator(block).batch for block in read_blocks(ReadRequest(path), "extxyz")])


def assert_same(found: StructureBatch, wanted: StructureBatch, *leave: str) -> None:
    for name, array in wanted.present().items():
        if name not in leave:
            np.testing.assert_array_equal(getattr(found, name), array, err_msg=name)


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("ending", ["extxyz", "xyz.gz"])
def test_nothing_is_lost(tmp_path: Path, ending: str, single: bool) -> None:
    batch = labelled()
    if single:
        batch = batch.replace(positions=batch.positions.astype(np.float32))
    path = write(tmp_path / f"x.{ending}", batch)
    assert_same(read_back(path), batch, "head")
    images = ase.io.read(path, ":", format="extxyz")
    assert_same(StructureBatch.from_ase(images, ids=[image.info["id"] for image in images]), batch, "head")
    assert [image.info.get("source") for image in images[:3]] == [None, "a", "b=2"]
    assert images[2].info["level_of_theory"] == SOURCES[1].level_of_theory


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialects_are_read_back(tmp_path: Path, dialect: str) -> None:
    batch = labelled()
    found = read_back(write(tmp_path / "x.xyz", batch, dialect))
    assert_same(found, batch, "head", "stress")
    assert found.stress is not None and batch.stress is not None
    np.testing.assert_allclose(found.stress, batch.stress, rtol=1e-14 if DIALECTS[dialect].virial else 0)


def test_what_other_programs_look_for(tmp_path: Path) -> None:
    """The names, and the sign and unit of the virial: minus stress times volume, in eV."""
    batch = labelled(2).slice(1, 2).replace(charge=np.array([1], np.float32), spin=np.array([3], np.float32))
    batch = batch.replace(cell=np.diag([2.0, 3.0, 4.0])[None], stress=np.full((1, 3, 3), 0.5), energy=np.array([-5.0]))
    heads = {name: write(tmp_path / f"{name}.xyz", batch, name).read_text().splitlines()[1] for name in DIALECTS}
    assert " REF_energy=-5.0 " in heads["mace"] and ":REF_forces:R:3 " in heads["mace"]
    assert ' REF_stress="0.5 0.5' in heads["mace"] and " total_charge=1.0 total_spin=3.0 " in heads["mace"]
    assert ' dft_virial="-12.0 -12.0' in heads["gap"] and " dft_energy=-5.0 " in heads["gap"]
    assert ":dft_force:R:3 " in heads["gap"] and "stress" not in heads["gap"]
    assert heads["nep"].startswith(
        'lattice="2.0 0.0 0.0 0.0 3.0 0.0 0.0 0.0 4.0" properties=species:S:1:pos:R:3:force:R:3 '
    )
    assert ' virial="-12.0 -12.0' in heads["nep"] and heads["ase"] == heads["nequip"]


def test_nep_takes_structures_with_a_cell_only(tmp_path: Path) -> None:
    batch = labelled(6)
    cell = batch.cell.copy()
    cell[1] = 0
    with open_sink(tmp_path / "x.xyz", WriteOptions(SOURCES, dialect="nep")) as sink:
        sink.write(batch.replace(cell=cell))
        assert sink.reasons == {"NEP needs three lattice vectors": 1}
    assert_same(read_back(tmp_path / "x.xyz"), batch.take([0, 2, 3, 4, 5]), "head", "stress")


VALUES: dict[str, Any] = {
    "whole": 7,
    "real": -0.1,
    "whole_real": 3.0,
    "yes": True,
    "word": "text",
    "spaces": "two  words",
    "quotes": 'say "so", it\'s {a} [b] c=d \\e',
    "number_like": "0012",
    "truth_like": "T",
    "empty": "",
    "lines": "a\nb",
    "foreign": "\u6c34 \u00c5",
    "array": np.array([1.5, -2.0]),
    "whole_array": np.array([1, 2, 3]),
    "matrix": np.arange(4.0).reshape(2, 2),
    "one": [5],
    "nested": {"a": [1, {"b": "c"}]},
    "a key": 1,
}


def test_values_of_any_kind(tmp_path: Path) -> None:
    """ASE reads every value back as it was, also texts that look like numbers; so does the reader of this package."""
    batch = labelled(3)
    path = write(tmp_path / "x.xyz", batch, info=[{**VALUES, "id": 5, "absent": None}, {}, {"id": 6, "source": "c"}])
    images = ase.io.read(path, ":", format="extxyz")
    for key, value in VALUES.items():
        found = images[0].info[key]
        assert type(np.asarray(found).item(0) if np.size(found) else found) is type(np.asarray(value).item(0)), key
        assert np.array_equal(found, value) if isinstance(value, np.ndarray) else found == value, key
    assert "absent" not in images[0].info
    assert [image.info["id"] for image in images] == [5, int(batch.id[1]), 6]
    assert images[2].info["source"] == "c"
    (block,) = read_blocks(ReadRequest(path), "extxyz")
    for key, value in VALUES.items():
        column = block.info[key]
        own = column.values[0]
        assert column.has.tolist()[0] and (np.array_equal(own, value) or own == value), key


def test_a_label_among_the_values(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'energy' is the name of a label"):
        write(tmp_path / "x.xyz", labelled(1), info=[{"energy": 5}])


@pytest.mark.skipif(text_library() is None, reason="no compiled writer")
@pytest.mark.parametrize("dialect", ["ase", "gap", "mace"])
def test_python_writes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dialect: str) -> None:
    """Without compiled code the values are the same; their words may differ."""
    batch = labelled()
    fast = write(tmp_path / "a.xyz", batch, dialect)
    monkeypatch.setattr(extxyz_sink, "text_library", lambda: None)
    slow = write(tmp_path / "b.xyz", batch, dialect)
    assert_same(read_back(slow), read_back(fast), "stress")
    np.testing.assert_allclose(read_back(slow).stress, read_back(fast).stress, rtol=1e-12)  # type: ignore[arg-type]


def test_dialects_are_those_of_the_format(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown dialect of extxyz 'mase' \(did you mean 'ase'"):
        open_sink(tmp_path / "x.xyz", WriteOptions(dialect="mase"))
    with pytest.raises(UsageError, match="format cif has no dialects; extxyz has"):
        open_sink(tmp_path / "x.cif", WriteOptions(dialect="mace"))
