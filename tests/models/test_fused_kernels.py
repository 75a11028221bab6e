"""The fused GPU kernels against the plain message over edges: in Triton's interpreter, on the CPU, without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed (pip install triton)")


@pytest.fixture(scope="module")
def found():
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if not torch.cuda.is_available():
        env["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "tests.models.fused_kernels_program"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", ["shared", "odd widths", "truncated"])
def test_value_and_gradients_equal_the_plain_message(found, case):
    assert found[case]["edges"] > 20
    assert found[case]["symmetric"] == (case != "truncated")
    assert max(found[case]["apart"]) < 1e-13


def test_single_precision_agrees_with_double(found):
    assert 0 < max(found["single"]["apart"]) < 1e-5


def test_an_ensemble_has_the_same_energies_forces_and_stress(found):
    assert max(found["ensemble"].values()) < 1e-11


def test_gradients_of_weights_are_refused(found):
    assert "no gradients of weights" in found["refusal"]
