"""What was written before the packages were rearranged still opens, and says what it said: see tests/frozen/README.md.

The files are opened by the commands and by public names alone, so that these tests say nothing of where code lies.
Stored bytes must come back exactly; numbers that are computed anew agree to a tolerance, since last bits differ between
processors.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from atomsieve.cli.main import run
from atomsieve.predict import Predictor
from atomsieve.structures import StructureBatch, open_structures

FROZEN = Path(__file__).parent / "frozen"
EXPECTED: dict[str, Any] = json.loads((FROZEN / "expected.json").read_text())
ENSEMBLES = ("gfm", "gfm_shallow", "gfm_hydragnn")
MODELS = ("gfm", "gfm_graph", "gfm_prepare", "gfm_finish")
"""Of the repository, those with a model.py; `gfm_pipeline` is an ensemble of three of them in Triton's sense."""

SCREENING = ("--forces", "--top", 25, "--chunk-size", 64, "--max-atoms", 256, "--max-edges", 10000)
CASCADE = (
    "--cascade",
    "bf16:fp32",
    "--top",
    10,
    "--limit",
    110,
    "--chunk-size",
    40,
    "--max-atoms",
    256,
    "--max-edges",
    10000,
)
BROKEN_OFF = (
    "--head",
    "all",
    "--precision",
    "fp64",
    "--forces",
    "--top",
    25,
    "--limit",
    120,
    "--chunk-size",
    3,
    "--max-atoms",
    12,
    "--max-edges",
    1000,
)
"""What was asked in results/, results_cascade/ and results_broken_off/."""

EXACT = ("position", "id", "natoms", "status", "outside", "head", "precision", "in_domain")
"""Columns of rows that no rounding touches; no `distance` in the files is within 0.005 of its limit."""
FP64, FP32 = {"rtol": 1e-5, "atol": 1e-7}, {"rtol": 1e-5, "atol": 1e-4}
"""Tolerances of energies (eV) and forces (eV/Angstrom) that are computed anew in FP64 and in FP32."""
SPREADS = {"rtol": 1e-3, "atol": 3e-3}
"""Of spreads, calibrated errors and distances in FP32: small differences of large numbers, times up to 30."""


@pytest.fixture(scope="module")
def expected() -> dict[str, NDArray[Any]]:
    """The numbers that the ensembles gave when they were frozen."""
    with np.load(FROZEN / "expected.npz") as found:
        return dict(found)


