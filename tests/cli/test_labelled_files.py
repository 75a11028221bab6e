"""`evaluate`, `calibrate` and `mixture` take any readable file, and say whose labels it holds or what is missing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from atomsieve.cli.main import run
from atomsieve.gfm import read_calibration
from atomsieve.structures import SourceInfo, write_structures
from tests.helpers import copper_oxides, tiny_gfm
from tests.labelled import labelled_file, noisy_labels


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return tiny_gfm(tmp_path_factory.mktemp("plain") / "gfm", layers=1)


@pytest.fixture(scope="module")
def labelled(plain, tmp_path_factory):
    """A dataset of labelled structures of one head, and the same as an ASE database without a source."""
    place = tmp_path_factory.mktemp("data")
    batch = noisy_labels(plain, 60, 1)
    write_structures(place / "plain.bp", batch.replace(head=None))
    assert run("atomsieve", ["data", "export", str(place / "plain.bp"), str(place / "plain.db"), "-q"]) == 0
    return labelled_file(place / "metal.bp", batch), place / "plain.db"


@pytest.fixture
def gfm(plain, tmp_path):
    return shutil.copytree(plain, tmp_path / "run" / "gfm")


def call(verb, gfm, data, *more):
    return run("atomsieve", [verb, str(gfm), "--data", str(data), "--device", "cpu", "-q", *map(str, more)])


def test_a_file_is_evaluated_as_its_dataset(gfm, labelled, tmp_path, capsys):
    dataset, file = labelled
    assert call("evaluate", gfm, dataset, "-o", tmp_path / "a") == 0
    assert call("evaluate", gfm, file, "-o", tmp_path / "b") == 2
    assert f"{file} states no source of its labels; say with --head which head" in capsys.readouterr().err
    assert call("evaluate", gfm.parent, file, "-o", tmp_path / "b", "--head", "metal") == 0  # the folder of a training
    one, two = (json.loads((tmp_path / place / "metrics.json").read_text()) for place in "ab")
    assert one["heads"] == two["heads"]
    assert two["data"]["name"] == "plain.db"
    assert len(list((tmp_path / "converted").iterdir())) == 1


def test_sources_that_a_file_states_name_the_heads(gfm, labelled, tmp_path, capsys):
    file = tmp_path / "metal.extxyz"
    assert run("atomsieve", ["data", "export", str(labelled[0]), str(file), "-q"]) == 0
    assert call("calibrate", gfm, file) == 0
    assert read_calibration(gfm).head("metal").calibrated == {"energy", "forces"}
    file.write_text(file.read_text().replace("source=metal", "source=metals"))
    assert call("calibrate", gfm, file) == 2
    assert f"{file}: source 'metals' is no head of the ensemble (did you mean 'metal'?)" in capsys.readouterr().err


def test_frames_that_cannot_be_read_are_told(gfm, labelled, tmp_path, capsys):
    file = tmp_path / "metal.extxyz"
    assert run("atomsieve", ["data", "export", str(labelled[0]), str(file), "-q"]) == 0
    file.write_text(file.read_text() + "1\nProperties=species:S:1:pos:R:3 energy=1\nCu 0 0\n")
    for _ in range(2):  # where the copy is used again, too
        run("atomsieve", ["calibrate", str(gfm), "--data", str(file), "--device", "cpu"])
        said = " ".join(capsys.readouterr().err.split())
        assert "1 of 61 structures could not be read and are left out" in said and "metal.extxyz: frame 60" in said


def test_a_file_without_labels_is_called_so(gfm, tmp_path, capsys):
    from ase.io import write

    write(tmp_path / "bare.extxyz", copper_oxides(5).to_ase())
    assert call("evaluate", gfm, tmp_path / "bare.extxyz", "-o", tmp_path / "page", "--head", "metal") == 1
    assert "bare.extxyz has no labels (energies, forces or stress)" in capsys.readouterr().err
    write_structures(tmp_path / "bare.bp", copper_oxides(5), [SourceInfo("metal", "made up")])
    assert call("evaluate", gfm, tmp_path / "bare.bp", "-o", tmp_path / "page") == 1
    assert "convert it from the file that has them" in capsys.readouterr().err


def test_labels_under_other_names_and_in_other_units(gfm, tmp_path, capsys):
    lines = []
    for k, atoms in enumerate(copper_oxides(30).to_ase()):
        cell = " ".join(map(str, atoms.cell.array.ravel()))
        lines += [str(len(atoms)), f'Lattice="{cell}" pbc="T T T" Properties=species:S:1:pos:R:3 E={-1.0 - k / 100}']
        lines += [f"{a.symbol} {a.x} {a.y} {a.z}" for a in atoms]
    (tmp_path / "h.extxyz").write_text("\n".join(lines) + "\n")
    more = ["-o", tmp_path / "page", "--head", "metal"]
    assert call("evaluate", gfm, tmp_path / "h.extxyz", *more) == 1
    assert "--energy-key E" in capsys.readouterr().err  # named by the error
    assert call("evaluate", gfm, tmp_path / "h.extxyz", *more, "--energy-key", "E", "--unit", "energy=hartree") == 0
    found = np.load(tmp_path / "page" / "structures.npz")["energy"]
    np.testing.assert_allclose(found[:2], [-27.211386, -27.483500], atol=1e-5)


def test_names_are_checked_before_torch_is_loaded(gfm, labelled):
    code = (
        "import sys; from atomsieve.cli.main import run; args = sys.argv[1:]; code = run('atomsieve', args); "
        "print(code, 'torch' in sys.modules)"
    )
    args = ["evaluate", str(gfm), "--data", str(labelled[1]), "--head", "metall"]
    said = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["2", "False"]
    assert "unknown head 'metall' (did you mean 'metal'?)" in said.stderr


def test_files_of_heads_give_a_mixture(gfm, labelled, tmp_path, capsys):
    from ase.io import write

    write(tmp_path / "o.extxyz", copper_oxides(60, seed=5).to_ase())
    data = ["--data", f"organic={tmp_path / 'o.extxyz'}", "--data", f"metal={labelled[1]}"]
    assert run("atomsieve", ["mixture", str(gfm), *data]) == 0
    assert "cross entropy" in capsys.readouterr().out
    assert run("atomsieve", ["mixture", str(gfm), "--data", f"organik={tmp_path / 'o.extxyz'}"]) == 2
    assert "did you mean 'organic'" in capsys.readouterr().err


def test_several_ensembles_inside_are_named(gfm, labelled, capsys):
    shutil.copytree(gfm, gfm.with_name("other"))
    assert call("evaluate", gfm.parent, labelled[0]) == 1
    said = capsys.readouterr().err
    assert "2 inside" in said
    assert str(gfm) in said


def test_the_folder_of_a_training_is_served_and_exported_from(gfm, tmp_path, capsys):
    from atomsieve.serve.repository.layout import parse_named_folders

    assert parse_named_folders([str(gfm.parent)]) == [("gfm", gfm)]
    args = ["export", str(gfm.parent), "--structures", str(tmp_path / "nowhere.extxyz")]
    assert run("atomsieve", args) == 1
    said = capsys.readouterr().err
    assert f"ensemble: {gfm}" in said
    assert "nowhere.extxyz does not exist" in said
