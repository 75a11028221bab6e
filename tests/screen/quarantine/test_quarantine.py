"""Chunks that kill: what was at hand when a run died is computed apart, and set aside if it kills again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from atomsieve.cli.main import run
from atomsieve.errors import Interrupted
from atomsieve.graphs.estimate import edge_budget_estimate
from atomsieve.predict.packing import Limit, pack
from atomsieve.predict.status import Status
from atomsieve.runs.mpi import Communicator, guard_ranks
from atomsieve.screen import failures
from atomsieve.screen.engine import in_flight
from atomsieve.screen.engine.in_flight import DeathRecord
from atomsieve.screen.engine.poisoned import PoisonedSpan, find_poisoned
from atomsieve.screen.engine.runner import Runner
from atomsieve.screen.load import GivenPredictor
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.quarantine import retry, sandbox
from atomsieve.screen.quarantine.rows import format_poisoned_lines, poisoned_chunk_rows
from atomsieve.screen.quarantine.sandbox import CannotStart, Death, Recipe, Sandbox
from atomsieve.screen.results import ledger
from atomsieve.screen.results.chunks import Chunks
from atomsieve.screen.results.files import ResultsFolder
from atomsieve.screen.results.npy_file import ArrayFiles, ChunkArrays
from atomsieve.screen.run import run_screen
from atomsieve.structures import write_structures
from tests.helpers import copper_oxides, tiny_gfm
from tests.screen.screen_fakes import FakePredictor, MemoryReader, candidates, save

PROGRAM = Path(__file__).with_name("fault_program.py")
N, CHUNK, FIRST_ID = 400, 64, 1000
KILLED = -int(signal.SIGKILL)


def go(source, out, expect, **order):
    order = {"options": {"forces": True}, **order}
    command = [sys.executable, str(PROGRAM), str(source), str(out), json.dumps(order)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == expect, done.stderr + done.stdout
    return done


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The input, and what an undisturbed run makes of it."""
    folder = tmp_path_factory.mktemp("whole")
    source = save(folder / "candidates.npz", candidates(N, bad=False))
    go(source, folder / "out", 0)
    return source, folder / "out"


def batch_of(position):
    """Return the positions that share a batch with a position, and those of its chunk."""
    start = position - position % CHUNK
    part = candidates(N, bad=False).slice(start, min(start + CHUNK, N))
    groups = pack(edge_budget_estimate(part, 5.0), part.counts, 200, 250_000)
    (mates,) = [group for group in groups if position - start in group]
    assert 1 < len(mates) < len(part)
    return np.sort(start + mates), np.arange(start, start + len(part))


def compare(whole, out, aside):
    """Everything but the positions `aside` is as in an undisturbed run; return the rows set aside."""
    expected, rows = np.load(whole / "rows.npy"), np.load(out / "rows.npy")
    rest = np.setdiff1d(np.arange(N), aside)
    assert rows[rest].tobytes() == expected[rest].tobytes()
    assert (rows["status"][aside] == Status.POISONED).all()
    assert np.array_equal(rows["position"], np.arange(N))
    assert np.isnan(rows["energy"][aside]).all() and not rows["in_domain"][aside].any()
    ptr, forces = candidates(N, bad=False).ptr, np.load(out / "forces.npy")
    hit = np.zeros(ptr[-1], bool)
    for position in aside:
        hit[ptr[position] : ptr[position + 1]] = True
    assert np.isnan(forces[hit]).all()
    assert forces[~hit].tobytes() == np.load(whole / "forces.npy")[~hit].tobytes()
    return rows[aside]


def left(out):
    return [name for name in ("at_hand.bin", "deaths.json") if (out / name).exists()]


