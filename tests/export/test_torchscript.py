"""TorchScript exports: what they give, that they stand alone, and what is refused."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk

from atomsieve.errors import AtomSieveError, DataError
from atomsieve.export.spec import Spec, entry_of
from atomsieve.export.to_torchscript import METADATA, MODEL, open_session, write
from atomsieve.export.trust import trust
from atomsieve.gfm import ExportEntry
from atomsieve.structures import StructureBatch
from tests.conftest import ROOT
from tests.export.export_checks import assert_close, eager_outputs, given_arrays
from tests.helpers import copper_oxides, tiny_ensemble

IDENTITY = "ab" * 32
CPU = torch.device("cpu")
TOLERANCE = {"fp64": 1e-12, "fp32": 2e-5, "bf16": 6e-2}  # against the eager ensemble in FP64
FORCES_NAMES = ["energy", "energy_std", "energy_members", "forces", "forces_std", "virial"]


def ensemble_of(**config):
    return tiny_ensemble(2, layers=1, **config).double()


def exported(folder: Path, ensemble, **spec) -> ExportEntry:
    """Write an export into a new folder, mark it as trusted, and return what the manifest would say of it."""
    folder.mkdir()
    chosen = Spec("torchscript", **{"precision": "fp64", **spec})
    written = write(ensemble, chosen, folder, IDENTITY)
    assert [p.name for p in folder.iterdir()] == [MODEL]
    trust(folder.iterdir())
    return entry_of(ensemble, chosen, folder, IDENTITY, written)


def records(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Make the export of one ensemble in a precision, once: ensemble, folder, entry. Tests must not change it."""
    ensemble = ensemble_of()
    made: dict[str, ExportEntry] = {}
    home = tmp_path_factory.mktemp("shared")

    def make(precision: str = "fp64"):
        if precision not in made:
            made[precision] = exported(home / precision, ensemble, precision=precision)
        return ensemble, home / precision, made[precision]

    return make


@pytest.fixture
def made(shared):
    """Return the one in FP64, trusted."""
    ensemble, folder, entry = shared()
    trust(folder.iterdir())
    return ensemble, folder, entry


def test_one_member_has_no_spread(tmp_path):
    ensemble = tiny_ensemble(1, layers=1).double()
    entry = exported(tmp_path / "one", ensemble)
    batch = copper_oxides(3)
    found = open_session(tmp_path / "one", entry, CPU)(given_arrays(ensemble, batch))
    assert np.isnan(found["energy_std"]).all()
    assert np.isnan(found["forces_std"]).all()
    assert_close(found, eager_outputs(ensemble, batch), TOLERANCE["fp64"])


@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16"])
def test_a_session_gives_what_the_ensemble_gives_at_any_size(shared, precision):
    ensemble, folder, entry = shared(precision)
    trust(folder.iterdir())
    assert ("bf16" in entry.flags) == (precision == "bf16")
    assert entry.versions == {"torch": torch.__version__}
    session = open_session(folder, entry, CPU)
    for n in (5, 1, 2, 9):
        batch = copper_oxides(n, seed=n)
        arrays = given_arrays(ensemble, batch)
        before = {name: a.copy() for name, a in arrays.items()}
        found = session(arrays)
        assert list(found) == FORCES_NAMES
        assert all(isinstance(a, np.ndarray) for a in found.values())
        assert_close(found, eager_outputs(ensemble, batch), TOLERANCE[precision])
        assert all(np.array_equal(a, before[name]) for name, a in arrays.items())
    assert found["energy"].dtype == np.float64
    assert found["forces"].dtype == (np.float64 if precision == "fp64" else np.float32)


@pytest.mark.parametrize(
    ("config", "spec", "outputs"),
    [
        ({"forces": "direct", "charge_spin": True}, {"members": True}, [*FORCES_NAMES[:5], "forces_members"]),
        ({"max_neighbors": 9}, {}, FORCES_NAMES),
        ({}, {"kind": "energy"}, FORCES_NAMES[:3]),
    ],
    ids=["direct", "truncated", "energy"],
)
def test_other_models_and_kinds(tmp_path, config, spec, outputs):
    ensemble = ensemble_of(**config)
    entry = exported(tmp_path / "export", ensemble, **spec)
    batch = copper_oxides(4)
    batch = batch.replace(charge=np.float32([0, 1, -1, 2]), spin=np.float32([1, 2, 3, 1]))
    found = open_session(tmp_path / "export", entry, CPU)(given_arrays(ensemble, batch))
    assert list(found) == outputs
    state = {} if config.get("charge_spin") else {"charge": None, "spin": None}
    assert_close(found, eager_outputs(ensemble, batch.replace(**state)), TOLERANCE["fp64"])


