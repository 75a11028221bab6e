#!/usr/bin/env bash
# dftd3 1.7.0 (Python interface of s-dftd3): atoms are wrapped into the cell along directions that are not periodic, too.
#
# A slab or a chain has a lattice and a flag per direction that says which are periodic, and one expects that moving the whole of it along an
# open direction changes nothing. It does once an atom leaves the cell there: that atom alone is put back at the other side, far from the
# rest, and the energy loses the pair without a word. Slabs centred on z = 0, as many builders make them, are such structures. Who calls it
# has to move the atoms into the cell first, or make the vector of the open direction long enough around them.
#
# Output seen (2026-12-01, Python 3.11):
#   dimer of C over (5, 5, 20) Angstrom, open along z, at z = 0 and 3: -0.00108025 Hartree
#   the same dimer moved down by 0.5 Angstrom:                          -0.00035938 Hartree
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'dftd3==1.7.0' 'numpy==2.4.6'
cat > "$work/slab.py" <<'PY'
import numpy as np
from dftd3.interface import DispersionModel, RationalDampingParam

BOHR = 0.529177210903


def compute_energy(shift):
    positions = np.array([[0.0, 0.0, shift], [1.0, 0.0, 3.0 + shift]]) / BOHR
    lattice = np.diag([5.0, 5.0, 20.0]) / BOHR
    model = DispersionModel(np.array([6, 6]), positions, lattice, np.array([True, True, False]))
    return float(model.get_dispersion(RationalDampingParam(method="pbe"), grad=False)["energy"])


whole, moved = compute_energy(0.0), compute_energy(-0.5)
print(f"dimer of C over (5, 5, 20) Angstrom, open along z, at z = 0 and 3: {whole:.8f} Hartree")
print(f"the same dimer moved down by 0.5 Angstrom:                          {moved:.8f} Hartree")
assert abs(compute_energy(0.5) - whole) < 1e-9, "changed: moving up inside the cell matters"
assert abs(moved - whole) > 1e-4, "changed: the energy no longer depends on where the cell begins"
PY
"$work/venv/bin/python" "$work/slab.py"