def test_what_kills_is_found_and_the_rest_of_its_chunk_is_computed(whole, tmp_path):
    source, expected = whole
    out = tmp_path / "out"
    first, chunk = batch_of(150)
    second, _ = batch_of(int(np.setdiff1d(chunk, first)[0]))
    mates = np.union1d(first, second)
    order = {"poison": [FIRST_ID + int(first[0]), FIRST_ID + int(second[0])]}
    go(source, out, KILLED, **order)
    done = go(source, out, 3, **order)
    rows = compare(expected, out, mates)
    assert np.array_equal(rows["id"], FIRST_ID + mates)
    assert np.array_equal(rows["natoms"], candidates(N, bad=False).counts[mates])
    assert "at hand when an earlier run died: 1 chunk;" in done.stderr
    assert done.stderr.count("the process that computed it died (SIGKILL)") == 4
    line = f"{len(mates)} structures of chunk 2 (positions {mates[0]:,} to {mates[-1]:,})"
    assert f"set aside, because computing them ended their process 3 times: {line}" in done.stdout
    assert json.loads((out / "summary.json").read_text())["poisoned"] == [line]
    assert left(out) == []
    again = go(source, out, 3, **order)
    assert line in again.stdout and "died" not in again.stderr
    mended = go(source, out, 0, options={"forces": True, "retry_poisoned": True})
    assert "computed once more: 1 chunk with POISONED rows" in mended.stderr
    compare(expected, out, np.array([], int))
    assert (out / "top.csv").read_bytes() == (expected / "top.csv").read_bytes()


def test_an_innocent_chunk_gives_the_bytes_of_an_undisturbed_run(whole, tmp_path):
    source, expected = whole
    out = tmp_path / "out"
    order = {"poison": [FIRST_ID + 150], "until": str(tmp_path / "healed")}
    go(source, out, KILLED, **order)
    (tmp_path / "healed").touch()
    done = go(source, out, 0, **order)
    assert "at hand when an earlier run died: 1 chunk;" in done.stderr
    compare(expected, out, np.array([], int))
    assert (out / "top.csv").read_bytes() == (expected / "top.csv").read_bytes()
    assert left(out) == []


def test_a_chunk_that_cannot_even_be_read_is_set_aside_as_a_whole(whole, tmp_path):
    source, expected = whole
    _, chunk = batch_of(70)
    go(source, tmp_path / "out", KILLED, reads=[FIRST_ID + 70])
    go(source, tmp_path / "out", 3, reads=[FIRST_ID + 70])
    rows = compare(expected, tmp_path / "out", chunk)
    assert (rows["id"] == -1).all() and (rows["natoms"] == 0).all()


def test_without_a_process_apart_the_third_death_sets_aside(whole, tmp_path):
    source, expected = whole
    out = tmp_path / "out"
    order = {"poison": [FIRST_ID + 150], "bound": True}
    for deaths in (1, 2, 3):
        go(source, out, KILLED, **order)
        assert len(list(out.glob("at_hand.bin"))) == 1
        if deaths > 1:
            assert json.loads((out / "deaths.json").read_text())["chunks"]["2"]["deaths"] == deaths - 1
    go(source, out, 3, **order)
    compare(expected, out, batch_of(150)[1])
    assert left(out) == []


def test_a_rank_that_is_asked_to_end_among_suspects_has_no_rank_begin_another(whole, tmp_path):
    source, _ = whole
    out, comm = tmp_path / "out", Communicator()
    go(source, out, KILLED, poison=[FIRST_ID + 150])
    (out / "at_hand.bin").write_bytes(b"".join(map(in_flight.encode_slot, (None, 2, 3, 4))))

    class Asked(FakePredictor):
        def __reduce__(self):
            raise TypeError("stays here")

        def before(self, batch):
            if np.isin(batch.id, np.arange(FIRST_ID + 128, FIRST_ID + 320)).any() and not sent:
                sent.append(signal.raise_signal(signal.SIGTERM))

    sent: list[None] = []
    options = ScreenOptions(chunk_size=CHUNK, max_atoms=200, commit_seconds=0.0, top=50, forces=True)
    reader = MemoryReader(candidates(N, bad=False))
    with pytest.raises(Interrupted):
        run_screen(source, "gfm", options, out=out, predictor=Asked(), reader=reader, comm=comm)
    assert sent and list(comm.claim([3, 4])) == []
    assert (np.sort(list(ledger.read(out / "ledger"))) == [0, 1, 2, 5, 6]).all(), "the suspect at hand is finished"


def test_a_gpu_that_fails_is_a_death(whole, tmp_path):
    source, expected = whole
    first = go(source, tmp_path / "out", 70, device=[FIRST_ID + 150])
    assert "error: the GPU failed (CUDA error: an illegal memory access was encountered); run the same" in first.stderr
    done = go(source, tmp_path / "out", 3, device=[FIRST_ID + 150])
    assert done.stderr.count("the process that computed it died (exit code 70)") == 2
    compare(expected, tmp_path / "out", batch_of(150)[0])


