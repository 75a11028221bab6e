"""Dataset folders: what goes in comes out, wherever steps and parts end."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atomsieve.errors import AtomSieveError, DataError, UsageError
from atomsieve.structures import (
    FIELDS,
    SourceInfo,
    StructureBatch,
    StructureReader,
    StructureWriter,
    open_structures,
    write_structures,
)
from atomsieve.structures.dataset import part_writer
from atomsieve.structures.dataset.draft import DatasetDraft
from atomsieve.structures.dataset.part_writer import PartWriter
from tests.structures.structure_samples import assert_equal, random_batch

SOURCES = [SourceInfo("a", "PBE"), SourceInfo("b", "wB97X/6-31G(d)")]


def write(path: Path, batch: StructureBatch, pieces: list[int], **options: object) -> StructureReader:
    with StructureWriter(path, sources=SOURCES, **options) as writer:  # type: ignore[arg-type]
        start = 0
        for size in [*pieces, len(batch)]:
            writer.append(batch.slice(start, min(start + size, len(batch))))
            start = min(start + size, len(batch))
    return open_structures(path)


@pytest.mark.parametrize("step_size", [1, 7, 1000])
def test_every_field_comes_back_bit_for_bit(tmp_path: Path, step_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_writer, "STEPS_PER_PART", 3)
    batch = random_batch(60, heads=2)
    assert set(batch.present()) == set(FIELDS)
    reader = write(tmp_path / "x.bp", batch, [13, 1, 20], step_size=step_size)
    assert len(reader) == 60
    assert reader.n_atoms == batch.n_atoms
    assert reader.sources == SOURCES
    assert np.array_equal(reader.counts(), batch.counts)
    assert_equal(reader.read(0, 60), batch)
    expected_steps = -(-60 // step_size)
    assert len(reader.step_structures) == expected_steps
    parts = [p.name for p in (tmp_path / "x.bp").glob("part-*")]
    assert len(parts) == -(-expected_steps // 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.bp"]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 40),
    st.integers(1, 15),
    st.integers(1, 60),
    st.lists(st.integers(0, 20), max_size=4),
    st.sampled_from([None, {"energy", "has_energy"}, set(), {"charge", "spin", "head"}]),
    st.randoms(use_true_random=False),
)
def test_range_reads_equal_memory(tmp_path_factory, n, step_size, step_atoms, pieces, fields, random) -> None:
    batch = random_batch(n, n, fields=fields)
    path = tmp_path_factory.mktemp("ranges") / "x.bp"
    with StructureWriter(path, step_size=step_size, step_atoms=step_atoms) as writer:
        writer.add_source(SOURCES[0])
        start = 0
        for size in [*pieces, n]:
            writer.append(batch.slice(start, min(start + size, n)))
            start = min(start + size, n)
    expected = batch if batch.head is not None or not n else batch.replace(head=np.zeros(n, np.int32))
    with open_structures(path) as reader:
        for _ in range(8):
            first = random.randint(0, n)
            last = random.randint(first, n)
            found = reader.read(first, last)
            if first < last:
                assert_equal(found, expected.slice(first, last))
            else:
                assert found.n_atoms == len(found) == 0
        assert np.array_equal(reader.counts(), batch.counts)
        joined = StructureBatch.concatenate(list(reader.iter_batches(7)))
        assert joined.positions.tobytes() == batch.positions.tobytes()
        assert (reader.step_atoms[reader.step_structures > 1] <= step_atoms).all()


def test_steps_do_not_depend_on_how_batches_came(tmp_path: Path) -> None:
    batch = random_batch(200, smallest=1)
    options = {"step_size": 17, "step_atoms": 90}
    one = write(tmp_path / "one.bp", batch, [], **options)
    many = write(tmp_path / "many.bp", batch, [1, 2, 3, 60, 1, 5, 50], **options)
    assert one.step_structures.tolist() == many.step_structures.tolist()
    assert one.identity() == many.identity()
    other = write(tmp_path / "other.bp", batch.replace(id=batch.id + 1), [], **options)
    assert other.identity() != one.identity()


def test_fields_that_come_late_are_filled(tmp_path: Path) -> None:
    plain = random_batch(30, 1, fields=set())
    labelled = random_batch(30, 2, fields={"energy", "has_energy", "forces", "has_forces"})
    charged = random_batch(30, 3, fields={"charge", "spin"})
    with StructureWriter(tmp_path / "x.bp", step_size=10) as writer:
        for batch in (plain, labelled, charged, plain):
            writer.append(batch)
    reader = open_structures(tmp_path / "x.bp")
    assert_equal(reader.read(0, 120), StructureBatch.concatenate([plain, labelled, charged, plain]))
    early = reader.read(0, 5)
    assert not early.has_energy.any()
    assert np.isnan(early.energy).all()
    assert reader.read(20, 40, fields=["charge"]).energy is None
    assert set(reader.read_arrays(0, 3, ["id", "energy"])) == {"ptr", "id", "energy"}
    assert "stress" not in reader.fields


def test_float32_positions(tmp_path: Path) -> None:
    batch = random_batch(20, fields=set())
    write_structures(tmp_path / "x.bp", batch, positions="float32")
    found = open_structures(tmp_path / "x.bp").read(0, 20).validate()
    assert found.positions.dtype == np.float32
    assert found.positions.tobytes() == batch.positions.astype(np.float32).tobytes()
    with pytest.raises(UsageError, match="float16"):
        StructureWriter(tmp_path / "y.bp", positions="float16")


def test_empty_dataset_and_empty_structures(tmp_path: Path) -> None:
    write_structures(tmp_path / "none.bp", StructureBatch.empty())
    reader = open_structures(tmp_path / "none.bp")
    assert len(reader) == reader.n_atoms == 0
    assert reader.read(0, 0).n_atoms == 0
    assert list(reader.iter_batches(5)) == []
    hollow = random_batch(5, largest=0)
    write_structures(tmp_path / "hollow.bp", hollow, SOURCES[:1])
    assert_equal(open_structures(tmp_path / "hollow.bp").read(0, 5), hollow)


def test_bounds_and_names_are_checked(tmp_path: Path) -> None:
    write_structures(tmp_path / "x.bp", random_batch(10), SOURCES[:1])
    reader = open_structures(tmp_path / "x.bp")
    for start, stop in [(-1, 2), (0, 11), (5, 4), (11, 11)]:
        with pytest.raises(UsageError, match="it has 10"):
            reader.read(start, stop)
    with pytest.raises(UsageError, match="did you mean 'energy'"):
        reader.read(0, 1, fields=["enrgy"])
    with pytest.raises(UsageError, match="verify"):
        open_structures(tmp_path / "x.bp", verify="maybe")


def test_head_must_name_a_source(tmp_path: Path) -> None:
    batch = random_batch(4, fields=set())
    with pytest.raises(DataError, match="2 sources"), StructureWriter(tmp_path / "x.bp", sources=SOURCES) as writer:
        writer.append(batch)
    with pytest.raises(DataError, match="head runs"), StructureWriter(tmp_path / "x.bp", sources=SOURCES) as writer:
        writer.append(batch.replace(head=np.array([0, 1, 2, 0], np.int32)))
    same_name = [SourceInfo("a", "PBE"), SourceInfo("a", "LDA")]
    with pytest.raises(DataError, match="two levels of theory"), StructureWriter(tmp_path / "x.bp") as writer:
        _ = [writer.add_source(source) for source in same_name]
    assert list(tmp_path.iterdir()) == []


def test_reader_survives_pickle_threads_and_fork(tmp_path: Path) -> None:
    batch = random_batch(300)
    reader = write(tmp_path / "x.bp", batch, [], step_size=20)
    reader.read(0, 5)
    assert_equal(pickle.loads(pickle.dumps(reader)).read(10, 60), batch.slice(10, 60))
    wrong: list[int] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(60):
            a = int(rng.integers(0, 250))
            if reader.read(a, a + 40).positions.tobytes() != batch.slice(a, a + 40).positions.tobytes():
                wrong.append(a)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=lambda: send.send(reader.read(100, 160).positions.tobytes()))
    child.start()
    assert receive.poll(30)
    assert receive.recv() == batch.slice(100, 160).positions.tobytes()
    child.join(10)
    assert child.exitcode == 0


class Ranks:
    """A communicator over threads."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=20)
        self.slots: list[object] = [None] * size

    def of(self, rank: int) -> Ranks.One:
        return Ranks.One(self, rank)

    class One:
        def __init__(self, shared: Ranks, rank: int) -> None:
            self.shared, self.rank = shared, rank

        def gather(self, sendobj: object, root: int = 0) -> list[object] | None:
            self.shared.slots[self.rank] = sendobj
            self.shared.barrier.wait()
            found = list(self.shared.slots) if self.rank == root else None
            self.shared.barrier.wait()
            return found

        def bcast(self, obj: object, root: int = 0) -> object:
            if self.rank == root:
                self.shared.slots[root] = obj
            self.shared.barrier.wait()
            found = self.shared.slots[root]
            self.shared.barrier.wait()
            return found


