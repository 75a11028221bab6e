"""The parts of the demo: whose folder it is, how commands are run and end, and the numbers of its last page."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import time

import numpy as np
import pytest
from rich.console import Console

from atomsieve.cli.demo import plan as demo_plan
from atomsieve.cli.demo import run as demo_verb
from atomsieve.cli.demo.plan import Demo, full_plan, quick_plan
from atomsieve.cli.demo.report import compare_with_truth, first_of_each
from atomsieve.cli.demo.run import app
from atomsieve.cli.main import run
from atomsieve.errors import AtomSieveError, Interrupted, UsageError
from atomsieve.screen.results.columns import blank_rows


@pytest.fixture
def demo(tmp_path) -> Demo:
    return Demo(tmp_path / "demo", quick_plan(0, 10), 2, Console(file=io.StringIO(), width=200))


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Let `atomsieve` be a Python script of the test."""

    def put(code: str) -> None:
        monkeypatch.setattr(demo_plan, "_find_program", lambda name: [sys.executable, "-c", code])
        monkeypatch.setattr(demo_plan, "find_mpirun", lambda: None)

    return put


def test_another_plan_in_the_same_folder_is_refused(tmp_path):
    demo_verb._claim_folder(tmp_path / "d", full_plan(0, 20_000), overwrite=False)
    demo_verb._claim_folder(tmp_path / "d", full_plan(0, 20_000), overwrite=False)
    with pytest.raises(UsageError, match=r"seed 0 \(now 1\).*--overwrite"):
        demo_verb._claim_folder(tmp_path / "d", full_plan(1, 20_000), overwrite=False)
    demo_verb._claim_folder(tmp_path / "d", full_plan(1, 20_000), overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_things_is_not_touched(tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="holds no demo"):
        demo_verb._claim_folder(tmp_path, full_plan(0, 20_000), overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_stage_has_its_heading(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(demo_verb.STAGES, "train", ("Train", lambda demo: None))
    assert run("atomsieve", ["demo", "--out", str(tmp_path / "d"), "--only", "train"]) == 0
    shown = capsys.readouterr().out
    assert "  Train " in shown
    assert "[bold]" not in shown


def test_an_unknown_stage_is_named(tmp_path, capsys):
    assert run("atomsieve", ["demo", "--out", str(tmp_path / "d"), "--only", "trian"]) == 2
    assert "did you mean 'train'" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


def test_a_command_is_shown_as_typed_and_gets_its_words(demo, programs, tmp_path):
    programs(f"import sys; open({str(tmp_path / 'seen')!r}, 'w').write(repr(sys.argv[1:]))")
    demo.command("atomsieve", "data", "convert", "a b.extxyz")
    assert (tmp_path / "seen").read_text() == "['data', 'convert', 'a b.extxyz']"
    assert "$ atomsieve data convert 'a b.extxyz'" in demo.console.file.getvalue()


@pytest.mark.parametrize(
    ("code", "error", "said"),
    [
        (1, AtomSieveError, "exit code 1"),
        (2, AtomSieveError, "exit code 2"),
        (75, Interrupted, "same command again"),
        (130, Interrupted, "same command again"),
        (0, None, ""),
        (3, None, ""),
    ],
)
def test_how_a_command_ends_decides_how_the_demo_goes_on(demo, programs, code, error, said):
    programs(f"raise SystemExit({code})")
    if error is None:
        demo.command("atomsieve", "x")
    else:
        with pytest.raises(error, match=said):
            demo.command("atomsieve", "x")


def test_a_command_gets_the_users_environment(demo, programs, tmp_path, monkeypatch):
    monkeypatch.setenv("ATOMSIEVE_LAUNCHED", "1:OMP_NUM_THREADS")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    programs(f"import os; open({str(tmp_path / 'seen')!r}, 'w').write(str('OMP_NUM_THREADS' in os.environ))")
    demo.command("atomsieve", "x")
    assert (tmp_path / "seen").read_text() == "False"


def test_a_signal_reaches_the_command_and_is_waited_for(demo, programs, tmp_path):
    ready, safe = tmp_path / "ready", tmp_path / "safe"
    programs(
        "import time, sys\n"
        "try:\n"
        f"  open({str(ready)!r}, 'w').close()\n"
        "  time.sleep(30)\n"
        "except KeyboardInterrupt:\n"
        f"  time.sleep(0.3); open({str(safe)!r}, 'w').close(); sys.exit(75)\n"
    )

    def end_it() -> None:
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=end_it)
    thread.start()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted):
        demo.command("atomsieve", "x")
    thread.join()
    assert safe.exists()
    assert signal.getsignal(signal.SIGTERM) == before


def test_comparison_with_the_truth():
    rng = np.random.default_rng(0)
    rows = blank_rows(4000)
    natoms = rng.integers(1, 9, 4000)
    sigma = rng.uniform(0.01, 0.1, 4000)
    truth = rng.normal(size=4000) * natoms
    rows["natoms"] = natoms
    rows["energy"] = truth + natoms * sigma * rng.normal(size=4000)
    rows["energy_per_atom"] = rows["energy"] / natoms
    rows["energy_std"] = rows["sigma_energy"] = sigma * natoms
    rows["interval_energy"] = 1.645 * sigma * natoms
    found = compare_with_truth(rows, truth)
    assert found["error"] == pytest.approx(np.sqrt(2 / np.pi) * sigma.mean(), rel=0.05)
    assert found["within"] == pytest.approx(0.9, abs=0.02)
    assert found["rank"] > 0.99
    assert 0.3 < found["spread"] < 0.8
    rows["interval_energy"] = np.nan
    assert np.isnan(compare_with_truth(rows, truth)["within"])


def test_the_best_of_each_formula_comes_first():
    assert first_of_each(["CuPt", "NiPt", "CuPt", "AgAl", "NiPt"]).tolist() == [0, 1, 3]


def test_the_defaults_of_the_full_demo():
    import inspect

    assert inspect.signature(app).parameters["ranks"].default == 2
    plan = full_plan(0, 20_000)
    from atomsieve.cli.demo.labels import LABEL_SOURCES

    for name, groups in plan.groups.items():
        assert groups * LABEL_SOURCES[name].group_size >= 2500
