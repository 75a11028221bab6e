"""The memory law: what a probe finds of a predictor whose memory is known, and the budgets that follow."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from atomsieve.errors import AtomSieveError, DataError, UsageError
from atomsieve.predict import memory_budget, memory_law, memory_probe
from atomsieve.predict.base import PredictorBase
from atomsieve.predict.free_memory import read_cgroup_free, read_free_memory, read_rlimit_free
from atomsieve.predict.interface import Capabilities
from atomsieve.predict.memory_budget import find_budget, round_down
from atomsieve.predict.memory_law import MemoryLaw, fit_law
from atomsieve.structures import StructureBatch

USUAL = (4096, 250_000)
PER_ATOM, PER_EDGE = 60_000, 2_000


def crystals(n, atoms=8, spacing=2.2, vacuum=0.0):
    """Return simple cubic cells of 2 x 2 x 2 atoms, with empty space above them if wanted."""
    grid = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), -1).reshape(-1, 3)[:atoms] * spacing
    cell = np.diag([2 * spacing, 2 * spacing, 2 * spacing + vacuum])
    return StructureBatch(
        ptr=np.arange(n + 1, dtype=np.int64) * atoms,
        numbers=np.full(n * atoms, 6, np.uint8),
        positions=np.tile(grid, (n, 1)).astype(float),
        cell=np.tile(cell, (n, 1, 1)),
        pbc=np.ones((n, 3), bool),
        id=np.arange(n, dtype=np.int64),
    ).validate()


class Hungry(PredictorBase):
    """A predictor that takes a known memory: so much for each atom, so much for each edge."""

    ensemble_id, kind, members, precision, backend, cutoff = "a" * 64, "deep", 4, "fp32", "native", 4.0

    def __init__(self, room=float("inf"), device="cpu", max_atoms=20_000):
        self.device, self.room, self.calls = device, room, 0
        self.max_atoms = max_atoms

    @property
    def capabilities(self):
        return Capabilities(choices=("one",), precisions=(self.precision,), max_atoms=self.max_atoms)

    def __call__(self, batch, want, head=None, **more):
        self.calls += 1
        size = int(PER_ATOM * batch.n_atoms + PER_EDGE * memory_probe.count_edges(batch, self.cutoff).sum())
        if size > self.room:
            raise MemoryError
        np.ones(size, np.uint8).sum()  # every page is touched, then given back
        return SimpleNamespace(status=np.zeros(len(batch), np.uint8))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "atomsieve" / "memory"


linux = pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")


@linux
def test_a_probe_finds_what_an_atom_and_an_edge_take(monkeypatch):
    monkeypatch.setitem(memory_probe.SIZES, "cpu", (200, 400, 800))
    law = memory_probe.measure_law(Hungry(), crystals(20))
    batch = crystals(300)
    edges = memory_probe.count_edges(batch, 4.0).sum()
    assert edges > 20 * batch.n_atoms
    assert law.per_edge == pytest.approx(PER_EDGE, rel=0.2)
    assert law.bytes(batch.n_atoms, edges) == pytest.approx(PER_ATOM * batch.n_atoms + PER_EDGE * edges, rel=0.15)


@linux
def test_a_probe_makes_no_call_that_would_take_more_than_is_free(monkeypatch):
    monkeypatch.setitem(memory_probe.SIZES, "cpu", (200, 400, 800))
    hungry, patient = Hungry(), Hungry()
    law = memory_probe.measure_law(hungry, crystals(20), free=6e7)
    memory_probe.measure_law(patient, crystals(20))
    assert hungry.calls < patient.calls
    assert law.bytes(1000, 20_000) == pytest.approx(PER_ATOM * 1000 + PER_EDGE * 20_000, rel=0.2)


@linux
def test_a_probe_that_runs_out_of_memory_tells_the_law_from_smaller_calls(monkeypatch):
    monkeypatch.setitem(memory_probe.SIZES, "cpu", (200, 400, 800))
    law = memory_probe.measure_law(Hungry(room=6e7), crystals(20))
    assert law.bytes(1000, 20_000) == pytest.approx(PER_ATOM * 1000 + PER_EDGE * 20_000, rel=0.2)


@linux
def test_a_probe_whose_first_call_does_not_fit_tries_fewer(monkeypatch):
    monkeypatch.setitem(memory_probe.SIZES, "cpu", (600, 1200))
    hungry = Hungry(room=1.3e7)  # 100 atoms and their edges
    law = memory_probe.measure_law(hungry, crystals(64))
    assert law is None and hungry.calls == 6, "512, 256 and 128 atoms do not fit, 64 do"
    monkeypatch.setitem(memory_probe.SIZES, "cpu", (64, 600))
    assert memory_probe.measure_law(hungry, crystals(64)) is not None
    assert memory_probe.measure_law(Hungry(room=10), crystals(64)) is None


def test_little_is_looked_at_before_anything_is_known_of_memory(monkeypatch):
    assert memory_probe.take_few(crystals(500)).n_atoms == 64 * 8
    monkeypatch.setattr(memory_probe, "FEW", (64, 20))
    assert memory_probe.take_few(crystals(500)).n_atoms == 16
    monkeypatch.setattr(memory_probe, "FEW", (64, 5))
    assert len(memory_probe.take_few(crystals(500))) == 1 and len(memory_probe.take_few(crystals(0))) == 0


def test_a_fit_is_exact_where_the_law_holds_and_never_below_a_measurement():
    rng = np.random.default_rng(0)
    atoms, edges = rng.uniform(100, 5000, 12), rng.uniform(1e3, 1e5, 12)
    exact = 1e6 + 3e4 * atoms + 500 * edges
    law = fit_law(atoms, edges, exact)
    assert (law.fixed, law.per_atom, law.per_edge) == pytest.approx((1e6, 3e4, 500), rel=1e-6)
    noisy = exact * rng.uniform(0.8, 1.2, 12)
    law = fit_law(atoms, edges, noisy)
    assert min(law.fixed, law.per_atom, law.per_edge) >= 0
    assert (np.array([law.bytes(a, e) for a, e in zip(atoms, edges, strict=True)]) >= noisy * (1 - 1e-9)).all()
    with pytest.raises(DataError, match="positive numbers"):
        fit_law([1.0], [1.0], [-5.0])


def test_on_a_cpu_scarce_memory_lowers_the_budget_and_plenty_never_raises_it(monkeypatch):
    law = MemoryLaw(0.0, 1e5, 1e3)
    monkeypatch.setattr(memory_budget, "measure_law", lambda *a, **k: law)
    sample, hungry = crystals(5), Hungry()
    plenty = find_budget(hungry, sample, USUAL, free=5e9)
    assert (plenty.max_atoms, plenty.max_edges) == USUAL
    for free in (1e9, 1e8):
        scarce = find_budget(hungry, sample, USUAL, free=free)
        assert 1 <= scarce.max_atoms < USUAL[0] and scarce.max_edges < USUAL[1]
        assert memory_budget.SAFETY * law.bytes(scarce.max_atoms, scarce.max_edges) <= memory_budget.USABLE * free
    with pytest.raises(AtomSieveError, match=r"only 10 MiB are free on cpu .*, \d+ MiB are needed for batches of 256"):
        find_budget(hungry, sample, USUAL, free=1e7)
    shared = find_budget(hungry, sample, USUAL, free=4e9, share=4)
    alone = find_budget(hungry, sample, USUAL, free=1e9)
    assert (shared.max_atoms, shared.max_edges) == (alone.max_atoms, alone.max_edges)
    with pytest.raises(UsageError, match="share must be at least 1"):
        find_budget(hungry, sample, USUAL, free=1e9, share=0)


def test_on_a_gpu_memory_decides_up_to_what_the_backend_takes_at_once(monkeypatch):
    law = MemoryLaw(1e8, 1e5, 1e3)
    monkeypatch.setattr(memory_budget, "measure_law", lambda *a, **k: law)
    monkeypatch.setattr(memory_law, "_device_name", lambda p: "a GPU")
    gpu = Hungry(device="cuda:0", max_atoms=200_000)
    small = find_budget(gpu, crystals(5), (100_000, 5_000_000), free=2e9)
    assert small.max_atoms < 100_000
    assert (
        memory_budget.SAFETY * (law.bytes(small.max_atoms, small.max_edges) - 1e8) <= memory_budget.USABLE * 2e9 - 1e8
    )
    large = find_budget(gpu, crystals(5), (100_000, 5_000_000), free=1e12)
    assert large.max_atoms == 200_000 and large.max_edges > 5_000_000


def test_structures_in_vacuum_have_more_edges_than_their_density_says(monkeypatch):
    monkeypatch.setattr(memory_budget, "measure_law", lambda *a, **k: MemoryLaw(0.0, 1.0, 1e4))
    dense = find_budget(Hungry(), crystals(5), USUAL, free=1e9)
    slabs = find_budget(Hungry(), crystals(5, vacuum=20.0), USUAL, free=1e9)
    assert slabs.max_edges <= 0.5 * dense.max_edges


def test_a_law_is_learned_once_and_belongs_to_what_it_was_learned_of(cache, monkeypatch):
    learned = []
    monkeypatch.setattr(memory_budget, "measure_law", lambda *a, **k: learned.append(1) or MemoryLaw(0.0, 1e5, 1e3))
    first = find_budget(Hungry(), crystals(5), USUAL, free=1e9)
    again = find_budget(Hungry(), crystals(5), USUAL, free=1e9)
    assert len(learned) == 1 and "learned in a probe" in first.why and "known" in again.why
    assert (first.max_atoms, first.max_edges) == (again.max_atoms, again.max_edges)
    other = Hungry()
    other.precision = "fp64"
    find_budget(other, crystals(5), USUAL, free=1e9)
    find_budget(Hungry(), crystals(5), USUAL, free=1e9, want={"energy"})
    assert len(learned) == 3
    for file in cache.iterdir():
        file.write_text(file.read_text()[:40])
    find_budget(Hungry(), crystals(5), USUAL, free=1e9)
    assert len(learned) == 4, "a damaged file is no law"
    for file in cache.iterdir():
        if found := json.loads(file.read_text()) if file.read_text().endswith("}\n") else None:
            file.write_text(json.dumps({**found, "law": {**found["law"], "per_atom": -1.0}}))
    find_budget(Hungry(), crystals(5), USUAL, free=1e9)
    assert len(learned) == 5


def test_a_cache_that_cannot_be_written_costs_a_probe_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where a folder is wanted")
    monkeypatch.setattr(memory_budget, "measure_law", lambda *a, **k: MemoryLaw(0.0, 1e5, 1e3))
    assert find_budget(Hungry(), crystals(5), USUAL, free=1e9).max_atoms < USUAL[0]


def test_nothing_is_probed_where_there_is_room_enough(cache):
    hungry = Hungry()
    assert find_budget(hungry, crystals(5), USUAL, free=memory_budget.ROOMY).max_atoms == USUAL[0]
    assert hungry.calls == 0 and not cache.exists()


def test_a_sample_without_any_result_leaves_the_usual_budget():
    empty = crystals(0)
    assert find_budget(Hungry(), empty, USUAL, free=1e9).max_atoms == USUAL[0]


def test_rounding_keeps_three_leading_bits():
    values = [round_down(v) for v in (0.5, 1, 7, 9, 1000, 1023, 1025, 4096, 5000)]
    assert values == [0, 1, 7, 8, 896, 896, 1024, 4096, 4096]
    assert all(0.8 * v < round_down(v) <= v for v in range(1, 3000))


def test_limits_of_control_groups_hold_at_every_level(tmp_path):
    def group(path, limit, current, stat, names=("memory.max", "memory.current")):
        path.mkdir(parents=True, exist_ok=True)
        (path / names[0]).write_text(f"{limit}\n")
        (path / names[1]).write_text(f"{current}\n")
        (path / "memory.stat").write_text(stat)

    own = tmp_path / "cgroup"
    own.write_text("0::/slice/job\n")
    group(tmp_path / "v2/slice/job", "max", 500, "inactive_file 0\n")
    group(tmp_path / "v2/slice", 2000, 900, "anon 1\ninactive_file 300\n")
    assert read_cgroup_free(tmp_path / "v2", own) == 2000 - 900 + 300
    group(tmp_path / "v2/slice/job", 600, 500, "inactive_file 0\n")
    assert read_cgroup_free(tmp_path / "v2", own) == 100
    own.write_text("5:cpu:/x\n4:memory:/job\n")
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    group(tmp_path / "v1/memory/job", 5000, 4000, "total_inactive_file 100\n", names)
    assert read_cgroup_free(tmp_path / "v1", own) == 1100
    assert read_cgroup_free(tmp_path / "v1", tmp_path / "nowhere") == float("inf")


@linux
def test_limits_of_the_shell_count(monkeypatch):
    import resource

    import psutil

    held = psutil.Process().memory_info()
    limits = {resource.RLIMIT_AS: held.vms + 10**9, resource.RLIMIT_DATA: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits[kind], resource.RLIM_INFINITY))
    assert read_rlimit_free() == pytest.approx(10**9, rel=0.2) and read_free_memory("cpu") <= read_rlimit_free() * 1.2
    limits[resource.RLIMIT_DATA] = held.data
    assert read_rlimit_free() < 2e8
    limits |= dict.fromkeys(limits, resource.RLIM_INFINITY)
    assert read_rlimit_free() == float("inf")


class Card:
    """Stands for `torch.cuda`: counts what is allocated now, at most, and kept for later."""

    def __init__(self, total):
        self.total, self.held, self.peak, self.kept = total, 500, 500, 700

    def take(self, size):
        self.peak = max(self.peak, self.held + size)

    def patch(self, monkeypatch):
        import torch

        for name, call in {
            "is_available": lambda: True,
            "synchronize": lambda device: None,
            "reset_peak_memory_stats": lambda device: setattr(self, "peak", self.held),
            "memory_allocated": lambda device: self.held,
            "max_memory_allocated": lambda device: self.peak,
            "memory_reserved": lambda device: self.kept,
            "mem_get_info": lambda device: (self.total - self.kept, self.total),
            "get_device_name": lambda device: "a card",
            "empty_cache": lambda: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, call)


class OnCard(Hungry):
    """Takes memory of a card."""

    def __init__(self, card):
        super().__init__(device="cuda:0", max_atoms=200_000)
        self.card = card

    def __call__(self, batch, want, head=None, **more):
        self.calls += 1
        size = 1e7 + PER_ATOM * batch.n_atoms + PER_EDGE * memory_probe.count_edges(batch, self.cutoff).sum()
        if size > self.card.total:
            raise MemoryError
        self.card.take(size)
        return SimpleNamespace(status=np.zeros(len(batch), np.uint8))


def test_on_a_gpu_the_allocator_tells_the_law_and_the_budget_fits(monkeypatch, cache):
    card = Card(4e9)
    card.patch(monkeypatch)
    assert read_free_memory("cuda:0") == 4e9 - 500, "what is kept for later can be used"
    predictor = OnCard(card)
    law = memory_probe.measure_law(predictor, crystals(20))
    assert (law.fixed, law.per_atom, law.per_edge) == pytest.approx((1e7, PER_ATOM, PER_EDGE), rel=1e-3)
    budget = find_budget(predictor, lambda: crystals(20), (100_000, 5_000_000))
    assert 0.5 * 4e9 < memory_budget.SAFETY * law.bytes(budget.max_atoms, budget.max_edges) < 4e9
    assert len(list(cache.iterdir())) == 1
    halves = find_budget(predictor, crystals(20), (100_000, 5_000_000), share=2)
    assert 0.4 * budget.max_atoms < halves.max_atoms < 0.6 * budget.max_atoms
    from atomsieve.screen.telemetry.prometheus import read_memory

    assert read_memory("cuda:0")["device_total"] == 4e9
