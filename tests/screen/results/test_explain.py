"""Why rows have no result is told by name: the elements, the atoms that touch, the charge."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from ase import Atoms
from typer.testing import CliRunner

from atomsieve.cli.screen import app
from atomsieve.predict.status import Status
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.results.explain import count_causes, explain_rows, find_causes
from atomsieve.screen.results.record import open_results
from atomsieve.screen.run import run_screen
from atomsieve.structures import StructureBatch, write_structures
from tests.screen.screen_fakes import SEEN, FakePredictor


class KnowsElements(FakePredictor):
    def elements(self, head: str) -> list[int]:
        return SEEN.tolist()


@pytest.fixture
def results(tmp_path):
    images = [
        Atoms("H2O", [[0, 0, 0], [1, 0, 0], [0, 1, 0]]),
        Atoms("H2Xe", [[0, 0, 0], [1, 0, 0], [0, 2, 0]]),
        Atoms("HO", [[0.3, 0, 0], [0.3, 0, 0]]),
        Atoms("XeAr", [[0, 0, 0], [3, 0, 0]]),
        Atoms("CO", [[0, 0, 0], [1.1, 0, 0]]),
    ]
    write_structures(tmp_path / "c.bp", StructureBatch.from_ase(images).replace(id=np.arange(5)))
    out = tmp_path / "out"
    run_screen(tmp_path / "c.bp", None, ScreenOptions(top=3, chunk_size=2), out=out, predictor=KnowsElements(("pbe",)))
    return open_results(out)


def test_rows_without_result_are_explained_by_name(results):
    rows = np.asarray(results.rows())
    why = explain_rows(results, rows[[4, 3, 1, 2, 3]]).tolist()
    assert why == ["", "unseen: Ar, Xe", "unseen: Xe", "touching: H0-O1 0 Å", "unseen: Ar, Xe"]
    causes, looked_up = count_causes(results)
    assert looked_up == 3
    assert causes == {"UNSEEN_ELEMENT": {"Xe": 2, "Ar": 1}, "OVERLAPPING_ATOMS": {"H-O": 1}}


def test_where_they_stand(results, tmp_path):
    def call(*words: str) -> str:
        found = CliRunner().invoke(app, list(words))
        assert found.exit_code == 0, found.output
        return found.output

    folder = str(results.folder.path)
    assert "Xe: 2; Ar: 1" in call("status", folder)
    shown = call("top", folder, "--failed", "--where", "natoms < 3")
    assert "touching: H0-O1 0 Å" in shown and "unseen: Ar, Xe" in shown and "unseen: Xe" not in shown
    wrong = CliRunner().invoke(app, ["top", folder, "--failed", "--by", "energy"])
    assert "--by ranks or groups rows" in str(wrong.exception)
    call("export", folder, str(tmp_path / "o.csv"))
    with open(tmp_path / "o.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["why"] for line in lines] == ["", "unseen: Xe", "touching: H0-O1 0 Å", "unseen: Ar, Xe", ""]
    assert [line["formula"] for line in lines] == ["H2O", "H2Xe", "HO", "ArXe", "CO"]
    call("export", folder, str(tmp_path / "o.extxyz"))
    assert 'why="unseen: Ar, Xe"' in (tmp_path / "o.extxyz").read_text()
    assert "why" in call("top", folder, "--failed", "-k", "1")


def test_other_reasons():
    cell = np.diag([3.0, 3.0, 0.0])
    batch = StructureBatch.from_ase([Atoms("OH", [[0, 0, 0], [0, 0, 1]], cell=cell, pbc=True)])
    batch = batch.replace(charge=np.array([2.0], np.float32), spin=np.array([np.nan], np.float32))
    assert find_causes(batch, Status.CHARGE_NOT_MODELLED, None) == ["charge 2 and no spin"]
    assert find_causes(batch, Status.BAD_CELL, None)[0].startswith("periodic along abc, vectors of 3, 3, 0 Å")
    assert find_causes(batch, Status.TOO_LARGE, None) == ["2 atoms"]
    assert find_causes(batch, Status.UNSEEN_ELEMENT, None) == []
    broken = batch.replace(positions=np.array([[0, 0, 0], [0, np.nan, 1]]))
    assert find_causes(broken, Status.NAN_INPUT, None) == ["position of H1 not finite"]
    close = StructureBatch.from_ase([Atoms("OH", [[0, 0, 0], [0, 0, 2.95]], cell=np.eye(3) * 3, pbc=True)])
    assert find_causes(close, Status.OVERLAPPING_ATOMS, None) == ["O0-H1 0.05 Å"]
