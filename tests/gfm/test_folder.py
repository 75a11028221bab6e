"""The gfm/ folder: what is written is what is read, and nothing damaged or foreign is believed."""

import hashlib
import json
import shutil
import time

import numpy as np
import pytest
import torch

from atomsieve.errors import AtomSieveError, DataError, UsageError
from atomsieve.gfm import (
    ExportEntry,
    ensemble_id,
    load_gfm,
    read_calibration,
    read_manifest,
    record_exports,
    record_files,
    same_weights,
    save_gfm,
    weights_id,
)
from atomsieve.gfm.test_vector import evaluate
from atomsieve.graphs.neighbors import build_graph
from atomsieve.structures import StructureBatch
from atomsieve.uncertainty.calibration import Calibration
from tests.helpers import copper_oxides, tiny_ensemble, tiny_gfm


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_gfm(tmp_path_factory.mktemp("gfm") / "gfm")


@pytest.fixture
def own_copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_what_was_saved_is_what_is_loaded(folder):
    ensemble, manifest = load_gfm(folder)
    original = tiny_ensemble()
    batch = copper_oxides(3)
    graph = build_graph(batch, ensemble.config.cutoff)
    index = torch.ones(3, dtype=torch.int64)
    assert torch.equal(ensemble(graph, index).energy, original(graph, index).energy.detach())
    assert [h.model_dump() for h in manifest.heads] == [h.model_dump() for h in original.heads]
    assert manifest.default_head == "metal"


def test_the_test_vector_is_reproduced(folder):
    ensemble, manifest = load_gfm(folder)
    for k, (name, expected) in enumerate(manifest.test_vector["heads"].items()):
        assert ensemble.heads[k].name == name
        inputs = {n: np.array(expected[n]) for n in ("ptr", "numbers", "positions", "cell", "pbc")}
        inputs["numbers"] = inputs["numbers"].astype(np.uint8)
        n = len(inputs["ptr"]) - 1
        batch = StructureBatch(**inputs, id=np.arange(n)).validate()
        out = evaluate(ensemble, batch, k, "fp64")
        total = out.energy.numpy() + ensemble.reference_energy(batch.numbers, batch.ptr, k)
        assert np.allclose(total, expected["energy_members"], atol=1e-9, rtol=0)
        assert np.allclose(out.forces.mean(0).numpy(), expected["forces"], atol=1e-10)
    assert 0 < manifest.precision["fp32"]["energy_per_atom"] < 5e-6
    assert manifest.precision["fp32"]["energy_per_atom"] < manifest.precision["bf16"]["energy_per_atom"]


NOT_SUMMED = ("manifest.json", "README.md")  # the manifest names the ensemble; the card is for people to add to


def test_people_may_add_to_the_card(own_copy, folder):
    with (own_copy / "README.md").open("a") as card:
        card.write("trained by us\n")
    load_gfm(own_copy)
    assert ensemble_id(own_copy) == ensemble_id(folder)


def test_exports_do_not_change_the_identity(own_copy, folder):
    entry = ExportEntry(
        format="onnx", precision="fp32", ensemble_id="x", files={}, inputs=[], outputs=[], versions={"onnx": "1"}
    )
    record_exports(own_copy, {entry.key: entry})
    assert read_manifest(own_copy).exports == {"onnx-fp32": entry}
    assert ensemble_id(own_copy) == ensemble_id(folder)
    load_gfm(own_copy)
    record_exports(own_copy, {entry.key: None})
    assert read_manifest(own_copy).exports == {}


def test_a_new_calibration_changes_the_identity_but_not_that_of_the_weights(own_copy, folder):
    record_files(own_copy, {"calibration.json": b'{"heads": {}}', "domain.safetensors": b"fit"})
    load_gfm(own_copy)
    assert (own_copy / "domain.safetensors").read_bytes() == b"fit"
    assert read_manifest(own_copy).files["domain.safetensors"]["size"] == 3
    assert ensemble_id(own_copy) != ensemble_id(folder)
    assert weights_id(own_copy) == weights_id(folder) != ensemble_id(folder)
    with pytest.raises(UsageError, match=r"manifest\.json.*allowed: calibration\.json"):
        record_files(own_copy, {"manifest.json": b""})


