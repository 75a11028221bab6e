"""Statuses of odd structures, continued calculations, refused calls, tables."""

import csv
import json

import numpy as np
import pytest
from ase.io import read, write

from atomsieve.cli.main import run as run_command
from atomsieve.errors import AtomSieveError, UsageError
from atomsieve.properties.options import PropertyOptions
from atomsieve.properties.run import run_properties
from tests.helpers import tiny_gfm
from tests.properties.conftest import OPTIONS
from tests.properties.emt import EMTPredictor

QUICK = PropertyOptions(what=("eos", "phonons"), relax=False, clamped=True, supercell_length=6.0)


def compute(path, out, options=QUICK, predictor=None, **named):
    return run_properties(path, options, predictor=predictor or EMTPredictor(), out=out, **named)


def test_bad_structures_have_a_status_and_a_reason_and_disturb_no_other(odd_file, tmp_path):
    options = PropertyOptions(what=("phonons",), relax=False, supercell_length=8.0, max_supercell_atoms=100)
    found = compute(odd_file, tmp_path / "out", options)
    table = [one["values"] for one in found.found]
    assert [v["status"] for v in table] == ["OK", "NOT_PERIODIC", "UNSEEN_ELEMENT", "BAD_CELL", "SUPERCELL_TOO_LARGE"]
    assert found.exit_code == 3
    assert "element" in table[2]["reason"]
    assert "periodic along FFF" in table[1]["reason"]
    assert "108 atoms, more than 100; --supercell-length 7 fits" in table[4]["reason"]
    assert table[0]["dynamically_stable"] is True
    assert "min_frequency" not in table[4]
    lines = list(csv.DictReader(found.folder.table.read_text().splitlines()))
    assert [line["status"] for line in lines] == [v["status"] for v in table]
    assert float(lines[0]["min_frequency [THz]"]) == pytest.approx(table[0]["min_frequency"])
    assert lines[4]["min_frequency [THz]"] == ""


def test_a_relaxation_that_does_not_end_is_said(metal_file, tmp_path):
    found = compute(metal_file, tmp_path / "out", PropertyOptions(what=("eos",), fmax=1e-6, max_steps=1))
    values = found.found[0]["values"]
    assert values["status"] == "NOT_RELAXED"
    assert "after 1 steps" in values["reason"]
    assert "eos_volume" not in values


def test_an_equation_without_a_minimum_is_said(tmp_path):
    from ase.build import bulk

    write(tmp_path / "wide.extxyz", bulk("Cu", "fcc", a=4.2))
    found = compute(tmp_path / "wide.extxyz", tmp_path / "out", PropertyOptions(what=("eos",), relax=False))
    assert found.found[0]["values"]["status"] == "NO_MINIMUM"


def test_it_goes_on_where_it_was_broken_off_with_the_same_bytes(metal_file, tmp_path):
    options = PropertyOptions(what=("eos",), relax=False, group_atoms=1)
    whole = compute(metal_file, tmp_path / "whole", options)
    part = compute(metal_file, tmp_path / "part", options)
    part.folder.of_rank(2).unlink()
    part.folder.of_rank(3).write_text("{ damaged")
    part.folder.table.unlink()
    predictor = EMTPredictor()
    again = compute(metal_file, tmp_path / "part", options, predictor)
    assert again.computed == 2
    assert predictor.calls == 2 * (1 + 7 + 7)
    for name in ("properties.csv", "properties.json", "structures.extxyz"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "part" / name).read_bytes()
    assert whole.found == again.found


def test_other_settings_are_refused_by_name(metal_file, tmp_path):
    compute(metal_file, tmp_path / "out", PropertyOptions(what=("eos",), relax=False, clamped=True))
    with pytest.raises(AtomSieveError, match=r"options.eos_points: 7 -> 9"):
        compute(metal_file, tmp_path / "out", PropertyOptions(what=("eos",), relax=False, clamped=True, eos_points=9))


def test_files_hold_the_same_numbers(computed):
    whole = json.loads(computed.folder.whole.read_text())
    assert whole["settings"]["ensemble"]["head"] == "emt"
    assert whole["columns"]["eos_bulk_modulus"]["unit"] == "GPa"
    images = read(computed.folder.structures, ":")
    for atoms, one in zip(images, whole["structures"], strict=True):
        assert atoms.info["bulk_modulus_vrh"] == pytest.approx(one["values"]["bulk_modulus_vrh"])
        assert np.shape(one["details"]["elastic"]["tensor"]) == (6, 6)


def test_without_forces_of_members_only_energies_have_a_spread(metal_file, tmp_path):
    options = PropertyOptions(what=("eos", "elastic", "phonons"), relax=False, clamped=True, supercell_length=4.0)
    found = compute(metal_file, tmp_path / "out", options, EMTPredictor(apart=False)).found[0]["values"]
    assert found["eos_bulk_modulus_std"] > 0
    assert found["bulk_modulus_vrh"] > 0
    assert found["bulk_modulus_vrh_std"] is None
    assert found["min_frequency_std"] is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"what": ("eos", "phonon")}, "did you mean 'phonons'"),
        ({"what": ()}, "allowed: eos, elastic, phonons"),
        ({"eos_points": 3}, "--eos-points must be from 5 to 101, got 3"),
        ({"supercell_length": float("nan")}, "--supercell-length must be from"),
        ({"fmax": 0.0}, "--fmax must be from"),
    ],
)
def test_options_out_of_range_are_refused(given, said):
    with pytest.raises(UsageError, match=said):
        PropertyOptions(**given)


