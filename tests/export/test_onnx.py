"""ONNX artefacts against the eager ensemble, their bytes, and what is refused."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from ase import Atoms
from ase.io import write as write_structure

from atomsieve.errors import AtomSieveError, DataError
from atomsieve.export import onnx_graph, to_onnx
from atomsieve.export.spec import Spec, entry_of
from atomsieve.graphs.table import EMPTY
from atomsieve.structures import StructureBatch
from tests.export.export_checks import eager_outputs, given_arrays
from tests.helpers import copper_oxides, tiny_ensemble

ID = "0123456789abcdef"
CPU = torch.device("cpu")
EXACT = 1e-9  # eV/atom and eV/Angstrom, of FP64
ENERGY_FP32, FORCES_FP32 = 5e-6, 5e-5  # eV/atom, eV/Angstrom
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "onnx_only.py"

FORCES = Spec("onnx", "fp64", "forces", members=True, default_head="metal")
CASES = {
    "conservative": ({"layers": 2}, FORCES),
    "truncated": ({"layers": 1, "max_neighbors": 9}, FORCES),
    "direct charged": ({"layers": 1, "forces": "direct", "charge_spin": True}, FORCES),
    "energy": ({"layers": 1, "cutoff": 3.14159}, Spec("onnx", "fp64", "energy")),
    "fp32 of one member": ({"layers": 1, "members": 1}, dataclasses.replace(FORCES, precision="fp32")),
    "bf16": ({"layers": 1}, Spec("onnx", "bf16", "energy")),
}
"""Cutoff 3.14159 makes a frequency of the basis that is 1 within 1e-6, which optimizers like to drop."""


def made(folder, name):
    config, spec = CASES[name]
    ensemble = tiny_ensemble(**{"members": 3, **config})
    if ensemble.config.charge_spin:
        torch.nn.init.normal_(ensemble.condition.weight, std=0.5)
    written = to_onnx.write(ensemble, spec, folder, ID)
    entry = entry_of(ensemble, spec, folder, ID, written)
    return SimpleNamespace(ensemble=ensemble, spec=spec, folder=folder, entry=entry, file=folder / "model.onnx")


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory):
    """Artefacts by name; each is made once."""
    cache = {}

    def get(name):
        if name not in cache:
            cache[name] = made(tmp_path_factory.mktemp("onnx"), name)
        return cache[name]

    return get


def session_of(artefact, threads, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: threads)
        return to_onnx.open_session(artefact.folder, artefact.entry, CPU)


def awkward():
    """Batches of varied size: crystals, a lone atom, two near atoms, two far ones, and an element of both heads."""
    lone, near, far = Atoms("Cu"), Atoms("CuO", [[0, 0, 0], [0, 0, 1.8]]), Atoms("CuO", [[0, 0, 0], [0, 0, 30.0]])
    oxygen = [Atoms(f"O{n}", 1.2 * np.eye(3)[:n]) for n in (1, 2, 3)]
    return {
        "crystals": copper_oxides(7),
        "one crystal": copper_oxides(1, seed=3),
        "lone atom": StructureBatch.from_ase([lone]),
        "two atoms": StructureBatch.from_ase([near]),
        "no edges": StructureBatch.from_ase([far, lone, far]),
        "oxygen": StructureBatch.from_ase([*oxygen, near, far]),
    }


def with_state(artefact, batch):
    if not artefact.ensemble.config.charge_spin:
        return batch
    n = len(batch)
    return batch.replace(charge=np.arange(-1, n - 1, dtype=np.float32), spin=np.arange(1, n + 1, dtype=np.float32))


def shuffled(arrays, seed=0):
    """Return a table whose rows list the same neighbours in another order."""
    rng = np.random.default_rng(seed)
    table, places = arrays["neighbors"], arrays["neighbors"].shape[1]
    # Sorted by random keys, empty places last.
    order = np.argsort(rng.random(table.shape) + (table == EMPTY), axis=1)
    changed = {
        "neighbors": np.take_along_axis(table, order, 1),
        "shifts": np.take_along_axis(arrays["shifts"], order[:, :, None], 1),
    }
    if "reverse" in arrays:
        back = arrays["reverse"]
        moved = np.argsort(order, axis=1)  # old place -> new place
        row, place = np.divmod(np.maximum(back, 0), places)
        changed["reverse"] = np.where(back == EMPTY, EMPTY, row * places + moved[row, place])
    return {**arrays, **changed}


def assert_right(found, expected, batch, energy=EXACT, forces=EXACT):
    """Compare energies by atom, and everything else by component; NaN only where it is expected."""
    atoms = np.diff(batch.ptr)
    assert found
    for name, values in found.items():
        assert values.shape == expected[name].shape, name
        np.testing.assert_array_equal(np.isnan(values), np.isnan(expected[name]), err_msg=name)
        error = np.nan_to_num(np.abs(values - expected[name]))
        if name.startswith("energy"):
            assert (error / atoms).max() <= energy, name
        elif name == "virial":
            assert (error / atoms[:, None, None]).max() <= 10 * forces, name  # Angstrom of levers
        else:
            assert error.max() <= forces, name


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize(
    "name", ["conservative", pytest.param("truncated", marks=pytest.mark.nightly), "direct charged", "energy"]
)
def test_fp64_is_exact_for_any_size_and_order_of_neighbours_with_any_threads(artefacts, monkeypatch, name, threads):
    artefact = artefacts(name)
    session = session_of(artefact, threads, monkeypatch)
    for batch in awkward().values():
        given = with_state(artefact, batch)
        heads = [(k + 1) % 2 for k in range(len(given))]
        arrays = given_arrays(artefact.ensemble, given, heads)
        found = session(shuffled(arrays, threads))
        assert list(found) == artefact.entry.outputs
        assert_right(found, eager_outputs(artefact.ensemble, given, heads), given)


@pytest.mark.nightly  # `atomsieve export` compares FP32 with the ensemble in every run (export/test_shallow_export.py)
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_fp32_stays_within_its_tolerance(artefacts, monkeypatch, threads):
    artefact = artefacts("fp32 of one member")
    session = session_of(artefact, threads, monkeypatch)
    for batch in awkward().values():
        found = session(shuffled(given_arrays(artefact.ensemble, batch), threads))
        assert found["forces"].dtype == np.float32 and found["energy"].dtype == np.float64
        assert_right(found, eager_outputs(artefact.ensemble, batch), batch, ENERGY_FP32, FORCES_FP32)


def test_heads_matter_and_forces_are_not_all_zero(artefacts, monkeypatch):
    artefact, batch = artefacts("conservative"), awkward()["oxygen"]
    session = session_of(artefact, 1, monkeypatch)
    first, second = (session(given_arrays(artefact.ensemble, batch, head)) for head in (0, 1))
    assert np.abs(first["energy"][:3] - second["energy"][:3]).min() > 1.0
    assert np.abs(first["forces"]).max() > 1e-3 and first["forces_std"].max() > 1e-4


def test_an_empty_batch_gives_empty_outputs(artefacts, monkeypatch):
    artefact = artefacts("conservative")
    arrays = {k: a[:0] for k, a in given_arrays(artefact.ensemble, copper_oxides(1)).items()}
    found = session_of(artefact, 2, monkeypatch)(arrays)
    assert found["energy"].shape == (0,) and found["energy_members"].shape == (3, 0)
    assert found["forces"].shape == (0, 3) and found["virial"].shape == (0, 3, 3)


def test_bf16_weights_are_stored_as_such_and_stay_near(artefacts, monkeypatch):
    artefact = artefacts("bf16")
    kinds = {t.data_type for t in onnx.load(artefact.file).graph.initializer}
    assert onnx.TensorProto.BFLOAT16 in kinds
    assert artefact.entry.flags["bf16"] == "weights stored in BF16, multiplied in FP32"
    batch = copper_oxides(7)
    arrays = given_arrays(artefact.ensemble, batch)
    found = session_of(artefact, 2, monkeypatch)(arrays)
    rounded = artefact.spec.functional(artefact.ensemble)(*(torch.from_numpy(a) for a in arrays.values()))
    np.testing.assert_allclose(found["energy"], rounded[0].numpy(), rtol=0, atol=1e-5)
    exact = eager_outputs(artefact.ensemble, batch)["energy"]
    error = np.abs(found["energy"] - exact) / np.diff(batch.ptr)
    assert 1e-7 < error.max() < 5e-3


@pytest.mark.parametrize(
    "name",
    ["conservative", pytest.param("truncated", marks=pytest.mark.nightly), "direct charged", "energy", "bf16"],
)
def test_the_graph_has_standard_operators_alone_and_no_scatter_that_loses_updates(artefacts, name):
    model = onnx.load(artefacts(name).file)
    assert {n.domain for n in model.graph.node} <= {"", "ai.onnx"}
    assert [(o.domain, o.version) for o in model.opset_import] == [("", to_onnx.OPSET)]
    operators = {n.op_type for n in model.graph.node}
    assert not operators & {"ScatterND", "SequenceAt", "SplitToSequence", "CastLike", "Loop", "If"}
    assert not model.functions
    onnx.checker.check_model(model, full_check=True)


def test_slots_axes_and_facts_are_written_and_traces_are_not(artefacts):
    artefact = artefacts("direct charged")
    model = onnx.load(artefact.file)
    slots = artefact.spec.functional(artefact.ensemble)
    for expected, values in ((slots.inputs, model.graph.input), (slots.outputs, model.graph.output)):
        for slot, value in zip(expected, values, strict=True):
            axes = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            assert (value.name, axes) == (slot.name, [3 if a == "K" else a for a in slot.axes])
            assert slot.unit in value.doc_string
    facts = {p.key: p.value for p in model.metadata_props}
    assert facts["ensemble_id"] == ID and facts["default_head"] == "metal"
    assert json.loads(facts["heads"]) == ["organic", "metal"] and float(facts["cutoff"]) == 5.0
    assert (facts["precision"], facts["kind"], facts["interface"]) == ("fp64", "forces", "1")
    assert not any(n.doc_string or n.metadata_props for n in model.graph.node)
    raw = artefact.file.read_bytes()
    assert b"/" + b"site-packages" not in raw and str(Path.cwd()).encode() not in raw and b".py" not in raw


@pytest.mark.nightly
def test_another_process_writes_the_same_bytes_and_says_nothing(artefacts, tmp_path):
    code = (
        "import sys; from pathlib import Path; from tests.helpers import tiny_ensemble\n"
        "from atomsieve.export import to_onnx; from atomsieve.export.spec import Spec\n"
        "to_onnx.write(tiny_ensemble(3, layers=1), Spec('onnx', 'bf16', 'energy'), Path(sys.argv[1]), sys.argv[2])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), ID], capture_output=True, text=True, cwd=EXAMPLE.parents[1]
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "model.onnx").read_bytes() == artefacts("bf16").file.read_bytes()


@pytest.mark.nightly
def test_operations_that_the_converter_does_not_know_are_taken_apart(artefacts, tmp_path, monkeypatch):
    straight, seen = to_onnx._run_converter, []

    def unknowing(graph, functional, *, decomposed):
        seen.append(decomposed)
        if decomposed:
            raise torch.onnx.OnnxExporterError("no ONNX function found")
        return straight(graph, functional, decomposed=decomposed)

    monkeypatch.setattr(to_onnx, "_run_converter", unknowing)
    slow, fast = made(tmp_path, "energy"), artefacts("energy")
    assert seen[:2] == [True, False]
    arrays = given_arrays(fast.ensemble, copper_oxides(3))
    found = [session_of(a, 1, monkeypatch)(arrays)["energy"] for a in (slow, fast)]
    np.testing.assert_allclose(*found, rtol=0, atol=EXACT)


def test_weights_of_large_ensembles_go_to_a_file_of_their_own(artefacts, tmp_path, monkeypatch):
    small = artefacts("energy")
    monkeypatch.setattr(to_onnx, "_LARGEST_SINGLE", 1000)
    monkeypatch.setattr(to_onnx, "_convert", lambda functional: onnx_ir_model(small.file))
    written = to_onnx.write(small.ensemble, small.spec, tmp_path, ID)
    assert written.flags["external_data"] == "model.onnx.data"
    assert {p.name for p in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
    batch = copper_oxides(2)
    arrays = given_arrays(small.ensemble, batch)
    whole, parted = (to_onnx.open_session(f, small.entry, CPU)(arrays) for f in (small.folder, tmp_path))
    np.testing.assert_array_equal(whole["energy"], parted["energy"])


def onnx_ir_model(file):
    import onnx_ir

    return onnx_ir.from_proto(onnx.load(file))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"ensemble_id": "another"}, "ensemble_id is '0123456789abcdef', not 'another'"),
        ({"precision": "fp32"}, "precision is 'fp64', not 'fp32'"),
        ({"inputs": ["numbers"]}, "inputs is"),
    ],
)
def test_a_file_that_is_not_what_the_manifest_says_is_refused(artefacts, changed, said):
    artefact = artefacts("energy")
    with pytest.raises(DataError, match=said) as info:
        to_onnx.open_session(artefact.folder, artefact.entry.model_copy(update=changed), CPU)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"not a model" * 9, lambda raw: b""])
def test_a_damaged_file_is_refused_in_one_line(artefacts, tmp_path, damage):
    artefact = artefacts("energy")
    (tmp_path / "model.onnx").write_bytes(damage(artefact.file.read_bytes()))
    with pytest.raises(DataError, match=r"model\.onnx") as info:
        to_onnx.open_session(tmp_path, artefact.entry, CPU)
    assert "\n" not in str(info.value) and "export it again" in str(info.value)


def test_weights_outside_the_folder_are_refused(artefacts, tmp_path):
    artefact = artefacts("energy")
    model = onnx.load(artefact.file)
    inside = tmp_path / "inside"
    inside.mkdir()
    onnx.save_model(model, inside / "model.onnx", save_as_external_data=True, location="data", size_threshold=0)
    (inside / "data").rename(tmp_path / "data")
    model = onnx.load(inside / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../data"
    (inside / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(DataError, match="cannot open"):
        to_onnx.open_session(inside, artefact.entry, CPU)


def test_an_old_runtime_and_a_missing_provider_are_told_in_one_line(artefacts, monkeypatch):
    artefact = artefacts("energy")
    with pytest.raises(AtomSieveError, match=r"it has .*CPUExecutionProvider.*onnxruntime-gpu"):
        to_onnx.open_session(artefact.folder, artefact.entry, torch.device("cuda"))
    monkeypatch.setattr(onnxruntime, "__version__", "1.9.2")
    with pytest.raises(AtomSieveError, match=r"onnxruntime 1\.9\.2 is too old.*1\.20"):
        to_onnx.open_session(artefact.folder, artefact.entry, CPU)


def test_unsafe_and_foreign_operators_are_not_written():
    def model_with(op, domain=""):
        node = onnx.helper.make_node(op, ["x"], ["y"], domain=domain)
        return onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], []))

    onnx_graph.check_operators(model_with("Sin"))
    with pytest.raises(AtomSieveError, match=r"ScatterND.*several threads"):
        onnx_graph.check_operators(model_with("ScatterND"))
    with pytest.raises(AtomSieveError, match=r"com\.example\.Sin"):
        onnx_graph.check_operators(model_with("Sin", "com.example"))


def test_the_example_needs_no_model_code(artefacts, tmp_path):
    artefact = artefacts("direct charged")
    crystal = copper_oxides(1, seed=5)
    read = crystal.replace(charge=np.zeros(1, np.float32), spin=np.ones(1, np.float32))
    write_structure(tmp_path / "one.extxyz", read.to_ase()[0])
    code = (
        "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')\n"
        "print(sorted(m for m in sys.modules if m.startswith(('atomsieve.models', 'atomsieve.export'))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(EXAMPLE), str(artefact.file), str(tmp_path / "one.extxyz")],
        capture_output=True,
        text=True,
        check=True,
    )
    expected = eager_outputs(artefact.ensemble, read)
    first, second, third, modules = done.stdout.splitlines()
    assert first == f"head metal, fp64, cutoff 5.0 Angstrom, {crystal.n_atoms} atoms" and modules == "[]"
    numbers = [float(n) for n in re.findall(r"-?\d+\.\d+", second + third)]
    largest = np.linalg.norm(expected["forces"], axis=1).max()
    # The file rounds positions.
    np.testing.assert_allclose(numbers, [expected["energy"][0], expected["energy_std"][0], largest], rtol=0, atol=1e-5)


def test_the_example_guesses_no_charge(artefacts, tmp_path):
    write_structure(tmp_path / "bare.cif", copper_oxides(1, seed=5).to_ase()[0])
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(artefacts("direct charged").file), str(tmp_path / "bare.cif")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.strip() == "error: this model needs the structure's charge and spin; give them in the file"
