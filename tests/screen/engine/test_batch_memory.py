"""Memory, energy and metrics of a whole run: what is settled before it, learned during it, and told after it."""

from __future__ import annotations

import json
import pickle
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from atomsieve.errors import AtomSieveError, UsageError
from atomsieve.predict import Predictor, Status, memory_budget
from atomsieve.predict.memory_law import MemoryLaw
from atomsieve.predict.packing import Limit, cache_sized_budget
from atomsieve.screen.cascade.predictors import CascadePredictor
from atomsieve.screen.engine import in_flight
from atomsieve.screen.engine.batch_budget import resolve_batch_budget, sample_structures
from atomsieve.screen.engine.cpu_fallback import CpuFallback
from atomsieve.screen.engine.cuda_streams import StreamedPredictor
from atomsieve.screen.engine.runner import Runner
from atomsieve.screen.finish import print_result
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.quarantine import retry
from atomsieve.screen.results.files import ResultsFolder
from atomsieve.screen.run import run_screen
from atomsieve.screen.telemetry import energy, monitor
from tests.helpers import copper_oxides, tiny_gfm
from tests.screen.screen_fakes import FakePredictor, MemoryReader, candidates


class Small(FakePredictor):
    """Runs out of memory with more than `room` atoms; notes the sizes of its batches."""

    def __init__(self, room, device="cpu"):
        super().__init__()
        self.room, self.device, self.sizes, self.failed = room, device, [], 0

    def before(self, batch):
        if batch.n_atoms > self.room:
            self.failed += 1
            raise MemoryError
        self.sizes.append(batch.n_atoms)


class Instead:
    """Stands for the ensemble on the CPU."""

    def __init__(self, room=10**9):
        self.computed, self.small = 0, Small(room)

    def load_for(self, predictor):
        return self.small


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def runner(predictor, **more):
    return Runner(predictor, ["pbe"], True, 200, 10**6, 1, 20_000, limit=Limit(200, 10**6), **more)


def test_a_run_that_meets_the_end_of_memory_once_goes_on_with_smaller_batches(screen, tmp_path):
    whole = screen(out="whole")
    small = Small(120)
    result = screen(small, out="small")
    assert small.failed == 1, "later batches are halved before they are tried"
    assert (tmp_path / "small/rows.npy").read_bytes() == (tmp_path / "whole/rows.npy").read_bytes()
    told = summary(tmp_path / "small")["memory"]
    assert told["batches_that_did_not_fit"] == 1 and 0.5 <= told["least_part_of_budget"] < 0.65
    assert summary(tmp_path / "whole")["memory"]["least_part_of_budget"] == 1.0
    text = StringIO()
    print_result(Console(file=text, width=300), result, "energy_per_atom", 3)
    assert "did not fit into memory and were split: 1;" in text.getvalue() and whole.structures == result.structures


def test_what_is_too_large_alone_is_computed_on_the_cpu_or_marked():
    batch = candidates(100, bad=False)
    large = batch.counts > 9
    expected, vectors, _ = runner(FakePredictor())(batch, 0)
    marked, *_ = runner(Small(9, "cuda:0"))(batch, 0)
    assert np.array_equal(marked["status"] == Status.OUT_OF_MEMORY, large)
    instead = Instead()
    rows, forces, _ = runner(Small(9, "cuda:0"), oversized=instead)(batch, 0)
    assert rows.tobytes() == expected.tobytes() and np.array_equal(forces, vectors)
    assert instead.computed == large.sum() == len(instead.small.sizes), "one by one, and nothing else"
    rows, *_ = runner(Small(9, "cuda:0"), oversized=Instead(room=10))(batch, 0)
    assert np.array_equal(rows["status"] == Status.OUT_OF_MEMORY, batch.counts > 10)


def test_lanes_lower_the_budget_too():
    batch, small = candidates(300, bad=False), Small(120)
    expected, *_ = runner(FakePredictor())(batch, 0)
    with StreamedPredictor(small) as lanes:
        run = runner(lanes)
        first, *_ = run(batch, 0)
        failed = small.failed
        again, *_ = run(batch, 0)
    assert first.tobytes() == again.tobytes() == expected.tobytes()
    assert run.limit.part < 0.65 and small.failed == failed, "the next chunk is cut to what fits before it is sent"


@pytest.fixture(scope="module")
def gfm(tmp_path_factory):
    return tiny_gfm(tmp_path_factory.mktemp("gfm") / "gfm")


