#!/usr/bin/env bash
# torch-sim-atomistic 0.3.0 (with ase 3.29.0, pymatgen 2026.10.24): a slab loses its periodicity without a word, and in opposite ways.
#
# One and the same Cu(111) slab, periodic along two axes, is handed over once as ase.Atoms (pbc T T F) and once as a pymatgen
# Structure (lattice.pbc T T F). torch_sim.io.atoms_to_state keeps one truth value, all(pbc), and the slab arrives as an isolated
# cluster, periodic nowhere; torch_sim.io.structures_to_state writes True, and the same slab arrives as a crystal, periodic along the
# vacuum too. Neither raises or warns. A state holds one truth value for all axes, so it cannot say T T F; one would expect a refusal.
#
# Output seen (2026-12-01, Python 3.11):
#   ase.Atoms [True, True, False] -> [False, False, False], warnings: 0
#   pymatgen.Structure (True, True, False) -> [True, True, True], warnings: 0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'torch==2.13.0' 'torch-sim-atomistic==0.3.0' 'ase==3.29.0' 'pymatgen==2026.10.24'
"$work/venv/bin/python" - <<'PY'
import warnings

import numpy as np
import torch
import torch_sim as ts
from ase.build import fcc111
from pymatgen.core import Lattice, Structure

slab = fcc111("Cu", (1, 1, 3), vacuum=8.0)
lattice = Lattice(np.asarray(slab.cell), pbc=(True, True, False))
structure = Structure(lattice, slab.get_chemical_symbols(), slab.positions, coords_are_cartesian=True)

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    device, dtype = torch.device("cpu"), torch.float64
    from_ase = ts.io.state_to_atoms(ts.io.atoms_to_state([slab], device, dtype))[0].pbc.tolist()
    given = ts.io.structures_to_state([structure], device, dtype)
    from_pymatgen = ts.io.state_to_atoms(given)[0].pbc.tolist()
said = [w for w in caught if "pbc" in str(w.message).lower() or "period" in str(w.message).lower()]
print(f"ase.Atoms {slab.pbc.tolist()} -> {from_ase}, warnings: {len(said)}")
print(f"pymatgen.Structure {structure.lattice.pbc} -> {from_pymatgen}, warnings: {len(said)}")
assert from_ase == [False, False, False], "changed: atoms_to_state no longer drops partial periodicity"
assert from_pymatgen == [True, True, True], "changed: structures_to_state no longer makes a slab periodic"
assert not said, "changed: it warns now"
PY
