"""A screening with heads that are not calibrated says so: on the console, in summary.json and in run.json."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from atomsieve.screen.finish import print_result
from tests.screen.screen_fakes import FakePredictor


@pytest.mark.parametrize(
    ("calibrated", "lacking"), [({}, ["pbe"]), ({"pbe": ["energy"], "scan": []}, []), ({"pbe": ["forces"]}, ["pbe"])]
)
def test_an_uncalibrated_head_is_named_in_every_output(screen, tmp_path, monkeypatch, calibrated, lacking):
    monkeypatch.setattr(FakePredictor, "describe", lambda _: {"calibrated": calibrated})
    result = screen()
    shown = StringIO()
    print_result(Console(file=shown, width=200), result, by="energy_per_atom", shown=3)
    assert ("uncalibrated: pbe; sigma and interval are empty" in shown.getvalue()) == bool(lacking)
    for name in ("summary.json", "run.json"):
        assert json.loads((tmp_path / "out" / name).read_text())["uncalibrated"] == lacking


def test_a_mixture_is_not_sent_to_calibration(screen):
    shown = StringIO()
    result = replace(screen(), uncalibrated=("auto",))
    print_result(Console(file=shown, width=200), result, by="energy_per_atom", shown=3)
    assert "a mixture of heads cannot be calibrated, a head can: --head names one of pbe, scan" in shown.getvalue()
    assert "see atomsieve calibrate" not in shown.getvalue()