def test_the_twin_on_the_cpu_is_the_same_ensemble_in_the_same_precision(gfm, monkeypatch):
    predictor = Predictor.load(gfm, precision="fp64")
    own = CpuFallback(gfm)
    assert own.load_for(predictor) is None, "what is on the CPU has no twin there"
    assert own.load_for(FakePredictor()) is None
    predictor.device = "cuda:0"
    twin = own.load_for(predictor)
    assert (twin.precision, twin.ensemble_id, str(twin.device)) == ("fp64", predictor.ensemble_id, "cpu")
    monkeypatch.setattr("torch.cuda.synchronize", lambda device: None)  # there is no GPU here
    with StreamedPredictor(predictor) as lanes:
        assert own.load_for(lanes) is twin
    sent = pickle.loads(pickle.dumps(own))
    assert (sent.folder, sent._loaded) == (gfm, {})
    predictor.ensemble_id = "other"
    assert own.load_for(predictor) is None, "the folder holds another ensemble by now"


def test_batches_that_are_at_work_at_once_share_the_memory(gfm, tmp_path, monkeypatch):
    """Also in a cascade, whose better predictor does not know of the lanes of the first pass."""
    shares = []
    monkeypatch.setattr(
        memory_budget, "find_budget", lambda *a, share, **k: shares.append(share) or memory_budget.Budget(9, 9, "")
    )
    model, reader = Predictor.load(gfm), MemoryReader(copper_oxides(4))
    for given in (
        model,
        StreamedPredictor(model),
        StreamedPredictor(CascadePredictor(model, model, ScreenOptions(cascade="fp32:fp64"))),
    ):
        resolve_batch_budget(
            given,
            reader,
            ScreenOptions(),
            ResultsFolder(tmp_path),
            head="metal",
            want=set(),
            overwrite=True,
            share=3,
            loaded=True,
        )
    assert shares == [3, 6, 6]


