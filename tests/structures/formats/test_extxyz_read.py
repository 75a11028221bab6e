"""Extended XYZ is read as ASE reads it, to the last bit, and better where ASE loses what the file says."""

from __future__ import annotations

import gzip
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atomsieve.errors import DataError
from atomsieve.native import text_library
from atomsieve.structures.block import Block
from atomsieve.structures.formats import pieces
from atomsieve.structures.formats.extxyz import BY_ASE, measure_extent
from atomsieve.structures.item import BadItem
from tests.structures.formats.extxyz_samples import assert_equal, frames, read, read_by_ase, split

pytestmark = pytest.mark.skipif(text_library() is None, reason="no compiled parser")

ROWS = "Cs 0 0 0 1 2 3\nCl 1.5 1.5 1.0D+00 0 0 -1.5d-3\n"


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "x.xyz"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def one(folder: Path, text: str) -> Block:
    (block,) = read(write(folder, text))
    return block


def reasons(blocks: list[Block]) -> list[tuple[str, str]]:
    return [(bad.reason, bad.detail) for block in blocks for _, bad in block.bad]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(frames(), min_size=1, max_size=4))
def test_equals_ase(tmp_path: Path, texts: list[str]) -> None:
    path = write(tmp_path, "".join(texts))
    found, wanted = list(split(read(path))), list(split(read_by_ase(path)))
    assert len(found) == len(wanted) == len(texts)
    for own, other in zip(found, wanted, strict=True):
        if isinstance(other, BadItem):
            continue  # ASE cannot read it: any answer of ours is tested elsewhere
        assert not isinstance(own, BadItem), own
        assert_equal(own, other)


@pytest.mark.parametrize("source", ["mptrj", "oxides_pbe", "fad_ccsdt", "qm22_b3lyp"])
def test_real_files_equal_ase(shared_data: Path, source: str) -> None:
    path = shared_data / source / "test.extxyz.gz"
    for own, other in zip(split(read(path)), split(read_by_ase(path)), strict=True):
        assert not isinstance(own, BadItem) and not isinstance(other, BadItem)
        assert_equal(own, other)


# -- what ASE loses --------------------------------------------------------------------------------------------------


def test_lower_case_keys_of_gpumd_and_nep(tmp_path: Path) -> None:
    head = 'energy=-7.5 lattice="3 0 0 0 3 0 0 0 3" properties=species:S:1:pos:R:3:force:R:3'
    block = one(tmp_path, f"2\n{head}\n{ROWS}")
    assert block.pbc.all() and (block.cell[0] == 3 * np.eye(3)).all()
    np.testing.assert_array_equal(block.arrays["force"].values, [[1, 2, 3], [0, 0, -0.0015]])
    assert block.positions[1].tolist() == [1.5, 1.5, 1.0]
    block = one(tmp_path, f'2\n{head} pbc="F F F"\n{ROWS}')
    assert not block.pbc.any() and block.cell.any(), "a cell with pbc off stays as it is stated"


def test_tensors(tmp_path: Path) -> None:
    """Six numbers, nine, and nested brackets are one tensor; ASE loses the frames of the first and the last."""
    text = "".join(
        f"1\n{key}={value}\nH 0 0 0\n"
        for key in ("stress", "virial")
        for value in ('"1 2 3 4 5 6"', '"1 6 5 6 2 4 5 4 3"', "[[1, 6, 5], [6, 2, 4], [5.0, 4, 3]]")
    )
    block = one(tmp_path, text)
    assert block.info["stress"].values.tolist() == [[1, 2, 3, 4, 5, 6]] * 3
    voigt, *whole = (np.asarray(value).tolist() for value in block.info["virial"].values)
    assert voigt == [1, 2, 3, 4, 5, 6] and whole == [[[1, 6, 5], [6, 2, 4], [5, 4, 3]]] * 2
    block = one(tmp_path, "1\na=[[1, 2], [3, 4], [5, 6]] b=[1, 2] c=[[1, x]]\nH 0 0 0\n")
    assert block.info["a"].values.tolist() == [[[1, 2], [3, 4], [5, 6]]]
    assert block.info["b"].values.tolist() == [[1, 2]] and block.info["c"].values.tolist() == ["[1, x]"]


