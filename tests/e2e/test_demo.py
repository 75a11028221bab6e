"""`atomsieve demo --quick` from nothing to a ranked list, judged by what came out."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from atomsieve.runs.environment import ALLOCATOR

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
CANDIDATES = 2000


def atomsieve(*args: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("atomsieve")
    drop = {*ALLOCATOR, "OMP_NUM_THREADS"}
    environment = {k: v for k, v in os.environ.items() if k not in drop}
    return subprocess.run([str(program), *args], env=environment, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, str]:
    """A finished demo and what it printed."""
    pytest.importorskip("tblite.ase", reason="tblite is not installed (extra: demo)")
    out = tmp_path_factory.mktemp("demo") / "demo"
    done = atomsieve("demo", "--quick", "--out", str(out))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out, done.stdout


@pytest.fixture(scope="module")
def report(demo) -> dict:
    return json.loads((demo[0] / "report.json").read_text())


@pytest.mark.parametrize("head", ["gfn2_xtb", "emt"])
def test_the_networks_beat_the_element_references(report, head):
    row = report["held_out"][head]
    assert row["energies"] >= 20
    assert row["energy_mae"] < 0.5 * row["energy_baseline"]
    assert row["force_mae"] < 0.5 * row["force_baseline"]


def test_predictions_rank_unseen_candidates(report):
    assert report["sample"]["rank"] > 0.7


def test_larger_uncertainty_means_larger_error(report):
    assert report["sample"]["spread"] > 0.1


def test_every_candidate_has_a_row(demo):
    out, _ = demo
    from atomsieve.screen.results.record import open_results
    from atomsieve.structures.dataset.open import open_structures

    rows = open_results(out / "results").rows()
    with open_structures(out / "candidates.bp") as reader:
        assert len(rows) == len(reader) == CANDIDATES
        np.testing.assert_array_equal(rows["natoms"], reader.counts())
        batch = reader.read(0, CANDIDATES, ())
    np.testing.assert_array_equal(rows["position"], np.arange(CANDIDATES))
    assert (rows["status"] == 0).all()
    assert len(np.unique(np.round(batch.positions[batch.ptr[:-1] + batch.counts - 1], 6), axis=0)) > 0.9 * CANDIDATES
    assert set(np.unique(batch.numbers)) == {13, 28, 29, 46, 47, 78, 79}


def test_rows_are_what_the_ensemble_predicts(demo):
    out, _ = demo
    from atomsieve.predict import Predictor
    from atomsieve.screen.results.record import open_results
    from atomsieve.structures.dataset.open import open_structures

    rows = open_results(out / "results").rows()[700:720]
    with open_structures(out / "candidates.bp") as reader:
        batch = reader.read(700, 720, ())
    prediction = Predictor.load(out / "gfm", head="emt", precision="fp64")(batch)
    np.testing.assert_allclose(rows["energy"], prediction.energy, atol=2e-4)
    norms = np.linalg.norm(prediction.forces, axis=1)
    largest = np.maximum.reduceat(norms, batch.ptr[:-1])
    np.testing.assert_allclose(rows["max_force"], largest, atol=2e-3)


def test_the_list_is_sorted_and_holds_the_best(demo):
    out, _ = demo
    from atomsieve.screen.results.record import open_results

    with open(out / "results" / "top.csv") as file:
        top = list(csv.DictReader(file))
    energies = [float(row["energy_per_atom [eV/atom]"]) for row in top]
    assert len(top) == 1000
    assert energies == sorted(energies)
    assert energies == sorted(open_results(out / "results").rows()["energy_per_atom"])[:1000]
    assert [int(row["rank"]) for row in top] == list(range(1, 1001))


def test_the_best_are_stable_alloys_indeed(report):
    """The elements' own crystals are the zero of EMT: the best candidates lie below, in truth as well."""
    predicted = [row["energy_per_atom"] for row in report["best"]]
    truth = [row["true_energy_per_atom"] for row in report["best"]]
    assert predicted == sorted(predicted)
    assert np.mean(truth) < 0.02
    assert len({row["formula"] for row in report["best"]}) == len(report["best"])


def test_it_says_how_to_do_each_stage_alone_and_where_things_lie(demo):
    out, said = demo
    for command in (
        r"\$ atomsieve demo --out \S+ --quick --only labels",
        r"\$ atomsieve data convert gfn2_xtb=.*emt=.*--split train=",
        r"\$ (mpirun -n 2 )?atomsieve train .*train\.yaml",
        r"\$ atomsieve data generate ",
        r"\$ (mpirun -n 2 )?screen run .*--ensemble",
    ):
        assert re.search(command, said), command
    data = ("labels", "labelled-train.bp", "labelled-test.bp", "candidates.bp")
    for name in (*data, "train.yaml", "gfm", "results/top.csv", "report.json"):
        assert (out / name).exists()


def test_the_screening_used_two_ranks(demo):
    if not Path(sys.executable).with_name("mpirun").exists():
        pytest.skip("no mpirun beside this interpreter")
    summary = json.loads((demo[0] / "results" / "summary.json").read_text())
    assert summary["ranks"] == 2
    assert summary["structures"] == CANDIDATES


def test_a_second_call_repeats_nothing(demo):
    out, _ = demo
    before = {p: p.stat().st_mtime_ns for p in [*out.rglob("rows.npy"), *out.rglob("manifest.json")]}
    again = atomsieve("demo", "--quick", "--out", str(out))
    assert again.returncode == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert again.stdout.count("is there already") + again.stdout.count("are there already") >= 5


def test_the_examples_and_the_readmes_program_run(demo, tmp_path):
    out, _ = demo
    program = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)
    readme = tmp_path / "readme.py"
    readme.write_text(program.replace("demo/", f"{out}/"))
    examples = ROOT / "examples"
    runs = ((readme, ""), (examples / "predict.py", out / "gfm"), (examples / "read_results.py", out / "results"))
    for script, argument in runs:
        done = subprocess.run(
            [sys.executable, str(script), str(argument)], capture_output=True, text=True, timeout=120, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