def test_the_command_computes_with_an_ensemble_and_explains_wrong_calls(metal_file, tmp_path, capsys):
    from ase.build import bulk

    gfm = str(tiny_gfm(tmp_path / "gfm"))
    write(tmp_path / "cu.extxyz", bulk("Cu", "fcc", a=3.7))
    common = ["properties", str(tmp_path / "cu.extxyz"), "-e", gfm, "--head", "metal", "--out", str(tmp_path / "out")]
    quick = ["--as-given", "--clamped", "--supercell-length", "4", "--what"]
    assert run_command("atomsieve", [*common, *quick, "elastic,phonons"]) in (0, 3)  # untrained: perhaps unstable
    assert "min_frequency" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "properties.json").read_text())["structures"][0]["values"]
    assert found["bulk_modulus_voigt_std"] > 0
    assert found["max_frequency_std"] > 0
    for arguments, said in (
        ([*common[:2], "--what", "eos"], "name one with --ensemble"),
        ([*common, "--by", "energy_std"], "is no results folder; leave out --by"),
        ([*common, "--what", "eos"], "options.what"),
        (["properties", str(tmp_path / "nothing"), "-e", gfm], "nothing"),
        ([*common, "--head", "metals"], "did you mean 'metal'"),
    ):
        assert run_command("atomsieve", arguments) in (1, 2)
        error = capsys.readouterr().err
        assert said in error.splitlines()[-1], error


def test_options_of_these_tests_are_the_ones_computed(computed):
    assert computed.statuses == {"OK": 3}
    assert json.loads(computed.folder.record.read_text())["options"] == OPTIONS.deciding()


def test_dispersion_is_refused_where_no_level_is_known_and_stated_where_it_is_added(metal_file, tmp_path):
    options = {"what": ("eos",), "relax": False, "clamped": True, "eos_range": 0.3}
    with pytest.raises(UsageError, match="states no level of theory"):
        compute(metal_file, tmp_path / "out", PropertyOptions(**options, dispersion="auto"))
    plain = compute(metal_file, tmp_path / "plain", PropertyOptions(**options))
    found = compute(metal_file, tmp_path / "found", PropertyOptions(**options, dispersion="PBE"))
    settings = [json.loads(one.folder.record.read_text()) for one in (plain, found)]
    assert settings[0]["ensemble"]["id"] != settings[1]["ensemble"]["id"]
    assert "dispersion" not in settings[0]["options"]
    assert settings[1]["options"]["dispersion"] == "PBE"
    first, second = (one.found[0]["values"] for one in (plain, found))
    assert second["energy_per_atom"] < first["energy_per_atom"] - 0.1
    assert second["eos_volume"] < first["eos_volume"]


@pytest.fixture(scope="module")
def screened(tmp_path_factory):
    """A screening of four crystals with text ids, and properties of its two best rows."""
    from ase.build import bulk

    room = tmp_path_factory.mktemp("screened")
    images = [bulk("Cu", "fcc", a=a) for a in (3.5, 3.6, 3.7, 3.8)]
    for k, atoms in enumerate(images):
        atoms.info["name"] = f"cu-{k}"
    write(room / "in.extxyz", images)
    gfm = str(tiny_gfm(room / "gfm"))
    run = ["run", str(room / "in.extxyz"), "-e", gfm, "--head", "metal", "--out", str(room / "out"), "--quiet"]
    assert run_command("screen", [*run, "--id-key", "name"]) == 0
    arguments = ["properties", str(room / "out"), "--top", "2", "--by", "natoms", "--as-given", "--clamped", "--quiet"]
    assert run_command("atomsieve", [*arguments, "--what", "eos,elastic"]) in (0, 3)
    return room / "out"


def test_properties_of_rows_are_columns_of_their_results(screened):
    from atomsieve.screen.results.record import open_results
    from atomsieve.screen.results.table import list_columns, list_shown_columns
    from atomsieve.screen.selection.select import Selection, select

    results = open_results(screened)
    columns, rows = list_columns(results), np.asarray(results.rows())
    lines = list(csv.DictReader((screened.parent / "out.properties" / "properties.csv").read_text().splitlines()))
    assert [line["id"] for line in lines] == ["cu-0", "cu-1"]
    column = columns["bulk_modulus_voigt"]
    assert (column.kind, column.unit, column.aside) == ("number", "GPa", True)
    values = column.values(rows[::-1])
    known = {int(line["position"]): float(line["bulk_modulus_voigt [GPa]"]) for line in lines}
    exact = [known.get(int(p), np.nan) for p in rows["position"][::-1]]
    np.testing.assert_allclose(values, exact)
    assert columns["elastically_stable"].values(rows).dtype == bool
    chosen = select(results, Selection(top=5, by="bulk_modulus_voigt", descending=True)).rows
    assert chosen["position"].tolist() == sorted(known, key=lambda p: -known[p])
    assert "bulk_modulus_voigt" not in {column.name for column in list_shown_columns(results)}


def test_a_folder_of_another_input_gives_no_columns(screened, tmp_path):
    import shutil

    from atomsieve.screen.results.record import open_results
    from atomsieve.screen.results.table import list_columns

    copy = tmp_path / "copy"
    shutil.copytree(screened, copy)
    assert "bulk_modulus_voigt" not in list_columns(open_results(copy))
    beside = tmp_path / "copy.properties"
    shutil.copytree(screened.parent / "out.properties", beside)
    assert "bulk_modulus_voigt" in list_columns(open_results(copy))
    settings = json.loads((beside / "settings.json").read_text())
    settings["input"]["identity"] = "of another"
    (beside / "settings.json").write_text(json.dumps(settings))
    assert "bulk_modulus_voigt" not in list_columns(open_results(copy))
    (beside / "settings.json").write_text("{")
    assert "bulk_modulus_voigt" not in list_columns(open_results(copy))