def test_an_artefact_of_an_older_version_outlives_a_new_calibration(own_copy, folder):
    entry = ExportEntry(
        format="onnx", precision="fp32", ensemble_id=ensemble_id(folder), files={}, inputs=[], outputs=[], versions={}
    )
    record_exports(own_copy, {entry.key: entry})
    record_files(own_copy, {"calibration.json": b'{"heads": {}}'})
    record_files(own_copy, {"calibration.json": b"{}"})
    assert same_weights(own_copy, entry.ensemble_id) and same_weights(own_copy, weights_id(folder))
    assert not same_weights(own_copy, "0" * 64)


@pytest.mark.parametrize("reached", ["waiting", "manifest"])
def test_a_recording_that_was_killed_leaves_the_old_or_the_new(own_copy, folder, reached, monkeypatch):
    from atomsieve.gfm import folder as module

    def die(*_):
        raise KeyboardInterrupt

    old = (own_copy / "calibration.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(module, {"waiting": "atomic_write", "manifest": "_settle"}[reached], die)
        if reached == "manifest":
            patch.setattr(module, "read_manifest", lambda place: read_manifest(place).model_copy(update={"files": {}}))
        with pytest.raises(KeyboardInterrupt):
            record_files(own_copy, {"calibration.json": b"new"})
    load_gfm(own_copy)
    assert (own_copy / "calibration.json").read_bytes() == (old if reached == "waiting" else b"new")
    assert (ensemble_id(own_copy) == ensemble_id(folder)) == (reached == "waiting")
    record_files(own_copy, {"calibration.json": b"{}"})
    load_gfm(own_copy)
    assert (own_copy / "calibration.json").read_bytes() == b"{}"


def test_the_calibration_that_is_read_is_the_one_that_the_manifest_means(own_copy, monkeypatch):
    from atomsieve.gfm import folder as module

    new = Calibration(members=3, heads={"metal": {"energy_per_atom": {"n": 20, "scale": 2.0}}})
    settle, calls = module._settle, []

    def die(path, expected):
        calls.append(path)
        if len(calls) > 1:  # the first call looks for what an earlier recording left behind
            raise KeyboardInterrupt
        settle(path, expected)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_settle", die)
        with pytest.raises(KeyboardInterrupt):
            record_files(own_copy, {"calibration.json": new.dumps()})
    assert (own_copy / "calibration.json").read_bytes() == b"{}"
    assert read_calibration(own_copy) == new


def test_a_reader_at_any_moment_of_a_recording_sees_one_state(own_copy, monkeypatch):
    from atomsieve.gfm import folder as module

    seen, check = [], module._check_files

    def slow(place, manifest):  # a recording comes between reading the manifest and checking the files
        if not seen:
            seen.append(1)
            record_files(own_copy, {"calibration.json": b'{"heads": {}}'})
        check(place, manifest)

    monkeypatch.setattr(module, "_check_files", slow)
    assert load_gfm(own_copy)[1].files["calibration.json"]["size"] == 13


def test_what_builds_on_the_file_that_is_there_is_made_while_no_other_can_change_it(own_copy):
    seen = []

    def build():
        seen.append((own_copy / ".manifest.lock").exists())
        return json.dumps({"heads": {}, "before": (own_copy / "calibration.json").read_text()}).encode()

    record_files(own_copy, {"calibration.json": build})
    assert seen == [True] and json.loads((own_copy / "calibration.json").read_bytes())["before"] == "{}"
    load_gfm(own_copy)


def test_a_file_that_waits_is_never_that_of_another_recording(own_copy, monkeypatch):
    """A second recording may write what waits between the check of the first one's file and its move."""
    from atomsieve.gfm import folder as module

    first, second = b'{"heads": {}}', b'{"heads":  {}}'
    check = module.hash_file

    def interrupted(path):
        found = check(path)
        if path.name.endswith(".next"):
            module._waiting(own_copy / "calibration.json", hashlib.sha256(second).hexdigest()).write_bytes(second)
        return found

    monkeypatch.setattr(module, "hash_file", interrupted)
    record_files(own_copy, {"calibration.json": first})
    assert (own_copy / "calibration.json").read_bytes() == first
    assert not list(own_copy.glob(".*.next"))
    load_gfm(own_copy)


@pytest.mark.parametrize("name", ["calibration.json", "domain.safetensors"])
def test_a_fitted_file_that_is_not_listed_is_refused(own_copy, name):
    (own_copy / name).write_bytes(b"{}")
    edit(own_copy, lambda m: m["files"].pop(name, None))
    with pytest.raises(DataError, match=rf"{name} is not listed") as caught:
        load_gfm(own_copy)
    assert "\n" not in str(caught.value)


def test_files_of_a_stranger_are_refused_in_one_line(own_copy, monkeypatch):
    edit(own_copy, lambda m: m["files"]["calibration.json"].update(sha256="../../x"))
    assert read_calibration(own_copy) == Calibration()
    monkeypatch.setattr("atomsieve.gfm.folder._LARGEST_CALIBRATION", 1)
    with pytest.raises(DataError, match="2 bytes, more than any calibration"):
        read_calibration(own_copy)
    (own_copy / "manifest.json").write_bytes(b"[" * 200_000)
    with pytest.raises(DataError, match="is not JSON"):
        read_manifest(own_copy)


def test_one_byte_changed_anywhere_is_noticed(own_copy):
    for path in sorted(p for p in own_copy.rglob("*") if p.is_file() and p.name not in NOT_SUMMED):
        whole = path.read_bytes()
        place = len(whole) // 2
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DataError, match=path.relative_to(own_copy).as_posix()):
            load_gfm(own_copy)
        path.write_bytes(whole)
    load_gfm(own_copy)


