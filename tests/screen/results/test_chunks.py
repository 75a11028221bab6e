"""Chunks and batches: every structure once, within budgets, by a rule that knows nothing of ranks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atomsieve.predict.packing import pack
from atomsieve.screen.results.chunks import ALIGN, Chunks, chunk_size


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 5000), st.integers(1, 700), st.booleans())
def test_chunks_cover_every_position_once(n, size, taper):
    chunks = Chunks(n, size, taper)
    spans = [chunks.span(k) for k in range(chunks.count)]
    assert spans[0][0] == 0
    assert spans[-1][1] == n
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    assert all(0 < stop - start <= size for start, stop in spans)
    assert chunks.starts().tolist() == [start for start, _ in spans] + [n]
    assert Chunks.of({"options": {"screened": n}, "chunks": chunks.describe()}) == chunks
    with pytest.raises(IndexError):
        chunks.span(chunks.count)


def test_chunks_shrink_towards_the_end():
    chunks = Chunks(10**7, 16384, taper=True)
    sizes = np.diff(chunks.starts())
    assert np.all(np.diff(sizes[:-1]) <= 0)
    assert np.unique(sizes[:-1]).tolist() == [2048, 4096, 8192, 16384]
    assert 0.7 < sizes[sizes == 16384].sum() / 10**7 <= 0.75
    assert not np.any(chunks.starts()[:-1] % ALIGN)


@pytest.mark.parametrize(
    ("n", "atoms", "size"),
    [
        (20_000, 6.0, 1024),
        (20_000, 20.0, 409),
        (10**6, 20.0, 15360),
        (10**9, 20.0, 16384),
        (10**6, 5000.0, 100),
        (10**6, 1e9, 1),
        (3, 1.0, 8192),
    ],
)
def test_chunk_size_follows_the_input(n, atoms, size):
    assert chunk_size(n, atoms) == size


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.floats(0, 900)), max_size=80), st.integers(1, 90), st.integers(1, 999))
def test_batches_are_a_partition_within_both_budgets(structures, max_atoms, max_edges):
    counts = np.array([s[0] for s in structures], np.int64)
    edges = np.array([s[1] for s in structures], float)
    batches = pack(edges, counts, max_atoms, max_edges)
    assert sorted(np.concatenate([*batches, []]).tolist()) == list(range(len(counts)))
    for index in batches:
        assert len(index) == 1 or (counts[index].sum() <= max_atoms and edges[index].sum() <= max_edges * (1 + 1e-9))


def test_structures_of_like_size_come_together():
    counts = np.array([50, 2, 50, 2, 50, 2])
    batches = pack(counts * 10.0, counts, 60, 10**6)
    assert [b.tolist() for b in batches] == [[1, 3, 5, 0], [2], [4]]
