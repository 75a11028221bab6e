"""Configurations of moment tensor potentials."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import pytest

from atomsieve.errors import DataError
from atomsieve.structures.formats import ReadRequest, find_format
from atomsieve.structures.labels import LabelKeys
from tests.structures.formats.learning.samples import check_by_emt, read_with

FILE = Path(__file__).parents[2] / "files" / "mtp" / "train.cfg"
ELEMENTS = ("Al", "Cu", "C", "H")


def test_a_file_of_motep() -> None:
    batch, tally = read_with(ReadRequest(FILE, elements=ELEMENTS), "mtp")
    assert batch.counts.tolist() == [4, 4, 5]
    assert batch.numbers.tolist() == [13, 29] * 4 + [6, 1, 1, 1, 1]
    assert batch.pbc.tolist() == [[True] * 3, [True] * 3, [False] * 3]
    assert batch.has_stress.tolist() == [True, True, False]
    check_by_emt(batch, 3e-5)  # the file has six digits
    assert tally.found.taken["stress", "-virial/volume"] == 2
    assert not tally.skipped


def test_the_file_does_not_say_the_elements(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 1: the elements of the types 0 to 1 are not in the file; --elements"):
        read_with(ReadRequest(FILE), "mtp")
    with pytest.raises(DataError, match=r"types 0 to 3 are not in the file; .*; 3 were named"):
        read_with(ReadRequest(FILE, elements=ELEMENTS[:3]), "mtp")
    with pytest.raises(DataError, match="the type 'Xx' is no element"):
        read_with(ReadRequest(FILE, elements=("Xx", "Cu", "C", "H")), "mtp")


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


FRAME = """BEGIN_CFG
 Size
 2
 Supercell
 4 0 0
 0 5 0
 0 0 6
 AtomData:  type id direct_x direct_y direct_z fy fx fz site_en charge
 0 1 0 0 0 2 1 3 -1 0.5
 1 2 0.5 0.5 0.5 -2 -1 -3 -2 -0.5
 Energy
 -3
 PlusStress: xy xx yy zz xz yz
 6 1 2 3 5 4
 Feature EFS_by VASP
END_CFG
"""


def test_columns_in_any_order_and_direct_coordinates(tmp_path: Path) -> None:
    file = tmp_path / "x.cfg.gz"
    file.write_bytes(gzip.compress(FRAME.encode()))
    assert find_format(file) == "mtp"
    batch, tally = read_with(ReadRequest(file, elements=("O", "H")), "mtp")
    np.testing.assert_array_equal(batch.positions, [[0, 0, 0], [2, 2.5, 3]])
    np.testing.assert_array_equal(batch.forces, [[1, 2, 3], [-1, -2, -3]])
    np.testing.assert_allclose(batch.stress[0], np.array([[1, 6, 5], [6, 2, 4], [5, 4, 3]]) / -120, rtol=1e-15)
    assert "charges" in {key for key, *_ in tally.found.left}


def test_one_or_two_lattice_vectors_are_partial_periodicity(tmp_path: Path) -> None:
    text = FRAME.replace(" 0 0 6\n", "").replace("direct", "cartes")
    batch, _ = read_with(ReadRequest(write(tmp_path / "x.cfg", text), elements=("O", "H")), "mtp")
    assert batch.pbc.tolist() == [[True, True, False]]
    assert not batch.cell[0, 2].any()


def test_stress_of_an_unclear_sign_is_not_taken(tmp_path: Path) -> None:
    file = write(tmp_path / "x.cfg", FRAME.replace("PlusStress:", "Stress:"))
    batch, _ = read_with(ReadRequest(file, elements=("O", "H")), "mtp")
    assert batch.stress is None or not batch.has_stress.any()
    batch, _ = read_with(ReadRequest(file, elements=("O", "H")), "mtp", keys=LabelKeys(virial="Stress"))
    assert batch.has_stress.all()


@pytest.mark.parametrize(
    ("old", "new", "detail"),
    [
        (" 2\n", " 3\n", "'Energy' was not expected|atom 3 has"),
        (" 2\n", " 99999999999\n", "Size 99999999999, but 7 lines follow"),
        ("END_CFG\n", "", "another BEGIN_CFG in line 32"),
        (" 1 2 0.5", " 1 2 0.5 7", "atom 2 has 11 words for the 10 columns"),
        ("fx fz", "fx qq", "AtomData has some of fx, fy, fz"),
        (" -3\n Plus", " ***\n Plus", "could not convert string to float: .*"),
        ("direct_x", "cartes_x", "AtomData has some of cartes_x"),
        (" 6 1 2 3 5 4", " 6 1 2 3 5", "PlusStress: has 5 numbers for 6 components"),
        ("Feature", "Featur", "'Featur EFS_by VASP' was not expected"),
        (" 0 1 0 0 0 2", " -1 1 0 0 0 2", "types -1 to 1; whole numbers from 0 on"),
    ],
)
def test_a_frame_that_cannot_be_read_is_counted_with_its_line(tmp_path: Path, old: str, new: str, detail: str) -> None:
    file = write(tmp_path / "x.cfg", FRAME + FRAME.replace(old, new, 1) + FRAME)
    batch, tally = read_with(ReadRequest(file, elements=("O", "H")), "mtp")
    assert len(batch) == 2 and sum(tally.skipped.values()) == 1
    ((place, _, found),) = tally.places
    assert place == f"{file}: line 17"
    assert re.search(detail, found), found


def test_another_kind_of_cfg_and_a_cut_off_gzip(tmp_path: Path) -> None:
    _, tally = read_with_nothing(write(tmp_path / "setup.cfg", "[metadata]\nname = x\n"))
    assert list(tally.skipped) == ["no .cfg file of MTP: it has no BEGIN_CFG"]
    packed = gzip.compress((FRAME * 50).encode())
    (tmp_path / "y.cfg.gz").write_bytes(packed[: len(packed) - 20])
    batch, tally = read_with(ReadRequest(tmp_path / "y.cfg.gz", elements=("O", "H")), "mtp")
    assert len(batch) > 10 and list(tally.skipped) == ["a configuration without END_CFG"]


def read_with_nothing(file: Path):
    from atomsieve.structures.conversion.validation import BlockValidator
    from atomsieve.structures.formats import read_blocks

    validator = BlockValidator(LabelKeys())
    return [validator(block) for block in read_blocks(ReadRequest(file), "mtp")], validator.tally
