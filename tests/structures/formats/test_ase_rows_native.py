"""Rows of ASE's databases by the compiled parser, against those that are read in Python."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from atomsieve.native import text_library
from atomsieve.structures.block import Block, Column
from atomsieve.structures.formats.ase_rows import RowGatherer, find_parser
from atomsieve.structures.formats.ase_rows_native import CompiledGatherer

pytestmark = pytest.mark.skipif(text_library() is None, reason="the parsers are not compiled here")


def gather(gatherer: RowGatherer, texts: list[bytes]) -> Block:
    for k, text in enumerate(texts):
        try:
            gatherer.add_text(text, k)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            gatherer.refuse(type(error).__name__, k, str(error))
    return gatherer.take(3, 9)


def assert_equal_columns(given: dict[str, Column], expected: dict[str, Column]) -> None:
    assert given.keys() == expected.keys()
    for key, column in expected.items():
        assert given[key].has.tolist() == column.has.tolist(), key
        assert given[key].values.dtype == column.values.dtype, key
        assert given[key].values.shape == column.values.shape, key
        if column.numeric:
            np.testing.assert_array_equal(given[key].values, column.values, err_msg=key)
            np.testing.assert_array_equal(np.signbit(given[key].values), np.signbit(column.values), err_msg=key)
        else:
            assert repr(given[key].values.tolist()) == repr(column.values.tolist()), key


def compare(texts: list[bytes]) -> Block:
    library = text_library()
    assert library is not None
    expected = gather(RowGatherer("x", "key", parse=find_parser()), texts)
    given = gather(CompiledGatherer("x", "key", find_parser(), library), texts)
    for name in ("ptr", "numbers", "positions", "cell", "pbc"):
        one, two = getattr(given, name), getattr(expected, name)
        assert (one.dtype, one.shape) == (two.dtype, two.shape), name
        np.testing.assert_array_equal(one, two, err_msg=name)
    assert given.bad == expected.bad
    assert list(given.places) == list(expected.places)
    assert_equal_columns(given.info, expected.info)
    assert_equal_columns(given.arrays, expected.arrays)
    return given


def real(rng: np.random.Generator) -> Any:
    """Return a number of any size and spelling: whole ones, zeros of both signs, all digits, the ends of the range."""
    kind = rng.integers(0, 8)
    if kind == 0:
        return int(rng.integers(-5, 5))
    if kind == 1:
        return [0.0, -0.0, 1e-310, 5e-324, 1.7976931348623157e308, 123456789012345678901234.0, 0.1, 1e22][
            rng.integers(8)
        ]
    if kind == 2:
        return float(f"{rng.normal():.3f}")
    if kind == 3:
        return float(rng.normal() * 10.0 ** rng.integers(-300, 300))
    return float(rng.normal())


def reals(rng: np.random.Generator, *shape: int) -> Any:
    return np.array([real(rng) for _ in range(int(np.prod(shape)))], object).reshape(shape).tolist()


def pack(rng: np.random.Generator, rows: Any, dtype: str = "float64") -> Any:
    """Return an array as ASE spells it, or as nested lists."""
    if rng.random() < 0.3:
        return rows
    return {"__ndarray__": [list(np.shape(rows)), dtype, np.array(rows, object).ravel().tolist()]}


def make_row(rng: np.random.Generator) -> dict[str, Any]:
    n = int(rng.integers(0, 5))
    odd: list[Any] = [
        *(None, True, False, 0, -7, 10**30, 1.5, float("nan"), "", "text", 'a "quote"', "é", "\u2028", "a\nb"),
        *([], {}, [1, 2], [1.0, 2], [[1.0], [2.0]], ["a", "b"], [1, [2]], {"a": 1}, {"a": {"b": [1, None]}}),
        *({"__ndarray__": [[2], "float64", [1.0, 2.0]]}, {"__ndarray__": [[2], "int64", [1, 2]]}),
        *({"__ndarray__": [[1], "complex128", [1.0, 2.0]]}, {"__ndarray__": [[3], "float64", [1.0, 2.0]]}),
        {"__ndarray__": [[n, 3], "float64", reals(rng, n, 3)]},
        {"__ndarray__": [[], "float64", [1.0]]},
    ]

    def pick() -> Any:
        return odd[rng.integers(len(odd))] if rng.random() < 0.1 else [real(rng), "word", True, 5][rng.integers(4)]

    row: dict[str, Any] = {"numbers": pack(rng, rng.integers(1, 90, n).tolist(), "int64")}
    row["positions"] = pack(rng, reals(rng, n, 3)) if n else {"__ndarray__": [[0, 3], "float64", []]}
    row.update(ctime=1.5, user=None, unique_id="abc", energy=real(rng), forces=pack(rng, reals(rng, n, 3)))
    if rng.random() < 0.8:
        row["cell"], row["pbc"] = pack(rng, reals(rng, 3, 3)), pack(rng, [bool(rng.integers(2)) for _ in "abc"], "bool")
    if rng.random() < 0.5:
        row["tags"] = pack(rng, rng.integers(0, 3, n).tolist(), "int64")
    if rng.random() < 0.5:
        row["magmoms"] = pack(rng, reals(rng, n, int(rng.choice([1, 3]))))
    row["stress"] = {"__ndarray__": [[6], "float64", reals(rng, 6)]}
    names = [
        "charge",
        "spin",
        "sid",
        "energy",
        "user",
        "id",
        "natoms",
        "forces",
        "dft_forces",
        "charges",
        "x y",
        "extra",
    ]
    for key in ("key_value_pairs", "data"):
        if rng.random() < 0.7:
            row[key] = {name: pick() for name in rng.choice(names, 4)}
    for name in rng.choice([*names, *row, "data", "pbc", "cell", "numbers", "positions", "stresses", "constraints"], 2):
        if rng.random() < 0.15:
            row[str(name)] = pick()
    keys = list(row)
    rng.shuffle(keys)
    return {key: row[key] for key in keys}


@pytest.mark.parametrize("seed", range(6))
def test_rows_equal_those_read_in_python(seed: int) -> None:
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(250):
        spaced = rng.random() < 0.5
        text = json.dumps(
            make_row(rng), ensure_ascii=bool(rng.random() < 0.8), separators=(", ", ": ") if spaced else (",", ":")
        ).encode()
        if rng.random() < 0.08:  # damage of any kind
            at = int(rng.integers(len(text)))
            text = [text[:at], text[:at] + text[at + 1 :], text + b" ", text[:at] + b"0" + text[at:]][rng.integers(4)]
        texts.append(text)
    found = compare(texts)
    assert len(found) > 100 and found.bad


def test_all_digits_are_rounded_exactly() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**63, 3000, dtype=np.uint64)
    values = [*bits.view(np.float64).tolist(), *(rng.normal(size=20000) * 10 ** rng.uniform(-9, 9, 20000)).tolist()]
    spelled = [repr(x) for x in values if np.isfinite(x)]
    spelled += [f"{x:.18f}" for x in rng.normal(size=3000)] + [f"{x:.25e}" for x in rng.normal(size=3000)]
    # Halfway between two doubles, and a little off: only all digits decide.
    spelled += ["9007199254740993.0", "9007199254740993.00", "4503599627370497.5", "4503599627370497.501"]
    spelled = spelled[: len(spelled) // 3 * 3]
    count = len(spelled) // 3
    text = f'{{"numbers": {[1] * count}, "positions": [{",".join(spelled)}]}}'.encode()
    library = text_library()
    assert library is not None
    gatherer = CompiledGatherer("x", "key", lambda _: pytest.fail("read in Python"), library)
    gatherer.add_text(text, 0)
    assert gatherer.take().positions.ravel().tolist() == [float(word) for word in spelled]


def test_rows_of_one_kind_stay_in_the_library() -> None:
    row = {"numbers": [1, 8], "positions": [[0, 0, 0], [1, 1, 1]], "energy": -1.5, "data": {"sid": "a", "spin": 1}}
    library = text_library()
    assert library is not None
    gatherer = CompiledGatherer("x", "key", lambda _: pytest.fail("read in Python"), library)
    for k in range(3):
        gatherer.add_text(json.dumps(row).encode(), k)
    block = gatherer.take()
    assert block.info["energy"].values.tolist() == [-1.5] * 3 and block.info["spin"].values.dtype == np.int64
    assert block.info["sid"].values.tolist() == ["a"] * 3 and block.info["id"].values.tolist() == [0, 1, 2]