def test_species(tmp_path: Path) -> None:
    text = "3\n\nD 0 0 0\n8 0 0 1\nt 0 0 2\n" + "1\nProperties=Z:I:1:Pos:R:3:Forces:R:3\n79 0 0 0 1 2 3\n"
    block = one(tmp_path, text)
    assert block.numbers.tolist() == [1, 8, 1, 79]
    assert block.notes == {"D or T was taken as hydrogen": 1}
    assert block.arrays["forces"].values.tolist() == [[1, 2, 3]]
    bad = "".join(f"1\n\n{word} 0 0 0\n" for word in ("Cu1", "X", "Gh", "Bq", "0", "119", "C{", "Fe2+"))
    assert reasons(read(write(tmp_path, bad))) == [
        ("not a symbol of an element", "line 3: 'Cu1'"),
        ("a ghost atom or placeholder", "line 6: 'X'"),
        ("a ghost atom or placeholder", "line 9: 'Gh'"),
        ("a ghost atom or placeholder", "line 12: 'Bq'"),
        ("a ghost atom or placeholder", "line 15: '0'"),
        ("not a symbol of an element", "line 18: '119'"),
        ("not a symbol of an element", "line 21: 'C{'"),
        ("not a symbol of an element", "line 24: 'Fe2+'"),
    ]


def test_values_that_ase_takes_otherwise(tmp_path: Path) -> None:
    """An empty pair of quotes does not swallow the next key; keys may hold `::`; a real may have the exponent D."""
    block = one(tmp_path, '1\ncomment="" energy=-1.0D+02 a::b=5 name=2d10\nH 0 0 0\n')
    assert {key: column.values[0] for key, column in block.info.items()} == {
        "comment": "",
        "energy": -100.0,
        "a::b": 5,
        "name": "2d10",
    }


def test_a_backslash_that_ends_a_header(tmp_path: Path) -> None:
    assert len(one(tmp_path, "1\nname=a\\\nH 0 0 0\n")) == 1


def test_units(tmp_path: Path) -> None:
    """Units of the header, as dpdata writes them, are those of the block; another block begins where they change."""
    text = "1\nenergy-unit=hartree force-unit=hartree/bohr energy=-7.8915\nH 0 0 0\n"
    plain = "1\nenergy=1\nH 0 0 0\n"
    found = read(write(tmp_path, text + text + plain + text.replace("hartree/bohr", "stone/mile")))
    assert [len(block) for block in found] == [2, 1, 0]
    assert found[0].units.energy == "hartree" and found[0].units.forces == "hartree/bohr"
    assert "energy-unit" not in found[0].info
    assert found[0].units.origin == "the file" and not found[1].units.stated
    ((_, bad),) = found[2].bad
    assert bad.reason == "a unit that is not known" and "stone/mile" in bad.detail and bad.where.endswith("frame 3")


def test_frames_that_only_ase_knows(tmp_path: Path) -> None:
    """Cell vectors as atoms and digits beyond ASCII: read by ASE, counted, in their place among the others."""
    vectors = "1\nBob's\nH 0 0 1\nVEC1 2 0 0\nVEC2 0 2 0\nVEC3 0 0 2\n"
    blocks = read(
        write(
            tmp_path, f"1\na=1\nH 0 0 0\n{vectors}1\nname=\u0663 a=3\nH 0 0 2\n1\na=4 who=J\u00f8rgen\u6c34\nH 0 0 3\n"
        )
    )
    assert np.concatenate([block.positions for block in blocks])[:, 2].tolist() == [0, 1, 2, 3]
    assert sum(block.notes.get(BY_ASE, 0) for block in blocks) == 2
    assert (blocks[1].cell[0] == 2 * np.eye(3)).all() and blocks[2].info["name"].values[0] == 3
    assert blocks[3].info["who"].values[0] == "J\u00f8rgen\u6c34" and blocks[3].places[0].endswith("frame 3")
    assert [block.start for block in blocks[1:]] == [block.stop for block in blocks[:-1]]


# -- bad input -------------------------------------------------------------------------------------------------------

