"""The path of a user who asks whether a model is good: data info, train, evaluate; one evaluation everywhere."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from atomsieve.cli.main import run
from atomsieve.structures.dataset.writer import write_structures
from tests.train.train_samples import SOURCES, labelled

pytestmark = pytest.mark.e2e


def test_training_evaluate_card_and_page_say_the_same(tmp_path, capsys):
    write_structures(tmp_path / "train.bp", labelled(60, 80), SOURCES)
    write_structures(tmp_path / "test.bp", labelled(24, 24, seed=1), SOURCES)
    assert run("atomsieve", ["data", "info", str(tmp_path / "train.bp"), "-q"]) == 0
    assert "what a training can expect" in capsys.readouterr().out
    config = {
        "data": [{"path": str(tmp_path / "train.bp")}, {"path": str(tmp_path / "test.bp"), "use": "test"}],
        "output": str(tmp_path / "run"),
        "default_head": "emt",
        "model": {"hidden": 16, "layers": 1, "cutoff": 4.0, "n_basis": 5, "head_hidden": 8},
        "ensemble": {"members": 2},
        "split": {"train": 0.7, "val": 0.1, "test": 0.0, "calibration": 0.2},
        "batch": {"atoms": 40},
        "budget": {"steps": 40},
        "device": "cpu",
        "tensorboard": False,
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(config))
    assert run("atomsieve", ["train", str(tmp_path / "train.yaml")]) == 0
    said = "".join(capsys.readouterr())
    assert "Trained for 40 steps" in said and "train longer" in said
    gfm, out = tmp_path / "run/gfm", tmp_path / "page"
    assert run("atomsieve", ["evaluate", str(gfm), "--data", str(tmp_path / "test.bp"), "-o", str(out), "-q"]) == 0
    evaluated = capsys.readouterr().out
    trained = json.loads((tmp_path / "run/metrics.json").read_text())["test"]
    found = json.loads((out / "metrics.json").read_text())
    for head, row in found["heads"].items():
        for key in ("structures", "compositions", "relaxed", "train_structures", "in_domain"):
            assert row.get(key) == trained[head].get(key)
        for key in ("energy_mae", "energy_baseline", "energy_composition", "energy_rank", "force_mae", "force_ratio"):
            both = [of.get(key) for of in (row, trained[head])]
            assert both[0] == (both[1] if both[1] is None else pytest.approx(both[1], rel=1e-4)), (head, key)
    places = (evaluated, said, (gfm / "README.md").read_text(), (tmp_path / "run/metrics.md").read_text())
    remarks = [r for rows in (found["verdict"]["general"], *found["verdict"]["heads"].values()) for r in rows]
    assert len(remarks) > 5
    for remark in remarks:
        assert all(remark["text"] in place for place in places), remark
    page = (out / "index.html").read_text()
    assert page.index("Verdict") < page.index("Errors beside") < page.index("Worst structures")


def test_sources_that_are_no_head_are_left_out_and_said(tmp_path, capsys):
    from tests.helpers import tiny_gfm
    from tests.labelled import noisy_labels

    gfm = tiny_gfm(tmp_path / "gfm", layers=1)
    batch = noisy_labels(gfm, 30, 1)
    head = [0] * 20 + [1] * 10
    sources = [type(SOURCES[0])("metal", "PBE"), type(SOURCES[0])("stranger", "LDA")]
    write_structures(tmp_path / "both.bp", batch.replace(head=np.array(head, np.int32)), sources)
    call = ["evaluate", str(gfm), "--data", str(tmp_path / "both.bp"), "-o", str(tmp_path / "page")]
    assert run("atomsieve", call) == 0
    said = capsys.readouterr()
    assert "left out, as no head of the ensemble is called so: stranger" in said.err
    assert "Left out, as no head is called so: stranger." in said.out
    metrics = json.loads((tmp_path / "page/metrics.json").read_text())
    assert metrics["heads"]["metal"]["structures"] == 20 and metrics["data"]["left_out"] == ["stranger"]
