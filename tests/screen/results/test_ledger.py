"""The ledger tells what is durable, whatever happened to its file."""

from __future__ import annotations

import pytest

from atomsieve.screen.results import ledger
from atomsieve.screen.results.ledger import Entry

ENTRIES = [Entry(k, 1000 + k, None if k % 2 else 77, 64, {0: 60, 3: 4}, 1.5, 0.25) for k in range(5)]


@pytest.fixture
def path(tmp_path):
    ledger.append(tmp_path / "00000.ledger", ENTRIES[:3])
    ledger.append(tmp_path / "00001.ledger", ENTRIES[3:])
    return tmp_path / "00000.ledger"


def test_what_was_appended_is_read(path):
    assert ledger.read(path.parent) == {entry.chunk: [entry] for entry in ENTRIES}


@pytest.mark.parametrize("lost", range(1, len(ledger.encode(ENTRIES[2])) + 1))
def test_a_torn_last_line_counts_for_nothing_wherever_it_is_torn(path, lost):
    path.write_bytes(path.read_bytes()[:-lost])
    assert sorted(ledger.read(path.parent, repair=True)) == [0, 1, 3, 4]
    ledger.append(path, [ENTRIES[2]])
    assert sorted(ledger.read(path.parent)) == [0, 1, 2, 3, 4]


def test_reading_alone_repairs_nothing(path):
    torn = path.read_bytes()[:-3]
    path.write_bytes(torn)
    ledger.read(path.parent)
    assert path.read_bytes() == torn


def test_any_changed_byte_voids_its_line_only(path):
    whole = path.read_bytes()
    second = whole.index(b"\n") + 1
    end = whole.index(b"\n", second)
    for place in range(second, end):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        found = ledger.read(path.parent)
        assert 1 not in found
        assert {0, 3, 4} <= set(found)


def test_a_chunk_computed_twice_keeps_both_entries(path):
    again = Entry(0, 5, None, 64)
    ledger.append(path, [again])
    assert ledger.read(path.parent)[0] == [ENTRIES[0], again]
