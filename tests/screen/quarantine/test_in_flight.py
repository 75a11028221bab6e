"""The journal of chunks at hand: what it tells of a run that died, and of one that was asked to end."""

from __future__ import annotations

import sys

import pytest

from atomsieve.errors import AtomSieveError
from atomsieve.predict.packing import is_out_of_memory
from atomsieve.screen import failures
from atomsieve.screen.engine import in_flight
from atomsieve.screen.engine.in_flight import DeathRecord, Marker
from atomsieve.screen.results.files import ResultsFolder


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "ledger").mkdir()
    return ResultsFolder(tmp_path)


def test_slots_tell_what_was_at_hand(folder):
    assert in_flight.collect_suspects(folder, set()) == {}
    for rank, chunk in ((0, 7), (2, 0), (5, 31)):
        book = in_flight.InFlightMarkers(folder.at_hand, rank)
        book.__enter__().begin(chunk, deaths=rank)  # and never leaves it, as if it were killed
    assert in_flight.collect_suspects(folder, {31}) == {7: DeathRecord(1), 0: DeathRecord(3)}
    assert in_flight.collect_suspects(folder, set()) == {
        7: DeathRecord(1),
        0: DeathRecord(3),
    }  # no change
    assert in_flight.collect_suspects(folder, {7, 0}) == {}
    assert not folder.deaths.exists()


def test_a_rank_with_two_chunks_at_hand(folder):
    in_flight.collect_suspects(folder, set())
    book = in_flight.InFlightMarkers(folder.at_hand, 1, places=2).__enter__()
    for chunk in (3, 4, 5):
        book.begin(chunk)
    assert in_flight.collect_suspects(folder, set()) == {4: DeathRecord(1), 5: DeathRecord(1)}
    book = in_flight.InFlightMarkers(folder.at_hand, 0, places=2).__enter__()
    book.begin(5, deaths=1, isolated=True)
    book.begin(5, deaths=2, isolated=True)
    assert in_flight.collect_suspects(folder, {4}) == {5: DeathRecord(2, interrupted=1)}
    with in_flight.InFlightMarkers(folder.at_hand, 0, places=2) as book:
        book.begin(6)
        book.begin(7)
    assert in_flight.collect_suspects(folder, {5}) == {}


def test_deaths_apart_and_jobs_that_died_meanwhile_are_told_apart(folder):
    in_flight.collect_suspects(folder, set())
    in_flight.InFlightMarkers(folder.at_hand, 0).__enter__().begin(4, deaths=1)
    assert in_flight.collect_suspects(folder, set()) == {4: DeathRecord(2)}
    for times in (1, 2):
        in_flight.InFlightMarkers(folder.at_hand, 1).__enter__().begin(4, deaths=2, isolated=True)
        assert in_flight.collect_suspects(folder, set()) == {4: DeathRecord(2, interrupted=times)}


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, AtomSieveError])
def test_an_orderly_end_leaves_no_suspects(folder, error):
    """Neither of this rank nor, where an error was told, of those that the launcher killed for it."""
    in_flight.collect_suspects(folder, set())
    in_flight.InFlightMarkers(folder.at_hand, 1).__enter__().begin(9)
    try:
        with in_flight.InFlightMarkers(folder.at_hand, 0) as book:
            book.begin(4)
            if error is not None:
                raise error
    except (KeyboardInterrupt, AtomSieveError):
        pass
    assert in_flight.collect_suspects(folder, set()) == ({9: DeathRecord(1)} if error is None else {})


def test_a_chunk_begun_by_who_reads_it_and_by_who_computes_it_takes_one_slot(folder):
    in_flight.collect_suspects(folder, set())
    book = in_flight.InFlightMarkers(folder.at_hand, 0, places=2).__enter__()
    for chunk in (3, 3, 4, 4):
        book.begin(chunk)
    assert in_flight.collect_suspects(folder, set()) == {3: DeathRecord(1), 4: DeathRecord(1)}


