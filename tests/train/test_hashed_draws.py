"""Draws of many rows are those of hashlib, key by key."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from atomsieve.train.data.hashed_draws import INITIAL_STATE, LANES, ROUND_CONSTANTS, draw_uniform, draw_uniform_rows


@pytest.mark.parametrize("length", [0, 1, 20, 45, 46, 52, 54, 55, 56, 63, 64, 65, 118, 119, 127, 200])
def test_rows_are_drawn_as_by_hashlib(length):
    """Lengths around the ends of a block, where the padding needs another one."""
    rng = np.random.default_rng(length)
    prefix = "".join(rng.choice(list("aZ0:-é"), length))
    rows = np.concatenate([np.arange(12), [99, 100, 10**9 - 1, 10**9, 2**40], rng.integers(0, 10**7, 50)])
    expected = [
        int.from_bytes(hashlib.sha256(f"{prefix}{row}".encode()).digest()[:8], "big") / 2**64 for row in rows.tolist()
    ]
    assert draw_uniform_rows(prefix, rows).tolist() == expected == [draw_uniform(f"{prefix}{row}") for row in rows]


def test_more_rows_than_are_hashed_together():
    rows = np.random.default_rng(0).permutation(3 * LANES + 17)
    found = draw_uniform_rows("0:structure:emt:0:", rows)
    assert found.tolist() == [draw_uniform(f"0:structure:emt:0:{row}") for row in rows.tolist()]
    assert draw_uniform_rows("x", np.zeros(0, np.int64)).shape == (0,)


def test_constants_are_those_of_the_standard():
    assert [hex(k) for k in ROUND_CONSTANTS[[0, 1, 63]]] == ["0x428a2f98", "0x71374491", "0xc67178f2"]
    assert [hex(k) for k in INITIAL_STATE[[0, 7]]] == ["0x6a09e667", "0x5be0cd19"]