@pytest.fixture(scope="module")
def batch() -> StructureBatch:
    """The structures that these numbers are of: some good, and every kind of bad ones."""
    about = EXPECTED["candidates"]
    with open_structures(FROZEN / "candidates.bp") as reader:
        return reader.read(about["first"], about["stop"])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A copy that a test may change; where paths of a run are recorded, they are those of the copy."""
    copy = shutil.copytree(FROZEN, tmp_path / "data")
    for path in copy.glob("results*/run.json"):
        path.write_text(path.read_text().replace('"/data/', f'"{copy}/'))
    config = copy / "training/run/config.yaml"
    config.write_text(config.read_text().replace("/data/", f"{config.parents[1]}/"))
    return copy


def call(program: str, *args: object) -> int:
    return run(program, [str(a) for a in args])


def screen(data: Path, out: str | Path, options: tuple[object, ...]) -> int:
    """Screen the candidates with `gfm`, into a folder that is new, finished, or broken off."""
    model = ("-e", data / "gfm", "--device", "cpu")
    return call("screen", "run", data / "candidates.bp", *model, "--out", data / out, *options)


def assert_rows_agree(found: NDArray[Any], before: NDArray[Any], energies: dict[str, float]) -> None:
    """Compare rows that were computed anew with stored ones."""
    assert found.dtype == before.dtype
    for name in EXACT:
        assert np.array_equal(found[name], before[name]), name
    for name in ("energy", "energy_per_atom", "max_force"):
        np.testing.assert_allclose(found[name], before[name], **energies, err_msg=name)
    for name in ("energy_std", "sigma_energy", "interval_energy", "max_force_std", "sigma_force", "distance"):
        np.testing.assert_allclose(found[name], before[name], **SPREADS, err_msg=name)


# -- ensembles -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENSEMBLES)
def test_an_ensemble_opens_under_its_old_identity(name: str) -> None:
    predictor, before = Predictor.load(FROZEN / name, device="cpu"), EXPECTED[name]
    calibrated = predictor.describe()["calibrated"]
    assert predictor.ensemble_id == before["id"]
    assert list(predictor.heads) == before["heads"]
    assert predictor.head == before["default_head"]
    for name_of in ("members", "kind", "cutoff"):
        assert getattr(predictor, name_of) == before[name_of]
    assert {head: sorted(kinds) for head, kinds in calibrated.items()} == before["calibrated"]


@pytest.mark.parametrize("head", ["emt", "lj"])
@pytest.mark.parametrize("name", ENSEMBLES)
def test_an_ensemble_gives_the_numbers_that_it_gave(
    name: str, head: str, batch: StructureBatch, expected: dict[str, NDArray[Any]]
) -> None:
    predictor = Predictor.load(FROZEN / name, head=head, precision="fp64", device="cpu")
    found = predictor(batch, want={"energy", "forces", "stress", "spread", "force_spread"}).arrays()
    prefix = f"{name}/{head}/"
    before = {key.removeprefix(prefix): array for key, array in expected.items() if key.startswith(prefix)}
    assert {"status", "energy", "energy_std"} <= set(before)
    assert np.isfinite(before["energy"]).any()
    for key, array in before.items():
        if key in ("status", "outside"):
            assert np.array_equal(found[key], array), key
        else:
            tolerance = {"rtol": 1e-4, "atol": 1e-5} if key == "distance" else {"rtol": 1e-5, "atol": 1e-6}
            np.testing.assert_allclose(found[key], array, **tolerance, err_msg=key)


def test_a_mixture_of_heads_gives_the_numbers_that_it_gave(
    batch: StructureBatch, expected: dict[str, NDArray[Any]]
) -> None:
    predictor = Predictor.load(FROZEN / "gfm", head="auto", precision="fp64", device="cpu")
    found = predictor(batch, want={"energy"})
    assert np.array_equal(found.status, expected["gfm/auto/status"])
    np.testing.assert_allclose(found.energy, expected["gfm/auto/energy"], rtol=1e-5)
    assert np.isfinite(found.energy).sum() > np.isfinite(expected["gfm/emt/energy"]).sum()


def test_an_exported_artefact_answers_for_its_ensemble(
    batch: StructureBatch, expected: dict[str, NDArray[Any]]
) -> None:
    pytest.importorskip("onnxruntime")
    predictor = Predictor.load(FROZEN / "gfm", head="lj", backend="onnx", device="cpu")
    found = predictor(batch, want={"energy", "forces"})
    assert np.array_equal(found.status, expected["gfm/lj/status"])
    np.testing.assert_allclose(found.energy, expected["gfm/lj/energy"], **FP32)
    np.testing.assert_allclose(found.forces, expected["gfm/lj/forces"], **FP32)


def test_a_changed_weight_is_still_noticed(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = data / "gfm/members/000/weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert screen(data, "new", SCREENING) == 1
    assert "weights.safetensors was changed" in capsys.readouterr().err


# -- candidates and results ----------------------------------------------------------------------------------------


def test_candidates_are_what_their_manifest_says(capsys: pytest.CaptureFixture[str]) -> None:
    about = EXPECTED["candidates"]
    with open_structures(FROZEN / "candidates.bp") as reader:
        assert (len(reader), reader.identity()) == (about["structures"], about["identity"])
        everything = reader.read(0, len(reader))
    assert np.array_equal(everything.id, np.arange(198))
    assert np.isnan(everything.positions).any(axis=1).sum() == 1
    assert set(everything.numbers.tolist()) == {1, 8, 29, 79, 92}
    assert call("atomsieve", "data", "info", FROZEN / "candidates.bp", "--json") == 0
    assert json.loads(capsys.readouterr().out)["structures"] == 198


@pytest.mark.parametrize("name", sorted(EXPECTED["bytes"]))
def test_stored_rows_and_forces_are_the_bytes_that_were_written(name: str) -> None:
    assert hashlib.sha256((FROZEN / name).read_bytes()).hexdigest() == EXPECTED["bytes"][name]


@pytest.mark.parametrize(("name", "structures"), [("results", 198), ("results_cascade", 110)])
def test_the_status_of_a_finished_screening_is_told(
    name: str, structures: int, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("screen", "status", data / name, "--verify") == 0
    printed = capsys.readouterr().out
    assert f"{structures} of {structures} structures (100.0 %)" in printed
    assert "every durable chunk fits its checksums" in printed
    summary = json.loads((data / name / "summary.json").read_text())
    rows = np.load(data / name / "rows.npy")
    counted = {status: int(n) for status, n in re.findall(r"│ ([A-Z_]+) +│ +(\d+) │", printed)}
    assert counted == summary["status"]
    assert counted["OK"] == np.count_nonzero(rows["status"] == 0) > 50


def test_every_stored_row_comes_back_exactly(data: Path) -> None:
    rows = np.load(data / "results/rows.npy")
    assert call("screen", "export", data / "results", data / "rows.npz") == 0
    with np.load(data / "rows.npz") as found:
        for name in rows.dtype.names:
            assert found[name].dtype == rows.dtype[name]
            assert found[name].tobytes() == rows[name].tobytes(), name
        assert found["heads"].tolist() == ["emt"]


def test_the_best_rows_are_those_of_the_table(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = [line.split(",") for line in (data / "results/top.csv").read_text().splitlines()]
    assert call("screen", "export", data / "results", data / "best.csv", "--top", 25) == 0
    found = [line.split(",") for line in (data / "best.csv").read_text().splitlines()]
    assert found[0][17:] == ["formula", "reduced_formula", "why"]
    assert [line[:17] for line in found] == [line[2:] for line in stored]  # the table has rank and formula too
    assert len(found) == 26
    capsys.readouterr()
    assert call("screen", "top", data / "results", "-k", 25) == 0
    shown = re.findall(r"^ +\d+ +([A-Z]\w*) +(\d+) ", capsys.readouterr().out, re.MULTILINE)
    assert shown == [(line[1], line[2]) for line in stored[1:]]


def test_stored_forces_go_with_their_structures(data: Path) -> None:
    assert call("screen", "export", data / "results", data / "labelled.bp", "--where", "status == 'OK'") == 0
    rows, forces = np.load(data / "results/rows.npy"), np.load(data / "results/forces.npy")
    ok = rows["status"] == 0
    with open_structures(data / "labelled.bp") as reader:
        found = reader.read(0, len(reader))
    assert np.array_equal(found.id, rows["id"][ok])
    assert np.array_equal(found.energy, rows["energy"][ok])
    assert np.array_equal(found.forces, forces[np.repeat(ok, rows["natoms"])])
    strongest = [np.linalg.norm(found.forces[a:b], axis=1).max() for a, b in pairwise(found.ptr)]
    np.testing.assert_allclose(strongest, rows["max_force"][ok], rtol=1e-6)


@pytest.mark.parametrize(("name", "options"), [("results", SCREENING), ("results_cascade", CASCADE)])
def test_the_same_command_finds_a_finished_screening_done(
    name: str, options: tuple[object, ...], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = [path for path in (data / name).iterdir() if path.name in ("rows.npy", "forces.npy", "top.csv", "run.json")]
    before = {path: path.read_bytes() for path in kept}
    assert screen(data, name, options) == 3
    done, chunks = re.findall(r"continuing: (\d+) of (\d+) chunks are done", capsys.readouterr().err)[0]
    assert done == chunks
    assert {path: path.read_bytes() for path in kept} == before


@pytest.mark.parametrize(("name", "options"), [("results", SCREENING), ("results_cascade", CASCADE)])
def test_a_new_screening_gives_the_stored_rows(name: str, options: tuple[object, ...], data: Path) -> None:
    assert screen(data, "new", options) == 3
    assert_rows_agree(np.load(data / "new/rows.npy"), np.load(data / name / "rows.npy"), FP32)
    if name == "results":
        before = np.load(data / "results/forces.npy")
        np.testing.assert_allclose(np.load(data / "new/forces.npy"), before, **FP32)


def test_other_settings_are_told_apart_from_the_recorded_ones(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert screen(data, "results", tuple(o for o in SCREENING if o != "--forces")) == 1
    assert "results of other settings (options.forces: True -> False)" in capsys.readouterr().err


def test_stored_rows_are_relaxed_by_the_ensemble_that_screened(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("screen", "relax", data / "results", "--top", 3, "--max-steps", 2, "--precision", "fp64") == 0
    lines = (data / "results.relaxed/relaxed.csv").read_text().splitlines()
    assert len(lines) == 4
    shutil.rmtree(data / "gfm")
    shutil.copytree(data / "gfm_shallow", data / "gfm")
    assert call("screen", "relax", data / "results", "--top", 3, "--out", data / "other") != 0
    assert EXPECTED["gfm"]["id"][:12] in capsys.readouterr().err


# -- a screening that was killed -------------------------------------------------------------------------------------


def durable(folder: Path) -> list[int]:
    """Return the chunks in the ledger."""
    lines = (folder / "ledger/00000.ledger").read_text().splitlines()
    return sorted(json.loads(line.split(" ", 1)[1])["chunk"] for line in lines)


def test_a_screening_that_was_killed_goes_on(
    data: Path, expected: dict[str, NDArray[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = data / "results_broken_off"
    chunks = durable(folder)
    places = np.concatenate([np.arange(6 * chunk, 6 * chunk + 6) for chunk in chunks])  # 3 structures, 2 heads
    assert call("screen", "status", folder) == 0
    printed = capsys.readouterr().out
    assert f"{3 * len(chunks)} of 120 structures" in printed and "not running" in printed
    before = np.load(folder / "rows.npy.part")[places]
    assert screen(data, "results_broken_off", BROKEN_OFF) == 3
    assert f"continuing: {len(chunks)} of 40 chunks are done" in capsys.readouterr().err
    rows = np.load(folder / "rows.npy")
    assert rows[places].tobytes() == before.tobytes()
    for column, tolerance in (("energy", FP64), ("max_force", FP32), ("sigma_energy", FP32), ("distance", SPREADS)):
        np.testing.assert_allclose(rows[column], expected[f"whole/{column}"], **tolerance, err_msg=column)
    for column in ("status", "outside", "head"):
        assert np.array_equal(rows[column], expected[f"whole/{column}"]), column
    assert not list(folder.glob("*.part")) and not (folder / "at_hand.bin").exists()
    assert np.load(folder / "forces.npy").shape[1:] == (2, 3)
    assert len(durable(folder)) == 40


# -- a model repository ----------------------------------------------------------------------------------------------


@pytest.fixture
def repository(data: Path) -> Path:
    """The repository with its copies of gfm/, which are left out of the frozen one since they repeat its bytes."""
    for name in ("gfm", "gfm_prepare", "gfm_finish"):
        shutil.copytree(data / "gfm", data / "repository" / name / "1/gfm")
    graph = data / "repository/gfm_graph/1/gfm"
    shutil.copytree(data / "gfm/exports/onnx-fp32", graph / "exports/onnx-fp32")
    shutil.copy(data / "gfm/manifest.json", graph)
    (data / "repository/gfm_pipeline/1").mkdir()  # empty, which git does not keep
    return data / "repository"


@pytest.mark.parametrize("name", MODELS)
def test_what_a_served_model_imports_is_there(name: str) -> None:
    path = FROZEN / "repository" / name / "1/model.py"
    spec = importlib.util.spec_from_file_location(f"frozen_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert isinstance(module.TritonPythonModel, type)
    assert callable(module.TritonPythonModel.initialize)
    if name in ("gfm", "gfm_graph"):
        assert callable(module.TritonPythonModel.execute)


def test_a_version_is_added_to_a_repository(repository: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tritonclient.grpc")
    again = ("serve", "repository", data / "gfm", "--backend", "onnx", "--graph-backend", "python", "--out", repository)
    assert call("atomsieve", *again) == 1
    assert "repository/gfm/1 is there already" in capsys.readouterr().err
    before = (repository / "gfm/config.pbtxt").read_text()
    tensors = re.findall(r'name: "(\w+)"\n *data_type: (\w+)', before)
    assert len(tensors) > 15
    assert call("atomsieve", *again, "--version", 2) == 0
    assert sorted(p.name for p in (repository / "gfm").iterdir() if p.is_dir()) == ["1", "2"]
    after = (repository / "gfm/config.pbtxt").read_text()
    assert re.findall(r'name: "(\w+)"\n *data_type: (\w+)', after) == tensors
    assert EXPECTED["gfm"]["id"] in after


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def server(repository: Path) -> Iterator[str]:
    """A server of the two models that answer by themselves; the others were parts of a pipeline."""
    if importlib.util.find_spec("pytriton") is None and shutil.which("tritonserver") is None:
        if os.environ.get("ATOMSIEVE_NEEDS_TRITON"):
            pytest.fail("no tritonserver found")
        pytest.skip("no tritonserver on this machine")
    for name in ("gfm_prepare", "gfm_finish", "gfm_pipeline"):
        shutil.rmtree(repository / name)
    port = free_port()
    ports = ("--grpc-port", str(port), "--http-port", "0", "--metrics-port", "0")
    words = [sys.executable, "-m", "atomsieve", "serve", "start", "--repository", str(repository), *ports]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for line in process.stdout:
            if '"event": "ready"' in line:
                break
        assert process.poll() is None, "the server ended before it was ready"
        yield f"grpc://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.mark.slow
def test_a_repository_is_served_and_screens_as_the_ensemble_did(
    server: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("atomsieve", "serve", "check", server, "--ensemble", data / "gfm") == 0
    assert f"ensemble_id: {EXPECTED['gfm']['id']}" in capsys.readouterr().out
    out = data / "remote"
    assert call("screen", "run", data / "candidates.bp", "--endpoint", server, "--out", out, *SCREENING) == 3
    assert_rows_agree(np.load(out / "rows.npy"), np.load(data / "results/rows.npy"), FP32)


# -- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deep", "shallow", "hydragnn", "example"])
def test_a_training_configuration_is_understood(name: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of its keys are known and fit: what is missing are the data."""
    config = data / "configs" / f"{name}.yaml"
    assert call("atomsieve", "train", config, "--quiet") == 1
    error = capsys.readouterr().err
    assert error == f"error: {data}/configs/train.bp does not exist\n"
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "ensembles": 1}))
    assert call("atomsieve", "train", config, "--quiet") == 2
    assert "did you mean 'ensemble'" in capsys.readouterr().err


def test_a_training_that_was_interrupted_goes_on(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = data / "training/run"
    log = folder / "runs/000/log.jsonl"
    before = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["step"] for row in before if row["kind"] == "validation"] == [8]
    assert call("atomsieve", "train", data / "training/train.yaml", "--set", "model.layers=2", "--quiet") == 2
    assert "another configuration (changed: model.layers)" in capsys.readouterr().err
    assert call("atomsieve", "train", data / "training/train.yaml", "--quiet") == 0
    after = [json.loads(line) for line in log.read_text().splitlines()]
    assert after[: len(before)] == before
    assert [row["step"] for row in after if row["kind"] == "validation"] == [8, 16, 24, 32, 40]
    test = json.loads((folder / "metrics.json").read_text())["test"]
    for head, numbers in EXPECTED["training"].items():
        for key, value in numbers.items():
            assert test[head][key] == pytest.approx(value, rel=1e-3), (head, key)
    assert list(Predictor.load(folder / "gfm", device="cpu").heads) == ["emt", "lj"]
