"""Files that are no datasets as training data, and that nothing is claimed before everything is checked."""

from __future__ import annotations

import json

import pytest

from atomsieve.cli.main import run
from atomsieve.errors import DataError, UsageError
from atomsieve.structures import open_structures
from atomsieve.structures.conversion.convert import ConvertOptions, Input, convert
from atomsieve.structures.source import SourceInfo
from atomsieve.train.config import load_config, parse_config
from atomsieve.train.run import train


@pytest.fixture
def plain(data_file, tmp_path):
    """The labelled structures of one source as extended XYZ that states no source."""
    out = tmp_path / "emt.extxyz"
    assert run("atomsieve", ["data", "export", str(data_file), str(out), "--where", "source == 'emt'", "-q"]) == 0
    text = out.read_text()
    out.write_text(text.replace(" source=emt", "").replace("energy=", "REF_energy="))
    return out


SAYS = {"source": "emt", "level_of_theory": "EMT", "energy_key": "REF_energy", "level_key": None}


def test_a_file_is_converted_once_and_trained_on(small, plain, tmp_path):
    config = small(data=[{"path": str(plain), "convert": SAYS}], budget={"steps": 2})
    result = train(config)
    (copy,) = (tmp_path / "converted").iterdir()
    convert(
        [Input(plain, SourceInfo("emt", "EMT"))],
        tmp_path / "d.bp",
        ConvertOptions(keys=config.data[0].convert.reading().keys()),
    )
    with open_structures(copy) as found, open_structures(tmp_path / "d.bp") as wanted:
        assert found.identity() == wanted.identity()
    manifest = json.loads((result.gfm / "manifest.json").read_text())
    assert manifest["training"]["data_sha256"] == [found.identity()]
    assert manifest["training"]["config"]["data"][0]["path"] == str(plain)
    assert train(config).gfm == result.gfm  # continued, and finished already
    with pytest.raises(UsageError, match=r"changed: data\.0\.convert\.level_of_theory, data_sha256"):
        train(small(data=[{"path": str(plain), "convert": {**SAYS, "level_of_theory": "EAM"}}], budget={"steps": 2}))


def test_a_file_trained_on_is_known_when_calibrated_with(small, plain, tmp_path, capsys):
    result = train(small(data=[{"path": str(plain), "convert": SAYS}], budget={"steps": 2}))
    args = ["calibrate", str(result.gfm), "--data", str(plain), "--energy-key", "REF_energy", "--device", "cpu"]
    assert run("atomsieve", [*args, "-q"]) == 2
    assert "was trained on" in capsys.readouterr().err


def test_a_file_that_states_its_sources_needs_no_section(small, data_file, tmp_path):
    out = tmp_path / "own.extxyz"
    assert run("atomsieve", ["data", "export", str(data_file), str(out), "-q"]) == 0
    result = train(small(data=[{"path": str(out)}], budget={"steps": 2}))
    manifest = json.loads((result.gfm / "manifest.json").read_text())
    assert sorted(head["name"] for head in manifest["heads"]) == ["emt", "springs"]


@pytest.mark.parametrize(
    ("convert", "error", "said"),
    [
        (None, DataError, r"has no labels .*convert: \{energy_key: KEY"),
        ({"energy_key": "REF_energy"}, UsageError, "does not state which source its labels are of"),
        ({"energy_key": "REF_energie", "source": "a", "level_of_theory": "b"}, UsageError, "did you mean 'REF_energy'"),
    ],
)
def test_what_a_file_lacks_is_told_before_the_output_is_made(small, plain, tmp_path, convert, error, said):
    if convert is None:
        plain.write_text("".join("1\nProperties=species:S:1:pos:R:3\nH 0 0 0\n"))
    with pytest.raises(error, match=said):
        train(small(data=[{"path": str(plain), "convert": convert}]))
    assert not (tmp_path / "run").exists()


def test_a_refused_configuration_does_not_claim_the_folder(small, tmp_path):
    with pytest.raises(UsageError, match="state default_head"):
        train(small(default_head=None))
    with pytest.raises(UsageError, match="did you mean 'emt'"):
        train(small(default_head="emtt"))
    assert not (tmp_path / "run").exists()
    assert train(small(budget={"steps": 2})).gfm == tmp_path / "run" / "gfm"


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"sorce": "a"}, "did you mean 'source'"),
        ({"source": "a"}, "source needs level_of_theory"),
        ({"unit": "energy=hartre"}, "unknown unit of energy 'hartre'"),
        ({"source": "a", "source_key": "b", "level_of_theory": "c"}, "leave out one of them"),
    ],
)
def test_a_mistake_in_the_section_is_one_line(section, said):
    with pytest.raises(UsageError, match=said):
        parse_config({"data": [{"path": "a.xyz", "convert": section}]})


def test_units_as_a_mapping_and_paths_beside_the_configuration(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "data:\n- path: a.xyz\n  convert: {source: 1e3, level_of_theory: x, unit: {energy: hartree, length: bohr}, "
        "topology: t.pdb}\n"
    )
    item = load_config(tmp_path / "c.yaml").data[0]
    assert item.convert.unit == "energy=hartree,length=bohr"
    assert item.convert.source == "1e3"
    assert item.convert.topology == str(tmp_path / "t.pdb")


def test_a_dataset_takes_no_section(small, data_file):
    with pytest.raises(UsageError, match="is a dataset, which is read as it is"):
        train(small(data=[{"path": str(data_file), "convert": {"charge": 1}}]))


def test_paths_are_checked_before_torch_is_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "atomsieve.train.run", None)  # its import would fail
    (tmp_path / "c.yaml").write_text("data: [{path: nowhere.extxyz}]\n")
    assert run("atomsieve", ["train", str(tmp_path / "c.yaml")]) == 1
    assert "nowhere.extxyz does not exist" in capsys.readouterr().err