def test_ranks_write_one_dataset(tmp_path: Path) -> None:
    batch = random_batch(90)
    shared = Ranks(3)
    failures: list[BaseException] = []

    def work(rank: int, path: Path) -> None:
        try:
            with StructureWriter(
                path, sources=SOURCES[:1], step_size=8, rank=rank, n_ranks=3, comm=shared.of(rank)
            ) as writer:
                writer.append(batch.slice(30 * rank, 30 * rank + 30))
        except AtomSieveError as error:
            failures.append(error)

    def all_ranks(path: Path) -> None:
        threads = [threading.Thread(target=work, args=(k, path)) for k in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    all_ranks(tmp_path / "x.bp")
    assert failures == []
    assert_equal(open_structures(tmp_path / "x.bp").read(0, 90), batch)
    all_ranks(tmp_path / "x.bp")
    assert len(failures) == 3, "every rank must hear that the path exists"
    with pytest.raises(UsageError, match="communicator"):
        StructureWriter(tmp_path / "y.bp", n_ranks=2)


def test_parts_written_without_knowledge_of_those_before_them(tmp_path: Path) -> None:
    """Ids and sources of such a part are corrected when it is read, and only such manifests have the newer version."""
    first, second = random_batch(6, 1, fields={"head"}), random_batch(5, 2, fields={"head"})
    first, second = (b.replace(head=np.array([1, 0, -1, 1, 0, 1], np.int32)[: len(b)]) for b in (first, second))
    draft = DatasetDraft(tmp_path / "x.bp")
    draft.begin()
    rows = []
    for k, (batch, sources) in enumerate([(first, SOURCES), (second, SOURCES[::-1])]):
        writer = PartWriter(draft.folder, draft.path, sources=sources, step_size=4, writer=k)
        writer.append(batch.replace(id=np.arange(len(batch))))
        rows += writer.finish()
    rows[1] = rows[1].model_copy(update={"first_id": 10, "heads": [1, 0]})
    draft.publish(rows, SOURCES, {})
    draft.release()
    written = json.loads((tmp_path / "x.bp" / "manifest.json").read_text())
    assert written["schema_version"] == 2
    assert "first_id" not in written["parts"][0]
    with open_structures(tmp_path / "x.bp") as reader:
        assert [part.name for part in reader.parts] == ["part-00000.r000.bp", "part-00000.r001.bp"]
        found = reader.read(0, 11)
        assert found.id.tolist() == [*range(6), *range(10, 15)]
        assert found.head is not None
        assert found.head.tolist() == [1, 0, -1, 1, 0, 1, 0, 1, -1, 0, 1]
        assert reader.read(7, 9, ["head"]).head.tolist() == [1, -1]
        assert reader.identity() == written["sha256"]
    write_structures(tmp_path / "y.bp", first, SOURCES)
    assert json.loads((tmp_path / "y.bp" / "manifest.json").read_text())["schema_version"] == 1