def test_without_a_process_apart_a_gpu_that_fails_again_sets_aside(whole, tmp_path):
    source, expected = whole
    order = {"device": [FIRST_ID + 150], "bound": True}
    for _ in range(3):
        go(source, tmp_path / "out", 70, **order)
    go(source, tmp_path / "out", 3, **order)
    compare(expected, tmp_path / "out", batch_of(150)[1])


def test_a_death_apart_for_which_an_error_is_told_is_no_death(whole, tmp_path):
    source, _ = whole
    out = tmp_path / "out"
    go(source, out, KILLED, poison=[FIRST_ID + 150])
    done = go(source, out, 1, told=[FIRST_ID + 150])
    assert "ValueError: springs are broken" in done.stderr
    assert in_flight.collect_suspects(ResultsFolder(out), set()) == {2: DeathRecord(deaths=1)}


# -- what is decided -------------------------------------------------------------------------------------------------


def test_what_is_set_aside_is_told_by_chunk_and_position():
    rows = poisoned_chunk_rows(64, 128, 2, None, None)
    assert (rows["status"] == Status.POISONED).all() and len(rows) == 128
    one = PoisonedSpan(200, 200, 1)
    lines = format_poisoned_lines([one, find_poisoned(rows), one], Chunks(1000, 64))
    assert lines == ["64 structures of chunk 1 (positions 64 to 127)", "1 structure of chunk 3 (position 200)"]


class Scripted:
    """In the place of the process: gives one outcome after another."""

    def __init__(self, *outcomes):
        self.outcomes, self.asked = list(outcomes), []

    def compute(self, first, end, without, between):
        self.asked.append(sorted(without))
        found = self.outcomes.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


class Case:
    """The part of a context that a retry reads."""

    class Slots:
        def __init__(self):
            self.said = []

        def begin(self, chunk, deaths=0, isolated=False):
            self.said.append((deaths, isolated))

        def clear(self):
            self.said.append(None)

    def __init__(self):
        self.chunks, self.between = Chunks(200, 64), lambda: None
        self.files, self.watch = SimpleNamespace(arrays=ArrayFiles(None)), SimpleNamespace(in_flight=Case.Slots())
        self.runner = type("R", (), {"heads": ["pbe"], "__call__": lambda *a: "here"})()
        self.reader = type("X", (), {"read": lambda *a: None})()


DONE = ChunkArrays(np.zeros(0))


def judge(record, *outcomes):
    case, child = Case(), Scripted(*outcomes)
    found = retry.IsolatedRetry(case, child)(1, record)
    return found, child.asked, case.watch.in_flight.said


def death(batch=None, code=-9, ids=None):
    return Death(code, batch, ids, None if ids is None else np.ones(len(ids), np.int64))


