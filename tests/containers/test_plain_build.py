"""The steps of the images, run into a plain folder: the wheel is whole, and what it installs screens and serves."""

from __future__ import annotations

import os
import re
import subprocess

import numpy as np
import pytest

from tests.containers.conftest import CONTAINERS, run
from tests.containers.test_images import ROOT
from tests.helpers import copper_oxides, tiny_gfm

pytestmark = [pytest.mark.slow, pytest.mark.e2e]


def inside(prefix, code: str) -> str:
    return run([prefix / "bin/python", "-c", code])


def installed(prefix) -> set[str]:
    """Return the files that the wheel brought, by their path below the package's parent."""
    [record] = prefix.glob("lib/python*/site-packages/atomsieve-*.dist-info/RECORD")
    return {line.split(",")[0] for line in record.read_text().splitlines()}


def test_the_package_comes_from_the_wheel_and_is_whole(plain):
    where = inside(plain, "import atomsieve; print(atomsieve.__file__)").strip()
    assert where.startswith(str(plain)), "not the checkout"
    present = installed(plain)
    tracked = subprocess.run(["git", "ls-files", "atomsieve"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("no git repository, so that what belongs to the package is not known")
    expected = {name for name in tracked.stdout.split() if (ROOT / name).is_file()}
    assert expected
    assert expected <= present, sorted(expected - present)
    assert any(re.fullmatch(r"atomsieve/native/_kernels_base\..*\.so", name) for name in present)
    stray = {name for name in present if name.split("/")[0] in ("tests", "benchmarks", "examples", "build")}
    assert not stray
    for name in ("atomsieve", "screen"):
        assert os.access(plain / "bin" / name, os.X_OK)


def test_commands_and_kernels_work(plain):
    import atomsieve

    assert run([plain / "bin/atomsieve", "--version"]).strip() == f"atomsieve {atomsieve.__version__}"
    assert "Screen candidates" in run([plain / "bin/screen", "--help"])
    assert "serve" in run([plain / "bin/atomsieve", "--help"])
    inside(plain, "from atomsieve.native import kernels; assert kernels() is not None")


def test_it_screens(plain, tmp_path):
    from atomsieve.structures import write_structures

    gfm = tiny_gfm(tmp_path / "gfm")
    write_structures(tmp_path / "candidates.bp", copper_oxides(20))
    line = ["screen", "run", tmp_path / "candidates.bp", "--ensemble", gfm, "--out", tmp_path / "results", "--quiet"]
    run([plain / "bin" / line[0], *line[1:]], OMP_NUM_THREADS="1")
    assert len(np.load(tmp_path / "results/rows.npy")) == 20


def test_the_health_check_is_a_true_inference(deployed):
    script = CONTAINERS / "steps/healthcheck.sh"
    assert run([script], **deployed.environment()) == ""
    wrong = deployed.token_file.with_name("wrong")
    wrong.write_text("another-token-of-the-tests-0123456789")
    wrong.chmod(0o600)
    for change in ({"ATOMSIEVE_TOKEN_FILE": str(wrong)}, {"ATOMSIEVE_MODEL": "other"}):
        done = subprocess.run(
            [script], env=os.environ | deployed.environment() | change, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


def test_the_served_model_runs_the_installed_package(deployed):
    """Its processes import the wheel's package, not the checkout that the tests run from."""
    maps = ""
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline") as file:
                stub = "triton_python_backend_stub" in file.read()
            with open(f"/proc/{name}/environ") as file:
                ours = str(deployed.token_file) in file.read()
            if stub and ours:
                with open(f"/proc/{name}/maps") as file:
                    maps += file.read()
        except OSError:
            continue
    loaded = set(re.findall(r"\S*/atomsieve/native/_kernels_\S*\.so", maps))
    assert loaded
    assert all(path.startswith(str(deployed.prefix)) for path in loaded), loaded


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    done = subprocess.run([CONTAINERS / "build_plain.sh", tmp_path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, f"error: {tmp_path} is there already; name a new folder\n")


def test_a_wheel_without_kernels_is_refused(plain, tmp_path):
    """As where there is no compiler: setup.py builds on without them, the step does not."""
    env = os.environ | {"CC": "/bin/false", "CXX": "/bin/false"}
    line = [CONTAINERS / "steps/wheel.sh", plain, ROOT, tmp_path / "out"]
    done = subprocess.run(line, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "has no compiled kernels: install a C++17 compiler" in done.stderr
    assert not list((tmp_path / "out").glob("*.whl"))
