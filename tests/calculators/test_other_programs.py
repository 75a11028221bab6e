"""Use from other programs: ASE's plug-ins and command line, pymatgen, the i-PI protocol."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import get_calculator_class
from ase.io import read, write

from atomsieve.calculators import GFMCalculator
from atomsieve.calculators import plugin as plugin_module

ROOT = Path(__file__).parents[2]


def test_the_plugin_of_ase() -> None:
    collections = pytest.importorskip("ase._4.plugins.plugin_collection")
    (plugin,) = plugin_module.__ase_plugins__
    found = collections.PluginCollection(
        {collections.PluginCollection._modulesetter(plugin_module)(plugin)}
    ).calculators
    (only,) = found
    assert only.name == "gfm" and only.implementation is GFMCalculator and only.package == "atomsieve"
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["ase.plugins"]
    assert named == {"atomsieve": plugin_module.__name__}


def test_looking_for_plugins_imports_no_torch() -> None:
    program = "import sys, atomsieve.calculators.plugin as p\nassert p.__ase_plugins__ and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_known_to_ase_by_name(gfm: Path) -> None:
    plugin_module.register(), plugin_module.register()
    assert get_calculator_class("gfm") is GFMCalculator


def test_ase_run(gfm: Path, tmp_path: Path, copper: Atoms) -> None:
    write(tmp_path / "cu.traj", copper)
    copper.calc = GFMCalculator(gfm)
    program = [sys.executable, "-m", "atomsieve.calculators", "run", "gfm", "cu.traj", "-p", f"gfm={gfm},head=metal"]
    run = subprocess.run([*program, "-o", "out.extxyz"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    out = read(tmp_path / "out.extxyz")
    assert np.isclose(out.get_potential_energy(), copper.get_potential_energy())
    assert np.allclose(out.get_forces(), copper.get_forces()) and np.allclose(out.get_stress(), copper.get_stress())
    bad = subprocess.run([*program[:-1], f"gfm={gfm},head=metl"], cwd=tmp_path, capture_output=True, text=True)
    assert bad.returncode != 0 and "did you mean 'metal'" in bad.stderr


def test_pymatgen(gfm: Path, copper: Atoms) -> None:
    from pymatgen.io.ase import AseAtomsAdaptor

    calc = GFMCalculator(gfm)
    structure = AseAtomsAdaptor.get_structure(copper)
    copper.calc = calc
    energy = copper.get_potential_energy()
    assert np.isclose(structure.calculate(calculator=calc).results["energy"], energy)
    relaxed = structure.relax(calculator=calc, relax_cell=False, steps=5, fmax=1e-6)
    assert np.isfinite(relaxed.lattice.volume) and np.isclose(relaxed.lattice.volume, structure.lattice.volume)
    after = AseAtomsAdaptor.get_atoms(relaxed)
    after.calc = calc
    assert after.get_potential_energy() < energy


@pytest.mark.skipif(sys.platform == "win32", reason="UNIX sockets")
def test_the_i_pi_protocol(gfm: Path, tmp_path: Path) -> None:
    """ASE's SocketIOCalculator drives a client process that evaluates the ensemble, over a UNIX socket."""
    example = ROOT / "examples" / "socket_server.py"
    environment = dict(os.environ)
    command = [sys.executable, str(example), "--ensemble", str(gfm), "--head", "metal", "--steps", "2"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr[-2000:]
    rows = np.loadtxt(tmp_path / "socket.txt")
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=0)
    atoms.calc = GFMCalculator(gfm, "metal")
    assert np.isclose(rows[0, 0], atoms.get_potential_energy(), rtol=0, atol=1e-9)
    assert len(rows) == 3 and rows[-1, 0] < rows[0, 0], "three evaluations, downhill"
    assert np.abs(rows[:, 1]).max() < 1e-7 and np.abs(rows[:, 2]).max() < 1e-9
