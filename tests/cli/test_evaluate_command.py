"""`atomsieve calibrate` and `atomsieve evaluate` from the command line to the files they leave."""

from __future__ import annotations

import html
import importlib
import json
import shutil

import numpy as np
import pytest

from atomsieve.cli.main import run
from atomsieve.evaluation import metrics as metrics_module
from atomsieve.evaluation.error_sets import Errors, compute_coverage
from atomsieve.evaluation.metrics import compute_scores
from atomsieve.gfm import read_calibration
from atomsieve.structures.dataset.open import open_structures
from tests.helpers import tiny_gfm
from tests.labelled import labelled_file, noisy_labels


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return tiny_gfm(tmp_path_factory.mktemp("plain") / "gfm", layers=1)


@pytest.fixture(scope="module")
def files(plain, tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    return [labelled_file(place / f"{k}.bp", noisy_labels(plain, 150, k)) for k in (1, 2)]


@pytest.fixture
def gfm(plain, tmp_path):
    return shutil.copytree(plain, tmp_path / "gfm")


def test_calibrate_then_evaluate(gfm, files, tmp_path, capsys):
    assert run("atomsieve", ["calibrate", str(gfm), "--data", str(files[0])]) == 0
    said, bar = capsys.readouterr()
    assert bar == ""  # none is drawn where nobody sees it, nor an empty line for it
    assert "metal" in said and "conformal" in said and "calibration.json" in said
    assert read_calibration(gfm).head("metal").calibrated == {"energy", "forces"}
    out = tmp_path / "page"
    assert run("atomsieve", ["evaluate", str(gfm), "--data", str(files[1]), "--out", str(out), "-q"]) == 0
    said_last = capsys.readouterr().out
    assert f"wrote {out}/index.html" in said_last
    metrics = json.loads((out / "metrics.json").read_text())
    energy, force = (metrics["heads"]["metal"][k] for k in ("energy", "force"))
    rows = np.load(out / "structures.npz")
    n = rows["natoms"]
    error = np.abs(rows["predicted"] - rows["energy"]) / n
    assert energy["mae"] == pytest.approx(error.mean()) and energy["rmse"] >= energy["mae"]
    assert energy["coverage"] == pytest.approx(np.mean(error * n <= rows["interval_energy"]))
    assert energy["coverage"] == pytest.approx(0.9, abs=0.12) and energy["coverage_raw"] < 0.65
    assert force["coverage"] == pytest.approx(0.9, abs=0.05) and force["coverage_raw"] < 0.75
    assert energy["calibrated"]["miscalibration_area"] < energy["raw"]["miscalibration_area"]
    assert energy["calibrated"]["crps"] < energy["raw"]["crps"]
    sizes = energy["by"]["size"]
    assert sum(part["n"] for part in sizes.values()) == energy["n"] == 150
    page = (out / "index.html").read_text()
    assert "http" not in page.split("</style>")[1] and page.count("data:image/png;base64,") == 7
    assert sorted(p.name for p in out.glob("*.png")) == sorted(
        [
            "coverage.png",
            *(f"{what}_{k}.png" for what in ("reliability", "error_vs_sigma", "parity") for k in ("energy", "force")),
        ]
    )
    assert not [p for p in out.iterdir() if p.name.startswith(".")]
    worst = metrics["heads"]["metal"]["worst"]
    most = (error * 1e3).argmax()
    assert worst[0]["position"] == rows["position"][most] and worst[0]["error"] == pytest.approx(1e3 * error.max())
    row = metrics["heads"]["metal"]
    assert row["energy_mae"] == pytest.approx(1e3 * energy["mae"]) and row["force_coverage"] == force["coverage"]
    for remark in metrics["verdict"]["heads"]["metal"]:
        assert remark["text"] in said_last and html.escape(remark["text"], quote=False) in page
    assert "Uncalibrated" not in page and "very structures" not in page


def test_what_is_kept_of_an_earlier_calibration_is_said(gfm, plain, files, tmp_path, capsys):
    few = labelled_file(tmp_path / "few.bp", noisy_labels(plain, 5, 4))
    assert run("atomsieve", ["calibrate", str(gfm), "--data", str(few), "-q"]) == 0
    assert "metal: energies stay uncalibrated: 5 usable" in capsys.readouterr().out
    assert run("atomsieve", ["calibrate", str(gfm), "--data", str(files[0]), "-q"]) == 0
    assert "kept the earlier" not in capsys.readouterr().out
    before = read_calibration(gfm).heads
    assert run("atomsieve", ["calibrate", str(gfm), "--data", str(few), "-q"]) == 0
    said = capsys.readouterr().out
    assert all(f"metal: {what}: too few labels, kept the earlier calibration" in said for what in ("energy", "forces"))
    assert read_calibration(gfm).heads == before


def test_nothing_is_written_where_the_data_are_refused(gfm, files, capsys):
    call = ["calibrate", str(gfm), "--data", str(files[0]), "--domain-data", str(files[1]), "-q"]
    assert run("atomsieve", [*call, "--head", "metal"]) == 2
    assert "--head cannot go with --domain-data" in capsys.readouterr().err
    manifest = json.loads((gfm / "manifest.json").read_text())
    with open_structures(files[0]) as reader:
        manifest["training"] = {"config": {"data": [{"path": "x"}]}, "data_sha256": [reader.identity()]}
    (gfm / "manifest.json").write_text(json.dumps(manifest))
    assert run("atomsieve", call) == 2
    assert "was trained on" in capsys.readouterr().err
    assert not (gfm / "domain.safetensors").exists()


def test_an_uncalibrated_head_says_so_everywhere(gfm, files, tmp_path, capsys):
    assert run("atomsieve", ["evaluate", str(gfm), "--data", str(files[0]), "-o", str(tmp_path / "page"), "-q"]) == 0
    said, page = capsys.readouterr().out, (tmp_path / "page/index.html").read_text()
    for text in (said, page):
        assert "Uncalibrated energies, raw spread only: metal." in text
        assert "Uncalibrated forces, raw spread only: metal." in text
    row = json.loads((tmp_path / "page/metrics.json").read_text())["heads"]["metal"]
    assert row["calibrated"] == [] and row["energy"]["calibrated"] is None and row["energy"]["coverage"] is None
    assert row["energy"]["raw"]["miscalibration_area"] > 0.1


def test_only_an_evaluation_is_overwritten_and_only_if_asked(gfm, files, tmp_path, capsys):
    call = ["evaluate", str(gfm), "--data", str(files[0]), "--out", str(tmp_path / "page"), "-q"]
    (tmp_path / "page").mkdir()
    (tmp_path / "page/cat.jpg").write_text("meow")
    assert run("atomsieve", call) == 2
    assert "holds something that is not an evaluation" in capsys.readouterr().err
    (tmp_path / "page/metrics.json").write_text("{}")
    assert run("atomsieve", call) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run("atomsieve", [*call, "--overwrite"]) == 0


def test_without_the_extra_the_error_says_what_to_install(gfm, files, monkeypatch, capsys):
    plain = importlib.import_module

    def without(name, *rest):
        if name == "uncertainty_toolbox":
            raise ImportError("No module named 'uncertainty_toolbox'")
        return plain(name, *rest)

    monkeypatch.setattr("atomsieve.errors.importlib.import_module", without)
    monkeypatch.setattr(
        metrics_module, "predict_file", lambda *_: pytest.fail("predicted before it was known to be of use")
    )
    assert run("atomsieve", ["evaluate", str(gfm), "--data", str(files[0]), "-q"]) == 1
    assert "pip install 'atomsieve[uncertainty]'" in capsys.readouterr().err


def test_wrong_calls_are_one_line(gfm, files, tmp_path, capsys):
    stranger = labelled_file(tmp_path / "s.bp", noisy_labels(gfm, 12, 5), source="stranger")
    for verb in ("calibrate", "evaluate"):
        assert run("atomsieve", [verb, str(gfm), "--data", str(stranger), "-q"]) == 2
        line = capsys.readouterr().err.strip()
        assert "\n" not in line and "'stranger' is no head" in line and "allowed: organic, metal" in line
        assert run("atomsieve", [verb, str(gfm), "--data", str(stranger), "--head", "metl", "-q"]) == 2
        assert "did you mean 'metal'" in capsys.readouterr().err


def test_scores_are_those_of_gaussian_errors():
    rng = np.random.default_rng(0)
    sigma = np.exp(rng.normal(size=20_000))
    right, halved = (compute_scores(rng.normal(size=20_000) * sigma, sigma * f) for f in (1.0, 0.5))
    assert right["miscalibration_area"] < 0.01 < 0.1 < halved["miscalibration_area"]
    assert right["crps"] == pytest.approx(sigma.mean() / np.sqrt(np.pi), rel=0.02)  # of a right Gaussian
    assert right["sharpness"] == pytest.approx(np.sqrt(np.mean(sigma**2)))
    observed, expected = (np.array(right["reliability"][k]) for k in ("observed", "expected"))
    assert np.abs(observed - expected).max() < 0.02


def test_the_standard_error_of_a_coverage_counts_structures():
    hit = np.array([True] * 90 + [False] * 10)
    one = Errors(np.where(hit, 0.0, 2.0), np.ones(100), np.ones(100), np.ones(100), np.arange(100))
    assert compute_coverage(one)["coverage_se"] == pytest.approx(np.sqrt(0.9 * 0.1 / 100))
    many = Errors(*(np.repeat(getattr(one, n), 30) for n in Errors.__dataclass_fields__))
    assert compute_coverage(many)["coverage_se"] == pytest.approx(np.sqrt(0.9 * 0.1 / 100))


@pytest.mark.parametrize("verb", ["calibrate", "evaluate"])
def test_the_mixture_of_heads_is_refused(verb, gfm, files, tmp_path, capsys):
    """No label belongs to a mixture of levels of theory."""
    out = ["--out", str(tmp_path / "page")] if verb == "evaluate" else []
    assert run("atomsieve", [verb, str(gfm), "--data", str(files[0]), "--head", "auto", "-q", *out]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "head auto is a mixture of heads by composition, which cannot be" in said
    assert "name one with --head: organic, metal" in said
