"""Row filters: what they compute, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomsieve.errors import UsageError
from atomsieve.structures.expression import compile_where

COLUMNS = {
    "natoms": np.array([1, 2, 300, 4], np.uint16),
    "energy": np.array([-1.0, np.nan, 2.5, 0.05], np.float32),
    "source": np.array(["mptrj", "wbm", "mptrj", "qm"]),
    "id": np.array([2**60 + 1, 2, 3, 4], np.int64),
    "status": np.array([0, 1, 255, 0], np.uint8),
    "in_domain": np.array([True, False, True, False]),
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("natoms < 3", [1, 1, 0, 0]),
        ("natoms < 3 and energy < 0", [1, 0, 0, 0]),
        ("not (natoms < 3) or id == 2", [0, 1, 1, 1]),
        ("1 < natoms <= 4", [0, 1, 0, 1]),
        ("source == 'mptrj'", [1, 0, 1, 0]),
        ("source in ['wbm', \"qm\"]", [0, 1, 0, 1]),
        ("source not in ('wbm', 'qm')", [1, 0, 1, 0]),
        (f"id == {2**60 + 1}", [1, 0, 0, 0]),
        (f"id == {2**60}", [0, 0, 0, 0]),
        ("status + 2 > 256", [0, 0, 1, 0]),
        ("energy / natoms < -0.5", [1, 0, 0, 0]),
        ("isnan(energy)", [0, 1, 0, 0]),
        ("energy != energy", [0, 1, 0, 0]),
        ("in_domain", [1, 0, 1, 0]),
        ("in_domain and not status == 255", [1, 0, 0, 0]),
        ("abs(energy) ** 2 > 6", [0, 0, 1, 0]),
        ("natoms ** -1 < 0.01", [0, 0, 1, 0]),
        ("max(natoms, id) == 4", [0, 0, 0, 1]),
        ("energy > -inf", [1, 0, 1, 1]),
        ("natoms // 0 == 1", [0, 0, 0, 0]),
        ("natoms in [-1, 4]", [0, 0, 0, 1]),
        ("True", [1, 1, 1, 1]),
    ],
)
def test_values(text: str, expected: list[int]) -> None:
    keep = compile_where(text, COLUMNS)
    mask = keep(COLUMNS)
    assert mask.dtype == bool
    assert mask.tolist() == [bool(v) for v in expected]


def test_names_are_only_those_needed() -> None:
    assert compile_where("natoms < 3 or energy > nan", COLUMNS).names == {"natoms", "energy"}


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "().__class__.__bases__",
        "natoms.__class__",
        "natoms[0] == 1",
        "(lambda: 1)() == 1",
        "[x for x in (1,2)] == 1",
        "open('/etc/passwd') == 1",
        "f'{natoms}' == '1'",
        "natoms if natoms else id",
        "(x := 3) < natoms",
        "natoms < 3; import os",
        "natoms @ id < 1",
        "natoms << 3 > 1",
        "natoms < 3 & id > 2",
        "abs(natoms, natoms) < 1",
        "abs(x=natoms) < 1",
        "abs(*natoms) < 1",
        "eval('1') == 1",
        "natoms is 3",
        "1j == natoms",
        "b'a' == source",
        "... == natoms",
        "None == natoms",
        "source in natoms",
        "source in [natoms]",
        f"natoms < {10**30}",
        "9**9**9**9 > natoms and 'a' * 3 == source",
        "natoms",
        "natoms + 1",
        "'yes'",
        "natoms == 'mptrj' and 1 == 'a'",
        "source + 1 > 2",
        "source < 3",
        "source == 3",
        "natoms and in_domain",
        "",
        "  ",
        "natoms = 3",
        "natoms <",
        "natoms < 3\x00",
        "(" * 500 + "natoms" + ")" * 500 + "<1",
        "not " * 300 + "in_domain",
        "-" * 3000 + "1 < natoms",
        "natoms < 1 or " * 400 + "natoms < 1",
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        compile_where(text, COLUMNS)(COLUMNS)
    assert "\n" not in str(caught.value)


def test_unknown_column_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown column 'enery' \(did you mean 'energy'\?\)"):
        compile_where("enery < 1", COLUMNS)
    with pytest.raises(UsageError, match="compare with '=='"):
        compile_where("natoms = 1", COLUMNS)
    with pytest.raises(UsageError, match="use 'and' instead of '&'"):
        compile_where("(natoms < 3) & (id > 2)", COLUMNS)


def test_huge_powers_end_at_once() -> None:
    assert compile_where("9 ** 9 ** 9 > natoms", COLUMNS)(COLUMNS).all()


@given(st.text(max_size=60))
def test_any_text_is_a_mask_or_a_usage_error(text: str) -> None:
    try:
        mask = compile_where(text, COLUMNS)(COLUMNS)
    except UsageError:
        return
    assert mask.shape == (4,)
    assert mask.dtype == bool


@given(st.floats(-5, 5, width=32), st.integers(-3, 400))
def test_equals_numpy(a: float, n: int) -> None:
    keep = compile_where(f"energy < {a!r} or natoms * 2 >= {n}", COLUMNS)
    with np.errstate(invalid="ignore"):
        expected = (COLUMNS["energy"].astype(float) < a) | (COLUMNS["natoms"].astype(int) * 2 >= n)
    assert np.array_equal(keep(COLUMNS), expected)
