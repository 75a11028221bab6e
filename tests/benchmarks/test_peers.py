"""What benchmarks/peers does around another package: references, errors, its clock and its learning rate."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def beside_the_benchmarks() -> Iterator[None]:
    """Import as a program in benchmarks/ does."""
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def label(symbols: str, energy: float, force: float) -> Atoms:
    atoms = Atoms(symbols, np.arange(3.0 * len(Atoms(symbols))).reshape(-1, 3))
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.full((len(atoms), 3), force))
    return atoms


def test_references_are_least_squares_of_energies_per_atom() -> None:
    compare = importlib.import_module("peers.compare")
    # E(H) = -1, E(O) = -5: H2 -2, O2 -10, H2O -7
    found = compare.fit_references([label("H2", -2.0, 0), label("O2", -10.0, 0), label("H2O", -7.0, 0)])
    assert found[[1, 8]] == pytest.approx([-1.0, -5.0])
    assert not found[2:8].any()


def test_errors_are_per_atom_and_per_component() -> None:
    compare = importlib.import_module("peers.compare")
    images = [label("H2", -2.0, 0.5), label("H2O", -7.0, -0.25)]
    references = np.zeros(119)
    references[[1, 8]] = -1.5, -5.0  # of H2: 1 eV too low, of H2O too
    forces = np.concatenate([np.full((2, 3), 0.75), np.full((3, 3), -0.25)])
    found = compare.judge_predictions(images, references, np.array([-2.5, -6.1]), forces)
    assert found["energy_mae"] == pytest.approx(1e3 * (0.25 + 0.3) / 2)
    assert found["energy_baseline"] == pytest.approx(1e3 * (1 / 2 + 1 / 3) / 2)
    assert found["force_mae"] == pytest.approx(1e3 * 0.25 * 2 / 5)
    assert found["force_baseline"] == pytest.approx(1e3 * (0.5 * 2 + 0.25 * 3) / 5)


def test_a_peers_file_holds_its_keys_alone(tmp_path: Path) -> None:
    compare = importlib.import_module("peers.compare")
    image = label("H2O", -7.0, 0.5)
    image.info["level_of_theory"] = "PBE"
    compare.write_plain([image], tmp_path / "train.extxyz")
    header = (tmp_path / "train.extxyz").read_text().splitlines()[1]
    assert "REF_energy=-7.0" in header and "REF_forces:R:3" in header and "level" not in header
    assert "stress" not in header


def test_the_clock_counts_processor_time_after_its_free_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("peers.clock")
    now = [100.0]
    monkeypatch.setattr(module.time, "process_time", lambda: now[0])
    clock = module.Clock(10.0, free=2)
    for seconds in (50.0, 50.0, 4.0, 4.0):
        clock.check()
        now[0] += seconds
        clock.count(3)
    assert (clock.used, clock.part, clock.structures) == (8.0, 0.8, 6)
    now[0] += 2.0
    with pytest.raises(module.TimeIsUp):
        clock.check()


def test_the_learning_rate_rises_and_ends_low() -> None:
    module = importlib.import_module("peers.clock")
    assert module.cosine_factor(0.01, warmup=0.01, end=0.02) == pytest.approx(1.0)
    assert module.cosine_factor(0.505, warmup=0.01, end=0.02) == pytest.approx(0.51)
    assert module.cosine_factor(1.0, warmup=0.01, end=0.02) == pytest.approx(0.02)


def test_a_peer_is_set_beside_our_run_of_its_source() -> None:
    compare = importlib.import_module("peers.compare")

    def result(name: str, energy: float, rate: float, cpu: float, **more: Any) -> dict[str, Any]:
        row = {"energy_mae": energy, "energy_baseline": 100.0, "force_mae": 2 * energy, "force_baseline": 500.0}
        training = {"structures_per_core_second": rate}
        return {"name": name, "heads": {"x": row}, "training": training, "inference": {"cpu_ms": cpu}, **more}

    runs = [result("ours", 5.0, 90.0, 2.0), result("mace-x", 20.0, 7.0, 30.0, peer={"name": "mace", "source": "x"})]
    row = compare.format_peers(runs, "mace").splitlines()[-1]
    assert row == "| x | 100.0 | 500.0 | 5.00, 20.00 | 10.00, 40.00 | 0.250 | 0.250 | 90, 7 | 2.00, 30.00 | 15.0 |"


def test_a_run_that_fails_names_its_log_and_leaves_no_old_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compare = importlib.import_module("peers.compare")
    monkeypatch.setattr(compare, "read_images", lambda *_: [label("H2", -2.0, 0.5)])
    place = tmp_path / "mace-x"
    place.mkdir()
    (place / "model.pt").write_text("of an interrupted run")
    with pytest.raises(compare.PeerError, match=r"MACE failed at x; see .*mace-x/log\.txt"):
        compare.train_peer("mace", Path("/bin/false"), tmp_path, "x", 1.0, [], place, 0)
    assert {p.name for p in place.iterdir()} == {"train.extxyz", "test.extxyz", "log.txt"}
