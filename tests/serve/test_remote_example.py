"""The example of a remote client runs against a real server and says what the local ensemble says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from ase.build import bulk

from atomsieve.structures import StructureBatch

EXAMPLE = Path(__file__).parents[2] / "examples" / "remote.py"


def test_the_example_says_what_the_local_ensemble_says(server, local):
    line = [sys.executable, str(EXAMPLE), server.grpc, "metal"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = re.findall(r"a = ([\d.]+) Angstrom:\s+(-?[\d.]+) \+- ([\d.]+) eV", done.stdout)
    crystals = StructureBatch.from_ase([bulk("Cu", a=float(a), cubic=True) for a, _, _ in rows])
    truth = local(crystals, {"energy", "spread"}, head="metal")
    assert len(rows) == 6
    np.testing.assert_allclose([float(e) for _, e, _ in rows], truth.energy / 4, atol=1e-4)
    np.testing.assert_allclose([float(s) for _, _, s in rows], truth.energy_std / 4, atol=1e-4)
    bare = subprocess.run(line[:2], capture_output=True, text=True, timeout=100)
    assert bare.returncode == 1 and bare.stderr.startswith("usage: ") and "copper" in bare.stderr
    assert "refused: unknown head 'no such head'" in done.stdout and "10 steps of BFGS" in done.stdout