def test_arrays_that_may_not_be_written_to_are_taken_without_a_warning(made):
    ensemble, folder, entry = made
    arrays = given_arrays(ensemble, copper_oxides(1))
    for array in arrays.values():
        array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(open_session(folder, entry, CPU)(arrays)["energy"]).all()


def test_the_same_ensemble_gives_the_same_bytes_without_paths_or_warnings(made, tmp_path):
    ensemble, folder, _ = made
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(ensemble, Spec("torchscript", "fp64"), tmp_path, IDENTITY)
    assert (tmp_path / MODEL).read_bytes() == (folder / MODEL).read_bytes()
    for name, content in records(tmp_path / MODEL).items():
        held = name.encode() + content
        for word in (str(ROOT), sys.prefix, str(Path(torch.__file__).parent), "site-packages", "torch_mangle"):
            assert word.encode() not in held, (name, word)


@pytest.mark.nightly
def test_another_process_gives_the_same_bytes(made, tmp_path):
    _, folder, _ = made
    program = (
        "import sys; from pathlib import Path; from atomsieve.export.spec import Spec;"
        "from atomsieve.export.to_torchscript import write; from tests.helpers import tiny_ensemble;"
        f"write(tiny_ensemble(2, layers=1).double(), Spec('torchscript', 'fp64'), Path(sys.argv[1]), '{IDENTITY}')"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, env=environment, cwd=tmp_path)
    assert (tmp_path / MODEL).read_bytes() == (folder / MODEL).read_bytes()


def test_the_file_says_what_it_is(made):
    _, folder, entry = made
    found = dict.fromkeys(METADATA, "")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.load(folder / MODEL, _extra_files=found)
    assert {name: json.loads(value) for name, value in found.items()} == {
        "ensemble_id": IDENTITY,
        "precision": "fp64",
        "kind": "forces",
        "cutoff": 5.0,
        "heads": ["organic", "metal"],
        "default_head": None,
        "elements": [[1, 6, 7, 8], [8, 29]],
        "inputs": entry.inputs,
        "outputs": entry.outputs,
    }


FOREIGN = """
import sys
import numpy as np
import torch

model = torch.jit.load(sys.argv[1])
arrays = np.load(sys.argv[2])
tensors = [torch.from_numpy(arrays[f"input_{k}"]) for k in range(len(arrays.files))]
with torch.no_grad():
    first = model(*tensors)
with torch.inference_mode():
    second = model(*tensors)
plain = model(*tensors)
assert "atomsieve" not in sys.modules
np.savez(sys.argv[3], *(t.numpy() for found in (first, second, plain) for t in found))
"""


@pytest.mark.parametrize(
    "precision", ["fp64", *(pytest.param(low, marks=pytest.mark.nightly) for low in ("fp32", "bf16"))]
)
def test_torch_alone_runs_it(shared, tmp_path, precision):
    ensemble, folder, entry = shared(precision)
    trust(folder.iterdir())
    arrays = given_arrays(ensemble, copper_oxides(3))
    here = list(open_session(folder, entry, CPU)(arrays).values())
    np.savez(tmp_path / "given.npz", **{f"input_{k}": a for k, a in enumerate(arrays.values())})
    command = [sys.executable, "-c", FOREIGN, folder / MODEL, tmp_path / "given.npz", tmp_path / "out.npz"]
    subprocess.run(command, check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""})
    with np.load(tmp_path / "out.npz") as found:
        there = [found[f"arr_{k}"] for k in range(len(found.files))]
    assert len(there) == 3 * len(here)
    for k, value in enumerate(there):
        expected = here[k % len(here)]
        assert value.dtype == expected.dtype
        np.testing.assert_allclose(value, expected, rtol=1e-6 if precision == "fp64" else 1e-4, atol=1e-6)
        if precision == "fp64":
            np.testing.assert_allclose(value, expected, rtol=0, atol=1e-12 * max(np.abs(expected).max(), 1))