def test_scarce_memory_settles_the_budget_and_a_run_keeps_it(gfm, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(memory_budget, "measure_law", lambda *a, **k: MemoryLaw(0.0, 1e6, 0.0))
    free = [1e9]
    monkeypatch.setattr(memory_budget, "read_free_memory", lambda device: free[0])
    reader = MemoryReader(copper_oxides(40, seed=3))

    def screen(out="out", console=None, **options):
        run_screen("x.bp", gfm, ScreenOptions(**options), out=tmp_path / out, reader=reader, console=console)
        return json.loads((tmp_path / out / "run.json").read_text())

    text = StringIO()
    scarce = screen(console=Console(file=text, width=300))
    assert (
        scarce["batches"]["max_atoms"] == memory_budget.round_down(0.8e9 / 1.25 / 1e6) and scarce["budget"]["automatic"]
    )
    assert "batches: up to 640 atoms" in text.getvalue() and "learned in a probe" in text.getvalue()
    free[0] = 1e12
    assert screen()["batches"] == scarce["batches"], "a run goes on as it began, whatever memory there is now"
    usual = Predictor.load(gfm).capabilities.budget
    assert usual == cache_sized_budget(3 * 16 * 4) == (2048, 125_000)
    assert screen(out="fresh")["batches"]["max_atoms"] == usual[0]
    asked = screen(out="asked", max_atoms=100)
    assert asked["batches"]["max_atoms"] == 100 and asked["budget"]["automatic"] == ["max_edges"]
    free[0] = 1e9
    half = screen(out="half", max_edges=5000)
    assert half["budget"] == {"automatic": ["max_atoms"]} and half["batches"]["max_edges"] == 5000
    free[0] = 1e12
    assert screen(out="half", max_edges=5000) == half, "the number that was not given is kept too"
    log = [json.loads(line) for line in (tmp_path / "half/run.log.jsonl").read_text().splitlines()]
    starts = [event["batches"] for event in log if event["event"] == "start"]
    assert "partly as asked; about" in starts[0] and starts[1] == "as in the earlier part of this run"
    with pytest.raises(AtomSieveError, match=r"max_atoms: 640 -> 100"):
        screen(max_atoms=100)
    with pytest.raises(AtomSieveError, match=r"max_atoms: 100 -> 2048"):
        screen(out="asked")


def test_a_sample_comes_from_all_over_the_input():
    batch = candidates(1000)
    ids = sample_structures(MemoryReader(batch)).id - batch.id[0]
    assert len(ids) == 256 and len(set(ids.tolist())) == 256
    assert ids.min() == 0 and ids.max() == 999 and ((ids > 300) & (ids < 400)).any()
    assert len(sample_structures(MemoryReader(batch.slice(0, 7)))) == 7
    small = sample_structures(MemoryReader(batch), largest=5)
    assert small.counts.max() == 5 and len(small) == (sample_structures(MemoryReader(batch)).counts <= 5).sum()


def test_energy_is_told_or_said_to_be_unknown(screen, tmp_path, monkeypatch):
    text = StringIO()
    monkeypatch.setattr(monitor.energy, "meter", lambda gpus: energy.EnergyMeter([], ("cpu",)))
    print_result(Console(file=text, width=300), screen(), "energy_per_atom", 3)
    assert summary(tmp_path / "out")["energy"]["joules"] == {"cpu": None}
    assert "energy: unknown" in text.getvalue()
    readings = iter(np.arange(0.0, 1000.0, 50.0))
    counter = energy.Counter("cpu", "package", lambda: next(readings))
    monkeypatch.setattr(monitor.energy, "meter", lambda gpus: energy.EnergyMeter([counter]))
    counter.update()
    print_result(Console(file=text, width=300), screen(out="known"), "energy_per_atom", 3)
    told = summary(tmp_path / "known")["energy"]
    assert told["joules"]["cpu"] > 0
    assert told["joules_per_million_structures"] == pytest.approx(told["joules"]["cpu"] * 1e6 / 1000)
    assert "J per million structures" in text.getvalue()


def test_metrics_of_a_run_say_that_it_is_finished(screen, tmp_path):
    parser = pytest.importorskip("prometheus_client.parser", reason="prometheus-client is not installed")
    screen(metrics=str(tmp_path / "screen-{rank}.prom"))
    found = {
        sample.name: sample.value
        for family in parser.text_string_to_metric_families((tmp_path / "screen-0.prom").read_text())
        for sample in family.samples
    }
    assert found["atomsieve_screen_structures_done_total"] == found["atomsieve_screen_structures"] == 1000
    assert (found["atomsieve_screen_structures_left"], found["atomsieve_screen_finished"]) == (0, 1)
    assert found["atomsieve_screen_structures_failed_total"] > 0
    log = [json.loads(line) for line in (tmp_path / "out/run.log.jsonl").read_text().splitlines()]
    last = [event for event in log if event["event"] == "progress"][-1]
    assert last["seconds_per_stage"]["predict"] > 0 and last["memory_bytes"]["resident"] > 0


def test_metrics_of_suspects_say_what_is_left(screen, tmp_path, monkeypatch):
    parser = pytest.importorskip("prometheus_client.parser", reason="prometheus-client is not installed")
    screen()
    out, file, seen = ResultsFolder(tmp_path / "out"), tmp_path / "screen.prom", []
    for path in out.ledger.iterdir():  # as if nothing were durable, and a run had died of everything
        path.unlink()
    out.at_hand.write_bytes(b"".join(in_flight.encode_slot(k) for k in (None, *range(16))))
    monkeypatch.setattr(retry, "open_sandbox", lambda *given: None)  # this process computes
    monkeypatch.setattr(monitor, "SECONDS", 0.0)

    def state():
        families = parser.text_string_to_metric_families(file.read_text())
        found = {sample.name: sample.value for family in families for sample in family.samples}
        names = ("structures_done_total", "structures_left", "finished")
        return tuple(found[f"atomsieve_screen_{name}"] for name in names)

    predictor = FakePredictor()
    predictor.before = lambda batch: seen.append(state())
    screen(predictor, metrics=str(file))
    done, left, finished = zip(*seen, strict=True)
    assert done[0] == 0 and all(d + rest == 1000 for d, rest in zip(done, left, strict=True)) and not any(finished)
    assert state() == (1000, 0, 1)


def test_wrong_choices_are_named(screen, tmp_path):
    with pytest.raises(UsageError, match=r"unknown oversized 'gpu'.*allowed: cpu, mark"):
        ScreenOptions(oversized="gpu")
    with pytest.raises(AtomSieveError, match="there is no folder"):
        screen(metrics=str(tmp_path / "nowhere/screen.prom"))
    assert not (tmp_path / "out/rows.npy.part").exists(), "nothing was begun"