def test_what_is_killed_while_it_was_asked_to_end_is_not_held_against_its_chunks(folder):
    in_flight.collect_suspects(folder, set())
    book = in_flight.InFlightMarkers(folder.at_hand, 0).__enter__()
    book.begin(4)
    book.forgive()
    book.begin(5)
    assert in_flight.collect_suspects(folder, set()) == {}
    in_flight.InFlightMarkers(folder.at_hand, 0).__enter__().begin(4)
    assert in_flight.collect_suspects(folder, set()) == {4: DeathRecord(1)}, "that was of the start before"


def test_a_launcher_that_ends_the_others_of_a_killed_rank_hides_nothing(folder):
    """Some send SIGTERM to the ranks that are left, before they kill them."""
    in_flight.collect_suspects(folder, set())
    killed, asked = (in_flight.InFlightMarkers(folder.at_hand, rank).__enter__() for rank in (1, 0))
    killed.begin(9)
    asked.begin(4)
    asked.forgive()
    assert in_flight.collect_suspects(folder, set()) == {9: DeathRecord(1)}


def test_a_signal_that_comes_while_a_chunk_is_begun(folder, monkeypatch):
    in_flight.collect_suspects(folder, set())
    book = in_flight.InFlightMarkers(folder.at_hand, 0).__enter__()
    put = book._write
    monkeypatch.setattr(book, "_write", lambda *given: (put(*given), monkeypatch.undo(), book.forgive()))
    book.begin(4)
    assert in_flight.collect_suspects(folder, set()) == {}


def test_a_start_that_is_killed_before_it_has_begun_counts_deaths_once(folder, monkeypatch):
    in_flight.collect_suspects(folder, set())
    in_flight.InFlightMarkers(folder.at_hand, 0).__enter__().begin(4, deaths=1, isolated=True)
    before = folder.at_hand.read_bytes()
    assert in_flight.collect_suspects(folder, set()) == {4: DeathRecord(1, interrupted=1)}
    folder.at_hand.write_bytes(before)  # as if it had been killed after it had counted
    assert in_flight.collect_suspects(folder, set()) == {4: DeathRecord(1, interrupted=1)}
    in_flight.InFlightMarkers(folder.at_hand, 0).__enter__().begin(4, deaths=1, isolated=True)
    assert in_flight.collect_suspects(folder, set()) == {4: DeathRecord(1, interrupted=2)}, (
        "the same words of another start"
    )


def test_a_rank_that_cannot_reach_another_is_no_explanation(folder, monkeypatch):
    mpi = type("MPI", (), {"Exception": type("Exception", (RuntimeError,), {})})
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", mpi)
    in_flight.collect_suspects(folder, set())
    book = in_flight.InFlightMarkers(folder.at_hand, 0).__enter__()
    book.begin(4)
    error = mpi.Exception("MPI_ERR_OTHER: known error not in list")
    with pytest.raises(failures.PeerLost, match=r"MPI failed \(MPI_ERR_OTHER") as told:
        book.__exit__(type(error), error, None)
    assert told.value.exit_code == 70
    assert in_flight.collect_suspects(folder, set()) == {4: DeathRecord(1)}


def test_a_library_without_room_on_the_gpu_is_no_lost_gpu():
    error = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    assert is_out_of_memory(error) and not failures.is_device_lost(error)
    assert failures.is_device_lost(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_damaged_slots_and_files_are_left_out(folder):
    whole = in_flight.encode_slot(3) + in_flight.encode_slot(5, 1)
    for k in range(len(in_flight.encode_slot(5)) - 8):  # the last 8 bytes are padding
        data = bytearray(whole)
        data[in_flight.SLOT.size + k] ^= 1
        assert in_flight.decode_markers(bytes(data)) == []
    assert in_flight.decode_markers(whole) == [Marker(5, 1)]
    assert in_flight.decode_markers(whole[:-3]) == []
    folder.deaths.write_text("{")
    assert in_flight.collect_suspects(folder, set()) == {}


def test_without_a_path_nothing_is_written(tmp_path):
    with in_flight.InFlightMarkers() as book:
        book.begin(3)
    assert list(tmp_path.iterdir()) == []