def spoil(folder: Path, how: str) -> None:
    content = (folder / MODEL).read_bytes()
    if how == "no archive":
        content = b"not an archive"
    elif how == "empty":
        content = b""
    elif how == "cut":
        content = content[: len(content) // 2]
    else:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for name, record in records(folder / MODEL).items():
                if how == "no metadata" and name.startswith("extra/"):
                    continue
                if how == "no code" and name.startswith("code/"):
                    continue
                archive.writestr(f"archive/{name}", record)
        content = out.getvalue()
    (folder / MODEL).write_bytes(content)


@pytest.mark.parametrize("how", ["no archive", "empty", "cut", "no metadata", "no code"])
def test_a_damaged_file_is_refused_in_one_line_with_the_remedy(made, tmp_path, how):
    _, folder, entry = made
    shutil.copytree(folder, tmp_path / "copy")
    spoil(tmp_path / "copy", how)
    trust([tmp_path / "copy" / MODEL])
    with pytest.raises(DataError) as caught:
        open_session(tmp_path / "copy", entry, CPU)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    assert re.search(r"copy/model.ts does not open as TorchScript \(.+\); export it again with: .*--force", message)


def test_a_file_of_another_ensemble_or_interface_is_refused(made):
    _, folder, entry = made
    other = entry.model_copy(update={"ensemble_id": "cd" * 32})
    with pytest.raises(DataError, match="is of ensemble abababababab, not cdcdcdcdcdcd as the manifest says; export"):
        open_session(folder, other, CPU)
    other = entry.model_copy(update={"outputs": entry.outputs[:3]})
    with pytest.raises(DataError, match=r"gives energy, .*virial, not what the manifest says; export it again"):
        open_session(folder, other, CPU)


def test_a_file_that_nobody_here_made_is_not_run(shared, monkeypatch):
    _, folder, entry = shared()

    def never(*_args, **_kwargs):
        raise AssertionError("a file was opened that nobody trusts")

    monkeypatch.setattr(torch.jit, "load", never)
    with pytest.raises(AtomSieveError, match=r"holds TorchScript code, and nothing in .* says that you made"):
        open_session(folder, entry, CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_runs_what_was_made_for_it(tmp_path):
    ensemble = ensemble_of()
    batch = copper_oxides(4)
    expected = eager_outputs(ensemble, batch)
    entry = exported(tmp_path / "export", ensemble, device="cuda")
    found = open_session(tmp_path / "export", entry, torch.device("cuda", torch.cuda.device_count() - 1))
    assert_close(found(given_arrays(ensemble, batch)), expected, 1e-11)


def compiler() -> str:
    found = shutil.which("g++")
    if found is None:
        pytest.skip("no g++")
    if not (Path(torch.__file__).parent / "include" / "torch" / "script.h").is_file():
        pytest.skip("this torch has no C++ headers")
    return found


@pytest.mark.slow
@pytest.mark.nightly
def test_the_example_in_cpp_gives_the_same_numbers(made, tmp_path):
    gxx = compiler()
    ensemble, folder, _ = made
    home = Path(torch.__file__).parent
    subprocess.run(
        [
            gxx,
            "-std=c++20",
            "-O0",
            "-w",
            f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
            "-isystem",
            home / "include",
            "-isystem",
            home / "include" / "torch" / "csrc" / "api" / "include",
            ROOT / "examples" / "cpp" / "main.cpp",
            "-o",
            tmp_path / "predict",
            "-L",
            home / "lib",
            f"-Wl,-rpath,{home / 'lib'}",
            "-ltorch",
            "-ltorch_cpu",
            "-lc10",
        ],
        check=True,
    )
    atoms = bulk("Cu", "fcc", a=3.615, cubic=True)
    atoms.positions[0, 0] += 0.1
    expected = eager_outputs(ensemble, StructureBatch.from_ase([atoms]))
    done = subprocess.run([tmp_path / "predict", folder / MODEL, "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'heads ["organic", "metal"], using number 1' in done.stdout
    numbers = {k: float(v) for k, v in re.findall(r"^(energy|spread) (\S+) eV$", done.stdout, re.MULTILINE)}
    assert numbers["energy"] == pytest.approx(expected["energy"][0], abs=1e-9)
    assert numbers["spread"] == pytest.approx(expected["energy_std"][0], abs=1e-9)
    forces = re.findall(r"^force on atom \d: (\S+) (\S+) (\S+) eV/Angstrom$", done.stdout, re.MULTILINE)
    np.testing.assert_allclose(np.array(forces, float), expected["forces"], rtol=0, atol=1e-9)
    assert np.abs(expected["forces"]).max() > 1e-3
    missing = subprocess.run([tmp_path / "predict", tmp_path / "none.ts"], capture_output=True, text=True)
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: ") and missing.stderr.count("\n") == 1
