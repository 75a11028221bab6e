"""The evaluation in a gfm/ folder: shown in the card, read back, and no part of the ensemble's identity."""

from __future__ import annotations

import json

from atomsieve.evaluation.verdict import judge
from atomsieve.gfm import ensemble_id, record_evaluation, weights_id
from atomsieve.gfm.evaluation_file import EVALUATION, SCHEMA, describe_weakness, format_table, read_evaluation
from tests.helpers import tiny_gfm

ROW = {"structures": 200, "energy_mae": 12.0, "energy_baseline": 500.0, "force_mae": 79.0, "force_baseline": 1.4}


def test_it_is_shown_and_changes_no_identity(tmp_path):
    folder = tiny_gfm(tmp_path / "gfm", layers=1)
    before, card = (ensemble_id(folder), weights_id(folder)), (folder / "README.md").read_text()
    assert read_evaluation(folder) is None and describe_weakness(folder, ["metal"]) == []
    found = {"schema_name": SCHEMA, "ensemble": {"id": before[0]}, "heads": {"metal": ROW}}
    found["verdict"] = judge(found).as_plain()
    record_evaluation(folder, found)
    assert (ensemble_id(folder), weights_id(folder)) == before and read_evaluation(folder) == found
    (weak,) = describe_weakness(folder, ["metal", "organic"])
    assert weak.startswith("metal: Forces: error 79") and "worse than predicting zero" in weak
    text = (folder / "README.md").read_text()
    assert format_table(found["heads"]) in text and weak.removeprefix("metal: ") in text and "fitted again" not in text
    assert text.replace(text[text.index("## How good") : text.index("## Precision")], "") == card
    record_evaluation(folder, {**found, "ensemble": {"id": "another"}})
    assert "fitted again afterwards" in (folder / "README.md").read_text()


def test_a_damaged_one_is_as_none(tmp_path):
    for content in ("{", "[]", json.dumps({"schema_name": SCHEMA, "heads": 3}), "[" * 10_000):
        (tmp_path / EVALUATION).write_text(content)
        assert read_evaluation(tmp_path) is None and describe_weakness(tmp_path, ["a"]) == []