GOOD = '2\nLattice="3 0 0 0 3 0 0 0 3" Properties=species:S:1:pos:R:3 ok=T\nFe 0 0 0\nO 1 1 1\n'
FEW = "fewer words on the line of an atom than Properties state"
NO_FRAME = "lines that belong to no structure"
COUNT = "line 5: a number of atoms was expected, got "
DAMAGED = {
    "***": (GOOD.replace("1 1 1", "1 *** 1"), "not a number", "line 8: '***'"),
    "few words": (GOOD.replace("O 1 1 1", "O 1 1"), FEW, "line 8: 'O 1 1'"),
    "few lines": (GOOD.replace("O 1 1 1\n", ""), FEW, "line 8: '2'"),
    "many lines": (GOOD + "O 2 2 2\n", "more lines of atoms than the number of atoms says", "line 9: 2 are announced"),
    "blank": (GOOD.replace("O 1", "\nO 1"), "a blank line where an atom was expected", "line 8: ''"),
    "count": (
        GOOD.replace("2\n", "10000000\n", 1),
        "the file ends within a structure",
        "line 6: 10000000 atoms are announced",
    ),
    "no count": (GOOD.replace("2\n", "two\n", 1), NO_FRAME, COUNT + "'two'"),
    "quote": (GOOD.replace('0 3"', "0 3"), "a quote or bracket in the header is not closed", "line 6"),
    "twice": (GOOD.replace("ok=T", "ok=T ok=F"), "a key twice with two values", "line 6: ok"),
    "lattice": (GOOD.replace('0 0 0 3"', '0 0 3"'), "a lattice that is not nine numbers", "line 6: '3 0 0 0 3 0 0 3'"),
    "pbc": (GOOD.replace("ok=T", "pbc=slab"), "pbc is not one or three truth values", "line 6: 'slab'"),
    "type": (
        GOOD.replace("pos:R", "pos:Q"),
        "Properties that cannot be used",
        "line 6: no type 'Q' in 'species:S:1:pos:Q:3'",
    ),
    "rubbish": ("\0\1\2\xff\n\n\xfe" * 40 + "\n", NO_FRAME, COUNT + "'????'"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_frame_costs_itself_only(tmp_path: Path, name: str) -> None:
    text, reason, detail = DAMAGED[name]
    path = write(tmp_path, (GOOD + text + GOOD + GOOD).encode("latin-1"))
    found = list(split(read(path)))
    assert sum(not isinstance(row, BadItem) for row in found) == 3
    (bad,) = (row for row in found if isinstance(row, BadItem))
    assert (bad.reason, bad.detail, bad.where) == (reason, detail, f"{path}: frame 1")


def test_a_file_without_a_frame(tmp_path: Path) -> None:
    for text in ("hello\nworld\n", bytes(range(256)) * 20):
        with pytest.raises(DataError, match=r"x.xyz, line 1: a number of atoms was expected, got '"):
            read(write(tmp_path, text))
    assert read(write(tmp_path, "\n\n")) == []


@pytest.mark.parametrize("cut", [30, 500, 3000])
def test_compressed_data_that_end_early(tmp_path: Path, cut: int) -> None:
    rng = random.Random(0)
    text = "".join(f"2\nn={k}\nFe 0 0 {rng.random()}\nO 1 1 {rng.random()}\n" for k in range(3000))
    path = tmp_path / "x.xyz.gz"
    path.write_bytes(gzip.compress(text.encode(), mtime=0)[:-cut])
    found = list(split(read(path)))
    *whole, last = found
    assert isinstance(last, BadItem) and "the compressed data end early" in last.detail
    assert last.reason == "the file ends within a structure"
    for own, other in zip(whole, split(read(write(tmp_path, text))), strict=False):
        assert not isinstance(own, BadItem) and not isinstance(other, BadItem)
        assert_equal(own, other)


def test_several_members_and_padding(tmp_path: Path) -> None:
    (tmp_path / "x.xyz.gz").write_bytes(gzip.compress(GOOD.encode()) + gzip.compress(GOOD.encode()) + b"\0" * 512)
    (block,) = read(tmp_path / "x.xyz.gz")
    assert len(block) == 2 and not block.bad
    assert measure_extent(tmp_path / "x.xyz.gz") == 0


# -- spans -----------------------------------------------------------------------------------------------------------

NASTY = (
    "\n\n"
    + GOOD
    + DAMAGED["***"][0]
    + "3\n2\nH 0 0 0\nH 0 0 1\nH 0 0 2\n\n\n"  # the second line is a number too
    + "0\nempty\n"
    + DAMAGED["few lines"][0]
    + "1\nname=\u0663\nO 0 0 2\n"
    + GOOD.replace("\n", "\r\n")
    + DAMAGED["many lines"][0]
    + "rubbish\n7\n\n"
    + GOOD
    + "\0\1\ufffd\n\n\n"
    + GOOD
    + "\n\n"
)


def _chain(path: Path, edges: list[int]) -> list[Block]:
    """Read spans as a conversion does: each by itself, again from where the one before ended if they do not meet."""
    out: list[Block] = []
    reached = edges[0]
    for start, stop in pairwise(edges):
        if reached >= stop:
            continue
        blocks = read(path, start=start, stop=stop, sure=start == 0)
        if not blocks or (start and blocks[0].start != reached):
            blocks = read(path, start=reached, stop=stop, sure=True)
        out += blocks
        reached = blocks[-1].stop if blocks else reached
    return out


def _same(found: list[Block], wanted: list[Block]) -> None:
    for own, other in zip(split(found), split(wanted), strict=True):
        if isinstance(other, BadItem):
            assert isinstance(own, BadItem) and own.reason == other.reason
        else:
            assert not isinstance(own, BadItem)
            assert_equal(own, other)


def test_spans_at_every_byte(tmp_path: Path) -> None:
    path = write(tmp_path, NASTY)
    whole, size = read(path), measure_extent(path)
    assert size == len(NASTY.encode())
    for cut in range(1, size):
        _same(_chain(path, [0, cut, size]), whole)


def test_spans_of_clean_frames_meet(tmp_path: Path) -> None:
    """Of a file without damage each span is right by itself: it ends where the next one begins."""
    path = write(tmp_path, GOOD * 30)
    for step in (7, 50, 81, 200):
        edges = [*range(0, 30 * len(GOOD), step), 30 * len(GOOD)]
        found = [read(path, start=a, stop=b, sure=False) for a, b in pairwise(edges)]
        starts = [block.start for blocks in found for block in blocks]
        assert starts == [0, *[block.stop for blocks in found for block in blocks][:-1]]
        assert sum(len(block) for blocks in found for block in blocks) == 30


def test_places_in_a_span(tmp_path: Path) -> None:
    """Frames are counted from the beginning of the span, and lines are named by their bytes in the file."""
    path = write(tmp_path, GOOD * 3 + DAMAGED["***"][0] + GOOD)
    (block,) = read(path, start=len(GOOD) + 5, sure=False)
    assert block.start == 2 * len(GOOD) and list(block.places) == [f"{path}: frame 0", f"{path}: frame 2"]
    ((place, bad),) = block.bad
    at = path.read_text().index("O 1 *** 1")
    assert place == 1 and bad == BadItem("not a number", f"{path}: frame 1", f"the line at byte {at}: '***'")
    assert read(path, start=len(GOOD) + 5, stop=len(GOOD) + 40, sure=False) == [], "no frame begins there"


@pytest.mark.parametrize("piece", [1, 7, 100, 1000])
def test_pieces_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    path = write(tmp_path, NASTY)
    whole = read(path)
    monkeypatch.setattr(pieces, "PIECE", piece)
    monkeypatch.setattr("atomsieve.structures.formats.extxyz.PIECE", piece)
    monkeypatch.setattr(pieces.Pieces.__init__, "__defaults__", (0, piece))
    _same(read(path), whole)
    packed = tmp_path / "x.xyz.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    _same(read(packed), whole)


def test_random_damage_never_loses_frames_in_silence(tmp_path: Path) -> None:
    """Whatever bytes are changed, cut or doubled: no crash, and frames that are untouched are all there."""
    rng = random.Random(1)
    texts = [GOOD.replace("ok=T", f"k={k}").replace("1 1 1", f"1 1 {k}") for k in range(12)]
    for _ in range(200):
        hit = rng.randrange(1, 11)
        raw = bytearray(texts[hit].encode())
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(raw))
            raw[at : at + rng.choice([0, 1, 5])] = bytes(rng.randrange(256) for _ in range(rng.choice([0, 1, 3])))
        path = write(tmp_path, "".join(texts[:hit]).encode() + bytes(raw) + "".join(texts[hit + 1 :]).encode())
        found = list(split(read(path)))
        kept = {int(row["positions"][-1, 2]) for row in found if not isinstance(row, BadItem) and len(row["positions"])}
        assert kept >= set(range(12)) - {hit, hit + 1}, raw
        assert len(found) >= 11, raw
