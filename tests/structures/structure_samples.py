"""Random batches for the tests of this room."""

from __future__ import annotations

import numpy as np

from atomsieve.structures import FIELDS, StructureBatch


def random_batch(
    n: int, seed: int = 0, *, largest: int = 12, smallest: int = 0, fields: set[str] | None = None, heads: int = 1
) -> StructureBatch:
    """Return `n` random structures with the optional `fields` (default: all of them)."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(smallest, largest + 1, n)
    atoms = int(counts.sum())
    arrays: dict[str, np.ndarray] = {"ptr": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)}
    for name, field in FIELDS.items():
        if name == "ptr" or not (field.required or fields is None or name in fields):
            continue
        shape = field.shape(n, atoms)
        if field.dtype == bool:
            arrays[name] = rng.random(shape) < 0.5
        elif name == "numbers":
            arrays[name] = rng.integers(1, 119, shape).astype(np.uint8)
        elif name == "head":
            arrays[name] = rng.integers(0, heads, shape).astype(np.int32)
        elif name == "id":
            arrays[name] = rng.integers(-(2**62), 2**62, shape)
        else:
            arrays[name] = rng.normal(size=shape).astype(field.dtype)
            arrays[name].reshape(-1)[:: 7 if n else 1] = np.nan
    return StructureBatch(**arrays).validate()


def assert_equal(found: StructureBatch, expected: StructureBatch) -> None:
    """Fail unless both batches have the same fields with the same bits and dtypes."""
    assert set(found.present()) == set(expected.present())
    for name, array in expected.present().items():
        other = getattr(found, name)
        assert other.dtype == array.dtype, name
        assert other.shape == array.shape, name
        assert other.tobytes() == np.ascontiguousarray(array).tobytes(), name
