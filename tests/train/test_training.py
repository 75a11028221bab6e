"""Whole small trainings: they learn, resume exactly, refuse what changed, and end cleanly when asked to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from atomsieve.errors import AtomSieveError, Interrupted, UsageError
from atomsieve.gfm.folder import load_gfm, read_calibration
from atomsieve.gfm.manifest import read_manifest
from atomsieve.train import loop
from atomsieve.train.checkpoint import load_tensors
from atomsieve.train.config import dump_config
from atomsieve.train.run import train


def weights(folder):
    ensemble, _ = load_gfm(folder / "gfm")
    return {name: p.detach() for name, p in ensemble.named_parameters()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


class StopAt:
    """Makes a run believe that it was asked to stop when it reaches a step."""

    def __init__(self, monkeypatch, step):
        plain = loop.Run.step

        def stepped(run, batch, stop, part):
            return plain(run, batch, stop or run.progress.step + 1 == step, part)

        monkeypatch.setattr(loop.Run, "step", stepped)


def test_training_learns_and_writes_everything_it_promises(small):
    config = small(
        budget={"steps": 300},
        optimizer={"lr": 1e-2, "ema": 0.9},
        loss={"energy_end": 3.0},
        batch={"balance": 0.2},
        split={"train": 0.5, "val": 0.2, "test": 0.1, "calibration": 0.2},
    )
    result = train(config)
    for part in ("val", "test"):
        emt = result.metrics[part]["emt"]
        assert emt["force_ratio"] < 0.6
        assert emt["force_mae"] <= emt["force_member_mae"] + 1e-9
    assert result.metrics["test"]["springs"]["energy_ratio"] < 0.8
    assert "force_mae" not in result.metrics["test"]["springs"]
    calibrated = read_calibration(config.output / "gfm").heads
    enough = {name for name, row in result.metrics["val"].items() if row["energies"] >= 10}
    assert set(calibrated) == enough != set()
    assert calibrated["springs"].calibrated == {"energy"}  # has no forces
    (data,) = read_calibration(config.output / "gfm").data
    kept = sum(row["structures"] for row in result.metrics["calibration"].values())
    assert (data.part, data.structures) == ("calibration", kept)
    emt = next(h for h in read_manifest(config.output / "gfm").heads if h.name == "emt")
    assert 1.5 < emt.statistics["shortest_distance"] < 3.0
    names = {p.name for p in config.output.iterdir()}
    assert {"config.yaml", "data.json", "metrics.json", "metrics.md", "parity.png", "gfm", "runs"} <= names
    assert (config.output / "parity.png").read_bytes().startswith(b"\x89PNG")
    text = (config.output / "metrics.md").read_text()
    rows = json.loads((config.output / "metrics.json").read_text())["test"]
    evaluation = json.loads((config.output / "gfm/evaluation.json").read_text())
    assert evaluation["heads"] == rows == result.metrics["test"]  # one evaluation
    assert evaluation["training"]["steps"] == 300 and evaluation["training"]["fall"] > 0.05
    assert rows["emt"]["energy_composition"] > 0 and rows["emt"]["energy_rank"] > 0.5
    card = (config.output / "gfm/README.md").read_text()
    for line in (f"{rows['emt']['energy_mae']:.1f}", *(r["text"] for r in evaluation["verdict"]["heads"]["springs"])):
        assert line in card and line in text
    _, manifest = load_gfm(config.output / "gfm")
    assert manifest.default_head == "emt"
    assert [h.level_of_theory for h in manifest.heads] == ["EMT", "harmonic bonds, energies only"]
    assert set(manifest.heads[0].references) == {29, 47}
    data = json.loads((config.output / "data.json").read_text())
    assert "C" in data["springs"]["inseparable_elements"][0]
    rows = [json.loads(line) for line in (config.output / "runs/000/log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if r["kind"] == "train"] == [*range(5, 201, 5), *range(220, 301, 20)]
    assert any(r["kind"] == "validation" for r in rows)


@pytest.mark.parametrize("settings", [{}, {"ensemble": {"members": 2, "mode": "separate", "bootstrap": True}}])
def test_an_interrupted_run_goes_on_to_the_same_bits(small, monkeypatch, settings):
    budget = {"steps": 13, "eval_every": 5}
    whole = small("whole", budget=budget, **settings)
    train(whole)
    broken = small("broken", budget=budget, **settings)
    with monkeypatch.context() as patch:
        StopAt(patch, 7)
        with pytest.raises(Interrupted, match="step 7"):
            train(broken)
    assert not (broken.output / "gfm").exists()
    train(broken)
    assert same(weights(whole.output), weights(broken.output))
    last = [load_tensors(c.output / "runs/000/last.safetensors") for c in (whole, broken)]
    assert same(last[0][0], last[1][0])
    scores = [[(h["step"], h["score"]) for h in state["history"]] for _, state in last]
    assert scores[0] == scores[1]


def test_a_finished_run_run_again_changes_nothing(small):
    config = small()
    train(config)
    before = weights(config.output)
    steps = load_tensors(config.output / "runs/000/last.safetensors")[1]["step"]
    train(config)
    assert same(before, weights(config.output))
    assert load_tensors(config.output / "runs/000/last.safetensors")[1]["step"] == steps


def test_a_changed_configuration_is_refused_by_key_and_overwrite_starts_anew(small):
    train(small())
    with pytest.raises(UsageError, match=r"changed: optimizer\.lr"):
        train(small(optimizer={"lr": 1e-4}))
    config = small(optimizer={"lr": 1e-4})
    train(config, overwrite=True)
    assert yaml.safe_load((config.output / "config.yaml").read_text())["optimizer"]["lr"] == 1e-4


def test_a_folder_with_other_things_is_left_alone(small):
    config = small()
    config.output.mkdir()
    (config.output / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        if overwrite:
            train(config, overwrite=True)
        else:
            with pytest.raises(UsageError, match="is not empty and holds no run"):
                train(config)
    assert (config.output / "thesis.tex").read_text() == "years of work"


def test_several_heads_need_a_stated_default(small):
    with pytest.raises(UsageError, match="state default_head"):
        train(small(default_head=None))
    with pytest.raises(UsageError, match="did you mean 'springs'"):
        train(small("other", default_head="spring"))


def test_members_do_not_depend_on_each_other(small):
    """Member 0 trained in company is member 0 trained alone (same order of data)."""
    ema = {"ema": 0.5}
    pair, single = small("pair", optimizer=ema), small("single", optimizer=ema, ensemble={"members": 1})
    train(pair)
    train(single)
    both = weights(pair.output)
    for name, p in weights(single.output).items():
        torch.testing.assert_close(both[name][:1], p, rtol=1e-3, atol=1e-5)
    first, second = both["readout.hidden_weight"]
    assert not torch.allclose(first, second)


def test_a_loss_that_is_not_finite_is_skipped_counted_and_in_the_end_fatal(small, monkeypatch):
    plain, calls = loop.batch_loss, []

    def poisoned(out, batch, rules):
        calls.append(1)
        parts = plain(out, batch, rules)
        broken = len(calls) in bad
        return replace(parts, total=parts.total * float("nan")) if broken else parts

    monkeypatch.setattr(loop, "batch_loss", poisoned)
    bad = {3, 5}
    config = small()
    train(config)
    tensors, state = load_tensors(config.output / "runs/000/last.safetensors")
    assert state["skipped"] == 2
    assert state["step"] == 8
    assert all(torch.isfinite(t).all() for t in tensors.values())
    bad = set(range(100_000))
    with pytest.raises(AtomSieveError, match="not finite in 10 steps in a row"):
        train(small("fatal"))


def test_early_stopping_ends_a_run_that_gets_no_better(small):
    config = small(
        optimizer={"lr": 1e-12, "warmup": 0.0, "schedule": "constant"},
        budget={"steps": 500, "eval_every": 2, "patience": 3},
    )
    train(config)
    state = load_tensors(config.output / "runs/000/last.safetensors")[1]
    assert state["step"] < 100
    assert state["finished"]


def test_direct_forces_and_stress_train_too(small):
    direct = train(small("direct", model={"forces": "direct"}, budget={"steps": 3}))
    assert direct.metrics["test"]["emt"]["force_mae"] > 0
    train(small("stress", loss={"stress": 1.0}, budget={"steps": 3}))


def test_data_read_in_blocks_give_the_same_batches(small, data_file, monkeypatch):
    from atomsieve.structures.dataset.open import open_structures
    from atomsieve.train.data.catalog import scan
    from atomsieve.train.data.store import Store

    config = small()
    with open_structures(data_file) as reader:
        catalog = scan(config.data, [reader]).take(np.arange(1, 60))
        held, read = Store(catalog, [reader], 1e9), Store(catalog, [reader], 0)
        assert held.in_memory
        assert not read.in_memory
        index = np.array([50, 3, 3, 17])
        for name, values in held.fetch(index).present().items():
            np.testing.assert_array_equal(values, getattr(read.fetch(index), name))
        assert held.force_sums(np.ones(59, bool)) == read.force_sums(np.ones(59, bool))
        monkeypatch.setattr("atomsieve.train.data.store.BLOCK", 7)
        monkeypatch.setattr("atomsieve.train.data.store.CACHED_BLOCKS", 3)
        split, order = Store(catalog, [reader], 0), np.random.default_rng(2).integers(0, 59, 200)
        for name, values in held.fetch(order).present().items():
            np.testing.assert_array_equal(values, getattr(split.fetch(order), name), err_msg=name)
        monkeypatch.undo()
    train(small("blocks", batch={"in_memory": 1e-9}, budget={"steps": 3}))


@pytest.mark.e2e
def test_sigterm_saves_and_exits_75(small, tmp_path):
    config = small(budget={"steps": 100_000})
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    command = [sys.executable, "-m", "atomsieve", "train", str(path)]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        log, deadline = config.output / "runs/000/log.jsonl", time.monotonic() + 90
        while time.monotonic() < deadline and not (log.is_file() and '"train"' in log.read_text()):
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "run the same command again to go on" in said
    assert load_tensors(config.output / "runs/000/last.safetensors")[1]["step"] >= 5