def test_verdicts():
    found, asked, slots = judge(DeathRecord(1), DONE)
    assert found == DONE and asked == [[]] and slots == [(1, True), None]
    found, asked, slots = judge(DeathRecord(1), death((4, 5)), DONE)
    assert found == DONE and asked == [[], []] and slots == [(1, True), (2, True), None]
    found, asked, _ = judge(DeathRecord(1), death((5, 4)), death((5, 4)), death((2,)), death((2,)), DONE)
    assert found == DONE and asked == [[], [], [4, 5], [4, 5], [2, 4, 5]]
    found, asked, _ = judge(DeathRecord(3))
    assert asked == [] and (found[0]["status"] == Status.POISONED).all() and len(found[0]) == 64
    assert len(judge(DeathRecord(1, interrupted=4))[0][0]) == 64
    ids = np.arange(64, 128)
    found, *_ = judge(DeathRecord(1), death(ids=ids), death())
    assert np.array_equal(found[0]["id"], ids)
    many = [death((k // 2, 40 + k // 2)) for k in range(2 * retry.MOST_BATCHES + 2)]
    found, asked, _ = judge(DeathRecord(1), *many)
    assert len(asked) == len(many) and (found[0]["status"] == Status.POISONED).all()


def test_what_is_set_aside_does_not_depend_on_what_was_learned_of_memory():
    batch = candidates(60, bad=False)
    runner = Runner(FakePredictor(), ["pbe"], False, 100, 10**6, 1, 10**4, limit=Limit(100, 10**6))
    expected, *_ = runner(batch, 0)
    told = []

    def say(kind, *said):
        if kind == "batch":
            told.append(said[0])

    reader = MemoryReader(batch)
    rows, *_ = sandbox.compute(reader, runner, (0, 60, frozenset()), say)
    assert rows.tobytes() == expected.tobytes() and sorted(k for group in told for k in group) == list(range(60))
    learned = replace(runner, limit=Limit(100, 10**6, part=0.3, failures=1))
    whole, told = told, []
    rows, *_ = sandbox.compute(reader, learned, (0, 60, frozenset(whole[1])), say)
    assert np.array_equal(np.flatnonzero(rows["status"] == Status.POISONED), np.sort(whole[1]))
    assert len(told) > len(whole) and not set(whole[1]) & {k for group in told for k in group}


def test_where_no_process_can_be_had_the_rank_computes():
    found, _, slots = judge(DeathRecord(2), CannotStart("one process per device"))
    assert found == "here"
    assert slots == [(2, True), (2, False), None]


def test_a_predictor_that_cannot_be_sent_or_loaded():
    runner = Runner(FakePredictor(), ["pbe"], False, 200, 1000, 1, 100).detach()
    with pytest.raises(CannotStart, match=r"local object|pickle"):
        Sandbox(Recipe(reader=None, identity="", runner=runner, load=lambda: None))
    recipe = Recipe(reader=None, identity="", runner=runner, load=GivenPredictor(FakePredictor()))
    with Sandbox(recipe) as child, pytest.raises(CannotStart, match="identity"):
        child.compute(0, 1, frozenset())


def test_an_ensemble_loaded_apart_gives_the_same_bytes(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(retry, "log_no_sandbox", lambda error: pytest.fail(f"computed by the rank itself: {error}"))
    write_structures(tmp_path / "c.bp", copper_oxides(48), [])
    gfm = tiny_gfm(tmp_path / "gfm")
    out = ResultsFolder(tmp_path / "out")
    call = [
        "run",
        str(tmp_path / "c.bp"),
        "-e",
        str(gfm),
        "-o",
        str(out.path),
        "--forces",
        "--chunk-size",
        "16",
        "--head",
        "all",
    ]
    assert run("screen", call) in (0, 3)
    names = ("rows.npy", "forces.npy", "top.csv", "run.json")
    before = {name: (out.path / name).read_bytes() for name in names}
    for path in out.ledger.iterdir():  # as if nothing were durable
        path.unlink()
    out.rows.write_bytes(b"")
    out.at_hand.write_bytes(in_flight.encode_slot(None) + in_flight.encode_slot(1) + in_flight.encode_slot(2))
    capfd.readouterr()
    assert run("screen", call) in (0, 3)
    said = capfd.readouterr()
    assert "at hand when an earlier run died: 2 chunks;" in said.err and "48 of them now" in said.out
    assert {name: (out.path / name).read_bytes() for name in names} == before
    log = [json.loads(line) for line in out.log.read_text().splitlines()]
    assert [e["chunks"] for e in log if e["event"] == "suspects"] == [{"1": 1, "2": 1}]
    assert json.loads(out.summary.read_text())["seconds_per_stage"]["suspects"]["max"] > 0


def test_an_error_of_mpi_wherever_it_comes_up_lets_the_job_be_started_again(monkeypatch, capsys):
    class OneOfTwo(Communicator):
        size = 2

        def abort(self, code):
            raise SystemExit(code)

    monkeypatch.setattr(failures, "is_peer_lost", lambda error: isinstance(error, ConnectionError))

    def fails(error):
        with guard_ranks(OneOfTwo(), failures.translate_loss):
            raise error

    again = pytest.raises(failures.PeerLost, match="run the same command again")
    with again, guard_ranks(Communicator(), failures.translate_loss):
        raise ConnectionError("alone")
    with pytest.raises(SystemExit) as left:
        fails(ConnectionError("peer gone"))
    assert left.value.code == 70
    assert "MPI failed (peer gone); run the same command again to continue" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        fails(ValueError("springs are broken"))
    assert left.value.code == 1
