"""Frames of extended XYZ for tests: reading them, comparing them with what ASE reads, and hypothesis strategies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from atomsieve.structures.block import Block, gather_blocks
from atomsieve.structures.formats.extxyz import read_extxyz
from atomsieve.structures.formats.extxyz_ase import read_through_ase
from atomsieve.structures.item import BadItem, ReadRequest

Structure = dict[str, Any]
"""Arrays, info and arrays of atoms of one structure, by name."""


def read(path: Path, **span: Any) -> list[Block]:
    """Return the blocks of a file or of a span of it."""
    return list(gather_blocks(read_extxyz(ReadRequest(path, **span))))


def read_by_ase(path: Path) -> list[Block]:
    """Return the blocks of a file, every frame read by ASE."""
    return list(gather_blocks(read_through_ase(ReadRequest(path))))


def split(blocks: Sequence[Block]) -> Iterator[Structure | BadItem]:
    """Yield the structures of blocks one by one, and those that could not be read between them."""
    for block in blocks:
        bad = dict(block.bad)
        whole = iter(_structures(block))
        for k in range(block.read):
            yield bad[k] if k in bad else next(whole)


def _structures(block: Block) -> Iterator[Structure]:
    for s in range(len(block)):
        own = slice(int(block.ptr[s]), int(block.ptr[s + 1]))
        found: Structure = {
            "numbers": block.numbers[own],
            "positions": block.positions[own],
            "cell": block.cell[s],
            "pbc": block.pbc[s],
        }
        for key, column in block.info.items():
            if column.has[s]:
                found[f"info {key}"] = column.values[int(column.has[:s].sum())]
        for key, column in block.arrays.items():
            if column.has[s]:
                first = int(block.counts[:s][column.has[:s]].sum())
                found[f"array {key}"] = column.values[first : first + int(block.counts[s])]
        yield found


def assert_equal(found: Structure, wanted: Structure) -> None:
    """Compare every value to the last bit."""
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        own, other = np.asarray(found[key]), np.asarray(value)
        assert own.shape == other.shape, key
        kinds = {own.dtype.kind, other.dtype.kind}
        assert kinds <= {"i", "u", "f", "b"} or len(kinds) == 1 or kinds <= {"U", "O"}, (key, kinds)
        if own.dtype.kind == "f" or other.dtype.kind == "f":
            own, other = own.astype(float), other.astype(float)
            assert np.array_equal(np.signbit(own), np.signbit(other)) or np.isnan(other).any(), key
            np.testing.assert_array_equal(own, other, err_msg=key)
        else:
            assert own.tolist() == other.tolist(), key


# -- strategies ------------------------------------------------------------------------------------------------------

reals = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-1e3, 1e3).map(lambda x: round(x, 8)),
    st.sampled_from([0.0, -0.0, 5e-324, 1.7976931348623157e308, 2.2250738585072014e-308, 9007199254740993.0]),
)
formats = st.sampled_from(["{!r}", "{:.8f}", "{:.17e}", "{:.3E}", "{:+.6f}", "{:g}", "{:.30f}", "{:.0f}."])
number_words = st.one_of(
    st.builds(lambda form, x: form.format(x), formats, reals),
    st.sampled_from(["1.", ".5", "-.5", "+1", "007", "1_000.5", "1e5", "1E+05", "1e-320", "1e400", "inf", "-Infinity"]),
)
int_words = st.one_of(
    st.integers(-(2**63), 2**63 - 1).map(str), st.sampled_from(["+7", "-0", "1_0", "99999999999999999999999"])
)
keys = st.from_regex(r"[A-Za-z_][A-Za-z0-9_:-]{0,8}", fullmatch=True).filter(
    lambda key: key.lower() not in ("lattice", "properties", "pbc", "stress", "virial", "_json") and "unit" not in key
)
text_words = st.from_regex(r"[A-Za-z0-9_./:*+-]{1,12}", fullmatch=True)
phrases = st.lists(text_words, min_size=1, max_size=4).map(" ".join)
values = st.one_of(
    number_words,
    int_words,
    text_words,
    st.sampled_from(["T", "F", "true", "False", "TRUE", "t"]),
    st.builds(
        lambda words, apart, quotes: quotes[0] + apart.join(words) + quotes[1],
        st.one_of(
            st.lists(number_words, min_size=1, max_size=10),
            st.lists(int_words, min_size=1, max_size=10),
            st.lists(st.sampled_from(["T", "F", "True"]), min_size=1, max_size=4),
            st.lists(text_words, min_size=1, max_size=4),
            st.lists(st.one_of(number_words, text_words), min_size=1, max_size=4),
        ),
        st.sampled_from([" ", "  ", ", ", ",", "\t"]),
        st.sampled_from(['""', "''", "{}", "[]"]),
    ),
    st.sampled_from(['"say \\"so\\""', "a\\ b", '"it\'s = x"', "a=b=c", '"_JSON [[1, 2], [3, 4]]"', '"a{b"']),
)
symbols = st.sampled_from(["H", "he", "FE", "Cu", "U", "O", "og"])


@st.composite
def frames(draw: st.DrawFn) -> str:
    """Draw a frame that ASE reads."""
    count = draw(st.integers(0, 4))
    columns = [("species", "S", symbols, 1), ("pos", "R", number_words, 3)]
    more = [
        ("forces", "R", number_words, 3),
        ("magmoms", "R", number_words, 1),
        ("tags", "I", st.integers(-(2**31), 2**31 - 1).map(str), 1),
        ("site", "S", text_words, 1),
        ("pair", "S", text_words, 2),
        ("fixed", "L", st.sampled_from(["T", "F", "True", "False"]), 1),
        ("wide", "R", number_words, 5),
    ]
    parts: list[str] = []
    if draw(st.booleans()):
        columns += draw(st.lists(st.sampled_from(more), unique_by=lambda row: row[0]))
        columns = draw(st.permutations(columns))
        mark = draw(st.sampled_from(["", '"']))
        words = ":".join(f"{name}:{kind}:{width}" for name, kind, _, width in columns)
        parts.append(f"Properties={mark}{words}{mark}")
    if draw(st.booleans()):
        cell = " ".join(draw(st.lists(st.one_of(number_words, int_words), min_size=9, max_size=9)))
        parts.append(f'Lattice="{cell}"')
    if draw(st.booleans()):
        parts.append(draw(st.sampled_from(['pbc="T F T"', "pbc=F", 'pbc="1 0 1"', "pbc=[True, False, True]"])))
    if draw(st.booleans()):
        tensor = " ".join(draw(st.lists(number_words, min_size=9, max_size=9)))
        parts.append(f'{draw(st.sampled_from(["stress", "virial"]))}="{tensor}"')
    for key in draw(st.lists(keys, max_size=4, unique=True)):
        parts.append(draw(st.one_of(st.just(key), st.builds(lambda k, e, v: k + e + v, st.just(key), EQUALS, values))))
    parts = draw(st.permutations(parts))
    lines = [f"{draw(st.sampled_from(['', ' ']))}{count}", draw(st.sampled_from([" ", "  ", "\t"])).join(parts)]
    for _ in range(count):
        row = [draw(words) for _, _, words, width in columns for _ in range(width)]
        lines.append(draw(st.sampled_from([" ", "   ", "\t"])).join(row))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    return end.join(lines) + end


EQUALS = st.sampled_from(["=", " =", "= ", " = "])
