"""What is said of data before a training, against direct sums over the same structures."""

from __future__ import annotations

import json

import numpy as np
import pytest

from atomsieve.cli.main import run
from atomsieve.structures import StructureBatch
from atomsieve.structures.dataset.writer import write_structures
from atomsieve.train.data.outlook import Outlook, judge_sources
from tests.train.train_samples import SOURCES, labelled


def test_numbers_are_those_of_the_structures_and_duplicates_are_found():
    batch = labelled(40, 60)
    outlook = Outlook([s.name for s in SOURCES])
    for part in (batch.slice(0, 30), batch.slice(30, 100), batch.slice(5, 8), batch.slice(50, 51)):
        outlook.add(part)
    found = outlook.result()
    emt, springs = found["emt"], found["springs"]
    assert (emt["structures"], emt["duplicates"]) == (43, 3) and (springs["structures"], springs["duplicates"]) == (
        61,
        1,
    )
    forces = batch.forces[batch.ptr[0] : batch.ptr[40]]
    again = batch.forces[batch.ptr[5] : batch.ptr[8]]
    assert emt["force_baseline"] == pytest.approx(1e3 * np.abs(np.concatenate([forces, again])).mean())
    assert springs["with_forces"] == 0 and springs["compositions"] == 1 and springs["elements"] == 2
    energy = np.append(batch.energy[40:], batch.energy[50])
    assert springs["energy_baseline"] == pytest.approx(1e3 * np.abs(energy - energy.mean()).mean() / 2, rel=1e-6)
    words = {name: " ".join(r.text for r in remarks) for name, remarks in judge_sources(found).items()}
    assert "core-minutes" in words[""] and "No forces" in words["springs"] and "Small" in words["springs"]
    assert "3 structures (7 %) repeat another" in words["emt"] and "compare structures of these" in words["springs"]


def test_another_arrangement_of_the_same_atoms_is_no_duplicate():
    batch = labelled(1, 0)
    moved = batch.positions.copy()
    moved[[0, 1]] = moved[[1, 0]] + 1e-2
    outlook = Outlook(["emt"])
    outlook.add(StructureBatch.concatenate([batch, batch.replace(positions=moved)]))
    assert outlook.result()["emt"]["duplicates"] == 0


def test_relaxed_structures_without_labels_and_rare_elements_are_said():
    batch = labelled(30, 0)
    outlook = Outlook(["emt"])
    numbers = batch.numbers.copy()
    numbers[batch.ptr[3]] = 78
    outlook.add(batch.replace(forces=0.001 * batch.forces, numbers=numbers))
    (row,) = outlook.result().values()
    assert row["relaxed"] == 30 and row["rare_elements"] == {"Pt": 1}
    texts = " ".join(r.text for r in judge_sources({"emt": row})["emt"])
    assert "these are relaxed structures, from which no forces are learnt" in texts and "Pt 1" in texts
    bare = Outlook(["emt"])
    bare.add(batch.replace(energy=None, has_energy=None, forces=None, has_forces=None, stress=None, has_stress=None))
    assert "nothing can be trained" in " ".join(r.text for r in judge_sources(bare.result())["emt"])
    assert judge_sources(Outlook([]).result()) == {}


def test_data_info_prints_it_and_gives_it_as_json(tmp_path, capsys):
    write_structures(tmp_path / "d.bp", labelled(12, 15), SOURCES)
    assert run("atomsieve", ["data", "info", str(tmp_path / "d.bp"), "-q"]) == 0
    said = capsys.readouterr().out
    assert "what a training can expect" in said and "Small" in said
    assert run("atomsieve", ["data", "info", str(tmp_path / "d.bp"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["outlook"]
    assert found["emt"]["with_forces"] == 12 and found["springs"]["energy_baseline"] > 0
