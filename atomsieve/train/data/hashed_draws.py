"""Uniform numbers from SHA-256, for many rows of a file at once: the draw of a row depends on nothing but its key.

The key of row n is `prefix` followed by n in decimal digits. SHA-256 is computed on arrays of keys, because one call of
`hashlib` per structure costs a Python object each. Equations and sections are numbered as in FIPS 180-4 (2015).
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

LANES = 4096
"""Keys hashed together: their state and schedule (64 words each) stay within the caches."""

_PRIMES = [n for n in range(2, 312) if all(n % k for k in range(2, n))]


def _fraction_bits(value: int, root: int) -> int:
    """Return the first 32 bits of the fraction of the square (2) or cube (3) root of a small integer, exactly."""
    scaled, low, high = value << (32 * root), 0, 1 << 36
    while high - low > 1:  # the largest integer whose power does not exceed value * 2^(32 root)
        middle = (low + high) // 2
        low, high = (middle, high) if middle**root <= scaled else (low, middle)
    return low & 0xFFFFFFFF


ROUND_CONSTANTS = np.array([_fraction_bits(p, 3) for p in _PRIMES[:64]], np.uint32)
"""K_t, FIPS 180-4 section 4.2.2."""
INITIAL_STATE = np.array([_fraction_bits(p, 2) for p in _PRIMES[:8]], np.uint32)
"""H(0), FIPS 180-4 section 5.3.3."""


def draw_uniform(key: str) -> float:
    """Map a key to [0, 1) by SHA-256: the same on every machine, and independent of all other keys."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def draw_uniform_rows(prefix: str, rows: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return `draw_uniform(f"{prefix}{row}")` of each row [S] (not negative), as float64 [S]."""
    number: NDArray[np.int64] = np.asarray(rows, np.int64)
    out = np.empty(len(number), np.float64)
    digits = np.searchsorted(10 ** np.arange(1, 19, dtype=np.int64), number, side="right") + 1
    for count in np.unique(digits).tolist():  # keys of one length have the same padding
        own = np.flatnonzero(digits == count)
        for first in range(0, len(own), LANES):
            chosen = own[first : first + LANES]
            words = _sha256_first_words(_pad_keys(prefix.encode(), number[chosen], count))
            # Both steps round as the division of the exact 64-bit integer does: once, to nearest.
            out[chosen] = words.astype(np.float64) * 2.0**-64
    return out


def _pad_keys(prefix: bytes, rows: NDArray[np.int64], digits: int) -> NDArray[np.uint32]:
    """Return the padded messages as big-endian words [blocks,16,S] (FIPS 180-4 sections 5.1.1 and 5.2.1)."""
    length = len(prefix) + digits
    message = np.zeros((len(rows), -(-(length + 9) // 64) * 64), np.uint8)
    message[:, : len(prefix)] = np.frombuffer(prefix, np.uint8)
    powers = 10 ** np.arange(digits - 1, -1, -1, dtype=np.int64)
    message[:, len(prefix) : length] = rows[:, None] // powers % 10 + ord("0")
    message[:, length] = 0x80
    message[:, -8:] = np.frombuffer((8 * length).to_bytes(8, "big"), np.uint8)
    words = message.view(">u4").astype(np.uint32).reshape(len(rows), -1, 16)
    return np.ascontiguousarray(words.transpose(1, 2, 0))


def _rotate(x: NDArray[np.uint32], n: int) -> NDArray[np.uint32]:
    """Return ROTR^n(x), FIPS 180-4 section 3.2."""
    return (x >> np.uint32(n)) | (x << np.uint32(32 - n))


def _sha256_first_words(blocks: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Return the first 64 bits of the SHA-256 of S messages, given as words [blocks,16,S]."""
    state = np.repeat(INITIAL_STATE[:, None], blocks.shape[2], axis=1)
    schedule = np.empty((64, blocks.shape[2]), np.uint32)
    for block in blocks:
        schedule[:16] = block
        for t in range(16, 64):
            two, fifteen = schedule[t - 2], schedule[t - 15]
            sigma1 = _rotate(two, 17) ^ _rotate(two, 19) ^ (two >> np.uint32(10))  # eq. 4.7
            sigma0 = _rotate(fifteen, 7) ^ _rotate(fifteen, 18) ^ (fifteen >> np.uint32(3))  # eq. 4.6
            schedule[t] = sigma1 + schedule[t - 7] + sigma0 + schedule[t - 16]  # section 6.2.2, step 1
        a, b, c, d, e, f, g, h = state
        for t in range(64):  # section 6.2.2, step 3
            first = h + (_rotate(e, 6) ^ _rotate(e, 11) ^ _rotate(e, 25))  # eq. 4.5
            first += ((e & f) ^ (~e & g)) + ROUND_CONSTANTS[t] + schedule[t]  # Ch, eq. 4.2
            second = (_rotate(a, 2) ^ _rotate(a, 13) ^ _rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))  # eqs. 4.4, 4.3
            a, b, c, d, e, f, g, h = first + second, a, b, c, d + first, e, f, g
        state = state + np.stack([a, b, c, d, e, f, g, h])  # step 4
    return (state[0].astype(np.uint64) << np.uint64(32)) | state[1]