def test_a_changed_manifest_is_another_ensemble(own_copy, folder):
    manifest = own_copy / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"default_head": "metal"', '"default_head": "organic"'))
    assert ensemble_id(own_copy) != ensemble_id(folder)


def edit(path, change):
    raw = json.loads((path / "manifest.json").read_text())
    change(raw)
    (path / "manifest.json").write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema_version=99), "schema version 99"),
        (lambda m: m.update(schema_name="other"), "not an ensemble's manifest"),
        (lambda m: m.update(extra=1), "extra"),
        (lambda m: m["files"].update({"../../etc/passwd": {"size": 1, "sha256": ""}}), "outside the folder"),
        (lambda m: m["files"].pop("members/001/weights.safetensors"), "not listed"),
        (lambda m: m["config"].update(hidden=32), "does not fit the model"),
        (lambda m: m["config"].update(cutoff=-1), "cutoff"),
    ],
)
def test_a_lying_manifest_is_refused_in_one_line(own_copy, change, message):
    edit(own_copy, change)
    with pytest.raises(DataError, match=message) as caught:
        load_gfm(own_copy)
    assert "\n" not in str(caught.value)


def test_missing_pieces_are_named(own_copy, tmp_path):
    (own_copy / "members/000/weights.safetensors").unlink()
    with pytest.raises(DataError, match=r"members/000/weights\.safetensors is missing"):
        load_gfm(own_copy)
    with pytest.raises(AtomSieveError, match="no ensemble at"):
        read_manifest(tmp_path)
    (own_copy / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        read_manifest(own_copy)


def test_several_heads_need_a_stated_default(tmp_path):
    with pytest.raises(UsageError, match="default_head"):
        save_gfm(tmp_path / "gfm", tiny_ensemble())
    assert not (tmp_path / "gfm").exists()


def test_nothing_is_overwritten_unasked_and_nothing_foreign_ever(tmp_path, folder):
    target = shutil.copytree(folder, tmp_path / "gfm")
    with pytest.raises(UsageError, match="exists"):
        save_gfm(target, tiny_ensemble(), default_head="metal")
    save_gfm(target, tiny_ensemble(2), default_head="metal", overwrite=True)
    assert load_gfm(target)[0].members == 2
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").write_bytes(b"meow")
    with pytest.raises(UsageError, match="not an ensemble"):
        save_gfm(photos, tiny_ensemble(), default_head="metal", overwrite=True)
    assert (photos / "cat.jpg").read_bytes() == b"meow"


def test_saving_the_same_ensemble_gives_the_same_bytes(tmp_path, folder):
    time.sleep(0.01)
    again = tiny_gfm(tmp_path / "again")
    assert ensemble_id(again) == ensemble_id(folder)


def test_the_card_says_what_people_need(folder):
    card = (folder / "README.md").read_text()
    for text in ("metal", "organic", "made up", "not calibrated", "O Cu", "cutoff 5.0"):
        assert text in card
