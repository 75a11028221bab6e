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

from atomsieve.models.messages.layout import NAMED_LAYOUTS

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed (pip install triton)")


def of_program(name):
    """Return what a program prints that runs kernels in the interpreter, or on a GPU where there is one."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if not torch.cuda.is_available():
        env["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", f"tests.models.{name}"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found():
    return of_program("fused_kernels_program")


@pytest.fixture(scope="module")
def hydragnn():
    return of_program("hydragnn_gpu_program")


@pytest.mark.parametrize("case", ["shared", "odd widths", "truncated"])
def test_value_and_gradients_equal_the_plain_message(found, case):
    assert found[case]["edges"] == (24 if case == "truncated" else 6)
    assert found[case]["symmetric"] == (case != "truncated")
    assert max(found[case]["apart"]) < 1e-13


def test_every_layout_equals_the_plain_message(found):
    assert len(found["layouts"]) == len(NAMED_LAYOUTS)
    assert max(found["layouts"].values()) < 1e-13


def test_single_precision_agrees_with_double(found):
    assert 0 < max(found["single"]["apart"]) < 1e-5


def test_an_ensemble_has_the_same_energies_forces_and_stress(found):
    assert max(found["ensemble"].values()) < 1e-11


def test_gradients_of_weights_are_refused(found):
    assert "no gradients of weights" in found["refusal"]


@pytest.mark.parametrize(
    "case", ["boxes", "biased vectors", "three radial functions", "crystals", "few edges", "pieces"]
)
def test_hydragnn_on_a_gpu_equals_the_eager_model(hydragnn, case):
    assert hydragnn[case] < 1e-12


def test_hydragnn_on_a_gpu_in_lower_precision(hydragnn):
    assert 0 < hydragnn["fp32"] < 1e-5 < hydragnn["bf16"] < 3e-2


def test_hydragnn_on_a_gpu_gives_energies_alone(hydragnn):
    assert hydragnn["energies alone"]
