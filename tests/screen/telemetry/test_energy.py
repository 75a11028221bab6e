"""Joules of a run: counters that wrap, counters that cannot be read, several machines."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from atomsieve.runs.mpi import Communicator
from atomsieve.screen.engine import placement
from atomsieve.screen.telemetry import energy
from atomsieve.screen.telemetry.energy import (
    Counter,
    EnergyMeter,
    format_energy,
    meter,
    nvml_counters,
    rapl_counters,
    total,
)


@pytest.fixture(autouse=True)
def no_hurry(monkeypatch):
    """Counters of these tests hold a joule: they would wrap within milliseconds."""
    monkeypatch.setattr(energy, "MOST_WATTS", 0.0)


def zone(root, name, kind, microjoules, wraps=1_000_000):
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(f"{kind}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{wraps}\n")
    return folder / "energy_uj"


def test_packages_and_memory_count_and_parts_of_a_package_do_not_count_twice(tmp_path):
    package = zone(tmp_path, "intel-rapl:0", "package-0", 100)
    cores = zone(tmp_path, "intel-rapl:0:0", "core", 50)
    memory = zone(tmp_path, "intel-rapl:0:1", "dram", 10)
    zone(tmp_path, "intel-rapl:1", "psys", 10)
    found = meter(powercap=tmp_path)
    package.write_text("5000100")
    cores.write_text("4000050")
    memory.write_text("1000010")
    assert found.report()["joules"] == {"cpu": pytest.approx(6.0)}


def test_a_counter_that_wraps_goes_on(tmp_path):
    file = zone(tmp_path, "intel-rapl:0", "package-0", 900_000, wraps=1_000_000)
    found = meter(powercap=tmp_path)
    for value in (950_000, 40_000, 990_000, 30_000):
        file.write_text(str(value))
        found.update()
    assert found.report()["joules"]["cpu"] == pytest.approx(0.05 + 0.09 + 0.95 + 0.04)


def test_a_counter_that_may_have_wrapped_unseen_is_unknown(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(energy, "MOST_WATTS", 500.0)
    monkeypatch.setattr(energy, "time", SimpleNamespace(monotonic=lambda: now[0]))
    file = zone(tmp_path, "intel-rapl:0", "package-0", 0, wraps=262_000_000_000)
    found = meter(powercap=tmp_path)
    for seconds, joules in ((500.0, 100_000), (500.0, 200_000)):
        now[0] += seconds
        file.write_text(str(joules * 10**6))
        found.update()
    assert found.report()["joules"] == {"cpu": pytest.approx(200_000)}
    now[0] += 600.0
    assert found.report()["joules"] == {"cpu": None}


def test_a_counter_that_holds_no_number_is_unknown(tmp_path):
    file = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    found = meter(powercap=tmp_path)
    file.write_text("")
    assert found.report()["joules"] == {"cpu": None}


def test_a_counter_that_only_root_may_read_makes_the_cpu_unknown(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", 1)
    zone(tmp_path, "intel-rapl:1", "package-1", 1).unlink()
    assert rapl_counters(tmp_path) == []
    assert meter(powercap=tmp_path).report() == {"joules": {"cpu": None}, "counters": []}
    assert meter(powercap=tmp_path / "nowhere").report()["joules"] == {"cpu": None}


def test_a_counter_that_is_lost_in_mid_run_is_unknown(tmp_path):
    file = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    found = meter(powercap=tmp_path)
    file.unlink()
    assert found.report()["joules"] == {"cpu": None}


class FakeNvml:
    class NVMLError(Exception):
        pass

    def __init__(self, millijoules):
        self.millijoules = millijoules

    def nvmlInit(self):
        pass

    def nvmlDeviceGetHandleByUUID(self, name):
        if name not in self.millijoules:
            raise self.NVMLError("not found")
        return name

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        if self.millijoules[handle] is None:
            raise self.NVMLError("not supported")
        return self.millijoules[handle]


def test_gpus_count_by_their_own_counters(tmp_path, monkeypatch):
    nvml = FakeNvml({"GPU-a": 5000, "GPU-b": 1000, "GPU-old": None})
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    found = meter(["a", "GPU-b"], tmp_path)
    nvml.millijoules |= {"GPU-a": 8000, "GPU-b": 1500}
    assert found.report()["joules"] == {"cpu": None, "gpu": pytest.approx(3.5)}
    assert nvml_counters(["old", "nowhere"]) == []
    assert meter(["a", "old"], tmp_path).report()["joules"]["gpu"] is None, "half of the GPUs is not the energy"


def test_without_its_package_gpus_are_unknown(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert meter(["a"], tmp_path).report()["joules"] == {"cpu": None, "gpu": None}


def test_machines_add_up_and_one_unknown_makes_the_sum_unknown():
    one = {"joules": {"cpu": 10.0, "gpu": 30.0}, "counters": ["a", "b"]}
    two = {"joules": {"cpu": 5.0}, "counters": ["c"]}
    found = total([one, None, two, None], 1000)
    assert found == {
        "joules": {"cpu": 15.0, "gpu": 30.0},
        "machines": 2,
        "counters": 3,
        "joules_per_million_structures": 45_000.0,
    }
    assert "45,000 J per million structures" in format_energy(found)
    half = total([one, {"joules": {"cpu": None}, "counters": []}], 1000)
    assert half["joules"] == {"cpu": None, "gpu": 30.0} and half["joules_per_million_structures"] is None
    assert format_energy(half) == "energy: CPU unknown, GPU 30 J"
    nothing = total([{"joules": {"cpu": None}, "counters": []}], 1000)
    assert "unknown" in format_energy(nothing) and " 0 " not in format_energy(nothing)
    assert total([one], 0)["joules_per_million_structures"] is None


def test_a_counter_set_to_zero_does_not_count_backwards():
    values = iter([10.0, 12.0, 1.0, 2.0])
    counter = Counter("gpu", "a", lambda: next(values))
    for _ in range(4):
        assert counter.update()
    assert counter.joules == pytest.approx(3.0)
    assert EnergyMeter([]).report() == {"joules": {}, "counters": []}


def test_only_the_gpus_that_are_computed_on_are_metered(monkeypatch):
    cuda = SimpleNamespace(device_count=lambda: 4, get_device_properties=lambda k: SimpleNamespace(uuid=f"u{k}"))
    device = lambda name: SimpleNamespace(index=int(name.partition(":")[2]))  # noqa: E731
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, device=device))
    assert [placement.read_gpu_uuid(device) for device in ("cpu", "cuda:2")] == [None, "u2"]
    a, b = "node1", "node2"

    def found(*ranks):
        every = [placement.Place(machine, gpu) for machine, gpu in ranks]
        return placement.ranks_per_device(every), [placement.gpus_of_machine(every, rank) for rank in range(len(every))]

    assert found((a, None), (a, None), (b, None)) == (2, [[], [], []])
    assert found((a, "u1"), (a, "u1"), (a, "u1")) == (3, [["u1"]] * 3), "all on one GPU of several"
    one_each = (a, "u1"), (a, "u2"), (b, "u3")
    assert found(*one_each) == (1, [["u1", "u2"], ["u1", "u2"], ["u3"]]), "whether or not a rank sees the other's"
    assert found((a, "u1"), (a, "u2"), (a, "u1")) == (2, [["u1", "u2"]] * 3)


def test_servers_compute_on_no_gpu_of_this_machine():
    there = SimpleNamespace(device="cuda:0", capabilities=SimpleNamespace(endpoints=("grpc://elsewhere:8001",)))
    assert [place.gpu for place in placement.gather_places(Communicator(), there)] == [None]
